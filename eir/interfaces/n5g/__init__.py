"""N5g-eir (TS 29.511): an AMF's request over HTTP/2 becomes a question, and a verdict becomes a response.

service.py translates, by sbi.py (what each request and response of a 5G core carries, and its errors); server.py and link.py
have the connections, on eir.wire.peers; probe.py is the client, eir.wire.web.denials has the token that it brings. Imports eir.checks, eir.wire.peers, eir.wire.web,
and of eir.wire.diameter what is the same for every protocol: the peer table, limits, counts, TLS. Never meets eir.interfaces.s13.
"""
