"""Accounts that add up, whatever comes over the sockets: messages in = answers out + drops by reason, and nothing is left afterwards.

Mixes of good messages, mutated ones and garbage, in pieces of any size, on connections that end in every way; by hypothesis against
a node in this process, and against `eir serve`.
"""

import asyncio
import contextlib
import gc
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.hostile import accounts, at_rest, settled
from simulated.mutations import Mutator, good_messages
from simulated.node import LISTED
from simulated.wire import EIR, REALM, Connection, cer, dpr, dwr, ecr, u32, until
from test_conformance import checker

from eir.interfaces.s13.application import s13_application
from eir.interfaces.s13.lane import COMPILED, ExpressLane, ExpressLanes
from eir.interfaces.s13.service import S13Service
from eir.wire.diameter.node import Identity, Limits, Node, PeerSettings
from eir.wire.peers.counts import Counts

IDENTITY = Identity(host=EIR, realm=REALM, origin_state_id=77)
QUICK = Limits(
    cer_timeout_s=0.1, partial_message_timeout_s=0.1, close_after_dpa_s=0.1, duplicate_probe_s=0.1, stalled_write_s=0.2
)
ENDS = ("half-closed", "closed", "aborted", "DPR", "left open")
GARBAGE = (
    b"",
    b"\0" * 40,
    b"\1\0\0\x13" + b"x" * 15,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\2" + ecr()[1:],
    b"\1\xff\xff\xfc",
    ecr()[:50],
)

CLOSING = {"message_length", "message_too_long", "version", "cer_timeout", "partial_message"}
"""Faults after which the node closes: what comes behind them is not read, and the kernel then resets the connection."""

seeds = st.integers(0, 2**32)
messages = st.one_of(
    st.sampled_from(good_messages()), st.sampled_from([cer(), dwr(), dpr()]), seeds.map(lambda seed: Mutator(seed).message()), st.sampled_from(GARBAGE)
)  # fmt: skip
visits = st.tuples(
    st.booleans(), st.lists(messages, max_size=8), st.sampled_from((1, 40, 500, 100_000)), st.sampled_from(ENDS)
)


async def visit(address, number, begins, octets, size, end):
    """One connection; returns how many messages the node sent it, where it has read them all."""
    connection = Connection(*await asyncio.open_connection(*address))
    writer = connection.writer
    octets = cer(f"mme{number % 3}.{REALM}", state_id=u32(278, number + 1)) * begins + octets
    came = None
    with contextlib.suppress(OSError):  # the node has closed it
        for at in range(0, len(octets), size):
            writer.write(octets[at : at + size])
            await writer.drain()
            if size < 1000:
                await asyncio.sleep(0)
        if end == "left open":
            return connection
        if end == "half-closed":
            writer.write_eof()
            came = len(await connection.end())
        if end == "DPR":
            writer.write(dpr())
            await connection.end()
    if end == "aborted":
        writer.transport.abort()
    await connection.close()
    return came


def sums(counts):
    """(in, answers out, requests out)."""
    found = Counter()
    for (_, _, kind, way), number in counts.messages.items():
        found[way if way == "in" else kind] += number
    return found["in"], found["answer"], found["request"]


@pytest.mark.long
@settings(max_examples=20)
@given(st.sampled_from([None, 30.0]), st.lists(visits, min_size=1, max_size=6))
def test_answers_and_drops_add_up_to_the_messages_received(rate_max, plans):
    asyncio.run(run_mix(plans, rate_max))


async def run_mix(plans, rate_max):
    counts, checks = Counts(), checker()  # whose lists are files, too
    service = S13Service(checks)
    gc.collect()
    files, tasks = open_files(), asyncio.all_tasks()
    node = Node(
        IDENTITY, [PeerSettings(label="mme", realm=REALM, connections=3, rate_max=rate_max)], QUICK,
        s13_application(service, partial(ExpressLane, ExpressLanes(checks, service.replies)) if COMPILED else None), counts=counts, report=lambda *_, **__: None,
    )  # fmt: skip
    address = await node.listen("tcp://127.0.0.1:0")
    visiting = [
        visit(address, number, begins, b"".join(octets), size, end)
        for number, (begins, octets, size, end) in enumerate(plans)
    ]
    results = await asyncio.gather(*visiting)
    open_ones = [each for each in results if isinstance(each, Connection)]
    await node.drain(0.3)
    for connection in open_ones:
        connection.writer.transport.abort()
        await connection.close()
    assert node.pending == 0
    assert node.links == node._probes == node._gate._unidentified == node._gate.sources._by_source == {}
    assert asyncio.all_tasks() == tasks
    incoming, answers, asked = sums(counts)
    # A request of the node's own (a DPR at its end, a DWR to the oldest of too many connections) that is answered comes in, too.
    assert answers + counts.dropped.total() == incoming
    assert sum(counts.answers.values()) == answers
    assert asked <= len(plans) * 2
    read = sum(each for each in results if isinstance(each, int))
    assert read <= answers + asked
    if (
        len(plans) == 1
        and plans[0][3] == "half-closed"
        and not counts.peers_refused
        and CLOSING.isdisjoint(counts.errors)
    ):
        assert read == answers + asked
    await until(lambda: open_files() <= files)


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("turns", [5, pytest.param(20, marks=pytest.mark.long)])
async def test_a_running_node(site, turns):
    site.load([LISTED])
    site.configure(peers=[{"name": "mme", "realm": REALM, "connections": 3, "rate_max": 2000}])
    site.tune(Limits, close_after_dpa_s=0.1, duplicate_probe_s=0.1, cer_timeout_s=0.3, partial_message_timeout_s=0.3)
    node = site.start()
    before, address = at_rest(node), node.address
    chance = random.Random(turns)
    for turn in range(turns):
        mutator = Mutator(f"{turns}/{turn}")
        await asyncio.gather(*(
            visit(address, turn * 12 + number, chance.random() < 0.9, mutator.stream(30), chance.choice((40, 500, 100_000)), chance.choice(ENDS[:4]))
            for number in range(12)
        ))  # fmt: skip
    await settled(node, before)
    incoming, answers, drops, own = accounts(node)
    assert incoming > 25 * turns
    # Those whom the node asked (DWR) may have answered, which needs no answer.
    assert answers + drops <= incoming <= answers + drops + own
