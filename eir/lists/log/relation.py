"""Relation of a list in a store to the list that a node holds."""

from collections.abc import Container, Sequence
from enum import Enum, auto

from eir.lists.log.change import HEAL, Change, Head


class LogRelation(Enum):
    """Relation of a stored list to a held one."""

    SAME = auto()
    """Both have the same newest change."""
    NEWER = auto()
    """The stored chain continues the held one: follow it."""
    BEHIND = auto()
    """The stored log no longer reaches back to the held change, and the stored list is its continuation: read the base, journal the gap."""
    LOST = auto()
    """The store has an earlier state or none: the held list stays in force and is written back."""
    FORKED = auto()
    """The stored chain does not contain the held change: alert; the stored chain goes on, lost local rows are applied again."""


def relation(
    held: Head | None,
    stored: Head | None,
    *,
    held_past: Container[str] = (),
    stored_past: Container[str] = (),
    oldest: int = 1,
    has_seen_base: bool = False,
    overtaken_by: str = "",
) -> LogRelation:
    """Return the relation of a stored list to the held one. Rules 1 to 3, 9a and 9b of the log.

    Args:
        held: head of the list that the node holds; None if it holds none.
        stored: head of the list in the store; None if the store has none.
        held_past: digests of the changes before the held one, as far as the node knows them.
        stored_past: digests that the stored chain contains (`digests_of`).
        oldest: generation of the oldest change that the stored log has.
        has_seen_base: True if the node's journal has a change of the stored chain that wrote a base.
        overtaken_by: digest of the write-back by which the stored chain continues an earlier change than the held one (`overtaking`).
    """
    if held is None or stored is None:
        return LogRelation.SAME if held is stored else LogRelation.NEWER if held is None else LogRelation.LOST
    if stored.digest == held.digest:
        return LogRelation.SAME
    is_signed = held.mark > (0, 0)
    if (is_signed and stored.mark < held.mark) or stored.digest in held_past:
        return LogRelation.LOST
    if overtaken_by:  # what came after the write-back stays: only a write-back alone is replaced
        return LogRelation.LOST if overtaken_by == stored.digest and stored.mark <= held.mark else LogRelation.FORKED
    if held.digest in stored_past:
        return LogRelation.NEWER
    reaches_back = oldest <= held.generation or stored.generation <= held.generation
    is_later = has_seen_base or (is_signed and stored.mark > held.mark)
    return LogRelation.BEHIND if is_later and not reaches_back else LogRelation.FORKED


def overtaking(held: Head, changes: Sequence[Change], known: Container[str]) -> str:
    """Return the digest of the newest write-back in a chain that continues an earlier change than the held one; empty for none.

    `known`: digests of the changes that the node has held.
    """
    for change in reversed(changes):
        if change.what == HEAL and (change.digest in known or change.continues in known):
            is_ahead = change.digest not in known and change.continues != held.digest
            return change.digest if is_ahead else ""
    return ""


def effective(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes whose effect a chain has: without those between a write-back and the change that it continues."""
    digests, found, wanted = {change.digest for change in changes}, list[Change](), ""
    for change in reversed(changes):
        if wanted in {"", change.digest}:
            found.append(change)
            wanted = change.continues if change.what == HEAL and change.continues in digests else ""
    return found[::-1]
