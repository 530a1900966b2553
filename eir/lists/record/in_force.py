"""File in the state folder that names the lists in force on this node. The node reads it after a restart."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from eir.disk import sync_folder, write_file
from eir.lists.log.change import SerialMark

IN_FORCE_FILE = "in-force.json"
"""File with the content in force, its start time, and the highest serial, for each list."""


class InForce(NamedTuple):
    """State of a list that was in force on this node before a restart."""

    serial: int
    content: str
    since: str
    """Time from which the content was in force."""
    mark: SerialMark
    """Highest mark (ListState.mark) of all states of the list that were in force on this node."""


def load_in_force(folder: Path) -> dict[str, InForce]:
    """Load the lists in force from the state folder; return them by name, or an empty map if the file is missing or damaged."""
    entries = {}
    with suppress(OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        text = (folder / IN_FORCE_FILE).read_text()
        for name, (serial, content, since, *marks) in json.loads(text).items():
            mark = _mark(marks[0]) if marks else (0, int(serial))  # an old version stored no mark
            entries[str(name)] = InForce(int(serial), str(content), str(since), mark)
        return entries
    return {}


def save_in_force(folder: Path, entries: Mapping[str, InForce], marks: Mapping[str, SerialMark]) -> dict[str, InForce]:
    """Save the lists in force, and the marks (highest serials) of lists, in the state folder. Return the new content of the file.

    A mark in the file never decreases. Several processes of a host may call the function at the same time. The file survives a power failure.

    Args:
        folder: state folder.
        entries: lists in force, which replace the entries of these lists in the file.
        marks: further marks, by list.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        stored = load_in_force(folder)
        stored_marks = [(name, entry.mark) for name, entry in stored.items()]
        stored |= entries
        for name, mark in (*stored_marks, *marks.items()):
            entry = stored.get(name, InForce(0, "", "", mark))
            stored[name] = entry._replace(mark=max(entry.mark, mark))
        write_file(folder / IN_FORCE_FILE, json.dumps(stored).encode(), durable=True)
        sync_folder(folder)
    finally:
        os.close(descriptor)
    return stored


def save_mark(folder: Path, name: str, mark: SerialMark) -> None:
    """Save the mark (highest accepted serial) of a list on disk. The caller reports the change of the list only after this.

    Nothing is saved if there is no state folder, because the host then has no node. If the disk is full, the node saves
    the mark one second later.
    """
    with suppress(OSError):
        save_in_force(folder, {}, {name: mark})


def _mark(numbers: Sequence[Any]) -> SerialMark:
    resets, highest = map(int, numbers)
    return resets, highest
