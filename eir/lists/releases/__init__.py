"""Signed releases: manifest, signatures, signers, publishing. May import rows and what it may."""
