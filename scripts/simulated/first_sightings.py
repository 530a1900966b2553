"""Record of first sightings on one node, without processes: follower and record, a store that can fail, and a clock that the caller moves."""

from contextlib import suppress

import numpy as np

from eir.device import device_key
from eir.errors import StoreError
from eir.lists.follow.learned import LearnedRecord
from eir.lists.follow.log_follower import LogFollower, _StoreAway
from eir.lists.follow.pauses import Pauses
from eir.lists.images.index import FirstSeenList
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import DAY_S, IMPORT, Sighted, first_days
from eir.lists.record.settings import DEVICES, FIRST_SEEN, FirstSeenSettings
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of

TODAY = 20_787  # 2026-11-30
NAME, REGISTERED = "first-seen", "registered"
PAUSES = Pauses(wait_s=0.05, retry_s=0.0, unproved_s=0.0, unproved_max_s=0.0, full_s=0.0, heal_s=0.0)


class Away:
    """A store that can be away, or refuse the next `refusals` calls."""

    def __init__(self, store):
        self.store, self.is_away, self.refusals = store, False, 0

    def _check(self):
        if self.is_away or self.refusals:
            self.refusals = max(self.refusals - 1, 0)
            raise StoreError("refused", "it is away")

    async def base(self, name, part_id):
        self._check()
        async for part in self.store.base(name, part_id):
            yield part

    def __getattr__(self, name):
        async def call(*args, **options):
            self._check()
            return await getattr(self.store, name)(*args, **options)

        return call


class NoJournal:
    """A journal that keeps nothing."""

    def has(self, *_):
        return True

    def record(self, name, changes, reasons):
        pass

    def record_gap(self, name, what, before, after):
        pass


class SightingNode:
    """One node; `today` moves its clock. `store`: store of all nodes; `folder`: state folder of this one."""

    def __init__(self, store, folder, *, today=TODAY, remember=400, new_per_peer=20_000, who="node on test"):
        self.today, self.folder = today, folder
        self.record = FirstSeenList(NAME, FIRST_SEEN, self.now)
        self.store = Away(store)
        self.published, self.rejected, self.faults = [], {}, []
        self.learned = LearnedRecord(
            FirstSeenSettings(list=NAME, remember=remember, new_per_peer=new_per_peer), self.record, self.store, folder, who=who,
            report=self.report, held=lambda: self.follower.held, registering=lambda: [REGISTERED],
            publish=lambda head, _: self.published.append(head),
            reject=lambda peer, keys: self.rejected.setdefault(peer, []).extend(keys),
        )  # fmt: skip
        kinds = {REGISTERED: DEVICES, NAME: FIRST_SEEN, NAME + IMPORT: FIRST_SEEN}
        self.follower = LogFollower(
            self.store, kinds, folder, build=lambda table: table, on_switch=lambda *_: None, journal=NoJournal(), report=self.report,
            who=who, pauses=PAUSES, learned=[self.learned],
        )  # fmt: skip

    def now(self):
        """The node's clock, in the middle of its day."""
        return self.today * DAY_S + DAY_S // 2

    def report(self, event, **fields):
        self.faults.append((event, fields))

    async def start(self):
        """Start with the content of copies and store."""
        await self.learned.open()
        await self.follower.start()
        await self.learned.start()
        return self

    async def follow(self):
        """Follow the store once."""
        with suppress(_StoreAway):
            await self.follower._step()

    async def round(self, times=1):
        """Follow the store, write, and follow again."""
        for _ in range(times):
            await self.follow()
            self.learned._compare_at = float("-inf")
            await self.learned.round()
            await self.follow()
            await self.learned.round()

    def see(self, *devices, peer="mme", day=None, confirmed=False):
        keys = np.array([*map(device_key, devices)], "<u8").tobytes()
        self.learned.note_sightings([Sighted(peer, self.today if day is None else day, confirmed, keys)])

    def days(self):
        """Each device in the image, and its first day."""
        rows = self.learned._merged.rows()
        found = dict(zip(rows.keys.tolist(), first_days(rows).tolist(), strict=True))
        assert all(self.record.on_record(key)[0] == day for key, day in found.items())
        return {f"{key:014d}": day for key, day in found.items()}


async def register(store, devices, *, ends=0, what="add", rows=None):
    """Put another content of the list in force that registers devices. `rows`: as a whole content without rows."""
    writer = ListWriter(store, REGISTERED, DEVICES, "eir@host")
    added = rows_of([*map(device_key, devices)], ends=ends)
    if rows == "whole":
        return await writer.write(lambda _: ListUpdate(what=what, table=table_of(added)))

    def update(content):
        keys = content.table.rows().keys
        gone = rows_of(np.setdiff1d(keys, added.keys))
        return ListUpdate(what=what, added=added, removed=gone)

    return await writer.write(update)


async def level(*nodes):
    """Rounds of all nodes until nothing changes any more."""
    for _ in range(3):
        for node in nodes:
            await node.round()
