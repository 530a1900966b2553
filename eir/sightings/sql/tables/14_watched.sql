-- Devices whose checks are counted by peer: members of SIM boxes, and devices whose TAC is not in the list.
SELECT device FROM box
UNION
SELECT device FROM turns
UNION
SELECT devices.device
FROM devices LEFT JOIN tac_db ON devices.tac = tac_db.tac
JOIN (SELECT COUNT(*) AS rows FROM tac_db) AS listed ON TRUE
WHERE listed.rows > 0 AND tac_db.tac IS NULL AND NOT devices.tac IS NULL
