"""A Diameter node (RFC 6733) that stands alone: codec, peers without I/O, and a thin asyncio layer around them.

Reading order, from socket to answer: transport (bytes of one connection) → peer (the connection's states) → message and
avp (the codec) → grammar (is it well formed?) → the application → answer (bytes again). `node` holds the listeners and
the peer table, `client` is the asking side. Imports only eir.errors.
"""
