"""Contract of a store, chains of the history, reasons, and settings of a list."""
