"""What a node keeps in its state folder besides its lists: its Origin-State-Id, and the last time that its clock showed."""

import os
import time
from contextlib import suppress
from pathlib import Path

from eir.errors import SetupFault
from eir.lists.clock import TrustedClock

CLOCK_FILE = "clock"
ORIGIN_STATE_ID_FILE = "origin-state-id"
FOLDER_MODE = 0o750


def prepare(folder: Path) -> None:
    """Make the folder if it is not there. Raises SetupFault if it cannot be made or written."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as e:
        raise SetupFault(f"the state folder {folder} cannot be made: {e.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupFault(f"the state folder {folder} is not writable for user {os.getuid()}")


def next_origin_state_id(folder: Path) -> int:
    """A value for Origin-State-Id that is higher than at any start before (RFC 6733 8.16), kept in the folder.

    On a full disk it is not kept, and is higher all the same: it is the time, unless the clock went back.
    """
    file = folder / ORIGIN_STATE_ID_FILE
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    value = max(int(time.time()), last + 1)
    _keep(file, f"{value}\n")
    return value


def read_clock(folder: Path) -> TrustedClock:
    """The clock by which rows end, set by the last time that a process of this node kept in the folder, and by what it is now."""
    try:
        clock = TrustedClock(int((folder / CLOCK_FILE).read_text()))
    except (OSError, ValueError):
        clock = TrustedClock()
    clock.now(time.time(), time.monotonic())
    return clock


def keep_clock(clock: TrustedClock, folder: Path) -> None:
    """Keep the time for the next start; on a full disk that start is merely more cautious."""
    _keep(folder / CLOCK_FILE, f"{clock.time:.0f}\n")


def _keep(file: Path, text: str) -> None:
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")
    with suppress(OSError):
        fresh.write_text(text)
        fresh.replace(file)
