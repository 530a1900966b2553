"""Writer of capture files (pcap) with single Diameter messages, which Wireshark reads."""

from struct import pack

UPPER_PDU, SNAP_BYTES = 252, 262_144
"""LINKTYPE_WIRESHARK_UPPER_PDU: tags that name a protocol, followed by a message of that protocol."""
_TAGS = b"".join(pack("!HH", tag, len(value)) + value for tag, value in ((12, b"diameter"), (0, b"")))


def begin_capture() -> bytes:
    """Return the header of a new capture file (pcap) for Diameter messages."""
    return pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_BYTES, UPPER_PDU)


def captured(time: float, message: bytes) -> bytes:
    """Encode a Diameter message as a packet for a capture file.

    `time`: Unix time at which the message was sent or received.
    """
    whole = _TAGS + message
    return pack("=IIII", int(time), int(time % 1 * 1e6), len(whole), len(whole)) + whole
