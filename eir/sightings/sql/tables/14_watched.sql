-- Devices of which it counts by which peers their checks came: those of boxes, and those of TACs that the list does not know.
SELECT device FROM box
UNION
SELECT device FROM turns
UNION
SELECT devices.device
FROM devices LEFT JOIN tac_db ON devices.tac = tac_db.tac
JOIN (SELECT COUNT(*) AS rows FROM tac_db) AS listed ON TRUE
WHERE listed.rows > 0 AND tac_db.tac IS NULL AND NOT devices.tac IS NULL
