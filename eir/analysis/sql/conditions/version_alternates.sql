-- Software versions that go back under one identity, on several days: no phone installs its old firmware again and again.
SELECT
  device, 1 - POWER(0.35, days) AS strength,
  CONCAT('days on which its software version goes back: ', CAST(days AS VARCHAR), ', between ', highest, ' and ', lowest) AS evidence
FROM (
  SELECT device, CAST(COUNT(DISTINCT day) AS BIGINT) AS days, MIN(version) AS lowest, MAX(before_version) AS highest
  FROM (
    SELECT device, day, version, LAG(version) OVER (PARTITION BY device ORDER BY time, version) AS before_version
    FROM steps
    WHERE NOT version IS NULL
  ) AS reported
  WHERE version < before_version
  GROUP BY device
) AS back
