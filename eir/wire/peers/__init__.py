"""Connections of peers in any protocol: who may connect, from which address and how often.

settings.py has the peer table, the limits and the identification of clients. gate.py limits connections, rate.py requests and
other events. Connections of every protocol have their base here: link.py has one connection and its turns, server.py all
connections of a protocol, status.py the rows of `eir peers`, counts.py the counters.
"""
