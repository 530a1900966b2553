"""The stores that keep lists between a load and the workers. May import eir.lists and eir.errors only."""
