-- How long a phone takes from one origin to another, in seconds: by configured places at 300 km/h, and by moves that were seen, the sooner of both; an hour
-- where neither is known, and nothing to and from an origin that is near most others. 0: they are one place. By names, MMEs of one group are a pool (TS
-- 23.003 19.4.2.4).
SELECT
  ways.a, ways.b,
  CASE
    WHEN ways.here_pool = ways.there_pool THEN 0.0
    WHEN NOT pace.fastest_s IS NULL THEN LEAST(pace.fastest_s, COALESCE(ways.apart_s, pace.fastest_s))
    WHEN ways.is_pool = 1 THEN 0.0
    WHEN NOT ways.apart_s IS NULL THEN ways.apart_s
    WHEN ways.is_near = 1 THEN 0.0
    ELSE 3600.0
  END AS fastest_s,
  CASE
    WHEN ways.here_pool = ways.there_pool THEN 'of one pool by their names'
    WHEN pace.fastest_s <= COALESCE(ways.apart_s, pace.fastest_s) THEN 'by how phones with one SIM move'
    WHEN NOT pace.fastest_s IS NULL THEN 'by their configured places'
    WHEN ways.is_pool = 1 THEN 'of one place, as SIMs change between them'
    WHEN NOT ways.apart_s IS NULL THEN 'by their configured places'
    WHEN ways.is_near = 1 THEN 'by how near one of them is to most others'
    ELSE 'by what is assumed of places between which nobody is seen'
  END AS known
FROM (
  SELECT
    pairs.a, pairs.b,
    CASE WHEN direct.a IS NULL AND by_way.a IS NULL THEN 0 ELSE 1 END AS is_pool,
    2 * 6371 * ASIN(SQRT(
      POWER(SIN(RADIANS(there.latitude - here.latitude) / 2), 2)
      + COS(RADIANS(here.latitude)) * COS(RADIANS(there.latitude)) * POWER(SIN(RADIANS(there.longitude - here.longitude) / 2), 2)
    )) / 300 * 3600 AS apart_s,
    CASE WHEN near_here.origin IS NULL AND near_there.origin IS NULL THEN 0 ELSE 1 END AS is_near, here.pool AS here_pool, there.pool AS there_pool
  FROM (
    SELECT DISTINCT LEAST(origin, before_origin) AS a, GREATEST(origin, before_origin) AS b
    FROM steps
    WHERE subscriber <> before_subscriber AND origin <> before_origin
  ) AS pairs
  JOIN located AS here ON pairs.a = here.number
  JOIN located AS there ON pairs.b = there.number
  LEFT JOIN pools AS direct ON pairs.a = direct.a AND pairs.b = direct.b
  LEFT JOIN (
    SELECT DISTINCT here.a, there.b FROM pools AS here JOIN pools AS there ON here.b = there.a
  ) AS by_way ON pairs.a = by_way.a AND pairs.b = by_way.b
  LEFT JOIN near AS near_here ON pairs.a = near_here.origin
  LEFT JOIN near AS near_there ON pairs.b = near_there.origin
) AS ways
LEFT JOIN pace ON ways.a = pace.a AND ways.b = pace.b
