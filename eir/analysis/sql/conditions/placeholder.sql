-- An identifier that stands for none: zeros, one digit repeated, digits that count up or down.
SELECT
  devices.device, 1.0 AS strength, CONCAT('an identifier that stands for none; subscribers: ', CAST(devices.subscribers AS VARCHAR)) AS evidence
FROM devices
WHERE (devices.device < 100000000000000 AND devices.device % 11111111111111 = 0) OR devices.device IN (1234567890123, 12345678901234, 98765432109876, 87654321098765)
