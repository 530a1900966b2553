"""Pages: the unit in which lists are stored, followed and proved. May import eir.device and eir.errors."""
