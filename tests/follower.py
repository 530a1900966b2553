"""Running followers of a store, without nodes, and faults of their store."""

import asyncio
import contextlib
import time

from simulated.store_content import until

from eir.errors import StoreError
from eir.lists.follow.log_follower import LogFollower
from eir.lists.follow.pauses import Pauses
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.stores.redis import RedisStore

QUICK = Pauses(wait_s=0.05, retry_s=0.02, unproved_s=0.02, unproved_max_s=0.1, full_s=0.05, heal_s=0.05)


class Recorder:
    """Journal in memory. `fails`: it cannot be written."""

    def __init__(self):
        self.changes, self.rows, self.gaps, self.fails = {}, {}, [], False

    def has(self, name, digest):
        return (name, digest) in self.changes

    def record(self, name, changes, reasons):
        if self.fails:
            raise OSError(28, "No space left on device")
        for each in changes:
            if (name, each.change.digest) not in self.changes:
                self.changes[name, each.change.digest] = each.change
                self.rows[each.change.digest] = each.parts, reasons

    def record_gap(self, name, what, before, after):
        self.gaps.append((name, what, before.generation, after.generation))

    def whats(self, name="own"):
        return [
            change.what for each, change in zip(self.changes, self.changes.values(), strict=True) if each[0] == name
        ]


class LogNode:
    """A follower with all that it is given, running; its images are the tables."""

    def __init__(
        self,
        store,
        folder,
        lists=("own",),
        *,
        who="node",
        pauses=QUICK,
        build=lambda table: table,
        journal=None,
        **settings,
    ):
        self.store, self.folder, self.who = store, folder, who
        self.events, self.switched, self.contents, self.built = [], [], {}, 0
        self.journal = journal or Recorder()
        self._build = build
        kinds = lists if isinstance(lists, dict) else dict.fromkeys(lists, "devices")
        self.follower = LogFollower(
            store, kinds, folder, build=self._counted, on_switch=self._switched, journal=self.journal, who=who, pauses=pauses,
            report=lambda event, **fields: self.events.append((event, fields)), **settings,
        )  # fmt: skip

    def _counted(self, table):
        self.built += 1
        return self._build(table)

    def _switched(self, name, head, table, image, before):
        assert before is not image
        self.contents[name] = head, table
        self.switched.append((name, head.generation, table.rows().keys.tolist()))

    async def __aenter__(self):
        await self.follower.start()
        self.task = asyncio.create_task(self.follower.run())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def keys(self, name="own"):
        return self.contents[name][1].rows().keys.tolist() if name in self.contents else None

    def head(self, name="own"):
        return self.contents[name][0]

    def said(self):
        return [event for event, _ in self.events]

    async def has(self, *keys, name="own"):
        await until(lambda: self.keys(name) == sorted(keys))

    async def is_level(self, name="own"):
        """Wait until the node has the stored list in force, and its copy too."""

        async def level():
            heads = await self.store.heads()
            followed = self.follower._lists[name]
            return (
                name in self.contents and heads.get(name) == self.head(name) and followed.copy.digest == heads[name].digest
                and name not in self.follower.lost
            )  # fmt: skip

        await until(level)

    async def waits(self):
        """Wait until the node has compared the lists with the store again."""
        moment = time.monotonic()
        await until(lambda: self.follower.in_step_at > moment)


class Node(LogNode):
    """A follower whose images come into force in an index, as in a worker."""

    def __init__(self, store, folder, kinds, *, now=time.time, **settings):
        super().__init__(store, folder, kinds, build=image_of, **settings)
        self.index = Index(kinds, now)
        self.on_switch = lambda: None

    def _switched(self, name, head, table, image, before):
        assert before is not image
        self.contents[name] = head, table
        self.index.switch(name, head, image)
        self.switched.append((name, head.generation))
        self.on_switch()

    def generation(self, name="own"):
        return self.contents[name][0].generation if name in self.contents else 0

    async def reaches(self, generation, name="own"):
        await until(lambda: self.generation(name) == generation)


async def execute(store, statement, *values):
    """Change an SQLite store outside."""
    await store._file.call(lambda db: db.execute(statement, values).rowcount)


TABLES = ("heads", "log", "parts")


async def snapshot(store):
    """Return a function that puts the store back to its present state."""
    if isinstance(store, RedisStore):
        names = await store.link.execute("KEYS", "eir:*", key="eir:lists")
        dumped = [(name, await store.link.execute("DUMP", name)) for name in names]

        async def restore():
            await store.link.execute("FLUSHALL", key="eir:lists")
            for name, octets in dumped:
                await store.link.execute("RESTORE", name.decode(), 0, octets)

        return restore
    rows = {table: await store._file.rows(f"SELECT * FROM {table}") for table in TABLES}

    def write(db):
        db.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            db.execute(f"DELETE FROM {table}")
            for row in rows[table]:
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        db.execute("COMMIT")

    return lambda: store._file.call(write)


class FaultyLogStore:
    """A store that fails or hangs when a test says so: `fail` is raised, `hang` is awaited."""

    def __init__(self, store):
        self.store, self.fail, self.hang, self.bases = store, None, None, 0

    async def _meddle(self):
        if self.hang is not None:
            await self.hang.wait()
        if self.fail is not None:
            raise self.fail

    async def base(self, name, part_id):
        self.bases += 1
        await self._meddle()
        async for part in self.store.base(name, part_id):
            yield part

    def __getattr__(self, name):
        async def call(*args, **options):
            await self._meddle()
            return await getattr(self.store, name)(*args, **options)

        return call


AWAY = StoreError("refused", "the server is away")
