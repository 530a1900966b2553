"""A follower of Redis for a minute of random changes and faults: at the end its lists equal an index that was built from scratch."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from benchmark.servers import redis_program
from simulated.churn import churn
from simulated.servers import Server


def main(arguments: list[str]) -> int:
    """Start a redis-server, change lists at random while a follower applies the changes, and compare."""
    parser = argparse.ArgumentParser(prog="soak follow", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the changes (default: the time)")
    options = parser.parse_args(arguments)
    print(f"{options.seconds:g} s, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as folder, Server(redis_program()) as server:
        figures = asyncio.run(churn(server, Path(folder), seconds=options.seconds, seed=options.seed))
    print(
        f"{figures.changes} changes, {figures.faults} faults, {figures.switches} switches; {figures.entries:,} entries in the end"
    )
    for wrong in figures.wrong:
        print(f"not kept: {wrong}", file=sys.stderr)
    return 1 if figures.wrong else 0
