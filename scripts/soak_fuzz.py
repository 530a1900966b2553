"""Fuzzed messages and sessions of one protocol (--protocol): the node stays alive, does not grow, and a good client beside them notices nothing.

All messages are mutations of good ones, by a seed that is printed. Over MAP and GSUP each has one wrong layer, and good layers below it;
over GSUP the node forwards messages that are no check to an HLR. Memory is that of all processes of the node, before and after, both
without connections.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from parts import enter_sctp, report, seeded, site
from simulated import hostile_msc, hostile_osmo
from simulated.hostile import (
    Fuzzed,
    Fuzzer,
    S13Fuzzer,
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
from simulated.node import LISTED, Site
from simulated.osmo_wire import Hlr
from simulated.servers import free_port

WATCHDOG_S = 6.0
"""Shortest Tw that RFC 3539 3.4.1 permits."""
ANSWER_S = 5.0
"""Time for which an MSC waits for an answer."""
WARM_UP = 0.05
"""Share of the messages before the first measurement of memory: tables of interpreter and allocator reach their size."""
IDLE_S, IDLE_SHARE = 1.0, 0.2
"""An idle node uses at most this share of the processor in this time."""


class Protocol(NamedTuple):
    """Protocol, and the usual number of its messages."""

    fuzzer: Callable[[Site, argparse.Namespace], AbstractAsyncContextManager[Fuzzer]]
    steady: Callable[[], Any]
    messages: int
    sessions: int
    answered: float
    """Minimum share of answered messages: these reached the check."""
    growth_mb: float = 10.0


@asynccontextmanager
async def _s13(site: Site, options: argparse.Namespace) -> AsyncIterator[Fuzzer]:
    site.configure(listen=[f"{options.transport}://127.0.0.1:0"])
    yield S13Fuzzer(site.start())


@asynccontextmanager
async def _map(site: Site, _: argparse.Namespace) -> AsyncIterator[Fuzzer]:
    where = "127.0.0.1", free_port()
    site.configure(ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{where[1]}"]})
    yield hostile_msc.MapFuzzer(site.start(), where)


@asynccontextmanager
async def _gsup(site: Site, _: argparse.Namespace) -> AsyncIterator[Fuzzer]:
    where, hlr = ("127.0.0.1", free_port()), await Hlr(hostile_osmo.accepted).start()
    gsup = {"listen": f"tcp://127.0.0.1:{where[1]}", "hlr": f"tcp://127.0.0.1:{hlr.port}"}
    site.configure(gsup=gsup, peers=[{"name": "msc", "from": ["127.0.0.0/8"]}])
    try:
        yield hostile_osmo.GsupFuzzer(site.start(), where)
    finally:
        await hlr.stop()


PROTOCOLS = {
    "s13": Protocol(_s13, Steady, 1_000_000, 10_000, 0.1),
    "map": Protocol(_map, hostile_msc.Steady, 300_000, 3_000, 0.1),
    "gsup": Protocol(_gsup, hostile_osmo.Steady, 300_000, 3_000, 0.1, growth_mb=20.0),
}
"""Over GSUP each session has a connection to the HLR, which ends when the HLR has read all; their number at one time is random."""


def main(arguments: list[str]) -> int:
    """Run the part `fuzz` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak fuzz", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="s13")
    parser.add_argument(
        "--messages",
        type=int,
        help="number: 1,000,000 (map, gsup: 300,000); over SCTP a tenth, in pieces of random length",
    )
    parser.add_argument("--sessions", type=int, help="number of sessions: 10,000 (map, gsup: 3,000); over SCTP a tenth")
    parser.add_argument(
        "--transport",
        choices=("tcp", "sctp"),
        default="tcp",
        help="of s13; sctp: in a kernel of scripts/sctp if this kernel has none",
    )
    if "sctp" in arguments:
        enter_sctp()
    options = seeded(parser, arguments)
    if options.transport == "sctp" and options.protocol != "s13":
        parser.error("--transport goes with --protocol s13")
    protocol, share = PROTOCOLS[options.protocol], 10 if options.transport == "sctp" else 1
    options.messages = protocol.messages // share if options.messages is None else options.messages
    options.sessions = protocol.sessions // share if options.sessions is None else options.sessions
    with site() as host:
        host.load([LISTED])
        return report(asyncio.run(_soak(host, protocol, options)))


async def _soak(site: Site, protocol: Protocol, options: argparse.Namespace) -> list[str]:
    async with protocol.fuzzer(site, options) as fuzzer:
        node = fuzzer.node
        before = at_rest(node)
        await fuzz_messages(fuzzer, int(WARM_UP * options.messages), f"{options.seed}/warm", Fuzzed())
        await fuzz_sessions(fuzzer, int(WARM_UP * options.sessions), f"{options.seed}/warm", Fuzzed())
        await settled(node, before)
        memory, began, read = memory_mb(node.pid), time.perf_counter(), accounts(node)[0]
        found, steady = Fuzzed(), protocol.steady()
        async with beside(fuzzer.where, steady):
            await fuzz_messages(fuzzer, options.messages, options.seed, found)
            read = accounts(node)[0] - read
            await fuzz_sessions(fuzzer, options.sessions, options.seed, found)
        took = time.perf_counter() - began
        await settled(node, before)
        grown, computed = memory_mb(node.pid) - memory, seconds_of_processor(node.pid)
        await asyncio.sleep(IDLE_S)
        idle = (seconds_of_processor(node.pid) - computed) / IDLE_S
        print(
            f"{found.messages:,} fuzzed messages on {found.connections:,} connections, {found.answers:,} answers; {found.sessions:,} fuzzed sessions; "
            f"{took:.0f} s"
        )
        print(
            f"memory {memory:.1f} MB before, {grown:+.1f} MB after; computing {idle:.0%} of the time with nobody there"
        )
        for line in steady.lines():
            print(line)
        promises = [
            ("the good client's answers are right", not steady.wrong),
            (f"each answer within {ANSWER_S:g} s", steady.waited_s < ANSWER_S),
            (f"memory within {protocol.growth_mb:g} MB", grown <= protocol.growth_mb),
            ("no spinning", idle < IDLE_SHARE),
            ("what is fuzzed comes through", found.answers > protocol.answered * found.messages),
            (
                "no fault of the node's own",
                not node.lines("fault")
                and "reason=internal" not in node.get("/metrics")[1]
                and "Traceback" not in node.text(),
            ),
        ]
        if isinstance(steady, Steady):
            promises += _of_s13(node, steady, found, read)
    return [promise for promise, kept in promises if not kept]


def _of_s13(node: Any, steady: Steady, found: Fuzzed, read: float) -> list[tuple[str, bool]]:
    """Return the promises of a node that counts each message; `read`: number of messages that it read during fuzzing."""
    incoming, outgoing, drops, own = accounts(node)
    print(
        f"the node read {read:,.0f} messages meanwhile; in all {incoming:,.0f} in, {outgoing:,.0f} answered, {drops:,.0f} dropped"
    )
    return [
        (f"each DWA within {WATCHDOG_S:g} s", max(steady.watchdog_s) < WATCHDOG_S),
        ("most of what is sent is read", read > 0.9 * found.messages),
        ("messages in = answers out + drops", outgoing + drops <= incoming <= outgoing + drops + own),
    ]
