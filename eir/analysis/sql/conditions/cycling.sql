-- A subscriber who uses up identities: so many devices that nobody else uses, each for more than a try.
SELECT
  own.device, 1 - POWER(0.75, own.used) AS strength,
  CONCAT('one of ', CAST(own.used AS VARCHAR), ' devices in turn of one subscriber, and of nobody else') AS evidence
FROM (
  SELECT usage.device, COUNT(*) OVER (PARTITION BY usage.subscriber) AS used
  FROM usage JOIN devices ON usage.device = devices.device
  WHERE devices.subscribers = 1 AND usage.checks >= 3
) AS own JOIN parameters ON TRUE
WHERE own.used >= parameters.cycling_devices
