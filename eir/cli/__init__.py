"""Command line of the EIR. Each command calls the parts that its task needs and prints the result."""
