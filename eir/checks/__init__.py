"""The check itself: from a question about a device to a verdict and its reasons, whatever protocol asked."""
