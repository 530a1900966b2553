"""Transports: TCP, TLS and SCTP; listeners, connections and URLs of endpoints. Independent of the protocol above."""
