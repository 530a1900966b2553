"""Rollback of a list to an earlier release, reset of its highest accepted serial, and restore of a backup: updates of a list as a log.

The highest serial ever accepted prevents replays of old releases. Only a person can lower this serial, and the log records the reset. Nodes
accept the lower serial because the head of the list counts the resets.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eir.errors import EntryRefused, GenerationConflict, NothingToRollBack
from eir.lists.log.change import ROLLBACK, Change, Head, SerialMark, release_of, restorable_releases
from eir.lists.log.reader import LoggedList, oldest_readable, read_content
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListUpdate, Make
from eir.lists.record.reasons import check_reason

RESET_SERIAL, RESTORE = "reset-serial", "restore"


class PlannedRollback(NamedTuple):
    """Rollback of a list."""

    target: Change
    """Change whose content is restored."""
    undone: Sequence[Change]
    """Changes that are undone, newest first."""
    content: LoggedList
    """Content after `target`."""
    make: Make


def change_number(change: Change) -> int:
    """Return the serial of a release; for a change of a local list, its generation."""
    return change.serial or change.generation


async def plan_rollback(store: LogStore, name: str, *, to: int | None = None) -> PlannedRollback:
    """Plan the rollback of a list to an earlier release, whose content is read from base and log.

    Args:
        store: store of the list.
        name: name of the list.
        to: serial of the earlier release; for a local list, generation of the earlier change. None: the previous one.

    The planned function `make` raises GenerationConflict if the list has changed since. The serials of undone releases cannot be used again.

    Raises:
        NothingToRollBack: if the store has no such release.
        StoreError: if the list cannot be read.
    """
    head = (await store.heads()).get(name)
    if head is None:
        raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_advice(name, None)}")
    entries = await store.log(name, 0)
    oldest = await oldest_readable(store, name, entries)
    releases = restorable_releases([entry.change for entry in entries])
    kept = [release for release in releases[:-1] if release.generation >= oldest]
    target = _target(name, head, kept, to)
    undone = releases[releases.index(target) + 1 :][::-1]
    content = await read_content(store, name, head, target.generation)
    texts = content.head.reasons
    reasons = head.reasons if head.reasons[: len(texts)] == texts else texts  # the same indexes need no base
    update = ListUpdate(
        what=ROLLBACK, table=content.table, reasons=reasons, continues=target.digest,
        state=release_of(target) | {"highest_serial": head.highest_serial, "serial_resets": head.serial_resets},
        detail=f"{_undone_text(undone)}; {len(content.table)} entries",
    )  # fmt: skip

    def make(present: LoggedList) -> ListUpdate:
        if present.head.digest != head.digest:
            raise GenerationConflict(f"list {name} was changed meanwhile: try again")
        return update

    return PlannedRollback(target, undone, content, make)


def _target(name: str, head: Head, kept: Sequence[Change], to: int | None) -> Change:
    """Return the release to restore."""
    if not kept:
        raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_advice(name, head)}")
    for release in reversed(kept):
        if to is None or change_number(release) == to:
            return release
    numbers = ", ".join(str(change_number(release)) for release in reversed(kept))
    named = "serial" if head.serial else "change"
    raise NothingToRollBack(f"{named} {to} of list {name} is not kept; there are: {numbers}")


def _undone_text(undone: Sequence[Change]) -> str:
    """Describe the changes that a rollback undoes, newest first: releases by serial, changes of a local list by their record."""
    if undone[0].serial:
        return f"release {', '.join(str(change.serial) for change in undone)} undone"
    return "; ".join(
        f"change {change.generation} undone ({change.what} by {change.who}, {change.time}: {change.detail})"
        for change in undone
    )


def _advice(name: str, head: Head | None) -> str:
    """Return advice for an operator whose rollback is impossible."""
    if head is None:
        return "it has never been loaded or changed"
    if not head.serial:
        return f"put the entries right by eir add and eir remove, see eir history {name}"
    return f"publish the good data again with a serial above {head.highest_serial} (eir publish), and load it"


def serial_reset(name: str, *, to: int, reason: str) -> Make:
    """Return the function that lowers the highest accepted serial of a list to `to`. The release in force stays.

    It raises EntryRefused if the list does not exist, or if `to` is not below its highest serial.

    Raises:
        EntryRefused: if the reason is invalid.
    """
    check_reason(reason)

    def make(content: LoggedList) -> ListUpdate:
        head = content.head
        if not head.generation:
            raise EntryRefused(f"{name} has never been loaded or changed, so it has no serial to reset")
        if not 0 <= to < head.highest_serial:
            raise EntryRefused(
                f"the highest serial ever accepted for {name} is {head.highest_serial}; expected a lower serial for --to"
            )
        detail = f"{reason}: the highest serial is {to} again, and was {head.highest_serial}"
        state = {"highest_serial": to, "serial_resets": head.serial_resets + 1}
        return ListUpdate(what=RESET_SERIAL, state=state, detail=detail)

    return make


def restored(backup: LoggedList, *, made: str, mark: SerialMark, force: bool = False) -> Make:
    """Return the function that restores a list from a backup; it returns None if the list has this content and release already.

    Args:
        backup: content in the backup.
        made: time of the backup.
        mark: highest mark of the list that was in force on this node.
        force: if the mark of the backup is lower than that of the store or the node, count one serial reset more, so that every node follows.

    The function raises GenerationConflict if the mark of the backup is lower, without `force`.
    """

    def make(content: LoggedList) -> ListUpdate | None:
        head = content.head
        state = release_of(backup.head)
        if head.generation and head.content == backup.head.content and release_of(head) == state:
            return None
        known = max(mark, head.mark)
        if backup.head.mark < known:
            if not force:
                raise GenerationConflict(f"a release with serial {known[1]} was loaded meanwhile: repeat the command")
            state["serial_resets"] = known[0] + 1
        return ListUpdate(
            what=RESTORE, table=backup.table, reasons=backup.head.reasons, state=state, continues=backup.head.digest,
            above=backup.head.generation, detail=f"generation {backup.head.generation} from the backup of {made}",
        )  # fmt: skip

    return make
