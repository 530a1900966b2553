-- Each device with each subscriber, without checks of distrusted origins and peers. This is the one pass over all sightings. Bit n of `days`: the pair was seen on day n of the window.
SELECT
  device, subscriber, checks, first_seen, last_seen, days, home, CAST(BIT_COUNT(days) AS BIGINT) AS day_count
FROM (
  SELECT
    device, subscriber, CAST(SUM(checks) AS BIGINT) AS checks, MIN(time) AS first_seen, MAX(last) AS last_seen,
    BIT_OR(CAST(1 AS BIGINT) << day) AS days, MIN(home) AS home
  FROM sightings
  WHERE device IS NOT NULL AND NOT COALESCE(origin_host, '') IN (SELECT distrusted.voice FROM distrusted)
    AND NOT COALESCE(peer, origin_host, '') IN (SELECT distrusted.voice FROM distrusted)
  GROUP BY device, subscriber
) AS pairs
