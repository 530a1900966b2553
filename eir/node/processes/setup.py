"""Functions for the configuration, the lists and the limits that several processes of a node share."""

import asyncio
import hashlib
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from eir.config import Config, load_config
from eir.curl import check_version
from eir.disk import WatchedFile
from eir.errors import ConfigError, EirError, Report, SetupFault
from eir.lists.images.image import Image
from eir.lists.log.change import Head, utc_text
from eir.lists.log.journal import JournalEvent
from eir.lists.stores.open import open_store
from eir.node.observe.log import Log
from eir.node.observe.status import AnsweringReport
from eir.node.processes import state_folder
from eir.node.processes.channel import Channel

OTHER_FILES = 512
"""Maximum number of open files of a process in addition to connections: store, log, pages, commands, releases."""
DIGEST_DIGITS = 12
"""Number of digits of a list's digest in a log line, enough for a comparison with `eir lists --json`."""


def prepare(config: Config) -> None:
    """Prepare the resources that all processes share: open files, state folder and store.

    Raises:
        SetupFault: if the store cannot be used, or a required program is missing.
    """
    has_webhook = config.sightings is not None and config.sightings.webhook is not None
    if has_webhook or any(settings.source for settings in config.lists.values()):
        check_version()
    log = Log(time.monotonic, level=config.log_level, in_background=False)
    report_warnings(config, log.report)
    allow_open_files(config, log.report)
    try:
        state_folder.write_form(config.state)
        open_store(config.store, config.state)
    except EirError as e:
        raise SetupFault(str(e)) from None


def kinds_of(config: Config) -> dict[str, str]:
    """Return the kind of each configured list by name. A configured record of first sightings is included, with kind FIRST_SEEN."""
    return {name: settings.kind for name, settings in config.lists_and_record.items()}


def missing_lists(config: Config, states: Mapping[str, Head]) -> list[str]:
    """Return the lists that policy rules use but that were never loaded. Local lists, which may be empty, are left out."""
    used = dict.fromkeys(name for rule in config.policy.rules if not rule.observe for name in rule.lists)
    return [name for name in used if name not in states and not config.lists[name].local]


def changed_lists(config: Config, before: AnsweringReport | None, now: AnsweringReport | None) -> list[str]:
    """Return advice for the operator after a reload: a text for each list that was never loaded or is no longer configured.

    `before`, `now`: reports of the answering process before and after the reload.
    """
    missing = [] if now is None else now.missing
    left = [] if before is None else [name for name in before.lists if name not in config.lists_and_record]
    advice = [f"list {name} has never been loaded: load it first" for name in missing]
    advice += [
        f"list {name} is no longer configured: it has no effect; the store keeps it (eir show {name})" for name in left
    ]
    return advice


def allow_open_files(config: Config, report: Report) -> None:
    """Raise this process's limit on open files to the number that all connections need, or log that the host permits fewer."""
    wanted = config.limits.connections_max + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        report(
            "open_files", level="warning", limit=hard, setting="limits.connections_max",
            detail=f"this process may open {hard} files, too few for {config.limits.connections_max} connections",
        )  # fmt: skip


def report_warnings(config: Config, report: Report) -> None:
    """Log each warning about the configuration."""
    for warning in config.warnings:
        report("config_warning", level="warning", detail=str(warning))


def log_in_force(report: Report, name: str, state: Head) -> None:
    """Log that a list is in force, with its serial, number of entries, digest and signers."""
    report(
        "list_in_force", list=name, serial=state.serial, generation=state.generation, entries=state.entries,
        digest=state.content[:DIGEST_DIGITS], signers=",".join(state.signers) or None,
    )  # fmt: skip


class Listed(NamedTuple):
    """Name, kind and state of a list that a process must put in force."""

    name: str
    kind: str
    """Kind of the list in the configuration."""
    state: Head
    reasons: Sequence[str] = ()
    """Chosen reasons by which the image was built (ListSettings.reasons)."""


def send_list(channel: Channel, listed: Listed, image: Image) -> None:
    """Send a list over the channel to a process that puts the list in force. An older version that is still queued is replaced."""
    channel.notify("put_in_force", listed, carrying=[image], latest=listed.name)


class ConfigFile:
    """Watcher that detects changes and faults of the configuration file. `digest`: Config.digest at the start of the node."""

    def __init__(self, path: Path, digest: str) -> None:
        self._file = WatchedFile(path)
        self._path = path
        self._digest = digest
        self.fault: str | None = None
        """First fault of the file, which would prevent a start; None: no fault."""

    async def poll(self) -> bool:
        """Read the configuration file if it changed; return true if its content differs from the last read."""
        if not await asyncio.to_thread(self._file.changed):
            return False
        before = self._digest
        self._digest, self.fault = await asyncio.to_thread(_digest_and_fault, self._path)
        return self._digest not in {before, ""}


def _digest_and_fault(path: Path) -> tuple[str, str | None]:
    """Read a configuration file; return its digest (empty if it is unreadable) and its first fault."""
    try:
        return load_config(path).digest, None
    except ConfigError as e:
        fault = str(e.problems[0])
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest(), fault
    return "", fault


def reload_event(digest: str, who: str, changed: Sequence[str]) -> JournalEvent:
    """Return the journal's event for a reload: user, changed keys and digest of the configuration."""
    now = utc_text(datetime.now(UTC))
    user = f"{who}@{socket.gethostname()}"
    detail = f"changed: {', '.join(changed)}"
    return JournalEvent(time=now, who=user, what="reload", digest=digest, detail=detail)
