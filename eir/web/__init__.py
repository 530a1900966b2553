"""HTTP servers. Know nothing of what they serve."""
