-- Software versions that go back with the subscriber, on several days: no phone installs its old firmware again and again.
SELECT
  device, {backs} * backs + {backs_again} * backs_again AS says,
  CONCAT('days on which the software version goes back as the subscriber changes: ', CAST(back_days AS VARCHAR), ', between ', highest, ' and ', lowest) AS evidence
FROM evidence
WHERE back_days > 0
