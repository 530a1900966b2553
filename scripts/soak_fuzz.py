"""A million fuzzed messages and ten thousand fuzzed sessions: the node lives, does not grow, and a good peer beside them notices nothing.

All messages are mutated from good ones, by a seed that is printed. Memory is that of all processes of the node, before and after, both
with nobody connected.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hostile import (
    Fuzzed,
    Steady,
    accounts,
    at_rest,
    beside,
    fuzz_messages,
    fuzz_sessions,
    memory_mb,
    seconds_of_processor,
    settled,
)
from node import LISTED, Publisher, Site
from parts import enter_sctp

MESSAGES, SESSIONS = 1_000_000, 10_000
GROWTH_MB = 10.0
WATCHDOG_S = 6.0
"""RFC 3539 3.4.1: no Tw is lower."""
WARM_UP = 0.05
"""So much of it all comes before memory is looked at: tables of the interpreter and of the allocator find their size."""
IDLE_S, IDLE_SHARE = 1.0, 0.2
"""Once everybody has left the node computes next to nothing."""


def main(arguments: list[str]) -> int:
    """The part `fuzz` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, help="1,000,000; over SCTP 100,000, in pieces cut anywhere")
    parser.add_argument("--sessions", type=int, help="10,000; over SCTP 1,000")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the mutations; chance if not given")
    parser.add_argument(
        "--transport",
        choices=("tcp", "sctp"),
        default="tcp",
        help="sctp: in a kernel of scripts/sctp where this one has none",
    )
    options = parser.parse_args(arguments)
    if options.transport == "sctp":
        enter_sctp()
    share = 10 if options.transport == "sctp" else 1
    options.messages = MESSAGES // share if options.messages is None else options.messages
    options.sessions = SESSIONS // share if options.sessions is None else options.sessions
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            site.load([LISTED])
            site.configure(listen=[f"{options.transport}://127.0.0.1:0"], workers=options.workers)
            broken = asyncio.run(_soak(site.start(), options))
    for promise in broken:
        print(f"not kept: {promise}", file=sys.stderr)
    return 1 if broken else 0


async def _soak(node: Any, options: argparse.Namespace) -> list[str]:
    before = at_rest(node)
    await fuzz_messages(node, int(WARM_UP * options.messages), f"{options.seed}/warm", Fuzzed())
    await fuzz_sessions(node, int(WARM_UP * options.sessions), f"{options.seed}/warm", Fuzzed())
    await settled(node, before)
    memory, began, read = memory_mb(node.pid), time.perf_counter(), accounts(node)[0]
    found, steady = Fuzzed(), Steady()
    async with beside(node, steady):
        await fuzz_messages(node, options.messages, options.seed, found)
        read = accounts(node)[0] - read
        await fuzz_sessions(node, options.sessions, options.seed, found)
    took = time.perf_counter() - began
    await settled(node, before)
    grown, (incoming, outgoing, drops, own) = memory_mb(node.pid) - memory, accounts(node)
    computed = seconds_of_processor(node.pid)
    await asyncio.sleep(IDLE_S)
    idle = (seconds_of_processor(node.pid) - computed) / IDLE_S
    print(
        f"{found.messages:,} fuzzed messages on {found.connections:,} connections, {found.answers:,} answers; {found.sessions:,} fuzzed sessions; "
        f"{took:.0f} s"
    )
    print(
        f"the node read {read:,.0f} messages meanwhile; in all {incoming:,.0f} in, {outgoing:,.0f} answered, {drops:,.0f} dropped"
    )
    print(f"memory {memory:.1f} MB before, {grown:+.1f} MB after; computing {idle:.0%} of the time with nobody there")
    for line in steady.lines():
        print(line)
    promises = (
        ("the good peer's answers are right", not steady.wrong),
        (f"each DWA within {WATCHDOG_S:g} s", max(steady.watchdog_s) < WATCHDOG_S),
        (f"memory within {GROWTH_MB:g} MB", grown <= GROWTH_MB),
        ("no spinning", idle < IDLE_SHARE),
        ("most of what is sent is read", read > 0.9 * found.messages),
        ("messages in = answers out + drops", outgoing + drops <= incoming <= outgoing + drops + own),
        (
            "no fault of the node's own",
            "reason=internal" not in node.get("/metrics")[1] and "Traceback" not in node.text(),
        ),
    )
    return [promise for promise, kept in promises if not kept]
