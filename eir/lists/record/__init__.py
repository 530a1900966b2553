"""Interface of a store, hash chains of the history, reasons of entries, and settings of lists."""
