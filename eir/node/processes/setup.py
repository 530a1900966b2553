"""The configuration in the processes of a node: objects that each builds of it in the same way, and the file while the node runs.

Of the file it says whether it was written since, whether it has a fault, and what the history says of a reload.
"""

import asyncio
import hashlib
import math
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from eir.config import Config, load_config
from eir.errors import ConfigError, EirError, Report, SetupFault
from eir.interfaces import INTERFACES
from eir.lists.images.image import Image
from eir.lists.record.store import ACCEPTED, Event, ListState, utc_text
from eir.lists.stores.open import open_copy, open_store
from eir.node.observe.log import Log
from eir.node.observe.status import WorkerReport
from eir.node.processes import state_folder
from eir.node.processes.channel import Channel
from eir.wire.peers.settings import Limits

OPEN_FILES_BESIDES = 512
"""Open files of a process besides its connections: store, log, pages, commands, releases that are being read."""
DIGEST_SHOWN = 12
"""Digits of a list's digest in a line of the log: enough to compare with `eir lists --json`."""


def prepare(config: Config) -> None:
    """Have at hand what all processes share. Raises SetupFault for a store that cannot be one."""
    log = Log(time.monotonic, level=config.log_level, in_background=False)
    report_warnings(config, log.report)
    allow_open_files(config, log.report)
    for each in INTERFACES:
        for name in filter(None, (each.server, each.service, each.attendant)):
            resolve_name(name)  # so that all processes share what it imports
    if any(each.tokens and config.of(each).listen for each in INTERFACES):
        # What checks access tokens takes half a second to load, which no worker is to spend when a reload brings tokens.
        import eir.wire.web.tokens  # noqa: F401, PLC0415 - so that it is there
    try:
        state_folder.take_form(config.state, log.report)
        open_store(config.store, config.state)
        open_copy(config.store, config.state)
    except EirError as e:
        raise SetupFault(str(e)) from None


def kinds_of(config: Config) -> dict[str, str]:
    """The kind of each configured list."""
    return {name: settings.kind for name, settings in config.lists.items()}


def missing_lists(config: Config, states: Mapping[str, ListState]) -> list[str]:
    """Lists that rules in force look into and that have never been loaded; a local one may well have no entry yet."""
    used = dict.fromkeys(name for rule in config.policy.rules if not rule.observe for name in rule.lists)
    return [name for name in used if name not in states and not config.lists[name].local]


def changed_lists(config: Config, before: Sequence[WorkerReport], now: Sequence[WorkerReport]) -> list[str]:
    """In words, what a reload to this configuration leaves to do about lists, by what workers reported before it and report now."""
    missing = dict.fromkeys(name for report in now for name in report.missing)
    left = dict.fromkeys(name for report in before for name in report.lists if name not in config.lists)
    return [f"list {name} has never been loaded: load it first" for name in missing] + [
        f"list {name} is no longer configured: it answers nothing, the store keeps it (eir show {name})"
        for name in left
    ]


def limits_of(config: Config) -> Limits:
    """The limits of one worker: what counts over all connections is shared out, since each worker sees its own only.

    Not so those that the supervisor holds connections to before it hands them over, and rates, which workers fill together.
    """
    limits, workers = config.limits, config.workers
    return replace(
        limits,
        unidentified_max=math.ceil(limits.unidentified_max / workers),
        source_unidentified_max=math.ceil(limits.source_unidentified_max / workers),
    )


def allow_open_files(config: Config, report: Report) -> None:
    """Raise this process's limit on open files, as far as it may, to what all connections and the rest need."""
    wanted = config.limits.connections_max + OPEN_FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        report(
            "open_files", level="warning", limit=hard, setting="limits.connections_max",
            detail=f"this process may have {hard} open files, too few for {config.limits.connections_max} connections",
        )  # fmt: skip


def report_warnings(config: Config, report: Report) -> None:
    """Tell what is allowed in the configuration and probably not meant."""
    for warning in config.warnings:
        report("config_warning", level="warning", detail=str(warning))


def tell_in_force(report: Report, name: str, state: ListState) -> None:
    """The line that says which content of a list answers from now on, and who vouched for it."""
    report(
        "list_in_force", list=name, serial=state.serial, generation=state.generation, entries=state.entries,
        digest=state.content_digest[:DIGEST_SHOWN], signers=",".join(state.signers) or None,
    )  # fmt: skip


class Listed(NamedTuple):
    """A list as it is to be in force."""

    name: str
    kind: str
    """Kind of the list, by the configuration."""
    state: ListState


def hand_over(channel: Channel, listed: Listed, image: Image) -> None:
    """Have the other side put a list in force; of several versions that wait, the last."""
    channel.tell("put_in_force", listed, carrying=[image], latest=listed.name)


class ConfigFile:
    """Looks at a file again and again; `digest` is that of what the node started by (see Config.digest)."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._seen: tuple[int, ...] | None = None
        self.fault: str | None = None
        """The first fault that it has: a restart would fail then."""

    async def look(self) -> bool:
        """Look again; returns True if there is another file than at the look before, or than the node started by."""
        now = await asyncio.to_thread(_stamp, self._path)
        if now == self._seen:
            return False
        is_first, self._seen = self._seen is None, now
        self.fault = await asyncio.to_thread(_fault, self._path)
        return now is not None and not (is_first and await asyncio.to_thread(_digest, self._path) == self._digest)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Numbers by which a file that is another one, or was written, differs; None if it is not there."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _digest(path: Path) -> str | None:
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def _fault(path: Path) -> str | None:
    try:
        load_config(path)
    except ConfigError as e:
        return str(e.problems[0])
    return None


def reload_event(digest: str, who: str, changed: Sequence[str]) -> Event:
    """Return the history's event for a reload.

    It names who made it, what it changed, and the digest of the configuration then in force.
    """
    now, host = utc_text(datetime.now(UTC)), socket.gethostname()
    return Event(
        time=now,
        who=f"{who}@{host}",
        what="reload",
        digest=digest,
        outcome=ACCEPTED,
        detail=f"changed: {', '.join(changed)}",
    )
