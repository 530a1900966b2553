"""Export of a list to a data file, from which a release with the same content can be published.

A page stores the index of each reason. A load assigns indexes in the order in which reasons first appear in the file. So the
exported file begins with one entry for each reason, in the order of the indexes. A reason may have no entry any more, because a
delta or an operator removed the last one. For such a reason, the file has a row without effect: any listed entry, with this
reason and an expiry in the past. The entry's own row overrides this row.
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
from eir.lists.rows.table_export import DIRBS_BLACKLIST, EIR, IMEI, RANGES_MAX, refuse_loss

LONG_PAST = 1


def export(
    state: ListState, pages: Sequence[Page], layout: str, out: TextIO, *, dates: Mapping[int, Page] = NO_DATES,
    only_tacs: bool | None = None, progress: Callable[[int, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Write a list as a CSV file and return the number of rows.

    Args:
        state: state of the list.
        pages: pages of the list in ascending order.
        layout: one of EXPORTS.
        out: file that receives the rows.
        dates: pages of dates by number (eir.lists.record.dates).
        only_tacs: True to write only whole TACs, False to write only single identifiers, None for both. To publish the
            whole list from two files, the file of the single identifiers must be the first one.
        progress: receives the number of written pages and the number of all pages.

    Raises:
        EirError: before a row is written, if the layout lacks a column that the list needs, or if one file cannot have
            all entries. `imei` has identifiers only. `dirbs-blacklist` has neither whole TACs nor expiries. Both are for
            lists of devices only.
    """
    ahead: list[ListEntry] = []
    if not only_tacs:
        ahead += _first_with_each_reason(state, pages, dates, singles=only_tacs is False)
    subject = _subject(state, pages, only_tacs)
    columns = _columns(state, pages, subject, ahead, dated=bool(dates))
    if layout != EIR:
        refuse_loss(state.kind, columns, layout)
    writer = csv.writer(out, lineterminator="\n")
    if layout == DIRBS_BLACKLIST:
        writer.writerow(("IMEI", "block_date", "reasons"))
    elif layout != IMEI:
        writer.writerow(columns)
    release_time = state.issued or state.loaded_at or ""
    release_day = release_time[:10].replace("-", "")

    def row(entry: ListEntry) -> list[str]:
        fields = _fields(state, subject, entry)
        if layout == DIRBS_BLACKLIST:
            block_date = fields[DATE].replace("-", "") or release_day
            return [fields["imei"], block_date, fields["reason"]]
        return [fields[column] for column in columns]

    writer.writerows(map(row, ahead))
    written = set(ahead)
    rows = len(ahead)
    kinds = {True, False} if only_tacs is None else {only_tacs}
    for done, page in enumerate(pages, 1):
        entries = entries_of([page], dates)
        rest = [entry for entry in entries if entry not in written and entry.whole_tac in kinds]
        writer.writerows(map(row, rest))
        rows += len(rest)
        progress(done, len(pages))
    return rows


def _columns(
    state: ListState, pages: Sequence[Page], subject: Sequence[str], ahead: Sequence[ListEntry], *, dated: bool
) -> list[str]:
    """Choose the columns for the export of a list."""
    columns = [*subject]
    if subject == BY_TYPE:
        if any(decode_sections(page.extra).dates for page in pages):
            columns.append(ALLOCATED)
    elif len(state.reasons) > 1:
        columns.append("reason")
    if dated:
        columns.append(DATE)
    if _has_expiries(ahead, pages):
        columns.append("until")
    return columns


def _fields(state: ListState, subject: Sequence[str], entry: ListEntry) -> dict[str, str]:
    """Return the fields of an entry by column name, for every possible column of an export."""
    reason = reason_text(state, entry.reason)
    date = date_text(entry.date)
    fields = {
        "reason": reason,
        "until": until_text(entry.until),
        ALLOCATED: date,
        DATE: date,
        "imsi": imsi_text(entry.imsi or entry.key),
    }
    text = entry.text(state.kind)
    if subject == BY_TYPE:
        fields["tac"] = text[:TAC_DIGITS]
        fields["device_type"] = reason
    elif subject == BY_RANGE:
        last = entry.key + SNR_KEYS - 1 if entry.whole_tac else entry.key
        fields["imei_from"] = key_text(entry.key)
        fields["imei_to"] = key_text(last)
    else:
        fields[subject[0]] = text
    return fields


def _subject(state: ListState, pages: Sequence[Page], only_tacs: bool | None) -> Sequence[str]:
    """Choose the columns that identify an entry in the export of a list, such as `imei`.

    Raises:
        EirError: if one file cannot have all entries.
    """
    if state.kind != DEVICES:
        return {PAIRS: BY_PAIR, TYPES: BY_TYPE}.get(state.kind, BY_IMSI)
    has_tacs = any(page.tac for page in pages)
    has_singles = any(page.keys for page in pages)
    if only_tacs or (only_tacs is None and has_tacs and not has_singles):
        return BY_TAC
    highest_page = max((page.number for page in pages), default=0)
    if only_tacs is False or not has_tacs:
        return BY_ODD if highest_page >= ODD_BASE // SNR_KEYS else BY_IMEI
    if highest_page >= MEID_BASE // SNR_KEYS:
        content = "MEIDs with letters, or what is no IMEI,"
    elif state.entries > RANGES_MAX:
        content = f"{state.entries:,} entries"
    else:
        return BY_RANGE
    raise EirError(
        f"the list holds whole TACs beside {content}, which no one file can hold: write two, the first with --only imei and the second with "
        "--only tac, and publish them in this order"
    )


def _has_expiries(ahead: Sequence[ListEntry], pages: Sequence[Page]) -> bool:
    if any(entry.until for entry in ahead):
        return True
    if any(page.tac and page.tac.until for page in pages if page.extra):
        return True
    return any(any(decode_sections(page.extra).until) for page in pages if page.extra)


def _first_with_each_reason(
    state: ListState, pages: Sequence[Page], dates: Mapping[int, Page], *, singles: bool
) -> Iterator[ListEntry]:
    """Yield one entry for each reason in index order, so that a load of the exported file assigns the same indexes to the reasons.

    The entry for an unused reason is a row without effect, which another row overrides.

    If `singles` is set, whole TACs are skipped. A reason that only whole TACs have counts as unused, and keeps its index.
    """
    first_entries: dict[int, ListEntry] = {}
    overriding: ListEntry | None = None
    highest = 0
    for entry in entries_of(pages if len(state.reasons) > 1 else (), dates):
        highest = max(highest, entry.reason)
        if singles and entry.whole_tac:
            continue
        first_entries.setdefault(entry.reason, entry)
        if overriding is None and (not entry.until or entry.until > LONG_PAST):
            overriding = entry
    for reason in range(1, highest + 1):
        if reason in first_entries:
            yield first_entries[reason]
        elif overriding is not None:
            yield overriding._replace(reason=reason, until=LONG_PAST)
