"""Changes of a list: loads, operators' entries, rollbacks; also the audit of an EIR. May import releases and the rooms below it."""
