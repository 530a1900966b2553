"""Stores for lists: SQLite for one host, Redis for several nodes."""
