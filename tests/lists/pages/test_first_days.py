"""Devices with their first days: pages and back, merging, and the periods of last sightings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.lists.pages.first_days import (
    NOTHING,
    PERIOD_DAYS,
    FirstDays,
    by_page,
    decode_days,
    encode_days,
    is_unseen,
    join,
    merge,
    period,
    periods,
    seen_on,
)
from eir.lists.pages.pages import PAGE_KEYS, Page

TODAY = 20_787  # 2026-11-30

rows = st.dictionaries(
    st.integers(0, 6 * PAGE_KEYS) | st.integers(0, 40),
    st.tuples(st.integers(0, 65_535), st.integers(0, 255)),
    max_size=40,
)


def record(content):
    keys = sorted(content)
    columns = [content[key] for key in keys]
    return FirstDays(
        np.array(keys, np.uint64),
        np.array([first for first, _ in columns], np.uint16),
        np.array([last for _, last in columns], np.uint8),
    )


def content(of):
    return {key: (first, last) for key, first, last in zip(*(column.tolist() for column in of), strict=True)}


@given(rows)
def test_pages_hold_all_of_it(given_rows):
    days = record(given_rows)
    pages = encode_days(days)
    assert content(decode_days(pages)) == given_rows
    assert [page.number for page in pages] == sorted({key // PAGE_KEYS for key in given_rows})
    assert encode_days(decode_days(pages)) == pages
    assert content(join(by_page(days).values())) == given_rows


def test_a_page_with_more_keys_than_an_array_has():
    keys = np.arange(10_000, dtype=np.uint64) * np.uint64(3)
    days = seen_on(keys, TODAY)
    assert decode_days(encode_days(days)).is_same(days)


@pytest.mark.parametrize("extra", [b"", b"F\x03\0\0\0\1\2\3", b"F\x09\0\0\0\1\2"])
def test_a_damaged_page(extra):
    (page,) = encode_days(seen_on(np.array([1, 2], np.uint64), TODAY))
    with pytest.raises(ValueError, match="page"):
        decode_days([page._replace(extra=extra)])


def test_gone_pages_hold_nothing():
    assert decode_days([Page(3, b"")]).is_same(NOTHING)


@given(rows, rows, rows)
def test_merging_keeps_the_earliest_day_in_any_order(one, two, three):
    expected = {
        key: (min(each[key][0] for each in there), max(each[key][1] for each in there))
        for key in one | two | three
        for there in [[each for each in (one, two, three) if key in each]]
    }
    records = [*map(record, (one, two, three))]
    assert content(merge(records)) == expected
    assert content(merge([merge([records[2], records[1]]), records[0]])) == expected
    assert content(merge([merge(records), records[0]])) == expected


@given(st.integers(0, 10**15), st.integers(19_800, 27_000))
def test_a_day_lies_in_one_period_of_a_device(key, day):
    assert periods(day, np.array([key], np.uint64)).tolist() == [period(day, key)]
    assert 0 <= period(day + 1, key) - period(day, key) <= 1
    assert period(day + PERIOD_DAYS, key) == period(day, key) + 1


@given(st.integers(0, 10**15), st.integers(19_800, 25_000), st.integers(1, 500))
def test_a_device_is_forgotten_once_it_was_not_seen_for_so_many_days(key, day, remember):
    days = seen_on(np.array([key], np.uint64), day)
    assert not is_unseen(days, day + remember - 1, remember)[0]
    assert is_unseen(days, day + remember + PERIOD_DAYS, remember)[0]
