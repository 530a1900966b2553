"""A list in force as a data file again, which published gives the same content.

Pages keep a byte for each reason, given in the order in which reasons first appeared. So that the file gives the same bytes, the
first entry with each of them stands first. Where no entry has one any more, since a delta or an operator took out the last, a row
that decides nothing keeps its place: some entry once more, with an end long past, which that entry's own row outlasts.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from eir.device import MEID_BASE, ODD_BASE, SNR_KEYS, TAC_DIGITS, key_text
from eir.errors import EirError
from eir.lists.pages.pages import Page, decode_sections
from eir.lists.record.entries import Listed, entries_of, imsi_text, until_text
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import DEVICES, PAIRS, TYPES
from eir.lists.record.store import ListState
from eir.lists.rows.layout import ALLOCATED, BY_IMEI, BY_IMSI, BY_ODD, BY_PAIR, BY_RANGE, BY_TAC, BY_TYPE

EIR, IMEI, DIRBS_BLACKLIST = EXPORTS = ("eir", "imei", "dirbs-blacklist")
"""The layouts that a list can be written in."""
LONG_PAST = 1
"""A Unix time: no entry that is listed for a while ended by then."""
RANGES_MAX = 100_000
"""Entries of a list of devices with whole TACs among them that are written as ranges, which take a load longer than single ones."""

_LOST: Mapping[str, str] = {
    "identifier": "identifiers that are no IMEI",
    "tac": "whole TACs",
    "imei_from": "whole TACs",
    "until": "ends",
    "reason": "reasons",
}


def export(
    state: ListState, pages: Sequence[Page], layout: str, out: TextIO, *,
    only_tacs: bool | None = None, progress: Callable[[int, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Write a list, as of its state and its pages by rising number, as a CSV file; returns how many rows it has.

    `only_tacs`: True for the whole TACs alone, False for the single identifiers alone, which published as the first of two files
    give all; None for both in one. `progress` gets pages done and pages in all. Raises EirError, before anything is written, if the
    list holds what the layout has no column for (`imei` has identifiers alone, `dirbs-blacklist` neither whole TACs nor ends, and
    both only devices), or if what is wanted in one file does not fit in one.
    """
    ahead = [] if only_tacs else list(_first_with_each_reason(state, pages, singles=only_tacs is False))
    subject = _subject(state, pages, only_tacs)
    columns = [
        *subject,
        *(["reason"] if len(state.reasons) > 1 and subject != BY_TYPE else []),
        *([ALLOCATED] if subject == BY_TYPE and any(decode_sections(page.extra).dates for page in pages) else []),
        *(["until"] if _has_ends(ahead, pages) else []),
    ]
    if layout != EIR:
        _refuse_loss(state, columns, layout)
    writer = csv.writer(out, lineterminator="\n")
    if layout != IMEI:
        writer.writerow(("IMEI", "block_date", "reasons") if layout == DIRBS_BLACKLIST else columns)
    day = (state.issued or state.loaded_at or "")[:10].replace("-", "")

    def row(entry: Listed) -> list[str]:
        said = {
            "reason": reason_text(state, entry.reason),
            "until": until_text(entry.until),
            ALLOCATED: until_text(entry.date)[: len("2026-12-31")],
            "imsi": imsi_text(entry.imsi or entry.key),
        }
        said[subject[0]] = entry.text(state.kind)
        if subject == BY_TYPE:
            said |= {"tac": said["tac"][:TAC_DIGITS], "device_type": said["reason"]}
        if subject == BY_RANGE:
            said |= {
                "imei_from": key_text(entry.key),
                "imei_to": key_text(entry.key + (SNR_KEYS - 1) * entry.whole_tac),
            }
        return (
            [said["imei"], day, said["reason"]] if layout == DIRBS_BLACKLIST else [said[column] for column in columns]
        )

    writer.writerows(map(row, ahead))
    written, rows = set(ahead), len(ahead)
    for done, page in enumerate(pages, 1):
        left = [entry for entry in entries_of([page]) if entry not in written and only_tacs in {None, entry.whole_tac}]
        writer.writerows(map(row, left))
        rows += len(left)
        progress(done, len(pages))
    return rows


def _subject(state: ListState, pages: Sequence[Page], only_tacs: bool | None) -> Sequence[str]:
    """The columns that say what a row is about. Raises EirError if one file cannot say it."""
    if state.kind != DEVICES:
        return {PAIRS: BY_PAIR, TYPES: BY_TYPE}.get(state.kind, BY_IMSI)
    tacs, singles = any(page.tac for page in pages), any(page.keys for page in pages)
    if only_tacs or (only_tacs is None and tacs and not singles):
        return BY_TAC
    if only_tacs is False or not tacs:
        return BY_ODD if any(page.number >= ODD_BASE // SNR_KEYS for page in pages) else BY_IMEI
    letters = any(page.number >= MEID_BASE // SNR_KEYS for page in pages)
    if letters or state.entries > RANGES_MAX:
        held = "MEIDs with letters, or what is no IMEI," if letters else f"{state.entries:,} entries"
        raise EirError(
            f"the list holds whole TACs beside {held}, which no one file can hold: write two, the first with --only imei and the second with "
            "--only tac, and publish them in this order"
        )
    return BY_RANGE


def _has_ends(ahead: Sequence[Listed], pages: Sequence[Page]) -> bool:
    if any(entry.until for entry in ahead):
        return True
    return any((page.tac and page.tac.until) or any(decode_sections(page.extra).until) for page in pages if page.extra)


def _refuse_loss(state: ListState, columns: Sequence[str], layout: str) -> None:
    lost = [_LOST[column] for column in columns if column in _LOST and (column != "reason" or layout == IMEI)]
    if state.kind != DEVICES:
        lost = [state.kind]
    if lost:
        raise EirError(
            f"the layout {layout} has no place for {' and '.join(lost)}, which the list holds; the layout {EIR} has"
        )


def _first_with_each_reason(state: ListState, pages: Sequence[Page], *, singles: bool) -> Iterator[Listed]:
    """An entry for each reason, in the order of their bytes; for a reason that no entry has, one that another row outlasts.

    `singles`: no whole TACs; the reasons that only these have count all the same.
    """
    first: dict[int, Listed] = {}
    lasting: Listed | None = None
    last = 0
    for entry in entries_of(pages if len(state.reasons) > 1 else ()):
        last = max(last, entry.reason)
        if singles and entry.whole_tac:
            continue
        first.setdefault(entry.reason, entry)
        if lasting is None and (not entry.until or entry.until > LONG_PAST):
            lasting = entry
    for reason in range(1, last + 1):
        if reason in first:
            yield first[reason]
        elif lasting is not None:
            yield lasting._replace(reason=reason, until=LONG_PAST)
