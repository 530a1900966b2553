-- From one check of a sampled device to the next: between which origins, either way, and how long after; no more, since there are many.
SELECT CAST(LEAST(origin, before_origin) AS INTEGER) AS a, CAST(GREATEST(origin, before_origin) AS INTEGER) AS b, CAST(gap_s AS REAL) AS gap_s
FROM (
  SELECT
    claims.number AS origin, LAG(claims.number) OVER trail AS before_origin, INSTANT_S(sightings.time) - INSTANT_S(LAG(sightings.last) OVER trail) AS gap_s
  FROM sightings JOIN sampled ON sightings.device = sampled.device
  JOIN claims ON sightings.origin_host = claims.origin AND COALESCE(sightings.peer, sightings.origin_host) = claims.peer
  WHERE claims.is_believed = 1
  WINDOW trail AS (PARTITION BY sightings.device ORDER BY sightings.time, claims.number)
) AS trails
WHERE NOT before_origin IS NULL
