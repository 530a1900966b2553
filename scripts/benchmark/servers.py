"""Measured servers: each is a process on chosen cores, with its command, its readiness check and its end."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .build import program

REALM = "epc.mnc001.mcc001.3gppnetwork.org"
"""Realm of every server, and of the MMEs that ask it."""
PATIENCE_S = 60.0
END_S = 15.0
IDLE_S, IDLE_SHARE = 0.25, 0.1
"""A server is at rest when it computes for less than this share of that time."""

Start = Callable[..., "Server"]
"""Function that starts a server, from port, log and cores."""


class Failed(Exception):
    """Error: a server does not run; the text is its output."""


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Run programs that are started meanwhile on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """Running server. `constant`: it gives one answer to all requests; `lists`: it has a list and looks devices up."""

    def __init__(
        self, name: str, command: Sequence[str | Path], port: int, *, log: Path, cores: set[int], constant: bool = False, lists: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.port, self.constant, self.lists = name, port, constant, lists
        self.ready_s = 0.0
        """From its start until it took a connection."""
        self._log = log
        self._cores = cores
        self._command = [str(word) for word in command]

    def __enter__(self) -> Self:
        began = time.perf_counter()
        with self._log.open("w") as log, on_cores(self._cores):
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._await()
            self.ready_s = time.perf_counter() - began
            self.rest()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _await(self) -> None:
        end = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < end:
            if self._process.poll() is not None:
                break
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.005)
        raise Failed(f"{self.name} does not serve on port {self.port}: {self._log.read_text()[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = self.pids
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        for pid in pids:
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self._process.pid:  # still one of its own
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def rest(self) -> None:
        """Wait until the server has finished its work, without requests."""
        began = time.perf_counter()
        while time.perf_counter() < began + PATIENCE_S:
            before = sum(map(_processor_s, self.pids))
            time.sleep(IDLE_S)
            if sum(map(_processor_s, self.pids)) - before < IDLE_SHARE * IDLE_S:
                return
        raise Failed(f"{self.name} does not come to rest")

    @property
    def pids(self) -> list[int]:
        """Return the server's process and its descendants."""
        found = [self._process.pid]
        for pid in found:
            with suppress(OSError):
                threads = Path(f"/proc/{pid}/task").iterdir()
                found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        return found

    @property
    def answering(self) -> list[int]:
        """Return a node's processes that answer; of another server, all."""
        named = [pid for pid in self.pids if Path(f"/proc/{pid}/comm").read_text().startswith("eir-answering")]
        return named or self.pids

    def log(self) -> str:
        """Return the output so far."""
        return self._log.read_text()


def _processor_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0  # it has ended


def redis_program() -> str:
    """The path of redis-server or valkey-server, which is installed if missing.

    Ends the program, with status 2, if that fails.
    """
    if (found := shutil.which("redis-server") or shutil.which("valkey-server")) is None:
        subprocess.run([Path(__file__).resolve().parent.parent / "setup", "--redis"], check=False)
        found = shutil.which("redis-server")
    if found is None:
        print("this needs redis-server or valkey-server", file=sys.stderr)
        raise SystemExit(2)
    return found


def floor(port: int, *, log: Path, cores: set[int]) -> Server:
    """Run the bare uvloop server (floor.py)."""
    command = [sys.executable, Path(__file__).with_name("floor.py"), str(port), REALM]
    return Server("floor", command, port, log=log, cores=cores, constant=True)


def echo() -> Start:
    """Run the C echo (echo.c)."""
    made = program("echo")

    def start(port: int, *, log: Path, cores: set[int]) -> Server:
        return Server("echo", [made, str(port), REALM], port, log=log, cores=cores)

    return start


def memory_mb(pid: int) -> dict[str, float]:
    """Return the memory of a process in MB (10^6 bytes): resident, proportional share (PSS), and private."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        name: round(value * 1.024e-3, 1)
        for name, value in (("resident", kib["Rss"]), ("share", kib["Pss"]), ("own", own))
    }
