"""Follower: the process that reads changed lists from the store, for the answering process. It answers no checks.

It verifies the changes, builds an image of each changed list, and passes the image to the manager, which passes it to the
answering process. It also writes the node's journal and the copies, and restores lists in the store. While it restarts, the answering process answers from
their lists, and the manager then passes these lists to the new follower. `Followed` is the part of the manager: it stores the
last list images for an answering process that starts later, the status of the follower, and events that the journal does not have yet.
"""

import asyncio
import ctypes
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from eir.checks.periods import count_ends
from eir.config import Config
from eir.errors import EirError, Report
from eir.lists.follow.last_devices import LastDevices, SimSightings
from eir.lists.follow.learned import LearnedRecord
from eir.lists.follow.log_follower import LogFollower
from eir.lists.images.image import Image, ImageError
from eir.lists.images.index import FirstSeenList
from eir.lists.images.table_image import image_of
from eir.lists.log.change import Head
from eir.lists.log.journal import MAIN, Journal, JournalEnd, JournalEvent
from eir.lists.log.node_journal import JournalStatus, NodeJournal
from eir.lists.record.first_days import Sighted
from eir.lists.record.settings import FIRST_SEEN, KEEP
from eir.lists.stores.open import JOURNAL, open_store
from eir.lists.table.table import Table
from eir.node.observe import metrics
from eir.node.processes import state_folder
from eir.node.processes.channel import Channel, Handlers
from eir.node.processes.child import BESIDE_NICE, Child, Process, Start
from eir.node.processes.process import ThisProcess, run_process
from eir.node.processes.setup import Listed, kinds_of, log_in_force, send_list
from eir.schema import DETAILS

STATUS_S = 0.1
"""Seconds between two status messages to the manager."""
FLUSH_S = 5.0
"""Maximum seconds for recording the last first sightings at the end of the process."""
RECORDED_S, RECORDED_POLL_S = 4.0, 0.005
"""Seconds until a change must be in the journal (less than ANSWER_S of the channel), and between two checks."""
JOURNAL_S = 10.0
"""Seconds between two attempts to write events that could not be written."""
EVENTS_MAX = 1_000
"""Maximum number of events that wait for a follower; the oldest are left out."""
RECORD_AGAIN_S = 0.5
"""Seconds between two attempts to have an event written by the follower."""
TRIM_S = 1.0
"""Seconds between the switch of a list and the release of the previous image, so that the release does not slow the answering process's switch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Status that the follower sends to the manager."""

    store_up: bool
    lost: Mapping[str, str]
    """Description of the state in the store, for each list whose state in force is newer."""
    from_copy: Sequence[str]
    """Lists in force that come from the last good copy of the node, and that the store does not confirm."""
    in_step_at: float
    """Time of the last verification that the lists in force are those of the store (time.monotonic)."""
    copy_faults: Mapping[str, str] = field(default_factory=dict)
    """Fault of the copy (writing, reading, restoring), by list."""
    lost_rows: Mapping[str, str] = field(default_factory=dict)
    """File with changes that a failover of the store lost and that were not applied again, by list."""
    journal: JournalStatus = field(default_factory=JournalStatus)
    first_seen_refused: int = 0
    """Number of devices whose row in the stored record of first sightings breaks a bound."""
    ending: Mapping[str, int] | None = None
    """Number of periods of grace that end on a day, for each of the next days; None without a record of first sightings."""


def run(end: socket.socket, config: Config) -> int:
    """Run the follower until SIGTERM, or until its channel to the manager closes; return the exit status."""
    return run_process(end, partial(_follow, config))


async def _follow(config: Config, process: ThisProcess) -> None:
    process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
    follower = _FollowerProcess(config, process)
    process.serve(follower.handlers())
    process.work("following", follower.run())
    await process.until_stopped()
    await follower.close()


class _FollowerProcess:
    """Process of the follower, which builds images of changed lists in memory."""

    def __init__(self, config: Config, process: ThisProcess) -> None:
        self._config = config
        self._process = process
        self._channel = process.channel
        report, history = process.log.report, config.history
        self._has_all_lists = asyncio.Event()
        who = f"{socket.gethostname()}:{os.getpid()}"
        self._journal = NodeJournal(
            Journal(
                config.state / JOURNAL, keep=timedelta(days=history.keep), max_bytes=history.max_bytes, feed_max_bytes=history.feed_max_bytes,
                report=report,
            ), who,
        )  # fmt: skip
        self._store = open_store(config.store, config.state, report=report, check=False)
        clock = state_folder.read_clock(config.state)
        name = config.first_seen.list if config.first_seen else ""
        self._first_seen = FirstSeenList(name, FIRST_SEEN, lambda: clock.now(time.time(), time.monotonic()))
        self._learned = None
        if config.first_seen is not None:
            self._learned = LearnedRecord(
                config.first_seen, self._first_seen, self._store, config.state, who=who, report=report, held=lambda: self._follower.held,
                registering=lambda: self._config.registering, publish=self._send_record,
                reject=lambda peer, keys: self._channel.notify("first_seen_rejected", peer, keys),
            )  # fmt: skip
        self._last_devices = None
        if config.last_device is not None:
            self._last_devices = LastDevices(
                config.last_device, self._store, config.state, now=lambda: clock.now(time.time(), time.monotonic()), who=who, report=report,
                held=lambda: self._follower.held,
            )  # fmt: skip
        self._learned_lists = [*filter(None, (self._learned, self._last_devices))]
        self._follower: LogFollower[Image] = LogFollower(
            self._store, self._kinds(), config.state, build=image_of, on_switch=self._switched, journal=self._journal, report=report,
            who=who, heal=config.heal, keep=self._kept_releases, learned=self._learned_lists, reasons=self._reasons(),
        )  # fmt: skip
        self._journal_fault = ""
        self._anchored = JournalEnd()
        """Newest line of the journal that the log names."""
        self._is_nearly_full = False

    def handlers(self) -> dict[str, Any]:
        """Return the follower's functions that the manager may call: map from name to function."""
        return {
            "apply": self._apply, "counters": self._counters, "put_in_force": self._accept_list, "complete": self._has_all_lists.set,
            "record": self._record, "recorded": self._is_recorded, "events": self._journal.recent,
            "first_seen": self._note_sightings, "last_devices": self._find_last_devices,
            **({} if self._last_devices is None else {"last_device": self._last_devices.note_sightings}),
        }  # fmt: skip

    async def run(self) -> None:
        """Wait until the manager has sent the lists in force, then follow the store until cancelled."""
        await self._has_all_lists.wait()
        await self._maintain_journal()
        for learned in self._learned_lists:
            await learned.open()
        await self._follower.start()
        for learned in self._learned_lists:
            await learned.start()
        await self._send_status()  # must arrive before `complete`
        self._channel.notify("complete")
        self._process.jobs.start("following", STATUS_S, self._send_status, delay_s=STATUS_S)
        self._process.jobs.start("journal", JOURNAL_S, self._maintain_journal, delay_s=JOURNAL_S)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            for learned in self._learned_lists:
                tasks.create_task(learned.run())

    async def _send_status(self) -> None:
        follower = self._follower
        status = Following(
            store_up=follower.up, lost=dict(follower.lost), from_copy=sorted(follower.from_copy), in_step_at=follower.in_step_at,
            copy_faults=dict(follower.copy_faults), lost_rows={name: str(path) for name, path in follower.lost_rows.items() if path.exists()},
            journal=self._journal.status(follower.in_force, self._journal_fault), ending=self._ending(),
            first_seen_refused=0 if self._learned is None else self._learned.refused,
        )  # fmt: skip
        self._channel.notify("following", status, latest="following")
        self._channel.notify("counted", self._counters(), latest="counted")

    def _ending(self) -> Mapping[str, int] | None:
        """Count by date the devices whose period of grace ends within AHEAD_DAYS. If first sightings are not recorded, return None."""
        if self._learned is None:
            return None
        return count_ends(self._config.policy, self._learned.first_days, self._first_seen.today)

    async def close(self) -> None:
        """Write the sightings that are still in memory to the learned lists, then close the store and the journal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                for learned in self._learned_lists:
                    await learned.round()
        await self._store.close()
        await asyncio.to_thread(self._journal.journal.close)

    # Journal

    async def _record(self, event: JournalEvent) -> None:
        """Record an event of the node.

        Raises:
            EirError: if the journal cannot be written.
        """
        await asyncio.to_thread(self._journal.record_event, event)

    async def _is_recorded(self, name: str, change: str) -> bool:
        """Wait until the journal has the change of a list with this digest; return False if it lacks the change after RECORDED_S."""
        give_up = time.monotonic() + RECORDED_S
        if not self._journal.has(name, change):
            with suppress(EirError, OSError):  # the next round of the follower reports it
                await self._follower.record(name)
        while not self._journal.has(name, change):
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(RECORDED_POLL_S)
        return True

    async def _maintain_journal(self) -> None:
        """Open the journal if it is not open, write events that could not be written before, and delete old ones."""
        before = self._journal_fault
        try:
            await asyncio.to_thread(self._journal.maintain)
        except (EirError, OSError) as error:
            self._journal_fault = str(error)
            if self._journal_fault != before:
                self._process.log.report("journal_failed", level="error", detail=self._journal_fault)
            return
        self._journal_fault = ""
        journal = self._journal.journal
        if (newest := journal.ends[MAIN]) != self._anchored:
            self._anchored = newest
            self._process.log.report("history_at", record=newest.number, digest=newest.digest)
        if journal.is_nearly_full > self._is_nearly_full:
            detail = f"the history exceeds 80 % of {journal.max_bytes:,} bytes (history.max_bytes); nothing is deleted before history.keep"
            self._process.log.report("history_nearly_full", level="warning", detail=detail)
        self._is_nearly_full = journal.is_nearly_full

    # Lists

    def _accept_list(self, what: Listed, memory: int | None) -> None:
        if memory is None:
            return  # the follower reads the list from the store
        with suppress(ImageError, OSError):  # likewise
            self._first_seen.note_time(what.state.loaded_at)
            if what.name == self._first_seen.name:
                self._first_seen.replace(what.state, Image.map(memory))
                return
            self._follower.accept(what.name, what.state, Image.map(memory), what.reasons)

    def _switched(self, name: str, state: Head, _table: Table, image: Image, before: Image | None) -> None:
        asyncio.get_running_loop().call_later(TRIM_S, _trim, before)
        log_in_force(self._process.log.report, name, state)
        send_list(self._channel, Listed(name, state.kind, state, self._follower.image_reasons(name)), image)
        self._first_seen.note_time(state.loaded_at)

    def _send_record(self, state: Head, image: Image) -> None:
        send_list(self._channel, Listed(self._first_seen.name, FIRST_SEEN, state), image)

    def _note_sightings(self, sighted: list[Sighted]) -> None:
        if self._learned is not None:
            self._learned.note_sightings(sighted)

    def _find_last_devices(self, imsi: str) -> list[dict[str, str]]:
        """Return the last devices of a SIM.

        Raises:
            EirError: if the node keeps no last devices.
        """
        if self._last_devices is None:
            raise EirError("the node keeps no last devices; add the section last_device and restart the node")
        return self._last_devices.find(imsi)

    def _kinds(self) -> dict[str, str]:
        """Return the name and the kind of each list to follow."""
        kinds = {name: settings.kind for name, settings in self._config.lists.items()}
        return kinds | {name: kind for learned in self._learned_lists for name, kind in learned.kinds.items()}

    def _reasons(self) -> dict[str, Sequence[str]]:
        """Return the chosen reasons of each list in which only some rows match."""
        return {name: settings.reasons for name, settings in self._config.lists.items() if settings.reasons}

    def _kept_releases(self, name: str) -> int:
        """Return the number of earlier releases of a list that stay available."""
        settings = self._config.lists.get(name)
        return KEEP if settings is None else settings.keep

    def _apply(self, config: Config) -> None:
        self._config = config
        self._follower.apply(self._kinds(), self._reasons())
        journal, history = self._journal.journal, config.history
        journal.keep, journal.max_bytes, journal.feed_max_bytes = (
            timedelta(days=history.keep),
            history.max_bytes,
            history.feed_max_bytes,
        )
        self._process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)

    def _counters(self) -> metrics.Snapshot:
        first_seen = {} if self._learned is None else self._learned.changes
        return {
            "eir_store_errors_total": metrics.by_label(sum((each.errors for each in self._learned_lists), self._follower.errors)),
            "eir_first_seen_devices_total": metrics.by_label(first_seen),
            **({} if self._last_devices is None else {
                "eir_last_device_changes_total": metrics.by_label(self._last_devices.changes),
                "eir_last_device_unrecorded_checks_total": metrics.by_label(self._last_devices.unrecorded),
            }),
        }  # fmt: skip


def _trim(_before: Image | None) -> None:
    with suppress(OSError, AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


class Followed:
    """Object in the manager that starts the follower process, and stores the follower's last status and the lists in force."""

    def __init__(self, config: Config, start: Start, *, report: Report) -> None:
        self._config = config
        self._report = report
        self.child = Child(
            "follower",
            lambda: start("follower", f"{__name__}:run", self._config, nice=BESIDE_NICE),
            report=report,
            greet=self._greet,
            handlers=self._calls,
            is_spared=True,
        )
        """Killing it at the node's end is no failure: it may build a large list or wait for a disk, and its successor continues."""
        self._put_in_force: Callable[[Listed, Image], None] = lambda *_: None
        self._notify_complete: Callable[[], None] = lambda: None
        self._reject: Callable[[str, list[int]], None] = lambda *_: None
        self._note_list: Callable[..., None] = lambda *_, **__: None
        self._lists: dict[str, tuple[Listed, Image]] = {}
        self._events: deque[JournalEvent] = deque(maxlen=EVENTS_MAX)
        """Events that the journal does not have yet."""
        self._recent: Sequence[JournalEvent] = ()
        self._recording: asyncio.Task[None] | None = None
        self._complete = False
        """True if a follower has sent all lists that it found at its start."""
        self.status = Following(store_up=False, lost={}, from_copy=(), in_step_at=time.monotonic())
        """Last status of the follower."""

    def deliver_to(
        self, put_in_force: Callable[[Listed, Image], None], complete: Callable[[], None], reject: Callable[[str, list[int]], None]
    ) -> None:  # fmt: skip
        """Set the functions that the manager calls when the follower sends lists.

        `put_in_force` receives each list. `complete` is called after all lists have arrived. `reject` receives a peer's label and
        devices whose first sighting is not recorded (eir.lists.follow.learned).
        """
        self._put_in_force = put_in_force
        self._notify_complete = complete
        self._reject = reject

    def note_lists_to(self, note_list: Callable[..., None]) -> None:
        """Call `note_list(list, is_change)` for each list that comes into force from now on. `is_change` is False for the lists of the node's start."""
        self._note_list = note_list

    def _greet(self, process: Process) -> None:
        """Send a new follower its settings and the lists in force."""
        process.channel.notify("apply", self._config)
        for listed, image in self._lists.values():
            send_list(process.channel, listed, image)
        process.channel.notify("complete")

    def _calls(self, process: Process) -> Handlers:
        def accept(listed: Listed, memory: int | None) -> None:
            fault = self._accept_list(listed, memory)
            if fault is not None:
                self._report("image_failed", level="error", list=listed.name, detail=fault)
                process.kill()  # this follower does not send the list again, but its successor does

        return {
            "following": self._set_status, "put_in_force": accept, "complete": self._completed,
            "first_seen_rejected": self._reject,
        }  # fmt: skip

    # Journal

    def record(self, event: JournalEvent) -> None:
        """Record an event of this node in its journal. The call returns at once; the event waits until the follower has written it."""
        self._events.append(event)
        if self._recording is None or self._recording.done():
            self._recording = asyncio.get_running_loop().create_task(self._record_all())

    async def record_now(self, event: JournalEvent) -> None:
        """Record an event of this node in its journal, and return once it is on the disk.

        Raises:
            EirError: if the follower does not run, or the journal cannot be written.
        """
        await self._ask("record", event)

    async def is_recorded(self, name: str, change: str) -> bool:
        """Return True if the journal of this node has the change of a list with this digest, after at most RECORDED_S.

        Raises:
            EirError: if the follower does not run.
        """
        return bool(await self._ask("recorded", name, change))

    async def recent_events(self) -> Sequence[JournalEvent]:
        """Return the newest events of the journal (NodeJournal.recent); if the follower does not answer, those of the last call."""
        with suppress(EirError):
            self._recent = await self._ask("events")
        return self._recent

    async def _record_all(self) -> None:
        while self._events:
            event = self._events[0]
            try:
                await self._ask("record", event)
            except EirError:
                await asyncio.sleep(RECORD_AGAIN_S)
            else:
                if self._events and self._events[0] is event:
                    self._events.popleft()

    async def _ask(self, what: str, *arguments: Any) -> Any:
        if self.child.channel is None:
            raise EirError("the follower process of the node does not run; try again in a moment")
        return await self.child.channel.ask(what, *arguments)

    async def close(self) -> None:
        """Give up events that could not be recorded."""
        if self._recording is not None:
            self._recording.cancel()
            await asyncio.gather(self._recording, return_exceptions=True)

    def note_first_seen(self, sighted: list[Sighted]) -> None:
        """Send the follower the devices that the answering process saw for the first time; the follower writes them to the record of first sightings."""
        self.child.notify("first_seen", sighted)

    async def note_last_devices(self, sightings: SimSightings) -> None:
        """Send the follower sightings of SIMs from the recorder, and return once the follower keeps them.

        Raises:
            EirError: if the follower does not run.
        """
        await self._ask("last_device", sightings)

    async def find_last_devices(self, imsi: str) -> list[dict[str, str]]:
        """Return the last devices of a SIM (LastDevices.find).

        Raises:
            EirError: if the follower does not run, or the node keeps no last devices.
        """
        devices: list[dict[str, str]] = await self._ask("last_devices", imsi)
        return devices

    def send_all(self, channel: Channel) -> None:
        """Send all lists in force to a new answering process. If the follower has sent all lists, then also call its handler `complete`."""
        for listed, image in self._lists.values():
            send_list(channel, listed, image)
        if self._complete:
            channel.notify("complete")

    def send_missing(self, channel: Channel, states: Mapping[str, Head], reasons: Mapping[str, Sequence[str]]) -> None:
        """Send the answering process the lists in force that differ from its own, because earlier messages to it were lost.

        `states`, `reasons`: lists that the answering process has, and their chosen reasons.
        """
        for listed, image in self._lists.values():
            if (states.get(listed.name), reasons.get(listed.name)) != (listed.state, listed.reasons):
                send_list(channel, listed, image)

    async def apply(self, config: Config) -> None:
        """Let the follower apply a new configuration, which names the lists to follow, after the answering process, as Child.apply."""
        self._config = config
        kinds = kinds_of(config)
        for name, (listed, _) in list(self._lists.items()):
            if kinds.get(name) != listed.kind:
                del self._lists[name]
        await self.child.apply(config)

    def heads(self) -> Mapping[str, Head]:
        """Return the head of each list in force."""
        return {name: listed.state for name, (listed, _) in self._lists.items()}

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about store, lists and copies, by metric name and label values."""
        status = self.status
        lag_s = max(0.0, time.monotonic() - status.in_step_at)

        def flags(names: Collection[str]) -> dict[metrics.Labels, float]:
            return {(name,): float(name in names) for name in dict.fromkeys([*self._lists, *names])}

        own: metrics.Snapshot = {
            "eir_store_up": {(): float(status.store_up)},
            "eir_store_lost_data": flags(status.lost),
            "eir_copy_failed": flags(status.copy_faults),
            "eir_list_from_copy": flags(status.from_copy),
            "eir_list_lost_changes": flags(status.lost_rows),
            "eir_first_seen_refused_devices": {(): float(status.first_seen_refused)},
            "eir_follow_lag_seconds": {(): lag_s},
            DETAILS: metrics.details("EirStoreLostData", {name: f"it shows {shown}" for name, shown in status.lost.items()})
            | metrics.details("EirCopyFailed", {**dict.fromkeys(status.from_copy, "this node's last good copy is in force"), **status.copy_faults})
            | metrics.details("EirChangesLost", {name: f"in {path}: apply them, then delete the file" for name, path in status.lost_rows.items()}),
        }  # fmt: skip
        return metrics.merge([own, self.child.snapshot()])

    def _set_status(self, status: Following) -> None:
        self.status = status

    def _completed(self) -> None:
        self._complete = True
        self._notify_complete()

    def _accept_list(self, listed: Listed, memory: int | None) -> str | None:
        """Store a list from the follower and send the list to the answering process. Return an error text if this is impossible, else None."""
        if memory is None:
            return "the manager has no file descriptor left for it"
        try:
            image = Image.map(memory)
        except (ImageError, OSError) as e:
            return str(e)
        kind = kinds_of(self._config).get(listed.name)
        if kind == listed.kind:
            self._lists[listed.name] = listed, image
            self._put_in_force(listed, image)
            self._note_list(listed, image, is_change=self._complete)
        return None
