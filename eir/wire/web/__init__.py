"""HTTP servers. They do not know the content that they serve."""
