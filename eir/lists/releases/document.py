"""JSON of signed documents (manifest, index, acknowledgement): parser and validation of members.

Unknown members are ignored. A future version that needs another meaning of members has another `format`.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from eir.errors import ReleaseRefused
from eir.lists.record.settings import KINDS, is_list_name

SERIAL_MAX = (1 << 63) - 1
_UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Expected(NamedTuple):
    """Valid values of a member."""

    type: type
    fits: Callable[[Any], object]
    """Function that returns a true value if a value of this type is valid."""
    text: str
    """Valid values, for messages."""


def integer(least: int, most: int = SERIAL_MAX) -> Expected:
    """Return the expectation of an integer in a range."""
    return Expected(int, lambda value: least <= value <= most, f"an integer from {least} to {most}")


def word(*words: str) -> Expected:
    """Return the expectation of one of several words."""
    return Expected(str, words.__contains__, " or ".join(words))


def array(most: int, members: str = "objects", fits: Callable[[Any], object] = lambda _: True) -> Expected:
    """Return the expectation of an array with 1 to `most` members, each of which is valid if `fits` returns a true value."""
    return Expected(
        list, lambda values: 1 <= len(values) <= most and all(map(fits, values)), f"an array of 1 to {most} {members}"
    )


def is_digest(value: object) -> bool:
    """Return True if a value is a SHA-256 in lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_utc_text(text: str) -> bool:
    with suppress(ValueError):
        return _UTC_TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    return False


TEXT = Expected(str, lambda _: True, "a text")
OBJECT = Expected(dict, bool, "an object")
SERIAL = integer(1)
DIGEST = Expected(str, is_digest, "64 hexadecimal digits in lower case")
TIME = Expected(str, _is_utc_text, "a time like 2026-11-24T00:00:00Z")
LIST_NAME = Expected(str, is_list_name, "the name of a list")
KIND_OF_LIST = word(*KINDS)


def parse_document(content: bytes, document_format: str, subject: str, reason: str) -> dict[str, Any]:
    """Parse a JSON object that has this format.

    Args:
        content: JSON text.
        document_format: required value of the member `format`.
        subject: name of the document for messages.
        reason: reason word of a rejection.

    Raises:
        ReleaseRefused: by `reason`.
    """
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ReleaseRefused(reason, f"{subject} is not JSON: {error}") from None
    present = document.get("format") if isinstance(document, dict) else None
    if present != document_format:
        formats = f"the format {str(present)[:40]!r}, and this version reads {document_format!r}"
        raise ReleaseRefused(
            reason, f"{subject} has {formats}: publisher and node need versions of this program with the same format"
        )
    return {**document}


def members(
    document: Any, expected: Mapping[str, Expected], reason: str, subject: str = "the document"
) -> dict[str, Any]:
    """Return the expected members of a JSON object after validation of their types and values.

    `reason`, `subject`: as for `parse_document`.

    Raises:
        ReleaseRefused: by `reason`, if a member is missing or has a wrong type or value.
    """
    if not isinstance(document, dict):
        raise ReleaseRefused(reason, f"{subject} is not an object")
    values = {name: document.get(name) for name in expected}
    for name, value in values.items():
        kind, fits, text = expected[name]
        if type(value) is not kind or not fits(value):  # isinstance would accept a bool as an int
            raise ReleaseRefused(reason, f'"{name}" is missing or is not {text}')
    return values


def _without_repeats(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert the members of a JSON object to a dict; raise ValueError if a name is repeated.

    If a name occurs twice, one parser may use the first value, and another parser the last value.
    """
    document = dict(members)
    if len(document) < len(members):
        raise ValueError("a name occurs twice in one object")
    return document
