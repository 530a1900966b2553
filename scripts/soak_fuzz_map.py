"""Fuzzed MSCs, wrong in M3UA, SCCP or TCAP: the node lives, does not grow, and a good MSC beside them notices nothing.

All messages are mutated from good ones, by a seed that is printed; each is wrong in one layer, and good below it. Memory is that of all
processes of the node, before and after, both with nobody connected.
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

from hostile import Fuzzed, at_rest, beside, memory_mb, seconds_of_processor, settled
from hostile_msc import Steady, fuzz_messages, fuzz_sessions
from node import LISTED, Publisher, Site
from servers import free_port

MESSAGES, SESSIONS = 300_000, 3_000
GROWTH_MB = 10.0
ANSWER_S = 1.0
WARM_UP = 0.05
"""So much of it all comes before memory is looked at: tables of the interpreter and of the allocator find their size."""
IDLE_S, IDLE_SHARE = 1.0, 0.2
"""Once everybody has left the node computes next to nothing."""
ANSWERED = 0.1
"""Least share of the fuzzed messages that an End or an Abort answers: these have come through to TCAP."""


def main(arguments: list[str]) -> int:
    """The part `fuzz-map` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak fuzz-map", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the mutations; chance if not given")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            site.load([LISTED])
            where = "127.0.0.1", free_port()
            site.configure(ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{where[1]}"]})
            broken = asyncio.run(_soak(site.start(), where, options))
    for promise in broken:
        print(f"not kept: {promise}", file=sys.stderr)
    return 1 if broken else 0


async def _soak(node: Any, where: tuple[str, int], options: argparse.Namespace) -> list[str]:
    before = at_rest(node)
    await fuzz_messages(where, int(WARM_UP * options.messages), f"{options.seed}/warm", Fuzzed())
    await fuzz_sessions(where, int(WARM_UP * options.sessions), f"{options.seed}/warm", Fuzzed())
    await settled(node, before)
    memory, began = memory_mb(node.pid), time.perf_counter()
    found, steady = Fuzzed(), Steady()
    async with beside(where, steady):
        await fuzz_messages(where, options.messages, options.seed, found)
        await fuzz_sessions(where, options.sessions, options.seed, found)
    took = time.perf_counter() - began
    await settled(node, before)
    grown, computed = memory_mb(node.pid) - memory, seconds_of_processor(node.pid)
    await asyncio.sleep(IDLE_S)
    idle = (seconds_of_processor(node.pid) - computed) / IDLE_S
    print(
        f"{found.messages:,} fuzzed messages on {found.connections:,} connections, {found.answers:,} answers; {found.sessions:,} fuzzed sessions; "
        f"{took:.0f} s"
    )
    print(f"memory {memory:.1f} MB before, {grown:+.1f} MB after; computing {idle:.0%} of the time with nobody there")
    for line in steady.lines():
        print(line)
    promises = (
        ("the good MSC's answers are right", not steady.wrong),
        (f"each answer within {ANSWER_S:g} s", max(steady.answer_s) < ANSWER_S),
        (f"memory within {GROWTH_MB:g} MB", grown <= GROWTH_MB),
        ("no spinning", idle < IDLE_SHARE),
        ("what is fuzzed comes through to TCAP", found.answers > ANSWERED * found.messages),
        ("no fault of the node's own", not node.lines("fault") and "Traceback" not in node.text()),
    )
    return [promise for promise, kept in promises if not kept]
