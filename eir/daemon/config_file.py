"""The configuration file of a node that runs: whether it was written since, whether it has a fault, and what the history says of a reload."""

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from eir.config import load_config
from eir.errors import ConfigError
from eir.record.store import ACCEPTED, Event, utc_text


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
