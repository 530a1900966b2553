-- Devices with two or three SIMs that change from one origin to another within an hour, by origins; a = b: at one.
SELECT LEAST(steps.origin, steps.before_origin) AS a, GREATEST(steps.origin, steps.before_origin) AS b, COUNT(DISTINCT steps.device) AS devices
FROM steps JOIN (SELECT device FROM members GROUP BY device HAVING COUNT(*) <= 3) AS few ON steps.device = few.device
WHERE steps.subscriber <> steps.before_subscriber AND steps.gap_s < 3600
GROUP BY 1, 2
