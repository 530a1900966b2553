-- DIRBS: in a list already: some check was answered blacklisted.
SELECT device, 1.0 AS strength, 'was answered blacklisted' AS evidence
FROM devices
WHERE blocked = 1
