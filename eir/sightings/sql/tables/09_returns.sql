-- Changes of SIM in shared devices. Each is evaluated by one question: is the check where this SIM was last (two phones, `is_two`), or where the device was last (one phone, `is_one`)?
-- The question is asked of the origin and of the software version. If an origin sends version 00 for all phones, only the place is evaluated.
SELECT
  trail.device, trail.day, trail.time, trail.subscriber, trail.before_subscriber, trail.gap_s, trail.origin, trail.before_origin, trail.version, trail.before_version,
  CASE WHEN from_device.is_apart = 1 AND from_sim.is_apart = 0 THEN 1 ELSE 0 END AS is_two,
  CASE WHEN from_device.is_apart = 0 AND from_sim.is_apart = 1 THEN 1 ELSE 0 END AS is_one,
  CASE WHEN trail.version = trail.own_version AND trail.version <> trail.before_version THEN 1 ELSE 0 END AS is_two_versions,
  CASE WHEN trail.version <> trail.own_version AND trail.version = trail.before_version THEN 1 ELSE 0 END AS is_one_version
FROM (
  SELECT
    device, day, time, subscriber, before_subscriber, gap_s, origin, before_origin, version, LAG(origin) OVER own AS own_origin,
    LAST_VALUE(version IGNORE NULLS) OVER (PARTITION BY device ORDER BY time, subscriber, origin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_version,
    LAST_VALUE(version IGNORE NULLS) OVER (PARTITION BY device, subscriber ORDER BY time, origin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS own_version
  FROM (
    SELECT steps.device, steps.day, steps.time, steps.subscriber, steps.before_subscriber, steps.gap_s, steps.origin, steps.before_origin, CASE WHEN versioned.origin IS NULL THEN NULL ELSE steps.version END AS version
    FROM steps LEFT JOIN (SELECT origin FROM steps WHERE NOT version IS NULL GROUP BY origin HAVING MAX(version) > '00') AS versioned ON steps.origin = versioned.origin
  ) AS versioned_steps
  WINDOW own AS (PARTITION BY device, subscriber ORDER BY time, origin)
) AS trail
LEFT JOIN ways AS from_device ON trail.origin = from_device.origin AND trail.before_origin = from_device.other
LEFT JOIN ways AS from_sim ON trail.origin = from_sim.origin AND trail.own_origin = from_sim.other
WHERE trail.subscriber <> trail.before_subscriber
