"""Diameter messages: the header, received requests and received answers (RFC 6733 3).

Also the encoding of answers, from a request and a result (RFC 6733 6.2, 7.2, 7.5).
"""

import struct
from dataclasses import dataclass
from functools import cache

from eir.errors import ConnectionFault, DiameterError
from eir.wire.diameter import dictionary as keys
from eir.wire.diameter.avp import Avp, Fault, encode, encode_u32, nest, parse, text, u32_or
from eir.wire.diameter.result import INVALID_MESSAGE_LENGTH, UNSUPPORTED_VERSION

VERSION = 1
HEADER_BYTES = 20
R_FLAG, P_FLAG, E_FLAG = 0x80, 0x40, 0x20
TLS_HANDSHAKE = 0x1603
"""First two bytes of a TLS handshake record: type and major version (RFC 8446 5.1)."""

_HEADER = struct.Struct("!IIIII")


def encode_message(flags: int, command: int, application_id: int, ids: tuple[int, int], avps: bytes) -> bytes:
    """Encode a message of version 1 from its encoded AVPs. `ids`: hop-by-hop and end-to-end identifier."""
    return _HEADER.pack(VERSION << 24 | HEADER_BYTES + len(avps), flags << 24 | command, application_id, *ids) + avps


def frame_fault(first_word: int, length_max: int) -> ConnectionFault:
    """Return the fault in a message's length or version. After a fault the stream cannot be split into messages."""
    length = first_word & 0xFFFFFF
    if first_word >> 16 == TLS_HANDSHAKE:
        return ConnectionFault(0, "tls_hello", "it begins a TLS handshake on a connection without TLS")
    if length < HEADER_BYTES:
        # RFC 6733 3: no message is shorter.
        return ConnectionFault(0, "message_length", f"a message of {length} bytes")
    if length > length_max:
        return ConnectionFault(0, "message_too_long", f"a message of {length} bytes")
    if length & 3:
        return ConnectionFault(
            INVALID_MESSAGE_LENGTH, "message_length", f"a message of {length} bytes, not a multiple of 4"
        )
    return ConnectionFault(UNSUPPORTED_VERSION, "version", f"a message of version {first_word >> 24}")


class Message:
    """Received message. `avps` holds its top-level AVPs in order, up to the `fault` that ended the parsing."""

    __slots__ = (
        "_members", "application_id", "avps", "buffer", "command", "end_to_end", "fault", "first", "flags", "hop_by_hop", "room",
    )  # fmt: skip

    buffer: bytes
    """Bytes of the message only."""
    fault: Fault | None
    first: dict[int, Avp]
    """First AVP of each key on the top level."""
    room: int
    """Number of AVPs that may still be parsed inside its groups."""

    def __init__(self, buffer: bytes, avps_max: int) -> None:
        _, second, self.application_id, self.hop_by_hop, self.end_to_end = _HEADER.unpack_from(buffer)
        self.flags = second >> 24
        self.command = second & 0xFFFFFF
        self.buffer = buffer
        self.avps, self.fault = parse(buffer, HEADER_BYTES, len(buffer), avps_max)
        self.first = {avp[0]: avp for avp in reversed(self.avps)}
        self.room = avps_max - len(self.avps)
        self._members: dict[int, tuple[list[Avp], Fault | None]] = {}

    def every(self, key: int) -> list[Avp]:
        """Return all top-level AVPs with this key, in order."""
        return [avp for avp in self.avps if avp.key == key]

    def walk(self, group: Avp) -> tuple[list[Avp], Fault | None]:
        """Parse the members of a grouped AVP; return the members, and the fault if one ended the parsing early."""
        walked = self._members.get(group.start)
        if walked is None:
            walked = parse(self.buffer, group.end - len(group.data), group.end, self.room)
            self.room -= len(walked[0])
            self._members[group.start] = walked
        return walked

    def members(self, group: Avp) -> list[Avp]:
        """Return the readable members of a grouped AVP of this message."""
        return self.walk(group)[0]

    def raw(self, avp: Avp) -> bytes:
        """Return the AVP as received, with zeros as padding (RFC 6733 4.1)."""
        return self.buffer[avp.start : avp.end] + bytes(avp.start - avp.end & 3)

    def failed(self, avp: Avp, *groups: Avp) -> bytes:
        """Encode the contents of a Failed-AVP: the AVP as received, in the `groups` that contain it (outermost first, RFC 6733 7.5)."""
        return nest(self.raw(avp), groups)


class Request(Message):
    """Received request. An application receives a request only after the check of its command's grammar."""

    __slots__ = ("origin_host", "origin_realm", "peer")

    def __init__(self, buffer: bytes, avps_max: int, peer: str) -> None:
        super().__init__(buffer, avps_max)
        self.peer = peer
        """Label of the peer that sent the request, which may be an agent."""
        host, realm = self.first.get(keys.ORIGIN_HOST), self.first.get(keys.ORIGIN_REALM)
        self.origin_host = text(host) if host else ""
        """Origin-Host of the request; empty if it has none."""
        self.origin_realm = text(realm) if realm else ""


class Answer(Message):
    """Received answer to a request of this node. Only the frame of the answer has been checked."""

    __slots__ = ()

    @property
    def is_error(self) -> bool:
        """True if the E bit is set, so that the answer follows the answer-message grammar (RFC 6733 7.2)."""
        return bool(self.flags & E_FLAG)

    @property
    def result_codes(self) -> list[int]:
        """All Result-Codes, 0 for an invalid one; a well-formed answer has at most one."""
        return [u32_or(avp, 0) for avp in self.every(keys.RESULT_CODE)]

    @property
    def experimental_results(self) -> list[tuple[int, int]]:
        """All Experimental-Results as (vendor, code); 0 for a missing or invalid part."""
        groups = [
            {avp.key: avp for avp in reversed(self.members(group))} for group in self.every(keys.EXPERIMENTAL_RESULT)
        ]
        pairs = [(group.get(keys.VENDOR_ID), group.get(keys.EXPERIMENTAL_RESULT_CODE)) for group in groups]
        return [(u32_or(vendor, 0), u32_or(code, 0)) for vendor, code in pairs]


@dataclass(frozen=True, slots=True)
class Reply:
    """Result and AVPs of an answer, as the application returns them. The node adds the header and all other AVPs."""

    result_code: int = 0
    """Result-Code; 0 if `experimental` is set."""
    experimental: tuple[int, int] | None = None
    """Experimental-Result as (vendor, code)."""
    avps: bytes = b""
    """Encoded AVPs that follow Origin-Realm."""


@cache
def result_avp(reply_code: int, experimental: tuple[int, int] | None = None) -> bytes:
    """Encode a Result-Code or Experimental-Result."""
    if experimental is None:
        return encode_u32(keys.RESULT_CODE, reply_code)
    vendor, code = experimental
    return encode(
        keys.EXPERIMENTAL_RESULT, encode_u32(keys.VENDOR_ID, vendor) + encode_u32(keys.EXPERIMENTAL_RESULT_CODE, code)
    )


@cache
def result_label(reply_code: int, experimental: tuple[int, int] | None = None) -> str:
    """Return a result as a label of counters: `2001`, or `10415:5422` (vendor and code)."""
    return str(reply_code) if experimental is None else f"{experimental[0]}:{experimental[1]}"


def is_protocol_error(code: int) -> bool:
    """Return true for a protocol error (3xxx). Its answer has the E bit (RFC 6733 7.1.3)."""
    return 3000 <= code < 4000


def encode_answer(
    request: Message, result: bytes, origin: bytes, *, avps: bytes = b"", failed: bytes = b"", error: bool = False
) -> bytes:
    """Encode the answer to a request; copy the request's ids, P bit, Session-Id and Proxy-Info (RFC 6733 3, 6.2).

    Args:
        request: request to answer.
        result: encoded result.
        origin: encoded Origin-Host and Origin-Realm.
        avps: encoded AVPs after the origin.
        failed: contents of the Failed-AVP; empty: none.
        error: set the E bit. The T bit is never copied.
    """
    parts = []
    session = request.first.get(keys.SESSION_ID)
    if session is not None:
        parts.append(encode(keys.SESSION_ID, session.data))
    parts += (result, origin, avps)
    if failed:
        parts.append(encode(keys.FAILED_AVP, failed))
    if keys.PROXY_INFO in request.first:
        # RFC 6733 6.2: same order and same bytes, because they hold state of the proxies.
        parts += [request.raw(avp) for avp in request.avps if avp.key == keys.PROXY_INFO]
    flags = request.flags & P_FLAG | (E_FLAG if error else 0)
    ids = (request.hop_by_hop, request.end_to_end)
    return encode_message(flags, request.command, request.application_id, ids, b"".join(parts))


def error_answer(request: Message, fault: DiameterError, origin: bytes, avps: bytes, *, session: bool) -> bytes:
    """Encode the error answer to a request. `avps`: encoded AVPs that an answer to this command must also contain.

    The E bit selects the answer-message grammar. Protocol errors (3xxx) always have it. Permanent failures (5xxx) have it only
    if the command's own grammar requires a Session-Id (`session`) and the request has none (RFC 6733 7.1.3, 7.1.5, 7.2).
    """
    code = fault.result_code
    error = is_protocol_error(code) or (code >= 5000 and session and keys.SESSION_ID not in request.first)
    return encode_answer(
        request, result_avp(code), origin, avps=b"" if error else avps, failed=fault.failed_avp, error=error
    )
