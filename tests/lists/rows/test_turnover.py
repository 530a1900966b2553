"""What comes and what goes, against a plain dictionary; and what the limits of a list make of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import page, pair_pages

from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.settings import ListSettings
from eir.lists.rows.turnover import differences, exceeded_limits, force_text, turnover

NOW = 100
ENDS = st.sampled_from([0, NOW, NOW + 1])
"""None, over, and just not over."""
ROWS = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 3)), ENDS)
TACS = st.dictionaries(st.integers(0, 2), ENDS)
REASONS = st.integers(0, 2)


def listed(rows, tacs):
    """The devices in force: single ones, and those of a TAC, which are four that rows name and 999,996 others."""
    whole = {number for number, end in tacs.items() if not 0 < end <= NOW}
    return {(number, low) for number in whole for low in range(5)} | {
        row for row, end in rows.items() if not 0 < end <= NOW
    }


def counted(devices):
    return sum(1 if low < 4 else PAGE_KEYS - 4 for _, low in devices)


def pages(rows, tacs, reason):
    for number in sorted({number for number, _ in rows} | set(tacs)):
        lows = sorted(low for at, low in rows if at == number)
        ends = [rows[number, low] for low in lows]
        tac = (reason, tacs[number]) if number in tacs else None
        yield page(number, lows, until=ends if any(ends) else (), reasons=bytes([reason]) if reason else b"", tac=tac)


@given(ROWS, ROWS, TACS, TACS, REASONS)
def test_devices_that_come_and_go(before, after, tacs_before, tacs_after, reason):
    old, new = list(pages(before, tacs_before, 0)), list(pages(after, tacs_after, reason))
    was, now = listed(before, tacs_before), listed(after, tacs_after)
    assert differences(old, new, NOW) == (counted(now - was), counted(was - now))


@given(*[st.dictionaries(st.integers(0, 3), st.sets(st.integers(10, 13), min_size=1))] * 2)
def test_in_a_list_of_pairs_a_device_comes_and_goes_with_each_sim(before, after):
    come = sum(bool(sims - before.get(device, set())) for device, sims in after.items())
    gone = sum(bool(sims - after.get(device, set())) for device, sims in before.items())
    assert differences(pair_pages(before), pair_pages(after), NOW) == (come, gone)


def test_a_pair_ends():
    held, over = page(1, [5], imsis=[[10, 11]]), page(1, [5], imsis=[[10, 11]], until=[0, NOW])
    assert differences([held], [over], NOW) == (0, 1)
    assert differences([over], [held], NOW) == (1, 0)
    assert differences([over], [], NOW) == (0, 1)
    assert differences([page(1, [5], imsis=[[10]], until=[NOW])], [], NOW) == (0, 0)


def test_a_list_that_was_one_of_another_kind():
    assert differences([page(1, [5, 6])], [page(1, [6, 7], imsis=[[10], [11]])], NOW) == (2, 2)


@pytest.mark.parametrize(
    "damaged", [Page(1, b"junk"), Page(1, b"", b"T\x09"), Page(1, page(1, [5]).keys, b"U\x10\0\0\0" + bytes(16))]
)
def test_a_page_that_is_damaged_lists_nothing(damaged):
    assert differences([damaged], [page(1, [5, 6])], NOW) == (2, 0)
    assert differences([damaged], [], NOW) == (0, 0)


@pytest.mark.parametrize(
    ("devices", "come", "gone", "passed"),
    [
        (5000, 1000, 1000, []),
        (5000, 1001, 1000, ["growth"]),
        (5000, 1000, 1001, ["shrink"]),
        (4000, 999, 999, []),
        (0, 999, 0, []),
        (0, 1000, 0, ["growth"]),
        (10, 10**6, 10, ["growth"]),
        (10**8, 2 * 10**7, 2 * 10**7, []),
        (10**8, 2 * 10**7 + 1, 2 * 10**7 + 1, ["shrink", "growth"]),
    ],
)
def test_limits(devices, come, gone, passed):
    assert list(exceeded_limits(ListSettings(name="l"), devices, come, gone)) == passed


@pytest.mark.parametrize("percent", range(101))
def test_a_share_is_exact(percent):
    settings = ListSettings(name="l", shrink_max=percent / 100, growth_max=percent / 100, change_min=0)
    assert not exceeded_limits(settings, 100, percent, percent)
    assert list(exceeded_limits(settings, 100, percent + 1, percent + 1)) == ["shrink", "growth"]


def test_words():
    assert turnover("pairs", 10**6, 0) == "1,000,000 devices come, 0 go"
    assert turnover("subscribers", 1, 2) == "1 subscribers come, 2 go"
    assert force_text(["shrink", "range"]) == "--force lifted the limit on shrink, range"
