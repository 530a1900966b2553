"""HTTP/2 (RFC 9113): frames and header blocks that share no code with the server's, and attacks of hostile clients."""

import struct
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, ACK = 0x1, 0x4, 0x8, 0x1
ENHANCE_YOUR_CALM = 11
RESOURCE = "/n5g-eir-eic/v1/equipment-status"


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """A frame; `length` may lie."""
    return (
        struct.pack(">I", len(payload) if length is None else length)[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


def string(text):
    text = text if isinstance(text, bytes) else text.encode()
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, octets = len(text) - 127, b"\x7f"
    while rest >= 128:
        octets += bytes((rest % 128 + 128,))
        rest //= 128
    return octets + bytes((rest,)) + text


def field(name, value, prefix=b"\x00"):
    """A literal header field with a literal name (RFC 7541 6.2); by `prefix` 0x40 it is remembered."""
    return prefix + string(name) + string(value)


def block(path, *more, method="GET"):
    """The header block of a request."""
    pseudo = ((":method", method), (":scheme", "http"), (":authority", "eir"), (":path", path))
    return b"".join(field(name, value) for name, value in (*pseudo, *more))


def get(stream, path, *more, method="GET", flags=END_STREAM | END_HEADERS):
    return frame(HEADERS, flags, stream, block(path, *more, method=method))


def headers_of(stream, octets):
    """A whole header block of any length, as a request."""
    parts = [octets[at : at + 16_000] for at in range(0, len(octets), 16_000)]
    last = len(parts) - 1
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (0 if number else END_STREAM) | (END_HEADERS if number == last else 0),
            stream,
            part,
        )
        for number, part in enumerate(parts)
    )


def asking(stream, imei):
    """The usual request."""
    return get(stream, f"{RESOURCE}?pei=imei-{imei}")


HELLO = PREFACE + frame(SETTINGS)


def frames(octets):
    """(type, flags, stream, payload) of each whole frame, and what is left."""
    found = []
    while len(octets) >= 9:
        length = int.from_bytes(octets[:3])
        if len(octets) < 9 + length:
            break
        found.append((octets[3], octets[4], int.from_bytes(octets[5:9]), octets[9 : 9 + length]))
        octets = octets[9 + length :]
    return found, octets


def statuses(found):
    """`:status` of each response by stream, for blocks with a static or a literal one."""
    static = {8: 200, 12: 400, 13: 404, 14: 500}
    answers = {}
    for kind, _, stream, payload in found:
        if kind == HEADERS:
            first = payload[0]
            answers[stream] = static[first & 0x7F] if first & 0x80 else int(payload[2:5])
    return answers


def bodies(found):
    answers = {}
    for kind, _, stream, payload in found:
        if kind == DATA:
            answers[stream] = answers.get(stream, b"") + payload
    return answers


def goaways(found):
    """(last stream, error code) of each GOAWAY."""
    return [
        (int.from_bytes(payload[:4]), int.from_bytes(payload[4:8])) for kind, _, _, payload in found if kind == GOAWAY
    ]


# ---- attacks ----


@dataclass(frozen=True)
class Attack:
    """An attack by a hostile client: it sends `first` once, then `again(n)` for n from 0 on.

    `reason`: the server's name for it in the end.
    """

    again: object
    reason: str
    first: bytes = HELLO
    patient: bool = False
    """It shows in time, and not by what comes."""


BIG = field("x-bomb", "y" * 4000, b"\x40")
"""Remembered, so that each octet 0xBE after it stands for four thousand."""
GROWING = frame(HEADERS, END_STREAM, 1, block("/"))

ATTACKS = {
    "rapid reset": Attack(lambda n: asking(2 * n + 1, "001010010000001") + frame(RST_STREAM, 0, 2 * n + 1, struct.pack(">I", 8)), "rapid_reset"),
    "rapid reset of what is not complete": Attack(
        lambda n: get(2 * n + 1, RESOURCE, flags=END_HEADERS) + frame(RST_STREAM, 0, 2 * n + 1, struct.pack(">I", 8)), "rapid_reset"
    ),
    "resets that the server is made to send": Attack(
        lambda n: get(2 * n + 1, RESOURCE, flags=END_HEADERS) + frame(WINDOW_UPDATE, 0, 2 * n + 1, struct.pack(">I", 2**31 - 1)), "window_update_flood"
    ),
    "CONTINUATION flood": Attack(lambda n: frame(CONTINUATION, 0, 1, field(f"x-{n}", "y")), "continuation_flood", HELLO + GROWING),
    "CONTINUATION flood of nothing": Attack(lambda _: frame(CONTINUATION, 0, 1), "continuation_flood", HELLO + GROWING),
    "PING flood": Attack(lambda n: frame(PING, 0, 0, struct.pack(">Q", n)), "ping_flood"),
    "SETTINGS flood": Attack(lambda n: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + n % 2)), "settings_flood"),
    "settings of every number": Attack(
        lambda n: frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", 9 + (n * 2730 + k) % 65_000, k) for k in range(2730))), "settings_flood"
    ),
    "PRIORITY flood": Attack(lambda n: frame(PRIORITY, 0, 2 * n + 1, struct.pack(">IB", 0, n % 256)), "priority_flood"),
    "WINDOW_UPDATE flood": Attack(lambda _: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)), "window_update_flood"),
    "frames of no known type": Attack(lambda _: frame(200, 0, 0, b"x"), "unknown_flood"),
    "empty DATA": Attack(lambda _: frame(DATA, 0, 1), "data_flood", HELLO + get(1, RESOURCE, flags=END_HEADERS)),
    "HPACK bomb": Attack(lambda n: frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 3, b"\xbe" * 16_000), "header_list", HELLO + frame(HEADERS, END_HEADERS | END_STREAM, 1, block("/") + BIG)),
    "sizes of the table without end": Attack(lambda n: headers_of(2 * n + 3, b"\x20" * 60_000 + block("/")), "compression"),
    "long sizes of the table": Attack(lambda n: headers_of(2 * n + 3, b"\x3f\xe1\x1f\x20" * 10_000 + block("/")), "compression"),
    "heavy header blocks": Attack(lambda n: headers_of(2 * n + 3, block("/", *((f"x-{k}", "y" * 15_000) for k in range(3)))), "header_flood"),
    "headers without number": Attack(lambda n: headers_of(2 * n + 3, block("/", *((f"{k}", "") for k in range(400)))), "header_flood"),
    "endless streams": Attack(lambda n: get(2 * n + 1, RESOURCE, flags=END_HEADERS), "stream_flood"),
    "zero windows": Attack(
        lambda n: asking(2 * n + 1, "001010010000001") if n < 1000 else b"", "no_window",
        PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)), patient=True,
    ),
    "a slow body": Attack(lambda n: frame(DATA, 0, 2 * (n % 100) + 1, b"x"), "slow_body", HELLO + b"".join(get(2 * n + 1, RESOURCE, flags=END_HEADERS) for n in range(100)), patient=True),
    "a slow frame": Attack(lambda n: b"x" if n < 100 else b"", "slow_frame", HELLO + frame(HEADERS, END_HEADERS, 1, b"", 16_000), patient=True),
    "no preface": Attack(lambda _: b"", "preface_timeout", PREFACE[:10], patient=True),
    "a frame too large": Attack(lambda _: frame(DATA, 0, 1, bytes(20_000)), "frame_size"),
    "headers without end": Attack(lambda _: frame(CONTINUATION, 0, 1, bytes(16_000)), "continuation_flood", HELLO + GROWING),
    "an index of nothing": Attack(lambda _: frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\x7f"), "compression"),
    "another protocol": Attack(lambda _: b"\x01\x00\x00\x14\x80\x00\x01\x01" * 4, "preface", b""),
    "a frame amid a header block": Attack(lambda _: frame(PING, 0, 0, bytes(8)), "header_block", HELLO + GROWING),
    "padding longer than its frame": Attack(lambda _: frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + block("/")), "padding"),
    "a push": Attack(lambda _: frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + block("/")), "protocol:ProtocolError"),
    "an even stream": Attack(lambda _: get(2, "/"), "protocol:ProtocolError"),
}  # fmt: skip
