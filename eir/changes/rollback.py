"""Undo the last changes of a list."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from eir.errors import NothingToRollBack
from eir.record.store import NO_LIST, ROLLED_BACK, Event, ListState, ListStore, Release, utc_text


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
