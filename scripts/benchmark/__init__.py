"""Common parts of the benches that measure a running node."""
