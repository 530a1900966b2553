"""Changes of a list: loads, operators' own entries, rollbacks; and the audit of an EIR against a release. May import releases and what it may."""
