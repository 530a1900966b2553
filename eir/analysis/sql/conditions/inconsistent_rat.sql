-- DIRBS, as far as the protocol tells: asked about over N5g-eir (5G) where the TAC's bands have no NR.
SELECT devices.device, 1.0 AS strength, 'seen in 5G, for which its model has no bands' AS evidence
FROM devices JOIN tac_db ON devices.tac = tac_db.tac
WHERE devices.by_n5g = 1 AND tac_db.has_nr = 0
