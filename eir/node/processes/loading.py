"""Loading of a release from the drop folder or from a source, each time in a new process.

`loading` starts that process. In the process of a pass or a pull, `loading_over` requests each load from the supervisor.
"""

import asyncio
import getpass
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeAlias

from eir.config import Config
from eir.lists.changes.release_load import LoadReport, ReleaseLoader
from eir.lists.follow.list_copy import serial_marks
from eir.lists.log.change import SerialMark
from eir.lists.record.in_force import save_mark
from eir.lists.record.settings import ListSettings
from eir.lists.releases.release import VerifiedRelease
from eir.lists.sources.inbox import Attempts, PassSettings, Record
from eir.lists.stores.open import open_store
from eir.node.processes.apart import Outcome, load_apart, outcome_of, progress_over
from eir.node.processes.channel import Channel, Handlers
from eir.node.processes.lease import Lease
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of, read_clock

NICE = 10
"""Nice value of a load on the host of a node, because checks have priority."""

Load: TypeAlias = Callable[[VerifiedRelease, Path, Mapping[str, SerialMark]], Awaitable[LoadReport]]
"""Function that loads a verified release. Its arguments are the release, the folder of its data, and the marks of the node."""


def loading(start: Start, config: Config, who: str, *, force: bool = False) -> Load:
    """Return a function that loads a release in a new process. `force`: True to lift the limits on shrinking, growth and ranges."""

    async def load(release: VerifiedRelease, folder: Path, marks: Mapping[str, SerialMark]) -> LoadReport:
        job = release, folder, marks, force
        report: LoadReport = await load_apart(start, _load, config, who, job, memory_max=config.load_memory, nice=NICE)
        return report

    return load


@asynccontextmanager
async def open_pass(
    config: Config, folder: Path, lists: Mapping[str, ListSettings], who: str, load: Load, *, record: Record, attempts_file: Path,
    lease: tuple[str, str],
) -> AsyncIterator[tuple[PassSettings, Callable[[], Awaitable[bool]]]]:  # fmt: skip
    """Open the store for one pass, which loads all complete releases in a folder.

    Yields the settings of the pass, and a function that acquires the lease for this node. This process holds the lease while
    other processes load. A signal ends this process and its load at once: a store tolerates the end of a load at any point.

    Args:
        config: configuration of the node.
        folder: drop folder, or folder of a pull.
        lists: lists whose releases the folder may have.
        who: acting user, for the history.
        load: function that loads a release.
        record: function that records a rejection.
        attempts_file: file that counts the killed loads of each release.
        lease: name and holder of the lease.

    Raises:
        StoreError: if the store fails.
    """
    attempts = Attempts(attempts_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave, number, attempts)
    store = open_store(config.store, config.state)
    try:
        async with Lease(store, *lease) as held:
            marks = serial_marks(config.state)
            clock = read_clock(config.state)
            settings = PassSettings(
                folder=folder, lists=lists, store=store, who=who, clock=lambda: datetime.now(UTC), marks=marks,
                patience_s=config.inbox_patience_s, attempts=attempts, ours=held.is_held, believed=not clock.jumped,
                load=lambda release, place: load(release, place, marks), record=record,
            )  # fmt: skip
            yield settings, held.claim
    finally:
        await store.close()


def leave(number: int, attempts: Attempts) -> NoReturn:
    """End this process and its load at once after a signal, without counting a failed attempt."""
    attempts.forget()
    os._exit(128 + number)


class Loads:
    """Loads of releases that child processes request from the supervisor. One load runs at a time."""

    def __init__(self, start: Start, record: Record) -> None:
        """Create the loads of a node. `record`: function that records a rejection in its journal."""
        self._start = start
        self._record = record
        self._turn = asyncio.Lock()

    def handlers(self, config: Config, who: str) -> Handlers:
        """Return the handlers of the calls `load` and `record`, with which a child process loads a release, and records a rejection.

        The process sends these calls with the functions that `loading_over` and `recording_over` return.
        """
        load = loading(self._start, config, who)

        async def one(release: VerifiedRelease, folder: Path, marks: Mapping[str, SerialMark]) -> Outcome:
            async with self._turn:
                return await outcome_of(load(release, folder, marks))

        return {"load": one, "record": self._record}


def loading_over(channel: Channel) -> Load:
    """Return a function that asks the supervisor over the channel to load a release, and waits for the outcome of the load."""

    async def load(release: VerifiedRelease, folder: Path, marks: Mapping[str, SerialMark]) -> LoadReport:
        outcome: Outcome = await channel.ask("load", release, folder, marks, patience_s=None)
        report: LoadReport = outcome.result()
        return report

    return load


def recording_over(channel: Channel) -> Record:
    """Return a function that sends a rejection over the channel to the supervisor, which records it."""
    return partial(channel.notify, "record")


async def _load(
    config: Config, who: str, job: tuple[VerifiedRelease, Path, Mapping[str, SerialMark], bool], channel: Channel
) -> LoadReport:
    """Load one release into the store; runs in a new process."""
    release, folder, marks, force = job
    with as_owner_of(config.state):
        store = open_store(config.store, config.state)
        try:
            loader = ReleaseLoader(
                config.lists, store, who, datetime.now(UTC), marks, force, save_mark=partial(save_mark, config.state),
                progress=progress_over(channel), memory_max=config.load_memory,
            )  # fmt: skip
            return await loader.load(release, folder)
        finally:
            await store.close()


def node_user() -> str:
    """Return user and host of the node as `USER@HOST`, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user id has no name here
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
