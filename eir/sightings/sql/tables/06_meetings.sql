-- Devices with two or three SIMs that change SIMs from one origin to another within three hours, by origins; a = b: at one. Such devices are mostly honest.
SELECT LEAST(steps.origin, steps.before_origin) AS a, GREATEST(steps.origin, steps.before_origin) AS b, CAST(COUNT(DISTINCT steps.device) AS DOUBLE) AS devices
FROM steps JOIN (SELECT device FROM members GROUP BY device HAVING COUNT(*) <= 3) AS few ON steps.device = few.device
WHERE steps.subscriber <> steps.before_subscriber AND steps.gap_s < 10800
GROUP BY 1, 2
