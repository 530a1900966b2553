"""Single values for people: times in UTC, nothing as `-`, no control character as itself; and durations as people type them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

NOTHING = "-"
UNITS = {"d": "days", "h": "hours", "m": "minutes"}
DIGITS_MAX = 6
"""Most digits of a duration: a million days and more lead beyond the calendar."""


def cell(value: Any, column: str) -> str:
    """A value of a column as text; the values of a list with commas between them."""
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, list):
        return ", ".join(cell(each, column) for each in value)
    return printable(FORMS.get(column, str)(value))


def printable(text: str, *, but: str = "") -> str:
    """A text with its control characters escaped, except some: names come from the wire and from files, and must not steer a terminal."""
    return "".join(c if c.isprintable() or c in but else f"\\x{ord(c):02x}" for c in text)


def minute(value: str | float) -> str:
    """A time, ISO 8601 or Unix seconds, to the minute; UTC, as the Z says."""
    if not value:
        return NOTHING
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def second(value: str) -> str:
    """A time, ISO 8601, to the second; UTC, as the Z says."""
    return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def principal(signer: str) -> str:
    """A signer without the key's fingerprint, which `--json` shows."""
    return signer.partition(" SHA256:")[0]


def duration(text: str) -> timedelta | None:
    """The duration that a text such as `14d`, `36h` or `90m` stands for; None if it is not one."""
    number, unit = text[:-1], UNITS.get(text[-1:])
    if unit is None or not number.isascii() or not number.isdigit() or len(number) > DIGITS_MAX:
        return None
    return timedelta(**{unit: int(number)})


FORMS: dict[str, Callable[[Any], str]] = {
    "time": second, **dict.fromkeys(("issued", "expires", "loaded", "since", "first_seen", "last_seen"), minute), "signers": principal,
}  # fmt: skip
"""Forms of columns that are not shown as the text of their values."""
