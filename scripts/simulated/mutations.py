"""Good Diameter messages and mutations of them. Mutations follow the format, so that most pass the framing; the seed alone determines them."""

import random
import struct

from .wire import HOST, TGPP, avp, cer, dpr, dwr, ecr, message, terminal, u32, vector

HEADER = 20
WORDS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    11,
    12,
    13,
    20,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFF8,
    0xFFFFFFFF,
)
GROUPS = {260, 279, 284, 297, 628, 1401}
CODES = (
    1,
    33,
    257,
    258,
    259,
    260,
    263,
    264,
    266,
    268,
    277,
    279,
    282,
    283,
    284,
    293,
    296,
    297,
    299,
    301,
    1401,
    1402,
    1403,
    1471,
    1445,
    9999,
)


def good_messages():
    """One of each sort that a peer may send; requests of real MMEs among them."""
    group = avp(628, u32(266, TGPP) + u32(629, 1, TGPP) + u32(630, 1, TGPP), TGPP)
    return [
        *(vector(name) for name in ("ecr", "ecr-noimei", "ecr-tbit", "dwr")),
        ecr(), ecr("35209900176148"), ecr("352099001761481"), ecr("3520990017614812"),
        ecr(extra=avp(282, "dra.example") + avp(284, avp(280, "dra.example") + avp(33, b"state")) + u32(301, 3)),
        ecr(extra=group + avp(701, b"\x21\x43", TGPP) + avp(9999, b"unknown", flags=0)),
        ecr(drop=("vsai", "user"), terminal=avp(1401, avp(1471, "A0000012345678", TGPP), TGPP)),
        ecr(terminal=terminal(version="77")), ecr(terminal=terminal(None)), ecr("no IMEI"), message(316, avp(263, "x"), app=16777251), dwr(), dwr("other.localdomain"), cer(),
        message(324, u32(268, 2001), 0x40), message(280, u32(268, 2001) + avp(264, HOST), 0, 0),
    ]  # fmt: skip


def messages_in(octets):
    """A stream cut into its messages, as far as it can be followed."""
    found, at = [], 0
    while len(octets) - at >= HEADER:
        length = int.from_bytes(octets[at + 1 : at + 4])
        if length < HEADER or length > len(octets) - at:
            break
        found.append(octets[at : at + length])
        at += length
    return found


def split(octets):
    """Encoded AVPs one by one; what cannot be followed is one piece at the end."""
    found = []
    while len(octets) >= 8:
        size = int.from_bytes(octets[5:8])
        whole = size + -size % 4
        if size < 8 or whole > len(octets):
            break
        found.append(octets[:whole])
        octets = octets[whole:]
    return [*found, octets] if octets else found


class Mutator:
    """Endless messages, each made from a good one; `survives`: share of them whose frame is mended, so that connections live on."""

    def __init__(self, seed, *, survives=0.97):
        self.random = random.Random(seed)
        self.good = good_messages()
        self._survives = survives
        self._ways = (
            self._flip, self._word, self._drop, self._repeat, self._swap, self._borrow, self._resize, self._lie, self._flags, self._wrap,
            self._insert, self._header, self._cut, self._inside,
        )  # fmt: skip

    def message(self):
        """One message."""
        octets = self.random.choice(self.good)
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 5))):
            octets = self.random.choice(self._ways)(octets)
        return self._mend(octets) if self.random.random() < self._survives else octets

    def stream(self, most=12):
        """The bytes that a session may send: messages good and mutated, cut anywhere."""
        parts = [
            self.random.choice(self.good) if self.random.random() < 0.4 else self.message()
            for _ in range(self.random.randint(0, most))
        ]
        if self.random.random() < 0.8:
            parts.insert(0, cer() if self.random.random() < 0.8 else self._mend(self.random.choice(self._ways)(cer())))
        if self.random.random() < 0.3:
            parts.append(dpr(self.random.choice((0, 1, 2, 9, None))))
        octets = b"".join(parts)
        return octets[: self.random.randint(0, len(octets))] if self.random.random() < 0.3 else octets

    # Ways to change a message

    def _flip(self, octets):
        changed = bytearray(octets)
        for _ in range(self.random.randint(1, 4)):
            if changed:
                changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _word(self, octets):
        if len(octets) < HEADER + 4:
            return octets
        at = (
            self.random.randrange(HEADER, len(octets) - 3, 4)
            if self.random.random() < 0.8
            else self.random.randrange(len(octets) - 3)
        )
        return octets[:at] + struct.pack(">I", self.random.choice(WORDS)) + octets[at + 4 :]

    def _parts(self, octets):
        return octets[:HEADER], split(octets[HEADER:])

    def _drop(self, octets):
        head, parts = self._parts(octets)
        if parts:
            del parts[self.random.randrange(len(parts))]
        return head + b"".join(parts)

    def _repeat(self, octets):
        head, parts = self._parts(octets)
        if parts:
            chosen = self.random.choice(parts)
            parts[self.random.randint(0, len(parts)) : 0] = [chosen] * self.random.choice((1, 1, 1, 2, 30, 400))
        return (head + b"".join(parts))[:100_000]

    def _swap(self, octets):
        head, parts = self._parts(octets)
        self.random.shuffle(parts)
        return head + b"".join(parts)

    def _borrow(self, octets):
        head, parts = self._parts(octets)
        others = split(self.random.choice(self.good)[HEADER:])
        if others:
            parts.insert(self.random.randint(0, len(parts)), self.random.choice(others))
        return head + b"".join(parts)

    def _resize(self, octets):
        """An AVP with more data, less, or none; its length says so."""
        head, parts = self._parts(octets)
        if not parts:
            return octets
        at = self.random.randrange(len(parts))
        part = parts[at]
        start = 12 if part[4:5] and part[4] & 0x80 else 8
        data = part[start : int.from_bytes(part[5:8])]
        size = self.random.choice(
            (0, 1, 2, 3, 4, 5, len(data) + 1, max(0, len(data) - 1), 2 * len(data), self.random.randint(0, 3000))
        )
        data = (data + self.random.randbytes(size))[:size]
        parts[at] = part[:5] + (start + size).to_bytes(3) + part[8:start] + data + bytes(-size % 4)
        return head + b"".join(parts)

    def _lie(self, octets):
        """An AVP whose length is not its length."""
        head, parts = self._parts(octets)
        if not parts or len(parts[-1]) < 8:
            return octets
        at = self.random.randrange(len(parts))
        size = int.from_bytes(parts[at][5:8])
        false = (
            self.random.choice((0, 1, 4, 7, 8, 11, 12, max(0, size - 1), size + 1, size + 4, size + 40, 0xFFFFFF))
            & 0xFFFFFF
        )
        parts[at] = parts[at][:5] + false.to_bytes(3) + parts[at][8:]
        return head + b"".join(parts)

    def _flags(self, octets):
        head, parts = self._parts(octets)
        if not parts or len(parts[-1]) < 8:
            return octets
        at = self.random.randrange(len(parts))
        parts[at] = parts[at][:4] + bytes([self.random.choice((0, 0x20, 0x40, 0x80, 0xC0, 0xFF))]) + parts[at][5:]
        return head + b"".join(parts)

    def _wrap(self, octets):
        """AVPs inside groups inside groups."""
        head, parts = self._parts(octets)
        inside = b"".join(parts)
        for _ in range(self.random.choice((1, 1, 2, 2, 9, 9, 40)) if self.random.random() < 0.99 else 1000):
            if len(inside) > 60_000:
                break
            inside = (
                avp(self.random.choice((260, 279, 284, 297)), inside)
                if self.random.random() < 0.5
                else avp(1401, inside, TGPP)
            )
        return head + (inside if self.random.random() < 0.5 else b"".join(parts) + inside)

    def _inside(self, octets):
        """One of the same changes to what is in a group."""
        head, parts = self._parts(octets)
        groups = [at for at, part in enumerate(parts) if int.from_bytes(part[:4]) in GROUPS and len(part) >= 8]
        if not groups:
            return octets
        at = self.random.choice(groups)
        part = parts[at]
        start = 12 if part[4] & 0x80 else 8
        way = self.random.choice(
            (self._flip, self._word, self._drop, self._repeat, self._borrow, self._resize, self._lie, self._flags)
        )
        data = way(octets[:HEADER] + part[start : int.from_bytes(part[5:8])])[HEADER:]
        parts[at] = part[:5] + (start + len(data)).to_bytes(3) + part[8:start] + data + bytes(-len(data) % 4)
        return head + b"".join(parts)

    def _insert(self, octets):
        head, parts = self._parts(octets)
        data = self.random.randbytes(self.random.choice((0, 1, 2, 4, 8, 14, 15, 16, 200)))
        made = avp(
            self.random.choice(CODES), data, self.random.choice((0, 0, TGPP, 99999)), self.random.choice((0, 0x40))
        )
        parts.insert(self.random.randint(0, len(parts)), made)
        return head + b"".join(parts)

    def _header(self, octets):
        changed = bytearray(octets[:HEADER].ljust(HEADER, b"\0"))
        match self.random.randrange(4):
            case 0:
                changed[4] = self.random.choice((0, 0x10, 0x20, 0x40, 0x80, 0xA0, 0xC0, 0xD0, 0xE0, 0xFF))
            case 1:
                changed[5:8] = self.random.choice((0, 257, 258, 271, 280, 316, 324, 325, 0xFFFFFF)).to_bytes(3)
            case 2:
                changed[8:12] = self.random.choice((0, 1, 3, 16777251, 16777252, 0xFFFFFFFF)).to_bytes(4)
            case 3:
                changed[12:20] = self.random.randbytes(8)
        return bytes(changed) + octets[HEADER:]

    def _cut(self, octets):
        return octets[: self.random.randint(HEADER, max(HEADER, len(octets)))]

    def _mend(self, octets):
        """Version and length as they should be, and no command that ends the connection."""
        octets = octets[:HEADER].ljust(HEADER, b"\0") + octets[HEADER:100_000]
        octets += bytes(-len(octets) % 4)
        command = octets[5:8] if octets[5:8] != b"\0\x01\x1a" else b"\0\x01\x44"
        return b"\1" + len(octets).to_bytes(3) + octets[4:5] + command + octets[8:]
