"""Data files: their delivery, the layouts of rows, and conversion between rows and pages."""
