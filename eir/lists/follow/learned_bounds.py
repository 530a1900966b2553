"""Bounds on the changes of the record of first sightings, so that a forged row gives or ends no period of grace.

A change may set a first day at most BACK_DAYS before its own time. A device whose period is over must have left a list that registers
devices. A removal concerns a device that is registered, or that was not seen for long. The time of a change is not before that of the
change before it, nor ahead of the clock. Each row is judged singly, by the times in the chain. The held rows are those that were judged
before, so a row that says no more than they do is always accepted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from eir.lists.log.change import first_break
from eir.lists.log.reader import ChangeRows, LoggedList
from eir.lists.record.first_days import DAY_S, WAS_LISTED, first_days, is_unseen, last_days, select_keys
from eir.lists.table.columns import Numbers, TableRows, matches
from eir.lists.table.table import difference, merge

BACK_DAYS = 7
"""Maximum number of days from a first day to the time of the change that adds it."""
NO_DAY = 1 << 30
"""First day that no row has, so that only rows are accepted that say no more than the record."""
TOLERANCE_S = 600.0
"""Seconds by which the time of a change may be before that of the change before it, or ahead of the clock."""


def seconds_of(text: str) -> float:
    """Return the Unix seconds of a change's time; 0 for another text."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True)
class LearnedStep:
    """Rows of one change, or of several changes whose own rows are not stored, and the days by which they are judged."""

    first_min: int
    """Earliest first day of a device that the record lacks."""
    day: int
    """Day of the newest change."""
    added: TableRows
    removed: TableRows


def leads_by_rows(before: LoggedList, content: LoggedList, changes: Sequence[ChangeRows]) -> bool:
    """Return True if the rows of changes are known and lead from one content to the next without a gap."""
    made = [each.change for each in changes if each.parts is not None]
    is_whole = bool(changes) and len(made) == len(changes)
    return is_whole and first_break(made, before.head.digest) is None and made[-1].digest == content.head.digest


def learned_steps(
    name: str, before: LoggedList, content: LoggedList, changes: Sequence[ChangeRows], *, newest: float, limit: float
) -> tuple[list[LearnedStep], float]:
    """Return the steps from one content of the record to the next, and the newest time of the chain in Unix seconds.

    Args:
        name: name of the record.
        before: content before.
        content: content after.
        changes: all changes between, or less.
        newest: newest time of the chain before.
        limit: time from which a change is in the future.
    """
    if leads_by_rows(before, content, changes):
        steps = list[LearnedStep]()
        for each in changes:
            moment = seconds_of(each.change.time)
            is_valid = newest - TOLERANCE_S <= moment <= limit
            newest = max(newest, moment) if is_valid else newest
            # A row of a change with a wrong time is only accepted if it says no more than the record.
            day = int(newest if is_valid else limit) // DAY_S
            steps.append(LearnedStep(day - BACK_DAYS if is_valid else NO_DAY, day, *each.decoded(name)))
        return steps, newest
    # The rows of some changes are not stored. An honest change since the held one is not older than that one.
    added, removed = difference(before.table, content.table)
    moment = min(limit, max([newest, *(seconds_of(each.change.time) for each in changes)]))
    removed = select_keys(removed, added.keys, without=True)
    return [LearnedStep(int(newest) // DAY_S - BACK_DAYS, int(moment) // DAY_S, added, removed)], moment


def judged(rows: TableRows, step: LearnedStep, *, left: Callable[[Numbers], Numbers], registered: Callable[[Numbers], Numbers], remember: int) -> TableRows:  # fmt: skip
    """Return the accepted rows of the devices of a step after it.

    Args:
        rows: accepted rows before it, of all these devices.
        step: the step.
        left: returns the mask of the devices that left a list that registers devices.
        registered: returns the mask of the devices that a list registers.
        remember: days after which a device that was not seen is forgotten.
    """
    added, removed = step.added, select_keys(rows, step.removed.keys)
    at = matches(added, rows)
    known = np.full(len(added), np.iinfo(np.int64).max)
    known[at >= 0] = first_days(rows)[at[at >= 0]]
    firsts, lasts = first_days(added), last_days(added)
    is_new = (firsts >= step.first_min) & (firsts <= step.day + 1)
    has_left = firsts == WAS_LISTED
    has_left[has_left] = left(added.keys[has_left])
    accepted = added.select((is_new | has_left | (firsts >= known)) & (lasts > 0) & (lasts <= step.day + 1))
    gone = removed.select(registered(removed.keys) | is_unseen(removed, step.day, remember))
    return merge(select_keys(rows, gone.keys, without=True), accepted)
