-- Serial numbers one after the other: a box that counts up, or a firm that bought a carton of phones.
SELECT
  device, 0.5 AS strength, CONCAT('in a run of ', CAST(run AS VARCHAR), ' serial numbers one after the other') AS evidence
FROM (
  SELECT device, COUNT(*) OVER (PARTITION BY tac, begins) AS run
  FROM (SELECT device, tac, device - ROW_NUMBER() OVER (PARTITION BY tac ORDER BY device) AS begins FROM devices WHERE NOT tac IS NULL) AS numbered
) AS runs JOIN parameters ON TRUE
WHERE run >= parameters.run_min
