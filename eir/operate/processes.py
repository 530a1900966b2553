"""A node's processes as the kernel reports them: memory, processor time, open files.

May read /proc, and knows no process of ours.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from eir.operate import metrics

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
"""Units per second in which the kernel counts processor time."""
PREFIX = "eir-"
"""Prefix of the names of child processes, see daemon/starter.py."""
_OPEN_MAX = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


class Usage(NamedTuple):
    """Resources that one process uses."""

    resident_bytes: int
    """Shared memory included, which each of the processes that share it shows."""
    cpu_s: float
    """Processor time since its start, the kernel's for it included."""
    open_files: int
    open_files_max: int | None
    """None: there is no limit."""


def snapshot(first: int) -> metrics.Snapshot:
    """Return the result of `usage` as metrics."""
    used = usage(first)
    return {
        "eir_process_resident_memory_bytes": metrics.by_label(
            {name: each.resident_bytes for name, each in used.items()}
        ),
        "eir_process_cpu_seconds_total": metrics.by_label({name: each.cpu_s for name, each in used.items()}),
        "eir_process_open_fds": metrics.by_label({name: each.open_files for name, each in used.items()}),
        "eir_process_max_fds": metrics.by_label(
            {name: each.open_files_max for name, each in used.items() if each.open_files_max}
        ),
    }


def usage(first: int) -> Mapping[str, Usage]:
    """Return what a process and its children use, by name: `front` is the first one.

    One that ends meanwhile is left out.
    """
    found: dict[str, Usage] = {}
    with suppress(OSError):
        found["front"] = _usage(first)
    with suppress(OSError):
        for thread in Path(f"/proc/{first}/task").iterdir():
            for child in (thread / "children").read_text().split():
                with suppress(OSError):
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    if name.startswith(PREFIX):
                        found[name.removeprefix(PREFIX)] = _usage(int(child))
    return found


def _usage(pid: int) -> Usage:
    folder = Path(f"/proc/{pid}")
    after_name = (folder / "stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    utime, stime, resident_pages = int(after_name[11]), int(after_name[12]), int(after_name[21])
    limit = _OPEN_MAX.search((folder / "limits").read_text())
    return Usage(
        resident_pages * PAGE_BYTES,
        (utime + stime) / TICKS,
        sum(1 for _ in (folder / "fd").iterdir()),
        int(limit[1]) if limit else None,
    )
