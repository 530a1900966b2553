"""Loading of a release from the drop folder or from a source, always in a process of its own.

`loading` starts that process. The process of a pass or a pull requests each load from the supervisor.
"""

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

from eir.config import Config
from eir.lists.changes.load import Loader, LoadReport
from eir.lists.record.in_force import save_mark
from eir.lists.record.store import Mark
from eir.lists.releases.release import VerifiedRelease
from eir.lists.stores.open import open_store
from eir.node.processes.apart import Outcome, load_apart, outcome_of, progress_over
from eir.node.processes.channel import Channel, Handlers
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of

NICE = 10
"""Nice value of loads beside a node, because checks come first."""

Load: TypeAlias = Callable[[VerifiedRelease, Path, Mapping[str, Mark]], Awaitable[LoadReport]]
"""Function that loads a verified release with data in a folder, by the node's own marks."""


def loading(start: Start, config: Config, who: str, *, force: bool = False) -> Load:
    """Return a function that loads each release in a process of its own. `force`: as in Loader."""

    async def load(release: VerifiedRelease, folder: Path, marks: Mapping[str, Mark]) -> LoadReport:
        job = release, folder, marks, force
        report: LoadReport = await load_apart(start, _load, config, who, job, memory_max=config.load_memory, nice=NICE)
        return report

    return load


class Loads:
    """Loads that other processes request from the supervisor; one runs at a time."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._turn = asyncio.Lock()

    def handlers(self, config: Config, who: str) -> Handlers:
        """Return the handlers for such a process (loading_over)."""
        load = loading(self._start, config, who)

        async def one(release: VerifiedRelease, folder: Path, marks: Mapping[str, Mark]) -> Outcome:
            async with self._turn:
                return await outcome_of(load(release, folder, marks))

        return {"load": one}


def loading_over(channel: Channel) -> Load:
    """Return a function that requests each load from the supervisor, for a separate process."""

    async def load(release: VerifiedRelease, folder: Path, marks: Mapping[str, Mark]) -> LoadReport:
        outcome: Outcome = await channel.ask("load", release, folder, marks, patience_s=None)
        report: LoadReport = outcome.result()
        return report

    return load


async def _load(
    config: Config, who: str, job: tuple[VerifiedRelease, Path, Mapping[str, Mark], bool], channel: Channel
) -> LoadReport:
    """Load one release, in its own process."""
    release, folder, marks, force = job
    with as_owner_of(config.state):
        store = open_store(config.store, config.state)
        try:
            loader = Loader(
                config.lists,
                store,
                who,
                datetime.now(UTC),
                marks,
                force,
                save_mark=partial(save_mark, config.state),
                progress=progress_over(channel),
                memory_max=config.load_memory,
            )
            return await loader.load(release, folder)
        finally:
            await store.close()


def node_user() -> str:
    """Return user and host of the node, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user id has no name here
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
