"""Protocols and transports, without any logic of the register."""
