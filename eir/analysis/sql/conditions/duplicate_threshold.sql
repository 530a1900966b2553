-- DIRBS: so many subscribers, or more, in the window.
SELECT
  devices.device, 1.0 AS strength, CONCAT(CAST(devices.subscribers AS VARCHAR), ' subscribers in the window') AS evidence
FROM devices JOIN parameters ON TRUE
WHERE devices.subscribers >= parameters.duplicate_threshold
