"""Running node: its processes, metrics, log and status."""
