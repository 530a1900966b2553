-- Software versions that go back with the subscriber, on several days: no phone installs its old firmware again and again. The same version
-- with all of them speaks for one phone.
SELECT
  device, {backs} * backs + {backs_again} * backs_again + {same_version} * same_version AS says,
  CASE
    WHEN back_days > 0 THEN CONCAT('days on which the software version goes back as the subscriber changes: ', CAST(back_days AS VARCHAR), ', between ', highest, ' and ', lowest)
    ELSE 'the same software version with all subscribers'
  END AS evidence
FROM evidence
WHERE back_days > 0 OR same_version = 1
