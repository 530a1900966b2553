"""Interface of a store of lists: loaders change lists, followers read them.

The same tests (tests/lists/stores/test_store_contract.py) verify every store. All methods are coroutines of one event loop, and
raise StoreError (eir.errors) if the store fails.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from eir.errors import StoreError
from eir.lists.pages.pages import EMPTY_DIGEST, Page

Mark: TypeAlias = tuple[int, int]
"""Number of times that an operator set the highest serial back, and the highest serial accepted since then.

A mark of a list never decreases.
"""

ACCEPTED, FORCED, REFUSED, ROLLED_BACK = "accepted", "forced", "refused", "rolled_back"
"""Outcomes of releases, as in the label `outcome` of `eir_releases_total`. FORCED: the release exceeded a limit."""

MAIN, FEED = "main", "feed"
CHAINS = (MAIN, FEED)
"""Chains of the history. FEED has the rows of registers. It has its own size limit, so rows cannot displace records of MAIN."""
SIGHTED = "first-seen"
"""`what` of a change of the record of first sightings: the summary of a day, or an import."""
ANCHOR = "anchor"
"""`what` of a record in MAIN with the number and the digest of the newest record in FEED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListState:
    """State of a list, without its entries. Times are ISO 8601 texts in UTC with a Z at the end, or None."""

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
    """Reason texts; pages contain their indexes. After 255 texts, the last text is `other`."""
    issued: str | None = None
    expires: str | None = None
    signers: tuple[str, ...] = ()
    """Principals whose signatures count, each with its key's fingerprint: `name SHA256:…`."""
    loaded_at: str | None = None

    @property
    def mark(self) -> Mark:
        """Number of serial resets, and highest accepted serial; the serial of the next release must be higher."""
        return self.serial_resets, self.highest_serial


NO_LIST = ListState(kind="", serial=0, generation=0, highest_serial=0, release_digest="")
"""State of a list that was never loaded."""


KEEP = 5
"""Default number of releases of a list that are stored for a rollback."""


@dataclass(frozen=True, slots=True)
class ListChange:
    """Change of a list in a store, from generation `before` to generation `after`.

    `pages`: numbers of the changed pages; None if all pages were replaced.
    """

    before: int
    after: int
    pages: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Event of the history, such as a load, a rollback or a refusal."""

    time: str
    who: str
    """User and host of the event."""
    what: str
    """load, refuse, rollback, add, remove, heal, reset-serial, reload, trim, adopt, trace, anchor, first-seen."""
    list: str | None = None
    """Name of the list; None if the event has no list, or for a refusal without a verified manifest."""
    serial: int | None = None
    digest: str | None = None
    """SHA-256 of the manifest; for a reload, of the configuration; for an anchor, of the record `head`."""
    outcome: str
    detail: str = ""
    content: str | None = field(default=None, compare=False)
    """First digits of the list's content digest after the event (eir.lists.record.history); the store sets them when it writes."""
    count: int = 1
    """Number of refusals in the fold; `time` and `detail` are those of the last refusal."""
    first: str | None = None
    """Time of the first refusal in the fold, if the fold has several refusals."""
    head: int | None = None
    """In an anchor: number of the newest record in the feed's chain; the store sets it when it writes."""
    number: int | None = field(default=None, compare=False)
    """Number of the record in its chain; None for a refusal, and for an event that is not written yet."""
    chain: str = field(default=MAIN, compare=False)
    """Chain of the record."""


class Record(NamedTuple):
    """Record of one chain of the history: number and JSON text (see eir.lists.record.history)."""

    number: int
    """Position in the chain."""
    text: str
    """JSON text, which includes the number and the digest of the previous record."""


class Fold(NamedTuple):
    """Count of all refusals with the same day, list, sender and reason, in place of one record for each."""

    key: str
    """Key for the day, list, sender and reason."""
    text: str
    """JSON: event of the last refusal; `count`; `first`, time of the first refusal; `at`, number of the last refusal among all refusals; `after`, number of MAIN's newest record at the last refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Size, newest number and digests of a chain of the history, by which missing records are detected.

    The ledger of MAIN also counts the refusals, and the ledger of FEED the anchors.
    """

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
    """In FEED: number of the record whose digest the last anchor contains."""
    anchored_at: str = ""
    """In FEED: time of the last anchor, or of the last attempt if FEED had no new record."""


@dataclass(frozen=True, slots=True)
class Release:
    """Release of a list, in force or stored for a rollback, and the event that put this release in force.

    In a local list, each change counts as a release.
    """

    state: ListState
    """State of the list when the release came into force."""
    made: Event | None
    """Event that put the release in force; None if unknown."""


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """Number of a list's releases with the same outcome, such as `accepted`, and the time of the latest release with this outcome."""

    list: str | None
    outcome: str
    count: int
    last: str


class ListStore(Protocol):
    """Interface of a store of verified lists.

    `seen` is the generation that the caller read (0: no list yet). Every write is atomic and conditional on it; it
    raises GenerationConflict if the list has changed since.
    """

    async def state(self, name: str) -> ListState | None:
        """Return the state of the list in force; None if the list was never loaded."""

    async def states(self) -> Mapping[str, ListState]:
        """Return the states in force of all lists."""

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
        """Put a full release in force, and keep the previous releases (at most `keep`) for a rollback.

        The result is the stored state.

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
        """Put a delta in force: each page replaces the page with the same number; an empty page deletes it.

        Otherwise like `replace`.
        """

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        """Put a stored release in force again, as a new generation. `to`: generation of the release; None: the previous release.

        Undone releases are deleted; releases before them stay available for a rollback.

        Raises:
            NothingToRollBack: if no such release is stored.
        """

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        """Set the highest accepted serial of a list to `to`, as a new generation with the same content.

        Stored releases stay.
        """

    async def releases(self, name: str) -> Sequence[Release]:
        """Return the release in force, then the releases to which a rollback is possible, newest first.

        The result is empty if the list does not exist.
        """

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the pages with these numbers from a stored release, given by its generation; None if the release is no longer stored.

        Raises:
            StoreChanged: if the list changed meanwhile.
        """

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True,
        event: Event | None = None,
    ) -> None:  # fmt: skip
        """Put a list in force with exactly the given state. Its generation and highest serial are not computed, but taken from this state.

        It is used for a node's last good copy, and to write such a copy back to a store that lost it. If `whole` is
        False, the pages replace those with the same numbers, as in `amend`. Stored releases are deleted.
        """

    def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield all pages of a list in batches, each with the state of the list. The first batch may have no pages.

        A list that does not exist yields no batch.

        Raises:
            StoreChanged: if the list changed meanwhile.
        """

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state of a list, and its pages with these page numbers, from one consistent read. Missing pages are left out."""

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        """Return all changes of a list after generation `after`, oldest first; None if the change log does not reach back so far."""

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Wait for at most `timeout_s` until a list may have another generation than in `seen`.

        `seen`: generation that the caller knows for each list; 0 for a list that does not exist.
        """

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """Claim or renew the lease on the task `what` for `ttl_s` seconds; return False while another node has this lease.

        `ttl_s` 0 releases the lease.
        """

    async def record(self, event: Event) -> None:
        """Append an event to its chain of the history, or count a refusal in its fold (count of equal refusals of one day).

        The store completes an anchor with the head of the feed's chain, and skips it if the last anchor has the same
        head.
        """

    async def append_pending(self) -> None:
        """Append missing events to the history. An event is missing if its writer ended after the list write and before the append."""

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """Return the newest events of one list or of all lists from the history, oldest first.

        `name`: only of this list. `limit`: maximum number of events. `since`: only from this time on. `chain`: only of this
        chain; rejections belong to MAIN. With None, an argument has no effect.
        """

    async def ledger(self, chain: str = MAIN) -> Ledger:
        """Return the ledger (size, newest number, digests) of a chain of the history."""

    def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        """Yield in batches the records of a chain of the history with numbers above `after`, oldest first. They are not verified."""

    async def folds(self) -> Sequence[Fold]:
        """Return all folds of the history. A fold counts the refusals of one day with equal list, sender and reason."""

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
        """Replace all records of a chain with numbers above `after`, and add folds (counts of equal refusals) to the history.

        If `exact` is set, all other folds are deleted.

        It is used for a node's copy of the history, and to write that copy back to a store that lost its history. With
        `seen` None, all records of a damaged chain are deleted.

        Raises:
            GenerationConflict: if the chain's ledger is no longer `seen`.
        """

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """Delete the oldest records of a chain: all records before the time `until`, and more while the chain exceeds `bytes_max`.

        The result is the number of deleted records.

        If records are deleted, `event` is appended to the same chain, with the record numbers in its detail; a copy on
        a node's own disk has no event. Without `bytes_max`, only the time counts.
        """

    async def outcomes(self) -> Sequence[OutcomeCount]:
        """Return the number of releases for each list and outcome, with the time of the latest release that had this outcome."""

    async def newer(self) -> str | None:
        """Return an error message if the store has a newer format, so that this program may only read it; otherwise None."""

    async def close(self) -> None:
        """Close all files and connections of the store."""


async def try_record(store: ListStore, event: Event) -> bool:
    """Write an event to the history, and return True. If the store fails, return False and raise no exception.

    The event has already happened, so an error of the store must not stop the caller.
    """
    with suppress(StoreError):
        await store.record(event)
        return True
    return False
