"""SCTP on Linux: socket options and notifications by number, as RFC 6458 names them.

The standard library has one-to-one sockets (RFC 6458 4) and no name for what is special about them. Structures are those of Linux's
`linux/sctp.h`. Opens nothing, knows no event loop.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from eir.wire.transport.settings import SctpSettings, source_address

LEVEL = socket.IPPROTO_SCTP
"""SOL_SCTP."""
PPID_DIAMETER = 46
"""Payload protocol identifier of Diameter in clear text (RFC 6733 2.1, 11.5)."""
NOTIFICATION, END_OF_RECORD = 0x8000, socket.MSG_EOR
"""Flags of what was received: MSG_NOTIFICATION, and the end of a message (RFC 6458 3.1.4)."""
ANCILLARY_BYTES = 128
"""Room for the ancillary data that is asked for: SCTP_RCVINFO with each message, SCTP_NXTINFO where another one is there."""
ADDRESSES_BYTES = 8192
"""Room for all addresses of one end."""
_LIBC = ctypes.CDLL(None)
SACK_DELAY_MS = 50
"""Milliseconds; below the least RTO that operators use (100 ms), so that a peer does not send again what has come."""
_UNORDERED = 1
"""SCTP_UNORDERED of sinfo_flags (RFC 6458 5.3.2)."""
_HEARTBEAT_ENABLE = 1
"""SPP_HB_ENABLE."""
_ANY = bytes(128)
"""A sockaddr_storage that names no address: the option is for all of them."""


class Option(IntEnum):
    """Socket options: Linux's number, and the clause of RFC 6458 (or another) that says what it does."""

    RTOINFO = 0
    """8.1.1: initial, greatest and least retransmission timeout, in milliseconds."""
    ASSOCINFO = 1
    """8.1.2: Association.Max.Retrans."""
    NODELAY = 3
    """8.1.5: no waiting for more to send (Nagle)."""
    PEER_ADDR_PARAMS = 9
    """8.1.12: heartbeat interval and Path.Max.Retrans."""
    EVENTS = 11
    """6.2.1: which notifications come."""
    STATUS = 14
    """8.2.1: how many streams there are, among others."""
    DELAYED_SACK = 16
    """8.1.19."""
    PEER_ADDR_THLDS = 31
    """RFC 7829 7.2: after how many timeouts a path is only a second choice."""
    RECVRCVINFO = 32
    """8.1.29: with each message comes on which stream it came."""
    RECVNXTINFO = 33
    """8.1.30: with each message comes whether another one is there."""
    DEFAULT_SNDINFO = 34
    """8.1.31: stream, flags and payload protocol identifier of what is sent without any."""
    BINDX_ADD = 100
    """9.1: further addresses of ours."""
    GET_PEER_ADDRS = 108
    """9.3."""
    GET_LOCAL_ADDRS = 109
    """9.5."""
    CONNECTX = 110
    """9.9: connect to a peer with several addresses."""
    GET_ASSOC_STATS = 112
    """Linux's own."""
    ASCONF_SUPPORTED = 128
    """Linux's own; RFC 5061: addresses that come and go."""
    AUTH_SUPPORTED = 129
    """Linux's own; RFC 4895."""


class Change(IntEnum):
    """The kinds of notifications that anyone acts on."""

    RESTART = 0
    """The peer restarted the association (RFC 9260 5.2): SCTP_ASSOC_CHANGE, SCTP_RESTART (RFC 6458 6.1.1)."""
    PATH_UP = 1
    """SCTP_PEER_ADDR_CHANGE (RFC 6458 6.1.2): available again, or confirmed for the first time."""
    PATH_DOWN = 2
    """Unreachable."""
    LOST = 3
    """The peer aborted the association, or does not answer any more (SCTP_COMM_LOST of SCTP_ASSOC_CHANGE). Nothing comes after it."""


@dataclass(frozen=True, slots=True)
class Notification:
    """Something happened to the association."""

    change: Change
    address: str = ""
    """The peer's address that a path leads to; empty if it is not about a path."""


class _Layout(NamedTuple):
    """An option's structure with its values."""

    option: Option
    value: bytes


_SNDINFO, _RCVINFO, _NXTINFO = 2, 3, 4
"""Kinds of ancillary data (RFC 6458 5.3.4 to 5.3.6)."""
_STATUS_BYTES, _OUT_STREAMS = 176, struct.Struct("=18xH")
"""struct sctp_status, and sstat_outstrms in it."""
_ASSOC_CHANGE, _PEER_ADDR_CHANGE = 0x8001, 0x8002
_ASSOCIATION_CHANGES = {1: Change.LOST, 2: Change.RESTART}
"""sac_state → what it means; that an association is up, or was shut down, is known without."""
_PATH_CHANGES = {0: Change.PATH_UP, 1: Change.PATH_DOWN, 5: Change.PATH_UP}
"""spc_state → what it means; that a path is preferred, or failing (RFC 7829), changes nothing, and none is added or removed."""
_EVENTS = bytes([0, 1, 1, 0, 0, 0, 0, 0])
"""struct sctp_event_subscribe: association and address changes."""
_ASSOC_STATS_BYTES, _RETRANSMITTED = 256, struct.Struct("=176xQ")
"""struct sctp_assoc_stats, and sas_rtxchunks in it."""


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def settings_layout(settings: SctpSettings) -> Sequence[_Layout]:
    """The options that the settings stand for; on a listener they are for all that it accepts."""
    rto = (_milliseconds(each) for each in (settings.rto_initial_s, settings.rto_max_s, settings.rto_min_s))
    paths, heartbeat_ms = settings.path_retransmissions, _milliseconds(settings.heartbeat_s)
    return (
        _Layout(Option.RTOINFO, struct.pack("=iIII", 0, *rto)),
        _Layout(Option.ASSOCINFO, struct.pack("=iHHIII", 0, settings.association_retransmissions, 0, 0, 0, 0)),
        # struct sctp_paddrparams is packed: association, address, interval, retransmissions, MTU, SACK delay, flags.
        _Layout(
            Option.PEER_ADDR_PARAMS, struct.pack("=i128sIHIII2x", 0, _ANY, heartbeat_ms, paths, 0, 0, _HEARTBEAT_ENABLE)
        ),
        # RFC 7829 3: with 0, what follows the first timeout takes another path at once, and comes back when this one answers.
        _Layout(Option.PEER_ADDR_THLDS, struct.pack("=i4x128sHH4x", 0, _ANY, paths, 0)),
    )


def send_layout(*, unordered: bool, ppid: int = PPID_DIAMETER) -> _Layout:
    """The option for outgoing messages: stream 0 and this identifier.

    The identifier is sent as it is stored, so it is in network order here.
    """
    return _Layout(
        Option.DEFAULT_SNDINFO, struct.pack("=HH4sIi", 0, _UNORDERED if unordered else 0, ppid.to_bytes(4), 0, 0)
    )


def over_stream(number: int, ppid: int) -> Sequence[tuple[int, int, bytes]]:
    """Ancillary data of one message that is to go over this stream, in order (RFC 6458 5.3.4)."""
    return ((LEVEL, _SNDINFO, struct.pack("=HH4sIi", number, 0, ppid.to_bytes(4), 0, 0)),)


def streams(connection: socket.socket) -> int:
    """Streams that the node may send over in an association; 1 if it is gone."""
    try:
        return int(_OUT_STREAMS.unpack_from(connection.getsockopt(LEVEL, Option.STATUS, _STATUS_BYTES))[0])
    except (OSError, struct.error):
        return 1


_ALWAYS = (
    _Layout(Option.NODELAY, struct.pack("=i", 1)),
    _Layout(Option.EVENTS, _EVENTS),
    _Layout(Option.RECVRCVINFO, struct.pack("=i", 1)),
    _Layout(Option.RECVNXTINFO, struct.pack("=i", 1)),
    _Layout(Option.DELAYED_SACK, struct.pack("=iII", 0, SACK_DELAY_MS, 2)),
    send_layout(unordered=False),
)
_OFF = (Option.ASCONF_SUPPORTED, Option.AUTH_SUPPORTED)


def put(connection: socket.socket, *layouts: _Layout) -> None:
    """Set options. Raises OSError."""
    for option, value in layouts:
        connection.setsockopt(LEVEL, option, value)


def prepare(connection: socket.socket, settings: SctpSettings) -> None:
    """Set all options of a new socket; accepted ones have them from their listener. Raises OSError."""
    put(connection, *_ALWAYS, *settings_layout(settings))
    for option in _OFF:
        with suppress(
            OSError
        ):  # before Linux 5.4 there is no option, and they are off unless the whole host has them on
            put(connection, _Layout(option, struct.pack("=iI", 0, 0)))


# Addresses


def pack_addresses(addresses: Sequence[str], port: int) -> bytes:
    """Addresses with a port as options take them: sockaddr_in or sockaddr_in6, one behind the other."""
    packed = b""
    for each in addresses:
        if ":" in each:
            packed += struct.pack(
                "=H2sI16sI", socket.AF_INET6, port.to_bytes(2), 0, socket.inet_pton(socket.AF_INET6, each), 0
            )
        else:
            packed += struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2), socket.inet_pton(socket.AF_INET, each))
    return packed


def bind(connection: socket.socket, addresses: Sequence[str], port: int) -> None:
    """Give a socket all these addresses of ours (sctp_bindx). Raises OSError."""
    put(connection, _Layout(Option.BINDX_ADD, pack_addresses(addresses, port)))


def connect_layout(addresses: Sequence[str], port: int) -> _Layout:
    """The option that begins an association with a peer that has these addresses (sctp_connectx)."""
    return _Layout(Option.CONNECTX, pack_addresses(addresses, port))


def _unpacked(octets: bytes) -> tuple[str, int]:
    """The address in front, and how many bytes it takes."""
    (family,) = struct.unpack_from("=H", octets)
    at, size, whole = (8, 16, 28) if family == socket.AF_INET6 else (4, 4, 16)
    return str(source_address(socket.inet_ntop(family, octets[at : at + size]))), whole


def addresses_of(connection: socket.socket, option: Option) -> tuple[str, ...]:
    """All addresses of one end of a connection: `option` is GET_PEER_ADDRS or GET_LOCAL_ADDRS. Empty if it is gone."""
    # By libc: for our own addresses the kernel gives a length without the header, by which Python would cut off the last one's end.
    buffer, length = ctypes.create_string_buffer(ADDRESSES_BYTES), ctypes.c_uint32(ADDRESSES_BYTES)
    if _LIBC.getsockopt(connection.fileno(), LEVEL, option, buffer, ctypes.byref(length)):
        return ()
    octets = buffer.raw
    (count,) = struct.unpack_from("=4xI", octets)
    octets, found = octets[8:], []
    for _ in range(count):
        address, size = _unpacked(octets)
        found.append(address)
        octets = octets[size:]
    return tuple(found)


# What the kernel tells


def another_is_there(ancillary: Sequence[tuple[int, int, bytes]]) -> bool:
    """True if another message can be read, according to the ancillary data of this one."""
    return any(kind == _NXTINFO for _, kind, _ in ancillary)


def stream_of(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """The stream that a message came on, by what came with it."""
    return next((int.from_bytes(data[:2], sys.byteorder) for _, kind, data in ancillary if kind == _RCVINFO), None)


def notification(octets: bytes) -> Notification | None:
    """A notification that somebody acts on; None for any other."""
    (kind,) = struct.unpack_from("=H", octets)
    if kind == _ASSOC_CHANGE:
        (state,) = struct.unpack_from("=8xH", octets)
        return Notification(_ASSOCIATION_CHANGES[state]) if state in _ASSOCIATION_CHANGES else None
    if kind == _PEER_ADDR_CHANGE:
        # struct sctp_paddr_change is packed: type, flags, length, sockaddr_storage, state.
        (state,) = struct.unpack_from("=136xi", octets)
        if (change := _PATH_CHANGES.get(state)) is not None:
            return Notification(change, _unpacked(octets[8:])[0])
    return None


def retransmissions(connection: socket.socket) -> int | None:
    """DATA chunks that were sent again over this association so far; None if it is gone."""
    try:
        return int(
            _RETRANSMITTED.unpack_from(connection.getsockopt(LEVEL, Option.GET_ASSOC_STATS, _ASSOC_STATS_BYTES))[0]
        )
    except (OSError, struct.error):
        return None


MISSING = frozenset({errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT})
"""The kernel's errors for a socket of a protocol that it does not have."""
LOAD_ADVICE = "this kernel has no SCTP: as root, modprobe sctp, and for every start of the host echo sctp > /etc/modules-load.d/sctp.conf"


def is_supported() -> bool:
    """True if the kernel has SCTP, or loads it on demand."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, LEVEL).close()
    except OSError as e:
        return e.errno not in MISSING
    return True
