"""Last days of periods of grace by the rules: which rules count, amnesties, and the ends per day."""

import numpy as np
import pytest

from eir.checks.periods import AHEAD_DAYS, NO_END, count_ends, is_over, last_days
from eir.checks.settings import PolicySettings, Rule, Status
from eir.lists.record.first_days import WAS_LISTED

TODAY = 20_787  # 2026-11-30


def rule(**conditions):
    return Rule(answer=Status.GREYLISTED, **conditions)


WITHIN = rule(first_seen_within=60)
TOURISTS = rule(first_seen_within=120, imsi=("286",))
AMNESTY = rule(first_seen_before=TODAY)


@pytest.mark.parametrize(
    ("rules", "first", "last"),
    [
        ([WITHIN], TODAY, TODAY + 60),
        ([WITHIN], WAS_LISTED, NO_END),
        ([], TODAY, NO_END),
        ([rule(tac=("35209900",))], TODAY, NO_END),
        ([TOURISTS, WITHIN], TODAY, TODAY + 60),
        ([TOURISTS], TODAY, TODAY + 120),
        ([rule(first_seen_within=60, not_list="registered")], TODAY, TODAY + 60),
        ([rule(first_seen_within=60, observe=True)], TODAY, TODAY + 60),
        ([rule(first_seen_within=90), WITHIN], TODAY, TODAY + 90),
        ([AMNESTY, WITHIN], TODAY - 1, NO_END),
        ([AMNESTY, WITHIN], TODAY, TODAY + 60),
        ([AMNESTY], TODAY, NO_END),
        ([rule(first_seen_before=TODAY, first_seen_within=200), WITHIN], TODAY - 1, TODAY + 199),
        ([rule(first_seen_before=TODAY, first_seen_within=200), WITHIN], TODAY, TODAY + 60),
    ],
)
def test_the_last_day_of_a_period(rules, first, last):
    assert last_days(PolicySettings(rules=tuple(rules)), np.array([first], np.uint16)).tolist() == [last]


@pytest.mark.parametrize(
    ("rules", "first", "over"),
    [
        ([WITHIN], TODAY - 60, False),
        ([WITHIN], TODAY - 61, True),
        ([WITHIN], WAS_LISTED, True),
        ([], TODAY, True),
        ([AMNESTY], TODAY - 900, False),
        ([AMNESTY], TODAY, True),
        ([rule(first_seen_before=TODAY, first_seen_within=200), WITHIN], TODAY - 200, False),
        ([rule(first_seen_before=TODAY, first_seen_within=200), WITHIN], TODAY - 201, True),
    ],
)
def test_a_period_is_over(rules, first, over):
    assert is_over(PolicySettings(rules=tuple(rules)), np.array([first], np.uint16), TODAY).tolist() == [over]


def test_ends_are_counted_per_day_from_today_on():
    policy = PolicySettings(rules=(WITHIN,))
    ends = {TODAY - 1: 7, TODAY: 2, TODAY + 31: 3, TODAY + AHEAD_DAYS - 1: 5, TODAY + AHEAD_DAYS: 11}
    first_days = {day - 60: devices for day, devices in ends.items()} | {WAS_LISTED: 4}
    assert count_ends(policy, first_days, TODAY) == {"2026-11-30": 2, "2026-12-31": 3, "2027-02-27": 5}
