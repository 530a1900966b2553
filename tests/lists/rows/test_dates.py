"""Dates of rows, in pages beside those of the list: after a full release and after deltas they are those of a plain reading."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import state

from eir.errors import EirError
from eir.lists.pages.dates import SEAL_BYTES
from eir.lists.pages.pages import PAGE_KEYS, content_digest
from eir.lists.record.entries import entries_of
from eir.lists.record.first_days import DAY_S
from eir.lists.record.reasons import Reasons
from eir.lists.rows.build import Rows, amend_pages, build_pages
from eir.lists.rows.dates import amend_dates, date_pages
from eir.lists.rows.export import export
from eir.lists.rows.reader import Tally, read_rows

FIRST = 35 * 10**12
NUMBERS = st.integers(0, 2).map(lambda number: FIRST + number * PAGE_KEYS)
DAYS = st.sampled_from([0, 0, 1, 20_000, 20_001, 65_534])
SPANS = st.one_of(
    st.tuples(st.integers(0, 12)).map(lambda at: (*at, *at)),
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).map(tuple),
    st.just((0, PAGE_KEYS - 1)),
)
ROWS = st.lists(st.tuples(NUMBERS, SPANS, DAYS), max_size=12)


def rows_of(entries):
    rows = Rows()
    for number, (low, high), day in entries:
        first, last = np.array([number + low], np.uint64), np.array([number + high], np.uint64)
        rows.add(first) if low == high else rows.add_spans(first, last)
        rows.dates.append(first, last, np.array([day], np.uint16))
    return rows


def entries_in(entries):
    """The entries of rows and their earliest dates, by a plain reading: a whole TAC by its number, and each single key."""
    found = {}
    for number, (low, high), day in entries:
        keys = (
            [(number, True)] if high - low == PAGE_KEYS - 1 else [(number + at, False) for at in range(low, high + 1)]
        )
        for key in keys:
            days = [each for each in (found.get(key, 0), day) if each]
            found[key] = min(days, default=0)
    return found


def read(pages, dates):
    found = entries_of(sorted(pages), {page.number: page for page in dates})
    return {(entry.key, entry.whole_tac): entry.date // DAY_S for entry in found}


@given(ROWS, st.lists(st.tuples(ROWS, ROWS), max_size=3))
def test_dates_are_those_of_the_rows(full, deltas):
    rows = rows_of(full)
    said = rows.dates
    pages = {page.number: page for page in build_pages(rows).pages}
    dates = {page.number: page for page in date_pages([*pages.values()], said) if not page.is_empty}
    expected = entries_in(full)
    assert read(pages.values(), dates.values()) == expected
    for gone, come in deltas:
        removed, added = rows_of(gone), rows_of(come)
        said = added.dates
        parts = build_pages(removed).pages, build_pages(added).pages
        before = [pages[page.number] for page in (*parts[0], *parts[1]) if page.number in pages]
        amended = amend_pages(before, *parts, content_digest(pages.values()))
        replaced, new = amend_dates(before, dates, amended.pages, said)
        assert {page.number for page in replaced} <= {page.number for page in new}
        for those, changed in ((pages, amended.pages), (dates, new)):
            those.update((page.number, page) for page in changed)
            for page in changed:
                if page.is_empty:
                    del those[page.number]
        added_entries = entries_in(come)
        left = {key: day for key, day in expected.items() if key not in entries_in(gone)}
        expected = left | {key: day or left.get(key, expected.get(key, 0)) for key, day in added_entries.items()}
        assert read(pages.values(), dates.values()) == expected


def test_dates_belong_to_the_entries_of_their_page_alone():
    """As after a change by a program that does not know dates."""
    rows = rows_of([(FIRST, (1, 1), 7), (FIRST, (5, 5), 8), (FIRST + PAGE_KEYS, (1, 1), 9)])
    said = rows.dates
    pages = build_pages(rows).pages
    dates = list(date_pages(pages, said))
    assert [len(page.keys) - SEAL_BYTES for page in dates] == [4, 2]
    other = build_pages(rows_of([(FIRST, (1, 1), 0), (FIRST, (6, 6), 0)])).pages
    assert read([*other, pages[1]], dates) == {
        (FIRST + 1, False): 0,
        (FIRST + 6, False): 0,
        (FIRST + PAGE_KEYS + 1, False): 9,
    }
    assert list(date_pages(pages, Rows().dates)) == [page._replace(keys=b"", extra=b"") for page in pages]


def load(text, layout="eir"):
    rows, reasons = Rows(), Reasons()
    tally = Tally(bad_rows_max=0, range_tacs_max=1000, dates=True)
    read_rows([text.encode()], name="f.csv", layout=layout, kind="devices", rows=rows, reasons=reasons, tally=tally)
    said = rows.dates
    pages = build_pages(rows).pages
    return pages, {page.number: page for page in date_pages(pages, said) if not page.is_empty}, reasons.texts


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("eir", "imei,reason,date\n35000000000001,lost,2026-11-20\n35000000000002,,\n35000000000003,lost,1970-01-02\n"),
        ("eir", "imei,date,until\n35000000000001,2026-11-20,\n35000000000002,,2031-01-02T00:00:00Z\n"),
        ("eir", "imei_from,imei_to,date\n35000000000000,35000000999999,2026-11-20\n35000001000001,35000001000001,\n"),
        ("dirbs-blacklist", "IMEI,block_date,reasons\n35000000000001,20261120,lost\n35000000000002,20261121,lost\n"),
    ],
)  # fmt: skip
def test_an_export_has_the_dates(layout, text):
    pages, dates, texts = load(text, layout)
    held = state(pages, reasons=texts)
    out = io.StringIO()
    export(held, pages, layout, out, dates=dates)
    assert sorted(out.getvalue().splitlines()) == sorted(text.splitlines())
    assert load(out.getvalue(), layout)[:2] == (pages, dates)
    with pytest.raises(EirError, match=r"no place for .*dates"):
        export(held, pages, "imei", io.StringIO(), dates=dates)
