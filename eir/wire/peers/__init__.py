"""Peers: who may connect, from where, how often, and over which transports. Knows no protocol and no check.

settings.py has the peer table and the limits, and with gate.py holds connections to them, rate.py their requests; transport/
opens and accepts. Clients that ask over other protocols than Diameter have their base here too: settings.py says who asks, link.py is
one connection and its turns, server.py has all connections of a protocol.
"""
