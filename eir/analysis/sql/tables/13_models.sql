-- Each TAC and software version: in how many devices, of how many, and which version is the usual one of the TAC.
SELECT
  tac, version, devices, SUM(devices) OVER (PARTITION BY tac) AS of_devices,
  FIRST_VALUE(version) OVER (PARTITION BY tac ORDER BY devices DESC, version) AS usual,
  MAX(CASE WHEN devices >= 20 THEN version END) OVER (PARTITION BY tac) AS newest
FROM (
  SELECT CAST(FLOOR(device / 1000000) AS BIGINT) AS tac, version, COUNT(DISTINCT device) AS devices
  FROM detail
  WHERE device < 100000000000000 AND NOT version IS NULL
  GROUP BY 1, 2
) AS counted
