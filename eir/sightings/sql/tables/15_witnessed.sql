-- Watched devices with each subscriber, by the peer that sent the checks. Only checks that are evidence count.
SELECT
  sightings.device, sightings.subscriber, claims.peer, CAST(SUM(sightings.checks) AS BIGINT) AS checks, BIT_OR(CAST(1 AS BIGINT) << sightings.day) AS days
FROM sightings JOIN watched ON sightings.device = watched.device
JOIN claims ON sightings.origin_host = claims.origin AND COALESCE(sightings.peer, sightings.origin_host) = claims.peer
WHERE claims.is_believed = 1
GROUP BY sightings.device, sightings.subscriber, claims.peer
