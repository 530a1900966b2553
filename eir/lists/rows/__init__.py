"""Data files: their delivery, the layouts of rows, conversion between rows and tables, limits on a change of a list, MSISDNs."""
