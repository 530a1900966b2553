"""History of a busy year and of a register that feeds rows all the time, and the node that keeps a copy of it."""

import hashlib
import random
from datetime import UTC, datetime, timedelta

from eir.lists.follow.history import HistoryKeeper
from eir.lists.log.change import utc_text
from eir.lists.record.history import chain_faults, feed_faults, record_digest
from eir.lists.record.settings import HistorySettings
from eir.lists.record.store import FEED, MAIN

from .node import LISTED, UNLISTED
from .store_content import event

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 60
"""Rows that arrive within 50 ms at 1,200 rows/s."""
YEAR_BYTES_MAX = 50_000_000
DAY_STEPS = 24
TURNOVER = 0.65
"""Share of the feed's chain that comes in a step: 1,200 rows a second are 173 MB in an hour, and the chain may take 256 MiB."""
FEED_MAX_BYTES = 8_192


class HistoryNode:
    """Keeper of the history on a node, whose clocks the caller moves."""

    def __init__(self, store, copy, *, writes=True, begin=BEGIN):
        self.store, self.copy, self.said, self.begin, self.clock = store, copy, [], begin, 0.0
        self.keeper = HistoryKeeper(
            copy, writes=writes, who="node", report=self._heard, now=lambda: self.clock, wall=self.wall
        )  # fmt: skip

    def _heard(self, what, **_):
        if what != "history_at":
            self.said.append(what)

    def wall(self):
        return self.time.timestamp()

    @property
    def time(self):
        return self.begin + timedelta(seconds=self.clock)

    async def look(self, lists=(), pass_s=0.0, **settings):
        self.clock += pass_s
        await self.keeper.maintain(self.store, HistorySettings(**settings), lists)

    async def feed(self, *numbers, rows=ROWS):
        """Record transactions of a feed with `rows` rows each."""
        for number in numbers:
            text = ", ".join(f"{number:08d}{row:06d}" for row in range(rows))
            fed = event("own", what="add", detail=f"fed by register: {text}", time=utc_text(self.time), chain=FEED)
            await self.store.record(fed)

    async def load(self, serial, **fields):
        made = {"serial": serial, "detail": f"load {serial}", "time": utc_text(self.time), **fields}
        await self.store.record(event("stolen", **made))


async def records_of(store, chain=MAIN):
    return [record async for batch in store.records(chain=chain) for record in batch]


async def faults_of(store):
    main, fed = await records_of(store), await records_of(store, FEED)
    feed = await store.ledger(FEED)
    faults = [*chain_faults(main, await store.folds(), await store.ledger()), *chain_faults(fed, (), feed)]
    return [*faults, *feed_faults(main, fed, feed)]


async def events_of(store, *what):
    return [each for each in await store.history(chain=MAIN) if each.what in what]


async def one(batch):
    """Yield a single batch."""
    yield batch


async def feed_for_days(node, days):
    """Simulate days of a register that feeds 1,200 rows a second, in the proportions of the default limits.

    Return the loads, rollbacks and traces of that time as (what, time, detail).
    """
    expected, number = [], 0
    for step in range(days * DAY_STEPS):
        if step % DAY_STEPS == 7:
            for what in ("load", *(("rollback",) if step // DAY_STEPS % 7 == 1 else ()), "trace"):
                expected.append((what, utc_text(node.time), f"{what} of step {step}"))
                await node.load(step, what=what, detail=expected[-1][2])
        wanted = (await node.store.ledger(FEED)).bytes + TURNOVER * FEED_MAX_BYTES
        while (await node.store.ledger(FEED)).bytes < wanted:
            await node.feed(number)
            number += 1
        await node.look(["stolen"], pass_s=86400 / DAY_STEPS, feed_max_bytes=FEED_MAX_BYTES)
    return expected


async def assert_complete(node, expected):
    """Assert that each load, rollback and trace can be verified, in the store and in the node's copy, and that the history is small."""
    await node.look(["stolen"], feed_max_bytes=FEED_MAX_BYTES)
    for each in (node.store, node.copy):
        assert await faults_of(each) == []
        found = await events_of(each, "load", "rollback", "trace")
        assert [(event.what, event.time, event.detail) for event in found] == expected
        assert (await each.ledger(FEED)).bytes < 2 * FEED_MAX_BYTES
        assert (await each.ledger(FEED)).first > 1
    main, days = await node.store.ledger(), (node.time - BEGIN).days
    assert main.first == 1
    assert main.bytes < 12_000 * days, "ten years of it take less than history.max_bytes"
    assert node.keeper.ledgers[MAIN].digest == record_digest((await records_of(node.copy))[-1].text)
    assert node.said == []


def year(part=1):
    """Yield the events of a busy year, or of one of `part` equal parts of it: ten lists with a delta each hour, 20 changes by hand a day, a reload and a rollback a week."""
    random.seed(1)
    fingerprint = hashlib.sha256(b"key").hexdigest()[:43]
    for hour in range(365 * 24 // part):
        time = utc_text(datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=hour))
        for name in range(10):
            detail = f"{61_234 + hour} entries, before {61_233 + hour}; {random.randrange(100)} devices come, {random.randrange(50)} go; signed by agency@example SHA256:{fingerprint}"
            yield event(
                f"stolen-national-{name}",
                what="load",
                time=time,
                serial=hour,
                digest=random.randbytes(32).hex(),
                detail=detail,
            )
        if hour % 24 == 0:
            for number in range(20):
                yield event(
                    "blocked-here",
                    what="add",
                    time=time,
                    detail=f"ticket {hour}-{number}, until 2026-12-31T00:00:00Z: {LISTED}, {UNLISTED}",
                )
        if hour % 168 == 0:
            yield event(
                None, what="reload", time=time, digest=random.randbytes(32).hex(), detail="changed: policy, lists"
            )
            yield event(
                "stolen-national-1",
                "rolled_back",
                what="rollback",
                time=time,
                serial=hour,
                digest=random.randbytes(32).hex(),
                detail="release 7 undone; 61234 entries",
            )
