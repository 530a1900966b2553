"""Lists in memory: size, time until ready, look-up.

For each number of TACs one process fills a store. A second process does the work of a follower (from the store to an image) and of a
worker (look-ups, change to a new image). Meanwhile a third process loads a release with other identifiers, and the second process follows.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import uvloop
from simulated.follower import Node
from simulated.store_content import Lists

from eir.device import SNR_KEYS
from eir.lists.images.image import Image
from eir.lists.images.index import Index
from eir.lists.stores.open import open_store
from eir.lists.table.columns import rows_of
from eir.lists.table.table import Table, table_of

LIST = "bench"
QUICK_ENTRIES, QUICK_TACS = 100_000, 1_000
MODELS = 500
"""Different sets of serial numbers, which the TACs use in turn: drawing one for each TAC needs minutes and gives the same result."""
PROBES = 200_000
COLUMNS = {
    "entries": "entries", "tacs": "TACs", "image_mb": "MB", "follower_mb": "follower MB", "ready_s": "ready s", "hot_ns": "hot TACs ns",
    "cold_ns": "any TAC ns", "hit_ns": "hits ns", "miss_ns": "no TAC ns", "follow_s": "followed s", "longest_slice_ms": "longest slice ms",
}  # fmt: skip


def made(entries: int, tacs: int, seed: int) -> Table:
    """Return a table of scattered identifiers."""
    chosen = random.Random(seed)
    models = np.array([chosen.sample(range(SNR_KEYS), entries // tacs) for _ in range(MODELS)], "<u8")
    numbers = np.array(chosen.sample(range(10**8), tacs), "<u8")
    keys = numbers[:, None] * np.uint64(SNR_KEYS) + models[np.arange(tacs) % MODELS]
    return table_of(rows_of(keys.ravel()))


async def put(url: str, folder: Path, entries: int, tacs: int, seed: int) -> None:
    """Load a table as a full release."""
    store = open_store(url, folder)
    await Lists(store).load(made(entries, tacs, seed), seed, LIST)
    await store.close()


def resident_mb() -> float:
    """Return the resident memory of this process in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024 / 1e6


def time_of(index: Index, keys: list[int]) -> float:
    """Return nanoseconds of one look-up without the loop around it: the best of five turns."""
    entries, best = index.lists[LIST], float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _key in keys:
            pass
        empty = time.perf_counter() - begun
        begun = time.perf_counter()
        for key in keys:
            entries.holds(key)
        best = min(best, time.perf_counter() - begun - empty)
    return best / len(keys) * 1e9


async def both(url: str, folder: Path, entries: int, tacs: int) -> None:
    """Measure, and print the result as JSON."""
    store, switched = open_store(url, folder), asyncio.Event()
    await store.heads()
    node = Node(store, folder, {LIST: "devices"})
    node.on_switch, index, follower = switched.set, node.index, node.follower
    before, begun = resident_mb(), time.perf_counter()
    await follower.start()
    found: dict[str, float] = {"entries": entries, "tacs": tacs, "ready_s": time.perf_counter() - begun}
    worker = Index({LIST: "devices"})
    found["longest_slice_ms"] = 1e3 * taken_over(worker, index)
    chosen, held = random.Random(5), worker.lists[LIST]
    found["image_mb"] = 0.0 if held.image is None else len(held.image.buffer) / 1e6
    hits = list(islice(held, 0, None, max(1, entries // PROBES)))
    numbers = sorted({key // SNR_KEYS for key in hits})

    def in_tacs(some: list[int]) -> list[int]:
        return [chosen.choice(some) * SNR_KEYS + chosen.randrange(SNR_KEYS) for _ in range(PROBES)]

    found["hot_ns"] = time_of(worker, in_tacs(chosen.sample(numbers, 100)))
    found["cold_ns"] = time_of(worker, in_tacs(numbers))
    found["hit_ns"] = time_of(
        worker, [key + 1 - 1 for key in chosen.sample(hits, len(hits))]
    )  # objects as new as a request's
    found["miss_ns"] = time_of(worker, [chosen.randrange(10**14) for _ in range(PROBES)])
    del hits, numbers
    switched.clear()
    following = asyncio.create_task(follower.run())
    loader = await asyncio.create_subprocess_exec(*child("put", url, folder, entries, tacs, 2))
    await loader.wait()
    begun = time.perf_counter()
    await switched.wait()
    found["follow_s"] = time.perf_counter() - begun  # a small list is followed while the loader is still ending
    found["longest_slice_ms"] = max(found["longest_slice_ms"], 1e3 * taken_over(worker, index))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    found["follower_mb"] = resident_mb() - before
    await store.close()
    print(json.dumps(found))


def taken_over(worker: Index, index: Index) -> float:
    """Change to the content of another index, as a worker does; return the longest time in seconds that the event loop would stand still."""
    there = index.lists[LIST]
    if there.image is None or there.state is None:
        sys.exit("nothing is in force")

    begun = time.perf_counter()
    image = Image.map(os.dup(there.image.descriptor))
    longest = time.perf_counter() - begun
    before, done = worker.switch(LIST, there.state, image), 0
    while before is not None and done < len(before.buffer):
        begun = time.perf_counter()
        done = before.drop(done)
        longest = max(longest, time.perf_counter() - begun)
    return longest


def child(what: str, url: str, folder: Path, *numbers: int) -> list[str]:
    """Return the command line of a process that does one part."""
    return [sys.executable, __file__, what, url, str(folder), *map(str, numbers)]


def main(arguments: list[str]) -> int:
    """Measure each size and print a table; exit status 1 if a limit of the project is exceeded."""
    parser = argparse.ArgumentParser(prog="bench index", description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--tacs", type=int, nargs="+", default=[50_000, 250_000])
    parser.add_argument(
        "--store", default="sqlite", help="sqlite, or the URL of a Redis, whose data the bench overwrites"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ENTRIES:,} entries: tests that it works; the figures are not valid",
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.entries, chosen.tacs = QUICK_ENTRIES, [QUICK_TACS]
    rows = []
    for tacs in chosen.tacs:
        with tempfile.TemporaryDirectory(prefix="eir-bench-") as folder:
            subprocess.run(child("put", chosen.store, Path(folder), chosen.entries, tacs, 1), check=True)
            done = subprocess.run(
                child("both", chosen.store, Path(folder), chosen.entries, tacs),
                check=True,
                capture_output=True,
                text=True,
            )
        rows.append(json.loads(done.stdout))
    if chosen.json:
        print(json.dumps(rows))
    else:
        print("  ".join(f"{title:>{max(len(title), 10)}}" for title in COLUMNS.values()))
        for row in rows:
            shown = {name: f"{row[name]:,.0f}" if row[name] >= 1000 else f"{row[name]:.2f}" for name in COLUMNS}
            print("  ".join(f"{shown[name]:>{max(len(title), 10)}}" for name, title in COLUMNS.items()))
    within = all(row["image_mb"] <= row["entries"] / 100_000 and row["longest_slice_ms"] <= 20 for row in rows)
    return 0 if within or chosen.entries < 1_000_000 else 1


if __name__ == "__main__":
    url, where, numbers = sys.argv[2], Path(sys.argv[3]), [int(number) for number in sys.argv[4:]]
    uvloop.run(put(url, where, *numbers) if sys.argv[1] == "put" else both(url, where, *numbers))
