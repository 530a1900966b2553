"""A running node: its processes, and how it is observed."""
