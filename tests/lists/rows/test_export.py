"""A list written as a data file gives the same content when it is read again, whatever it holds and however it came to be."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.releases import read_into

from eir.device import MEID_BASE, SNR_KEYS
from eir.errors import EirError
from eir.lists.log.change import Head
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import Reasons
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.reader import Tally
from eir.lists.rows.table_export import export_table
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import change, table_of

TEXTS = ("", "stolen", "lost, found", 'said "stolen"', "señal")
FIRST = 35 * 10**12
TAC = FIRST // SNR_KEYS
KEYS = st.integers(1, 40).map(lambda n: FIRST + n % 4 * SNR_KEYS + n) | st.integers(0, 3).map(
    lambda n: MEID_BASE + 0xA0000000000000 + n
)
TACS = st.integers(0, 3).map(lambda n: WHOLE | TAC + n)
TIMES = st.sampled_from([0, 0, 1, 1_900_000_000, 2_000_000_000])
SIMS = st.integers(0, 5).map(lambda n: 1_001_010_000_000_000 + n)
SAID = (st.integers(0, len(TEXTS) - 1), TIMES, TIMES)
LISTS = {
    "devices": st.lists(st.tuples(KEYS | TACS, st.just(0), *SAID), max_size=30),
    "pairs": st.lists(st.tuples(KEYS, SIMS, *SAID), max_size=30),
    "subscribers": st.lists(st.tuples(SIMS, st.just(0), *SAID), max_size=30),
}


def rows(entries):
    """The rows of entries; a begin that is not before the end is none."""
    keys, seconds, reasons, begins, ends = map(list, zip(*entries, strict=True)) if entries else [[]] * 5
    begins = [0 if end and begin >= end else begin for begin, end in zip(begins, ends, strict=True)]
    return rows_of(keys, seconds=seconds, reasons=reasons, begins=begins, ends=ends)


def read_again(files, layout, kind, **options):
    """The table and the reasons of what a load would make of the files, and how many rows were bad."""
    collected, reasons = ListedRows(), Reasons()
    tally = Tally(bad_rows_max=10**6, range_tacs_max=1000, **options)
    for text in files:
        read_into(collected, [text.encode()], layout=layout, kind=kind, reasons=reasons, tally=tally)
    return table_of(collected.pop()), reasons.texts, tally.bad


def digest(table, texts):
    return digest_tree(table, texts).root


def written(table, layout="eir", *, kind="devices", reasons=TEXTS, issued=None, **how):
    out = io.StringIO()
    count = export_table(Head(kind=kind, reasons=reasons, issued=issued), table, layout, out, **how)
    assert count == len(out.getvalue().splitlines()) - (layout != "imei")
    return out.getvalue()


@pytest.mark.parametrize("kind", LISTS)
@given(data=st.data())
def test_any_list_read_again_has_the_same_digest(kind, data):
    """After a delta too, which may take the last entry of a reason, and leaves the others as they are."""
    first, removed, added = (rows(data.draw(LISTS[kind])) for _ in range(3))
    table = change(table_of(first), added, removed).table
    found = table.rows()
    whole, letters = found.keys >= WHOLE, (found.keys >= MEID_BASE) & (found.keys < WHOLE)
    only = [None]
    if whole.any() and letters.any():
        with pytest.raises(EirError, match="--only imei and the second with --only tac"):
            written(table, kind=kind)
        only = [False, True]
    files = [written(table, kind=kind, only_tacs=each) for each in only]
    again, texts, bad = read_again(files, "eir", kind)
    assert (digest(again, texts), bad) == (digest(table, TEXTS), 0)


@pytest.mark.parametrize(
    ("layout", "head"), [("imei", ""), ("dirbs-blacklist", "IMEI,block_date,reasons\n"), ("eir", "imei\n")]
)
def test_a_plain_list_in_each_layout(layout, head):
    table = table_of(rows_of([FIRST + 7, MEID_BASE + 0xA1234567890ABC]))
    text = written(table, layout, issued="2026-11-24T10:00:00Z")
    assert text.startswith(head)
    assert text.count("20261124") == 2 * (layout == "dirbs-blacklist")
    again, texts, bad = read_again([text], layout, "devices")
    assert (digest(again, texts), bad) == (digest(table, ()), 0)


@pytest.mark.parametrize(
    ("layout", "kind", "columns", "says"),
    [
        ("imei", "devices", {"keys": [WHOLE | TAC]}, "whole TACs"),
        ("dirbs-blacklist", "devices", {"ends": 2_000_000_000}, "ends"),
        ("dirbs-blacklist", "devices", {"begins": 2_000_000_000}, "begins"),
        ("imei", "devices", {"reasons": 1, "days": 20_000}, "reasons and dates"),
        ("imei", "subscribers", {"keys": [1_001_010_000_000_000]}, "subscribers"),
        ("dirbs-blacklist", "pairs", {"seconds": 1_001_010_000_000_000}, "pairs"),
    ],
)
def test_an_entry_that_a_layout_cannot_express_is_refused_and_nothing_is_written(layout, kind, columns, says):
    table, out = table_of(rows_of(**{"keys": [FIRST]} | columns)), io.StringIO()
    with pytest.raises(EirError, match=says):
        export_table(Head(kind=kind, reasons=TEXTS), table, layout, out)
    assert out.getvalue() == ""


def test_reasons_past_255_come_back_as_other():
    texts = ("", *map(str, range(254)), "other")
    table = table_of(rows_of(range(FIRST, FIRST + 256), reasons=range(256)))
    again, read_texts, bad = read_again([written(table, reasons=texts)], "eir", "devices")
    assert (digest(again, read_texts), bad) == (digest(table, texts), 0)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("eir", "imei,reason,date\n35000000000001,lost,2026-11-20\n35000000000002,,\n35000000000003,lost,1970-01-02\n"),
        ("eir", "imei,date,until\n35000000000001,2026-11-20,\n35000000000002,,2031-01-02T00:00:00Z\n"),
        ("eir", "imei,date,begin\n35000000000001,2026-11-20,\n35000000000002,,2031-01-02T00:00:00Z\n"),
        ("eir", "imei_from,imei_to,date\n35000000000000,35000000999999,2026-11-20\n35000001000001,35000001000001,\n"),
        ("dirbs-blacklist", "IMEI,block_date,reasons\n35000000000001,20261120,lost\n35000000000002,20261121,lost\n"),
    ],
)  # fmt: skip
def test_an_export_has_the_dates(layout, text):
    table, texts, _ = read_again([text], layout, "devices", dates=True)
    out = written(table, layout, reasons=texts)
    assert sorted(out.splitlines()) == sorted(text.splitlines())
    again, _, _ = read_again([out], layout, "devices", dates=True)
    assert [*entries_in(again.rows())] == [*entries_in(table.rows())]
