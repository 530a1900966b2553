"""Common parts of those benchmarks in scripts/bench that measure a running node."""
