"""Images: lists in memory that a node's processes share, and the index over them."""
