"""Data files: their delivery, the layouts of their rows, conversion of rows to pages and back."""
