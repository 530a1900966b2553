-- Each device. tac: the first 8 digits; NULL of a MEID with letters.
SELECT
  device, CASE WHEN device < 100000000000000 THEN CAST(FLOOR(device / 1000000) AS BIGINT) END AS tac,
  CAST(SUM(checks) AS BIGINT) AS checks, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen,
  CAST(BIT_COUNT(BIT_OR(days)) AS BIGINT) AS day_count,
  MAX(blocked) AS blocked, MAX(by_n5g) AS by_n5g, CAST(COUNT(DISTINCT subscriber) AS BIGINT) AS subscribers
FROM detail
GROUP BY device
