"""Changes of a list: loads, operators' entries, rollbacks; also the audit of an EIR."""
