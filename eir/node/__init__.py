"""Running node: its processes, and their observation."""
