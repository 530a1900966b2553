-- A sample of the devices with one subscriber: they show how fast phones move.
SELECT devices.device
FROM devices JOIN parameters ON TRUE
WHERE devices.subscribers = 1 AND devices.device % parameters.sample_one_of = 0
