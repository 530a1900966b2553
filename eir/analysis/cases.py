"""Findings that operators confirmed or cleared, by whom and why.

Kept in the state folder, one line for each decision; the last one counts.
"""

import json
import os
from pathlib import Path
from typing import Any

from eir.device import device_key
from eir.errors import EirError

FILE, CONFIRMED, CLEARED = "tamper-cases.jsonl", "confirmed", "cleared"


def decided(state: Path) -> list[dict[str, Any]]:
    """All decisions, the oldest first: `time`, `who`, `imei`, `verdict`, `reason`. Raises EirError for a file that cannot be read."""
    try:
        return [json.loads(line) for line in (state / FILE).read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as e:
        raise EirError(
            f"{state / FILE}: {e}; put it back from a backup, or remove it: all its decisions are in the history, too"
        ) from None


def cases(state: Path) -> dict[int, bool]:
    """Device → whether it was confirmed last (True), or cleared."""
    return {device_key(each["imei"]): each["verdict"] == CONFIRMED for each in decided(state)}


def decide(state: Path, decision: dict[str, Any]) -> Path:
    """Write a decision down; returns the file. Raises OSError."""
    descriptor = os.open(state / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "a", encoding="utf-8") as out:  # noqa: PTH123 - of a descriptor, for its mode
        out.write(json.dumps(decision) + "\n")
        out.flush()
        os.fsync(descriptor)
    return state / FILE
