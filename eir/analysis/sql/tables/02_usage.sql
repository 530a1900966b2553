-- Each device with each subscriber.
SELECT
  device, subscriber, CAST(SUM(checks) AS BIGINT) AS checks, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen,
  BIT_OR(days) AS days, CAST(BIT_COUNT(BIT_OR(days)) AS BIGINT) AS day_count, MIN(home) AS home
FROM detail
WHERE subscriber IS NOT NULL
GROUP BY device, subscriber
