-- A module's number is in many modules, if its maker was careless: that copies are there says nothing then. A list that has device types tells.
SELECT devices.device, devices.subscribers FROM devices JOIN tac_db ON devices.tac = tac_db.tac WHERE tac_db.is_module = 1 AND devices.regulars > 2
