"""Checks over Diameter at a steady rate, and what their latency is while clients over HTTP/1.1 are served by the same core."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from . import feeder
from .measure import Load, Times, ask, percentile
from .servers import Server, on_cores

DIAMETER = Load(4, 4096, 2_000.0, on_wire=True)
"""Latency counts on the wire, since the generator shares its core with the clients."""
BESIDE_FIRST = 100_000_000
"""The first device that is asked about beside checks: others than alone, so that each is a new one."""
MARGIN_S = 2.0


class Clients(NamedTuple):
    """Clients of an interface of the node, by benchmark.feeder."""

    url: str
    connections: int
    out: Path
    """The file for the answers that they get."""
    on: set[int]
    more: Sequence[Path] = ()
    """The file with their token, where they have one."""

    def asking(self, rate: float, seconds: float, first: int = 0) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """They ask so many times a second, or as often as they are answered (0)."""
        words = [feeder.__file__, self.url, self.connections, rate, seconds, first, self.out, *self.more]
        with on_cores(self.on):
            return subprocess.Popen([sys.executable, *map(str, words)], stdin=subprocess.DEVNULL)

    def answered(self, rate: float, seconds: float) -> dict[str, Any]:
        """The answers that they get meanwhile."""
        with self.asking(rate, seconds) as clients:
            clients.wait()
        return dict(json.loads(self.out.read_text()))


def p99_us(eir: Server, questions: Path, how: Times, on: set[int]) -> float:
    """The 99th percentile of a check's latency."""
    found = ask(eir, DIAMETER, questions, how, on)
    if faults := sum(found["errors"].values()):
        raise RuntimeError(f"{faults} answers over Diameter were wrong")
    return percentile("p99")(found)


def p99_beside_us(eir: Server, questions: Path, how: Times, clients: Clients, rate: float) -> float:
    """The same while clients ask so many times a second, or as often as they are answered (0)."""
    with clients.asking(rate, how.seconds + how.warmup + MARGIN_S, BESIDE_FIRST) as asking:
        try:
            return p99_us(eir, questions, how, clients.on)
        finally:
            asking.terminate()
