"""Record of first sightings on one node, without processes: its memory, its stores, and a clock that the caller moves."""

import numpy as np

from eir.device import device_key
from eir.errors import StoreError
from eir.lists.follow.first_seen import RecordKeeper
from eir.lists.images.day_images import all_days
from eir.lists.images.imaging import image_of
from eir.lists.images.index import DeviceList, FirstSeenList
from eir.lists.pages.first_days import DAY_S, Sighted
from eir.lists.record.settings import FIRST_SEEN, FirstSeenSettings
from eir.lists.record.store import ListState

from .store_content import pages_of

TODAY = 20_787  # 2026-11-30
NAME = "first-seen"


class Away:
    """A store that can be away, or refuse the next `refusals` calls."""

    def __init__(self, store):
        self.store, self.is_away, self.refusals = store, False, 0

    def __getattr__(self, name):
        if self.is_away or self.refusals:
            self.refusals = max(self.refusals - 1, 0)
            raise StoreError("refused", "it is away")
        return getattr(self.store, name)


class SightingNode:
    """One node's keeper; `today` moves its clock."""

    def __init__(self, *stores, today=TODAY, remember=400, new_per_peer=20_000, registered=()):
        self.today = today
        self.record = FirstSeenList(NAME, FIRST_SEEN, lambda: self.today * DAY_S)
        self.registered = DeviceList("registered", "devices", lambda: self.today * DAY_S)
        self.stores = [Away(store) for store in stores]
        self.published, self.rejected, self.faults, self.counted = [], {}, [], ()
        self.keeper = RecordKeeper(
            FirstSeenSettings(list=NAME, remember=remember, new_per_peer=new_per_peer), self.record, self.stores, who="node on test",
            report=lambda event, **fields: self.faults.append((event, fields)), registering=lambda: [self.registered],
            publish=lambda state, _: self.published.append(state),
            reject=lambda peer, keys: self.rejected.setdefault(peer, []).extend(keys), count=self.count,
        )  # fmt: skip
        if registered:
            self.register(registered)

    def count(self, *counted):
        self.counted = counted

    def register(self, devices):
        """Put another content of the list in force that registers devices."""
        before = self.registered.image
        state = ListState(kind="devices", serial=1, generation=1, highest_serial=1, release_digest="")
        self.registered.replace(state, image_of(pages_of(map(device_key, devices))))
        self.keeper.note_switch("registered", before)

    def see(self, *devices, peer="mme", day=None, confirmed=False):
        keys = np.array([*map(device_key, devices)], "<u8").tobytes()
        self.keeper.note([Sighted(peer, self.today if day is None else day, confirmed, keys)])

    async def round(self, times=1):
        for _ in range(times):
            self.keeper._tidy_at = float("-inf")
            await self.keeper.round()

    def days(self):
        """Each device on record, and its first day."""
        return {
            f"{key:014d}": first
            for days in all_days(self.record.image)
            for key, first in zip(days.keys.tolist(), days.firsts.tolist(), strict=True)
        }


async def level(*nodes):
    """Rounds of all nodes until nothing changes any more."""
    for _ in range(4):
        for node in nodes:
            await node.round()
