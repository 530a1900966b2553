"""Index: the lists in memory, from which every check is answered.

A list has an image (eir.lists.images.image), which another process builds, and a state; both are replaced in one step. Each
lookup compares a row's end with the index's clock. So a row that has ended never matches, no matter whether it came by a
switch, an amendment or a start, or ended later.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, cast

from eir.device import SNR_KEYS
from eir.lists.images.image import Image
from eir.lists.images.imaging import tacs_bound
from eir.lists.pages.first_days import DAY_S, period
from eir.lists.record.settings import BOUND, DEVICES, FIRST_SEEN, TYPES
from eir.lists.record.store import ListState

Clock = Callable[[], float]
"""Clock by which rows end, in Unix seconds."""


class DeviceList:
    """List of device keys, or of IMSI keys for kind `subscribers`. Only Index.switch changes its content."""

    __slots__ = ("_ends", "image", "kind", "name", "now", "state")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        self.name, self.kind, self.now = name, kind, now
        self.state: ListState | None = None
        """State of the release in memory; None before the first one."""
        self.image: Image | None = None
        """Image in memory."""
        self._ends = False

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """Arrays for a compiled lookup (Image.lane_arrays); None before the list is loaded."""
        return None if self.image is None else self.image.lane_arrays

    def replace(self, state: ListState, image: Image) -> None:
        """Replace state and image; only Index.switch calls it."""
        self.state, self.image, self._ends = state, image, image.has_ends

    @property
    def time(self) -> float:
        """Time at which rows are evaluated in Unix seconds; 0 if no row ends."""
        return self.now() if self._ends else 0.0

    def holds(self, key: int) -> bool:
        """Return True if a row with the key (eir.device) is in force."""
        image = self.image
        return image is not None and image.holds(key, self.now() if self._ends else 0.0)

    def __iter__(self) -> Iterator[int]:
        """Iterate over all keys that have a row in force, in ascending order."""
        return iter(()) if self.image is None else self.image.keys(self.time)


class PairList(DeviceList):
    """List of devices, each with IMSIs; `holds` is True if the device is listed with any IMSI."""

    __slots__ = ()

    def binds(self, device: int, imsi: int) -> bool:
        """Return True if the list has this device with this IMSI (keys of eir.device)."""
        return imsi in self.imsis(device)

    def imsis(self, device: int) -> tuple[int, ...]:
        """Return the IMSIs with which a device is listed."""
        return () if self.image is None else self.image.imsis(device, self.time)

    def has_subscriber(self, imsi: int) -> bool:
        """Return True if the list has this IMSI with any device."""
        return self.image is not None and self.image.has_subscriber(imsi, self.time)

    def is_of_type(self, device: int, types: frozenset[int]) -> bool:
        """Return True if a list of device types has one of these types (device_type_key) for the device's TAC."""
        return not types.isdisjoint(self.imsis(device // SNR_KEYS * SNR_KEYS))

    def device_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """Return True if the list has the device, but not with this IMSI."""
        imsis = self.imsis(device)
        return bool(imsis) and imsi not in imsis

    def subscriber_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """Return True if the list has the IMSI, but not with this device."""
        # `binds` is evaluated first: if its row ends between the two lookups, the row must not count as another device's.
        return not self.binds(device, imsi) and self.has_subscriber(imsi)


class FirstSeenList(DeviceList):
    """The record of first sightings, with the devices that this process has seen and the image does not show yet."""

    __slots__ = ("asked", "fresh")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        super().__init__(name, kind, now)
        self.fresh: dict[int, int] = {}
        """Device → day of a sighting that the image lacks."""
        self.asked: int | None = None
        """The device that the check in progress has asked for, if this sighting belongs on the record."""

    @property
    def today(self) -> int:
        """Today, in days since 1970."""
        return int(self.now() // DAY_S)

    @property
    def day_arrays(self) -> tuple[memoryview, memoryview] | None:
        """The further arrays that a compiled look-up reads (Image.day_arrays)."""
        return None if self.image is None else self.image.day_arrays

    def on_record(self, key: int) -> tuple[int, int] | None:
        """Return the first day of a device and the period of its last sighting by the image; None if it is not there."""
        return None if self.image is None else self.image.first_seen(key)

    def day(self, key: int) -> int | None:
        """Return the first day of a device; None if it has not been seen yet."""
        recorded, fresh = self.on_record(key), self.fresh.get(key)
        days = [day for day in (recorded and recorded[0], fresh) if day is not None]
        return min(days, default=None)

    def ask(self, key: int) -> int:
        """Return the first day of a device that is seen now."""
        today, recorded, first = self.today, self.on_record(key), self.day(key)
        if recorded is None or recorded[0] > today or recorded[1] < period(today, key):
            self.asked = key
        return today if first is None else min(first, today)


class TacsOfTypes:
    """TACs that lists of device types map to one of `types` (device_type_key), as a device list for a compiled lookup."""

    __slots__ = ("_arrays", "_states", "_types", "tables")
    kind: ClassVar[str] = DEVICES

    def __init__(self, index: "Index", types: frozenset[int]) -> None:
        self.tables = [cast("PairList", entries) for entries in index.lists.values() if entries.kind == TYPES]
        """Lists of device types."""
        self._types = types
        self._states: list[ListState | None] = []
        self._arrays: tuple[memoryview, memoryview, memoryview] | None = None

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """Like DeviceList.arrays, for the current content of the lists."""
        if (states := [table.state for table in self.tables]) != self._states:
            images = [table.image for table in self.tables if table.image is not None]
            self._states, self._arrays = states, tacs_bound(images, self._types) if images else None
        return self._arrays


FORMS: Mapping[str, type[DeviceList]] = {**dict.fromkeys(BOUND, PairList), FIRST_SEEN: FirstSeenList}
"""Classes of lists of some kinds; other lists are DeviceLists."""


class Index:
    """All lists of the configuration, in its order.

    Args:
        kinds: name of each list → its kind (eir.lists.record.settings).
        now: clock by which rows end.
    """

    def __init__(self, kinds: Mapping[str, str], now: Clock = time.time) -> None:
        self.lists: dict[str, DeviceList] = {}
        self.now = now
        self.version = 0
        """Counter that changes with each change."""
        self.apply(kinds)

    def apply(self, kinds: Mapping[str, str]) -> None:
        """Apply another set of lists; a list with the same name and kind keeps its content."""
        before, self.lists = self.lists, {}
        self.version += 1
        for name, kind in kinds.items():
            entries = before.get(name)
            if entries is None or entries.kind != kind:
                entries = FORMS.get(kind, DeviceList)(name, kind, self.now)
            self.lists[name] = entries

    @property
    def first_seen(self) -> FirstSeenList | None:
        """The record of first sightings; None without one."""
        return next((each for each in self.lists.values() if isinstance(each, FirstSeenList)), None)

    def switch(self, name: str, state: ListState, image: Image) -> Image | None:
        """Put a state and an image in force for list `name`; return the previous image if it is another one."""
        before = self.lists[name].image
        self.lists[name].replace(state, image)
        self.version += 1
        return None if before is image else before
