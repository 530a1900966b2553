"""Operators' own entries: what `eir add` and `eir remove` do to a list that is declared `local`.

A change is read, decided and written on condition that nobody changed the list meanwhile; if somebody did, it is decided
again. It is made wholly or not at all, and the history says who changed which entries when, and why.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from eir.device import TAC_DIGITS, any_key, device_key, imsi_key, typed
from eir.errors import EntryRefused, GenerationConflict, IdentifierError, StoreChanged, StoreError
from eir.lists.pages.content import decode, decode_pairs, has_pairs
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.entries import until_text
from eir.lists.record.reasons import check_reason, reason_byte
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES, ListSettings
from eir.lists.record.store import ACCEPTED, FEED, FORCED, MAIN, NO_LIST, Event, ListState, ListStore, utc_text
from eir.lists.rows.build import Built, Rows, amend_pages, build_pages
from eir.lists.rows.layout import tac_key
from eir.lists.rows.turnover import by_force, past_limits, turnover

ADD, REMOVE = "add", "remove"
ENTRIES_MAX = 1000
"""Entries of one command: the history names each. More belong in a release."""
TRIES_MAX = 20
"""Most times that a change is decided: again each time that somebody else's came first."""
PAUSE_MAX_S = 0.05
NAMED_MAX = 10  # entries that a refusal names
TACS = "TACs "
"""Begins the entries of an event that are whole TACs."""

Had = Callable[[], Collection[str]]
"""Names of lists; asked for where one is not in the store."""


class Entry(NamedTuple):
    """One thing that a list can hold."""

    text: str  # as the operator wrote it
    key: int
    """Key of the device or the subscriber, or the lowest of the TAC."""
    imsi: int = 0
    """IMSI key of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of a local list."""

    what: str  # ADD or REMOVE
    entries: Sequence[Entry]
    reason: str
    until: int = 0
    """Unix seconds at which added entries end; 0: they do not."""
    replace: bool = False
    """Entries that are there take the new reason and the new end."""
    force: bool = False
    """Lift the limits on what goes and what comes, and nothing else."""
    dry_run: bool = False
    """Say what it would do: write nothing, record nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """The result of an edit, or of a dry run."""

    list: str
    holds: str
    """The list's kind."""
    what: str
    entries: int
    """Entries that the list holds now, as in ListState."""
    entries_change: int
    """Difference of these to the number before."""
    come: int
    gone: int
    """Identifiers, as turnover.differences counts them."""
    generation: int
    lifted: tuple[str, ...]
    """The limits that the edit passes, and that were lifted by force: `shrink`, `growth`."""
    dry_run: bool

    def as_text(self) -> str:
        """The report in a line."""
        change = turnover(self.holds, self.come, self.gone)
        if not self.come and not self.gone:
            change = "reason and end replaced"
            if self.entries_change:
                change = f"{self.entries_change:+,} entries for devices that are listed by their TAC"
        said = {
            f"{self.list}: {change}; entries {'then' if self.dry_run else 'now'}: {self.entries:,}": True,
            by_force(self.lifted): self.lifted,
            "nothing was changed": self.dry_run,
        }
        return "; ".join(text for text, holds in said.items() if holds)


def parse_entries(
    kind: str, identifiers: Sequence[str], *, imsis: Sequence[str] = (), tacs: bool = False, verbatim: bool = False
) -> list[Entry]:
    """The entries that a command names, each once, for a list of this kind.

    `identifiers`: IMEIs, IMEISVs or MEIDs; TACs if `tacs`; whatever phones call themselves if `verbatim`; IMSIs for a list of subscribers. A list of pairs takes each
    device with each of `imsis`. Raises IdentifierError, which names the one that is wrong.
    """
    if kind == TYPES:
        raise IdentifierError("a list of device types comes as releases: eir publish --layout tacs")
    if tacs and kind != DEVICES:
        raise IdentifierError(f"a list of {kind} holds no TACs")
    if verbatim and (tacs or kind == SUBSCRIBERS):
        raise IdentifierError(
            f"{'TACs' if tacs else 'subscribers'} are not identifiers of devices that may be anything (--verbatim)"
        )
    if imsis and kind != PAIRS:
        raise IdentifierError(f"a list of {kind} binds no device to a SIM: only a list of pairs takes --imsi")
    if kind == PAIRS and not imsis:
        raise IdentifierError("a list of pairs holds devices with their SIMs: the IMSI is missing (--imsi)")
    identifiers, imsis = [each if verbatim else typed(each) for each in identifiers], [*map(typed, imsis)]
    key_of = imsi_key if kind == SUBSCRIBERS else tac_key if tacs else any_key if verbatim else device_key
    sims = [(f"+{imsi}", _named(imsi_key, imsi)) for imsi in imsis] or [("", 0)]
    found = [
        Entry(text + sim, _named(key_of, text), subscriber, tacs) for text in identifiers for sim, subscriber in sims
    ]
    distinct = {entry[1:]: entry for entry in found}
    if len(distinct) > ENTRIES_MAX:
        raise IdentifierError(f"{len(distinct)} entries; one command takes {ENTRIES_MAX} at most, a release any number")
    return list(distinct.values())


async def edit_list(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: Had = tuple
) -> EditReport:
    """Make the change, wholly or not at all. `had` names the lists that were in force on this host: none of them begins again unnoticed.

    Raises EntryRefused where the list is not local or is of another kind, where an entry is there already (add, unless
    `replace`) or is not (remove), where there is no valid reason or the end is past, or where more comes or goes than the
    list's limits allow (unless `force`); StoreError, with the cause `lost` where the store lost the list.
    """
    report, _ = await _edit(edit, settings, store, who, now, had=had, lenient=False)
    return report


async def edit_what_differs(
    edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime, had: Had = tuple
) -> frozenset[Entry]:
    """Make the change of those entries that are not there already (add) or are there (remove), and return these; raises as `edit_list`.

    One that is there and ends before it is to end is not there already. For who feeds a list row by row: nothing is kept of what was there before, and the history records them in the feed's chain, since rows come by the thousand.
    """
    _, changed = await _edit(edit, replace(settings, keep=0), store, who, now, had=had, lenient=True)
    return frozenset(changed)


async def _edit(
    edit: Edit, settings: ListSettings, store: ListStore, who: str, now: datetime, *, had: Had, lenient: bool
) -> tuple[EditReport, Sequence[Entry]]:
    """The change, and the entries that made one."""
    _check(edit, settings, now)
    every = edit
    numbers = sorted({entry.key // PAGE_KEYS for entry in edit.entries})
    for _ in range(TRIES_MAX):
        found, before = await store.some_pages(settings.name, numbers)
        if found is None and settings.name in had():  # a new one is not followed, or hides the loss
            raise StoreError(
                "lost",
                f"nothing was changed: the store lost {settings.name}, which was in force here; restore a backup, or begin it "
                "again as deploy/OPERATION.md says",
            )
        state = found or NO_LIST
        if state.kind not in {"", settings.kind}:
            kinds = (
                f"{settings.name} is a list of {state.kind} in the store and of {settings.kind} in the configuration"
            )
            raise EntryRefused(f"{kinds}; give the new kind a list of another name")
        there = _there(every.entries, before, now)
        if lenient:
            edit = replace(every, entries=[entry for entry in every.entries if _differs(every, there.get(entry[1:]))])
        else:
            _refuse_what_changes_nothing(edit, settings.name, there)
        try:
            following, amended = await _edited(edit, settings, store, now, (state, before))
            passed = past_limits(settings, state.devices, amended.come, amended.gone)
            if passed and not edit.force:
                raise EntryRefused(
                    f"nothing was changed: {next(iter(passed.values()))}; if that is meant, repeat it with --force"
                )
            if edit.entries and not edit.dry_run:
                event = _event(edit, settings, who, now, lifted=by_force(passed), amended=amended)
                event = replace(event, chain=FEED if lenient else MAIN)
                following = await store.amend(
                    settings.name, following, amended.pages, seen=state.generation, keep=settings.keep, event=event
                )
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # spreads two operators, hides nothing
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
    """Return the history's event for an edit. `lifted`: the limits that it lifted, in words."""
    until = f", until {until_text(edit.until)}" if edit.until else ""
    what = TACS if any(entry.whole_tac for entry in edit.entries) else ""
    forced = f"; {turnover(settings.kind, amended.come, amended.gone)}; {lifted}" if edit.force else ""
    detail = f"{edit.reason}{until}{forced}: {what}{', '.join(entry.text for entry in edit.entries)}"
    outcome = FORCED if edit.force else ACCEPTED
    return Event(time=utc_text(now), who=who, what=edit.what, list=settings.name, outcome=outcome, detail=detail)


def added_by(events: Sequence[Event], kind: str) -> dict[tuple[int, int, bool], Event]:
    """The last event that added each entry, by its key, the key of its IMSI (0 for none) and whether it is a whole TAC."""
    found = {}
    for event in events:
        if event.what == ADD:
            named = event.detail.rpartition(": ")[2]
            tacs = named.startswith(TACS)
            for text in named.removeprefix(TACS).split(", "):
                identifier, _, imsi = text.partition("+")
                with suppress(IdentifierError):
                    sims, anything = [imsi] if imsi else (), not tacs and kind != SUBSCRIBERS
                    entry = parse_entries(kind, [identifier], imsis=sims, tacs=tacs, verbatim=anything)[0]
                    found[entry[1:]] = event
    return found


def _named(key_of: Callable[[str], int], text: str) -> int:
    try:
        return key_of(text)
    except IdentifierError as error:
        raise IdentifierError(f"{text}: {error}") from None


def _check(edit: Edit, settings: ListSettings, now: datetime) -> None:
    """Check what can be told without looking at the list."""
    if not settings.local:
        raise EntryRefused(
            f"{settings.name} is changed by signed releases; only a list with `local: true` takes entries"
        )
    check_reason(edit.reason)
    if edit.until and edit.until <= now.timestamp():
        raise EntryRefused(f"the end is over: it is {utc_text(now)}")


def _differs(edit: Edit, end: int | None) -> bool:
    """True if the edit changes an entry that is there until `end` (0: for good; None: it is not there)."""
    if edit.what == REMOVE:
        return end is not None
    return end is None or (end > 0 and not 0 < edit.until <= end)


def _there(entries: Sequence[Entry], pages: Sequence[Page], now: datetime) -> dict[tuple[int, int, bool], int]:
    """Return which of these are there, and their whole TACs, each with its end (0: none); ended entries are not.

    Raises StoreError for a damaged page. Only the wanted entries are looked up: a page may have a million.
    """
    wanted: dict[int, list[Entry]] = {}
    for entry in entries:
        wanted.setdefault(entry.key // PAGE_KEYS, []).append(entry)
    found = dict[tuple[int, int, bool], int]()
    for page in pages:
        try:
            found.update(_found_in(page, wanted[page.number], now.timestamp()))
        except ValueError as error:
            raise StoreError("corrupt", f"page {page.number} is damaged: {error}") from error
    return found


def _found_in(page: Page, entries: Sequence[Entry], now: float) -> Iterator[tuple[tuple[int, int, bool], int]]:
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


def _refuse_what_changes_nothing(edit: Edit, name: str, there: Container[tuple[int, int, bool]]) -> None:
    """Refuse entries that are there, or are not (as one that has ended). An identifier and its TAC are entries of their own."""

    def named(entry: Entry) -> str:
        tac = entry.key // PAGE_KEYS
        if entry.whole_tac or (tac * PAGE_KEYS, 0, True) not in there:
            return entry.text
        return f"{entry.text} (it is covered by TAC {tac:0{TAC_DIGITS}d}; not listed on its own)"

    if edit.what == REMOVE:
        wrong = [named(entry) for entry in edit.entries if entry[1:] not in there]
        what, advice = f"not in {name}", ""
    else:
        wrong = [entry.text for entry in edit.entries if entry[1:] in there and not edit.replace]
        what, advice = f"in {name} already", "; --replace gives them the new reason and end"
    if wrong:
        listed = ", ".join(wrong[:NAMED_MAX]) + (", …" if len(wrong) > NAMED_MAX else "")
        raise EntryRefused(f"nothing was changed: {len(wrong)} of {len(edit.entries)} are {what}: {listed}{advice}")


async def _edited(
    edit: Edit, settings: ListSettings, store: ListStore, now: datetime, found: tuple[ListState, Sequence[Page]]
) -> tuple[ListState, Built]:
    """The list's state as it is to be, and what becomes of the pages found."""
    state, before = found
    texts, reason = state.reasons, 0
    if edit.what == ADD:
        reason, texts = await reason_byte(edit.reason, state, store, settings.name)
    rows = Rows()
    for of_pairs, of_tacs in ((True, False), (False, True), (False, False)):
        same = [entry for entry in edit.entries if bool(entry.imsi) is of_pairs and entry.whole_tac is of_tacs]
        keys = np.array([entry.key for entry in same], np.uint64)
        said = np.full(len(same), reason, np.uint8), np.full(len(same), edit.until, np.int64)
        if not same:
            continue
        if of_pairs:
            rows.add_pairs(keys, np.array([entry.imsi for entry in same], np.uint64), *said)
        elif of_tacs:
            rows.add_spans(keys, keys + np.uint64(PAGE_KEYS - 1), *said)
        else:
            rows.add(keys, *said)
    built = build_pages(rows).pages
    removed, added = ((), built) if edit.what == ADD else (built, ())
    amended = amend_pages(before, removed, added, state.content_digest, now.timestamp())
    following = ListState(
        kind=settings.kind, serial=0, generation=state.generation + 1, highest_serial=state.highest_serial, release_digest="",
        content_digest=amended.content_digest, entries=state.entries + amended.entries,
        devices=state.devices + amended.devices, reasons=texts, loaded_at=utc_text(now),
    )  # fmt: skip
    return following, amended
