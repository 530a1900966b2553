-- A TAC that was never allocated. Where many devices share it, a model is rather newer than the list.
SELECT
  devices.device, CASE WHEN tacs.devices >= parameters.new_model_devices THEN 0.3 ELSE 1.0 END AS strength,
  CONCAT('its TAC was never allocated; devices that show it: ', CAST(tacs.devices AS VARCHAR)) AS evidence
FROM devices
JOIN (SELECT tac, COUNT(*) AS devices FROM devices GROUP BY tac) AS tacs ON devices.tac = tacs.tac
JOIN parameters ON TRUE
LEFT JOIN tac_db ON devices.tac = tac_db.tac
WHERE tac_db.tac IS NULL AND parameters.has_tac_db = 1 AND devices.device > 0
