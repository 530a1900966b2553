"""Transports: TCP, TLS and SCTP, how connections begin and are accepted, and the names of endpoints. Knows no protocol."""
