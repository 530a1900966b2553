"""Loads of releases, each in a process of its own, and turns of the drop folder and of lists' sources.

`process_once` is one turn: the work of a process of a running node, and of `eir inbox` and `eir pull`. If several nodes share a store, one of
them loads a new release: a turn holds a lease in the store. If that node ends, another node continues.
"""

import asyncio
import fcntl
import getpass
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from eir.config import Config
from eir.errors import ReleaseRefused, Report, SetupFault, StoreError, silent
from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.follow.list_copy import serial_marks
from eir.lists.record.in_force import save_mark
from eir.lists.releases.release import VerifiedRelease
from eir.lists.rows.delivered import Progress
from eir.lists.sources.drop_folder import DropFolderSettings, load_delivered
from eir.lists.sources.publisher_folder import load_published
from eir.lists.sources.release_result import (
    CRASH,
    ELSEWHERE,
    KILLED,
    WAITING,
    ReleaseResult,
    Turn,
    accepted,
    failed,
    result_of,
)
from eir.lists.sources.source import TurnSettings
from eir.lists.stores.open import open_store
from eir.node.processes.apart import LOAD_S_MAX, Emit, NoOutcome, WorkProcess
from eir.node.processes.lease import Lease
from eir.node.processes.state_folder import read_clock

NICE = 10
"""Nice value of a load on the host of a node, because checks have priority."""
LOAD_PROCESS = "load"
"""Name of the process of a load in `ps` and `top`."""
PROGRESS, REPORT = "progress", "report"
CLAIM = "inbox"
"""Name of the lease for loads from the drop folder."""
PULLS_FOLDER = "pulled"
"""Folder in the state folder, with one subfolder per list."""
ATTEMPTS_FILE, PULL_ATTEMPTS_FILE, LOCK_FILE, LOAD_LOCK_FILE = "inbox.attempt", "attempts.json", ".lock", "load.lock"
LOCK_POLL_S = 0.1


def load_process(config: Config, nice: int = 0) -> WorkProcess:
    """Return the process in which loads run, one after the other, within limits of memory and time."""
    return WorkProcess(LOAD_PROCESS, owned=config.state, memory_max=config.load_memory, nice=nice)


async def load_apart(
    process: WorkProcess, config: Config, who: str, release: VerifiedRelease | Path, folder: Path, *, force: bool = False, dry_run: bool = False,
    progress: Progress | None = None, report: Report = silent,
) -> ReleaseResult:  # fmt: skip
    """Load a release in a process of its own; return its result.

    Args:
        process: process of loads.
        config: configuration of the node.
        who: acting user, for the history.
        release: verified release, or the path of a manifest.
        folder: folder of the data files.
        force: lift the limits on shrinking, growth and ranges.
        dry_run: do everything but write to the store.
        progress: receives the stages of the load.
        report: receives events of the store that are not errors.
    """
    handlers: dict[str, Callable[..., Any]] = {
        PROGRESS: progress or (lambda *_: None),
        REPORT: lambda event, fields: report(event, **fields),
    }
    job = who, release, folder, force, dry_run
    try:
        return result_of(await process.run(_load, config, job, handlers=handlers))
    except NoOutcome as fault:
        return failed("", _refusal_after(fault, config.load_memory))


def _refusal_after(fault: NoOutcome, memory_max: int) -> ReleaseRefused:
    """Return the rejection of a release whose load ended without a result, with the probable reason."""
    if fault.status == -signal.SIGKILL:
        detail = "the process of the load was killed, probably because the host lacked memory (journalctl -k)"
        return ReleaseRefused(KILLED, detail)
    if fault.status == -signal.SIGALRM:
        detail = f"its load took more than {LOAD_S_MAX} s: split the release into a full one and deltas"
        return ReleaseRefused("time", detail)
    detail = f"the process of the load: {fault}; limits.load_memory ({memory_max} bytes) is probably too low"
    return ReleaseRefused(CRASH, detail)


async def _load(
    config: Config, job: tuple[str, VerifiedRelease | Path, Path, bool, bool], emit: Emit
) -> dict[str, Any]:
    """Load one release into the store; runs in a new process. Return the result as JSON."""
    who, release, folder, force, dry_run = job
    try:
        store = open_store(
            config.store,
            config.state,
            report=lambda event, **fields: emit(REPORT, event, fields),
            creates=not dry_run,
        )
        try:
            loader = ReleaseLoader(
                config.lists, store, who, datetime.now(UTC), serial_marks(config.state), force=force, dry_run=dry_run,
                save_mark=partial(save_mark, config.state), progress=partial(emit, PROGRESS), memory_max=config.load_memory,
            )  # fmt: skip
            if isinstance(release, Path):
                report = await loader.verify_and_load(release)
            else:
                report = await loader.load(release, folder)
            result = accepted("", report)
        finally:
            await store.close()
    except MemoryError:
        detail = f"its load takes more memory than limits.load_memory allows ({config.load_memory} bytes): raise that, or split the release"
        result = failed("", ReleaseRefused("memory", detail))
    except Exception as fault:  # noqa: BLE001 - a bug with one release
        result = failed("", fault)
    return asdict(result)


async def process_once(
    config: Config, name: str | None, who: str, *, emit: Callable[[ReleaseResult], object], force: bool = False,
    loaded: Callable[[ReleaseResult], Any] | None = None,
) -> Turn:  # fmt: skip
    """Take one turn of a source: load all its releases that can be loaded, unless another process or node is doing that.

    Args:
        config: configuration of the node.
        name: list whose source is pulled; None: the drop folder.
        who: acting user, for the history.
        emit: gets each result before the files of the release are moved.
        force: lift the limits on shrinking, growth and ranges, and fetch rejected releases again.
        loaded: function to await after each load, with its result.

    Raises:
        EirError: if there is no such source, or its folder cannot be used.
        OSError: if the private folder of the list cannot be used.
    """
    if name is None and config.inbox is None:
        raise SetupFault(f"{config.path} sets no drop folder (`inbox`)")
    folder = config.state if name is None else config.state / PULLS_FOLDER / name
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    attempts, lock = (ATTEMPTS_FILE, f"inbox{LOCK_FILE}") if name is None else (PULL_ATTEMPTS_FILE, LOCK_FILE)

    async def load(release: VerifiedRelease, place: Path) -> ReleaseResult:
        async with _one_load(config.state):
            result = await load_apart(process, config, who, release, place, force=force)
        if loaded is not None:
            await loaded(result)
        return result

    turn, process = Turn(list=name), load_process(config, NICE)
    with _locked(folder / lock) as is_locked:
        if not is_locked:
            turn.end(ELSEWHERE, "", "another process on this host is doing it")
            return turn
        store = open_store(config.store, config.state)
        try:
            # All processes of this host use the same holder, so that a killed process does not block the next one.
            holder = f"{socket.gethostname()}:{folder}"
            async with Lease(store, CLAIM if name is None else f"pull:{name}", holder) as lease:
                settings = TurnSettings(
                    lists=config.lists, store=store, clock=lambda: datetime.now(UTC), load=load, attempts=folder / attempts,
                    claim=lease.claim, is_held=lease.is_held, emit=emit, believed=not read_clock(config.state).jumped,
                    marks=serial_marks(config.state),
                )  # fmt: skip
                if name is not None:
                    return await load_published(settings, name, folder, force=force)
                assert config.inbox is not None  # noqa: S101 - for mypy
                drop = DropFolderSettings(folder=config.inbox, patience_s=config.inbox_patience_s)
                return await load_delivered(drop, settings)
        except StoreError as error:
            turn.end(WAITING, error.cause, f"the store: {error}")
            return turn
        finally:
            await process.close()
            await store.close()


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a file during a `with` block; yield false if another process on this host has locked it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@asynccontextmanager
async def _one_load(folder: Path) -> AsyncIterator[None]:
    """Wait until no other turn on this host loads, because each load needs memory."""
    while True:
        with _locked(folder / LOAD_LOCK_FILE) as is_locked:
            if is_locked:
                yield
                return
        await asyncio.sleep(LOCK_POLL_S)


def node_user() -> str:
    """Return user and host of the node as `USER@HOST`, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user id has no name here
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
