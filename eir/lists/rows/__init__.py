"""Data files: how they are delivered, the layouts of their rows, rows to pages and back. May import record and pages."""
