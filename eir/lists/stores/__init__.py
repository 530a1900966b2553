"""The stores that keep lists between a load and the workers."""
