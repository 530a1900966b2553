"""Load of a release, against Python's `csv` module.

For each form of file: the stages, the time from verification to switch, the peak memory (VmHWM of a process that only loads), and the
load's time divided by that of csv.reader. Loads and csv runs take turns, each in a process of its own on the same core; the ratio is
the median over the turns.
"""

import asyncio
import csv
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RATIO_MAX, PEAK_MB_MAX = 1.5, 1000
ROWS, QUICK_ROWS, PART_ROWS = 10_000_000, 20_000, 500_000
STAGES = ("verify", "digest", "read", "build", "write")
SHAPES = {
    "50k": (50_000, "imei", ""),
    "250k": (250_000, "imei", ""),
    "50k-reasons": (50_000, "imei,reason,date", ",stolen,20260101"),
}
"""Form of a file: distinct TACs over which the identifiers are scattered, header, and text after the identifier in each row."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `load` of scripts/bench, and its child processes."""
    if arguments and arguments[0] in CHILDREN:
        print(json.dumps(CHILDREN[arguments[0]](Path(arguments[1]))))
        return 0
    from benchmark.measure import at_most, begin, finish, own_options, say  # noqa: PLC0415  # the csv process needs none of it
    from benchmark.site import Site  # noqa: PLC0415  # as above

    from eir.cli.output import table  # noqa: PLC0415  # as above

    own = own_options()
    own.add_argument("--rows", type=int, default=ROWS)
    own.add_argument(
        "--work", type=Path, help="folder for the files, about 40 bytes per row (default: a temporary folder)"
    )
    options, _, how = begin("load", __doc__, arguments, own)
    rows = QUICK_ROWS if options.quick else options.rows
    measured, targets = [], []
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as folder:
            site = Site(Path(folder) / "site")
            say(f"{name}: writing {rows:,} rows")
            _write(site.folder / "data.csv", *shape, rows)
            site.release(site.folder / "data.csv")
            csv_s, loads = [], []
            for turn in range(how.turns):
                csv_s.append(_child("csv", site.folder / "data.csv")["seconds"])
                loads.append(_child("load", site.folder))
                say(f"{name}: turn {turn + 1}: csv {csv_s[-1]:.2f} s, load {loads[-1]['seconds']:.2f} s")
        ratio = round(
            statistics.median(load["seconds"] / seconds for load, seconds in zip(loads, csv_s, strict=True)), 3
        )
        stages = {stage: round(statistics.median(load["stages"][stage] for load in loads), 2) for stage in STAGES}
        measured.append({
            "file": name, "rows": rows, **stages, "load_s": round(statistics.median(load["seconds"] for load in loads), 2),
            "csv_s": round(statistics.median(csv_s), 2), "ratio": ratio, "peak_mb": round(max(load["peak_mb"] for load in loads)),
        })  # fmt: skip
        targets += [
            at_most(f"{name}: time of a load, as a multiple of csv.reader's", RATIO_MAX, ratio),
            at_most(f"{name}: peak memory", PEAK_MB_MAX * max(rows / ROWS, 1), measured[-1]["peak_mb"], " MB"),
        ]
    text = table(measured, tuple(measured[0]), width=None)
    return finish("load", {"measured": measured}, targets, options, text)


def _write(path: Path, tac_count: int, header: str, text: str, rows: int) -> None:
    """Write scattered identifiers in no order, the same ones each time."""
    rng = np.random.default_rng(14)
    tacs = rng.choice(98_000_000, tac_count, replace=False) + 1_000_000
    tail = np.frombuffer(f"{text}\n".encode(), np.uint8)
    with path.open("wb") as file:
        file.write(f"{header}\n".encode())
        for first in range(0, rows, PART_ROWS):
            count = min(PART_ROWS, rows - first)
            keys = tacs[rng.integers(0, tac_count, count)] * 1_000_000 + rng.integers(0, 1_000_000, count)
            lines = np.empty((count, 14 + len(tail)), np.uint8)
            for column in range(13, -1, -1):
                keys, lines[:, column] = keys // 10, keys % 10 + ord("0")
            lines[:, 14:] = tail
            file.write(lines.tobytes())


def _child(role: str, path: Path) -> dict[str, Any]:
    """Return the JSON report of a child process on the last core."""
    core = max(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, __file__, role, path]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


# ---- in the child processes ----


def _csv(path: Path) -> dict[str, Any]:
    began = time.perf_counter()
    with path.open(newline="") as file:
        for _row in csv.reader(file):
            pass
    return {"seconds": time.perf_counter() - began}


def _load(folder: Path) -> dict[str, Any]:
    from eir.lists.changes.release_load import ReleaseLoader  # noqa: PLC0415  # the csv process needs none of it
    from eir.lists.record.settings import ListSettings  # noqa: PLC0415  # as above
    from eir.lists.stores.open import SQLITE, open_store  # noqa: PLC0415  # as above

    importlib.import_module("eir.lists.rows.reader")  # the csv process's clock does not see its imports either

    (manifest,) = folder.glob("*.manifest.json")
    name = manifest.name.rpartition("-")[0]

    async def load() -> dict[str, Any]:
        store = open_store(SQLITE, folder / "state")
        lists = {name: ListSettings(name=name, signers=folder / "signers")}
        began = time.perf_counter()
        report = await ReleaseLoader(lists, store, "bench", datetime.now(UTC)).verify_and_load(manifest)
        seconds = time.perf_counter() - began
        await store.close()
        return {"seconds": seconds, "stages": dict(report.seconds)}

    result = asyncio.run(load())
    status = Path("/proc/self/status").read_text()
    shutil.rmtree(folder / "state")
    return result | {"peak_mb": int(status.partition("VmHWM:")[2].split()[0]) / 1024}


CHILDREN = {"csv": _csv, "load": _load}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
