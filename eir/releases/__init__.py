"""Signed releases: manifest, signatures, who signed, publishing. May import rows and what it may."""
