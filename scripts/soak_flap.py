"""A hundred peers that connect and disconnect for a minute while one asks steadily: no answer is wrong or late, and no resource of a lost peer remains.

Each of the hundred connects, asks or not, and leaves by DPR, by closing, by a reset, in the middle of a message or half-closed, again and
again. Afterwards descriptors, tasks and connections have their earlier numbers.
"""

import argparse
import asyncio
import time
from typing import Any

from parts import enter_sctp, report, seeded, site
from simulated.hostile import Steady, accounts, at_rest, beside, flap, memory_mb, settled
from simulated.node import LISTED


def main(arguments: list[str]) -> int:
    """Run the part `flap` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak flap", description=__doc__)
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--arrivals", type=int, default=0, help="minimum number of connections in all, also beyond the time"
    )
    parser.add_argument("--late", type=float, default=1.0, help="seconds after which an answer is late (1)")
    parser.add_argument(
        "--transport",
        choices=("tcp", "sctp"),
        default="tcp",
        help="sctp: in a kernel of scripts/sctp if this kernel has none",
    )
    if "sctp" in arguments:
        enter_sctp()
    options = seeded(parser, arguments)
    with site() as host:
        host.load([LISTED])
        host.configure(
            listen=[f"{options.transport}://127.0.0.1:0"], limits={"source_unidentified_max": options.peers + 8}
        )
        return report(asyncio.run(_soak(host.start(), options)))


async def _soak(node: Any, options: argparse.Namespace) -> list[str]:
    before, memory, steady = at_rest(node), memory_mb(node.pid), Steady()
    async with beside(node, steady):
        began = time.monotonic()
        came = await flap(node, options.peers, options.seconds, options.seed, arrivals=options.arrivals)
        took = time.monotonic() - began
    await settled(node, before)
    incoming, outgoing, drops, own = accounts(node)
    print(f"{options.peers} peers came {came:,} times in {took:.0f} s; memory {memory_mb(node.pid) - memory:+.1f} MB")
    print(
        f"descriptors {before[0].total()} and tasks {before[1]} as before; {incoming:,.0f} in, {outgoing:,.0f} answered, {drops:,.0f} dropped"
    )
    for line in steady.lines():
        print(line)
    promises = (
        ("the steady peer's answers are right", not steady.wrong),
        (f"none is later than {options.late:g} s", max(steady.answer_s + steady.watchdog_s) < options.late),
        ("messages in = answers out + drops", outgoing + drops <= incoming <= outgoing + drops + own),
        (
            "no fault of the node's own",
            "reason=internal" not in node.get("/metrics")[1] and "Traceback" not in node.text(),
        ),
    )
    return [promise for promise, kept in promises if not kept]
