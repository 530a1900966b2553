"""Lists in memory: flat images that a node's processes share, and the index that checks are answered from. May import record and pages."""
