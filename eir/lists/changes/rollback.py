"""Rollback of a list to an earlier release, and reset of its highest accepted serial, if a release had too high a serial by mistake.

The highest serial ever accepted prevents replays of old releases. Only a person can lower this serial, and the history records the
reset. Nodes accept the lower serial because the list's state counts the resets.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from eir.errors import EntryRefused, NothingToRollBack
from eir.lists.log.change import utc_text
from eir.lists.record.dates import roll_back_dates
from eir.lists.record.reasons import check_reason
from eir.lists.record.store import FORCED, NO_LIST, ROLLED_BACK, Event, ListState, ListStore, Release


async def roll_back(
    name: str, store: ListStore, *, who: str, now: datetime, to: int | None = None, dry_run: bool = False
) -> ListState:
    """Restore a stored earlier release of a list by undoing all later changes; return the new state of the list.

    `to` is the serial of the earlier release; for a local list, the generation of the list after the earlier change. None
    undoes the last release. The serials of undone releases cannot be used again.
    """
    releases = await store.releases(name)
    before = releases[0].state if releases else NO_LIST
    steps = _count_steps(name, before, releases, to)
    target = releases[steps].state
    if dry_run:
        return replace(target, highest_serial=before.highest_serial)
    detail = f"{_undone_text(releases[:steps])}; {target.entries} entries"
    event = Event(
        time=utc_text(now), who=who, what="rollback", list=name, serial=target.serial or None, digest=target.release_digest or None, outcome=ROLLED_BACK,
        detail=detail,
    )  # fmt: skip
    await roll_back_dates(store, name, target)
    try:
        return await store.rollback(name, seen=before.generation, to=target.generation, event=event)
    except NothingToRollBack as error:
        raise NothingToRollBack(f"{error}; {_advice(name, before)}") from None


def release_number(state: ListState) -> int:
    """Return the serial of a release; for a change of a local list, the generation of the list after the change."""
    return state.serial or state.generation


def _count_steps(name: str, before: ListState, releases: Sequence[Release], to: int | None) -> int:
    """Count the releases that a rollback undoes. `to`: serial or generation of the release to restore; None: the previous release."""
    if len(releases) < 2:  # the release in force, and its predecessor
        raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_advice(name, before)}")
    for steps, release in enumerate(releases[1:], 1):
        if to is None or release_number(release.state) == to:
            return steps
    numbers = [str(release_number(release.state)) for release in releases[1:]]
    named = "serial" if before.serial else "change"
    raise NothingToRollBack(f"{named} {to} of list {name} is not kept; there are: {', '.join(numbers)}")


def _undone_text(releases: Sequence[Release]) -> str:
    """Describe the changes that a rollback undoes, newest first: releases by serial, changes of a local list by their event."""
    if releases[0].state.serial:
        serials = [str(release.state.serial) for release in releases]
        return f"release {', '.join(serials)} undone"
    changes: list[str] = []
    for release in releases:
        made = release.made
        event_text = "" if made is None else f" ({made.what} by {made.who}, {made.time}: {made.detail})"
        changes.append(f"change {release.state.generation} undone{event_text}")
    return "; ".join(changes)


def _advice(name: str, state: ListState) -> str:
    """Return advice for an operator whose rollback is impossible."""
    if state is NO_LIST:
        return "it has never been loaded or changed"
    if not state.serial:
        return f"put the entries right by eir add and eir remove, see eir history {name}"
    return f"publish the good data again with a serial above {state.highest_serial} (eir publish), and load it"


async def reset_serial(name: str, store: ListStore, *, to: int, reason: str, who: str, now: datetime) -> ListState:
    """Lower the highest accepted serial of a list to `to`, and return the new state of the list.

    The release in force stays.

    Raises:
        EntryRefused: if the list does not exist, if `to` is not below its highest serial, or if the reason is invalid.
        StoreError: if the store fails.
    """
    check_reason(reason)
    before = await store.state(name)
    if before is None:
        raise EntryRefused(f"{name} has never been loaded or changed, so it has no serial to reset")
    if not 0 <= to < before.highest_serial:
        raise EntryRefused(
            f"the highest serial ever accepted for {name} is {before.highest_serial}; expected a lower serial for --to"
        )
    detail = f"{reason}: the highest serial is {to} again, and was {before.highest_serial}"
    event = Event(
        time=utc_text(now), who=who, what="reset-serial", list=name, serial=before.serial, digest=before.release_digest, outcome=FORCED,
        detail=detail,
    )  # fmt: skip
    return await store.reset_serial(name, to, seen=before.generation, event=event)
