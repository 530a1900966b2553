-- Each shared device: days on which another subscriber comes with an older software version than the one before; how many versions there are.
-- An origin that sends 00 of all phones says nothing.
SELECT
  device, CAST(COUNT(DISTINCT CASE WHEN version < before_version AND subscriber <> before_subscriber THEN day END) AS BIGINT) AS back_days,
  SUM(CASE WHEN subscriber <> before_subscriber THEN 1 ELSE 0 END) AS compared,
  SUM(CASE WHEN subscriber <> before_subscriber AND version <> before_version THEN 1 ELSE 0 END) AS differing,
  MIN(version) AS lowest, MAX(version) AS highest
FROM (
  SELECT device, day, version, subscriber, LAG(version) OVER trail AS before_version, LAG(subscriber) OVER trail AS before_subscriber
  FROM steps JOIN (
    SELECT origin FROM steps WHERE NOT version IS NULL GROUP BY origin HAVING MAX(version) > '00'
  ) AS telling ON steps.origin = telling.origin
  WHERE NOT version IS NULL
  WINDOW trail AS (PARTITION BY device ORDER BY time, subscriber)
) AS reported
GROUP BY device
