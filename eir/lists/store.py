"""The contract between those who change lists, those who follow them, and the store in between.

One suite of tests (tests/test_store_contract.py) holds every store to it. All methods are coroutines, may be called
from one event loop, and raise StoreError (eir.errors) when the store cannot do what was asked.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from eir.errors import StoreError
from eir.lists.pages import EMPTY_DIGEST, Page

HISTORY_MAX = 10_000  # events that a store keeps; older ones go

Mark: TypeAlias = tuple[int, int]
"""Up to where a list's serials are used up: how often an operator set that back, and the highest one accepted. It only rises."""

ACCEPTED, FORCED, REFUSED, ROLLED_BACK = "accepted", "forced", "refused", "rolled_back"
"""Outcomes of releases, as `eir_releases_total` labels them. FORCED: put in force with a limit lifted by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListState:
    """What a store knows of a list besides its pages. Times are UTC, ISO 8601 with a Z; None where there is none."""

    kind: str
    serial: int
    """Of the release in force; 0 for a local list."""
    generation: int
    """+1 at every change, rollback included; a new list has 1."""
    highest_serial: int
    """Of all releases ever accepted; it never goes down but by `reset_serial`."""
    release_digest: str
    """SHA-256 of the manifest in force, hexadecimal."""
    serial_resets: int = 0
    """How often an operator has set the highest serial back."""
    content_digest: str = EMPTY_DIGEST
    """Proves the pages, see pages.content_digest."""
    entries: int = 0
    """Single identifiers, and whole TACs, each counted as one."""
    devices: int = 0
    """Identifiers that are listed: a whole TAC counts a million, the single ones under it not again."""
    reasons: tuple[str, ...] = ()
    """What a reason byte in a page stands for; 255 at most, then `other`."""
    issued: str | None = None
    expires: str | None = None
    signers: tuple[str, ...] = ()
    """Principals whose signatures counted, each with its key's fingerprint: `name SHA256:…`."""
    loaded_at: str | None = None

    @property
    def mark(self) -> Mark:
        """What a release must be above, by its serial."""
        return self.serial_resets, self.highest_serial


NO_LIST = ListState(kind="", serial=0, generation=0, highest_serial=0, release_digest="")
"""Stands for the state of a list that has never been loaded."""


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
    """load, refuse, rollback, add, remove, heal, reset-serial."""
    list: str | None = None
    """None where no verified manifest named a list."""
    serial: int | None = None
    digest: str | None = None
    """Release digest (SHA-256 of the manifest)."""
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How often a list saw an outcome, and when last; kept beyond the bounded history."""

    list: str | None
    outcome: str
    count: int
    last: str


class ListStore(Protocol):
    """Where verified lists live.

    `seen` is the generation that the caller saw (0: no list yet). Writes are conditional on it, atomic for every reader,
    and raise GenerationConflict when someone was faster.
    """

    async def state(self, name: str) -> ListState | None:
        """The state in force; None if the list has never been loaded."""

    async def states(self) -> Mapping[str, ListState]:
        """The states of all lists."""

    async def replace(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """Put a full release in force and keep the one before for a rollback; returns the state as stored.

        The store sets `generation` (seen + 1), `highest_serial` (never lower than before) and `serial_resets`.
        """

    async def amend(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """As `replace` for a delta: its pages replace those of the same number, which are kept (one that is `gone` goes)."""

    async def rollback(self, name: str, *, seen: int) -> ListState:
        """Undo the last release, full or delta, as a new generation. Raises NothingToRollBack."""

    async def reset_serial(self, name: str, to: int, *, seen: int) -> ListState:
        """Set the highest serial to `to`, as a new generation of the same list; what is kept for a rollback stays."""

    async def previous(self, name: str) -> ListState | None:
        """The state that a rollback would bring back, as it was; None where none is kept."""

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True
    ) -> None:
        """Put a list in force exactly as `state` says, its generation and highest serial included.

        For a node's last good copy, and for writing such a copy back to a store that lost it. `whole` False: the pages
        replace those of the same number, as in `amend`. What was kept for a rollback is dropped.
        """

    def pages(self, name: str, *, gently: bool = False) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """The list as batches of pages, each with the state that it belongs to; the first batch may be empty.

        `gently`: in small batches, for a process that answers meanwhile; a store may have but one size. Raises StoreChanged
        when the list changed meanwhile. Nothing is yielded for a list that does not exist.
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
        """Append to the history."""

    async def history(self, name: str | None = None, limit: int = HISTORY_MAX) -> Sequence[Event]:
        """The newest events, oldest first."""

    async def outcomes(self) -> Sequence[Outcome]:
        """How often each list saw each outcome, and when last."""

    async def close(self) -> None:
        """Let go of files and connections."""


async def recorded(store: ListStore, event: Event) -> bool:
    """Write to the history of what has happened; False if the store cannot: it has happened all the same."""
    with suppress(StoreError):
        await store.record(event)
        return True
    return False


def utc_text(moment: datetime) -> str:
    """A moment as manifests, states and events have it: UTC, whole seconds, with a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
