"""Computation of the day on which the period of grace ends, for many devices, by the policy rules.

The periods of grace are those of rules that test only the first sighting of a device (and `not_list`), because these periods hold
for every device in the record. If the policy has no such rule, the periods are those of all rules with a condition on the first
sighting. If several periods apply to a device, the longest counts. A rule with `first_seen_before` but without `first_seen_within`
is an amnesty without a last day.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eir.checks.conditions import day_text
from eir.checks.settings import PolicySettings, Rule
from eir.lists.record.first_days import WAS_LISTED

AHEAD_DAYS = 90
"""Number of days, from today on, for which `count_ends` counts the ends of periods."""
NO_END = -1
"""Value in place of the last day of a device that has no period of grace, or a period without an end."""
_ENDLESS_DAYS = 1 << 30


def last_days(policy: PolicySettings, firsts: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return for each device the last day of its period of grace, as the count of days since 1970-01-01; NO_END if it has no last day.

    Args:
        policy: policy whose rules give the periods.
        firsts: first day of each device.
    """
    days = firsts.astype(np.int64)
    lasts = np.full(len(days), NO_END, np.int64)
    for rule in _period_rules(policy):
        ends = days + (rule.first_seen_within or _ENDLESS_DAYS)
        if rule.first_seen_before is not None:
            ends[days >= rule.first_seen_before] = NO_END
        np.maximum(lasts, ends, out=lasts)
    lasts[days == WAS_LISTED] = NO_END
    lasts[lasts >= _ENDLESS_DAYS] = NO_END
    return lasts


def last_day(policy: PolicySettings, first: int) -> int:
    """Return the last day (days since 1970-01-01) of the period of grace of a device first seen on day `first`; NO_END if it has none."""
    firsts = np.array([first], np.uint16)
    return int(last_days(policy, firsts)[0])


def is_over(policy: PolicySettings, firsts: NDArray[np.uint16], today: int) -> NDArray[np.bool_]:
    """Return a mask of the devices whose period of grace is over on the day `today`. `firsts`: first day of each device."""
    days = firsts.astype(np.int64)
    has_period = np.zeros(len(days), bool)
    for rule in _period_rules(policy):
        holds = today - days <= (rule.first_seen_within or _ENDLESS_DAYS)
        has_period |= holds & (days < (rule.first_seen_before or _ENDLESS_DAYS))
    over: NDArray[np.bool_] = ~has_period | (days == WAS_LISTED)
    return over


def count_ends(policy: PolicySettings, first_days: Mapping[int, int], today: int) -> dict[str, int]:
    """Count by date the devices whose period of grace ends in the next AHEAD_DAYS days. Days without an end are left out.

    `first_days`: first day → count of devices.
    """
    firsts = np.array([*first_days], np.uint16)
    ends = last_days(policy, firsts).tolist()
    counts = Counter[int]()
    for end, devices in zip(ends, first_days.values(), strict=True):
        if today <= end < today + AHEAD_DAYS:
            counts[end] += devices
    return {day_text(end): counts[end] for end in sorted(counts)}


def _period_rules(policy: PolicySettings) -> list[Rule]:
    rules = [rule for rule in policy.rules if rule.has_first_seen]
    general_rules = [rule for rule in rules if rule.tests_only_first_seen]
    return general_rules or rules
