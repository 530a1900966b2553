"""The lists in memory, from which every check is answered.

A list is an image (eir.lists.images.image), which is made elsewhere and mapped, and the state that it is in: both are replaced in one
step. Whether a row has ended is decided when the row is asked for, by the clock that the index goes by. So no moment is left at
which a row that has ended could answer, however it came here: by a switch, an amendment, a start, or time that went by.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, cast

from eir.device import SNR_KEYS
from eir.lists.images.image import Image
from eir.lists.images.imaging import tacs_bound
from eir.lists.record.settings import BOUND, DEVICES, TYPES
from eir.lists.record.store import ListState

Clock = Callable[[], float]
"""The time by which rows end, in Unix seconds."""


class DeviceList:
    """A list of keys: devices, or for kind `subscribers` IMSIs. What it holds changes by Index.switch only."""

    __slots__ = ("_ends", "image", "kind", "name", "now", "state")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        self.name, self.kind, self.now = name, kind, now
        self.state: ListState | None = None
        """The state of the release in memory; None before the first one."""
        self.image: Image | None = None
        """Its image in memory."""
        self._ends = False

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """The arrays that a compiled look-up reads (Image.lane_arrays); None before the list is loaded."""
        return None if self.image is None else self.image.lane_arrays

    def put(self, state: ListState, image: Image) -> None:
        """See Index.switch."""
        self.state, self.image, self._ends = state, image, image.has_ends

    @property
    def time(self) -> float:
        """The time that matters to its rows; any if none of them ends."""
        return self.now() if self._ends else 0.0

    def holds(self, key: int) -> bool:
        """True if a row with the key (eir.device) is in force."""
        image = self.image
        return image is not None and image.holds(key, self.now() if self._ends else 0.0)

    def __iter__(self) -> Iterator[int]:
        """All keys in ascending order that a row in force has: a walk through the whole list."""
        return iter(()) if self.image is None else self.image.keys(self.time)


class PairList(DeviceList):
    """A list of devices, each with the SIMs (IMSIs) that it is listed with; `holds` is True with any SIM."""

    __slots__ = ()

    def binds(self, device: int, imsi: int) -> bool:
        """True if the list has this device with this SIM (keys of eir.device)."""
        return imsi in self.imsis(device)

    def imsis(self, device: int) -> tuple[int, ...]:
        """The SIMs that a device is listed with."""
        return () if self.image is None else self.image.imsis(device, self.time)

    def has_subscriber(self, imsi: int) -> bool:
        """True if the list has this SIM with any device."""
        return self.image is not None and self.image.has_subscriber(imsi, self.time)

    def is_of_type(self, device: int, types: frozenset[int]) -> bool:
        """True if a list of device types says one of these (device_type_key) of the device's TAC."""
        return not types.isdisjoint(self.imsis(device // SNR_KEYS * SNR_KEYS))

    def device_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the device, but not with this SIM."""
        imsis = self.imsis(device)
        return bool(imsis) and imsi not in imsis

    def subscriber_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the SIM, but not with this device."""
        # Asked first: a row that ends in between does not count as one with another device.
        return not self.binds(device, imsi) and self.has_subscriber(imsi)


class TacsOfTypes:
    """The TACs that lists of device types have with one of some types (device_type_key), as a list of devices for a compiled look-up."""

    __slots__ = ("_arrays", "_states", "_types", "tables")
    kind: ClassVar[str] = DEVICES

    def __init__(self, index: "Index", types: frozenset[int]) -> None:
        self.tables = [cast("PairList", entries) for entries in index.lists.values() if entries.kind == TYPES]
        """The lists that say of which type a device is."""
        self._types = types
        self._states: list[ListState | None] = []
        self._arrays: tuple[memoryview, memoryview, memoryview] | None = None

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """As DeviceList.arrays, of the lists as they are now."""
        if (states := [table.state for table in self.tables]) != self._states:
            images = [table.image for table in self.tables if table.image is not None]
            self._states, self._arrays = states, tacs_bound(images, self._types) if images else None
        return self._arrays


class Index:
    """All lists that the configuration names, in its order. `kinds`: name → its kind (eir.lists.record.settings); rows end by `now`."""

    def __init__(self, kinds: Mapping[str, str], now: Clock = time.time) -> None:
        self.lists: dict[str, DeviceList] = {}
        self.now = now
        self.version = 0
        """Another one after each change."""
        self.reconfigure(kinds)

    def reconfigure(self, kinds: Mapping[str, str]) -> None:
        """Take over other lists; those that stay keep what they hold."""
        before, self.lists = self.lists, {}
        self.version += 1
        for name, kind in kinds.items():
            kept = before.get(name)
            if kept is None or kept.kind != kind:
                kept = (PairList if kind in BOUND else DeviceList)(name, kind, self.now)
            self.lists[name] = kept

    def switch(self, name: str, state: ListState, image: Image) -> Image | None:
        """Put in force what list `name` is from now on; returns the image that was in force before, if it is another one."""
        before = self.lists[name].image
        self.lists[name].put(state, image)
        self.version += 1
        return None if before is image else before
