"""Peers: who may connect, from where, how often, and over which transports. Knows no protocol and no check.

settings.py has the peer table and the limits, and says who asks; gate.py limits connections, rate.py requests, and whatever else a client
may do so often. Every protocol's connections have their base here: link.py is one connection and its turns, server.py has all connections
of a protocol, status.py is how `eir peers` shows one, counts.py has what is counted.
"""
