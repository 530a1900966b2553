"""Pages: units of a list's content, one for each TAC, in which the list is stored, followed and verified."""
