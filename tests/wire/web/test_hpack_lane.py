"""The fast way through header blocks gives what the library's decoder gives, block after block, whatever comes."""

import random
import tracemalloc

import pytest
from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from eir.wire.web.hpack_lane import decoded

NAMES = (
    b":method",
    b":path",
    b":authority",
    b"user-agent",
    b"accept",
    b"x-something",
    b"3gpp-sbi-message-priority",
    b"x",
)


def outcome(decode):
    """Headers, or the kind of fault: both end the connection in the same way."""
    try:
        return decode()
    except OversizedHeaderListError:
        return "oversized"
    except (HPACKError, IndexError, UnicodeDecodeError):
        return "fault"


def in_step(blocks, limit=65_536):
    """Both decoders over the same blocks, up to the first fault; what they gave."""
    lane, library = Decoder(limit), Decoder(limit)
    given = []
    for block in blocks:
        ours = outcome(lambda block=block: decoded(block, lane))
        theirs = outcome(
            lambda block=block: [(bytes(name), bytes(value)) for name, value in library.decode(block, raw=True)]
        )
        assert ours == theirs, block.hex()
        given.append(ours)
        if isinstance(ours, str):
            break
        assert [tuple(map(bytes, entry)) for entry in lane.header_table.dynamic_entries] == [
            tuple(map(bytes, entry)) for entry in library.header_table.dynamic_entries
        ]
    return given


def some_headers(chance):
    return [
        (
            chance.choice(NAMES),
            bytes(chance.choices(range(32, 256), k=chance.choice((0, 3, 20, 100, 300)))),
            chance.random() < 0.1,
        )
        for _ in range(chance.randrange(1, 8))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_what_encoders_write(seed):
    chance = random.Random(seed)
    for _ in range(10):
        headers = some_headers(chance)
        wanted = [(name, value) for name, value, _ in headers]
        assert in_step([Encoder().encode(headers), Encoder().encode(headers, huffman=False)]) == [wanted] * 2


@pytest.mark.parametrize("seed", range(4))
def test_a_conversation(seed):
    chance, encoder = random.Random(seed), Encoder()
    blocks = []
    for _ in range(50):
        if chance.random() < 0.04:
            encoder.header_table_size = chance.choice((0, 100, 4096))
        blocks.append(encoder.encode(some_headers(chance), huffman=chance.random() < 0.7))
    assert len(in_step(blocks)) == 50


def test_indexes_of_two_and_three_octets():
    """RFC 7541 5.1: past 127 + 62 entries, or past 127 + 15 where the table takes nothing up, an index takes a third octet."""
    fill = b"".join(
        b"\x40\x01" + bytes((97 + number % 26,)) + b"\x01" + bytes((65 + number // 26,)) for number in range(110)
    )

    def index(value, mask, flags):
        octets, rest = bytes((flags | mask,)), value - mask
        while rest >= 128:
            octets, rest = octets + bytes((rest & 0x7F | 0x80,)), rest >> 7
        return octets + bytes((rest,))

    for value in (*range(60, 67), *range(125, 130), *range(140, 146), 150, 171):
        # The value would be two headers more for whoever takes the third octet for its length.
        name_only = [
            index(value, mask, flags) + b"\x02\x82\x82"
            for mask, flags in ((0x3F, 0x40), (0x0F, 0), (0x0F, 0x10))
            if value >= mask
        ]
        whole = [index(value, 0x7F, 0x80)] if value >= 0x7F else []
        for block in name_only + whole:
            given = in_step([fill, block])
            assert len(given[1]) == 1, (value, block.hex())
    assert in_step([fill, index(172, 0x7F, 0x80)])[-1] == "fault"
    assert in_step([fill, index(1 << 20, 0x0F, 0) + b"\x02ok"])[-1] == "fault"


def test_another_size_of_the_table_before_what_could_be_its_text():
    """RFC 7541 6.3: the same octets behind it would be the name and the value of a literal, and fields of their own."""
    for size in range(31):
        (given,) = in_step([bytes((0x20 | size,)) + b"\x00\x01a\x01b" + b"\x82" * ord("b")])
        assert given == [(b"a", b"b")] + [(b":method", b"GET")] * ord("b")


def test_long_texts_that_are_never_the_same_leave_nothing_behind():
    chance = random.Random(26)

    def block():
        return Encoder().encode([(b"x", bytes(chance.choices(b"ab01", k=60)))])

    def decode(blocks):
        for each in blocks:
            decoded(each, Decoder())

    decode([block() for _ in range(500)])  # what octets do is learned once
    others = [block() for _ in range(3000)]
    tracemalloc.start()
    try:
        decode(others)
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < 100 * len(others)


@pytest.mark.parametrize("seed", range(6))
def test_what_nobody_should_write(seed):
    chance = random.Random(seed)
    good = [Encoder().encode(some_headers(chance)) for _ in range(10)]
    for _ in range(100):
        block = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(block) + 1)
            block[at : at + chance.randrange(3)] = chance.choice(
                (b"", b"\xff", b"\x7f\xff", b"\x80", b"\x3f\xe1\x1f", b"\xbe", bytes((chance.randrange(256),)))
            )
        in_step([chance.choice(good), bytes(block), chance.choice(good)], chance.choice((65_536, 300)))
