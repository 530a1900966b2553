"""File in a node's state folder that keeps across a restart what was in force, and since when."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from eir.disk import put, sync
from eir.lists.record.store import Mark

IN_FORCE_FILE = "in-force.json"
"""Keeps what was in force since when, and the highest serial of each list, across a restart."""


class InForce(NamedTuple):
    """A list as it was in force last on the node of a folder."""

    serial: int
    content: str
    since: str
    """When that came into force."""
    mark: Mark
    """The highest of all states that were in force here (ListState.mark)."""


def in_force_before(folder: Path) -> dict[str, InForce]:
    """Read what was in force last on the node of the folder, by list."""
    with suppress(OSError, ValueError, TypeError):
        return {
            str(name): InForce(int(serial), str(content), str(since), _mark(*(mark or [(0, serial)])))
            for name, (serial, content, since, *mark) in json.loads((folder / IN_FORCE_FILE).read_text()).items()
        }
    return {}


def save_in_force(
    folder: Path, entries: Mapping[str, InForce], marks: Mapping[str, Mark], *, durable: bool = False
) -> dict[str, InForce]:
    """Store entries and higher marks, and return all that the folder holds then. Several processes of a host may call this at once.

    A mark is never lowered. `durable`: the file survives a power failure. Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        stored = in_force_before(folder)
        known = [*((name, entry.mark) for name, entry in stored.items()), *marks.items()]
        stored |= entries
        for name, mark in known:
            entry = stored.get(name, InForce(0, "", "", mark))
            stored[name] = entry._replace(mark=max(entry.mark, mark))
        put(folder / IN_FORCE_FILE, json.dumps(stored).encode(), durable=durable)
        if durable:
            sync(folder)
    finally:
        os.close(descriptor)
    return stored


def keep_mark(folder: Path, name: str, mark: Mark) -> None:
    """Store the highest serial of a list, before the change that raised the serial is reported as done.

    A host without a state folder has no node and stores nothing. On a full disk nothing is stored here: the node stores the mark a second later.
    """
    with suppress(OSError):
        save_in_force(folder, {}, {name: mark}, durable=True)


def _mark(said: Sequence[Any]) -> Mark:
    resets, highest = map(int, said)
    return resets, highest
