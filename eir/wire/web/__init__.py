"""HTTP servers and clients, and access control, independent of the content that they serve."""
