"""Random policies on a running node, while lists change and rows end: each answer is that of a model of policy and rows.

Releases, deltas, commands and rollbacks change the lists; the node restarts, and Redis loses all its data. Questions follow at once
after each of these.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from benchmark.servers import redis_program
from simulated.node import Publisher, Site
from simulated.random_policies import Run
from simulated.servers import Server


def main(arguments: list[str]) -> int:
    """Run the part `policies` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak policies", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--policies", type=int, default=400)
    parser.add_argument("--questions", type=int, default=1000, help="number of questions under each policy")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of all random values (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name, Server(redis_program()) as server:
        folder = Path(name)
        (folder / "publisher").mkdir()
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            figures = asyncio.run(Run(site, options.seed, server).run(options.policies, options.questions))
    for line in figures.lines():
        print(line)
    for wrong in figures.wrong[:10]:
        print(f"not kept: {wrong}", file=sys.stderr)
    return 1 if figures.wrong else 0
