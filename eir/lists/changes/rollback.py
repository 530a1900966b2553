"""Ways back: undo the last changes of a list, or give back serials that were used up by one that was far too high.

The highest serial ever accepted keeps old releases from being replayed. Only a person can lower it. That goes on record, and nodes
follow it because the list's state counts how often it happened.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from eir.errors import EntryRefused, NothingToRollBack
from eir.lists.record.reasons import check_reason
from eir.lists.record.store import FORCED, NO_LIST, ROLLED_BACK, Event, ListState, ListStore, Release, utc_text


async def roll_back(
    name: str, store: ListStore, *, who: str, now: datetime, to: int | None = None, dry_run: bool = False
) -> ListState:
    """The state after all that came after a kept release is undone; its serials stay used.

    `to`: the serial of that release, or of a local list the number of the change (its generation); None: undo the last one. Raises
    StoreError (NothingToRollBack).
    """
    found = await store.releases(name)
    before = found[0].state if found else NO_LIST
    steps = _steps_to(name, before, found, to)
    target = found[steps].state
    undone = found[:steps]
    if dry_run:
        return replace(target, highest_serial=before.highest_serial)
    event = Event(
        time=utc_text(now), who=who, what="rollback", list=name, serial=target.serial or None, digest=target.release_digest or None, outcome=ROLLED_BACK,
        detail=f"{_undone(undone)}; {target.entries} entries",
    )  # fmt: skip
    try:
        return await store.rollback(name, seen=before.generation, to=target.generation, event=event)
    except NothingToRollBack as error:
        raise NothingToRollBack(f"{error}; {_instead(name, before)}") from None


def number(state: ListState) -> int:
    """Return the number by which a release is known.

    It is the serial or, in a local list, the number of the change that made it.
    """
    return state.serial or state.generation


def _steps_to(name: str, before: ListState, found: Sequence[Release], to: int | None) -> int:
    """Return the number of releases to undo."""
    if len(found) < 2:  # the one in force, and one before it
        raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_instead(name, before)}")
    for steps, release in enumerate(found[1:], 1):
        if to is None or number(release.state) == to:
            return steps
    kept = ", ".join(str(number(release.state)) for release in found[1:])
    raise NothingToRollBack(
        f"{'serial' if before.serial else 'change'} {to} of list {name} is not kept; there are: {kept}"
    )


def _undone(releases: Sequence[Release]) -> str:
    """Return what a rollback undoes, newest first.

    Releases are named by their serials, changes of a local list with all that the history says of each.
    """
    if releases[0].state.serial:
        return f"release {', '.join(str(release.state.serial) for release in releases)} undone"
    return "; ".join(f"change {release.state.generation} undone{_change(release.made)}" for release in releases)


def _change(made: Event | None) -> str:
    return "" if made is None else f" ({made.what} by {made.who}, {made.time}: {made.detail})"


def _instead(name: str, state: ListState) -> str:
    """Say what leads to good data where a rollback cannot."""
    if state is NO_LIST:
        return "it has never been loaded"
    if not state.serial:
        return f"put the entries right by eir add and eir remove, see eir history {name}"
    return f"publish the good data again with a serial above {state.highest_serial} (eir publish), and load it"


async def reset_serial(name: str, store: ListStore, *, to: int, reason: str, who: str, now: datetime) -> ListState:
    """Set the highest serial of a list back to `to`, whatever is in force; returns the state as stored.

    Raises EntryRefused where there is no such list, where `to` is not below its highest serial, or without a valid reason;
    StoreError.
    """
    check_reason(reason)
    before = await store.state(name)
    if before is None:
        raise EntryRefused(f"{name} has never been loaded, so no serial of it is used up")
    if not 0 <= to < before.highest_serial:
        raise EntryRefused(
            f"the highest serial ever accepted for {name} is {before.highest_serial}; --to takes one below it"
        )
    event = Event(
        time=utc_text(now), who=who, what="reset-serial", list=name, serial=before.serial, digest=before.release_digest, outcome=FORCED,
        detail=f"{reason}: the highest serial is {to} again, and was {before.highest_serial}",
    )  # fmt: skip
    return await store.reset_serial(name, to, seen=before.generation, event=event)
