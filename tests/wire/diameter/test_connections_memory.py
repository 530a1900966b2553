"""Connections cost little memory: what a lane knows of one is its terms, and nothing of its requests."""

import asyncio

import pytest
from simulated.hostile import at_rest, memory_mb
from simulated.node import LISTED
from simulated.wire import Connection, cer, ecr, until

CONNECTIONS, MOST_MB = 1000, 20
READ_AT_ONCE = 20


@pytest.mark.long
async def test_a_thousand_connections_take_20_mb_at_most(site):
    site.load([LISTED, *(f"{number:014d}" for number in range(35_000_000_000_000, 35_000_000_001_000))])
    site.configure(limits={"connections_max": 1100, "source_connections_max": 1100})
    node = site.start(prefix=["env"])
    first = [await opened(node, f"first{number}") for number in range(2)]
    at_rest(node)
    before = memory_mb(node.pid)
    connections = []
    for at in range(0, CONNECTIONS, READ_AT_ONCE):
        connections += await asyncio.gather(*(opened(node, f"mme{number}") for number in range(at, at + READ_AT_ONCE)))
    assert sum(node.status()["peers"].values()) == CONNECTIONS + len(first)
    grown = memory_mb(node.pid) - before
    for one in first + connections:
        await one.close()
    await until(lambda: sum(node.status()["peers"].values()) == 0)
    assert grown < MOST_MB


async def opened(node, host):
    """A connection whose peer has asked some questions."""
    connection = Connection(*await asyncio.open_connection(*node.address))
    await connection.ask(cer(f"{host}.localdomain"))
    for number in range(3):
        answer = await connection.ask(ecr(ids=(number + 1, number + 1)))
        assert answer.result == 2001
    return connection
