"""Protocols of those who ask the register or feed it: one folder each, none imports another."""
