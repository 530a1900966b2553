"""The process that writes what checks have shown, and sends out what somebody wants to know at once. It answers nobody.

Workers hand over messages (eir.analysis.buffer) through one socket that the supervisor made before it forked, so that this process
may end and come back without their noticing; what it counted is in memory that outlives it. It takes what comes at once and writes in
a thread: a slow disk costs the record its oldest part, and no check its answer. Where a processor is short, checks go first; where other
programs leave it none, the thread takes its small share again, so that what was seen does not wait for ever.
"""

import asyncio
import itertools
import json
import mmap
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eir.analysis import deliver, files
from eir.analysis.buffer import EVENTS, HEAD, Buffer
from eir.analysis.events import DEVICE_CHANGED, SIM_CHANGED, Events
from eir.analysis.schema import FOLDER
from eir.analysis.settings import SightingsSettings
from eir.analysis.subscribers import Subscribers, subscribers
from eir.config import Config
from eir.daemon.faults import report_faults
from eir.daemon.priority import Aside, give_way, stand_back, take_part
from eir.daemon.signals import deliver as deliver_signals
from eir.errors import EirError, Report, StoreError
from eir.lists.settings import SUBSCRIBERS
from eir.operate import metrics
from eir.operate.log import Log
from eir.stores.open import SQLITE

MESSAGE_BYTES_MAX = 1 << 18
SOCKET_BYTES = 1 << 22
"""What the kernel holds between the processes; it may grant less."""
TURN_MESSAGES = 200
"""Taken before others on the loop get their turn."""
WAITING_BYTES_MAX = 64 << 20
"""What waits for the disk."""
WRITE_ROWS = 500_000
"""Checks at which a file is written before its time."""
AGAIN_S = 5.0
"""Pause after the disk took nothing."""
PRUNE_S = 600.0
EVENTS_S = 0.5
END_S = 2.0
"""How long the end waits for events to go out."""
ORPHANED_S = 10.0
"""How long this process goes on without being told that the workers have ended, once it was told to end."""
STREAM_EVENTS_MAX = 100_000
SEEN_FILE = "watched.json"
WRITE, END = b"w", b"z"
"""Messages of the front: write what there is; the workers have ended."""
ASKED_S, LOOK_S = 20.0, 0.02

NICE = 15

SENT, QUEUE, REFUSED, RATE = "sent", "queue", "refused", "rate"
TO = ("webhook", "stream")
SLOTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("eir_sightings_total", ()), ("eir_sightings_dropped_total", ("disk",)), ("eir_sightings_bytes", ()), ("writes", ()),
    *(("eir_events_total", (to,)) for to in TO), *(("eir_events_dropped_total", (to, why)) for to in TO for why in (QUEUE, REFUSED, RATE)),
)  # fmt: skip
"""What this process counts: metric and labels; `writes` is for those who wait for one."""

T = TypeVar("T")


class Counts:
    """Numbers in memory that processes share; one of them writes."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * len(SLOTS))).cast("q")
        self._at = {slot: number for number, slot in enumerate(SLOTS)}

    def add(self, name: str, *labels: str, count: int = 1) -> None:
        """Count."""
        self._numbers[self._at[name, labels]] += count

    def put(self, name: str, value: int) -> None:
        """Set a number without labels."""
        self._numbers[self._at[name, ()]] = value

    def get(self, name: str, *labels: str) -> int:
        """A number."""
        return self._numbers[self._at[name, labels]]

    def snapshot(self, config: Config) -> metrics.Snapshot:
        """All of them as samples; of receivers only those that are configured."""
        sightings = config.sightings
        there = set() if sightings is None else {to for to in TO if getattr(sightings, to)}
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for name, labels in SLOTS:
            if name != "writes" and (name.startswith("eir_sightings") or labels[0] in there):
                found.setdefault(name, {})[labels] = self.get(name, *labels)
        return dict(found)


class Record(NamedTuple):
    """What the processes of a node share of the record."""

    sender: socket.socket
    receiver: socket.socket
    counts: Counts

    @classmethod
    def made(cls) -> "Record":
        """To be called before the first process is forked."""
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (sender, receiver):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        return cls(sender, receiver, Counts())

    def send(self, message: bytes) -> bool:
        """Hand a message over; False if it is not taken now."""
        try:
            self.sender.send(message)
        except OSError:
            return False
        return True

    async def write(self) -> None:
        """Have what there is written; returns once it is. Raises EirError if it is not within some seconds."""
        before = self.counts.get("writes")
        await asyncio.sleep(2 * LOOK_S)  # what workers are about to hand over
        if not (await _soon(lambda: self.send(WRITE), ASKED_S) and await _soon(lambda: self.counts.get("writes") != before, ASKED_S)):
            raise EirError("what was seen last could not be written; the log says why (sightings_failed)")


def buffer_for(config: Config, record: Record | None) -> Buffer | None:
    """What a worker hands its checks to; None: nothing is kept."""
    if config.sightings is None or record is None:
        return None
    return Buffer(record.send, asyncio.get_running_loop().call_later, rate_max=config.sightings.rate_max / config.workers)


async def keep_record(config: Config, record: Record, parent: int) -> int:
    """Be that process until the workers have ended. Returns the exit status; raises EirError if it cannot begin."""
    give_way(NICE)  # but take what they hand over, on a busy host too
    import eir.analysis.batches  # noqa: F401, PLC0415 - polars takes a fifth of a second, and here that is in nobody's way
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    report_faults(log.report)
    try:
        assert config.sightings is not None  # noqa: S101 - else this process was not started
        await _Recorder(config, config.sightings, record, log.report).run(parent)
    finally:
        log.close()
    return 0


async def _soon(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait for what another process, or a task that tells nobody, brings about; False if it does not within the time."""
    for _ in range(round(patience_s / LOOK_S)):
        if condition():
            return True
        await asyncio.sleep(LOOK_S)
    return condition()


class _Recorder:
    """The process at work."""

    def __init__(self, config: Config, settings: SightingsSettings, record: Record, report: Report) -> None:
        self._config, self._settings, self._record, self._report = config, settings, record, report
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = self._waiting_rows = 0
        self._wake, self._ended = asyncio.Event(), asyncio.Event()
        self._prepared = asyncio.Event()
        self._asked = False
        """Somebody waits for what there is to be written."""
        self._disk = ThreadPoolExecutor(1, "disk")
        disk = self._disk.submit(threading.get_native_id).result()
        self._behind = Aside(disk)
        if not self._behind.permitted:
            stand_back(disk)  # for good
        self._pruned = float("-inf")
        self._subscribers = Subscribers("")
        """Until the key is there."""
        kinds = {name: DEVICE_CHANGED if config.lists[name].kind == SUBSCRIBERS else SIM_CHANGED for name in settings.watch}
        self._events = Events(
            per_second_max=settings.events_max, watched=kinds, seen=_read_seen(config.state), origin=f"{time.time_ns():x}"
        )
        self._deliveries = dict(self._made_deliveries())

    async def run(self, parent: int) -> None:
        """Until the workers have ended, or this process is to end and nobody says that they have, or its parent is gone."""
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        deliver_signals()
        loop.add_reader(self._record.receiver, self._take)
        tasks = [
            asyncio.create_task(work)
            for work in (self._write_again_and_again(), self._send_events(), self._end_with(parent, told), *(each.run() for each in self._deliveries.values()))
        ]  # fmt: skip
        await self._ended.wait()
        loop.remove_reader(self._record.receiver)
        take_part()  # nobody is answered any more who could wait for it, and the node waits for this process
        self._take(all_of_it=True)
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        self._put_events()
        await _soon(lambda: all(delivery.is_idle for delivery in self._deliveries.values()), END_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._write()
        for task in tasks[3:]:
            task.cancel()

    async def _end_with(self, parent: int, told: asyncio.Event) -> None:
        told_at = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await (told.wait() if told_at is None else asyncio.sleep(1))
            if told.is_set() and told_at is None:
                told_at = time.monotonic()
            if os.getppid() != parent or (told_at is not None and time.monotonic() - told_at > ORPHANED_S):
                self._ended.set()

    # ---- from workers ----

    def _take(self, *, all_of_it: bool = False) -> None:
        for turn in itertools.count():
            if turn == TURN_MESSAGES and not all_of_it:
                return
            try:
                message = self._record.receiver.recv(MESSAGE_BYTES_MAX)
            except OSError:  # there is nothing
                return
            kind = message[:1]
            if kind == END:
                self._ended.set()
            elif kind == WRITE:
                self._asked = True
                self._wake.set()
            else:
                if kind == EVENTS:
                    self._events.take(message)
                self._keep(message)

    def _keep(self, message: bytes) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        self._waiting_rows += HEAD.unpack_from(message)[1]
        if self._waiting_rows >= WRITE_ROWS:
            self._wake.set()
        self._bound()

    def _bound(self) -> None:
        while self._waiting_bytes > WAITING_BYTES_MAX:
            oldest = self._waiting.popleft()
            rows = HEAD.unpack_from(oldest)[1]
            self._waiting_bytes -= len(oldest)
            self._waiting_rows -= rows
            self._record.counts.add("eir_sightings_dropped_total", "disk", count=rows)

    # ---- to the disk ----

    async def _write_again_and_again(self) -> None:
        await self._write()  # nothing yet: but the key is there from now on, and what is too old goes
        self._prepared.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.window_s):
                    await self._wake.wait()
            self._wake.clear()
            if not await self._write():
                await asyncio.sleep(min(AGAIN_S, self._settings.window_s))

    async def _write(self) -> bool:
        """Write what waits; True if that is done. What could not be written waits again, as far as there is room."""
        messages, self._waiting = self._waiting, deque()
        size, rows = self._waiting_bytes, self._waiting_rows
        self._waiting_bytes = self._waiting_rows = 0
        try:
            await self._aside(partial(self._write_now, messages))
        except (OSError, EirError) as e:
            self._report("sightings_failed", reason=_reason(e), level="error", checks=rows, detail=str(e))
            self._waiting.extendleft(reversed(messages))
            self._waiting_bytes += size
            self._waiting_rows += rows
            self._bound()
            return False
        self._record.counts.add("eir_sightings_total", count=rows)
        if self._asked:
            self._asked = False
            self._record.counts.add("writes")
        return True

    async def _aside(self, work: Callable[[], T]) -> T:
        with self._behind():
            return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _write_now(self, messages: deque[bytes]) -> None:
        """In the thread of the disk."""
        settings, state = self._settings, self._config.state
        if self._pruned == float("-inf"):
            files.clean(state)
        self._subscribers = subscribers(state, settings.subscribers, rotate_s=settings.rotate_s, keep_s=settings.keep_s)
        if messages:
            from eir.analysis import batches  # noqa: PLC0415 - it is there already; other processes do without

            made = files.write(state, batches.rows_of(messages).grouped(self._subscribers))
            self._record.counts.add("eir_sightings_bytes", count=sum(file.bytes for file in made))
            if self._settings.watch:
                _write_seen(state, self._events.seen.copy())
        if time.monotonic() - self._pruned > PRUNE_S or self._record.counts.get("eir_sightings_bytes") > settings.max_bytes:
            left = files.prune(state, keep_s=settings.keep_s, max_bytes=settings.max_bytes, now=time.time())
            self._record.counts.put("eir_sightings_bytes", left)
            self._pruned = time.monotonic()

    # ---- to those who want to know at once ----

    def _made_deliveries(self) -> "list[tuple[str, deliver.Delivery]]":
        made: list[tuple[str, deliver.Send]] = []
        if (hook := self._settings.webhook) is not None:
            made.append(("webhook", deliver.webhook(hook.url, hook.key_file.read_bytes().strip())))
        if self._settings.stream is not None and self._config.store != SQLITE:
            made.append(("stream", _stream(self._config.store, self._settings.stream, self._report)))
        return [(to, deliver.Delivery(to, send, partial(self._sent, to), report=self._report)) for to, send in made]

    def _sent(self, to: str, what: str, count: int) -> None:
        if what == SENT:
            self._record.counts.add("eir_events_total", to, count=count)
        else:
            self._record.counts.add("eir_events_dropped_total", to, what, count=count)

    async def _send_events(self) -> None:
        await self._prepared.wait()  # or the first events would have no subscriber
        while True:
            await asyncio.sleep(EVENTS_S)
            self._put_events()

    def _put_events(self) -> None:
        found = self._events.due(time.monotonic(), self._subscribers)
        dropped, self._events.dropped = self._events.dropped, 0
        for to, delivery in self._deliveries.items():
            delivery.put(found)
            self._sent(to, RATE, dropped)


def _stream(store: str, key: str, report: Report) -> deliver.Send:
    """Adds events to a stream of Redis, one entry each, whose field `event` is the event as JSON."""
    from eir.stores.redis.link import Link  # noqa: PLC0415 - takes 0.2 s
    from eir.stores.redis_url import parse_url  # noqa: PLC0415 - with the one above

    link = Link(parse_url(store, check=False), report)

    async def send(events: Any) -> None:
        adding = [("XADD", key, "MAXLEN", "~", STREAM_EVENTS_MAX, "*", "event", json.dumps(event)) for event in events]
        try:
            await link.do_all(*adding)
        except StoreError as e:
            raise deliver.Undelivered(str(e)) from None

    return send


def _reason(fault: Exception) -> str:
    return os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else type(fault).__name__


def _read_seen(state: Path) -> Mapping[str, str]:
    try:
        found = json.loads((state / FOLDER / SEEN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(who): str(other) for who, other in found.items()} if isinstance(found, dict) else {}


def _write_seen(state: Path, seen: Mapping[str, str]) -> None:
    file = state / FOLDER / SEEN_FILE
    fresh = file.with_name(f".{SEEN_FILE}{files.UNFINISHED}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, files.FILE_MODE)
    with open(descriptor, "w") as stream:  # noqa: PTH123 - of a descriptor, for its mode
        json.dump(seen, stream)
    fresh.replace(file)
