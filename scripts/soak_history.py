"""History under floods, on SQLite and on Redis: no record of the main chain is lost, and the history stays small.

A busy year with 100,000 refusals, and a simulated year of a register that feeds 1,200 rows a second. The second keeps the ratio of
rows to the limit of the feed's chain, with an anchor each hour, and has a simulated clock.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from simulated import servers
from simulated.history import YEAR_BYTES_MAX, HistoryNode, assert_complete, feed_for_days, one, year
from simulated.store_content import event

from eir.lists.record.history import append_events, chain_faults
from eir.lists.record.store import FEED, Ledger, ListStore
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

SENDERS, REASONS = 7, 11


def main(arguments: list[str]) -> int:
    """Run the part `history` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak history", description=__doc__)
    parser.add_argument("--refusals", type=int, default=100_000)
    parser.add_argument(
        "--days", type=int, default=365, help="simulated days of the register that feeds 1,200 rows per second"
    )
    options = parser.parse_args(arguments)
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "lists.sqlite")
        kept &= asyncio.run(_held("SQLite", store, options.refusals))
        taken = sum(path.stat().st_size for path in Path(folder).glob("lists.sqlite"))
        kept &= _small("SQLite", taken)
        for name, program in servers.programs().items():
            with servers.Server(program) as server:
                kept &= asyncio.run(_held(name, RedisStore(server.url), options.refusals))
                kept &= _small(name, _used(server))
    kept &= asyncio.run(_lived("SQLite", options.days, None))
    for name, program in servers.programs().items():
        with servers.Server(program) as server:
            kept &= asyncio.run(_lived(name, options.days, server))
    return 0 if kept else 1


async def _lived(name: str, days: int, server: servers.Server | None) -> bool:
    """Return true if all loads, rollbacks and traces of a year can be verified beside a register's feed, in the store and in a node's copy."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "lists.sqlite") if server is None else RedisStore(server.url)
        node = HistoryNode(store, SqliteStore(Path(folder) / "copy.sqlite"))
        try:
            expected = await feed_for_days(node, days)
            await assert_complete(node, expected)
            main, feed = await store.ledger(), await store.ledger(FEED)
        except AssertionError as fault:
            print(f"not kept: {name}: {fault}", file=sys.stderr)
            return False
        finally:
            await store.close()
            await node.copy.close()
    print(
        f"{name}: {days} days of a feed: {len(expected):,} loads, rollbacks and traces among {main.number:,} records in {main.bytes / 1e6:.1f} MB; "
        f"{feed.number:,} records of the feed, {feed.number - feed.first + 1:,} of them kept; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return True


async def _held(name: str, store: ListStore, refusals: int) -> bool:
    """Return true if all records exist, in an intact chain, after a year and a flood."""
    records, _ = append_events(Ledger(), year())
    began = time.monotonic()
    await store.rewrite_history(one(records), (), after=0, seen=Ledger())
    await store.record(event(detail="before the flood"))
    for number in range(refusals):
        detail = (
            f"reason{number % REASONS}: try {number} (claims list-{number} 1, unverified)"
            if number % 2
            else f"reason{number % REASONS}: try {number}"
        )
        refused = event(None, "refused", what="refuse", detail=detail)
        await store.record(replace(refused, who=f"inbox of eir@host-{number % SENDERS}"))
    await store.record(event(detail="after the flood"))
    there = [record async for batch in store.records() for record in batch]
    folds, faults = await store.folds(), []
    faults += chain_faults(there, folds, await store.ledger())
    if there[: len(records)] != records or len(there) != len(records) + 2:
        faults.append("records are gone")
    if sum(each.count for each in await store.outcomes() if each.outcome == "refused") != refusals:
        faults.append("not all refusals are counted")
    await store.close()
    print(
        f"{name}: {len(there):,} records, {refusals:,} refusals in {len(folds):,} lines; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    for fault in faults:
        print(f"not kept: {name}: {fault}", file=sys.stderr)
    return not faults


def _small(name: str, taken: int) -> bool:
    print(f"{name}: {taken / 1e6:.1f} MB", flush=True)
    if taken >= YEAR_BYTES_MAX:
        print(f"not kept: {name}: less than {YEAR_BYTES_MAX / 1e6:.0f} MB", file=sys.stderr)
    return taken < YEAR_BYTES_MAX


def _used(server: servers.Server) -> int:
    keys = [key for key in server.command("KEYS", "eir:{history}*").split(b"\r\n") if key.startswith(b"eir")]
    return sum(int(server.command("MEMORY", "USAGE", key, "SAMPLES", "0")[1:]) for key in keys)
