"""Changes of local lists (`local: true`) by operators, with `eir add` and `eir remove`, and by a feed.

An edit reads the list, computes the change, and writes the change if the list is still the same; otherwise the edit starts again.
The write is atomic, and the history records the user, the entries, the time and the reason.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from eir.device import TAC_DIGITS
from eir.errors import EntryRefused, GenerationConflict, IdentifierError, StoreChanged, StoreError
from eir.lists.changes.local_entries import Entry, parse_entries
from eir.lists.log.change import utc_text
from eir.lists.pages.content import as_corrupt, decode, decode_pairs, has_pairs
from eir.lists.pages.dates import is_sealed
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.dates import read_dates, write_dates
from eir.lists.record.entries import until_text
from eir.lists.record.reasons import check_reason, reason_bytes
from eir.lists.record.settings import SUBSCRIBERS, ListSettings
from eir.lists.record.store import ACCEPTED, FEED, FORCED, NO_LIST, Event, ListState, ListStore
from eir.lists.rows.build import Built, Rows, amend_pages, build_pages
from eir.lists.rows.dates import RowDates, amend_dates
from eir.lists.rows.turnover import exceeded_limits, force_text, turnover

ADD, REMOVE = "add", "remove"
TRIES_MAX = 20
"""Maximum number of attempts of an edit while others change the list."""
PAUSE_MAX_S = 0.05
NAMED_MAX = 10
"""Maximum number of entries that a refusal names."""
TACS = "TACs "
"""Prefix of the entries in an event that are whole TACs."""
FILE = "a file with SHA-256 "
"""Text in an event in place of entries that are too many to be named."""

KnownLists = Callable[[], Collection[str]]
"""Function that returns the names of the lists that were in force on this host. It is called if the store lacks a list."""


class EntryDetails(NamedTuple):
    """Reason, expiry and date of one entry of a local list."""

    reason: str = ""
    """Reason of the entry; empty: the reason of the edit."""
    until: int = 0
    """Expiry of the entry in Unix seconds; 0: the expiry of the edit."""
    day: int = 0
    """Day on which the entry was reported, for a list with dates; 0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Change of a local list: entries to add or to remove."""

    what: str  # ADD or REMOVE
    entries: Sequence[Entry]
    reason: str
    until: int = 0
    """Expiry of added entries in Unix seconds; 0: they do not expire."""
    replace: bool = False
    """Give existing entries the new reason and the new expiry."""
    force: bool = False
    """Lift the limits on shrinking and growth, but no other check."""
    dry_run: bool = False
    """Report the effect, but write neither the change nor an event."""
    details: Mapping[tuple[int, int, bool], EntryDetails] = field(default_factory=dict)
    """Reason, expiry and date of single entries, by `entry[1:]`. Other entries have the reason and the expiry of the edit."""
    source: str = ""
    """Name and SHA-256 of the entries' file, which the event names; empty: the event names each entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """Effect of a change of a local list, real or in a dry run."""

    list: str
    holds: str
    """Kind of the list."""
    what: str
    entries: int
    """Number of entries after the edit, as in ListState."""
    entries_change: int
    """Number of entries after the edit less the number before."""
    come: int
    gone: int
    """Numbers of added and of removed identifiers, as turnover.differences counts them."""
    generation: int
    lifted: tuple[str, ...]
    """Limits that the edit exceeds and that `force` lifted: `shrink`, `growth`."""
    dry_run: bool

    def as_text(self) -> str:
        """Format the effect of the change of a local list in one line."""
        if self.come or self.gone:
            change = turnover(self.holds, self.come, self.gone)
        elif self.entries_change:
            change = f"{self.entries_change:+,} entries for devices that are listed by their TAC"
        else:
            change = "reason and end replaced"
        moment = "then" if self.dry_run else "now"
        parts = [f"{self.list}: {change}", f"entries {moment}: {self.entries:,}"]
        if self.lifted:
            parts.append(force_text(self.lifted))
        if self.dry_run:
            parts.append("nothing was changed")
        return "; ".join(parts)


async def edit_list(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: KnownLists = tuple
) -> EditReport:
    """Apply a change (`edit`) to a local list in one atomic write; return its effect.

    A list that the store has lost is not created again: `had` returns the lists that were in force on this host.
    """
    report, _ = await _edit(edit, settings, store, who, now, had=had, lenient=False)
    return report


async def edit_differences(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: KnownLists = tuple
) -> frozenset[Entry]:
    """Apply only those entries of a change (`edit`) that have an effect on a local list; return these entries.

    Raises the errors of `edit_list`.

    An entry that expires before the edit's expiry counts as missing. A feed uses this function for its thousands of
    rows: so no previous state is stored for a rollback, and the rows are recorded in the feed's chain.
    """
    _, changed = await _edit(edit, replace(settings, keep=0), store, who, now, had=had, lenient=True)
    return frozenset(changed)


async def _edit(
    edit: Edit, settings: ListSettings, store: ListStore, who: str, now: datetime, *, had: KnownLists, lenient: bool
) -> tuple[EditReport, Sequence[Entry]]:
    """Apply a change (`edit`) to a local list; return a report of the change, and the entries that it added or removed.

    If `lenient` is true, entries without a change are skipped; otherwise they are an error.
    """
    _check(edit, settings, now)
    numbers = sorted({entry.key // PAGE_KEYS for entry in edit.entries})
    every = edit.entries
    for attempt in range(TRIES_MAX):
        stored, before = await store.some_pages(settings.name, numbers)
        state = _checked_state(stored, settings, had)
        present = _present_entries(every, before, now)
        if lenient:
            edit = replace(edit, entries=[entry for entry in every if _differs(edit, present.get(entry[1:]))])
        else:
            _reject_no_ops(edit, settings.name, present)
        try:
            following, amended, dates = await _build_edit(edit, settings, store, now, (state, before))
            if settings.dates:
                waits = attempt < TRIES_MAX // 2
                amended = await add_dates(amended, dates, settings, store, numbers=numbers, before=before, waits=waits)
            passed = exceeded_limits(settings, state.devices, amended.come, amended.gone)
            if passed and not edit.force:
                excess = next(iter(passed.values()))
                raise EntryRefused(
                    f"nothing was changed: {excess}; if this is intended, repeat the command with --force"
                )
            if edit.entries and not edit.dry_run:
                event = _event(edit, settings, who, now, lifted=force_text(passed), amended=amended)
                if lenient:
                    event = replace(event, chain=FEED)
                if settings.dates:
                    await write_dates(
                        store, settings.name, amended.dates, replaced=amended.dates_before, seen=amended.dates_state,
                        state=following, keep=settings.keep,
                    )  # fmt: skip
                following = await store.amend(
                    settings.name, following, amended.pages, seen=state.generation, keep=settings.keep, event=event
                )
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # separates two operators; not for secrets
            continue
        generation = state.generation if edit.dry_run else following.generation
        report = EditReport(
            list=settings.name, holds=settings.kind, what=edit.what, entries=following.entries, entries_change=amended.entries,
            come=amended.come, gone=amended.gone, generation=generation, lifted=tuple(passed), dry_run=edit.dry_run,
        )  # fmt: skip
        return report, edit.entries
    raise GenerationConflict(
        f"{settings.name} was changed {TRIES_MAX} times while this change was being made: try again"
    )


def _checked_state(stored: ListState | None, settings: ListSettings, had: KnownLists) -> ListState:
    """Check that a local list can be changed, and return its state; NO_LIST for a new list.

    Raises:
        StoreError: `lost`, if the store has lost the list. Followers would ignore a new list, or it would hide the loss.
        EntryRefused: if the list has another kind in the store.
    """
    if stored is None and settings.name in had():
        raise StoreError(
            "lost",
            f"nothing was changed: the store lost {settings.name}, which was in force here; restore a backup, or give the list up "
            "(deploy/OPERATION.md, Backup and restore)",
        )
    state = stored or NO_LIST
    if state.kind not in {"", settings.kind}:
        kinds = f"{settings.name} is a list of {state.kind} in the store and of {settings.kind} in the configuration"
        raise EntryRefused(f"{kinds}; give the new kind a list of another name")
    return state


def _event(edit: Edit, settings: ListSettings, who: str, now: datetime, *, lifted: str, amended: Built) -> Event:
    """Create the history event of a change (`edit`) of a local list. `lifted`: text about the limits that `force` lifted."""
    detail = edit.reason
    if edit.until:
        detail += f", until {until_text(edit.until)}"
    if edit.force:
        detail += f"; {turnover(settings.kind, amended.come, amended.gone)}; {lifted}"
    if edit.source:
        detail += f"; {len(edit.entries)} entries of {edit.source}"
    else:
        prefix = TACS if any(entry.whole_tac for entry in edit.entries) else ""
        entry_texts = ", ".join(entry.text for entry in edit.entries)
        detail += f": {prefix}{entry_texts}"
    outcome = FORCED if edit.force else ACCEPTED
    return Event(time=utc_text(now), who=who, what=edit.what, list=settings.name, outcome=outcome, detail=detail)


def added_by(events: Sequence[Event], kind: str) -> dict[tuple[int, int, bool], Event]:
    """Return for each entry of a list the last history event by which an operator added the entry.

    An entry is identified by its key, the key of its IMSI (0 for none), and True if it is a whole TAC.
    """
    events_by_entry: dict[tuple[int, int, bool], Event] = {}
    for event in events:
        entry_texts = event.detail.rpartition(": ")[2]
        if event.what != ADD or entry_texts.startswith(FILE):
            continue
        tacs = entry_texts.startswith(TACS)
        verbatim = not tacs and kind != SUBSCRIBERS
        for text in entry_texts.removeprefix(TACS).split(", "):
            identifier, _, imsi = text.partition("+")
            imsis = [imsi] if imsi else ()
            with suppress(IdentifierError):
                (entry,) = parse_entries(kind, [identifier], imsis=imsis, tacs=tacs, verbatim=verbatim)
                events_by_entry[entry[1:]] = event
    return events_by_entry


def _check(edit: Edit, settings: ListSettings, now: datetime) -> None:
    """Reject a change (`edit`) if its list is not local, its reason is not valid, or its expiry has passed."""
    if not settings.local:
        raise EntryRefused(f"{settings.name} changes only by signed releases; expected a list with `local: true`")
    check_reason(edit.reason)
    if edit.until and edit.until <= now.timestamp():
        raise EntryRefused(f"the end has passed: it is {utc_text(now)}")


def _differs(edit: Edit, end: int | None) -> bool:
    """Return True if `edit` has an effect on an entry: it removes an existing entry, adds a missing entry, or extends an expiry.

    `end`: expiry of the entry before the edit; 0 if it does not expire, None if it does not exist.
    """
    if edit.what == REMOVE:
        return end is not None
    return end is None or (end > 0 and not 0 < edit.until <= end)


def _present_entries(
    entries: Sequence[Entry], pages: Sequence[Page], now: datetime
) -> dict[tuple[int, int, bool], int]:
    """Find the given entries and their whole TACs in pages of a list. Return the existing entries, each with its expiry (0: none).

    Expired entries are left out. Only the given entries are looked up, because a page may have a million.
    """
    entries_by_page: dict[int, list[Entry]] = {}
    for entry in entries:
        entries_by_page.setdefault(entry.key // PAGE_KEYS, []).append(entry)
    now_s = now.timestamp()
    present = dict[tuple[int, int, bool], int]()
    for page in pages:
        with as_corrupt(f"page {page.number} is damaged"):
            for stored, until in _stored_in(page, entries_by_page[page.number]):
                if not until or until > now_s:
                    present[stored] = until
    return present


def _stored_in(page: Page, entries: Sequence[Entry]) -> Iterator[tuple[tuple[int, int, bool], int]]:
    """Find `entries` in a page, and yield each existing entry with its expiry. An entry for the page's whole TAC is also yielded."""
    first = page.number * PAGE_KEYS
    if page.tac is not None:
        yield (first, 0, True), page.tac.until
    if has_pairs(page):
        devices = decode_pairs(page)
        for entry in entries:
            device = devices.get(entry.key - first)
            if device is not None and entry.imsi in device.imsis:
                yield entry[1:], device.imsis[entry.imsi]
        return
    content = decode(page)
    singles = [entry for entry in entries if not entry.whole_tac]
    lows = np.array([entry.key - first for entry in singles], content.low.dtype)
    places = np.searchsorted(content.low, lows)
    for entry, low, at in zip(singles, lows, places, strict=True):
        if at < len(content.low) and content.low[at] == low:
            yield entry[1:], int(content.until[at])


def _reject_no_ops(edit: Edit, name: str, present: Container[tuple[int, int, bool]]) -> None:
    """Reject a change (`edit`) that adds an existing entry or removes a missing one. `present`: existing entries.

    An expired entry is missing. An identifier and its TAC are separate entries.
    """
    if edit.what == REMOVE:
        wrong = [_missing_text(entry, present) for entry in edit.entries if entry[1:] not in present]
        state_text = f"not in {name}"
        advice = ""
    else:
        wrong = [entry.text for entry in edit.entries if entry[1:] in present and not edit.replace]
        state_text = f"in {name} already"
        advice = "; --replace gives them the new reason and end"
    if not wrong:
        return
    named = ", ".join(wrong[:NAMED_MAX])
    if len(wrong) > NAMED_MAX:
        named += ", …"
    raise EntryRefused(f"nothing was changed: {len(wrong)} of {len(edit.entries)} are {state_text}: {named}{advice}")


def _missing_text(entry: Entry, present: Container[tuple[int, int, bool]]) -> str:
    """Format an entry that the list lacks, for an error message. The text has a note if the list has the entry's whole TAC."""
    tac = entry.key // PAGE_KEYS
    if entry.whole_tac or (tac * PAGE_KEYS, 0, True) not in present:
        return entry.text
    return f"{entry.text} (it is covered by TAC {tac:0{TAC_DIGITS}d}; not listed on its own)"


def _details_of(edit: Edit, entry: Entry) -> EntryDetails:
    """Return reason, expiry and date of an entry in a change (`edit`); the values of the whole change are the defaults."""
    details = edit.details.get(entry[1:], EntryDetails())
    return EntryDetails(details.reason or edit.reason, details.until or edit.until, details.day)


async def _build_edit(
    edit: Edit, settings: ListSettings, store: ListStore, now: datetime, stored: tuple[ListState, Sequence[Page]]
) -> tuple[ListState, Built, RowDates]:
    """Compute the effect of a change (`edit`): new state of the list, changed pages, and dates of added entries.

    `stored`: present state and pages.
    """
    state, before = stored
    every = [(entry, _details_of(edit, entry)) for entry in edit.entries]
    texts = state.reasons
    indexes = dict[str, int]()
    if edit.what == ADD:
        new_reasons = dict.fromkeys(details.reason for _, details in every)
        indexes, texts = await reason_bytes(new_reasons, state, store, settings.name)
    rows = Rows()
    for of_pairs, of_tacs in ((True, False), (False, True), (False, False)):
        group = [row for row in every if bool(row[0].imsi) is of_pairs and row[0].whole_tac is of_tacs]
        if group:
            _add_rows(rows, group, indexes, is_dated=edit.what == ADD)
    built = build_pages(rows).pages
    removed, added = ((), built) if edit.what == ADD else (built, ())
    amended = amend_pages(before, removed, added, state.content_digest, now.timestamp())
    following = ListState(
        kind=settings.kind, serial=0, generation=state.generation + 1, highest_serial=state.highest_serial, release_digest="",
        content_digest=amended.content_digest, entries=state.entries + amended.entries,
        devices=state.devices + amended.devices, reasons=texts, loaded_at=utc_text(now),
    )  # fmt: skip
    return following, amended, rows.dates


def _add_rows(
    rows: Rows, group: Sequence[tuple[Entry, EntryDetails]], indexes: Mapping[str, int], *, is_dated: bool
) -> None:
    """Add a group of entries to a collection of rows. The group has only pairs, only TACs or only single identifiers.

    `indexes`: reason text → its index.
    """
    keys = np.array([entry.key for entry, _ in group], np.uint64)
    reasons = np.array([indexes.get(details.reason, 0) for _, details in group], np.uint8)
    until = np.array([details.until for _, details in group], np.int64)
    first, _ = group[0]
    last_keys = keys + np.uint64(PAGE_KEYS - 1) if first.whole_tac else keys
    if first.imsi:
        imsis = np.array([entry.imsi for entry, _ in group], np.uint64)
        rows.add_pairs(keys, imsis, reasons, until)
    elif first.whole_tac:
        rows.add_spans(keys, last_keys, reasons, until)
    else:
        rows.add(keys, reasons, until)
    if is_dated:
        days = np.array([details.day for _, details in group], np.uint16)
        rows.dates.append(keys, last_keys, days)


async def add_dates(
    amended: Built,
    rows: RowDates,
    settings: ListSettings,
    store: ListStore,
    *,
    numbers: Sequence[int],
    before: Sequence[Page],
    waits: bool,
) -> Built:
    """Add the dates of changed entries to a built change of a list, and return the change.

    Args:
        amended: built pages of the change.
        rows: dates of the added entries.
        settings: settings of the list.
        store: store of the list.
        numbers: numbers of the pages with entries of the change.
        before: these pages before the change.
        waits: raise StoreChanged if dates and pages do not belong together.

    Raises:
        StoreChanged: if another edit has written its dates, but not its pages yet.
    """
    dates_state, dates = await read_dates(store, settings.name, numbers)
    are_sealed = all(is_sealed(page, dates[page.number]) for page in before if page.number in dates)
    if waits and not are_sealed:
        raise StoreChanged(f"the dates of list {settings.name} are being changed")
    replaced, pages = amend_dates(before, dates, amended.pages, rows)
    return replace(amended, dates=pages, dates_before=replaced, dates_state=dates_state)
