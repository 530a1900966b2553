"""Signed releases: manifest, signatures, signers, publishing. May import rows and the rooms below it."""
