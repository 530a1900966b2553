-- Each device. `tac`: its first 8 digits, or NULL for a MEID with letters.
SELECT
  device, CASE WHEN device < 100000000000000 THEN CAST(FLOOR(device / 1000000) AS BIGINT) END AS tac,
  CAST(SUM(checks) AS BIGINT) AS checks, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen, BIT_OR(days) AS days,
  CAST(COUNT(subscriber) AS BIGINT) AS subscribers, SUM(CASE WHEN day_count >= 2 THEN 1 ELSE 0 END) AS regulars
FROM usage
GROUP BY device
