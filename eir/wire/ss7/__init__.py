"""Signalling System 7 over IP: M3UA (RFC 4666), connectionless SCCP (Q.713) and TCAP (Q.773), without I/O.

The caller passes received octets and the time, and sends the returned octets.
"""
