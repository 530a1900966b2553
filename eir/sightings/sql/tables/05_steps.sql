-- Checks of shared devices, each with the previous check: its subscriber, its origin, and the seconds between the two.
SELECT
  sightings.device, members.number AS subscriber, sightings.software_version AS version, claims.number AS origin, claims.claim, sightings.time, INSTANT_S(sightings.time) AS instant_s, sightings.day,
  LAG(members.number) OVER trail AS before_subscriber,
  LAG(claims.number) OVER trail AS before_origin,
  INSTANT_S(sightings.time) - INSTANT_S(LAG(sightings.last) OVER trail) AS gap_s
FROM sightings JOIN members ON sightings.device = members.device AND sightings.subscriber = members.subscriber
JOIN claims ON sightings.origin_host = claims.origin AND COALESCE(sightings.peer, sightings.origin_host) = claims.peer
WHERE claims.is_believed = 1
WINDOW trail AS (PARTITION BY sightings.device ORDER BY sightings.time, members.number, claims.number)
