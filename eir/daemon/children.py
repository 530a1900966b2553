"""Child processes: forked, started again when they end unasked, ended in time. Knows nothing of what they do.

Forking is safe in a process that has neither an event loop nor a thread; the supervisor is such a one.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eir.errors import ConfigError, EirError, Report, SetupFault

RESTART_S, RESTART_MAX_S = 0.1, 30.0
"""Pause before a process that ended unasked is started again; it doubles up to the second."""
ALONE_S = 1.0
"""The longest pause while no process of that kind runs: nobody is served then."""
STEADY_S = 60.0
"""A process that ran this long starts again with the first pause."""
FIRST_S = 1.0
"""How long the oldest process has to tell the others to end before they are told anyway."""
SETUP_STATUS = 2
"""Exit status of a process that met a fault which does not go away by itself."""
IDLE_S = 3600.0


class Ended(NamedTuple):
    """A process that is no more."""

    name: str
    pid: int
    status: int
    """Exit status; negative: the signal that ended it."""


@dataclass(slots=True)
class _Child:
    name: str
    started: float
    pause_s: float
    restart: Callable[[], None] | None
    """Starts another in its place."""
    serves: bool
    """Somebody waits for it, unless others do the same."""


class Children:
    """The processes that this one has forked."""

    def __init__(self, *, report: Report) -> None:
        self._report = report
        self._running: dict[int, _Child] = {}
        self._due: list[tuple[float, _Child]] = []  # those to start again, and when
        self._pauses: dict[str, float] = {}  # by name: how long the next restart waits
        self._stopping = False
        self.restarts = 0

    def fork(self, name: str, main: Callable[[], int], *, restart: Callable[[], None] | None = None, serves: bool = True) -> int:
        """Start a process that runs `main`, ends with its result and is called eir-NAME in `ps` and `top`; returns its id.

        `restart` is called, after a pause, when it ends although nobody told it to; None: it is not started again. `serves`:
        somebody waits for such a process, so that the pause is short while none runs, and its restarts are counted.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _run(name, main)
        self._running[pid] = _Child(name, time.monotonic(), self._pauses.get(name, RESTART_S), restart, serves)
        return pid

    def reap(self) -> list[Ended]:
        """Processes that have ended since the last call; those that are to be started again are set down for it."""
        ended = []
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            child = self._running.pop(pid)
            ended.append(Ended(child.name, pid, os.waitstatus_to_exitcode(status)))
            if child.restart is not None and not self._stopping:
                ran_s = time.monotonic() - child.started
                pause_s = RESTART_S if ran_s > STEADY_S else child.pause_s
                self._due.append((time.monotonic() + pause_s, child))
                self._pauses[child.name] = min(2 * pause_s, RESTART_MAX_S)
                self._report(
                    "process_ended", level="error", process=child.name, status=ended[-1].status, ran_s=round(ran_s), restart_in_s=pause_s
                )
        if not any(child.restart is not None and child.serves for child in self._running.values()):
            soon = time.monotonic() + ALONE_S
            self._due = [(min(due, soon), child) for due, child in self._due]
        return ended

    @property
    def wait_s(self) -> float:
        """How long it is until something is to be started."""
        return max(0.0, min((due for due, _ in self._due), default=time.monotonic() + IDLE_S) - time.monotonic())

    def start_due(self) -> None:
        """Start again what is due."""
        now = time.monotonic()
        due, self._due = [child for at, child in self._due if at <= now], [each for each in self._due if each[0] > now]
        for child in due:
            if child.restart is not None:
                self.restarts += child.serves
                child.restart()

    def stop(self, end_s: float) -> bool:
        """Have all end, by SIGTERM, and kill those that take longer than `end_s`; True if none had to be killed.

        The oldest is told first, and may tell the others in its own time, FIRST_S at most. SIGCHLD has to be blocked.
        """
        self._stopping = True
        began = time.monotonic()
        for told, until_s in ((slice(1), min(FIRST_S, end_s / 2)), (slice(None), end_s)):
            for pid in list(self._running)[told]:
                kill(pid, signal.SIGTERM)
            while self._running and time.monotonic() < began + until_s:
                signal.sigtimedwait({signal.SIGCHLD}, 0.1)
                self.reap()
        late = dict(self._running)
        for pid, child in late.items():
            self._report("killed", level="error", reason="drain", process=child.name, pid=pid, detail=f"it did not end within {end_s:g} s")
            kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()
        return not late


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _run(name: str, main: Callable[[], int]) -> None:
    """Be the child: run `main` and end, whatever happens."""
    status = 1
    try:
        with suppress(OSError):
            Path("/proc/self/comm").write_text(f"eir-{name}")
        status = main()
    except (SetupFault, ConfigError) as e:
        status = SETUP_STATUS
        print(f"eir: {e}", file=sys.stderr)
    except EirError as e:
        print(f"eir: {e}", file=sys.stderr)
    except BaseException as e:  # noqa: BLE001 - the outermost frame of the process: say what it was and end
        print(f"eir: the process {name} ends: {type(e).__name__}: {e}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)
