"""What comes and what goes, against a plain dictionary; and what the limits of a list make of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import as_table, page, pair_rows

from eir.device import SNR_KEYS
from eir.lists.record.settings import ListSettings
from eir.lists.rows.turnover import exceeded_limits, force_text, turnover
from eir.lists.table.table import change, difference, replacement

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
    return sum(1 if low < 4 else SNR_KEYS - 4 for _, low in devices)


def table(rows, tacs, reason):
    def each():
        for number in sorted({number for number, _ in rows} | set(tacs)):
            lows = sorted(low for at, low in rows if at == number)
            tac = (reason, tacs[number]) if number in tacs else None
            yield page(number, lows, until=[rows[number, low] for low in lows], reasons=[reason] * len(lows), tac=tac)

    return as_table(each())


def turnovers(old, new):
    """What comes and what goes, by the whole new content and by the rows that differ."""
    added, removed = difference(old, new)
    effects = [replacement(old, new, NOW), change(old, added, removed, NOW)]
    (found,) = {(effect.devices_added, effect.devices_removed) for effect in effects}
    return found


@given(ROWS, ROWS, TACS, TACS, REASONS)
def test_devices_that_come_and_go(before, after, tacs_before, tacs_after, reason):
    was, now = listed(before, tacs_before), listed(after, tacs_after)
    found = turnovers(table(before, tacs_before, 0), table(after, tacs_after, reason))
    assert found == (counted(now - was), counted(was - now))


@given(*[st.dictionaries(st.integers(0, 3), st.sets(st.integers(10, 13), min_size=1))] * 2)
def test_in_a_list_of_pairs_a_device_comes_and_goes_with_each_sim(before, after):
    come = sum(bool(sims - before.get(device, set())) for device, sims in after.items())
    gone = sum(bool(sims - after.get(device, set())) for device, sims in before.items())
    assert turnovers(as_table(pair_rows(before)), as_table(pair_rows(after))) == (come, gone)


def test_a_pair_ends():
    held, over = (as_table(pair_rows({5: [10, 11]}, ends=ends)) for ends in (0, [0, NOW]))
    assert turnovers(held, over) == (0, 1)
    assert turnovers(over, held) == (1, 0)
    assert turnovers(over, as_table([])) == (0, 1)
    assert turnovers(as_table(pair_rows({5: [10]}, ends=NOW)), as_table([])) == (0, 0)


def test_a_list_that_was_one_of_another_kind():
    assert turnovers(as_table(page(0, [5, 6])), as_table(pair_rows({6: [10], 7: [11]}))) == (2, 2)


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
