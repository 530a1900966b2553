"""Export of a list to a data file, from which a release with the same content can be published.

A page stores the index of each reason, and indexes follow the order in which reasons first appeared. To reproduce the indexes,
the file begins with one entry for each reason. If no entry has a reason any more, because a delta or an operator removed the
last one, a row without effect keeps its index: another entry with this reason and an end in the past, which that entry's own
row overrides.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from eir.device import MEID_BASE, ODD_BASE, SNR_KEYS, TAC_DIGITS, key_text
from eir.errors import EirError
from eir.lists.pages.pages import Page, decode_sections
from eir.lists.record.entries import NO_DATES, ListEntry, date_text, entries_of, imsi_text, until_text
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import DEVICES, PAIRS, TYPES
from eir.lists.record.store import ListState
from eir.lists.rows.layout import ALLOCATED, BY_IMEI, BY_IMSI, BY_ODD, BY_PAIR, BY_RANGE, BY_TAC, BY_TYPE, DATE

EIR, IMEI, DIRBS_BLACKLIST = EXPORTS = ("eir", "imei", "dirbs-blacklist")
"""Layouts in which a list can be written."""
LONG_PAST = 1
"""Unix time before the end of every entry."""
RANGES_MAX = 100_000
"""Maximum number of entries of a device list with whole TACs that are written as ranges; a load takes longer for ranges than for singles."""

_LOST: Mapping[str, str] = {
    "identifier": "identifiers that are no IMEI",
    "tac": "whole TACs",
    "imei_from": "whole TACs",
    "until": "ends",
    "reason": "reasons",
    DATE: "dates",
}
_IN_DIRBS = ("reason", DATE)
"""Columns for which the layout `dirbs-blacklist` has a place, and `imei` has none."""


def export(
    state: ListState, pages: Sequence[Page], layout: str, out: TextIO, *, dates: Mapping[int, Page] = NO_DATES,
    only_tacs: bool | None = None, progress: Callable[[int, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Write a list as a CSV file and return the number of rows.

    Args:
        state: state of the list.
        pages: pages of the list in ascending order.
        layout: one of EXPORTS.
        out: file to write.
        dates: pages of dates by number (eir.lists.record.dates).
        only_tacs: True for whole TACs only, False for single identifiers only, None for both. Published as a release of
            two
            files, first the singles and then the TACs, they give the whole list.
        progress: receives the number of pages done and of all pages.

    Raises:
        EirError: before anything is written, if the layout lacks a column that the list needs (`imei` has identifiers
            only,
            `dirbs-blacklist` neither whole TACs nor ends, and both only devices), or if one file cannot hold the list.
    """
    ahead = [] if only_tacs else list(_first_with_each_reason(state, pages, dates, singles=only_tacs is False))
    subject = _subject(state, pages, only_tacs)
    columns = [
        *subject,
        *(["reason"] if len(state.reasons) > 1 and subject != BY_TYPE else []),
        *([ALLOCATED] if subject == BY_TYPE and any(decode_sections(page.extra).dates for page in pages) else []),
        *([DATE] if dates else []),
        *(["until"] if _has_ends(ahead, pages) else []),
    ]
    if layout != EIR:
        _refuse_loss(state, columns, layout)
    writer = csv.writer(out, lineterminator="\n")
    if layout != IMEI:
        writer.writerow(("IMEI", "block_date", "reasons") if layout == DIRBS_BLACKLIST else columns)
    day = (state.issued or state.loaded_at or "")[:10].replace("-", "")

    def row(entry: ListEntry) -> list[str]:
        values = {
            "reason": reason_text(state, entry.reason),
            "until": until_text(entry.until),
            ALLOCATED: date_text(entry.date),
            DATE: date_text(entry.date),
            "imsi": imsi_text(entry.imsi or entry.key),
        }
        values[subject[0]] = entry.text(state.kind)
        if subject == BY_TYPE:
            values |= {"tac": values["tac"][:TAC_DIGITS], "device_type": values["reason"]}
        if subject == BY_RANGE:
            values |= {
                "imei_from": key_text(entry.key),
                "imei_to": key_text(entry.key + (SNR_KEYS - 1) * entry.whole_tac),
            }
        return (
            [values["imei"], values[DATE].replace("-", "") or day, values["reason"]]
            if layout == DIRBS_BLACKLIST
            else [values[column] for column in columns]
        )

    writer.writerows(map(row, ahead))
    written, rows = set(ahead), len(ahead)
    for done, page in enumerate(pages, 1):
        entries = [
            entry
            for entry in entries_of([page], dates)
            if entry not in written and only_tacs in {None, entry.whole_tac}
        ]
        writer.writerows(map(row, entries))
        rows += len(entries)
        progress(done, len(pages))
    return rows


def _subject(state: ListState, pages: Sequence[Page], only_tacs: bool | None) -> Sequence[str]:
    """Return the columns that identify a row in the export of this list.

    Raises:
        EirError: if one file cannot hold the list.
    """
    if state.kind != DEVICES:
        return {PAIRS: BY_PAIR, TYPES: BY_TYPE}.get(state.kind, BY_IMSI)
    tacs, singles = any(page.tac for page in pages), any(page.keys for page in pages)
    if only_tacs or (only_tacs is None and tacs and not singles):
        return BY_TAC
    if only_tacs is False or not tacs:
        return BY_ODD if any(page.number >= ODD_BASE // SNR_KEYS for page in pages) else BY_IMEI
    letters = any(page.number >= MEID_BASE // SNR_KEYS for page in pages)
    if letters or state.entries > RANGES_MAX:
        content = "MEIDs with letters, or what is no IMEI," if letters else f"{state.entries:,} entries"
        raise EirError(
            f"the list holds whole TACs beside {content}, which no one file can hold: write two, the first with --only imei and the second with "
            "--only tac, and publish them in this order"
        )
    return BY_RANGE


def _has_ends(ahead: Sequence[ListEntry], pages: Sequence[Page]) -> bool:
    if any(entry.until for entry in ahead):
        return True
    return any((page.tac and page.tac.until) or any(decode_sections(page.extra).until) for page in pages if page.extra)


def _refuse_loss(state: ListState, columns: Sequence[str], layout: str) -> None:
    lost = [_LOST[column] for column in columns if column in _LOST and (column not in _IN_DIRBS or layout == IMEI)]
    if state.kind != DEVICES:
        lost = [state.kind]
    if lost:
        raise EirError(
            f"the layout {layout} has no place for {' and '.join(lost)}, which the list holds; the layout {EIR} has"
        )


def _first_with_each_reason(
    state: ListState, pages: Sequence[Page], dates: Mapping[int, Page], *, singles: bool
) -> Iterator[ListEntry]:
    """Yield one entry for each reason in the order of its index, so that a load assigns the same indexes again.

    For an unused reason, the entry is a row without effect, which another row overrides.

    If `singles` is set, whole TACs are skipped, but the reasons that only they have keep their indexes.
    """
    first: dict[int, ListEntry] = {}
    lasting: ListEntry | None = None
    last = 0
    for entry in entries_of(pages if len(state.reasons) > 1 else (), dates):
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
