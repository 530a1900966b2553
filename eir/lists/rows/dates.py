"""Dates of the rows of a release or of an edit, and the pages of dates that they give (eir.lists.pages.dates).

If several rows have the same entry, its earliest date counts. In a change, a row without a date leaves the date of its entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from eir.lists.pages.content import Keys
from eir.lists.pages.dates import DAY_MAX, Days, PageDays, decode_page_days, encode_page_days
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.pages.roaring import Remainders, is_fresh

DaySpan: TypeAlias = tuple[int, int, int]
"""First and last remainder of a range within one page, and its day."""


class RowDates:
    """Days of rows, collected in any order. A row is a range of keys; a single identifier is a range of one key."""

    def __init__(self) -> None:
        self._rows: list[tuple[Keys, Keys, Days]] = []

    def append(self, first: Keys, last: Keys, days: Days) -> None:
        """Add rows; those without a day are left out."""
        dated = days > 0
        self._rows.append((first[dated], last[dated], days[dated]))

    def singles(self) -> tuple[Keys, Days]:
        """Return the single identifiers in order, each with its earliest day."""
        parts = [(first[first == last], days[first == last]) for first, last, days in self._rows]
        if not any(len(keys) for keys, _ in parts):
            return np.zeros(0, np.uint64), np.zeros(0, np.uint16)
        keys, days = np.concatenate([keys for keys, _ in parts]), np.concatenate([days for _, days in parts])
        order = np.lexsort((days, keys))
        fresh = is_fresh(keys[order])
        return keys[order][fresh], days[order][fresh]

    def spans(self) -> dict[int, list[DaySpan]]:
        """Return the ranges, split at page boundaries, by page number."""
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
    """Yield the page of dates for each page of a list, from the rows of a full release; empty ones too."""
    singles, days = rows.singles()
    spans = rows.spans()
    firsts = np.array([page.number * PAGE_KEYS for page in pages], np.uint64)
    starts = np.searchsorted(singles, firsts).tolist()
    ends = np.searchsorted(singles, firsts + np.uint64(PAGE_KEYS)).tolist()
    for page, first, start, end in zip(pages, firsts, starts, ends, strict=True):
        page_spans = spans.get(page.number, ())
        if start == end and not page_spans:
            yield Page(page.number, b"")
            continue
        low = (singles[start:end] - first).astype(np.uint32)
        yield encode_page_days(page, _days_of(page, low, days[start:end], page_spans))


def _days_of(page: Page, low: Remainders, days: Days, spans: Iterable[DaySpan]) -> PageDays:
    """Return the days of a page: for each entry the earliest day of the rows about it."""
    entries = decode_page_days(page, None).low
    earliest = np.full(len(entries), DAY_MAX, np.uint16)
    earliest[np.searchsorted(entries, low)] = days  # a row that is read is an entry of the page
    tac = DAY_MAX
    for first, last, day in spans:
        if last - first == PAGE_KEYS - 1:
            tac = min(tac, day)
        else:
            under = slice(*np.searchsorted(entries, (first, last + 1)))
            earliest[under] = np.minimum(earliest[under], day)
    earliest[earliest == DAY_MAX] = 0
    return PageDays(tac % DAY_MAX, entries, earliest)


def amend_dates(
    before: Sequence[Page], dates: Mapping[int, Page], changed: Sequence[Page], rows: RowDates
) -> tuple[list[Page], list[Page]]:
    """Return the pages of dates that a change of a list replaces, and those that replace them; the latter may be empty.

    Args:
        before: pages of the list with the numbers of the change.
        dates: pages of dates with these numbers.
        changed: pages that the change replaces.
        rows: dates of the added rows.
    """
    old = {page.number: page for page in before}
    after = old | {page.number: page for page in changed}
    pages = [after[number] for number in sorted(after)]
    amended = []
    for page, given in zip(pages, date_pages(pages, rows), strict=True):
        present = decode_page_days(old.get(page.number, Page(page.number, b"")), dates.get(page.number))
        amended.append(encode_page_days(page, _amended(page, present, decode_page_days(page, given))))
    return [dates[page.number] for page in pages if page.number in dates], amended


def _amended(page: Page, present: PageDays, given: PageDays) -> PageDays:
    """Return the days of a page after a change: the day of its row, else the present day of the entry."""
    days = given.days.copy()
    _, at, present_at = np.intersect1d(given.low, present.low, assume_unique=True, return_indices=True)
    days[at] = np.where(days[at] > 0, days[at], present.days[present_at])
    return PageDays(0 if page.tac is None else given.tac or present.tac, given.low, days)
