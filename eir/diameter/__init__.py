"""A Diameter node (RFC 6733) that stands alone: codec, peers without I/O, and a thin asyncio layer around them.

Reading order, from socket to answer: transport (bytes of one connection) → framing (messages) → peer (what is done in which
of its states; the table is in states) → serve (what a request gets) → message and avp (the codec) → grammar (is it well
formed?) → the application that the node was handed (application) → answer (bytes again), sent and counted by traffic.

`base` has the commands of the base protocol, `dictionary` the AVPs, `result` the Result-Codes. `node` holds listeners and the
peer table; `gate` says which connections are let in, `admission` which of a peer's may be open, `dialer` makes those that we
make, `status` tells of them. `watchdog` and `capabilities` are what their RFC sections say, `client` is the asking side.
Imports only eir.errors.
"""
