"""Pages: the unit in which lists are stored, followed and verified."""
