"""Command line for people and scripts. Each command combines parts for one task and prints the result."""
