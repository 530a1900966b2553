"""A list as a log of changes on a base: head, change, relation, reader, writer, and the contract of a store."""
