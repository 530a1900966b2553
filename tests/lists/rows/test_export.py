"""A list written as a data file gives the same content when it is read again, whatever it holds and however it came to be."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import state

from eir.device import MEID_BASE
from eir.errors import EirError
from eir.lists.pages.pages import PAGE_KEYS, content_digest
from eir.lists.record.entries import entries_of
from eir.lists.record.reasons import Reasons
from eir.lists.rows.build import Rows, amend_pages, build_pages
from eir.lists.rows.export import export
from eir.lists.rows.reader import Tally, read_rows

TEXTS = ("", "stolen", "lost, found", 'said "stolen"', "señal")
KEYS = st.integers(1, 40).map(lambda n: 35 * 10**12 + n % 4 * PAGE_KEYS + n) | st.integers(0, 3).map(
    lambda n: MEID_BASE + 0xA0000000000000 + n
)
TAC_KEYS = st.integers(0, 3).map(lambda n: 35 * 10**12 + n * PAGE_KEYS)
ENDS = st.sampled_from([0, 0, 1, 1_900_000_000, 2_000_000_000])
SIMS = st.integers(0, 5).map(lambda n: 1_001_010_000_000_000 + n)
SAID = (st.integers(0, len(TEXTS) - 1), ENDS)
LISTS = {
    "devices": st.lists(st.tuples(KEYS | TAC_KEYS.map(lambda key: ("tac", key)), st.none(), *SAID), max_size=30),
    "pairs": st.lists(st.tuples(KEYS, SIMS, *SAID), max_size=30),
    "subscribers": st.lists(st.tuples(SIMS, st.none(), *SAID), max_size=30),
}


def pages_of(kind, entries):
    rows = Rows()
    for subject, imsi, reason, until in entries:
        key = np.array([subject[1] if isinstance(subject, tuple) else subject], np.uint64)
        said = np.array([reason], np.uint8), np.array([until], np.int64)
        if isinstance(subject, tuple):
            rows.add_spans(key, key + np.uint64(PAGE_KEYS - 1), *said)
        elif kind == "pairs":
            rows.add_pairs(key, np.array([imsi], np.uint64), *said)
        else:
            rows.add(key, *said)
    return sorted(build_pages(rows).pages)


def read_again(files, layout, kind):
    """The digest of what a load would make of the files, and how many rows were bad."""
    rows, reasons, tally = Rows(), Reasons(), Tally(bad_rows_max=10**6, range_tacs_max=1000)
    for text in files:
        read_rows([text.encode()], name="f.csv", layout=layout, kind=kind, rows=rows, reasons=reasons, tally=tally)
    return content_digest(build_pages(rows).pages), tally.bad


def written(state, pages, layout="eir", **how):
    out = io.StringIO()
    count = export(state, pages, layout, out, **how)
    assert count == len(out.getvalue().splitlines()) - (layout != "imei")
    return out.getvalue()


@pytest.mark.parametrize("kind", LISTS)
@given(data=st.data())
def test_any_list_read_again_has_the_same_digest(kind, data):
    """After a delta too, which may take the last entry of a reason, and leaves the others' bytes as they are."""
    first = pages_of(kind, data.draw(LISTS[kind]))
    removed, added = (pages_of(kind, data.draw(LISTS[kind])) for _ in range(2))
    amended = amend_pages(first, removed, added, content_digest(first))
    changed = {page.number: page for page in amended.pages}
    pages = sorted(page for page in {**{page.number: page for page in first}, **changed}.values() if not page.is_empty)
    held = state(pages, kind=kind, reasons=TEXTS)
    tacs, letters = any(page.tac for page in pages), any(page.number >= MEID_BASE // PAGE_KEYS for page in pages)
    if tacs and letters:
        with pytest.raises(EirError, match="--only imei and the second with --only tac"):
            written(held, pages)
    if pages and all(entry.until != 1 for entry in entries_of(pages)):
        files = (
            [written(held, pages)]
            if not (tacs and letters)
            else [written(held, pages, only_tacs=only) for only in (False, True)]
        )
        assert read_again(files, "eir", kind) == (content_digest(pages), 0)


@pytest.mark.parametrize(
    ("layout", "head"), [("imei", ""), ("dirbs-blacklist", "IMEI,block_date,reasons\n"), ("eir", "imei\n")]
)
def test_a_plain_list_in_each_layout(layout, head):
    pages = pages_of("devices", [(key, None, 0, 0) for key in (35 * 10**12 + 7, MEID_BASE + 0xA1234567890ABC)])
    held = state(pages, issued="2026-11-24T10:00:00Z")
    text = written(held, pages, layout)
    assert text.startswith(head)
    assert text.count("20261124") == 2 * (layout == "dirbs-blacklist")
    assert read_again([text], layout, "devices") == (content_digest(pages), 0)


@pytest.mark.parametrize(
    ("layout", "kind", "entry", "says"),
    [
        ("imei", "devices", (("tac", 35 * 10**12), None, 0, 0), "whole TACs"),
        ("dirbs-blacklist", "devices", (35 * 10**12, None, 0, 2_000_000_000), "ends"),
        ("imei", "devices", (35 * 10**12, None, 1, 0), "reasons"),
        ("imei", "subscribers", (1_001_010_000_000_000, None, 0, 0), "subscribers"),
        ("dirbs-blacklist", "pairs", (35 * 10**12, 1_001_010_000_000_000, 0, 0), "pairs"),
    ],
)
def test_an_entry_that_a_layout_cannot_express_is_refused_and_nothing_is_written(layout, kind, entry, says):
    pages, out = pages_of(kind, [entry]), io.StringIO()
    with pytest.raises(EirError, match=says):
        export(state(pages, kind=kind, reasons=TEXTS if entry[2] else ()), pages, layout, out)
    assert out.getvalue() == ""


def test_reasons_past_255_come_back_as_other():
    texts = ("", *map(str, range(254)), "other")
    assert len(texts) == 256
    pages = pages_of("devices", [(35 * 10**12 + n, None, n, 0) for n in range(256)])
    text = written(state(pages, reasons=texts), pages)
    assert read_again([text], "eir", "devices") == (content_digest(pages), 0)
