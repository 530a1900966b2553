"""IPA protocol: frames over a byte stream, and CCM messages for identification and keep-alive.

A frame has a length (2 octets, which counts from the fourth octet), the number of a stream, and the payload. GSUP is on the
stream OSMO, after one extension octet. No I/O.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from eir.errors import EirError

HEADER_BYTES: Final = 3
NAME_MAX: Final = 255
"""Maximum number of stored characters of a name."""
OSMO: Final = 0xEE
CCM: Final = 0xFE
GSUP: Final = 0x05
"""Extension octet of GSUP on the stream OSMO."""


class Ccm(IntEnum):
    """Types of CCM messages of the IPA protocol, which identify a program and check that its connection is alive."""

    PING = 0
    PONG = 1
    ID_GET = 4
    ID_RESP = 5
    ID_ACK = 6


class IpaTag(IntEnum):
    """Tags of a program's properties in the IPA messages ID_GET and ID_RESP."""

    SERIAL = 0
    UNIT_NAME = 1
    UNIT_ID = 8


def frame(stream: int, payload: bytes) -> bytes:
    """Encode one IPA frame."""
    return len(payload).to_bytes(2) + bytes((stream,)) + payload


PING, PONG, ID_ACK = (frame(CCM, bytes((kind,))) for kind in (Ccm.PING, Ccm.PONG, Ccm.ID_ACK))
ID_GET: Final = frame(CCM, bytes((Ccm.ID_GET, 1, 8, 1, 7, 1, 2, 1, 3, 1, 4, 1, 5, 1, 1, 1, 0)))
"""Request for all properties, as an OsmoHLR sends it."""


class FrameTooLong(EirError):
    """Error for a frame header with too large a length. The rest of the stream cannot be parsed."""


class Frames:
    """Parser that splits a byte stream into IPA frames."""

    __slots__ = ("_at", "_buffer", "_longest")

    def __init__(self, longest: int) -> None:
        self._buffer, self._at, self._longest = b"", 0, longest

    def feed(self, data: bytes) -> None:
        """Add received bytes to the buffer of the parser."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    @property
    def unread(self) -> int:
        """Number of buffered octets that belong to no returned frame yet."""
        return len(self._buffer) - self._at

    def whole(self) -> Iterator[bytes]:
        """Yield the complete frames with their headers, and remove them from the buffer.

        Raises:
            FrameTooLong: if a frame exceeds the limit.
        """
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
    """Return the name of the sender in an ID_RESP frame.

    The name is the serial number, by which GSUP routes, or else the unit name; empty if there is neither.
    """
    properties = dict[int, bytes]()
    at = HEADER_BYTES + 1
    while at + 2 < len(id_resp):
        # The two octets of length include the tag, in ID_RESP only.
        length = int.from_bytes(id_resp[at : at + 2])
        properties.setdefault(id_resp[at + 2], id_resp[at + 3 : at + 2 + length])
        at += 2 + max(length, 1)
    for tag in (IpaTag.SERIAL, IpaTag.UNIT_NAME):
        if name := properties.get(tag, b"").rstrip(b"\0"):
            return name[:NAME_MAX].decode("ascii", "replace")
    return ""


def id_resp(name: str) -> bytes:
    """Encode the ID_RESP frame in which a program states its own name."""
    encoded = name.encode() + b"\0"
    parts = ((IpaTag.UNIT_ID, b"0/0/0\0"), (IpaTag.UNIT_NAME, encoded), (IpaTag.SERIAL, encoded))
    return frame(
        CCM,
        bytes((Ccm.ID_RESP,)) + b"".join((len(value) + 1).to_bytes(2) + bytes((tag,)) + value for tag, value in parts),
    )
