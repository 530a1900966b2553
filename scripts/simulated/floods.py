"""Attacker of a node for `scripts/soak attacks`: a process that floods one interface until its standard input ends.

Usage: python -m simulated.floods FLOOD JSON. The JSON object contains the addresses of the node and the secrets that the attacker has (see `Place`).
At the end the process prints the number of messages that it sent, by kind, as a JSON object.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from eir.interfaces.device_authenticity.device_authenticity import PATH as AUTHENTICITY_PATH
from eir.interfaces.gsup import ipa
from eir.interfaces.map import checkimei
from eir.wire.ss7 import m3ua, tcap
from eir.wire.ss7.ber import encoded

from . import http2_wire, m3ua_wire, osmo_wire, register

SOURCE = "127.0.8.1"
"""Address from which attackers connect; no honest client comes from its network."""
NICENESS = 10
"""Attackers leave the processor to the node and to the clients that are measured: they stand for other hosts."""
PAUSE_S = 0.05
"""Pause before a connection is made again."""
ROWS = 16
"""Devices that a user of the feed adds and removes, each over a connection of its own."""
_rows = itertools.count()
BLOB = 200
"""Messages in one write."""
PIPELINED = b"GET /x HTTP/1.1\r\nHost: eir\r\n\r\n" * 2000
"""Requests that a stranger sends at once: 58 kB."""
PIPELINED_HTTP2 = http2_wire.HELLO + b"".join(
    http2_wire.get(stream, f"{http2_wire.RESOURCE}?pei=imei-001010030000030") for stream in range(1, 1000, 2)
)
"""The same over HTTP/2: 58 kB."""
UNREAD_S = 1.0
"""Seconds for which an attacker keeps a connection without reading. Each attacker opens nearly one connection per second."""

Place: TypeAlias = Mapping[str, Any]
"""`gsup`, `map`, `n5g`, `feed`, `feed-plain` (without TLS), `authenticity`, `page`: ports; `control`: path of the socket; `user` and `password` of the feed; `token` for
DeviceAuthenticity."""
Attack: TypeAlias = Callable[[Place, Counter[str]], Awaitable[None]]


@contextlib.asynccontextmanager
async def connected(
    port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection to a port of the node; it is aborted at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(SOURCE, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def discard(reader: asyncio.StreamReader) -> None:
    """Read and discard until the connection ends."""
    while await reader.read(1 << 18):
        pass


async def pour(
    port: int, first: bytes, blobs: Iterable[bytes], *, counts: Counter[str], kind: str, messages: int = BLOB
) -> None:
    """Send as fast as the node reads, and discard its answers, until the node ends the connection."""
    async with connected(port) as (reader, writer):
        reading = asyncio.create_task(discard(reader))
        try:
            writer.write(first)
            for blob in blobs:
                if reading.done():
                    return
                writer.write(blob)
                await writer.drain()
                counts[kind] += messages
        finally:
            reading.cancel()


# ---- MSCs and AMFs ----


async def repeat_name(place: Place, counts: Counter[str]) -> None:
    """GSUP client that sends its name again and again."""
    await pour(place["gsup"], b"", itertools.repeat(osmo_wire.ID_RESP * BLOB), counts=counts, kind="names")


async def change_name(place: Place, counts: Counter[str]) -> None:
    """GSUP client that sends a new name each time."""
    names = (ipa.id_resp(f"MSC-{os.urandom(8).hex()}") for _ in itertools.count())
    await pour(place["gsup"], b"", names, counts=counts, kind="new names", messages=1)


async def check_by_gsup(place: Place, counts: Counter[str]) -> None:
    """GSUP client with more checks than the node answers."""
    await pour(place["gsup"], osmo_wire.ID_RESP, itertools.repeat(osmo_wire.CHECK * BLOB), counts=counts, kind="checks")


async def invoke_by_map(place: Place, counts: Counter[str]) -> None:
    """MSC whose messages have the maximum number of invocations."""
    device = encoded(4, checkimei.packed("001010030000030"))
    invocations = b"".join(
        tcap.invoke(bytes((number,)), checkimei.CHECK_IMEI, device) for number in range(1, tcap.COMPONENTS_MAX + 1)
    )
    begin = tcap.begin(b"\0\0\0\1", tcap.request(checkimei.context_of(2)), invocations)
    first = m3ua.message(m3ua.MessageKind.ASPUP) + m3ua.message(m3ua.MessageKind.ASPAC)
    blob = m3ua_wire.data(m3ua_wire.udt(begin)) * BLOB
    await pour(place["map"], first, itertools.repeat(blob), counts=counts, kind="messages")


async def ask_by_n5g(place: Place, counts: Counter[str]) -> None:
    """AMF with more requests than the node answers."""
    window = http2_wire.frame(http2_wire.WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4))
    block = http2_wire.block(f"{http2_wire.RESOURCE}?pei=imei-001010030000030")
    flags = http2_wire.END_STREAM | http2_wire.END_HEADERS

    def blobs() -> Iterator[bytes]:
        for first in itertools.count(1, 2 * BLOB):
            yield b"".join(
                http2_wire.frame(http2_wire.HEADERS, flags, stream, block)
                for stream in range(first, first + 2 * BLOB, 2)
            )

    await pour(place["n5g"], http2_wire.HELLO + window, blobs(), counts=counts, kind="requests")


# ---- registers, banks and people ----


async def feed_rows(place: Place, counts: Counter[str]) -> None:
    """User of the feed that adds and removes a row, again and again."""
    who = register.basic(place["user"], place["password"])
    row = register.device(f"35900000{next(_rows) % ROWS:06d}")
    async with connected(place["feed"], register.trusting()) as streams:
        client = register.Client(*streams, who)
        for method in itertools.cycle(("POST", "DELETE")):
            answer = await client.ask(method, row)
            counts[f"rows, {answer.status}"] += 1


async def stay_a_stranger(place: Place, counts: Counter[str]) -> None:
    """Client without credentials that holds TLS connections to the feed open, with and without a request."""
    async with connected(place["feed"], register.trusting()) as (reader, writer):
        counts["handshakes"] += 1
        if counts["handshakes"] % 2:
            writer.write(register.request("POST", register.device("35900000000000")))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await discard(reader)


async def pipeline(place: Place, counts: Counter[str], interface: str, requests: bytes = PIPELINED) -> None:
    """Stranger that sends many requests at once, ends its side, and does not read the answers."""
    async with connected(place[interface]) as (_, writer):
        writer.transport.pause_reading()
        writer.write(requests)
        writer.write_eof()
        counts[f"connections to {interface}"] += 1
        await asyncio.sleep(UNREAD_S)


async def ask_device_authenticity(place: Place, counts: Counter[str]) -> None:
    """Client of DeviceAuthenticity far above its rate."""
    await _ask_authenticity(place, f"Bearer {place['token']}", counts)


async def forge_token(place: Place, counts: Counter[str]) -> None:
    """Client of DeviceAuthenticity whose token has a wrong signature."""
    await _ask_authenticity(place, f"Bearer {place['token'][:-8]}AAAAAAAA", counts)


async def _ask_authenticity(place: Place, who: str, counts: Counter[str]) -> None:
    async with connected(place["authenticity"]) as streams:
        client = register.Client(*streams, who)
        while True:
            answer = await client.ask(
                "POST", AUTHENTICITY_PATH, b'{"imei": "001010030000030"}', Content_Type="application/json"
            )
            counts[f"questions, {answer.status}"] += 1


async def guess_password(place: Place, counts: Counter[str]) -> None:
    """Client that guesses the password of the page."""
    async with connected(place["page"]) as streams:
        client = register.Client(*streams, None)
        while True:
            guess = base64.b64encode(f"x:{os.urandom(4).hex()}".encode()).decode()
            answer = await client.ask("GET", "/", Authorization=f"Basic {guess}")
            counts[f"guesses, {answer.status}"] += 1


MALFORMED = (
    b"\n", b"{}\n", b"[]\n", b'"peers"\n', b"\xff\xfe\n", b'{"command": 1}\n', b'{"command": ["peers"]}\n', b'{"command": "none"}\n',
    b'{"command": "peer_disable"}\n', b'{"command": "check", "imei": 1}\n', b'{"command": "check", "imei": null, "imsi": []}\n',
    b'{"command": "trace", "imei": {}}\n', b"[" * 5000 + b"\n", b'{"command": "' + b"x" * 100_000 + b'"}\n', b"no end of the line",
)  # fmt: skip
"""Requests that no command of ours sends."""


async def ask_control(place: Place, counts: Counter[str]) -> None:
    """Program that sends malformed requests to the control socket."""
    for request in itertools.cycle(MALFORMED):
        reader, writer = await asyncio.open_unix_connection(place["control"])
        try:
            writer.write(request)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await discard(reader)
            counts["requests"] += 1
        finally:
            writer.transport.abort()


FLOODS: Mapping[str, tuple[tuple[Attack, int], ...]] = {
    "gsup-names": ((repeat_name, 2), (change_name, 1)),
    "gsup-checks": ((check_by_gsup, 2),),
    "map": ((invoke_by_map, 2),),
    "n5g": ((ask_by_n5g, 2),),
    "feed": ((feed_rows, ROWS),),
    "feed-strangers": ((stay_a_stranger, 64),),
    "device-authenticity": ((ask_device_authenticity, 4), (forge_token, 4)),
    "pipelines": (
        (partial(pipeline, interface="feed-plain"), 40),
        (partial(pipeline, interface="authenticity"), 40),
        (partial(pipeline, interface="page"), 40),
        (partial(pipeline, interface="n5g", requests=PIPELINED_HTTP2), 40),
    ),
    "control": ((ask_control, 16),),
    "page": ((guess_password, 60),),
}
"""Attackers of each flood, and the number of connections of each."""


async def _again(attack: Attack, place: Place, counts: Counter[str]) -> None:
    """Repeat an attack, whether the node refuses it or closes the connection."""
    while True:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            await attack(place, counts)
        await asyncio.sleep(PAUSE_S)


async def _flood(attacks: Iterable[tuple[Attack, int]], place: Place, counts: Counter[str]) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)  # it ends with its parent, too
    running = [asyncio.create_task(_again(attack, place, counts)) for attack, times in attacks for _ in range(times)]
    ending = asyncio.create_task(over.wait())
    ended, _ = await asyncio.wait({*running, ending}, return_when=asyncio.FIRST_COMPLETED)
    for task in {*running, ending}:
        task.cancel()
    await asyncio.gather(*running, ending, return_exceptions=True)
    for task in ended - {ending}:
        task.result()  # an attack ends by a fault of its own only


def main(flood: str, place: str) -> int:
    """Flood until standard input ends."""
    os.nice(NICENESS)
    counts: Counter[str] = Counter()
    print("begun", flush=True)
    asyncio.run(_flood(FLOODS[flood], json.loads(place), counts))
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
