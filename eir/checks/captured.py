"""Checks that others made, as a capture file shows them, over any protocol; Wireshark's tshark reads it.

May import errors; what a message of a protocol says, the protocol's own folder knows.
"""

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from eir.errors import EirError, SetupFault

T = TypeVar("T")


@dataclass(slots=True)
class Captured:
    """The checks in a capture, and the nodes that it shows."""

    checks: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(identifier as it was sent, who asked, status or result or `none`) → how many."""
    asking: set[str] = field(default_factory=set)
    """Nodes that asked, and nodes over whose connection some questions came: an agent carries those of others."""
    known: set[str] = field(default_factory=set)
    """Nodes that were there, and might have asked."""


def by_tshark(capture: Path, arguments: Sequence[str], take: Callable[[IO[bytes]], T | None]) -> T:
    """Return what `take` makes of tshark's output for a capture file (pcap, pcapng); None if that output is invalid.

    Raises SetupFault without tshark, EirError if it cannot read the file.
    """
    if (tshark := shutil.which("tshark")) is None:
        raise SetupFault("a capture is read by tshark, which is not installed: apt-get install tshark")
    if not capture.is_file():
        raise EirError(f"{capture}: no such file")
    command = [tshark, "-n", "-r", str(capture), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018  # as they are asked for
        found = take(process.stdout)
        said = process.stderr.read().decode(errors="replace").strip()
    if found is None or process.returncode:
        raise EirError(f"tshark cannot read {capture}: {said.splitlines()[-1] if said else 'it gave no document'}")
    return found
