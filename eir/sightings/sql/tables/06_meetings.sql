-- Pairs of origins (`a` = `b`: one origin), with the number of devices that change the SIM from one to the other within three hours. Only devices with two or three SIMs count, because most of them are honest.
SELECT LEAST(steps.origin, steps.before_origin) AS a, GREATEST(steps.origin, steps.before_origin) AS b, CAST(COUNT(DISTINCT steps.device) AS DOUBLE) AS devices
FROM steps JOIN (SELECT device FROM members GROUP BY device HAVING COUNT(*) <= 3) AS few ON steps.device = few.device
WHERE steps.subscriber <> steps.before_subscriber AND steps.gap_s < 10800
GROUP BY 1, 2
