"""Recorder: the process that writes the checks to the record, and sends events. It answers no checks.

The answering process sends messages (eir.sightings.buffer) over one pair of sockets. The manager has both ends open, so that the recorder can
restart without the answering process. The recorder ends after the answering process. It receives messages at once, and a thread writes them
(record_writer.py). `Recorded` is the part of the manager: it has the sockets, and the counters of recorders.
"""

import asyncio
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from eir.config import Config
from eir.errors import EirError, Report, detail_of
from eir.lists.images.image import Image
from eir.lists.record.settings import DEVICES, SUBSCRIBERS
from eir.lists.stores.open import open_store
from eir.node.observe import metrics
from eir.node.processes.channel import Channel, ChannelError, Handlers
from eir.node.processes.child import Child, Process, Start
from eir.node.processes.last_device import DeviceChanges, SightingFeed, agree_on_key
from eir.node.processes.listed_search import ListedSearch
from eir.node.processes.process import ThisProcess, run_process
from eir.node.processes.record_writer import RecordWriter
from eir.node.processes.setup import Listed, send_list
from eir.sightings import deliver, files
from eir.sightings.buffer import EVENTS, Buffer
from eir.sightings.events import DEVICE_CHANGED, SIM_CHANGED, Events
from eir.sightings.settings import SightingsSettings

MESSAGE_BYTES_MAX = 1 << 18
TURN_MESSAGES = 200
"""Maximum number of messages that are received in one turn of the event loop."""
HANDED_BYTES_MAX = 16 << 20
"""Maximum bytes of messages that the answering process queues for this process."""
EVENTS_S = 0.5
END_S, END_WRITE_S = 2.0, 8.0
"""Maximum seconds at the end of the process for sending events, and for writing the record; with both the process ends before the manager kills it."""
ORPHANED_S = 10.0
"""Seconds after the end of the manager in which the recorder waits for an answering process that still runs."""
WEBHOOK = "webhook"
POLL_S = 0.02
"""Seconds between two checks whether events have been sent."""

NICE = 15
"""Nice value of the recorder."""
SENT = "sent"


def run(end: socket.socket, config: Config, receiver: int) -> int:
    """Run the recorder until the answering process has ended; return the exit status."""
    return run_process(end, partial(_write_record, config, socket.socket(fileno=receiver)))


async def _write_record(config: Config, receiver: socket.socket, process: ThisProcess) -> None:
    process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
    assert config.sightings is not None  # noqa: S101 - otherwise this process is not started
    recorder = _Recorder(config, config.sightings, receiver, process)
    process.serve(recorder.handlers(), outlives=True)
    await recorder.run()


async def _becomes_true(condition: Callable[[], bool], patience_s: float) -> bool:
    """Poll a condition every POLL_S; return whether it becomes true within `patience_s`."""
    for _ in range(round(patience_s / POLL_S)):
        if condition():
            return True
        await asyncio.sleep(POLL_S)
    return condition()


class _Recorder:
    """Recorder, as it runs in its own process."""

    def __init__(
        self, config: Config, settings: SightingsSettings, receiver: socket.socket, process: ThisProcess
    ) -> None:
        self._config = config
        self._settings = settings
        self._receiver = receiver
        self._channel = process.channel
        self._report = process.log.report
        self._ended = process.stop
        self._counts: dict[str, Counter[tuple[str, ...]]] = {}
        """Counters by metric and label values."""
        watched = {}
        for name in settings.watch:
            is_subscribers = config.lists[name].kind == SUBSCRIBERS
            if is_subscribers and config.last_device is not None:
                continue  # every change is an event
            watched[name] = DEVICE_CHANGED if is_subscribers else SIM_CHANGED
        seen = files.read_watched(config.state)
        origin = f"{time.time_ns():x}"
        self._events = Events(per_second_max=settings.events_max, watched=watched, seen=seen, origin=origin)
        self._writer = RecordWriter(
            config.state, settings, lambda: self._events.seen, count=self._count, report=self._report
        )
        self._delivery = self._build_delivery()
        self._feed = self._changes = None
        if config.last_device is not None:
            store, who = (
                open_store(config.store, config.state, report=self._report, check=False),
                f"{socket.gethostname()}:{os.getpid()}",
            )
            agree = partial(agree_on_key, store, config, config.last_device, who)
            self._feed = SightingFeed(agree, partial(self._channel.ask, "last_device"), self._report)
            if (sender := self._build_delivery()) is not None:
                self._changes = DeviceChanges(config, config.last_device, store, sender, who=who, report=self._report)
        self._listed_sent = asyncio.Event()
        """Set while no event of a newly listed device is queued."""
        self._search = ListedSearch(
            config, flush=self.write_now, send=self._send_listed, report=self._report,
            done=lambda name, generation: self._channel.notify("searched", name, generation),
        )  # fmt: skip

    def handlers(self) -> Handlers:
        """Return the functions that the manager may call: map from name to function."""
        return {
            "write": self.write_now, "forget": self.forget, "baseline": self._search.set_baseline,
            "put_in_force": self._search.queue_search, "counters": dict,  # _send_counts sends them
        }  # fmt: skip

    async def run(self) -> None:
        """Run the recorder until the answering process has ended or the process is stopped.

        If the manager has ended, the recorder waits at most ORPHANED_S for the answering process.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._receiver, self._receive)
        works = (self._writer.run(), self._send_events(), self._end_without_manager(), self._search.run())
        last_device = [each.run() for each in (self._feed, self._changes) if each is not None]
        own = [asyncio.create_task(work) for work in (*works, *last_device)]
        for task in own:
            task.add_done_callback(lambda _: self._ended.set())  # after a fault, the manager starts another recorder
        delivering = None if self._delivery is None else asyncio.create_task(self._delivery.run())
        await self._ended.wait()
        loop.remove_reader(self._receiver)
        self._receive(all_of_it=True)
        for task in own:
            task.cancel()
        for fault in await asyncio.gather(*own, return_exceptions=True):
            if isinstance(fault, Exception):
                self._report("fault", reason="sightings", level="error", detail=detail_of(fault))
        self._queue_events()
        await _becomes_true(lambda: self._delivery is None or self._delivery.is_idle, END_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WRITE_S):
                await self._writer.write()
        if delivering is not None:
            delivering.cancel()

    async def write_now(self) -> None:
        """Receive all messages that the answering process has sent, write them to disk, and wait until they are written."""
        self._receive(all_of_it=True)
        await self._writer.flush()

    async def forget(self, subscribers: Sequence[str]) -> None:
        """Delete these subscribers from memory, and write all messages to disk. The caller then deletes the subscribers on disk."""
        self._receive(all_of_it=True)
        self._queue_events()
        self._events.forget(subscribers)
        self._search.forget(subscribers)
        if self._delivery is not None:
            self._delivery.forget(subscribers)
        if self._changes is not None:
            self._changes.forget(subscribers)
        if self._settings.watch:
            await self._writer.save_watched()
        await self.write_now()

    async def _end_without_manager(self) -> None:
        await self._channel.gone.wait()
        await asyncio.sleep(ORPHANED_S)
        self._ended.set()

    # To the manager

    def _count(self, name: str, *labels: str, count: int = 1) -> None:
        self._counts.setdefault(name, Counter())[labels] += count
        self._send_counts()

    def _send_counts(self) -> None:
        """Send the counters to the manager at once, so that they survive a crash of this process."""
        counters = {**self._counts, "eir_sightings_bytes": {(): self._writer.bytes}}
        self._channel.notify("counted", counters, latest="counted")

    # From the answering process

    def _receive(self, *, all_of_it: bool = False) -> None:
        for turn in itertools.count():
            if turn == TURN_MESSAGES and not all_of_it:
                return
            try:
                message = self._receiver.recv(MESSAGE_BYTES_MAX)
            except OSError:  # the socket has no message
                return
            if not message:  # the answering process has ended
                self._ended.set()
                return
            if message[:1] == EVENTS:
                self._events.add(message)
            self._writer.add(message)
            if self._feed is not None:
                self._feed.add(message)

    # To the receiver of events

    def _build_delivery(self) -> deliver.EventSender | None:
        hook = self._settings.webhook
        if hook is None:
            return None
        return deliver.EventSender(WEBHOOK, deliver.webhook(hook.url, hook.key_file), self._sent, report=self._report)

    def _sent(self, what: str, count: int) -> None:
        if what == SENT:
            self._count("eir_events_total", WEBHOOK, count=count)
        elif count:
            self._count("eir_events_dropped_total", WEBHOOK, what, count=count)

    async def _send_events(self) -> None:
        await self._writer.is_prepared.wait()  # without the key, the first events would have no subscriber
        while True:
            await asyncio.sleep(EVENTS_S)
            self._queue_events()

    async def _send_listed(self, events: Sequence[dict[str, Any]]) -> None:
        """Queue events about newly listed devices, and wait until the queue of the receiver has room for them.

        The only caller, a search, sends at least one event. The manager queues a search only if there is a receiver.
        """
        self._events.add_listed(events)
        self._listed_sent.clear()
        await self._listed_sent.wait()

    def _queue_events(self) -> None:
        room = 0 if self._delivery is None else self._delivery.room
        events = self._events.due(time.monotonic(), self._writer.subscribers, room)
        if not self._events.has_listed:
            self._listed_sent.set()
        dropped = self._events.clear_dropped()
        if self._delivery is not None:
            self._delivery.add(events)
            self._sent(RATE, dropped)


SOCKET_BYTES = 1 << 22
"""Requested bytes of the kernel's buffer between the processes; the kernel may grant fewer."""
SETTLE_S, WRITE_S = 0.04, 20.0
"""Seconds in which the answering process sends pending messages, and maximum seconds in which the recorder writes them."""
QUEUE, REFUSED, RATE = "queue", "refused", "rate"


class Recorded:
    """Object in the manager that starts the recorder process, sends requests to the recorder, and stores the recorder's counters."""

    def __init__(self, config: Config, settings: SightingsSettings, start: Start, report: Report) -> None:
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.sender, self.receiver):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self.child = Child(
            "recorder",
            lambda: start("recorder", f"{__name__}:run", config, carrying=[self.receiver], nice=NICE),
            report=report,
            greet=self._greet,
            handlers=lambda _: {
                "counted": self._count,
                "searched": self._set_searched,
                "last_device": self.note_last_devices,
            },
            is_spared=True,
        )
        """Killing it at the node's end is no failure: it may wait for a receiver of events, and systemd restarts a failed node."""
        receivers = [] if settings.webhook is None else [WEBHOOK]
        self.note_last_devices: Callable[..., Any] = lambda *_: None
        """Receives sightings of SIMs for the list of last devices."""
        self._zeros: metrics.Snapshot = {
            "eir_sightings_total": {(): 0.0}, "eir_sightings_dropped_total": {("disk",): 0.0},
            "eir_events_total": {(to,): 0.0 for to in receivers},
            "eir_events_dropped_total": {(to, why): 0.0 for to in receivers for why in (QUEUE, REFUSED, RATE)},
        }  # fmt: skip
        self._size: metrics.Snapshot = {"eir_sightings_bytes": {(): 0.0}}
        """Size of the record, which stays the same while no recorder runs."""
        self._has_receivers = bool(receivers)
        self._lists: dict[str, tuple[Listed, Image]] = {}
        """Lists of devices in force."""
        self._searched: dict[str, tuple[Listed, Image]] = {}
        """Last content of each of these lists for whose devices the recorder has searched the record."""

    def note_list(self, listed: Listed, image: Image, *, is_change: bool) -> None:
        """Send the recorder the new content of a list, so that it searches the record for the devices that the change has added.

        `is_change`: False for a list of the node's start, whose devices are not new.
        """
        if listed.kind != DEVICES or not self._has_receivers:
            return
        self._lists[listed.name] = listed, image
        if not is_change:
            self._searched[listed.name] = listed, image
        if self.child.channel is not None:
            self._send(self.child.channel, listed, image, is_searched=not is_change)

    def _greet(self, process: Process) -> None:
        """Send the lists to a new recorder.

        The version of each list that the previous recorder has searched for is sent first, as the baseline. The present
        version follows if it differs. The recorder then searches the record only for devices that are new in this version.
        """
        for listed, image in self._searched.values():
            self._send(process.channel, listed, image, is_searched=True)
        for name, (listed, image) in self._lists.items():
            searched, _ = self._searched.get(name, (None, None))
            if searched is None or searched.state != listed.state:
                self._send(process.channel, listed, image, is_searched=False)

    def _send(self, channel: Channel, listed: Listed, image: Image, *, is_searched: bool) -> None:
        if is_searched:
            channel.notify("baseline", listed, carrying=[image])
        else:
            send_list(channel, listed, image)

    def _set_searched(self, name: str, generation: int) -> None:
        if name not in self._lists:
            return
        listed, image = self._lists[name]
        if listed.state.generation == generation:
            self._searched[name] = listed, image

    def end(self) -> None:
        """Close the sockets to the recorder, which then receives the last messages of the answering process, and ends."""
        self.sender.close()
        self.receiver.close()

    async def write(self) -> None:
        """Let the recorder write all checks so far to disk, and wait until this is done.

        Raises:
            EirError: if the flush takes longer than WRITE_S.
        """
        await self._ask("write")

    async def forget(self, subscribers: Sequence[str]) -> None:
        """Let the recorder delete subscribers from its memory and write all checks so far to disk.

        Raises:
            EirError: as `write`.
        """
        await self._ask("forget", subscribers)

    async def _ask(self, what: str, *arguments: Any) -> None:
        await asyncio.sleep(SETTLE_S)
        with suppress(ChannelError):
            if self.child.channel is not None:
                await self.child.channel.ask(what, *arguments, patience_s=WRITE_S)
                return
        raise EirError("the latest checks could not be written; see event=sightings_failed in the log")

    def snapshot(self) -> metrics.Snapshot:
        """Return the recorder's metrics by name and label values: size of the record of checks, and counts of checks and events."""
        return metrics.merge([self._zeros, self._size, self.child.snapshot()])

    def _count(self, counters: metrics.Snapshot) -> None:
        self._size = {"eir_sightings_bytes": counters.pop("eir_sightings_bytes")}
        self.child.count(counters)


def buffer_for(config: Config, sender: socket.socket | None) -> Buffer | None:
    """Return the buffer in which the answering process collects checks for the recorder; None if no record of checks is kept."""
    if config.sightings is None or sender is None:
        return None

    def send(message: bytes) -> bool:
        """Send a message to the recorder; return false if the socket does not accept it at once."""
        try:
            sender.send(message)
        except OSError:
            return False
        return True

    rate_max = config.sightings.rate_max
    return Buffer(send, asyncio.get_running_loop().call_later, rate_max=rate_max, waiting_bytes_max=HANDED_BYTES_MAX)
