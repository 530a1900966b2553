"""Random changes of three lists in a real Redis, which a follower applies; at the end all three are compared with lists built from scratch.

Changes are those that loads and operators make (full releases, deltas, single entries, rollbacks), in bursts or one at a time;
faults in between are those after which a follower has to find its place again. Used by a test for seconds, and by scripts/soak
for as long as wanted.
"""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field, replace

from eir.errors import StoreError
from eir.lists.pages.pages import PAGE_KEYS, amended_digest, content_digest
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

from .follower import Node
from .store_content import page, state

KINDS = {"devices": "devices", "pairs": "pairs", "subscribers": "subscribers"}
PAGES = 400
"""Page numbers that are used: few, so that changes meet."""
WHOLE_MAX = 2
"""Whole TACs at once: comparing walks a million keys of each."""
FULL, DELTA, SINGLE, ROLLBACK = "full", "delta", "single", "rollback"
WEIGHTS = {FULL: 1, DELTA: 6, SINGLE: 12, ROLLBACK: 1}
FAULT_EVERY = 20
PATIENCE_S = 180


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
    """The one that changes lists; `truth` is what they should be: list → page number → page."""

    def __init__(self, store, server, seed):
        self.store, self.server, self.rng = store, server, random.Random(seed)
        self.truth = {name: {} for name in KINDS}
        self.before = dict.fromkeys(KINDS)
        self.states = dict.fromkeys(KINDS)
        self.figures = Figures()

    def page(self, name, number, keys):
        """A page with these keys and random reasons, ends far away, and SIMs where the kind has them."""
        rng, count = self.rng, len(keys)
        reasons = (
            rng.choice([b"", b"\x01", bytes(rng.randrange(5) for _ in range(count))]) if count < PAGE_KEYS else b""
        )
        until = [4_000_000_000] if rng.random() < 0.1 else []
        imsis = [sorted(rng.sample(range(1, 50), rng.randrange(1, 4))) for _ in range(count)] if name == "pairs" else ()
        return page(number, sorted(keys), reasons=reasons, until=until, imsis=imsis)

    def some_keys(self, name):
        whole = sum(1 for each in self.truth["devices"].values() if each.keys and len(each.keys) < 40)
        if name == "devices" and whole < WHOLE_MAX and self.rng.random() < 0.01:
            return range(PAGE_KEYS)
        size = self.rng.choice([0, 1, 5, 40, 400])
        return self.rng.sample(range(PAGE_KEYS), size)

    async def change(self):
        """One change of one list."""
        name = self.rng.choice(list(KINDS))
        what = self.rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
        now, current, before = self.truth[name], self.states[name], self.before[name]
        seen = 0 if current is None else current.generation
        if what == ROLLBACK and before is not None:
            self.states[name] = await self.done(name, seen, lambda: self.store.rollback(name, seen=seen))
            self.truth[name], self.before[name] = before, None
        elif what == FULL or current is None:
            numbers = self.rng.sample(range(PAGES), self.rng.randrange(PAGES))
            pages = [each for number in sorted(numbers) if (each := self.page(name, number, self.some_keys(name))).keys]
            after = state(pages, serial=seen + 1, kind=KINDS[name])
            self.states[name] = await self.done(name, seen, lambda: self.store.replace(name, after, pages, seen=seen))
            self.truth[name], self.before[name] = {each.number: each for each in pages}, now if seen else None
        else:
            numbers = self.rng.sample(range(PAGES), 1 if what == SINGLE else self.rng.randrange(1, 30))
            pages = [self.page(name, number, self.some_keys(name)) for number in sorted(numbers)]
            old = [now[number] for number in numbers if number in now]
            digest = amended_digest(current.content_digest, old, pages)
            after = replace(current, serial=seen + 1, highest_serial=seen + 1, content_digest=digest)
            self.states[name] = await self.done(name, seen, lambda: self.store.amend(name, after, pages, seen=seen))
            self.truth[name] = {
                number: each for number, each in {**now, **{p.number: p for p in pages}}.items() if each.keys
            }
            self.before[name] = now
        self.figures.changes += 1

    async def done(self, name, seen, write):
        """Make a change, again if its connection was cut, unless it was done all the same; returns the state."""
        while True:
            try:
                return await write()
            except StoreError:
                found = await self.store.state(name)
                if found is not None and found.generation == seen + 1:
                    return found

    def fault(self):
        """Something after which the follower has to find its place again."""
        name = self.rng.choice(list(KINDS))
        self.server.command(
            *self.rng.choice([
                ("CLIENT", "KILL", "TYPE", "normal"),
                ("XTRIM", f"eir:{{{name}}}:changes", "MAXLEN", 0),
                ("DEL", f"eir:{{{name}}}:changes"),
            ])
        )  # fmt: skip
        self.figures.faults += 1


def content(entries):
    """All that an index holds of a list."""
    keys = list(entries)
    return keys, [entries.imsis(key) for key in keys] if hasattr(entries, "imsis") else None


async def churn(server, folder, *, seconds, seed):
    """Change and follow for so long; returns the figures."""
    async with contextlib.AsyncExitStack() as stack:

        def opened(store):
            stack.push_async_callback(store.close)
            return store

        changer = Churn(opened(RedisStore(server.url)), server, seed)
        copy = opened(SqliteStore(folder / "copy.sqlite"))
        node = await stack.enter_async_context(Node(opened(RedisStore(server.url)), KINDS, copy=copy))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(changer.rng.choice([1, 1, 5, 30])):
                await changer.change()
            if changer.rng.random() < 1 / FAULT_EVERY:
                changer.fault()
            await asyncio.sleep(changer.rng.choice([0, 0.01, 0.05]))
        generations = {name: current.generation for name, current in changer.states.items() if current is not None}
        async with asyncio.timeout(PATIENCE_S):
            while await are_behind(node, copy, generations):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        scratch = {"the store": opened(RedisStore(server.url)), "the copy": copy}
        changer.figures.switches = len(node.switched)
        changer.figures.wrong = [said async for said in differences(node, changer.truth, scratch)]
        changer.figures.entries = sum(len(list(node.index.lists[name])) for name in generations)
        return changer.figures


async def are_behind(node, copy, generations):
    """True if the follower, or its copy, has not come to these generations yet."""
    copied = await copy.states()
    return any(
        node.generation(name) != wanted or name not in copied or copied[name].generation != wanted
        for name, wanted in generations.items()
    )


async def differences(node, truth, sources):
    """The differences of the lists in memory from an index built from scratch, or from what was written."""
    for what, source in sources.items():
        scratch = Node(source, KINDS)
        await scratch.follower.start()
        for name in KINDS:
            if content(scratch.index.lists[name]) != content(node.index.lists[name]):
                yield f"{name}: memory and {what} differ"
    for name, pages in truth.items():
        held = node.index.lists[name].state
        if held is not None and held.content_digest != content_digest(pages.values()):
            yield f"{name}: memory is not what was written"
