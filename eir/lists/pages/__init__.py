"""Pages: the unit in which lists are stored, followed and verified. May import eir.device and eir.errors."""
