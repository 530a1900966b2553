"""Computation of the last day of grace of many devices by the rules of the policy.

The rules that count ask for the first sighting of a device and for nothing else: their periods hold for every device of the record.
If there is no such rule, all rules with a period count. Of several periods of a device the longest counts. An amnesty without
`first_seen_within` has no last day.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eir.checks.conditions import CONDITIONS, day_text
from eir.checks.settings import PolicySettings, Rule
from eir.lists.pages.first_days import WAS_LISTED

AHEAD_DAYS = 90
"""Number of days, today included, for which ends are counted."""
NO_END = -1
"""Last day of a device that has no period, or an amnesty without an end."""
_OPEN = 1 << 30


def last_days(policy: PolicySettings, firsts: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return for each device the last day of its period of grace, in days since 1970-01-01, or NO_END.

    Args:
        policy: policy whose rules give the periods.
        firsts: first day of each device.
    """
    days = firsts.astype(np.int64)
    lasts = np.full(len(days), NO_END, np.int64)
    for rule in _rules_that_count(policy):
        end = days + (rule.first_seen_within or _OPEN)
        if rule.first_seen_before is not None:
            end[days >= rule.first_seen_before] = NO_END
        np.maximum(lasts, end, out=lasts)
    lasts[(days == WAS_LISTED) | (lasts >= _OPEN)] = NO_END
    return lasts


def last_day(policy: PolicySettings, first: int) -> int:
    """Return the last day of the period of grace of a device that was first seen on day `first`, or NO_END."""
    return int(last_days(policy, np.array([first], np.uint16))[0])


def count_ends(policy: PolicySettings, first_days: Mapping[int, int], today: int) -> dict[str, int]:
    """Count the periods of grace that end on each of the next AHEAD_DAYS days; counts of 0 are left out.

    `first_days`: first day → number of devices.
    """
    ends = last_days(policy, np.array([*first_days], np.uint16)).tolist()
    counts = Counter[int]()
    for day, devices in zip(ends, first_days.values(), strict=True):
        if today <= day < today + AHEAD_DAYS:
            counts[day] += devices
    return {day_text(day): counts[day] for day in sorted(counts)}


def _rules_that_count(policy: PolicySettings) -> list[Rule]:
    rules = [rule for rule in policy.rules if rule.asks_first_seen]
    return [rule for rule in rules if not _asks_more(rule)] or rules


def _asks_more(rule: Rule) -> bool:
    """Return True if the rule has a condition that some devices on record may not meet; `not_list` is left out."""
    return any(name != "not_list" and not CONDITIONS[name].records for name in rule.conditions)
