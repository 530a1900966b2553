"""Parser and encoder of M3UA messages (RFC 4666 3), without I/O. `eir.wire.ss7.asp` has the state of an association."""

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER_BYTES = 8
VERSION = 1
SCCP = 3
"""Service indicator (Q.704 14.2.1)."""
PPID = 3
"""Payload protocol identifier of M3UA in SCTP (RFC 4666 7.1)."""
LOADSHARE, OVERRIDE, BROADCAST = 2, 1, 3
"""Traffic mode types (3.7.1)."""
MODES = {"override": OVERRIDE, "loadshare": LOADSHARE}
"""Traffic modes that the node offers and accepts."""


class MessageKind(IntEnum):
    """Class and type of an M3UA message as one number of two octets (RFC 4666 3.1.2, 3.1.3)."""

    ERR = 0x0000
    NTFY = 0x0001
    DATA = 0x0101
    DUNA = 0x0201
    DAVA = 0x0202
    DAUD = 0x0203
    SCON = 0x0204
    DUPU = 0x0205
    DRST = 0x0206
    ASPUP = 0x0301
    ASPDN = 0x0302
    BEAT = 0x0303
    ASPUP_ACK = 0x0304
    ASPDN_ACK = 0x0305
    BEAT_ACK = 0x0306
    ASPAC = 0x0401
    ASPIA = 0x0402
    ASPAC_ACK = 0x0403
    ASPIA_ACK = 0x0404


class ParameterTag(IntEnum):
    """Tags of M3UA parameters (RFC 4666 3.2, 3.3)."""

    INFO = 0x0004
    ROUTING_CONTEXT = 0x0006
    DIAGNOSTIC = 0x0007
    HEARTBEAT = 0x0009
    TRAFFIC_MODE = 0x000B
    ERROR_CODE = 0x000C
    STATUS = 0x000D
    ASP_IDENTIFIER = 0x0011
    AFFECTED = 0x0012
    CORRELATION = 0x0013
    NETWORK_APPEARANCE = 0x0200
    USER_CAUSE = 0x0204
    CONGESTION = 0x0205
    PROTOCOL_DATA = 0x0210


class Error(IntEnum):
    """Error codes of M3UA (RFC 4666 3.8.1)."""

    INVALID_VERSION = 0x01
    UNSUPPORTED_CLASS = 0x03
    UNSUPPORTED_TYPE = 0x04
    UNSUPPORTED_MODE = 0x05
    UNEXPECTED_MESSAGE = 0x06
    PROTOCOL_ERROR = 0x07
    MANAGEMENT_BLOCKING = 0x0D
    PARAMETER_FIELD = 0x12
    MISSING_PARAMETER = 0x16
    INVALID_ROUTING_CONTEXT = 0x19


CLASSES = frozenset(kind >> 8 for kind in MessageKind)


class M3uaFault(Exception):
    """Exception for an invalid or unexpected M3UA message. `error`: error code for the ERR message to the sender."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.name.lower())
        self.error = error


class FramingFault(Exception):
    """Exception for an invalid message length. The start of the next message is then unknown."""


class Transfer(NamedTuple):
    """Content of a DATA message: routing label and octets of the user part (RFC 4666 3.3.1)."""

    opc: int
    dpc: int
    sls: int
    payload: bytes
    indicator: int = SCCP
    network: int = 0
    """Network indicator."""
    priority: int = 0
    context: bytes | None = None
    """Value of the routing context parameter, or None."""
    appearance: bytes | None = None
    """Value of the network appearance parameter, or None."""


_LABEL = struct.Struct(">IIBBBB")


def parameter(tag: int, value: bytes) -> bytes:
    """Encode an M3UA parameter, padded to a multiple of 4 octets."""
    return struct.pack(">HH", tag, 4 + len(value)) + value + bytes(-len(value) % 4)


def message(kind: int, *parameters: bytes) -> bytes:
    """Encode an M3UA message of this kind from encoded parameters."""
    body = b"".join(parameters)
    return struct.pack(">BxHI", VERSION, kind, HEADER_BYTES + len(body)) + body


def error(code: Error, *, context: bytes | None = None, about: bytes = b"") -> bytes:
    """Encode an M3UA ERR message with this error code (RFC 4666 3.8.1).

    `about`: invalid message, whose first 40 octets are sent as diagnostic information.
    """
    routing_context = () if context is None else (parameter(ParameterTag.ROUTING_CONTEXT, context),)
    diagnostic = (parameter(ParameterTag.DIAGNOSTIC, about[:40]),) if about else ()
    return message(
        MessageKind.ERR, parameter(ParameterTag.ERROR_CODE, struct.pack(">I", code)), *routing_context, *diagnostic
    )


def data(sent: Transfer) -> bytes:
    """Encode an M3UA DATA message from its content."""
    label = _LABEL.pack(sent.opc, sent.dpc, sent.indicator, sent.network, sent.priority, sent.sls)
    return message(
        MessageKind.DATA,
        b"" if sent.appearance is None else parameter(ParameterTag.NETWORK_APPEARANCE, sent.appearance),
        b"" if sent.context is None else parameter(ParameterTag.ROUTING_CONTEXT, sent.context),
        parameter(ParameterTag.PROTOCOL_DATA, label + sent.payload),
    )


def split(octets: bytes, longest: int) -> tuple[list[bytes], bytes]:
    """Return the complete messages in received octets, and the remaining octets of an incomplete message. Raises FramingFault.

    The length field of each message delimits it, over TCP (as in OsmoSTP) and over SCTP.
    """
    messages, at = [], 0
    while len(octets) - at >= HEADER_BYTES:
        length = int.from_bytes(octets[at + 4 : at + 8])
        if not HEADER_BYTES <= length <= longest:
            raise FramingFault(f"a length of {length}")
        if at + length > len(octets):
            break
        messages.append(octets[at : at + length])
        at += length
    return messages, octets[at:]


def parameters(octets: bytes) -> dict[int, bytes]:
    """Return an M3UA message's parameter values by tag; if a tag occurs several times, the first value. Raises M3uaFault."""
    values: dict[int, bytes] = {}
    at, end = HEADER_BYTES, len(octets)
    while at < end:
        if end - at < 4:
            raise M3uaFault(Error.PARAMETER_FIELD)
        tag, length = struct.unpack_from(">HH", octets, at)
        if length < 4 or at + length > end:
            raise M3uaFault(Error.PARAMETER_FIELD)
        values.setdefault(tag, octets[at + 4 : at + length])
        at += length + -length % 4  # 3.2: the padding of the last one may be missing
    return values


def transfer(values: dict[int, bytes]) -> Transfer:
    """Build the content of a DATA message from its parsed parameters. Raises M3uaFault."""
    carried = values.get(ParameterTag.PROTOCOL_DATA)
    if carried is None:
        raise M3uaFault(Error.MISSING_PARAMETER)
    if len(carried) < _LABEL.size:
        raise M3uaFault(Error.PARAMETER_FIELD)
    opc, dpc, indicator, network, priority, sls = _LABEL.unpack_from(carried)
    return Transfer(
        opc,
        dpc,
        sls,
        carried[_LABEL.size :],
        indicator,
        network,
        priority,
        values.get(ParameterTag.ROUTING_CONTEXT),
        values.get(ParameterTag.NETWORK_APPEARANCE),
    )


def kind_of(octets: bytes) -> MessageKind:
    """Return class and type of an M3UA message. Raises M3uaFault for an unknown version, class or type."""
    if octets[0] != VERSION:
        raise M3uaFault(Error.INVALID_VERSION)
    if octets[2] not in CLASSES:
        raise M3uaFault(Error.UNSUPPORTED_CLASS)
    kind = int.from_bytes(octets[2:4])
    try:
        return MessageKind(kind)
    except ValueError:
        raise M3uaFault(Error.UNSUPPORTED_TYPE) from None


def affected(values: dict[int, bytes]) -> list[tuple[int, int]]:
    """Return the affected point codes of an SSNM message (RFC 4666 3.4.1).

    Each point code comes with its mask: the number of low bits that are wildcards.
    """
    octets = values.get(ParameterTag.AFFECTED, b"")
    return [(int.from_bytes(octets[at + 1 : at + 4]), octets[at]) for at in range(0, len(octets) - 3, 4)]
