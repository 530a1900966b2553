"""Images (contents of lists in memory that all processes of a node share), and the index that looks up devices in them."""
