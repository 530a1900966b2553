"""Random changes of three lists in a real Redis, which a follower applies; at the end all three are compared with lists built from scratch.

Changes are those that loads and operators make (full releases, deltas, single entries, rollbacks), in bursts or one at a time;
faults in between are those after which a follower has to find its place again.
"""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

import numpy as np
from follower import AWAY, FaultyLogStore, Node
from simulated.store_content import TEXTS

from eir.device import SNR_KEYS
from eir.errors import StoreError
from eir.lists.changes.undo import plan_rollback
from eir.lists.follow.list_copy import copied_heads
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.stores.redis import RedisStore
from eir.lists.table.columns import NO_COLUMNS, NO_ROWS, SECONDS, WHOLE, TableRows, join, rows_of, sorted_rows
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import EMPTY, change, table_of

KINDS = {"devices": "devices", "pairs": "pairs", "subscribers": "subscribers"}
TACS = 400
"""TACs that are used: few, so that changes meet."""
FULL, DELTA, SINGLE, ROLLBACK = "full", "delta", "single", "rollback"
WEIGHTS = {FULL: 1, DELTA: 6, SINGLE: 12, ROLLBACK: 1}
FAULT_EVERY = 20
PATIENCE_S = 180
FAR_END = 4_000_000_000


@dataclass(slots=True)
class Figures:
    """The results of a run."""

    changes: int = 0
    switches: int = 0
    faults: int = 0
    entries: int = 0
    wrong: list[str] = field(default_factory=list)
    """Lists that differ from ones built from scratch, or from the truth."""


class Churn:
    """The one that changes lists; `truth` is what they should be: list → table."""

    def __init__(self, store, server, seed):
        self.store, self.server, self.rng = store, server, random.Random(seed)
        self.truth = dict.fromkeys(KINDS, EMPTY)
        self.before = {}
        """The table of each list that a rollback brings back."""
        self.writers = {name: ListWriter(store, name, kind, "churn@host") for name, kind in KINDS.items()}
        self.figures = Figures()

    def rows(self, name, tac):
        """Rows of one TAC with random keys and reasons, ends far away, and SIMs where the kind has them."""
        rng = self.rng
        keys = [tac * SNR_KEYS + key for key in rng.sample(range(SNR_KEYS), rng.choice([0, 1, 5, 40, 400]))]
        if name == "pairs":
            keys = [key for key in keys for _ in range(rng.randrange(1, 4))]
        if name == "devices" and rng.random() < 0.05:
            keys.append(WHOLE | tac)
        count = len(keys)
        seconds = [rng.randrange(1, 50) for _ in range(count)] if name == "pairs" else 0
        reasons = rng.choice([0, 1, [rng.randrange(len(TEXTS)) for _ in range(count)]])
        return rows_of(keys, seconds=seconds, reasons=reasons, ends=FAR_END if rng.random() < 0.1 else 0)

    def some_rows(self, name, tacs):
        return sorted_rows(join([NO_ROWS, *(self.rows(name, tac) for tac in sorted(tacs))]))

    async def change(self):
        """One change of one list."""
        name, rng = self.rng.choice(list(KINDS)), self.rng
        what, present = rng.choices(list(WEIGHTS), WEIGHTS.values())[0], self.truth[name]
        writer = self.writers[name]
        serial = writer.content.head.highest_serial + 1
        state = {"serial": serial, "highest_serial": serial, "release": f"{serial:064x}"}
        if what == ROLLBACK and name in self.before:

            async def plan():
                return (await plan_rollback(self.store, name)).make

            await self.done(writer, plan)
            self.truth[name] = self.before.pop(name)
            self.figures.changes += 1
            return
        if what in {FULL, ROLLBACK} or not writer.content.head.generation:
            table = table_of(self.some_rows(name, rng.sample(range(TACS), rng.randrange(TACS))))
            update = ListUpdate(what="load", table=table, reasons=TEXTS, state=state)
        else:
            added = self.some_rows(name, rng.sample(range(TACS), 1 if what == SINGLE else rng.randrange(1, 30)))
            rows = present.rows()
            removed = rows.select(np.array([rng.random() < 0.02 for _ in range(len(rows))], bool))
            removed = TableRows(removed.keys, (removed.columns[SECONDS], *NO_COLUMNS[1:]))
            table = change(present, added, removed).table
            update = ListUpdate(what="load", added=added, removed=removed, reasons=TEXTS, state=state)

        async def planned():
            return lambda _: update

        await self.done(writer, planned)
        self.becomes(name, table, present)
        self.figures.changes += 1

    def becomes(self, name, table, before):
        self.truth[name] = table
        if self.writers[name].content.head.generation > 1:
            self.before[name] = before

    async def done(self, writer, plan):
        """Make a change, again if its connection was cut, unless it was done all the same."""
        before = writer.content.head.generation
        while True:
            try:
                await writer.write(await plan())
            except StoreError:
                while not await self.is_read(writer):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            if writer.content.head.generation > before:
                return

    @staticmethod
    async def is_read(writer):
        with contextlib.suppress(StoreError):
            return await writer.catch_up()

    def fault(self):
        """Something after which the follower has to connect again, or waits."""
        self.server.command(*self.rng.choice([("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", 200, "ALL")]))
        self.figures.faults += 1


def content(entries):
    """All that an index holds of a list."""
    return entries.image and bytes(entries.image.buffer)


async def churn(server, folder, *, seconds, seed):
    """Change and follow for so long; returns the figures."""
    async with contextlib.AsyncExitStack() as stack:

        def opened():
            store = RedisStore(server.url)
            stack.push_async_callback(store.close)
            return store

        changer = Churn(opened(), server, seed)
        node = await stack.enter_async_context(Node(opened(), folder, KINDS))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(changer.rng.choice([1, 1, 5, 30])):
                await changer.change()
                if changer.rng.random() < 1 / FAULT_EVERY:
                    changer.fault()
            await asyncio.sleep(changer.rng.choice([0, 0.01, 0.05]))
        heads = {
            name: writer.content.head for name, writer in changer.writers.items() if writer.content.head.generation
        }
        async with asyncio.timeout(PATIENCE_S):
            while are_behind(node, folder, heads):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        away = FaultyLogStore(node.store)
        away.fail = AWAY
        changer.figures.switches = len(node.switched)
        scratch = {"the store": Node(opened(), folder / "scratch", KINDS), "the copy": Node(away, folder, KINDS)}
        changer.figures.wrong = [said async for said in differences(node, changer.truth, scratch)]
        changer.figures.entries = sum(head.entries for head in heads.values())
        return changer.figures


def are_behind(node, folder, heads):
    """True if the follower, or its copy, has not come to these heads yet."""
    copied = copied_heads(folder / "copies")
    return any(
        node.generation(name) != head.generation or name not in copied or copied[name].digest != head.digest
        for name, head in heads.items()
    )


async def differences(node, truth, scratch):
    """The differences of the lists in memory from an index built from scratch, or from what was written."""
    for what, other in scratch.items():
        await other.follower.start()
        for name in KINDS:
            if content(other.index.lists[name]) != content(node.index.lists[name]):
                yield f"{name}: memory and {what} differ"
    for name, table in truth.items():
        held = node.index.lists[name].state
        if held is not None and held.content != digest_tree(table, TEXTS).root:
            yield f"{name}: memory is not what was written"
