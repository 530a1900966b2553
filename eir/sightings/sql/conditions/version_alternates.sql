-- Changes of SIM after which the software version is the one that this SIM had last, and not the one that the device had last: two bodies with two versions.
-- An update shows the opposite once.
SELECT
  device, {versions_two} * versions_two + {versions_one} * versions_one AS says,
  CONCAT(
    'days on which the software version goes back as the subscriber changes: ', CAST(two_version_days AS VARCHAR), ' (days that show one body: ', CAST(one_version_days AS VARCHAR),
    '), between ', highest, ' and ', lowest
  ) AS evidence
FROM evidence
WHERE two_version_days + one_version_days > 0
