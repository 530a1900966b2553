"""Feed: rows that a register sends over HTTP into local lists."""
