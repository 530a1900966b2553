"""Operators' own entries: what `eir add` and `eir remove` do to a list that is declared `local`.

A change is read, decided and written on condition that nobody changed the list meanwhile; if somebody did, it is decided
anew. It is made wholly or not at all, and the history says who changed which entries when, and why.

May import lists, eir.device and eir.errors; the store comes as an argument.
"""

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from eir.device import MEID_BASE, TAC_DIGITS, device_key, imsi_key, is_digits
from eir.errors import EntryRefused, GenerationConflict, IdentifierError, StoreChanged, StoreError
from eir.lists.build import REASON_CHARS_MAX, REASONS_MAX, Reasons, Rows, amend_pages, build_pages, differences
from eir.lists.index import Index, PairList
from eir.lists.layout import DEVICES, PAIRS, SUBSCRIBERS
from eir.lists.load import ListSettings
from eir.lists.pages import EMPTY_DIGEST, PAGE_KEYS, REASONS, TAC, Page, amended_digest, decode_sections
from eir.lists.release import utc_text
from eir.lists.store import ACCEPTED, Event, ListState, ListStore

ADD, REMOVE = "add", "remove"
"""What an edit does, as the history calls it."""
ENTRIES_MAX = 1000
"""Entries of one command: the history names each. More belong in a release."""
TRIES_MAX = 20
"""Times that a change is decided anew because somebody else's came first."""
PAUSE_MAX_S = 0.05
NAMED_MAX = 10
"""Entries that a refusal names."""
_NO_STATE = ListState(kind="", serial=0, generation=0, highest_serial=0, release_digest="")


class Entry(NamedTuple):
    """One thing that a list can hold."""

    text: str
    """As the operator wrote it."""
    key: int
    """Of the device, the lowest of the TAC, or of the subscriber."""
    imsi: int = 0
    """Of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of a local list."""

    what: str
    """ADD or REMOVE."""
    entries: Sequence[Entry]
    reason: str
    until: int = 0
    """Unix seconds at which added entries end; 0: they do not."""
    replace: bool = False
    """Entries that are there take the new reason and the new end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """What an edit did."""

    list: str
    what: str
    entries: int
    """Entries that the list holds now, a whole TAC counted as one."""
    entries_change: int
    """By how many these are more, or less."""
    come: int
    """Identifiers that were not in it before, a TAC counted as a million."""
    gone: int
    generation: int
    recorded: bool
    """False if the list was changed and then the history could not be written."""

    def as_text(self) -> str:
        """The report in a line."""
        if self.come != self.gone:
            change = f"{self.come - self.gone:+,} identifiers"
        elif self.entries_change:
            change = f"{self.entries_change:+,} entries for identifiers that are listed by their TAC"
        else:
            change = "reason and end replaced"
        said = [f"{self.list}: {change}", f"entries now: {self.entries:,}"]
        if not self.recorded:
            said.append("the history could not be written")
        return "; ".join(said)


class _Following(NamedTuple):
    """What a list becomes by an edit."""

    state: ListState
    pages: Sequence[Page]
    """Those that differ."""
    entries_change: int
    come: int
    gone: int


def parse_entries(kind: str, identifiers: Sequence[str], *, imsis: Sequence[str] = (), tacs: bool = False) -> list[Entry]:
    """The entries that a command names, each once, for a list of this kind.

    `identifiers`: IMEIs, IMEISVs or MEIDs; TACs if `tacs`; IMSIs for a list of subscribers. A list of pairs takes each
    device with each of `imsis`. Raises IdentifierError, which names the one that is wrong.
    """
    if tacs and kind != DEVICES:
        raise IdentifierError(f"a list of {kind} holds no TACs")
    if imsis and kind != PAIRS:
        raise IdentifierError(f"a list of {kind} binds no device to a SIM: only a list of pairs takes --imsi")
    if kind == PAIRS and not imsis:
        raise IdentifierError("a list of pairs holds devices with their SIMs: the IMSI is missing (--imsi)")
    if kind == PAIRS:
        sims = [(_named(imsi_key, imsi), imsi) for imsi in imsis]
        found = [
            Entry(f"{text}+{imsi}", _named(device_key, text), subscriber) for text in identifiers for subscriber, imsi in sims
        ]
    elif kind == SUBSCRIBERS:
        found = [Entry(text, _named(imsi_key, text)) for text in identifiers]
    elif tacs:
        found = [Entry(text, _named(_tac_key, text), whole_tac=True) for text in identifiers]
    else:
        found = [Entry(text, _named(device_key, text)) for text in identifiers]
    distinct = {entry[1:]: entry for entry in found}
    if len(distinct) > ENTRIES_MAX:
        raise IdentifierError(f"{len(distinct)} entries; one command takes {ENTRIES_MAX} at most, a release any number")
    return list(distinct.values())


async def edit_list(edit: Edit, settings: ListSettings, store: ListStore, *, who: str, now: datetime) -> EditReport:
    """Make the change, wholly or not at all.

    Raises EntryRefused where the list is not local or is of another kind, where an entry is there already (add, unless
    `replace`) or is not (remove), or where reason or end are none; StoreError.
    """
    _check(edit, settings, now)
    numbers = sorted({entry.key // PAGE_KEYS for entry in edit.entries})
    for _ in range(TRIES_MAX):
        state, before = await store.some_pages(settings.name, numbers)
        if state is not None and state.kind != settings.kind:
            raise EntryRefused(
                f"{settings.name} is a list of {state.kind} in the store and of {settings.kind} in the configuration; "
                "give the new kind a list of another name"
            )
        _refuse_what_changes_nothing(edit, settings, {page.number: page for page in before}, now)
        try:
            following = await _edited(edit, settings, store, now, (state, before))
            seen = 0 if state is None else state.generation
            stored = await store.amend(settings.name, following.state, following.pages, seen=seen)
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # spreads two operators, hides nothing
            continue
        recorded = await _record(edit, settings.name, store, who=who, now=now)
        return EditReport(
            list=settings.name, what=edit.what, entries=stored.entries, entries_change=following.entries_change,
            come=following.come, gone=following.gone, generation=stored.generation, recorded=recorded,
        )  # fmt: skip
    raise GenerationConflict(f"{settings.name} was changed {TRIES_MAX} times while this change was being made: try again")


def _named(key_of: Callable[[str], int], text: str) -> int:
    try:
        return key_of(text)
    except IdentifierError as error:
        raise IdentifierError(f"{text}: {error}") from None


def _tac_key(text: str) -> int:
    if len(text) != TAC_DIGITS or not is_digits(text):
        raise IdentifierError(f"a TAC has {TAC_DIGITS} digits; got {len(text)} characters")
    return int(text) * PAGE_KEYS


def _check(edit: Edit, settings: ListSettings, now: datetime) -> None:
    """What can be told without looking at the list."""
    if not settings.local:
        raise EntryRefused(f"{settings.name} is changed by signed releases; only a list with `local: true` takes entries")
    if not edit.reason.strip() or not edit.reason.isprintable() or len(edit.reason) > REASON_CHARS_MAX:
        raise EntryRefused(f"a reason is needed: one line of at most {REASON_CHARS_MAX} characters")
    if edit.until and edit.until <= now.timestamp():
        raise EntryRefused(f"the end is over: it is {utc_text(now)}")


def _refuse_what_changes_nothing(edit: Edit, settings: ListSettings, pages: Mapping[int, Page], now: datetime) -> None:
    """Refuse entries that are there already, or are not; ones that ended are not.

    An identifier and its TAC are entries of their own: either may be there without the other.
    """
    index = Index({settings.name: settings.kind})
    builder = index.builder(settings.name, _NO_STATE)
    for page in pages.values():
        builder.add(page.singles)
    index.switch(settings.name, builder)
    held = index.lists[settings.name]
    held.expire(now.timestamp(), math.inf)

    def has_tac(entry: Entry) -> bool:
        page = pages.get(entry.key // PAGE_KEYS)
        tac = None if page is None else page.tac
        return tac is not None and (not tac.until or tac.until > now.timestamp())

    def is_there(entry: Entry) -> bool:
        if isinstance(held, PairList):
            return held.binds(entry.key, entry.imsi)
        return has_tac(entry) if entry.whole_tac else held.holds(entry.key)

    def named(entry: Entry) -> str:
        if entry.whole_tac or not has_tac(entry):
            return entry.text
        return f"{entry.text} (it is covered by TAC {entry.key // PAGE_KEYS:0{TAC_DIGITS}d}; not listed on its own)"

    if edit.what == REMOVE:
        _refuse(edit, [named(entry) for entry in edit.entries if not is_there(entry)], f"not in {settings.name}")
    elif not edit.replace:
        there = [entry.text for entry in edit.entries if is_there(entry)]
        _refuse(edit, there, f"in {settings.name} already", "; --replace gives them the new reason and end")


def _refuse(edit: Edit, wrong: Sequence[str], what: str, advice: str = "") -> None:
    if wrong:
        named = ", ".join(wrong[:NAMED_MAX]) + (", …" if len(wrong) > NAMED_MAX else "")
        raise EntryRefused(f"nothing was changed: {len(wrong)} of {len(edit.entries)} are {what}: {named}{advice}")


async def _reason(reason: str, state: ListState | None, store: ListStore, name: str) -> tuple[int, tuple[str, ...]]:
    """The byte that stands for a reason, and what the bytes of the list stand for then.

    Releases bring all their reasons anew, but operators' pile up over the years; so the byte of a reason that no entry
    has any more is used again.
    """
    texts = () if state is None else state.reasons
    known = Reasons(texts)
    if (byte := known.index(reason)) < REASONS_MAX:
        return byte, known.texts
    used = {0, REASONS_MAX}
    async for found, batch in store.pages(name):
        if state is None or found.generation != state.generation:
            raise GenerationConflict(f"{name} was changed while its reasons were read")
        for page in batch:
            sections = decode_sections(page.extra)
            used.update(sections.get(REASONS, b""), sections.get(TAC, b"")[:1])
    if (free := next((byte for byte in range(REASONS_MAX) if byte not in used), None)) is None:
        return byte, known.texts
    return free, (*texts[:free], reason, *texts[free + 1 :])


def _rows(edit: Edit, reason: int) -> Rows:
    rows = Rows()
    for entry in edit.entries:
        key, reasons, until = np.array([entry.key], np.uint64), np.array([reason], np.uint8), np.array([edit.until])
        if entry.imsi:
            rows.add_pairs(key, np.array([entry.imsi], np.uint64), reasons, until)
        elif entry.whole_tac:
            rows.add_spans(key, key + np.uint64(PAGE_KEYS - 1), reasons, until)
        elif entry.key >= MEID_BASE:  # a MEID with letters, or an IMSI
            rows.add(key - np.uint64(MEID_BASE), reasons, until, base=MEID_BASE)
        else:
            rows.add(key, reasons, until)
    return rows


async def _edited(
    edit: Edit, settings: ListSettings, store: ListStore, now: datetime, found: tuple[ListState | None, Sequence[Page]]
) -> _Following:
    """The list as it is to be, and the pages that differ from those found."""
    state, before = found
    texts: tuple[str, ...] = () if state is None else state.reasons
    reason = 0
    if edit.what == ADD:
        reason, texts = await _reason(edit.reason, state, store, settings.name)
    built = build_pages(_rows(edit, reason)).pages
    removed, added = ([], built) if edit.what == ADD else (built, [])
    after, sums = amend_pages(before, removed, added)
    changed = {page.number for page in after}
    touched = [page for page in before if page.number in changed]
    come, gone = differences(touched, after)
    following = ListState(
        kind=settings.kind,
        serial=0,
        generation=1 if state is None else state.generation + 1,
        highest_serial=0 if state is None else state.highest_serial,
        release_digest="",
        content_digest=amended_digest(EMPTY_DIGEST if state is None else state.content_digest, touched, after),
        entries=sums.entries + (0 if state is None else state.entries),
        devices=sums.devices + (0 if state is None else state.devices),
        reasons=texts,
        loaded_at=utc_text(now),
    )
    return _Following(following, after, sums.entries, come, gone)


async def _record(edit: Edit, name: str, store: ListStore, *, who: str, now: datetime) -> bool:
    """Write to the history; False if the store cannot: what happened has happened all the same."""
    until = f", until {utc_text(datetime.fromtimestamp(edit.until, UTC))}" if edit.until else ""
    what = "TACs " if any(entry.whole_tac for entry in edit.entries) else ""
    detail = f"{edit.reason}{until}: {what}{', '.join(entry.text for entry in edit.entries)}"
    with suppress(StoreError):
        await store.record(Event(time=utc_text(now), who=who, what=edit.what, list=name, outcome=ACCEPTED, detail=detail))
        return True
    return False
