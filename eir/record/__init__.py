"""What a store must keep, whichever it is: the contract, the chain of the history, reasons, what a list's settings are. May import pages."""
