"""Transports: bytes of one connection in and out of a Peer, listening sockets, TLS. The only part of the package with I/O."""
