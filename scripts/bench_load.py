"""Load of a release, against Python's `csv` module.

For each form of file: the stages, the time from verification to switch, the peak memory (VmHWM of a process that only loads), and the
load's time divided by that of csv.reader. Loads and csv runs take turns, each in a process of its own on the same core; the ratio is
the median over the turns. Exit status 1 if a ratio or the peak is over its limit.
"""

import argparse
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATIO_MAX = 1.5
PEAK_MB_MAX = 1000
"""Maximum peak memory in MB for ten million rows."""
ROWS, QUICK_ROWS = 10_000_000, 20_000
PART_ROWS = 500_000
LIST = "bench"
STAGE_COLUMNS = ("verify", "digest", "read", "build", "write")


class Shape(NamedTuple):
    """Form of a file."""

    tacs: int
    """Distinct TACs over which the identifiers are scattered."""
    header: str
    tail: str
    """Text after the identifier in each row."""


SHAPES = {
    "50k": Shape(50_000, "imei", ""),
    "250k": Shape(250_000, "imei", ""),
    "50k-reasons": Shape(50_000, "imei,reason,date", ",stolen,20260101"),
}


def main(arguments: Sequence[str]) -> int:
    """Run the part `load` of scripts/bench, and its child processes."""
    if arguments and arguments[0] in CHILDREN:
        CHILDREN[arguments[0]](*map(Path, arguments[1:]))
        return 0
    parser = argparse.ArgumentParser(
        prog="bench load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this one (default: all)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument(
        "--work", type=Path, help="folder for the files, about 40 bytes per row (default: a temporary folder)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROWS:,} rows, one turn: tests that it works; the figures are not valid",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.turns = QUICK_ROWS, 1
    found = []
    for name in options.shape or SHAPES:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as folder:
            found.append(_measure(name, Path(folder), options))
        if not options.json:
            _print(found[-1], first=len(found) == 1)
    if options.json:
        print(json.dumps(found, indent=1))
    if options.rows < ROWS:
        print(
            f"the limits are for {ROWS:,} rows and more: starting a load up costs the same for fewer", file=sys.stderr
        )
        return 0
    return int(any(result["ratio"] > RATIO_MAX or result["peak_mb"] > result["peak_mb_max"] for result in found))


def _measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{name}: writing {options.rows:,} rows", file=sys.stderr)
    data = folder / "data.csv"
    _write(data, SHAPES[name], options.rows)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "signers").write_text(f"bench {(folder / 'key.pub').read_text()}")
    _child("publish", folder, core=options.core)
    csv_s, loads = [], []
    for turn in range(options.turns):
        csv_s.append(_child("csv", data, core=options.core)["seconds"])
        loads.append(_child("load", folder, core=options.core))
        print(f"{name}: turn {turn + 1}: csv {csv_s[-1]:.2f} s, load {loads[-1]['seconds']:.2f} s", file=sys.stderr)
    ratios = [load["seconds"] / seconds for load, seconds in zip(loads, csv_s, strict=True)]
    return {
        "shape": name,
        "rows": options.rows,
        "entries": loads[0]["entries"],
        "stages_s": {stage: _median(load["stages"][stage] for load in loads) for stage in STAGE_COLUMNS},
        "load_s": _median(load["seconds"] for load in loads),
        "csv_s": _median(csv_s),
        "ratio": _median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "peak_mb": max(load["peak_mb"] for load in loads),
        "peak_mb_max": round(PEAK_MB_MAX * max(options.rows / ROWS, 1)),
    }


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def _print(result: dict[str, Any], *, first: bool) -> None:
    if first:
        stages = "".join(f"{stage:>8}" for stage in STAGE_COLUMNS)
        print(f"{'file':<12}{'rows':>12}{stages}{'load s':>9}{'csv s':>8}{'ratio':>7}{'peak MB':>9}   ratios")
    stages = "".join(f"{result['stages_s'][stage]:>8.2f}" for stage in STAGE_COLUMNS)
    sums = f"{result['load_s']:>9.2f}{result['csv_s']:>8.2f}{result['ratio']:>7.2f}{result['peak_mb']:>9.0f}"
    print(
        f"{result['shape']:<12}{result['rows']:>12,}{stages}{sums}   {result['ratios']}",
        flush=True,
    )


def _write(path: Path, shape: Shape, rows: int) -> None:
    """Write scattered identifiers in no order, the same ones each time."""
    rng = np.random.default_rng(14)
    tacs = rng.choice(98_000_000, shape.tacs, replace=False) + 1_000_000
    tail = np.frombuffer(f"{shape.tail}\n".encode(), np.uint8)
    with path.open("wb") as file:
        file.write(f"{shape.header}\n".encode())
        for first in range(0, rows, PART_ROWS):
            count = min(PART_ROWS, rows - first)
            keys = tacs[rng.integers(0, shape.tacs, count)] * 1_000_000 + rng.integers(0, 1_000_000, count)
            lines = np.empty((count, 14 + len(tail)), np.uint8)
            for column in range(13, -1, -1):
                keys, lines[:, column] = keys // 10, keys % 10 + ord("0")
            lines[:, 14:] = tail
            file.write(lines.tobytes())


def _child(role: str, path: Path, *, core: int) -> dict[str, Any]:
    """Return the JSON report of a child process on that core."""
    done = subprocess.run(
        [sys.executable, __file__, role, path],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if role == "publish" else None,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return dict(json.loads(done.stdout))


# ---- in the child processes ----


def _csv(path: Path) -> None:
    began = time.perf_counter()
    with path.open(newline="") as file:
        for _row in csv.reader(file):
            pass
    print(json.dumps({"seconds": time.perf_counter() - began}))


def _publish(folder: Path) -> None:
    from eir.lists.releases.publish import ReleaseSpec, publish  # noqa: PLC0415  # the csv process needs none of it

    now = datetime.now(UTC)
    times = {"issued": now - timedelta(seconds=1), "expires": now + timedelta(days=1)}
    spec = ReleaseSpec(list=LIST, serial=1, keys=(folder / "key",), files=(folder / "data.csv",), **times)
    manifest = publish(spec).manifest
    print(json.dumps({"manifest": str(manifest)}))


def _load(folder: Path) -> None:
    from eir.lists.changes.release_load import ReleaseLoader  # noqa: PLC0415  # as above
    from eir.lists.record.settings import ListSettings  # noqa: PLC0415  # as above
    from eir.lists.stores.open import SQLITE, open_store  # noqa: PLC0415  # as above

    importlib.import_module("eir.lists.rows.reader")  # the csv process's clock does not see its imports either

    async def load() -> dict[str, Any]:
        store = open_store(SQLITE, folder / "state")
        lists = {LIST: ListSettings(name=LIST, signers=folder / "signers")}
        began = time.perf_counter()
        loader = ReleaseLoader(lists, store, "bench", datetime.now(UTC))
        report = await loader.verify_and_load(folder / f"{LIST}-1.manifest.json")
        seconds = time.perf_counter() - began
        await store.close()
        return {"seconds": seconds, "stages": dict(report.seconds), "entries": report.entries}

    result = asyncio.run(load())
    status = Path("/proc/self/status").read_text()
    result["peak_mb"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    shutil.rmtree(folder / "state")
    print(json.dumps(result))


CHILDREN = {"csv": _csv, "publish": _publish, "load": _load}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
