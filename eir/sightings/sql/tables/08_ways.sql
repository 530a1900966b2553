-- Pairs of origins, in both directions, that are known to be two places (`is_apart` 1) or one place (0). Configured places are two beyond 30 km. MME groups of one operator
-- are two places by their names. Otherwise continuity decides: within a pool or at a border, honest devices change SIMs between two origins about twice as often as at each of them.
-- A pair with too few changes, or of two operators, is unknown: it has no row, and the place is no evidence.
SELECT origin, other, is_apart
FROM (
  SELECT
    pairs.origin, pairs.other,
    CASE
      WHEN pairs.origin = pairs.other THEN 0
      WHEN NOT pairs.km IS NULL THEN CASE WHEN pairs.km > 30 THEN 1 ELSE 0 END
      WHEN pairs.pool = pairs.other_pool THEN 0
      WHEN NOT pairs.is_one_operator THEN NULL
      WHEN NOT pairs.pool IS NULL AND NOT pairs.other_pool IS NULL THEN 1
      WHEN between_them.devices >= 3 AND between_them.devices * 4 >= LEAST(COALESCE(here.devices, 0), COALESCE(there.devices, 0)) THEN 0
      WHEN LEAST(COALESCE(here.devices, 0), COALESCE(there.devices, 0)) >= 3
        AND COALESCE(between_them.devices, 0) * 4 < LEAST(here.devices, there.devices) THEN 1
    END AS is_apart
  FROM (
    SELECT
      here.number AS origin, there.number AS other, here.realm = there.realm AS is_one_operator, here.pool AS pool, there.pool AS other_pool,
      2 * 6371 * ASIN(SQRT(
        POWER(SIN(RADIANS(there.latitude - here.latitude) / 2), 2)
        + COS(RADIANS(here.latitude)) * COS(RADIANS(there.latitude)) * POWER(SIN(RADIANS(there.longitude - here.longitude) / 2), 2)
      )) AS km
    FROM located AS here CROSS JOIN located AS there
  ) AS pairs
  LEFT JOIN meetings AS here ON pairs.origin = here.a AND pairs.origin = here.b
  LEFT JOIN meetings AS there ON pairs.other = there.a AND pairs.other = there.b
  LEFT JOIN meetings AS between_them ON LEAST(pairs.origin, pairs.other) = between_them.a AND GREATEST(pairs.origin, pairs.other) = between_them.b
) AS judged
WHERE NOT is_apart IS NULL
