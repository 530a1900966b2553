-- Each device with each subscriber, by origin, peer and software version. This is the only table of all devices that is made from the sightings themselves. Bit n of `days`: seen on day n of the window.
SELECT
  device, subscriber, origin_host AS origin, COALESCE(peer, origin_host) AS peer, software_version AS version,
  CAST(SUM(checks) AS BIGINT) AS checks, MIN(time) AS first_seen, MAX(last) AS last_seen,
  BIT_OR(CAST(1 AS BIGINT) << day) AS days, MIN(home) AS home
FROM sightings
GROUP BY device, subscriber, origin_host, COALESCE(peer, origin_host), software_version
