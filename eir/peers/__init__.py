"""Clients that ask over other protocols than Diameter: who each is, its connection, and the connections of a worker together.

requester.py says who asks; link.py is one connection and its turns; server.py has all connections of a protocol, which derives from
these two, as eir.n5g does. Imports of eir.diameter what is the same for every protocol: the peer table, limits, counts, TLS. Knows no
protocol, and no check.
"""
