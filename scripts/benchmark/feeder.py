"""Clients over HTTP/1.1: `feeder.py URL CONNECTIONS RATE SECONDS FIRST FILE`. RATE is in requests per second; 0 means as fast as answers come.

The clients are a register that feeds rows. Each request is about another device, from number FIRST on. The result is written to FILE as JSON: requests by status, requests per second, and
response times in milliseconds. Imports nothing from the project.
"""

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

USER, PASSWORD = "register", "correct horse battery"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TACS = 10_000


def row(number: int) -> bytes:
    """Return a register's row about a device."""
    path = f"/eir/block/{10_000_000 + number % TACS:08d}{number // TACS:06d}/NULL/NULL/NULL/2026-11-28-16-00-00"
    return f"POST {path} HTTP/1.1\r\nHost: eir\r\nAuthorization: Basic {BASIC}\r\nContent-Length: 0\r\n\r\n".encode()


class Feeding:
    """Requests of a run, and their results."""

    def __init__(self, at: tuple[str, int], rate: float, seconds: float, *, first: int) -> None:
        self._at, self._rate, self._seconds = at, rate, seconds
        self._numbers = count(first)
        self._began = 0.0
        self.statuses: Counter[int] = Counter()
        self.took: list[float] = []

    async def run(self, connections: int) -> None:
        """Send the requests over this number of connections."""
        opened = [await asyncio.open_connection(*self._at) for _ in range(connections)]
        await self._one(*opened[0])  # the password is verified once, and known from then on
        await asyncio.gather(*(self._one(*each) for each in opened[1:]))  # who is silent for 10 s is closed
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
        request = row(next(self._numbers))
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if length := head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]:
            await reader.readexactly(int(length))
        self.statuses[int(head.split(b" ", 2)[1])] += 1
        self.took.append(time.perf_counter() - began)


def main(arguments: Sequence[str]) -> None:
    """Send the requests, and write the results."""
    url, connections, rate, seconds, first, out = arguments
    host, _, port = url.partition("://")[2].rpartition(":")
    feeding = Feeding((host, int(port)), float(rate), float(seconds), first=int(first))
    began = time.perf_counter()
    asyncio.run(feeding.run(int(connections)))
    took = sorted(feeding.took)
    answers = sum(feeding.statuses.values())
    Path(out).write_text(json.dumps({
        "answers": dict(feeding.statuses), "answers_per_s": answers / float(seconds), "all_s": time.perf_counter() - began,
        "p50_ms": 1000 * took[len(took) // 2], "p99_ms": 1000 * took[int(len(took) * 0.99)],
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
