"""IPA: frames over a stream, and the few messages by which both ends say who they are and that they are there (CCM).

A frame is its length (2 octets, of what follows the third), the number of a stream, and what is on it. GSUP is on the stream OSMO,
behind one octet that says so. Without I/O.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from eir.errors import EirError

HEADER_BYTES: Final = 3
NAME_MAX: Final = 255
"""Characters of a name that are kept."""
OSMO: Final = 0xEE
CCM: Final = 0xFE
GSUP: Final = 0x05
"""The extension octet on the stream OSMO."""


class Ccm(IntEnum):
    """The messages on the stream CCM."""

    PING = 0
    PONG = 1
    ID_GET = 4
    ID_RESP = 5
    ID_ACK = 6


class Tag(IntEnum):
    """Properties that an end may give of itself (an IPA's ID_GET and ID_RESP)."""

    SERIAL = 0
    UNIT_NAME = 1
    UNIT_ID = 8


def frame(stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(2) + bytes((stream,)) + payload


PING, PONG, ID_ACK = (frame(CCM, bytes((kind,))) for kind in (Ccm.PING, Ccm.PONG, Ccm.ID_ACK))
ID_GET: Final = frame(CCM, bytes((Ccm.ID_GET, 1, 8, 1, 7, 1, 2, 1, 3, 1, 4, 1, 5, 1, 1, 1, 0)))
"""Asks for everything, as an OsmoHLR does."""


class FrameTooLong(EirError):
    """A frame that is longer than the limit, by its header; nothing behind it can be read."""


class Frames:
    """Cuts a stream into frames. No more is held than one frame that is not whole, and what was fed last."""

    __slots__ = ("_at", "_buffer", "_longest")

    def __init__(self, longest: int) -> None:
        """`longest`: octets that a frame may have."""
        self._buffer, self._at, self._longest = b"", 0, longest

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    @property
    def unread(self) -> int:
        """Octets that are not taken yet."""
        return len(self._buffer) - self._at

    def whole(self) -> Iterator[bytes]:
        """The frames that are there, headers included; each is taken as it is given. Raises FrameTooLong."""
        buffer, end = self._buffer, len(self._buffer)
        at = self._at
        while at + HEADER_BYTES <= end:
            after = at + HEADER_BYTES + (buffer[at] << 8 | buffer[at + 1])
            if after - at > self._longest:
                raise FrameTooLong(f"a frame of {after - at} octets")
            if after > end:
                return
            self._at = after
            yield buffer[at:after]
            at = after


def name_in(id_resp: bytes) -> str:
    """Return the name of the sender of an ID_RESP (a frame).

    It is its serial number, by which GSUP routes, or else its unit name; empty if it has neither.
    """
    found = dict[int, bytes]()
    at = HEADER_BYTES + 1
    while at + 2 < len(id_resp):
        # Two octets of length count the tag too, which is a difference between ID_RESP and ID_GET.
        length = int.from_bytes(id_resp[at : at + 2])
        found.setdefault(id_resp[at + 2], id_resp[at + 3 : at + 2 + length])
        at += 2 + max(length, 1)
    for tag in (Tag.SERIAL, Tag.UNIT_NAME):
        if name := found.get(tag, b"").rstrip(b"\0"):
            return name[:NAME_MAX].decode("ascii", "replace")
    return ""


def id_resp(name: str) -> bytes:
    """Return the frame in which an end of this name identifies itself."""
    said = name.encode() + b"\0"
    parts = ((Tag.UNIT_ID, b"0/0/0\0"), (Tag.UNIT_NAME, said), (Tag.SERIAL, said))
    return frame(
        CCM,
        bytes((Ccm.ID_RESP,)) + b"".join((len(value) + 1).to_bytes(2) + bytes((tag,)) + value for tag, value in parts),
    )
