"""State-folder file with the content that is in force on this node, and since when; it survives restarts."""

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
    """List that was last in force on the node of a folder."""

    serial: int
    content: str
    since: str
    """Time from which the content was in force."""
    mark: Mark
    """Highest mark (ListState.mark) of all states that were in force here."""


def load_in_force(folder: Path) -> dict[str, InForce]:
    """Load the lists that were last in force on the node of the folder; a damaged or missing file has none."""
    with suppress(OSError, ValueError, TypeError):
        return {
            str(name): InForce(int(serial), str(content), str(since), _mark(*(mark or [(0, serial)])))
            for name, (serial, content, since, *mark) in json.loads((folder / IN_FORCE_FILE).read_text()).items()
        }
    return {}


def save_in_force(
    folder: Path, entries: Mapping[str, InForce], marks: Mapping[str, Mark], *, durable: bool = False
) -> dict[str, InForce]:
    """Store entries and higher marks; return all stored entries. Several processes of a host may call it concurrently.

    A mark is never lowered. If `durable` is set, the file survives a power failure.

    Raises:
        OSError: if the file cannot be written.
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
    """Store the mark of a list, before the change that raised it is reported as done.

    A host without a state folder has no node and stores nothing. If the disk is full, the node stores the mark a second
    later.
    """
    with suppress(OSError):
        save_in_force(folder, {}, {name: mark}, durable=True)


def _mark(numbers: Sequence[Any]) -> Mark:
    resets, highest = map(int, numbers)
    return resets, highest
