"""Reasons as the store has them, for a key: the narrower row's first, as long as it is in force."""

import pytest
from simulated.store_content import page, state

from eir.errors import StoreError
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.record.reasons import reason_and_day


async def test_a_reason_is_read_from_the_store(store):
    pages = [page(0, [1, 5, 900], reasons=b"\x02\x01\x07"), page(1, [1, 2], reasons=b"\x01"), page(2, [3])]
    await store.replace("a", state(pages, reasons=("", "stolen", "lost")), pages, seen=0)
    expected = {
        1: "lost", 5: "stolen", 900: "other", 2: None, PAGE_KEYS + 1: "stolen", PAGE_KEYS + 2: "stolen",
        2 * PAGE_KEYS + 3: None, 3 * PAGE_KEYS: None,
    }  # fmt: skip
    assert {key: (await reason_and_day(store, "a", key))[0] for key in expected} == expected
    assert (await reason_and_day(store, "unknown", 1))[0] is None


async def test_the_narrower_reason_is_shown_as_long_as_it_is_in_force(store):
    pages = [
        page(0, [1, 2, 3], reasons=b"\x01\x01\x00", until=[0, 100, 0], tac=(2, 200)), page(1, [], tac=(2, 0)), page(2, [7], tac=(0, 0)),
    ]  # fmt: skip
    await store.replace("a", state(pages, reasons=("", "stolen", "recalled")), pages, seen=0)

    async def at(now):
        return [
            (await reason_and_day(store, "a", key, now=now))[0]
            for key in (1, 2, 3, 4, PAGE_KEYS + 9, 2 * PAGE_KEYS + 7)
        ]

    assert await at(99) == ["stolen", "stolen", "recalled", "recalled", "recalled", None]
    assert await at(100) == ["stolen", "recalled", "recalled", "recalled", "recalled", None]
    assert await at(200) == ["stolen", None, None, None, "recalled", None]
    await store.replace("a", state(pages), pages[2:], seen=1)  # no row has a reason
    assert (await reason_and_day(store, "a", 2 * PAGE_KEYS + 8))[0] is None


async def test_the_reason_of_a_pair_outlives_the_end_of_a_sim(store):
    pages = [page(0, [1], reasons=b"\x01", until=[100, 200], imsis=[[1001, 1002]])]
    await store.replace("a", state(pages, kind="pairs", reasons=("", "stolen")), pages, seen=0)
    assert (await reason_and_day(store, "a", 1, now=150))[0] == "stolen"


@pytest.mark.parametrize("extra", [b"R\x02\0\0\0\x01\x01", b"R\x09\0\0\0\x01", b"T\x02\0\0\0\x01"])
async def test_the_reason_on_a_damaged_page_is_an_error(store, extra):
    pages = [page(0, [1, 2, 3])._replace(extra=extra)]
    await store.replace("a", state([]), pages, seen=0)
    with pytest.raises(StoreError, match="page 0 is damaged: ") as caught:
        await reason_and_day(store, "a", 1)
    assert caught.value.cause == "corrupt"
