-- A TAC that was allocated after the device was first seen.
SELECT
  devices.device, 1.0 AS strength, CONCAT('its TAC was allocated on ', CAST(tac_db.allocated AS VARCHAR), ', after it was first seen') AS evidence
FROM devices JOIN tac_db ON devices.tac = tac_db.tac
WHERE tac_db.allocated > CAST(devices.first_seen AS DATE)
