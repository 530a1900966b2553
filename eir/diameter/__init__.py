"""A Diameter node (RFC 6733) that stands alone: codec, peers without I/O, and a thin asyncio layer around them.

Reading order, from socket to answer: transport (bytes of one connection) → peer (what is done in which of its states; the
table is in states) → serve (what a request gets) → message and avp (the codec) → grammar (is it well formed?) → the
application → answer (bytes again). `node` holds listeners and the peer table, `admission` decides which connections of a
peer may be open, `watchdog` and `capabilities` are what their RFC sections say, `client` is the asking side. Imports only
eir.errors.
"""
