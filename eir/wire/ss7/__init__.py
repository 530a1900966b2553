"""Signalling System 7 over IP: M3UA (RFC 4666), SCCP connectionless (Q.713), TCAP (Q.773), without an application and without I/O.

Whoever uses it hands in octets and the time, and takes octets out.
"""
