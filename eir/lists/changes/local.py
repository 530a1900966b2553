"""Edits of local lists (`local: true`) by operators, with `eir add` and `eir remove`, and by a feed.

An edit reads the list, computes the change and writes it if the list is still the same; otherwise it starts again. It is
atomic, and the history records the user, the entries, the time and the reason.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from eir.device import TAC_DIGITS, any_key, device_key, imsi_key, strip_separators
from eir.errors import EntryRefused, GenerationConflict, IdentifierError, StoreChanged, StoreError
from eir.lists.pages.content import as_corrupt, decode, decode_pairs, has_pairs
from eir.lists.pages.dates import is_sealed
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.dates import read_dates_and_state
from eir.lists.record.entries import until_text
from eir.lists.record.reasons import check_reason, reason_bytes
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES, ListSettings
from eir.lists.record.store import ACCEPTED, FEED, FORCED, MAIN, NO_LIST, Event, ListState, ListStore, utc_text
from eir.lists.rows.build import Built, Rows, amend_pages, build_pages, with_dates
from eir.lists.rows.dates import RowDates, amend_dates, write_built_dates
from eir.lists.rows.layout import tac_key
from eir.lists.rows.turnover import exceeded_limits, force_text, turnover

ADD, REMOVE = "add", "remove"
ENTRIES_MAX = 1000
"""Maximum number of entries of one command, because the history names each; more entries need a release."""
TRIES_MAX = 20
"""Maximum number of attempts of an edit while others change the list."""
PAUSE_MAX_S = 0.05
NAMED_MAX = 10  # most entries that a refusal names
TACS = "TACs "
"""Prefix of the entries in an event that are whole TACs."""
FILE = "a file with SHA-256 "
"""Text in an event in place of entries that are too many to be named."""

KnownLists = Callable[[], Collection[str]]
"""Function that returns names of lists; called if a list is not in the store."""


class Entry(NamedTuple):
    """Entry of a local list: the identifier as the operator typed it, and its keys."""

    text: str  # as the operator wrote it
    key: int
    """Key of the device or the subscriber, or the lowest key of the TAC."""
    imsi: int = 0
    """Key of a pair's IMSI; 0 in other lists."""
    whole_tac: bool = False


class EntryDetails(NamedTuple):
    """Reason, expiry and date of one entry."""

    reason: str = ""
    """Reason; empty for that of the edit."""
    until: int = 0
    """Unix seconds; 0 for that of the edit."""
    day: int = 0
    """Day on which the entry was reported, for a list with dates; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Edit of a local list: entries to add or to remove."""

    what: str  # ADD or REMOVE
    entries: Sequence[Entry]
    reason: str
    until: int = 0
    """Unix seconds at which added entries end; 0 for none."""
    replace: bool = False
    """Give existing entries the new reason and the new end."""
    force: bool = False
    """Lift the limits on shrinking and growth, but no other check."""
    dry_run: bool = False
    """Report the effect, but write and record nothing."""
    details: Mapping[tuple[int, int, bool], EntryDetails] = field(default_factory=dict)
    """Reasons, ends and dates of single entries, by `entry[1:]`; other entries have the reason and the end of the edit."""
    source: str = ""
    """Name and SHA-256 of the entries' file for the history; empty: the history names each entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """Result of an edit or of a dry run."""

    list: str
    holds: str
    """Kind of the list."""
    what: str
    entries: int
    """Number of entries afterwards, as in ListState."""
    entries_change: int
    """Difference to the number of entries before."""
    come: int
    gone: int
    """Number of identifiers that come and that go, as turnover.differences counts them."""
    generation: int
    lifted: tuple[str, ...]
    """Limits that the edit exceeds and that `force` lifted: `shrink`, `growth`."""
    dry_run: bool

    def as_text(self) -> str:
        """Format the report in one line."""
        change = turnover(self.holds, self.come, self.gone)
        if not self.come and not self.gone:
            change = "reason and end replaced"
            if self.entries_change:
                change = f"{self.entries_change:+,} entries for devices that are listed by their TAC"
        parts = {
            f"{self.list}: {change}; entries {'then' if self.dry_run else 'now'}: {self.entries:,}": True,
            force_text(self.lifted): self.lifted,
            "nothing was changed": self.dry_run,
        }
        return "; ".join(text for text, holds in parts.items() if holds)


def parse_entries(
    kind: str, identifiers: Sequence[str], *, imsis: Sequence[str] = (), tacs: bool = False, verbatim: bool = False
) -> list[Entry]:
    """Parse the identifiers of a command to entries for a list of this kind; repeated entries are dropped.

    Args:
        kind: kind of the list.
        identifiers: IMEIs, IMEISVs or MEIDs; for a list of subscribers, IMSIs.
        imsis: IMSIs; a list of pairs gets each device with each of them.
        tacs: the identifiers are TACs.
        verbatim: the identifiers may have any form.

    Raises:
        IdentifierError: with the identifier that is wrong.
    """
    if kind == TYPES:
        raise IdentifierError("a list of device types changes only by releases: eir publish --layout tacs")
    if tacs and kind != DEVICES:
        raise IdentifierError(f"a list of {kind} contains no TACs")
    if verbatim and (tacs or kind == SUBSCRIBERS):
        raise IdentifierError(f"{'TACs' if tacs else 'subscribers'} have a fixed form; --verbatim is only for devices")
    if imsis and kind != PAIRS:
        raise IdentifierError(f"--imsi requires a list of pairs, and this is a list of {kind}")
    if kind == PAIRS and not imsis:
        raise IdentifierError("a list of pairs requires an IMSI for each device (--imsi)")
    identifiers, imsis = (
        [each if verbatim else strip_separators(each) for each in identifiers],
        [*map(strip_separators, imsis)],
    )
    key_of = imsi_key if kind == SUBSCRIBERS else tac_key if tacs else any_key if verbatim else device_key
    sims = [(f"+{imsi}", _parse_key(imsi_key, imsi)) for imsi in imsis] or [("", 0)]
    entries = [
        Entry(text + sim, _parse_key(key_of, text), subscriber, tacs)
        for text in identifiers
        for sim, subscriber in sims
    ]
    distinct = {entry[1:]: entry for entry in entries}
    if len(distinct) > ENTRIES_MAX:
        raise IdentifierError(
            f"{len(distinct)} entries; the maximum for one command is {ENTRIES_MAX}; publish a release instead"
        )
    return list(distinct.values())


async def edit_list(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: KnownLists = tuple
) -> EditReport:
    """Apply an edit to a local list in one atomic write.

    `had` returns the lists that were in force on this host. A list that the store has lost is not created again.
    """
    report, _ = await _edit(edit, settings, store, who, now, had=had, lenient=False)
    return report


async def edit_differences(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: KnownLists = tuple
) -> frozenset[Entry]:
    """Apply an edit only to the entries that it changes, and return these entries. Raises as edit_list does.

    An entry that ends before the edit's end counts as missing. A feed uses this for its rows, which come by the
    thousand: no previous state is kept for a rollback, and the history records the rows in the feed's chain.
    """
    _, changed = await _edit(edit, replace(settings, keep=0), store, who, now, had=had, lenient=True)
    return frozenset(changed)


async def _edit(
    edit: Edit, settings: ListSettings, store: ListStore, who: str, now: datetime, *, had: KnownLists, lenient: bool
) -> tuple[EditReport, Sequence[Entry]]:
    """Apply an edit; return the report and the changed entries.

    If `lenient` is true, entries without a change are skipped; otherwise they are an error.
    """
    _check(edit, settings, now)
    every = edit
    numbers = sorted({entry.key // PAGE_KEYS for entry in edit.entries})
    for attempt in range(TRIES_MAX):
        stored, before = await store.some_pages(settings.name, numbers)
        if stored is None and settings.name in had():  # followers would ignore a new list, or it would hide the loss
            raise StoreError(
                "lost",
                f"nothing was changed: the store lost {settings.name}, which was in force here; restore a backup, or give the list up "
                "(deploy/OPERATION.md, Backup and restore)",
            )
        state = stored or NO_LIST
        if state.kind not in {"", settings.kind}:
            kinds = (
                f"{settings.name} is a list of {state.kind} in the store and of {settings.kind} in the configuration"
            )
            raise EntryRefused(f"{kinds}; give the new kind a list of another name")
        present = _present_entries(every.entries, before, now)
        if lenient:
            edit = replace(every, entries=[entry for entry in every.entries if _differs(every, present.get(entry[1:]))])
        else:
            _reject_no_ops(edit, settings.name, present)
        try:
            following, amended, dates = await _build_edit(edit, settings, store, now, (state, before))
            if settings.dates:
                waits = attempt < TRIES_MAX // 2
                amended = await _add_dates(amended, dates, settings, store, numbers=numbers, before=before, waits=waits)
            passed = exceeded_limits(settings, state.devices, amended.come, amended.gone)
            if passed and not edit.force:
                raise EntryRefused(
                    f"nothing was changed: {next(iter(passed.values()))}; if this is intended, repeat the command with --force"
                )
            if edit.entries and not edit.dry_run:
                event = _event(edit, settings, who, now, lifted=force_text(passed), amended=amended)
                event = replace(event, chain=FEED if lenient else MAIN)
                if settings.dates:
                    await write_built_dates(store, settings.name, following, amended, settings.keep)
                following = await store.amend(
                    settings.name, following, amended.pages, seen=state.generation, keep=settings.keep, event=event
                )
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # separates two operators; not for secrets
            continue
        report = EditReport(
            list=settings.name, holds=settings.kind, what=edit.what, entries=following.entries, entries_change=amended.entries,
            come=amended.come, gone=amended.gone, generation=following.generation if not edit.dry_run else state.generation,
            lifted=tuple(passed), dry_run=edit.dry_run,
        )  # fmt: skip
        return report, edit.entries
    raise GenerationConflict(
        f"{settings.name} was changed {TRIES_MAX} times while this change was being made: try again"
    )


def _event(edit: Edit, settings: ListSettings, who: str, now: datetime, *, lifted: str, amended: Built) -> Event:
    """Return the event of an edit for the history.

    `lifted` describes the limits that `force` lifted.
    """
    until = f", until {until_text(edit.until)}" if edit.until else ""
    named = ", ".join(entry.text for entry in edit.entries)
    prefix = TACS if any(entry.whole_tac for entry in edit.entries) else ""
    forced = f"; {turnover(settings.kind, amended.come, amended.gone)}; {lifted}" if edit.force else ""
    detail = f"{edit.reason}{until}{forced}{edit.source and f'; {len(edit.entries)} entries of {edit.source}'}"
    if not edit.source:
        detail += f": {prefix}{named}"
    outcome = FORCED if edit.force else ACCEPTED
    return Event(time=utc_text(now), who=who, what=edit.what, list=settings.name, outcome=outcome, detail=detail)


def added_by(events: Sequence[Event], kind: str) -> dict[tuple[int, int, bool], Event]:
    """Return the last event that added each entry.

    An entry is identified by its key, the key of its IMSI (0 for none), and True if it is a whole TAC.
    """
    events_by_entry = {}
    for event in events:
        if event.what == ADD:
            entry_texts = event.detail.rpartition(": ")[2]
            if entry_texts.startswith(FILE):
                continue
            tacs = entry_texts.startswith(TACS)
            for text in entry_texts.removeprefix(TACS).split(", "):
                identifier, _, imsi = text.partition("+")
                with suppress(IdentifierError):
                    sims, anything = [imsi] if imsi else (), not tacs and kind != SUBSCRIBERS
                    entry = parse_entries(kind, [identifier], imsis=sims, tacs=tacs, verbatim=anything)[0]
                    events_by_entry[entry[1:]] = event
    return events_by_entry


def _parse_key(key_of: Callable[[str], int], text: str) -> int:
    try:
        return key_of(text)
    except IdentifierError as error:
        raise IdentifierError(f"{text}: {error}") from None


def _check(edit: Edit, settings: ListSettings, now: datetime) -> None:
    """Check an edit without reading the list: the kind of change, the reason, and the expiry."""
    if not settings.local:
        raise EntryRefused(f"{settings.name} changes only by signed releases; expected a list with `local: true`")
    check_reason(edit.reason)
    if edit.until and edit.until <= now.timestamp():
        raise EntryRefused(f"the end has passed: it is {utc_text(now)}")


def _differs(edit: Edit, end: int | None) -> bool:
    """Return True if the edit changes an entry that expires at `end`.

    0: no expiry. None: the entry does not exist.
    """
    if edit.what == REMOVE:
        return end is not None
    return end is None or (end > 0 and not 0 < edit.until <= end)


def _present_entries(
    entries: Sequence[Entry], pages: Sequence[Page], now: datetime
) -> dict[tuple[int, int, bool], int]:
    """Return the expiry of each entry that exists (0: none), also of the entries' whole TACs.

    Entries that have expired do not exist. Only the given entries are looked up, because a page may have a million.
    """
    entries_by_page: dict[int, list[Entry]] = {}
    for entry in entries:
        entries_by_page.setdefault(entry.key // PAGE_KEYS, []).append(entry)
    present = dict[tuple[int, int, bool], int]()
    for page in pages:
        with as_corrupt(f"page {page.number} is damaged"):
            present.update(_present_in(page, entries_by_page[page.number], now.timestamp()))
    return present


def _present_in(page: Page, entries: Sequence[Entry], now: float) -> Iterator[tuple[tuple[int, int, bool], int]]:
    first, tac = page.number * PAGE_KEYS, page.tac
    if tac is not None and (not tac.until or tac.until > now):
        yield (first, 0, True), tac.until
    if has_pairs(page):
        pairs = decode_pairs(page)
        for entry in entries:
            paired = pairs.get(entry.key - first)
            end = None if paired is None else paired.imsis.get(entry.imsi)
            if end is not None and (not end or end > now):
                yield entry[1:], end
        return
    content = decode(page)
    singles = [entry for entry in entries if not entry.whole_tac]
    lows = np.array([entry.key - first for entry in singles], content.low.dtype)
    for entry, low, at in zip(singles, lows, np.searchsorted(content.low, lows), strict=True):
        if at < len(content.low) and content.low[at] == low and (not content.until[at] or content.until[at] > now):
            yield entry[1:], int(content.until[at])


def _reject_no_ops(edit: Edit, name: str, present: Container[tuple[int, int, bool]]) -> None:
    """Reject an edit that adds an existing entry or removes a missing one.

    An expired entry is missing. An identifier and its TAC are separate entries.
    """

    def named(entry: Entry) -> str:
        tac = entry.key // PAGE_KEYS
        if entry.whole_tac or (tac * PAGE_KEYS, 0, True) not in present:
            return entry.text
        return f"{entry.text} (it is covered by TAC {tac:0{TAC_DIGITS}d}; not listed on its own)"

    if edit.what == REMOVE:
        wrong = [named(entry) for entry in edit.entries if entry[1:] not in present]
        state_text, advice = f"not in {name}", ""
    else:
        wrong = [entry.text for entry in edit.entries if entry[1:] in present and not edit.replace]
        state_text, advice = f"in {name} already", "; --replace gives them the new reason and end"
    if wrong:
        raise EntryRefused(
            f"nothing was changed: {len(wrong)} of {len(edit.entries)} are {state_text}: {_first_of(wrong)}{advice}"
        )


def _first_of(texts: Sequence[str]) -> str:
    return ", ".join(texts[:NAMED_MAX]) + (", …" if len(texts) > NAMED_MAX else "")


def _details_of(edit: Edit, entry: Entry) -> EntryDetails:
    """Return the reason and the expiry of an entry, which by default are those of the edit, and its date."""
    details = edit.details.get(entry[1:], EntryDetails())
    return EntryDetails(details.reason or edit.reason, details.until or edit.until, details.day)


async def _build_edit(
    edit: Edit, settings: ListSettings, store: ListStore, now: datetime, stored: tuple[ListState, Sequence[Page]]
) -> tuple[ListState, Built, RowDates]:
    """Build the list's state after an edit, its changed pages, and the dates of the entries.

    `stored`: present state and pages.
    """
    state, before = stored
    details_of = [_details_of(edit, entry) for entry in edit.entries]
    texts, bytes_of = state.reasons, dict[str, int]()
    if edit.what == ADD:
        new_reasons = dict.fromkeys(details.reason for details in details_of)
        bytes_of, texts = await reason_bytes(new_reasons, state, store, settings.name)
    rows = Rows()
    for of_pairs, of_tacs in ((True, False), (False, True), (False, False)):
        same = [
            (entry, details)
            for entry, details in zip(edit.entries, details_of, strict=True)
            if bool(entry.imsi) is of_pairs and entry.whole_tac is of_tacs
        ]
        if not same:
            continue
        keys = np.array([entry.key for entry, _ in same], np.uint64)
        reasons = np.array([bytes_of.get(details.reason, 0) for _, details in same], np.uint8)
        columns = reasons, np.array([details.until for _, details in same], np.int64)
        if of_pairs:
            rows.add_pairs(keys, np.array([entry.imsi for entry, _ in same], np.uint64), *columns)
        elif of_tacs:
            rows.add_spans(keys, keys + np.uint64(PAGE_KEYS - 1), *columns)
        else:
            rows.add(keys, *columns)
        if edit.what == ADD:
            days = np.array([details.day for _, details in same], np.uint16)
            rows.dates.append(keys, keys + np.uint64((PAGE_KEYS - 1) * of_tacs), days)
    built = build_pages(rows).pages
    removed, added = ((), built) if edit.what == ADD else (built, ())
    amended = amend_pages(before, removed, added, state.content_digest, now.timestamp())
    following = ListState(
        kind=settings.kind, serial=0, generation=state.generation + 1, highest_serial=state.highest_serial, release_digest="",
        content_digest=amended.content_digest, entries=state.entries + amended.entries,
        devices=state.devices + amended.devices, reasons=texts, loaded_at=utc_text(now),
    )  # fmt: skip
    return following, amended, rows.dates


async def _add_dates(
    amended: Built,
    rows: RowDates,
    settings: ListSettings,
    store: ListStore,
    *,
    numbers: Sequence[int],
    before: Sequence[Page],
    waits: bool,
) -> Built:
    """Return the pages of an edit with the pages of dates that it changes; `numbers` and `before` are those of its pages.

    Raises:
        StoreChanged: with `waits`, if dates and pages do not belong together, because another edit has written only its dates yet.
    """
    dates_state, dates = await read_dates_and_state(store, settings.name, numbers)
    if waits and not all(is_sealed(page, dates[page.number]) for page in before if page.number in dates):
        raise StoreChanged(f"the dates of list {settings.name} are being changed")
    return with_dates(amended, dates_state, amend_dates(before, dates, amended.pages, rows))
