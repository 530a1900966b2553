"""A register that feeds rows: `feeder.py URL CONNECTIONS RATE SECONDS FILE`: so many rows a second, or as many as are taken (0).

Each row is about another device; what was answered goes to the file as JSON: rows by status, rows a second, and how long the answers
took in milliseconds. Imports nothing of the project.
"""

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

USER, PASSWORD = "register", "correct horse battery"
HEAD = (
    " HTTP/1.1\r\nHost: eir\r\nAuthorization: Basic "
    + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    + "\r\nContent-Length: 0\r\n\r\n"
).encode()
TACS = 10_000


class Feeding:
    """What is sent, and what came of it."""

    def __init__(self, host: str, port: int, rate: float, seconds: float) -> None:
        self._at, self._rate, self._seconds = (host, port), rate, seconds
        self._numbers = count()
        self._began = 0.0
        self.statuses: Counter[int] = Counter()
        self.took: list[float] = []

    async def run(self, connections: int) -> None:
        """Feed over so many connections."""
        opened = [await asyncio.open_connection(*self._at) for _ in range(connections)]
        for reader, writer in opened:  # the password is verified once, and known from then on
            await self._one(reader, writer)
        self.statuses.clear()
        self.took.clear()
        self._began = time.perf_counter()
        await asyncio.gather(*(self._feed(*each) for each in opened))

    async def _feed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while time.perf_counter() - self._began < self._seconds:
            if self._rate:
                ahead = sum(self.statuses.values()) / self._rate - (time.perf_counter() - self._began)
                if ahead > 0:
                    await asyncio.sleep(ahead)
            await self._one(reader, writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        row = f"POST /eir/block/{10_000_000 + number % TACS:08d}{number // TACS:06d}/NULL/NULL/NULL/2026-11-28-16-00-00"
        began = time.perf_counter()
        writer.write(row.encode() + HEAD)
        head = await reader.readuntil(b"\r\n\r\n")
        if length := head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]:
            await reader.readexactly(int(length))
        self.statuses[int(head.split(b" ", 2)[1])] += 1
        self.took.append(time.perf_counter() - began)


def main(url: str, connections: str, rate: str, seconds: str, out: str) -> None:
    """Feed, and write down what came of it."""
    host, _, port = url.partition("://")[2].rpartition(":")
    feeding = Feeding(host, int(port), float(rate), float(seconds))
    began = time.perf_counter()
    asyncio.run(feeding.run(int(connections)))
    took = sorted(feeding.took)
    rows = sum(feeding.statuses.values())
    Path(out).write_text(json.dumps({
        "rows": dict(feeding.statuses), "rows_per_s": rows / float(seconds), "all_s": time.perf_counter() - began,
        "p50_ms": 1000 * took[len(took) // 2], "p99_ms": 1000 * took[int(len(took) * 0.99)],
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
