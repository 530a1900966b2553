"""The lists in memory, from which every check is answered. May import eir.lists and numpy; knows no store, loop or clock.

A list is one dict of pages in the forms of eir.lists.keyset, and a sieve (eir.lists.sift). It is replaced by switching one
reference; what it was before is freed in steps, and so goes everything else here that could take long: the caller gives a
deadline of `time.perf_counter` and calls again until the step says that nothing is left.
"""

import heapq
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from eir.lists.keyset import WHOLE, Keys, KeySet, count_of, find_in_bytes, hold, hold_arrays, hold_bitmap, keys_of, rank
from eir.lists.pages import PAGE_KEYS, Page, decode_sections
from eir.lists.roaring import may_be_arrays
from eir.lists.settings import PAIRS
from eir.lists.sieve import KeyArray
from eir.lists.sift import Sifter
from eir.lists.store import ListState

AMENDED_PAGES_MAX = 20_000
"""Pages that one switch may change in place, which takes about 1 ms; beyond, a new list is built beside the old one."""

STEPS_BETWEEN_CLOCKS = 32
UNTIL_MAX = 2**32 - 1  # 2106: later ends are held as this one
PAGE_BITS = 37
"""Page numbers stay below 2^37 (eir.device: the highest key is MEID_BASE + 2^56)."""


class Contents:
    """What is in a list at one moment, and the ends of its rows. Parts of it are shared with the contents after it."""

    __slots__ = ("due", "ends", "imsis", "more", "pages", "sifter", "subscribers", "tacs", "until")

    def __init__(self, entries: int = 0) -> None:
        self.pages: dict[int, KeySet] = {}
        self.sifter = Sifter(self.pages, entries)
        # Rows that end, a page each: Unix seconds (4 bytes, 0 for none), in the order of keys or pairs; the sorted table of
        # what ends when is a heap of end << PAGE_BITS | page, where entries of pages replaced since are passed over.
        self.until: dict[int, bytes] = {}
        self.due: list[int] = []
        # Whole TACs that end, a page each: when, and what is listed singly under them.
        self.tacs: dict[int, tuple[int, Part | None]] = {}
        # Pairs: for each device of a page, in order, its IMSI keys (8 bytes each); where some device has not exactly one,
        # for each device the position after its last IMSI (4 bytes).
        self.imsis: dict[int, bytes] = {}
        self.ends: dict[int, bytes] = {}
        # Pairs, the other way: all IMSIs, and how many devices more than one an IMSI has.
        self.subscribers: dict[int, BitMap] = {}
        self.more: dict[int, int] = {}

    def bind(self, imsi: int, change: int) -> None:
        """Count one device more (1) or less (-1) for an IMSI."""
        number, remainder = divmod(imsi, PAGE_KEYS)
        if (bitmap := self.subscribers.get(number)) is None:
            bitmap = self.subscribers[number] = BitMap()
        count = (remainder in bitmap) + self.more.pop(imsi, 0) + change
        if count > 1:
            self.more[imsi] = count - 1
        if count > 0:
            bitmap.add(remainder)
        else:
            bitmap.discard(remainder)

    def put(self, number: int, part: "Part | None") -> None:
        """Replace one page with all that belongs to it."""
        for table in (self.pages, self.until, self.imsis, self.ends, self.tacs):
            table.pop(number, None)
        if part is None:
            return
        self.pages[number] = part.held
        if part.tac is not None:
            self.tacs[number] = part.tac
        if part.until:
            self.until[number] = part.until
        if part.next_end:
            heapq.heappush(self.due, part.next_end << PAGE_BITS | number)
        if part.imsis:
            self.imsis[number] = part.imsis
        if part.ends:
            self.ends[number] = part.ends

    def part(self, number: int) -> "Part | None":
        """A page with all that belongs to it."""
        if (held := self.pages.get(number)) is None:
            return None
        until, imsis, ends = self.until.get(number, b""), self.imsis.get(number, b""), self.ends.get(number, b"")
        return Part(held, until, imsis, ends, self.tacs.get(number))

    def expire(self, now: int, deadline: float) -> bool:
        """Drop rows whose end has come; True when none is left, False if the deadline came first."""
        while self.due and self.due[0] >> PAGE_BITS <= now:
            entry = heapq.heappop(self.due)
            number = entry & (1 << PAGE_BITS) - 1
            part = self.part(number)
            if part is not None and part.next_end == entry >> PAGE_BITS:
                rest = part.after(now)
                for imsi, change in _changed_bindings(part, rest).items():
                    self.bind(imsi, change)
                self.put(number, rest)
            if time.perf_counter() > deadline:
                return False
        return True


@dataclass(slots=True, eq=False)
class Part:
    """One page in the form in which Contents holds it: keys, ends of rows, IMSIs."""

    held: KeySet
    until: bytes = b""
    imsis: bytes = b""
    ends: bytes = b""
    tac: "tuple[int, Part | None] | None" = None
    """The end of a whole TAC that has one, and the single rows under it, which count once it is over; `held` is WHOLE until
    then, and all else is empty."""

    @property
    def next_end(self) -> int:
        """The earliest end of a row in it; 0 if none ends. Under a TAC no row counts before the TAC ends."""
        if self.tac is not None:
            return self.tac[0]
        if not self.until:
            return 0
        ends = np.frombuffer(self.until, dtype="<u4")
        return int(ends[ends > 0].min())

    def bound(self, position: int) -> memoryview:
        """The IMSI keys of the device at a position of the page."""
        imsis = memoryview(self.imsis).cast("Q")
        if not self.ends:
            return imsis[position : position + 1]
        ends = memoryview(self.ends).cast("I")
        return imsis[ends[position - 1] if position else 0 : ends[position]]

    def after(self, now: int) -> "Part | None":
        """What is left of it once the rows that end by `now` have gone; of a device, its SIMs that have not."""
        if self.tac is not None:
            end, singles = self.tac
            return self if end > now else singles and singles.after(now)
        if not self.until:
            return self
        keys = keys_of(self.held)
        rows = len(self.imsis) // 8 if self.imsis else len(keys)
        ends = np.frombuffer(self.until, dtype="<u4")
        if len(ends) < rows:  # one end for all
            ends = np.broadcast_to(ends, rows)
        stay = (ends == 0) | (ends > now)
        if not stay.any():
            return None
        until = ends[stay].tobytes() if ends[stay].any() else b""
        if not self.imsis:
            return _part(keys[stay], until)
        counts = np.diff(np.frombuffer(self.ends, "<u4"), prepend=np.uint32(0)) if self.ends else np.ones(rows, "<u4")
        left = np.bincount(np.repeat(np.arange(len(keys)), counts)[stay], minlength=len(keys))
        some = left[left > 0]
        imsis = np.frombuffer(self.imsis, "<u8")[stay].tobytes()
        return _part(keys[left > 0], until, imsis, b"" if (some == 1).all() else np.cumsum(some).astype("<u4").tobytes())


def _part(keys: Keys, until: bytes, imsis: bytes = b"", ends: bytes = b"") -> "Part | None":
    held = hold_bitmap(BitMap(keys))
    return None if held is None else Part(held, until, imsis, ends)


def _bindings(part: "Part | None") -> Counter[int]:
    return Counter(memoryview(part.imsis).cast("Q")) if part is not None and part.imsis else Counter()


def _changed_bindings(before: "Part | None", after: "Part | None") -> dict[int, int]:
    changed = _bindings(after)
    changed.subtract(_bindings(before))
    return {imsi: change for imsi, change in changed.items() if change}


def decode_part(page: Page) -> Part | None:
    """A page out of the store in the form in which it is held; None if it is gone. Raises ValueError if it is damaged."""
    if (tac := page.tac) is not None:
        singles = decode_part(page.singles)
        end = min(max(tac.until, 0), UNTIL_MAX)
        return Part(WHOLE, tac=(end, singles) if end else None)
    if not page.keys:
        return None
    held = hold(page.keys)
    if held is None or not page.extra:
        return None if held is None else Part(held)
    sections = decode_sections(page.extra)
    part, devices = Part(held), count_of(held)
    if content := sections.imsis:
        counts = np.frombuffer(content[: 4 * devices], dtype="<u4")
        part.imsis = content[4 * devices :]
        if len(counts) != devices or len(part.imsis) != 8 * int(counts.sum()):
            raise ValueError(f"page {page.number} has {devices} devices and {len(content)} bytes of subscribers")
        part.ends = b"" if (counts == 1).all() else np.cumsum(counts).astype("<u4").tobytes()
    if sections.until:
        rows = len(part.imsis) // 8 if part.imsis else devices
        ends = np.frombuffer(sections.until, dtype="<i8")
        if len(ends) not in {1, rows}:
            raise ValueError(f"page {page.number} has {rows} rows and {len(ends)} ends")
        if ends.any():
            part.until = np.clip(ends, 0, UNTIL_MAX).astype("<u4").tobytes()
    return part


class DeviceList:
    """A list of keys: devices, or for kind `subscribers` IMSIs. What it holds changes by Index.switch only."""

    __slots__ = ("_contents", "_get", "kind", "name", "state")

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.state: ListState | None = None  # of the release that is in memory; None before the first one
        self._put(Contents())

    def _put(self, contents: Contents) -> None:
        self._contents = contents
        self._get = contents.pages.get

    def holds(self, key: int) -> bool:
        """True if the key (eir.device) is in the list. The way of a check that `doubtful` could not settle."""
        if (held := self._get(key // 1_000_000)) is None:
            return False
        if held.__class__ is bytes:
            return find_in_bytes(held, key % 1_000_000) >= 0
        return key % 1_000_000 in held

    def doubtful(self, keys: KeyArray) -> npt.NDArray[np.bool_] | None:
        """For each key False if it is certainly not in the list, for a tenth of a look-up's cost; None until `sift` is done."""
        return self._contents.sifter.doubtful(keys)

    def sift(self, deadline: float) -> bool:
        """Prepare what `doubtful` asks; True when nothing is left, False if the deadline came first."""
        return self._contents.sifter.work(deadline)

    def __iter__(self) -> Iterator[int]:
        """All keys in ascending order: a walk through the whole list."""
        for number in sorted(self._contents.pages):
            base = number * PAGE_KEYS
            for remainder in keys_of(self._contents.pages[number]):
                yield base + int(remainder)

    def builder(self, state: ListState, *, amend: bool = False) -> "ListBuilder":
        """As Index.builder, for a list that the index may let go meanwhile."""
        return ListBuilder(self.kind, state, self._contents, amend=amend)

    def expire(self, now: float, deadline: float) -> bool:
        """Drop the rows that end by `now` (Unix seconds); True when none is left, False if the deadline came first."""
        return self._contents.expire(int(now), deadline)


class PairList(DeviceList):
    """A list of devices, each with the SIMs (IMSIs) that it is listed with; `holds` is True with any SIM."""

    __slots__ = ()

    def binds(self, device: int, imsi: int) -> bool:
        """True if the list has this device with this SIM (keys of eir.device)."""
        return imsi in self.imsis(device)

    def imsis(self, device: int) -> tuple[int, ...]:
        """The SIMs that a device is listed with."""
        part = self._contents.part(device // PAGE_KEYS)
        position = rank(part.held, device % PAGE_KEYS) if part is not None else -1
        return tuple(part.bound(position)) if part is not None and position >= 0 else ()

    def has_subscriber(self, imsi: int) -> bool:
        """True if the list has this SIM with any device."""
        return imsi % PAGE_KEYS in self._contents.subscribers.get(imsi // PAGE_KEYS, ())

    def device_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the device, but not with this SIM."""
        return self.holds(device) and not self.binds(device, imsi)

    def subscriber_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the SIM, but not with this device."""
        return self.has_subscriber(imsi) and not self.binds(device, imsi)


class ListBuilder:
    """The contents that a list is to have next, made page by page beside those in force.

    Built from nothing it holds the pages that are added and no others; as an amendment it changes those pages only, AMENDED_PAGES_MAX
    at most. Pages that stay the same stay the same objects: forked workers go on sharing them.
    """

    __slots__ = ("_base", "_changes", "_contents", "_pairs", "amends", "state")

    def __init__(self, kind: str, state: ListState, base: Contents, *, amend: bool) -> None:
        self.state, self.amends = state, amend
        self._base, self._pairs = base, kind == PAIRS
        self._contents = base if amend else Contents(state.entries)
        self._changes: dict[int, Part | None] = {}

    def add_all(self, pages: Sequence[Page], unchanged: frozenset[int] = frozenset()) -> None:
        """As `add` for pages that a store gave together, faster. Raises ValueError if one is damaged.

        `unchanged`: numbers of pages that may be those in force; only these are compared with them.
        """
        many: list[Page] = []
        rest: list[Page] = []
        for page in pages:
            (rest if self.amends or page.extra or not may_be_arrays(page.keys) else many).append(page)
        try:
            held = hold_arrays([page.keys for page in many]) if many else []
        except ValueError:
            many, held, rest = [], [], [*pages]
        for page, each in zip(many, held, strict=True):
            self._hold(page.number, each, compare=page.number in unchanged)
        for page in rest:
            self.add(page)

    def _hold(self, number: int, held: KeySet, *, compare: bool = True) -> None:
        before = self._base.pages.get(number) if compare else None
        same = before is not None and before.__class__ is held.__class__ and before == held
        self._contents.pages[number] = before if before is not None and same else held

    def add(self, page: Page) -> None:
        """Take a page as a store gives it (for an amendment: empty if it is gone). Raises ValueError if it is damaged."""
        number, keys, extra = page
        if self.amends:
            self._changes[number] = decode_part(page)
            return
        if extra:  # else no Part is needed: most pages are only keys
            part = decode_part(page)
            held = None if part is None else part.held
        else:
            part, held = None, hold(keys) if keys else None
        if held is None:
            return
        self._hold(number, held)
        if part is not None and (part.until or part.imsis or part.tac is not None):
            part.held = self._contents.pages[number]
            self._contents.put(number, part)
            for imsi in memoryview(part.imsis).cast("Q") if self._pairs else ():
                self._contents.bind(imsi, 1)

    def expire(self, now: float, deadline: float) -> bool:
        """Drop the rows that ended before the list came into force, as DeviceList.expire does after."""
        return self.amends or self._contents.expire(int(now), deadline)

    def finish(self) -> Contents:
        """The contents, with all amendments made. Index.switch calls it."""
        for number, part in self._changes.items():
            if self._pairs:
                for imsi, change in _changed_bindings(self._contents.part(number), part).items():
                    self._contents.bind(imsi, change)
            self._contents.put(number, part)
        if self.amends:
            self._contents.sifter.changed(self._changes, self.state.entries)
        return self._contents


class Retired:
    """Contents that are no longer in force, to be freed in steps: dropping 250 thousand pages at once takes 10 ms."""

    __slots__ = ("_tables",)

    def __init__(self, contents: Contents | None) -> None:
        self._tables: list[dict[int, Any]] = []
        if contents is not None:
            self._tables += (contents.pages, contents.until, contents.tacs, contents.imsis, contents.ends)
            self._tables += (contents.subscribers, contents.more)

    def free(self, deadline: float) -> bool:
        """Free some of it; True when nothing is left, False if the deadline came first."""
        while self._tables:
            table = self._tables[-1]
            while table:
                for _ in range(min(STEPS_BETWEEN_CLOCKS, len(table))):
                    table.popitem()
                if time.perf_counter() > deadline:
                    return False
            self._tables.pop()
        return True


class Index:
    """All lists that the configuration names, in its order. `kinds`: name → devices, pairs or subscribers."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.lists: dict[str, DeviceList] = {}
        self.reconfigure(kinds)

    def reconfigure(self, kinds: Mapping[str, str]) -> list[Retired]:
        """Take over other lists; those that stay keep what they hold. Free what is returned once nothing asks the lists gone."""
        before, self.lists = self.lists, {}
        for name, kind in kinds.items():
            kept = before.get(name)
            if kept is not None and kept.kind == kind:
                self.lists[name] = before.pop(name)
            else:
                self.lists[name] = PairList(name, kind) if kind == PAIRS else DeviceList(name, kind)
        return [Retired(gone._contents) for gone in before.values()]  # noqa: SLF001  # one module, one owner of contents

    def builder(self, name: str, state: ListState, *, amend: bool = False) -> ListBuilder:
        """Begin the contents that list `name` shall have with this state: from nothing, or as an amendment of what it holds."""
        return self.lists[name].builder(state, amend=amend)

    def switch(self, name: str, builder: ListBuilder) -> Retired:
        """Put in force what was built; returns what was in force before, to be freed in steps."""
        entries = self.lists[name]
        before, after = entries._contents, builder.finish()  # noqa: SLF001  # as above
        entries._put(after)  # noqa: SLF001  # as above
        entries.state = builder.state
        return Retired(None if before is after else before)
