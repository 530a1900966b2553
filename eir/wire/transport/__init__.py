"""Transports TCP, TLS and SCTP: listeners, connections and URLs of endpoints, for any protocol."""
