-- Each device with each subscriber, without checks of distrusted origins and peers.
SELECT
  device, subscriber, checks, first_seen, last_seen, days, home, CAST(BIT_COUNT(days) AS BIGINT) AS day_count
FROM (
  SELECT
    device, subscriber, CAST(SUM(checks) AS BIGINT) AS checks, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen,
    BIT_OR(days) AS days, MIN(home) AS home
  FROM seen
  WHERE device IS NOT NULL AND NOT COALESCE(origin, '') IN (SELECT distrusted.reporter FROM distrusted)
    AND NOT COALESCE(peer, '') IN (SELECT distrusted.reporter FROM distrusted)
  GROUP BY device, subscriber
) AS pairs
