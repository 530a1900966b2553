"""Follower: the process that reads changed lists from the store, for all workers of the node. It answers no checks.

It verifies the changes, builds an image of each changed list, and passes the image to the supervisor, which passes it to every
worker. It also writes the last good copy, and restores lists in the store. While it restarts, the workers answer from their
lists, and the supervisor then passes these lists to the new follower. `Followed` is the part of the supervisor: it stores the
last list images for workers that start later, and the status of the follower.
"""

import asyncio
import ctypes
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from eir.checks.periods import count_ends
from eir.config import Config
from eir.errors import Report
from eir.lists.follow.first_seen import NewToday, RecordKeeper
from eir.lists.follow.follower import Follower
from eir.lists.images.image import Image, ImageError
from eir.lists.images.index import DeviceList, FirstSeenList, Index
from eir.lists.log.change import Head
from eir.lists.record.first_days import Sighted
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.stores.open import open_copy, open_store
from eir.node.observe import metrics
from eir.node.observe.status_texts import StatusText
from eir.node.processes import state_folder
from eir.node.processes.channel import Channel, Handlers
from eir.node.processes.child import Child
from eir.node.processes.priority import BESIDE_NICE, IdlePriority
from eir.node.processes.process import ThisProcess, run_process
from eir.node.processes.setup import Listed, kinds_of, log_in_force, send_list
from eir.node.processes.starter import Process, Start

STATUS_S = 0.1
"""Seconds between two status messages to the supervisor."""
FLUSH_S = 5.0
"""Maximum seconds for recording the last first sightings at the end of the process."""
TRIM_S = 1.0
"""Seconds between the switch of a list and the release of the previous image, so that the release does not slow the workers' switch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Status that the follower sends to the supervisor."""

    store_up: bool
    lost: Mapping[str, str]
    """Description of the state in the store, for each list whose state in force is newer."""
    from_copy: Sequence[str]
    """Lists in force that come from the last good copy of the node, and that the store does not confirm."""
    in_step_at: float
    """Time of the last verification that the lists in force are those of the store (time.monotonic)."""
    copy_faults: Mapping[str, str] = field(default_factory=dict)
    """Fault of the last good copy (writing, reading, restoring), by list."""
    ending: Mapping[str, int] | None = None
    """Number of periods of grace that end on a day, for each of the next days; None without a record of first sightings."""

    def loss_warnings(self) -> list[str]:
        """Return a warning for each list that has lost data in the store."""
        return [StatusText.LIST_OLDER.format(name, shown) for name, shown in self.lost.items()]

    def copy_warnings(self) -> list[str]:
        """Return a warning for each list in force that comes from the last good copy, and for each fault of the copy."""
        in_force = [StatusText.COPY_IN_FORCE.format(name) for name in self.from_copy]
        faulty = [StatusText.COPY_FAILED.format(name, fault) for name, fault in self.copy_faults.items()]
        return in_force + faulty


def run(end: socket.socket, config: Config) -> int:
    """Run the follower until SIGTERM, or until its channel to the supervisor closes; return the exit status."""
    return run_process(end, partial(_follow, config), nice=BESIDE_NICE)


async def _follow(config: Config, process: ThisProcess) -> None:
    process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
    follower = _FollowerProcess(config, process)
    process.serve(follower.handlers())
    process.work("following", follower.run())
    await process.until_stopped()
    await follower.close()


class _FollowerProcess:
    """Process of the follower, which copies changed lists from the store into images in memory."""

    def __init__(self, config: Config, process: ThisProcess) -> None:
        self._config = config
        self._process = process
        self._channel = process.channel
        log = process.log
        self._index = Index(_list_kinds(config))
        self._has_all_lists = asyncio.Event()
        self._store = open_store(config.store, config.state, report=log.report, check=False)
        self._copy = open_copy(config.store, config.state, report=log.report)
        self._follower = Follower(
            self._store, self._index, report=log.report, on_switch=self._switched, copy=self._copy, heal=config.heal,
            who=f"{socket.gethostname()}:{os.getpid()}",
        )  # fmt: skip
        clock = state_folder.read_clock(config.state)
        name = config.first_seen.list if config.first_seen else ""
        self._record = FirstSeenList(name, FIRST_SEEN, lambda: clock.now(time.time(), time.monotonic()))
        self._keeper = None
        if config.first_seen is not None:
            stores = [self._store] if self._copy is None else [self._copy, self._store]
            self._keeper = RecordKeeper(
                config.first_seen, self._record, stores, who=f"node on {socket.gethostname()}", report=log.report,
                registering=self._registered_device_lists, publish=self._send_record,
                reject=lambda peer, keys: self._channel.notify("first_seen_rejected", peer, keys),
                count=lambda day, taken: self._channel.notify("first_seen_counted", day, taken, latest="first_seen_counted"),
            )  # fmt: skip

    def handlers(self) -> dict[str, Any]:
        """Return the follower's functions that the supervisor may call: map from name to function."""
        return {
            "configure": self._configure, "counters": self._counters, "put_in_force": self._accept_list, "complete": self._has_all_lists.set,
            "first_seen": self._note_sightings, "first_seen_counted": self._resume,
        }  # fmt: skip

    async def run(self) -> None:
        """Wait until the supervisor has sent the lists in force, then copy changed lists from the store until cancelled."""
        await self._has_all_lists.wait()
        await self._follower.start()
        if self._keeper is not None:
            await self._keeper.start()
        await self._send_status()  # must arrive before `complete`
        self._channel.notify("complete")
        self._process.jobs.start("following", STATUS_S, self._send_status, delay_s=STATUS_S)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run(IdlePriority()))
            if self._keeper is not None:
                tasks.create_task(self._keeper.run())

    async def _send_status(self) -> None:
        follower = self._follower
        status = Following(
            store_up=follower.up, lost=dict(follower.lost), from_copy=sorted(follower.from_copy), in_step_at=follower.in_step_at,
            copy_faults=dict(follower.copy_faults), ending=self._ending(),
        )  # fmt: skip
        self._channel.notify("following", status, latest="following")
        self._channel.notify("counted", self._counters(), latest="counted")

    def _ending(self) -> Mapping[str, int] | None:
        """Count by date the devices whose period of grace ends within AHEAD_DAYS. If first sightings are not recorded, return None."""
        if self._keeper is None:
            return None
        return count_ends(self._config.policy, self._keeper.first_days, self._record.today)

    async def close(self) -> None:
        """Write the first sightings that are still in memory to the record, then close the store and the last good copy."""
        if self._keeper is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._keeper.round()
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()

    def _accept_list(self, what: Listed, memory: int | None) -> None:
        if memory is None:
            return  # the follower reads the list from the store
        with suppress(ImageError, OSError):  # likewise
            image = Image.map(memory)
            self._record.note_time(what.state.loaded_at)
            if what.name == self._record.name:
                self._record.replace(what.state, image)
            entries = self._index.lists.get(what.name)
            if entries is not None and entries.kind == what.kind:
                self._index.switch(what.name, what.state, image)

    def _switched(self, name: str, state: Head, image: Image, before: Image | None) -> None:
        asyncio.get_running_loop().call_later(TRIM_S, _trim, before)
        log_in_force(self._process.log.report, name, state)
        send_list(self._channel, Listed(name, self._index.lists[name].kind, state), image)
        self._record.note_time(state.loaded_at)
        if self._keeper is not None:
            self._keeper.note_switch(name, before)

    def _send_record(self, state: Head, image: Image) -> None:
        send_list(self._channel, Listed(self._record.name, FIRST_SEEN, state), image)

    def _note_sightings(self, sighted: list[Sighted]) -> None:
        if self._keeper is not None:
            self._keeper.note(sighted)

    def _resume(self, day: int, taken: NewToday) -> None:
        if self._keeper is not None:
            self._keeper.resume(day, taken)

    def _registered_device_lists(self) -> list[DeviceList]:
        """Return the lists of registered devices. Registered devices need no period of grace, so their first sightings are not recorded."""
        return [self._index.lists[name] for name in self._config.registering]

    def _configure(self, config: Config) -> None:
        self._config = config
        self._index.apply(_list_kinds(config))
        self._follower.wake()
        self._process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)

    def _counters(self) -> metrics.Snapshot:
        errors = self._follower.errors
        changes = dict[str, int]()
        if self._keeper is not None:
            errors = errors + self._keeper.errors
            changes = self._keeper.changes
        return {
            "eir_store_errors_total": metrics.by_label(errors),
            "eir_first_seen_devices_total": metrics.by_label(changes),
        }


def _list_kinds(config: Config) -> dict[str, str]:
    return {name: settings.kind for name, settings in config.lists.items()}


def _trim(_before: Image | None) -> None:
    with suppress(OSError, AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


class Followed:
    """Object in the supervisor that starts the follower process, and stores the follower's last status and the lists in force."""

    def __init__(self, config: Config, start: Start, *, report: Report) -> None:
        self._config = config
        self._report = report
        self.child = Child(
            "follower",
            lambda: start("follower", run, self._config),
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
        self._new_today: tuple[int, NewToday] | None = None
        """Day, and number of new devices of each peer on this day, which a new follower continues."""
        self._complete = False
        """True if a follower has sent all lists that it found at its start."""
        self.status = Following(store_up=False, lost={}, from_copy=(), in_step_at=time.monotonic())
        """Last status of the follower."""

    def deliver_to(
        self, put_in_force: Callable[[Listed, Image], None], complete: Callable[[], None], reject: Callable[[str, list[int]], None]
    ) -> None:  # fmt: skip
        """Set the functions that the supervisor calls when the follower sends lists.

        `put_in_force` receives each list. `complete` is called after all lists have arrived. `reject` receives a peer's label and
        devices whose first sighting is not recorded (eir.lists.follow.first_seen).
        """
        self._put_in_force = put_in_force
        self._notify_complete = complete
        self._reject = reject

    def note_lists_to(self, note_list: Callable[..., None]) -> None:
        """Call `note_list(list, is_change)` for each list that comes into force from now on. `is_change` is False for the lists of the node's start."""
        self._note_list = note_list

    def _greet(self, process: Process) -> None:
        """Send a new follower its settings and the lists in force."""
        process.channel.notify("configure", self._config)
        for listed, image in self._lists.values():
            send_list(process.channel, listed, image)
        if self._new_today is not None:
            process.channel.notify("first_seen_counted", *self._new_today)
        process.channel.notify("complete")

    def _calls(self, process: Process) -> Handlers:
        def accept(listed: Listed, memory: int | None) -> None:
            fault = self._accept_list(listed, memory)
            if fault is not None:
                self._report("image_failed", level="error", list=listed.name, detail=fault)
                process.kill()  # this follower does not send the list again, but its successor does

        return {
            "following": self._set_status, "put_in_force": accept, "complete": self._completed,
            "first_seen_rejected": self._reject, "first_seen_counted": self._note_new_today,
        }  # fmt: skip

    def note_first_seen(self, sighted: list[Sighted]) -> None:
        """Send the follower the devices that a worker saw for the first time; the follower writes them to the record of first sightings."""
        self.child.notify("first_seen", sighted)

    def send_all(self, channel: Channel) -> None:
        """Send all lists in force to a new worker. If the follower has sent all lists, then also call the worker's handler `complete`."""
        for listed, image in self._lists.values():
            send_list(channel, listed, image)
        if self._complete:
            channel.notify("complete")

    def send_missing(self, channel: Channel, states: Mapping[str, Head]) -> None:
        """Send a worker the lists in force that differ from its own lists, because earlier messages to the worker were lost.

        `states`: lists that the worker has.
        """
        for listed, image in self._lists.values():
            if states.get(listed.name) != listed.state:
                send_list(channel, listed, image)

    def configure(self, config: Config) -> None:
        """Send a new configuration to the follower after the workers have applied it. The configuration names the lists to follow."""
        self._config = config
        kinds = kinds_of(config)
        for name, (listed, _) in list(self._lists.items()):
            if kinds.get(name) != listed.kind:
                del self._lists[name]
        self.child.notify("configure", config)

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about store, lists and copies, by metric name and label values."""
        status = self.status
        lag_s = max(0.0, time.monotonic() - status.in_step_at)
        own: metrics.Snapshot = {
            "eir_store_up": {(): float(status.store_up)},
            "eir_store_lost_data": {(name,): float(name in status.lost) for name in self._lists},
            "eir_copy_failed": {(name,): float(name in status.copy_faults) for name in self._lists},
            "eir_follow_lag_seconds": {(): lag_s},
        }
        return metrics.merge([own, self.child.snapshot()])

    def _note_new_today(self, day: int, taken: NewToday) -> None:
        self._new_today = day, taken

    def _set_status(self, status: Following) -> None:
        self.status = status

    def _completed(self) -> None:
        self._complete = True
        self._notify_complete()

    def _accept_list(self, listed: Listed, memory: int | None) -> str | None:
        """Store a list from the follower and send the list to the workers. Return an error text if this is impossible, else None."""
        if memory is None:
            return "the supervisor has no file descriptor left for it"
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
