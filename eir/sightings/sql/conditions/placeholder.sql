-- Placeholders instead of identifiers: only zeros, one repeated digit, or digits that count up or down.
SELECT
  device, {certain} AS says, CONCAT('an identifier that stands for none; subscribers: ', CAST(subscribers AS VARCHAR)) AS evidence
FROM devices
WHERE (device < 100000000000000 AND device % 11111111111111 = 0) OR device IN (1234567890123, 12345678901234, 98765432109876, 87654321098765)
