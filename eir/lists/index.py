"""The lists in memory, from which every check is answered. May import eir.lists and numpy; knows no store and no loop.

A list is one dict of pages in the forms of eir.lists.keyset, and a sieve (eir.lists.sift). It is replaced by switching one
reference; what it was before is freed in steps, and so goes everything else here that could take long: the caller gives a
deadline of `time.perf_counter` and calls again until the step says that nothing is left.

Whether a row has ended is decided when the row is asked for, by the clock that the index goes by. So no moment is left at
which a row that has ended could answer, however it came here: by a switch, an amendment, a start, or time that went by.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from eir.lists.keyset import WHOLE, KeySet, count_of, find_in_bytes, hold, hold_arrays, keys_of, rank
from eir.lists.pages import PAGE_KEYS, Page, decode_sections
from eir.lists.roaring import may_be_arrays
from eir.lists.settings import PAIRS
from eir.lists.sieve import KeyArray
from eir.lists.sift import Sifter, room_for
from eir.lists.store import ListState

AMENDED_PAGES_MAX = 20_000
"""Pages that one switch may change in place, which takes about 1 ms; beyond, a new list is built beside the old one."""

STEPS_BETWEEN_CLOCKS = 32
UNTIL_MAX = 2**32 - 1  # 2106: later ends are held as this one

Clock = Callable[[], float]
"""The time by which rows end, in Unix seconds."""


class Contents:
    """What is in a list at one moment, and the ends of its rows. Parts of it are shared with the contents after it."""

    __slots__ = ("ends", "imsis", "more", "pages", "sifter", "subscribers", "tacs", "temporary", "until")

    def __init__(self) -> None:
        self.pages: dict[int, KeySet] = {}
        self.sifter = Sifter(self.pages, 0)
        # Pages with rows that end: when, in Unix seconds (4 bytes, 0 for none), in the order of keys or pairs; one for all
        # if they are alike.
        self.until: dict[int, bytes] = {}
        # Whole TACs that end, a page each: when, and what is listed singly under them.
        self.tacs: dict[int, tuple[int, Part | None]] = {}
        # Pairs: for each device of a page, in order, its IMSI keys (8 bytes each); where some device has not exactly one,
        # for each device the position after its last IMSI (4 bytes).
        self.imsis: dict[int, bytes] = {}
        self.ends: dict[int, bytes] = {}
        # Pairs, the other way. Of rows that do not end: all IMSIs, and how many devices more than one an IMSI has; of rows
        # that end: for each IMSI the end, or how many devices it has until when.
        self.subscribers: dict[int, BitMap] = {}
        self.more: dict[int, int] = {}
        self.temporary: dict[int, int | Counter[int]] = {}

    def bind(self, imsi: int, end: int, change: int) -> None:
        """Count devices more (1) or less (-1) for an IMSI, in rows with this end."""
        if end:
            self._bind_until(imsi, end, change)
            return
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

    def _bind_until(self, imsi: int, end: int, change: int) -> None:
        held = self.temporary.get(imsi)
        if held is None and change == 1:
            self.temporary[imsi] = end
            return
        counts = held if isinstance(held, Counter) else Counter(() if held is None else (held,))
        counts[end] += change
        if not counts[end]:
            del counts[end]
        if counts:
            self.temporary[imsi] = counts
        else:
            self.temporary.pop(imsi, None)

    def has_subscriber(self, imsi: int, now: float) -> bool:
        """True if a row with this IMSI is in force."""
        if imsi % PAGE_KEYS in self.subscribers.get(imsi // PAGE_KEYS, ()):
            return True
        held = self.temporary.get(imsi, 0)
        return any(end > now for end in held) if isinstance(held, Counter) else held > now

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


@dataclass(slots=True, eq=False)
class Part:
    """One page in the form in which Contents holds it: keys, ends of rows, IMSIs."""

    held: KeySet
    until: bytes = b""
    imsis: bytes = b""
    ends: bytes = b""
    tac: "tuple[int, Part | None] | None" = None
    """The end of a whole TAC that has one, and the single rows under it; then `held` is WHOLE, and all else is empty."""

    def holds(self, remainder: int, now: float) -> bool:
        """True if a row with this key is in force."""
        if self.tac is not None:
            end, singles = self.tac
            return end > now or (singles is not None and singles.holds(remainder, now))
        position = rank(self.held, remainder)
        return position >= 0 and any(not end or end > now for end in self._ends_of(self._rows(position)))

    def keys(self, now: float) -> Sequence[int]:
        """All keys that a row in force has, in order."""
        if self.tac is not None and self.tac[0] <= now:
            singles = self.tac[1]
            return () if singles is None else singles.keys(now)
        keys = keys_of(self.held).tolist()
        return [key for key in keys if self.holds(key, now)] if self.until else keys

    def bound(self, remainder: int, now: float) -> tuple[int, ...]:
        """The IMSI keys of the rows with this key that are in force."""
        position = rank(self.held, remainder)
        if position < 0:
            return ()
        rows = self._rows(position)
        imsis = memoryview(self.imsis).cast("Q")[rows.start : rows.stop]
        if not self.until:
            return tuple(imsis)
        return tuple(imsi for imsi, end in zip(imsis, self._ends_of(rows), strict=True) if not end or end > now)

    def bindings(self) -> Iterator[tuple[int, int]]:
        """Each row of a list of pairs: its IMSI key and its end (0: none)."""
        imsis = memoryview(self.imsis).cast("Q")
        return zip(imsis, self._ends_of(range(len(imsis))), strict=True)

    def _rows(self, position: int) -> range:
        """The rows of the key at a position: one, or in a list of pairs one for each of its SIMs."""
        if not self.ends:
            return range(position, position + 1)
        ends = memoryview(self.ends).cast("I")
        return range(ends[position - 1] if position else 0, ends[position])

    def _ends_of(self, rows: range) -> Sequence[int]:
        ends = memoryview(self.until).cast("I")
        if len(ends) > 1:
            return ends[rows.start : rows.stop]
        return (ends[0] if self.until else 0,) * len(rows)


def _changed_bindings(before: "Part | None", after: "Part | None") -> dict[tuple[int, int], int]:
    """Rows of pairs that come (1 or more of a kind) and go, by IMSI and end."""
    changed = Counter(after.bindings() if after is not None else ())
    changed.subtract(before.bindings() if before is not None else ())
    return {row: change for row, change in changed.items() if change}


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

    __slots__ = ("_contents", "_get", "_tacs", "_until", "kind", "name", "now", "state")

    def __init__(self, name: str, kind: str, now: Clock) -> None:
        self.name, self.kind, self.now = name, kind, now
        self.state: ListState | None = None  # of the release that is in memory; None before the first one
        self._put(Contents())

    def _put(self, contents: Contents) -> None:
        self._contents = contents
        self._get, self._until, self._tacs = contents.pages.get, contents.until, contents.tacs

    def holds(self, key: int) -> bool:
        """True if a row with the key (eir.device) is in force. The way of a check that `doubtful` could not settle."""
        number = key // 1_000_000
        if (held := self._get(number)) is None:
            return False
        if held.__class__ is bytes:
            if find_in_bytes(held, key % 1_000_000) < 0:
                return False
        elif key % 1_000_000 not in held:
            return False
        if number in self._until or number in self._tacs:
            part = self._contents.part(number)
            return part is not None and part.holds(key % 1_000_000, self.now())
        return True

    def doubtful(self, keys: KeyArray) -> npt.NDArray[np.bool_] | None:
        """For each key False if it is certainly not in the list, for a tenth of a look-up's cost; None until `sift` is done."""
        return self._contents.sifter.doubtful(keys)

    def sift(self, deadline: float) -> bool:
        """Prepare what `doubtful` asks; True when nothing is left, False if the deadline came first."""
        return self._contents.sifter.work(deadline)

    def __iter__(self) -> Iterator[int]:
        """All keys in ascending order that a row in force has: a walk through the whole list."""
        for number in sorted(self._contents.pages):
            part = self._contents.part(number)
            for remainder in () if part is None else part.keys(self.now()):
                yield number * PAGE_KEYS + remainder

    def builder(self, state: ListState, *, amend: bool = False) -> "ListBuilder":
        """As Index.builder, for a list that the index may let go meanwhile."""
        return ListBuilder(self.kind, state, self._contents, amend=amend)


class PairList(DeviceList):
    """A list of devices, each with the SIMs (IMSIs) that it is listed with; `holds` is True with any SIM."""

    __slots__ = ()

    def binds(self, device: int, imsi: int) -> bool:
        """True if the list has this device with this SIM (keys of eir.device)."""
        return imsi in self.imsis(device)

    def imsis(self, device: int) -> tuple[int, ...]:
        """The SIMs that a device is listed with."""
        part = self._contents.part(device // PAGE_KEYS)
        return () if part is None else part.bound(device % PAGE_KEYS, self.now() if part.until else 0.0)

    def has_subscriber(self, imsi: int) -> bool:
        """True if the list has this SIM with any device."""
        return self._contents.has_subscriber(imsi, self.now())

    def device_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the device, but not with this SIM."""
        imsis = self.imsis(device)
        return bool(imsis) and imsi not in imsis

    def subscriber_bound_elsewhere(self, device: int, imsi: int) -> bool:
        """True if the list has the SIM, but not with this device."""
        # Asked first: a row that ends in between does not count as one with another device.
        return not self.binds(device, imsi) and self.has_subscriber(imsi)


class ListBuilder:
    """The contents that a list is to have next, made page by page beside those in force.

    Built from nothing it holds the pages that are added and no others; as an amendment it changes those pages only, AMENDED_PAGES_MAX
    at most. Pages that stay the same stay the same objects: forked workers go on sharing them.
    """

    __slots__ = ("_base", "_changes", "_contents", "_pairs", "_room", "amends", "state")

    def __init__(self, kind: str, state: ListState, base: Contents, *, amend: bool) -> None:
        self.state, self.amends = state, amend
        self._base, self._pairs = base, kind == PAIRS
        self._contents = base if amend else Contents()
        self._room = 0
        """Of the sieve, by the pages that came: what the state says may be damaged."""
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
        self._room += room_for(held)
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
            for imsi, end in part.bindings() if self._pairs else ():
                self._contents.bind(imsi, end, 1)

    def finish(self) -> Contents:
        """The contents, with all amendments made. Index.switch calls it."""
        for number, part in self._changes.items():
            if self._pairs:
                for (imsi, end), change in _changed_bindings(self._contents.part(number), part).items():
                    self._contents.bind(imsi, end, change)
            self._contents.put(number, part)
        if self.amends:
            self._contents.sifter.changed(self._changes, self.state.entries)
        else:
            self._contents.sifter = Sifter(self._contents.pages, min(self.state.entries, self._room))
        return self._contents


class Retired:
    """Contents that are no longer in force, to be freed in steps: dropping 250 thousand pages at once takes 10 ms."""

    __slots__ = ("_tables",)

    def __init__(self, contents: Contents | None) -> None:
        self._tables: list[dict[int, Any]] = []
        if contents is not None:
            self._tables += (contents.pages, contents.until, contents.tacs, contents.imsis, contents.ends)
            self._tables += (contents.subscribers, contents.more, contents.temporary)

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
    """All lists that the configuration names, in its order. `kinds`: name → devices, pairs or subscribers; rows end by `now`."""

    def __init__(self, kinds: Mapping[str, str], now: Clock = time.time) -> None:
        self.lists: dict[str, DeviceList] = {}
        self._now = now
        self.reconfigure(kinds)

    def reconfigure(self, kinds: Mapping[str, str]) -> list[Retired]:
        """Take over other lists; those that stay keep what they hold. Free what is returned once nothing asks the lists gone."""
        before, self.lists = self.lists, {}
        for name, kind in kinds.items():
            kept = before.get(name)
            if kept is not None and kept.kind == kind:
                self.lists[name] = before.pop(name)
            else:
                self.lists[name] = (PairList if kind == PAIRS else DeviceList)(name, kind, self._now)
        return [Retired(gone._contents) for gone in before.values()]  # noqa: SLF001  # one module, one owner of contents

    def go_by(self, now: Clock) -> None:
        """Have rows end by another clock."""
        self._now = now
        for entries in self.lists.values():
            entries.now = now

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
