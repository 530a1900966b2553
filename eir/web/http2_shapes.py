"""The headers that clients send again and again, by their names in order: where each part of a request is.

Judging names costs more than reading values does, so each set of them is judged once, by h2. Imports nothing of ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

SHAPES_MAX = 256
JUDGED = frozenset(
    {
        b"host",
        b"te",
        b"content-length",
        b"connection",
        b"transfer-encoding",
        b"upgrade",
        b"keep-alive",
        b"proxy-connection",
        b"cookie",
    }
)
"""Headers on whose values, or on which at all, h2 has an opinion: requests with one go through it."""


class Shape(NamedTuple):
    """The names of a request's headers in order, in which h2 once found no fault, and the positions of the parts."""

    method: int
    path: int
    others: Sequence[tuple[bytes, int]]
    size: int
    """Bytes of the names in a header list."""


class Shapes:
    """The shapes that the clients of a server use."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, ...], Shape] = {}
        self.get = self._known.get

    def learn(self, names: tuple[bytes, ...]) -> None:
        """Take note of names that h2 has accepted."""
        if (
            len(set(names)) < len(names)
            or not {b":method", b":path", b":scheme", b":authority"} <= set(names)
            or not JUDGED.isdisjoint(names)
        ):
            return
        if len(self._known) >= SHAPES_MAX:
            self._known.clear()
        others = tuple((name, at) for at, name in enumerate(names) if not name.startswith(b":"))
        size = sum(len(name) + 32 for name in names)
        self._known[names] = Shape(names.index(b":method"), names.index(b":path"), others, size)


def are_clean(values: Sequence[bytes]) -> bool:
    """True if no value contains, begins or ends with a forbidden byte (RFC 9113 8.2.1)."""
    joined = b"\n".join((b"", *values, b""))
    return joined.count(b"\n") == len(values) + 1 and not (
        b"\0" in joined
        or b"\r" in joined
        or b"\n " in joined
        or b" \n" in joined
        or b"\n\t" in joined
        or b"\t\n" in joined
    )
