"""Images: lists in memory that all processes of a node share, and the index of these lists."""
