"""Writer of the record of checks: queues messages up to a limit, writes them in a thread, and deletes old files.

If the disk is slow, the oldest queued messages are dropped, and no check is delayed.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from eir.errors import EirError, Report
from eir.node.processes import state_folder
from eir.sightings import files
from eir.sightings.buffer import HEAD
from eir.sightings.settings import SightingsSettings
from eir.sightings.subscribers import Subscribers, load_subscribers

WAITING_BYTES_MAX = 64 << 20
"""Maximum bytes of queued messages."""
WRITE_ROWS = 500_000
"""Number of queued checks above which they are written before the end of `window_s`."""
AGAIN_S = 5.0
"""Seconds before another attempt after a failed write."""
PRUNE_S = 600.0
T = TypeVar("T")


class _Waiting:
    """Queue of the answering process's messages with checks for the record, the oldest message first."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.bytes = self.rows = 0

    def add(self, message: bytes) -> None:
        self.messages.append(message)
        self._count(message, 1)

    def add_before(self, messages: deque[bytes]) -> None:
        self.messages.extendleft(reversed(messages))
        for message in messages:
            self._count(message, 1)

    def drop_oldest(self) -> int:
        """Drop the oldest message from the queue, and return the number of checks in the message."""
        return self._count(self.messages.popleft(), -1)

    def _count(self, message: bytes, sign: int) -> int:
        rows: int = HEAD.unpack_from(message)[1]
        self.bytes += sign * len(message)
        self.rows += sign * rows
        return rows


class RecordWriter:
    """Queue of messages with checks, and the thread that writes them to the record."""

    def __init__(
        self,
        state: Path,
        settings: SightingsSettings,
        seen: Callable[[], Mapping[str, str]],
        *,
        count: Callable[..., None],
        report: Report,
    ) -> None:
        """Start the thread that writes the record of checks.

        `seen`: function that returns the last partner (SIM or device) of each watched entry, which is saved with the record.
        `count`: function that counts; its arguments are a metric and its label values.
        """
        self._state = state
        self._settings = settings
        self._seen = seen
        self._count = count
        self._report = report
        self.bytes = 0
        """Size of the record in bytes."""
        self.subscribers = Subscribers("")
        """Key of subscribers; empty before it is loaded."""
        self.is_prepared = asyncio.Event()
        """Set when the key is loaded."""
        self._waiting = _Waiting()
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        """Futures of callers that wait until all messages are written."""
        self._disk = ThreadPoolExecutor(1, "disk")
        self._pruned = float("-inf")
        self._clock = state_folder.read_clock(state)

    def add(self, message: bytes) -> None:
        """Queue a message of the answering process for the record. If the queue is above its limit, its oldest messages are dropped."""
        self._waiting.add(message)
        if self._waiting.rows >= WRITE_ROWS:
            self._wake.set()
        self._bound()

    async def flush(self) -> None:
        """Write all queued messages now, and wait until they are on disk."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(written)
        self._wake.set()
        await written

    async def run(self) -> None:
        """Write queued messages every `window_s`, or as soon as the queue has WRITE_ROWS checks. Run until cancelled."""
        await self.write()  # loads the key and prunes the record, because there are no messages yet
        self.is_prepared.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.window_s):
                    await self._wake.wait()
            self._wake.clear()
            if not await self.write():
                await asyncio.sleep(min(AGAIN_S, self._settings.window_s))

    async def write(self) -> bool:
        """Write the queued messages to the record of checks; return true if this succeeds.

        After a failure the messages are queued again, up to the limit.
        """
        waiting = self._waiting
        self._waiting = _Waiting()
        waiters = self._waiters
        self._waiters = []
        rows = waiting.rows
        try:
            self.bytes = await self._on_disk(partial(self._write, waiting.messages, self.bytes))
        except (OSError, EirError) as e:
            self._report("sightings_failed", reason=_reason(e), level="error", checks=rows, detail=str(e))
            self._waiting.add_before(waiting.messages)
            self._bound()
            self._waiters += waiters
            return False
        self._count("eir_sightings_total", count=rows)
        for written in waiters:
            if not written.done():
                written.set_result(None)
        return True

    async def save_watched(self) -> None:
        """Save to disk the last SIM of each watched device and the last device of each watched SIM."""
        await self._on_disk(self._write_watched)

    async def _on_disk(self, work: Callable[[], T]) -> T:
        """Run a function in the thread for the disk, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _write_watched(self) -> None:
        files.write_watched(self._state, {**self._seen()})

    def _bound(self) -> None:
        while self._waiting.bytes > WAITING_BYTES_MAX:
            dropped = self._waiting.drop_oldest()
            self._count("eir_sightings_dropped_total", "disk", count=dropped)

    def _write(self, messages: deque[bytes], size: int) -> int:
        """Write messages to the record, in the thread for the disk; return the new size of the record in bytes.

        `size`: previous size of the record in bytes.
        """
        settings = self._settings
        state = self._state
        if self._pruned == float("-inf"):
            files.clean(state)
        now = self._clock.now(time.time(), time.monotonic())  # a jump of the clock deletes no data
        self.subscribers = load_subscribers(
            state, settings.subscribers, rotate_s=settings.rotate_s, keep_s=settings.keep_s, now=lambda: now
        )
        if messages:
            from eir.sightings import batches  # noqa: PLC0415 - imported already; other processes do not need it

            rows = batches.rows_of(messages).grouped(self.subscribers)
            size += sum(file.bytes for file in files.write(state, rows))
            if settings.watch:
                self._write_watched()
        if time.monotonic() - self._pruned > PRUNE_S or size > settings.max_bytes:
            size = files.prune(state, keep_s=settings.keep_s, max_bytes=settings.max_bytes, now=now)
            self._pruned = time.monotonic()
        return size


def _reason(fault: Exception) -> str:
    return os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else type(fault).__name__
