-- DIRBS: a TAC that is barred.
SELECT devices.device, 1.0 AS strength, 'a TAC that is barred' AS evidence
FROM devices JOIN barred ON devices.tac = barred.tac
