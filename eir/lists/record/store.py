"""Contract of a store, between the loaders that change lists and the followers that read them.

The same tests (tests/lists/stores/test_store_contract.py) verify every store. All methods are coroutines of one event loop, and
raise StoreError (eir.errors) if the store fails.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, TypeAlias

from eir.errors import StoreError
from eir.lists.pages.pages import EMPTY_DIGEST, Page

Mark: TypeAlias = tuple[int, int]
"""Number of times that an operator set the serial back, and the highest serial accepted since. A mark never decreases."""

ACCEPTED, FORCED, REFUSED, ROLLED_BACK = "accepted", "forced", "refused", "rolled_back"
"""Outcomes of releases, as `eir_releases_total` labels them. FORCED: put in force although a limit was exceeded."""

MAIN, FEED = "main", "feed"
CHAINS = (MAIN, FEED)
"""Chains of the history. FEED has the rows of registers and a size limit of its own, so that rows displace no record of MAIN."""
ANCHOR = "anchor"
"""`what` of a record in MAIN with the number and the digest of the newest record in FEED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListState:
    """State of a list, without its pages. Times are UTC, ISO 8601 with a Z, or None."""

    kind: str
    serial: int
    """Serial of the release in force; 0 for a local list."""
    generation: int
    """Number of changes, including rollbacks; a new list has 1."""
    highest_serial: int
    """Highest serial of all accepted releases; only `reset_serial` lowers it."""
    release_digest: str
    """SHA-256 of the manifest in force, hexadecimal."""
    serial_resets: int = 0
    """Number of times that an operator set the highest serial back."""
    content_digest: str = EMPTY_DIGEST
    """Digest of all pages (pages.content_digest)."""
    entries: int = 0
    """Number of single identifiers and whole TACs; each counts as one."""
    devices: int = 0
    """Number of listed identifiers: a whole TAC counts as 1,000,000, and single identifiers under it do not count again."""
    reasons: tuple[str, ...] = ()
    """Texts of the reason indexes in pages; at most 255, then `other`."""
    issued: str | None = None
    expires: str | None = None
    signers: tuple[str, ...] = ()
    """Principals whose signatures count, each with its key's fingerprint: `name SHA256:…`."""
    loaded_at: str | None = None

    @property
    def mark(self) -> Mark:
        """Number of serial resets, and the serial that the next release must exceed."""
        return self.serial_resets, self.highest_serial


NO_LIST = ListState(kind="", serial=0, generation=0, highest_serial=0, release_digest="")
"""State of a list that was never loaded."""


KEEP = 5
"""Default number of releases of a list that are stored for a rollback."""


@dataclass(frozen=True, slots=True)
class ListChange:
    """One change of a list from generation `before` to `after`; `pages` None: all pages were replaced."""

    before: int
    after: int
    pages: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of the history; refusals are events too."""

    time: str
    who: str
    """User and host of the event."""
    what: str
    """load, refuse, rollback, add, remove, heal, reset-serial, reload, trim, adopt, trace, anchor."""
    list: str | None = None
    """Name of the list; None if no verified manifest named a list."""
    serial: int | None = None
    digest: str | None = None
    """SHA-256 of the manifest; for a reload, of the configuration; for an anchor, of the record `head`."""
    outcome: str
    detail: str = ""
    content: str | None = field(default=None, compare=False)
    """First digits of the list's content digest after the event (eir.lists.record.history); the store sets them when it writes."""
    count: int = 1
    """Number of refusals in a fold; `time` and `detail` are those of the last one."""
    first: str | None = None
    """Time of the first refusal in a fold of several."""
    head: int | None = None
    """In an anchor: number of the newest record in the feed's chain; the store sets it when it writes."""
    number: int | None = field(default=None, compare=False)
    """Number of the record in its chain; None for a refusal, and for an event that is not written yet."""
    chain: str = field(default=MAIN, compare=False)
    """Chain of the record."""


class Record(NamedTuple):
    """One record of a chain of the history (eir.lists.record.history)."""

    number: int
    """Position in the chain."""
    text: str
    """JSON text, which includes the number and the digest of the previous record."""


class Fold(NamedTuple):
    """Refusals of one day, list, sender and reason."""

    key: str
    """Key for the day, list, sender and reason."""
    text: str
    """JSON: the last of these events; `count`; `first` (time of the first one); `after`, the number of the newest record at that time; `at`, its position among all refusals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Ledger of a chain: the values that prove that the chain is complete. Refusals are counted in MAIN's, anchors in FEED's."""

    first: int = 1
    """Number of the oldest stored record."""
    number: int = 0
    """Number of the newest record."""
    digest: str = "0" * 64
    """SHA-256 of the newest record's text."""
    bytes: int = 0
    """Approximate size of all stored texts."""
    refused: int = 0
    """Number of all refusals so far."""
    refusals: str = EMPTY_DIGEST
    """Sum of the SHA-256 of the stored folds."""
    anchored: int = 0
    """Number of the record that the last anchor holds."""
    anchored_at: str = ""
    """Time of the last anchor, or of the last attempt without a new record."""


@dataclass(frozen=True, slots=True)
class Release:
    """State that is or was in force in a list: of a release, or after a change of a local list."""

    state: ListState
    """State at the time when it came into force."""
    made: Event | None
    """Event that put it in force, if known."""


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """Number of times that a list had an outcome, and the last time."""

    list: str | None
    outcome: str
    count: int
    last: str


class ListStore(Protocol):
    """Store of verified lists.

    `seen` is the generation that the caller read (0: no list yet). Every write is atomic and conditional on it; it
    raises GenerationConflict if the list has changed since.
    """

    async def state(self, name: str) -> ListState | None:
        """Return the state in force, or None if the list was never loaded."""

    async def states(self) -> Mapping[str, ListState]:
        """Return the states of all lists."""

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
        """Put a full release in force and keep the `keep` previous releases for a rollback; return the state as stored.

        The store sets `generation` (seen + 1), `highest_serial` (never lower than before) and `serial_resets`. `event`,
        here and in the other writes, is appended to the history in the same transaction.
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
        """Put a delta in force, like `replace`: its pages replace those with the same numbers; an empty page deletes one."""

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        """Undo all releases after the kept one of generation `to` (None: the last release), as a new generation.

        Undone releases are deleted; releases before them stay available for a rollback.

        Raises:
            NothingToRollBack: if no such release is stored.
        """

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        """Set the highest serial to `to`, as a new generation with the same content; stored releases stay."""

    async def releases(self, name: str) -> Sequence[Release]:
        """Return the release in force, then those to which a rollback can return, newest first.

        The result is empty if the list does not exist.
        """

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the numbered pages of one of `releases`, by its generation; None if the release is no longer stored.

        Raises:
            StoreChanged: if the list changed meanwhile.
        """

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True,
        event: Event | None = None,
    ) -> None:  # fmt: skip
        """Put a list in force with exactly this state, including its generation and highest serial.

        It is used for a node's last good copy, and to write such a copy back to a store that lost it. If `whole` is
        False, the pages replace those with the same numbers, as in `amend`. Stored releases are deleted.
        """

    def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield the list in batches of pages, each with its state; the first batch may be empty.

        A list that does not exist yields no batch.

        Raises:
            StoreChanged: if the list changed meanwhile.
        """

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state and the numbered pages that exist, all of the same moment."""

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        """Return the changes after generation `after`, oldest first, without a gap; None if some are no longer stored."""

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Return when a list's generation may differ from the given one (0: no list yet), or after `timeout_s`."""

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """Claim or renew the exclusive right to do `what` for `ttl_s`; return False while another holds it. `ttl_s` 0 releases it."""

    async def record(self, event: Event) -> None:
        """Append an event to its chain; a refusal is added to its fold.

        The store completes an anchor with the head of the feed's chain, and skips it if the last anchor has the same
        head.
        """

    async def settle(self) -> None:
        """Append events that an interrupted writer left unwritten."""

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """Return the newest events, oldest first: of a list, from a time on, of a chain (None: both). Refusals belong to MAIN."""

    async def ledger(self, chain: str = MAIN) -> Ledger:
        """Return the ledger of a chain."""

    def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        """Yield the records of a chain after a number in batches, oldest first, without verifying them."""

    async def folds(self) -> Sequence[Fold]:
        """Return all folds of refusals."""

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
        """Replace all records of a chain after number `after`, and add folds to MAIN; if `exact` is set, delete all other folds.

        It is used for a node's copy of the history, and to write that copy back to a store that lost its history. With
        `seen` None, all records of a damaged chain are deleted.

        Raises:
            GenerationConflict: if the chain's ledger is no longer `seen`.
        """

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """Delete the records before `until`, and the oldest ones while all exceed `bytes_max`; return the number of deleted records.

        If records are deleted, `event` is appended to the same chain, with the record numbers in its detail; a copy on
        a node's own disk has no event. Without `bytes_max`, only the time counts.
        """

    async def outcomes(self) -> Sequence[OutcomeCount]:
        """Return the outcomes of each list with their counts and last times."""

    async def newer(self) -> str | None:
        """Return why this program must not change the store (the store's format is newer), or None if it may."""

    async def close(self) -> None:
        """Close files and connections."""


async def try_record(store: ListStore, event: Event) -> bool:
    """Write an event to the history; return False if the store cannot store it, because the event has happened anyway."""
    with suppress(StoreError):
        await store.record(event)
        return True
    return False


def utc_text(moment: datetime) -> str:
    """Format a time as in manifests, states and events: UTC, whole seconds, with a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
