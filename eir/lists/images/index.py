"""Index: all lists in memory. Every check looks up its device there.

A list has an image (eir.lists.images.image), which another process builds, and a state; both are replaced in one step. Each
lookup compares a row's begin and end with the index's clock. So a row that has not begun or has ended never matches, no matter
whether it came by a switch, an amendment or a start, or began or ended later.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import ClassVar, cast

from eir.device import SNR_KEYS
from eir.lists.images.image import Image
from eir.lists.images.table_image import tacs_bound
from eir.lists.log.change import Head
from eir.lists.record.first_days import DAY_S, period
from eir.lists.record.settings import BOUND, DEVICES, FIRST_SEEN, TYPES

Clock = Callable[[], float]
"""Clock by which rows begin and end, in Unix seconds."""


class DeviceList:
    """List of device keys, or of IMSI keys for kind `subscribers`, in memory.

    Only Index.switch changes its content.
    """

    __slots__ = ("_timed", "image", "kind", "name", "now", "reasons", "state")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        self.name, self.kind, self.now = name, kind, now
        self.state: Head | None = None
        """State of the release in memory; None before the first one."""
        self.image: Image | None = None
        """Image in memory."""
        self.reasons: Sequence[str] = ()
        """Chosen reasons by which the image was built; empty for all."""
        self._timed = False

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """Arrays of the list for the compiled fast path (Image.lane_arrays); None before the list is loaded."""
        return None if self.image is None else self.image.lane_arrays

    def replace(self, state: Head, image: Image, reasons: Sequence[str] = ()) -> None:
        """Replace the state and the content (image) of the list; only Index.switch calls this method."""
        self.state, self.image, self._timed, self.reasons = state, image, image.has_times, reasons

    @property
    def time(self) -> float:
        """Time in Unix seconds against which begins and ends are compared; 0 if no row of the list has one."""
        return self.now() if self._timed else 0.0

    def holds(self, key: int) -> bool:
        """Return True if the list contains the device (or IMSI) with this key in a row that is in force."""
        image = self.image
        return image is not None and image.holds(key, self.now() if self._timed else 0.0)

    def begin(self, key: int, _imsi: int) -> int:
        """Return the first begin of rows that will list the device (or IMSI) with this key, in Unix seconds.

        0 if it is listed already, or if no such row will begin.
        """
        if self.image is None or not self._timed or self.holds(key):
            return 0
        return min(self.image.begins(key, self.now()), default=0)

    @property
    def pending(self) -> int:
        """Number of rows that have not begun."""
        return self.image.pending(self.now()) if self.image is not None and self._timed else 0

    def __iter__(self) -> Iterator[int]:
        """Iterate in ascending order over the keys that have at least one row that is in force."""
        return iter(()) if self.image is None else self.image.keys(self.time)


class PairList(DeviceList):
    """List in memory that binds devices to IMSIs. `holds` is True if the list binds the device to any IMSI."""

    __slots__ = ()

    def binds(self, device: int, imsi: int) -> bool:
        """Return True if the list binds this device to this IMSI. Both are integer keys (see eir.device)."""
        return imsi in self.imsis(device)

    def imsis(self, device: int) -> tuple[int, ...]:
        """Return the IMSIs to which rows of the list that are in force bind a device."""
        return () if self.image is None else self.image.imsis(device, self.time)

    def begin(self, key: int, imsi: int) -> int:
        """Return the first begin of rows that will bind the device to this IMSI; 0 as for DeviceList."""
        if self.image is None or not self._timed or self.binds(key, imsi):
            return 0
        return min(self.image.begins(key, self.now(), imsi), default=0)

    def has_subscriber(self, imsi: int) -> bool:
        """Return True if the list binds this IMSI to any device."""
        return self.image is not None and self.image.has_subscriber(imsi, self.time)

    def is_of_type(self, device: int, types: frozenset[int]) -> bool:
        """Return True if this list of device types assigns a type in `types` (device_type_key) to the TAC of the device."""
        return not types.isdisjoint(self.imsis(device // SNR_KEYS * SNR_KEYS))

    def device_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """Return True if the list binds the device to IMSIs, but not to this IMSI."""
        imsis = self.imsis(device)
        return bool(imsis) and imsi not in imsis

    def subscriber_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """Return True if the list binds the IMSI to devices, but not to this device."""
        # With one time for both lookups: a row that begins or ends between them must not count as another device's.
        image, now = self.image, self.time
        return image is not None and imsi not in image.imsis(device, now) and image.has_subscriber(imsi, now)


class FirstSeenList(DeviceList):
    """Record of first sightings in memory: the image, and sightings of this process that the image still lacks."""

    __slots__ = ("asked", "fresh", "known_time")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        super().__init__(name, kind, now)
        self.fresh: dict[int, int] = {}
        """Device → day of a sighting that the image lacks."""
        self.asked: int | None = None
        """The device that the check in progress has asked for, if this sighting belongs on the record."""
        self.known_time = 0.0
        """Newest time in Unix seconds of a change in the store, as far as this process knows."""

    @property
    def today(self) -> int:
        """Today as the number of days since 1970-01-01."""
        return int(self.now() // DAY_S)

    @property
    def first_day_min(self) -> int:
        """Earliest first day that may be recorded: one day before the newest time of the store. An earlier clock is wrong."""
        return max(int(self.known_time // DAY_S) - 1, 0)

    def note_time(self, changed_at: str | None) -> None:
        """Note the time of a change in the store (`Head.loaded_at`)."""
        if changed_at is not None:
            self.known_time = max(self.known_time, datetime.fromisoformat(changed_at).timestamp())

    @property
    def sightings(self) -> memoryview | None:
        """Array of first days and periods for the compiled fast path (Image.sightings); None before the record is loaded."""
        return None if self.image is None else self.image.sightings

    def on_record(self, key: int) -> tuple[int, int] | None:
        """Return the day on which a device was first seen, and the index of the period (PERIOD_DAYS days) in which it was last seen.

        The lookup uses only the image of the record in memory. Returns None if the image lacks the device.
        """
        return None if self.image is None else self.image.first_seen(key)

    def day(self, key: int) -> int | None:
        """Return the day on which a device was first seen; None if it was never seen.

        The day is the earliest of the first day in the image and the day of this process's sighting that the image lacks.
        """
        recorded, fresh = self.on_record(key), self.fresh.get(key)
        days = [day for day in (recorded and recorded[0], fresh) if day is not None]
        return min(days, default=None)

    def ask(self, key: int) -> int:
        """Return the day on which the checked device was first seen (today for a new device); set `asked` if a sighting must be recorded.

        A sighting must be recorded if the image lacks the device, has a first day after today, or has an earlier period.
        """
        today, recorded, first = self.today, self.on_record(key), self.day(key)
        if recorded is None or recorded[0] > today or recorded[1] < period(today, key):
            self.asked = key
        return today if first is None else min(first, today)


class TacsOfTypes:
    """Set of all TACs to which the lists of device types assign a type in `types`. Devices are looked up in this set as in a device list.

    The compiled fast path uses the arrays of the set.
    """

    __slots__ = ("_arrays", "_states", "_types", "tables")
    kind: ClassVar[str] = DEVICES

    def __init__(self, index: "Index", types: frozenset[int]) -> None:
        self.tables = [cast("PairList", entries) for entries in index.lists.values() if entries.kind == TYPES]
        """Lists of device types."""
        self._types = types
        self._states: list[Head | None] = []
        self._arrays: tuple[memoryview, memoryview, memoryview] | None = None

    @property
    def arrays(self) -> tuple[memoryview, memoryview, memoryview] | None:
        """Arrays of this set of TACs for the compiled fast path; None until a list of device types is loaded."""
        if (states := [table.state for table in self.tables]) != self._states:
            images = [table.image for table in self.tables if table.image is not None]
            self._states, self._arrays = states, tacs_bound(images, self._types) if images else None
        return self._arrays


FORMS: Mapping[str, type[DeviceList]] = {**dict.fromkeys(BOUND, PairList), FIRST_SEEN: FirstSeenList}
"""Classes of lists of some kinds; other lists are DeviceLists."""


class Index:
    """All lists in memory, in the order of the configuration.

    Args:
        kinds: name of each list → its kind (eir.lists.record.settings).
        now: clock by which rows begin and end.
    """

    def __init__(self, kinds: Mapping[str, str], now: Clock = time.time) -> None:
        self.lists: dict[str, DeviceList] = {}
        self.now = now
        self.version = 0
        """Counter that changes with each change."""
        self.apply(kinds)

    def apply(self, kinds: Mapping[str, str]) -> None:
        """Apply a new configuration: the names and kinds of its lists.

        A list with the same name and kind keeps its content.
        """
        before, self.lists = self.lists, {}
        self.version += 1
        for name, kind in kinds.items():
            entries = before.get(name)
            if entries is None or entries.kind != kind:
                entries = FORMS.get(kind, DeviceList)(name, kind, self.now)
            self.lists[name] = entries

    @property
    def first_seen(self) -> FirstSeenList | None:
        """Record of first sightings; None if the configuration has no record."""
        return next((each for each in self.lists.values() if isinstance(each, FirstSeenList)), None)

    def switch(self, name: str, state: Head, image: Image, reasons: Sequence[str] = ()) -> Image | None:
        """Put a new state and content (image) of a list in force; return the previous image, so that the caller can release it.

        `reasons`: chosen reasons by which the image was built. Returns None if the list had no image, or if `image` is the previous image.
        """
        before = self.lists[name].image
        self.lists[name].replace(state, image, reasons)
        if self.first_seen is not None:
            self.first_seen.note_time(state.loaded_at)
        self.version += 1
        return None if before is image else before
