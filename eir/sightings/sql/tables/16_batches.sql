-- IMEIs of modules with more than two subscribers. A careless maker gives one number to many modules, so copies are no evidence. The list of TACs must have device types.
SELECT devices.device, devices.subscribers FROM devices JOIN tac_db ON devices.tac = tac_db.tac WHERE tac_db.is_module = 1 AND devices.regulars > 2
