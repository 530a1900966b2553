-- A sample of the devices with one subscriber, some 60,000: they show how fast phones move.
SELECT devices.device
FROM devices JOIN (SELECT CAST(GREATEST(FLOOR(COUNT(*) / 60000), 1) AS BIGINT) AS one_of FROM devices) AS size ON TRUE
WHERE devices.subscribers = 1 AND devices.device % size.one_of = 0
