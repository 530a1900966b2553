"""Load of ten million entries while a client keeps asking: no answer is wrong or missing, watchdogs are in time, and no step of the load holds the event loop for more than 20 ms."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from simulated.node import Publisher, Site
from simulated.traffic import lists_of, load_beside_traffic, write_list

SLICE_MS = 20.0
WATCHDOG_S = 2.0
IN_FORCE_S = 3.0


def main(arguments: list[str]) -> int:
    """Publish two lists, load the first, serve, load the second beside traffic, and report."""
    parser = argparse.ArgumentParser(prog="soak load", description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000, help="number of entries of each list (10 million)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the lists (default: the time)")
    options = parser.parse_args(arguments)
    print(f"{options.entries:,} entries, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            old, new = lists_of(options.entries, options.seed)
            manifests = []
            for serial, keys in enumerate((old, new), 1):
                write_list(folder / f"data-{serial}.csv", keys)
                manifests.append(site.release(folder / f"data-{serial}.csv", serial=serial))
            site.configure(policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]})
            site.eir("load", manifests[0])
            figures = asyncio.run(load_beside_traffic(site, site.start(), manifests[1], old, new))
    for line in figures.lines():
        print(line)
    broken = [
        promise
        for promise, kept in (
            (f"no wrong answer: {figures.wrong[:5]}", not figures.wrong),
            (f"no refused connection: {figures.refused[:5]}", not figures.refused),
            (f"watchdogs answered within {WATCHDOG_S} s", max(figures.watchdog_s) < WATCHDOG_S),
            (f"in force within {IN_FORCE_S} s", figures.in_force_s < IN_FORCE_S),
            (f"no slice over {SLICE_MS} ms", figures.slice_ms < SLICE_MS),
        )
        if not kept
    ]
    for promise in broken:
        print(f"not kept: {promise}", file=sys.stderr)
    return 1 if broken else 0
