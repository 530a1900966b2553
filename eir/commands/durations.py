"""Durations as people type them: `14d`, `36h`, `90m`."""

from datetime import timedelta

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
DIGITS_MAX = 6
"""A million days and more lead beyond the calendar."""


def duration(text: str) -> timedelta | None:
    """The duration that a text stands for; None if it is not one."""
    number, unit = text[:-1], UNITS.get(text[-1:])
    if unit is None or not number.isascii() or not number.isdigit() or len(number) > DIGITS_MAX:
        return None
    return timedelta(**{unit: int(number)})
