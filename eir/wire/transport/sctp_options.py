"""Socket options and notifications of SCTP on Linux, with the names of RFC 6458.

The standard library has one-to-one sockets (RFC 6458 4), but no constants or structures for SCTP. The structures are those of `linux/sctp.h`.
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
"""Receive flags: MSG_NOTIFICATION, and the end of a message (RFC 6458 3.1.4)."""
ANCILLARY_BYTES = 128
"""Buffer size for ancillary data: SCTP_RCVINFO with each message, and SCTP_NXTINFO if another message waits."""
ADDRESSES_BYTES = 8192
"""Buffer size for all addresses of one end."""
_LIBC = ctypes.CDLL(None)
SACK_DELAY_MS = 50
"""Delay of a SACK in milliseconds: below the minimum RTO of operators (100 ms), so that a peer does not retransmit received data."""
_UNORDERED = 1
"""SCTP_UNORDERED of sinfo_flags (RFC 6458 5.3.2)."""
_HEARTBEAT_ENABLE = 1
"""SPP_HB_ENABLE."""
_ANY = bytes(128)
"""Empty sockaddr_storage: the option applies to all addresses."""


class Option(IntEnum):
    """Numbers of SCTP socket options on Linux. Clauses are those of RFC 6458 unless another document is named."""

    RTOINFO = 0
    """8.1.1: initial, maximum and minimum retransmission timeout in milliseconds."""
    ASSOCINFO = 1
    """8.1.2: Association.Max.Retrans."""
    NODELAY = 3
    """8.1.5: disables Nagle's algorithm."""
    PEER_ADDR_PARAMS = 9
    """8.1.12: heartbeat interval and Path.Max.Retrans."""
    EVENTS = 11
    """6.2.1: subscription to notifications."""
    STATUS = 14
    """8.2.1: status of the association, such as the number of streams."""
    DELAYED_SACK = 16
    """8.1.19: delay of a SACK."""
    PEER_ADDR_THLDS = 31
    """RFC 7829 7.2: number of timeouts after which a path is used only if no better one exists."""
    RECVRCVINFO = 32
    """8.1.29: stream of each received message as ancillary data."""
    RECVNXTINFO = 33
    """8.1.30: announcement of the next waiting message as ancillary data."""
    DEFAULT_SNDINFO = 34
    """8.1.31: default stream, flags and payload protocol identifier of sent messages."""
    BINDX_ADD = 100
    """9.1: additional local addresses."""
    GET_PEER_ADDRS = 108
    """9.3: addresses of the peer."""
    GET_LOCAL_ADDRS = 109
    """9.5: local addresses."""
    CONNECTX = 110
    """9.9: connects to a peer with several addresses."""
    GET_ASSOC_STATS = 112
    """Statistics of the association (only Linux)."""
    ASCONF_SUPPORTED = 128
    """Dynamic addresses, RFC 5061 (only Linux)."""
    AUTH_SUPPORTED = 129
    """Authenticated chunks, RFC 4895 (only Linux)."""


class AssociationChange(IntEnum):
    """Kind of change of an SCTP association or path, as the kernel's notification reports it."""

    RESTART = 0
    """Restart of the association by the peer (RFC 9260 5.2): SCTP_ASSOC_CHANGE with SCTP_RESTART (RFC 6458 6.1.1)."""
    PATH_UP = 1
    """Path available again, or confirmed for the first time (SCTP_PEER_ADDR_CHANGE, RFC 6458 6.1.2)."""
    PATH_DOWN = 2
    """Path unreachable."""
    LOST = 3
    """End of the association by an ABORT, or because the peer does not answer (SCTP_COMM_LOST of SCTP_ASSOC_CHANGE); the last notification."""


@dataclass(frozen=True, slots=True)
class Notification:
    """Notification of a change of an association or of one of its paths."""

    change: AssociationChange
    address: str = ""
    """Address of the peer that identifies the path; empty for a change of the association."""


class _Layout(NamedTuple):
    """SCTP socket option with its encoded value."""

    option: Option
    value: bytes


_SNDINFO, _RCVINFO, _NXTINFO = 2, 3, 4
"""Kinds of ancillary data (RFC 6458 5.3.4 to 5.3.6)."""
_STATUS_BYTES, _OUT_STREAMS = 176, struct.Struct("=18xH")
"""Size of struct sctp_status, and its field sstat_outstrms."""
_ASSOC_CHANGE, _PEER_ADDR_CHANGE = 0x8001, 0x8002
_ASSOCIATION_CHANGES = {1: AssociationChange.LOST, 2: AssociationChange.RESTART}
"""Changes by sac_state, without those that the socket itself shows (up, shut down)."""
_PATH_CHANGES = {0: AssociationChange.PATH_UP, 1: AssociationChange.PATH_DOWN, 5: AssociationChange.PATH_UP}
"""Changes by spc_state, without those that have no effect (primary, potentially failed by RFC 7829) or cannot occur (added, removed)."""
_EVENTS = bytes([0, 1, 1, 0, 0, 0, 0, 0])
"""struct sctp_event_subscribe for association and address changes."""
_ASSOC_STATS_BYTES, _RETRANSMITTED = 256, struct.Struct("=176xQ")
"""Size of struct sctp_assoc_stats, and its field sas_rtxchunks."""


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def settings_layout(settings: SctpSettings) -> Sequence[_Layout]:
    """Return the socket options for the settings. Accepted sockets inherit the options of their listener."""
    rto = (_milliseconds(each) for each in (settings.rto_initial_s, settings.rto_max_s, settings.rto_min_s))
    paths, heartbeat_ms = settings.path_retransmissions, _milliseconds(settings.heartbeat_s)
    return (
        _Layout(Option.RTOINFO, struct.pack("=iIII", 0, *rto)),
        _Layout(Option.ASSOCINFO, struct.pack("=iHHIII", 0, settings.association_retransmissions, 0, 0, 0, 0)),
        # struct sctp_paddrparams is packed: association, address, interval, retransmissions, MTU, SACK delay, flags.
        _Layout(
            Option.PEER_ADDR_PARAMS, struct.pack("=i128sIHIII2x", 0, _ANY, heartbeat_ms, paths, 0, 0, _HEARTBEAT_ENABLE)
        ),
        # RFC 7829 3: with 0, data takes another path from the first timeout on, until this path answers again.
        _Layout(Option.PEER_ADDR_THLDS, struct.pack("=i4x128sHH4x", 0, _ANY, paths, 0)),
    )


def send_layout(*, unordered: bool, ppid: int = PPID_DIAMETER) -> _Layout:
    """Return the socket option with the defaults of sent messages: stream 0, ordered or unordered delivery, payload protocol identifier."""
    return _Layout(
        Option.DEFAULT_SNDINFO, struct.pack("=HH4sIi", 0, _UNORDERED if unordered else 0, ppid.to_bytes(4), 0, 0)
    )


def over_stream(number: int, ppid: int) -> Sequence[tuple[int, int, bytes]]:
    """Return the ancillary data for sending a message in order on this SCTP stream (RFC 6458 5.3.4)."""
    return ((LEVEL, _SNDINFO, struct.pack("=HH4sIi", number, 0, ppid.to_bytes(4), 0, 0)),)


def streams(connection: socket.socket) -> int:
    """Return the number of outbound streams of an association; 1 after the end of the association."""
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


def set_options(connection: socket.socket, *layouts: _Layout) -> None:
    """Set encoded SCTP options on a socket. Raises OSError."""
    for option, value in layouts:
        connection.setsockopt(LEVEL, option, value)


def prepare(connection: socket.socket, settings: SctpSettings) -> None:
    """Set all SCTP options of a new socket. Raises OSError.

    Accepted sockets inherit the options of their listener.
    """
    set_options(connection, *_ALWAYS, *settings_layout(settings))
    for option in _OFF:
        # Linux before 5.4 does not have these options; the features are off unless enabled for the host.
        with suppress(OSError):
            set_options(connection, _Layout(option, struct.pack("=iI", 0, 0)))


# Addresses


def pack_addresses(addresses: Sequence[str], port: int) -> bytes:
    """Encode addresses with a port as an array of sockaddr_in and sockaddr_in6."""
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
    """Bind a socket to several local addresses (sctp_bindx). Raises OSError."""
    set_options(connection, _Layout(Option.BINDX_ADD, pack_addresses(addresses, port)))


def connect_layout(addresses: Sequence[str], port: int) -> _Layout:
    """Return the option that connects a socket to a peer with these addresses (sctp_connectx)."""
    return _Layout(Option.CONNECTX, pack_addresses(addresses, port))


def _unpacked(octets: bytes) -> tuple[str, int]:
    """Decode the first address of an encoded array of addresses; return it with its size in bytes."""
    (family,) = struct.unpack_from("=H", octets)
    at, size, whole = (8, 16, 28) if family == socket.AF_INET6 else (4, 4, 16)
    return str(source_address(socket.inet_ntop(family, octets[at : at + size]))), whole


def addresses_of(connection: socket.socket, option: Option) -> tuple[str, ...]:
    """Return all addresses of one end of an association; empty after the end of the association.

    `option`: GET_PEER_ADDRS or GET_LOCAL_ADDRS.
    """
    # Calls libc: for local addresses the kernel returns a length without the header, so Python would truncate the last address.
    buffer, length = ctypes.create_string_buffer(ADDRESSES_BYTES), ctypes.c_uint32(ADDRESSES_BYTES)
    if _LIBC.getsockopt(connection.fileno(), LEVEL, option, buffer, ctypes.byref(length)):
        return ()
    octets = buffer.raw
    (count,) = struct.unpack_from("=4xI", octets)
    octets, addresses = octets[8:], []
    for _ in range(count):
        address, size = _unpacked(octets)
        addresses.append(address)
        octets = octets[size:]
    return tuple(addresses)


# Ancillary data and notifications


def has_next(ancillary: Sequence[tuple[int, int, bytes]]) -> bool:
    """Return True if the socket holds a further SCTP message, according to the ancillary data of the message that was just read."""
    return any(kind == _NXTINFO for _, kind, _ in ancillary)


def stream_of(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return the stream number of a received message from the message's ancillary data."""
    return next((int.from_bytes(data[:2], sys.byteorder) for _, kind, data in ancillary if kind == _RCVINFO), None)


def notification(octets: bytes) -> Notification | None:
    """Parse an SCTP notification; return None if the transport ignores notifications of this kind."""
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
    """Return the number of retransmitted DATA chunks of an association, or None after its end."""
    try:
        return int(
            _RETRANSMITTED.unpack_from(connection.getsockopt(LEVEL, Option.GET_ASSOC_STATS, _ASSOC_STATS_BYTES))[0]
        )
    except (OSError, struct.error):
        return None


MISSING = frozenset({errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT})
"""Errors of a kernel without SCTP."""
LOAD_ADVICE = "this kernel has no SCTP: as root, modprobe sctp, and for every start of the host echo sctp > /etc/modules-load.d/sctp.conf"


def is_supported() -> bool:
    """Return whether the kernel supports SCTP, directly or by a module that it loads on demand."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, LEVEL).close()
    except OSError as e:
        return e.errno not in MISSING
    return True
