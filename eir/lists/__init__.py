"""Lists, from a publisher's file to the memory of a worker."""
