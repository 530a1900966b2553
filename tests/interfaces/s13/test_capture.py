"""Packets of a capture file. Captures that other programs read: checks/test_trace.py; audits of captures: lists/changes/test_audit.py."""

import struct

from eir.interfaces.s13.capture import captured


def test_a_packet_has_its_time_and_its_length_twice():
    packet = captured(1_800_000_000.25, bytes(20))
    length = len(packet) - struct.calcsize("=IIII")
    assert struct.unpack_from("=IIII", packet) == (1_800_000_000, 250_000, length, length)
    assert packet.endswith(bytes(20))
