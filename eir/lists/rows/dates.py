"""Dates in the rows of a release or change, and the pages of dates that are stored beside a list's pages.

If several rows have the same entry, the earliest date counts. A changed row without a date keeps the stored date of its entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from eir.lists.pages.content import Keys
from eir.lists.pages.dates import (
    DAY_BYTES,
    DAY_MAX,
    Days,
    PageDays,
    decode_page_days,
    encode_days,
    encode_page_days,
    seal_page_days,
)
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.pages.roaring import Remainders, decode_keys, is_fresh

DaySpan: TypeAlias = tuple[int, int, int]
"""First and last remainder of a range within one page, and the day of the range."""


class RowDates:
    """Dates of rows as days, collected in any order. Each row is a range of keys; a single identifier is a range of one key."""

    def __init__(self) -> None:
        self._rows: list[tuple[Keys, Keys, Days]] = []

    def append(self, first: Keys, last: Keys, days: Days) -> None:
        """Add the dates of rows; rows without a date (day 0) are skipped."""
        dated = days > 0
        self._rows.append((first[dated], last[dated], days[dated]))

    def singles(self) -> tuple[Keys, Days]:
        """Return the keys of single identifiers in ascending order, and the earliest day of each."""
        key_parts = [np.zeros(0, np.uint64)]
        day_parts = [np.zeros(0, np.uint16)]
        for first, last, row_days in self._rows:
            single = first == last
            key_parts.append(first[single])
            day_parts.append(row_days[single])
        keys = np.concatenate(key_parts)
        days = np.concatenate(day_parts)
        if not len(keys):
            return keys, days
        order = np.lexsort((days, keys))
        keys = keys[order]
        days = days[order]
        fresh = is_fresh(keys)
        return keys[fresh], days[fresh]

    def spans(self) -> dict[int, list[DaySpan]]:
        """Return the dated rows that are ranges, by page number; a range over several TACs is split."""
        by_page: dict[int, list[DaySpan]] = {}
        for first, last, days in self._rows:
            wide = first != last
            for low, high, day in zip(first[wide].tolist(), last[wide].tolist(), days[wide].tolist(), strict=True):
                for number in range(low // PAGE_KEYS, high // PAGE_KEYS + 1):
                    start = number * PAGE_KEYS
                    span = (max(low - start, 0), min(high - start, PAGE_KEYS - 1), day)
                    by_page.setdefault(number, []).append(span)
        return by_page


def date_pages(pages: Sequence[Page], rows: RowDates) -> Iterator[Page]:
    """Yield the page of dates for each page of a list. If no entry of a page has a date, its page of dates is empty.

    `rows`: dates of the rows of a full release; each row is an entry of one of `pages`.
    """
    singles, days = rows.singles()
    encoded = encode_days(days)
    spans = rows.spans()
    firsts = np.array([page.number * PAGE_KEYS for page in pages], np.uint64)
    starts = np.searchsorted(singles, firsts).tolist()
    ends = np.searchsorted(singles, firsts + np.uint64(PAGE_KEYS)).tolist()
    for page, start, end in zip(pages, starts, ends, strict=True):
        page_spans = spans.get(page.number, ())
        if start == end and not page_spans:
            yield Page(page.number, b"")
        elif not page_spans and page.tac is None and len(decode_keys(page.keys)) == end - start:
            # Each entry is a single identifier with a day: numpy has encoded the days of all these pages together.
            yield seal_page_days(page, encoded[start * DAY_BYTES : end * DAY_BYTES])
        else:
            low = (singles[start:end] - np.uint64(page.number * PAGE_KEYS)).astype(np.uint32)
            yield encode_page_days(page, _days_of(page, low, days[start:end], page_spans))


def _days_of(page: Page, low: Remainders, days: Days, spans: Iterable[DaySpan]) -> PageDays:
    """Return the earliest day of each entry in a page of a list.

    `low`, `days`: dated single identifiers; `spans`: dated ranges.
    """
    entries = decode_page_days(page, None).low
    earliest = np.full(len(entries), DAY_MAX, np.uint16)
    earliest[np.searchsorted(entries, low)] = days
    tac_day = DAY_MAX
    for first, last, day in spans:
        if last - first == PAGE_KEYS - 1:
            tac_day = min(tac_day, day)
        else:
            begin, end = np.searchsorted(entries, (first, last + 1))
            earliest[begin:end] = np.minimum(earliest[begin:end], day)
    earliest[earliest == DAY_MAX] = 0
    return PageDays(tac_day % DAY_MAX, entries, earliest)


def amend_dates(
    before: Sequence[Page], dates: Mapping[int, Page], changed: Sequence[Page], rows: RowDates
) -> tuple[list[Page], list[Page]]:
    """Return the pages of dates that a change of a list replaces, and their new versions. A new version without dates is an empty page.

    Args:
        before: pages of the list before the change, with all page numbers that the change may concern.
        dates: pages of dates with these numbers.
        changed: new versions of the pages that the change replaces.
        rows: dates of the added rows.
    """
    old = {page.number: page for page in before}
    after = old | {page.number: page for page in changed}
    pages = [after[number] for number in sorted(after)]
    amended = []
    for page, row_dates in zip(pages, date_pages(pages, rows), strict=True):
        old_page = old.get(page.number, Page(page.number, b""))
        stored_days = decode_page_days(old_page, dates.get(page.number))
        row_days = decode_page_days(page, row_dates)
        amended.append(encode_page_days(page, _amended(page, stored_days, row_days)))
    replaced = [dates[page.number] for page in pages if page.number in dates]
    return replaced, amended


def _amended(page: Page, stored: PageDays, rows: PageDays) -> PageDays:
    """Return the day of each entry in a changed page. An entry without a day in the new rows keeps its stored day."""
    days = rows.days.copy()
    _, at, stored_at = np.intersect1d(rows.low, stored.low, assume_unique=True, return_indices=True)
    days[at] = np.where(days[at] > 0, days[at], stored.days[stored_at])
    tac_day = 0 if page.tac is None else rows.tac or stored.tac
    return PageDays(tac_day, rows.low, days)
