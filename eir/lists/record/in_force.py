"""File in the state folder that names the lists in force on this node, and survives restarts."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from eir.disk import sync_folder, write_file
from eir.lists.record.store import Mark

IN_FORCE_FILE = "in-force.json"
"""File with the content in force, its start time, and the highest serial, for each list."""


class InForce(NamedTuple):
    """Release or content of a list that was last in force on this node."""

    serial: int
    content: str
    since: str
    """Time from which the content was in force."""
    mark: Mark
    """Highest mark (ListState.mark) of all states that were in force here."""


def load_in_force(folder: Path) -> dict[str, InForce]:
    """Load from the state folder the lists that were last in force.

    If the file is missing or damaged, the result is empty.
    """
    with suppress(OSError, ValueError, TypeError):
        return {
            str(name): InForce(int(serial), str(content), str(since), _mark(*(mark or [(0, serial)])))
            for name, (serial, content, since, *mark) in json.loads((folder / IN_FORCE_FILE).read_text()).items()
        }
    return {}


def save_in_force(
    folder: Path, entries: Mapping[str, InForce], marks: Mapping[str, Mark], *, durable: bool = False
) -> dict[str, InForce]:
    """Store lists in force, and marks that are higher than before; return all stored lists.

    Several processes of a host may call the function at the same time. A mark is never lowered. If `durable` is set,
    the file survives a power failure.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        stored = load_in_force(folder)
        known = [*((name, entry.mark) for name, entry in stored.items()), *marks.items()]
        stored |= entries
        for name, mark in known:
            entry = stored.get(name, InForce(0, "", "", mark))
            stored[name] = entry._replace(mark=max(entry.mark, mark))
        write_file(folder / IN_FORCE_FILE, json.dumps(stored).encode(), durable=durable)
        if durable:
            sync_folder(folder)
    finally:
        os.close(descriptor)
    return stored


def save_mark(folder: Path, name: str, mark: Mark) -> None:
    """Store the mark of a list durably, before the change that raised the mark is reported as done.

    A host without a state folder has no node and stores nothing. If the disk is full, the node stores the mark a second
    later.
    """
    with suppress(OSError):
        save_in_force(folder, {}, {name: mark}, durable=True)


def _mark(numbers: Sequence[Any]) -> Mark:
    resets, highest = map(int, numbers)
    return resets, highest
