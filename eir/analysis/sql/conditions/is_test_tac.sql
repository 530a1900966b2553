-- DIRBS: a TAC for tests.
SELECT device, 1.0 AS strength, 'a TAC for tests' AS evidence
FROM devices
WHERE FLOOR(tac / 100) BETWEEN 1001 AND 1017 OR FLOOR(tac / 10000) IN (44, 86, 91)
