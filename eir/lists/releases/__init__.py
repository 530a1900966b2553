"""Signed releases: manifest, signatures, signers, publishing."""
