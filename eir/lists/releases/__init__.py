"""Signed releases: manifest, signatures, signers, and publishing."""
