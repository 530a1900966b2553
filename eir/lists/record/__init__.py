"""The contract of a store, the chain of the history, reasons, and a list's settings. May import pages."""
