"""Sources of releases: the drop folder, pulls from a publisher's folder, acknowledgements. Checks do not use them."""
