-- Each change from one subscriber of a shared device to another, and what was strange about it. A conflict: at another place, sooner by five
-- minutes (clocks differ) than a phone gets there. Where one of the device's own SIMs did so on two days, the two places meet where it lives:
-- a SIM is in one body.
SELECT
  steps.device, steps.day, steps.time, steps.origin, steps.before_origin, steps.subscriber, steps.before_subscriber, steps.gap_s, travel.fastest_s, travel.known,
  CASE WHEN steps.gap_s + 300 < travel.fastest_s AND own.device IS NULL THEN 1 ELSE 0 END AS is_conflict
FROM steps
LEFT JOIN travel ON LEAST(steps.origin, steps.before_origin) = travel.a AND GREATEST(steps.origin, steps.before_origin) = travel.b
LEFT JOIN (
  SELECT steps.device, travel.a, travel.b
  FROM steps JOIN travel ON LEAST(steps.origin, steps.before_origin) = travel.a AND GREATEST(steps.origin, steps.before_origin) = travel.b
  WHERE steps.subscriber = steps.before_subscriber AND steps.gap_s + 300 < travel.fastest_s
  GROUP BY steps.device, travel.a, travel.b
  HAVING COUNT(DISTINCT steps.day) >= 2
) AS own ON steps.device = own.device AND travel.a = own.a AND travel.b = own.b
WHERE steps.subscriber <> steps.before_subscriber
