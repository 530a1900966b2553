-- From one check of a shared device to the next: who, where and how long after. Subscribers are numbered within their device.
SELECT
  sightings.device, who.number AS subscriber, sightings.software_version AS version, origins.number AS origin, sightings.time, sightings.day,
  LAG(who.number) OVER trail AS before_subscriber,
  LAG(who.number, 2) OVER trail AS before_that_subscriber,
  LAG(origins.number) OVER trail AS before_origin,
  INSTANT_S(sightings.time) - INSTANT_S(LAG(sightings.time, 2) OVER trail) AS since_before_that_s,
  INSTANT_S(sightings.time) - INSTANT_S(LAG(sightings.last) OVER trail) AS gap_s
FROM sightings JOIN shared ON sightings.device = shared.device
LEFT JOIN origins ON sightings.origin_host = origins.origin
LEFT JOIN (
  SELECT usage.device, usage.subscriber, CAST(ROW_NUMBER() OVER (PARTITION BY usage.device ORDER BY usage.subscriber) AS INTEGER) AS number
  FROM usage JOIN shared ON usage.device = shared.device
) AS who ON sightings.device = who.device AND sightings.subscriber = who.subscriber
WINDOW trail AS (PARTITION BY sightings.device ORDER BY sightings.time, who.number, origins.number)
