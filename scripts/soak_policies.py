"""Random policies on a running node, while lists change and rows end: each answer is that of a model of policy and rows.

Releases, deltas, commands and rollbacks change the lists; the node restarts, and Redis loses all its data. Questions follow at once
after each of these.
"""

import argparse
import asyncio

from benchmark.servers import redis_program
from parts import report, seeded, site
from simulated.random_policies import Run
from simulated.servers import Server


def main(arguments: list[str]) -> int:
    """Run the part `policies` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak policies", description=__doc__)
    parser.add_argument("--policies", type=int, default=400)
    parser.add_argument("--questions", type=int, default=1000, help="number of questions under each policy")
    options = seeded(parser, arguments)
    with Server(redis_program()) as server, site() as host:
        figures = asyncio.run(Run(host, options.seed, server).run(options.policies, options.questions))
    print(*figures.lines(), sep="\n")
    return report(figures.wrong)
