"""Decisions of operators that confirm or clear a finding, with user and reason.

They are stored in the state folder, one line for each decision; the last decision about a device counts.
"""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from eir.device import device_key
from eir.errors import EirError

FILE, CONFIRMED, CLEARED, FORGOTTEN = "tamper-cases.jsonl", "confirmed", "cleared", "forgotten"


def load_decisions(state: Path) -> list[dict[str, Any]]:
    """Load all decisions, oldest first, each with `time`, `who`, `imei`, `verdict` and `reason`, and with `owners` (IMSIs) if a person named them.

    Raises:
        EirError: if the file cannot be read.
    """
    try:
        return [json.loads(line) for line in (state / FILE).read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        raise EirError(f"{state / FILE}: {e}; restore it from a backup, or remove it: the history has all its decisions") from None  # fmt: skip


def load_cases(state: Path) -> dict[int, dict[str, Any]]:
    """Return the last decision on each device that an operator confirmed or cleared. Devices whose decision was withdrawn are left out."""
    last = {device_key(each["imei"]): each for each in load_decisions(state)}
    return {device: each for device, each in last.items() if each["verdict"] != FORGOTTEN}


def add_decision(state: Path, decision: dict[str, Any]) -> Path:
    """Append an operator's decision to the file of decisions; return the path of the file.

    Raises:
        OSError: if the write fails; a partial line is removed, because it would make the file unreadable.
    """
    line, file = f"{json.dumps(decision)}\n".encode(), state / FILE
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "ab", buffering=0) as stream:  # noqa: PTH123 - of a descriptor, for its mode
        fcntl.flock(stream, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if stream.write(line) < len(line):
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        os.fsync(descriptor)
    return file
