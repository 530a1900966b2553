"""The contract between those who change lists, those who follow them, and the store in between.

One suite of tests (tests/lists/stores/test_store_contract.py) holds every store to it. All methods are coroutines, may be called
from one event loop, and raise StoreError (eir.errors) when the store cannot do what was asked.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeAlias

from eir.errors import StoreError
from eir.lists.pages.pages import EMPTY_DIGEST, Page

Mark: TypeAlias = tuple[int, int]
"""Up to where a list's serials are used up: how often an operator set that back, and the highest one accepted. It only rises."""

ACCEPTED, FORCED, REFUSED, ROLLED_BACK = "accepted", "forced", "refused", "rolled_back"
"""Outcomes of releases, as `eir_releases_total` labels them. FORCED: put in force with a limit lifted by hand."""

MAIN, FEED = "main", "feed"
CHAINS = (MAIN, FEED)
"""Chains of the history. FEED holds rows that registers feed and has a size limit of its own, so that rows displace no record of MAIN."""
ANCHOR = "anchor"
"""`what` of a record in MAIN that holds number and digest of the newest record in FEED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListState:
    """A store's record of a list, besides its pages. Times are UTC, ISO 8601 with a Z, or None."""

    kind: str
    serial: int
    """The serial of the release in force; 0 for a local list."""
    generation: int
    """+1 at every change, rollback included; a new list has 1."""
    highest_serial: int
    """The highest serial of all releases ever accepted; only `reset_serial` lowers it."""
    release_digest: str
    """SHA-256 of the manifest in force, hexadecimal."""
    serial_resets: int = 0
    """Times that an operator has set the highest serial back."""
    content_digest: str = EMPTY_DIGEST
    """Proves the pages, see pages.content_digest."""
    entries: int = 0
    """Single identifiers, and whole TACs, each counted as one."""
    devices: int = 0
    """Identifiers that are listed: a whole TAC counts a million, the single ones under it not again."""
    reasons: tuple[str, ...] = ()
    """The reasons that the reason bytes in pages stand for; 255 at most, then `other`."""
    issued: str | None = None
    expires: str | None = None
    signers: tuple[str, ...] = ()
    """Principals whose signatures counted, each with its key's fingerprint: `name SHA256:…`."""
    loaded_at: str | None = None

    @property
    def mark(self) -> Mark:
        """The mark that a release must exceed, by its serial."""
        return self.serial_resets, self.highest_serial


NO_LIST = ListState(kind="", serial=0, generation=0, highest_serial=0, release_digest="")
"""The state of a list that has never been loaded."""


KEEP = 5
"""Releases of a list that are kept for a rollback, unless configured otherwise."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a list: from generation `before` to `after`; `pages` None means that all were replaced."""

    before: int
    after: int
    pages: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the history; refusals are events too."""

    time: str
    who: str
    """User and host that did it."""
    what: str
    """load, refuse, rollback, add, remove, heal, reset-serial, reload, trim, adopt, trace, anchor."""
    list: str | None = None
    """None where no verified manifest named a list."""
    serial: int | None = None
    digest: str | None = None
    """Release digest (SHA-256 of the manifest); of a reload the SHA-256 of the configuration; of an anchor that of the record `head`."""
    outcome: str
    detail: str = ""
    content: str | None = field(default=None, compare=False)
    """The first digits of the content digest of the list after it (eir.lists.record.history); the store sets it in the write."""
    count: int = 1
    """Refusals that are folded into one; `time` and `detail` are the last one's."""
    first: str | None = None
    """The time of the first of several."""
    head: int | None = None
    """Number of the newest record in the feed's chain, in an anchor; the store sets it in the write."""
    number: int | None = field(default=None, compare=False)
    """The record's number in its chain; None for a refusal, and for an event that is not written yet."""
    chain: str = field(default=MAIN, compare=False)
    """The chain that the event is recorded in."""


class Record(NamedTuple):
    """One link of the history's chain, see eir.lists.record.history."""

    number: int
    """Its position in the chain."""
    text: str
    """The record's text, which includes its own number and the digest of the record before it."""


class Fold(NamedTuple):
    """Refusals of one day, list, sender and reason."""

    key: str
    """The day, list, sender and reason."""
    text: str
    """JSON: the last of these events, with `count` and `first` (its time); `after`, the number of the record that was the newest then;
    and `at`, its place among all refusals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The ledger of a chain: the contents that the chain must have to be whole. Refusals belong to MAIN, anchors are about FEED."""

    first: int = 1
    """Number of the oldest record that is kept."""
    number: int = 0
    """Number of the newest one."""
    digest: str = "0" * 64
    """SHA-256 of its text."""
    bytes: int = 0
    """Bytes of all texts that are kept, roughly."""
    refused: int = 0
    """All refusals that there ever were."""
    refusals: str = EMPTY_DIGEST
    """The sum of the SHA-256 of those that are kept, folded."""
    anchored: int = 0
    """Number of the record that the last anchor holds."""
    anchored_at: str = ""
    """Time of the last anchor, or of the last attempt that found nothing new."""


@dataclass(frozen=True, slots=True)
class Release:
    """A state that is, or was, in force in a list: a release, or the result of one change of a local list."""

    state: ListState
    """The state as it was when it came into force, generation included."""
    made: Event | None
    """The event that brought it, if known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome of a list: its count and its last time."""

    list: str | None
    outcome: str
    count: int
    last: str


class ListStore(Protocol):
    """The store of verified lists.

    `seen` is the generation that the caller saw (0: no list yet). Writes are conditional on it, atomic for every reader,
    and raise GenerationConflict when someone was faster.
    """

    async def state(self, name: str) -> ListState | None:
        """The state in force; None if the list has never been loaded."""

    async def states(self) -> Mapping[str, ListState]:
        """The states of all lists."""

    async def replace(
        self,
        name: str,
        state: ListState,
        pages: Sequence[Page],
        *,
        seen: int,
        keep: int = KEEP,
        event: Event | None = None,
    ) -> ListState:
        """Put a full release in force and keep the `keep` releases before it for a rollback; returns the state as stored.

        The store sets `generation` (seen + 1), `highest_serial` (never lower than before) and `serial_resets`. `event`, here and
        below, goes into the history if the write is made, and only then, whatever happens to who makes it.
        """

    async def amend(
        self,
        name: str,
        state: ListState,
        pages: Sequence[Page],
        *,
        seen: int,
        keep: int = KEEP,
        event: Event | None = None,
    ) -> ListState:
        """As `replace` for a delta: its pages replace those of the same number, which are kept (one that is `gone` goes)."""

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        """Undo all releases after the kept one of generation `to` (None: the last one), full or delta, as a new generation.

        What was undone is kept no longer, what was before it still is. Raises NothingToRollBack.
        """

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        """Set the highest serial to `to`, as a new generation of the same list; what is kept for a rollback stays."""

    async def releases(self, name: str) -> Sequence[Release]:
        """The release in force, then those that a rollback could bring back, newest first.

        Empty if the list does not exist.
        """

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Those of the numbered pages that a release of `releases` has, by its generation.

        None if the release or its pages are not kept any more.

        Raises StoreChanged when the list changed meanwhile.
        """

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True,
        event: Event | None = None,
    ) -> None:  # fmt: skip
        """Put a list in force exactly as `state` says, its generation and highest serial included.

        For a node's last good copy, and for writing such a copy back to a store that lost it. `whole` False: the pages
        replace those of the same number, as in `amend`. What was kept for a rollback is dropped.
        """

    def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """The list as batches of pages, each with the state that it belongs to; the first batch may be empty.

        Raises StoreChanged when the list changed meanwhile. Nothing is yielded for a list that does not exist.
        """

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """The state and those of the numbered pages that exist, read as of one moment."""

    async def changes(self, name: str, after: int) -> Sequence[Change] | None:
        """The steps after generation `after`, oldest first, without a gap; None if they are no longer all kept."""

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Return as soon as a list's generation may differ from the one given (0: no list yet), else after the time."""

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """Take, or keep, the sole right to do `what` for a time; False while another has it. `ttl_s` 0 gives it back."""

    async def record(self, event: Event) -> None:
        """Append to the event's chain; a refusal is folded into others of its kind.

        The store completes an anchor with the head of the feed's chain, and writes none if the last anchor holds the same head.
        """

    async def settle(self) -> None:
        """Append what a writer that died in the middle left to be written."""

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """The newest events, oldest first: about a list, from a time on, of one chain (None: of both). Refusals count to MAIN."""

    async def ledger(self, chain: str = MAIN) -> Ledger:
        """The ledger of a chain."""

    def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        """The records of a chain after a number, oldest first, in batches, as they stand: nothing of them is checked."""

    async def folds(self) -> Sequence[Fold]:
        """Refusals, folded."""

    async def rewrite_history(
        self,
        batches: AsyncIterable[Sequence[Record]],
        folds: Sequence[Fold],
        *,
        after: int,
        seen: Ledger | None,
        exact: bool = False,
        chain: str = MAIN,
    ) -> None:
        """Replace all records of a chain after number `after`, and add refusals to MAIN (`exact`: and drop all others).

        For a node's copy of the history, and for giving it back to a store that lost it. Raises GenerationConflict if the chain's ledger
        is no longer `seen`. With `seen` None, of a chain that is damaged nothing stays.
        """

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """Forget the records of a chain from before a time, and the oldest while all take more than that; returns how many.

        `bytes_max` None: by time alone. If any goes, `event` is appended to the same chain, with what went in its detail; None, for a
        copy on a node's own disk: nothing is.
        """

    async def outcomes(self) -> Sequence[Outcome]:
        """The outcomes of each list, with their counts and last times."""

    async def newer(self) -> str | None:
        """The reason why this program changes nothing in the store: its form is newer. None if it may."""

    async def close(self) -> None:
        """Let go of files and connections."""


async def recorded(store: ListStore, event: Event) -> bool:
    """Write an event to the history; False if the store cannot: the event has happened all the same."""
    with suppress(StoreError):
        await store.record(event)
        return True
    return False


def utc_text(moment: datetime) -> str:
    """A moment as manifests, states and events have it: UTC, whole seconds, with a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
