-- Each shared device: how its subscribers follow one another. A conflict: another subscriber elsewhere, sooner than a phone gets there.
-- A return: A, B, and A again, within the time in which nobody changes a SIM twice. Together: two subscribers at once, not apart, as
-- the two SIMs of one phone are.
SELECT
  switches.device,
  COUNT(*) AS switches,
  SUM(is_conflict) AS conflicts, CAST(COUNT(DISTINCT CASE WHEN is_conflict = 1 THEN day END) AS BIGINT) AS conflict_days,
  CAST(COUNT(DISTINCT CASE WHEN is_return = 1 THEN day END) AS BIGINT) AS return_days,
  SUM(is_return) AS returns,
  SUM(CASE WHEN is_conflict = 0 AND gap_s <= parameters.together_s THEN 1 ELSE 0 END) AS together,
  MAX(CASE WHEN is_conflict = 1 THEN CONCAT(LEAST(place.origin, before_place.origin), ' and ', GREATEST(place.origin, before_place.origin)) END) AS places
FROM (
  SELECT
    steps.device, steps.origin, steps.before_origin, steps.gap_s, steps.day,
    CASE WHEN steps.origin <> steps.before_origin AND steps.gap_s < COALESCE(
      distances.fastest_s, CASE WHEN pace.moves >= parameters.moves_min THEN pace.fastest_s END, parameters.far_s
    ) THEN 1 ELSE 0 END AS is_conflict,
    CASE WHEN steps.subscriber = steps.before_that_subscriber AND steps.since_before_that_s <= parameters.return_s THEN 1 ELSE 0 END AS is_return
  FROM steps JOIN parameters ON TRUE
  LEFT JOIN pace ON LEAST(steps.origin, steps.before_origin) = pace.a AND GREATEST(steps.origin, steps.before_origin) = pace.b
  LEFT JOIN distances ON LEAST(steps.origin, steps.before_origin) = distances.a AND GREATEST(steps.origin, steps.before_origin) = distances.b
  WHERE steps.subscriber <> steps.before_subscriber
) AS switches
JOIN parameters ON TRUE
LEFT JOIN origins AS place ON switches.origin = place.number
LEFT JOIN origins AS before_place ON switches.before_origin = before_place.number
GROUP BY switches.device
