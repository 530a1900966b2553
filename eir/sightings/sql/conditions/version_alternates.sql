-- Changes of SIM after which the software version is the last one of this SIM, and not the last one of the device: two phones with two versions. An update has the opposite result once.
SELECT
  device, {versions_two} * versions_two + {versions_one} * versions_one AS says,
  CONCAT(
    'days on which the software version goes back as the subscriber changes: ', CAST(two_version_days AS VARCHAR), ' (days that show one body: ', CAST(one_version_days AS VARCHAR),
    '), between ', highest, ' and ', lowest
  ) AS evidence
FROM evidence
WHERE two_version_days + one_version_days > 0
