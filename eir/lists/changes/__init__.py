"""Changes of a list: loads of releases, operators' entries and rollbacks; also the audit of an EIR."""
