"""Fixtures of the tests of the whole: `hosts`."""

from three_protocols import hosts

__all__ = ["hosts"]
