"""The codec: hand-made bytes, round trips, and what no AVP is."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from simulated import wire

from eir.wire.diameter.avp import Fault, encode, encode_address, encode_text, encode_u32, key_of, nest, parse, text, u32

U32 = st.integers(0, 2**32 - 1)
FLAGS = st.integers(0, 255).map(lambda flags: flags & 0x7F)


@pytest.mark.parametrize(
    ("octets", "hexadecimal"),
    [
        (encode_text(1, "001010123456789"), "0000000140000017303031303130313233343536373839" + "00"),
        (encode_u32(277, 1), "000001154000000c00000001"),
        (encode_u32(key_of(1445, 10415), 2), "000005a5c0000010000028af00000002"),
        (encode_text(269, "eir", flags=0), "0000010d0000000b65697200"),
        (encode_address(257, "127.0.0.1"), "000001014000000e00017f0000010000"),
        (encode_address(257, "::1"), "000001014000001a0002" + "00" * 15 + "01" + "0000"),
        (encode_address(257, "::ffff:192.0.2.1"), "000001014000000e0001c00002010000"),
        (encode_address(257, "fe80::1%eth0"), "000001014000001a0002fe80" + "00" * 13 + "01" + "0000"),
        (encode(33, b""), "0000002140000008"),
    ],
)
def test_encoding(octets, hexadecimal):
    assert octets.hex() == hexadecimal


@given(st.lists(st.tuples(U32, st.binary(max_size=40), U32, FLAGS), max_size=8))
def test_what_is_encoded_is_read_back(avps):
    octets = b"".join(encode(key_of(code, vendor), data, flags=flags) for code, data, vendor, flags in avps)
    read, fault = parse(octets, 0, len(octets), 100)
    assert fault is None
    assert [(avp.key, avp.data, avp.flags & 0x7F) for avp in read] == [
        (key_of(code, vendor), data, flags) for code, data, vendor, flags in avps
    ]
    assert octets == b"".join(wire.avp(code, data, vendor, flags) for code, data, vendor, flags in avps)


@given(st.ip_addresses())
def test_addresses(address):
    (avp,), _ = parse(octets := encode_address(257, str(address)), 0, len(octets), 1)
    family, packed = avp.data[:2], avp.data[2:]
    shown = ipaddress.ip_address(packed)
    assert family == (b"\0\1" if shown.version == 4 else b"\0\2")
    assert shown == (getattr(address, "ipv4_mapped", None) or address)


def test_values():
    (number, name), _ = parse(octets := encode_u32(268, 2001) + encode(264, b"\xffa"), 0, len(octets), 2)
    assert u32(number) == 2001
    assert text(name) == "\ufffda"


@pytest.mark.parametrize(
    ("octets", "fault"),
    [
        (struct.pack(">II", 9, 7), Fault(9, 0, "avp_length")),
        (struct.pack(">II", 9, 0x40 << 24), Fault(9, 0x40, "avp_length")),
        (struct.pack(">III", 9, 0xC0 << 24 | 11, 10415), Fault(9, 0xC0, "avp_length")),
        (struct.pack(">II", 9, 0xC0 << 24 | 12), Fault(9, 0xC0, "avp_length")),
        (struct.pack(">II", 9, 9), Fault(9, 0, "avp_overrun")),
        (struct.pack(">II", 9, 0xFFFFFF), Fault(9, 0, "avp_overrun")),
        (struct.pack(">III", 9, 0xC0 << 24 | 13, 10415), Fault(key_of(9, 10415), 0xC0, "avp_overrun")),
        (b"\0\0\0\x09", Fault(9, 0, "avp_length")),
        (b"\0\0\1", Fault(256, 0, "avp_length")),
    ],
)
def test_faults(octets, fault):
    before = encode_u32(277, 1)
    read, found = parse(before + octets, 0, len(before + octets), 10)
    assert found == fault
    assert [avp.key for avp in read] == [277]


def test_no_more_avps_than_there_is_room_for():
    octets = encode_u32(277, 1) * 5
    assert parse(octets, 0, len(octets), 5)[1] is None
    read, fault = parse(octets, 0, len(octets), 4)
    assert (len(read), fault.reason) == (4, "too_many_avps")


def test_the_last_avp_of_a_group_may_lack_its_padding():
    octets = encode(key_of(1402, 10415), b"35123456789012")[:-2]
    assert parse(octets, 0, len(octets), 1)[0][0].data == b"35123456789012"


@given(st.binary(max_size=200), st.integers(0, 20))
@example(b"\0" * 64, 20)
def test_any_bytes_end_the_walk_within_bounds(octets, room):
    read, fault = parse(octets, 0, len(octets), room)
    assert len(read) <= room
    position = 0
    for avp in read:
        assert avp.start == position
        assert avp.start < avp.end <= len(octets)
        assert octets[avp.start : avp.end].endswith(avp.data)
        position = avp.end + 3 & ~3
    assert (fault is None) == (position >= len(octets))


def test_nesting_holds_only_the_way_to_the_avp():
    octets = encode(key_of(1401, 10415), encode_u32(1, 1) + encode(260, encode_u32(258, 5)))
    (outer,), _ = parse(octets, 0, len(octets), 1)
    (_, inner), _ = parse(octets, 12, len(octets), 2)
    assert nest(b"", []) == b""
    assert nest(encode_u32(258, 5), [outer, inner]) == encode(key_of(1401, 10415), encode(260, encode_u32(258, 5)))
