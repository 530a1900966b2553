"""Partners with which devices and SIMs of watched lists were last seen, as a file.

It is `watched.json`, beside the files of the record.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from eir.analysis.events import SIM_CHANGED
from eir.analysis.files import FILE_MODE, UNFINISHED
from eir.analysis.schema import FOLDER

FILE = "watched.json"


def read(state: Path) -> dict[str, str]:
    """Return what the file says (eir.analysis.events.Events.seen); nothing if it is missing or damaged."""
    try:
        found = json.loads((state / FOLDER / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(who): str(other) for who, other in found.items()} if isinstance(found, dict) else {}


def write(state: Path, seen: Mapping[str, str]) -> None:
    """Put these there instead. Raises OSError."""
    file = state / FOLDER / FILE
    fresh = file.with_name(f".{FILE}{UNFINISHED}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    with open(descriptor, "w") as stream:  # noqa: PTH123 - of a descriptor, for its mode
        json.dump(seen, stream)
    fresh.replace(file)


def without(seen: Mapping[str, str], subscribers: Collection[str]) -> dict[str, str]:
    """All of it that is not about these subscribers."""
    return {
        who: other
        for who, other in seen.items()
        if (other if who.startswith(SIM_CHANGED) else who.partition(" ")[2]) not in subscribers
    }


def forget(state: Path, subscribers: Collection[str]) -> None:
    """Take these subscribers out of the file. Raises OSError."""
    seen = read(state)
    if len(left := without(seen, subscribers)) < len(seen):
        write(state, left)
