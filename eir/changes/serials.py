"""An operator's way back for a list whose serials were used up by one that was far too high.

The highest serial ever accepted keeps releases from being played again, and never goes down by itself; whoever sets it back
is on record, and nodes follow it because it is counted in the list's state.
"""

from datetime import datetime

from eir.errors import EntryRefused
from eir.record.reasons import check_reason
from eir.record.store import FORCED, Event, ListState, ListStore, utc_text


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
