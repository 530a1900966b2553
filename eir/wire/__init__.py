"""Protocols and transports of the network, without any logic of the EIR."""
