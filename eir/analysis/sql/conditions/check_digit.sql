-- A wrong check digit (TS 23.003 6.2.1) from an origin whose IMEIs otherwise pass; a spare 0 is none.
SELECT
  doubtful.device, 1 - POWER(0.5, SUM(doubtful.wrong_ones)) AS strength,
  CONCAT('sightings with a wrong check digit: ', CAST(SUM(doubtful.wrong_ones) AS VARCHAR), ', where others of the same origin are right') AS evidence
FROM doubtful JOIN digits ON doubtful.origin = digits.origin
WHERE doubtful.wrong_ones > 0
GROUP BY doubtful.device
