"""Undo the last change of a list. May import eir.errors and lists.store; the store comes as an argument."""

from dataclasses import replace
from datetime import datetime

from eir.errors import NothingToRollBack
from eir.lists.store import NO_LIST, ROLLED_BACK, Event, ListState, ListStore, recorded, utc_text


async def roll_back(name: str, store: ListStore, *, who: str, now: datetime, dry_run: bool = False) -> ListState:
    """The state after the last release of a list is undone; its serial stays used. Raises StoreError (NothingToRollBack)."""
    before = await store.state(name) or NO_LIST
    if dry_run:
        if (kept := await store.previous(name)) is None:
            raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_instead(name, before)}")
        return replace(kept, highest_serial=before.highest_serial)
    try:
        state = await store.rollback(name, seen=before.generation)
    except NothingToRollBack as error:
        raise NothingToRollBack(f"{error}; {_instead(name, before)}") from None
    await recorded(store, Event(
        time=utc_text(now), who=who, what="rollback", list=name, serial=state.serial, digest=state.release_digest,
        outcome=ROLLED_BACK, detail=f"release {before.serial} undone; {state.entries} entries",
    ))  # fmt: skip
    return state


def _instead(name: str, state: ListState) -> str:
    """What leads to good data where no rollback does."""
    if state is NO_LIST:
        return "it has never been loaded"
    if not state.serial:
        return f"put the entries right by eir add and eir remove, see eir history {name}"
    return f"publish the good data again with a serial above {state.highest_serial} (eir publish), and load it"
