-- Each change from one subscriber of a shared device to another, and what was strange about it. A conflict: at another place, sooner by five
-- minutes (clocks differ) than a phone gets there.
SELECT
  steps.device, steps.day, steps.time, steps.origin, steps.before_origin, steps.subscriber, steps.before_subscriber, steps.gap_s, travel.fastest_s, travel.known,
  CASE WHEN steps.gap_s + 300 < travel.fastest_s THEN 1 ELSE 0 END AS is_conflict,
  CASE WHEN travel.fastest_s > 300 THEN 1 ELSE 0 END AS is_elsewhere,
  CASE WHEN steps.subscriber = steps.before_that_subscriber AND steps.since_before_that_s <= 7200 THEN 1 ELSE 0 END AS is_return
FROM steps
LEFT JOIN travel ON LEAST(steps.origin, steps.before_origin) = travel.a AND GREATEST(steps.origin, steps.before_origin) = travel.b
WHERE steps.subscriber <> steps.before_subscriber
