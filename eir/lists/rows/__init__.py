"""Data files: their delivery, the layouts of rows, and conversion between rows and pages (list entries of one TAC each)."""
