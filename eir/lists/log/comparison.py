"""Comparison of the changes that a journal has recorded with those of a store's log, or of another node's journal.

Changes form hash chains, so two records of a list differ if one of them lacks a change of a generation within its own span. Changes that a
record never had are no difference: a gap, rows of a feed that were deleted by size, and changes that a store has lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eir.lists.log.change import NO_CHANGE, Change
from eir.lists.log.journal import FEED, FEED_KINDS, MAIN, first_line, read_events
from eir.lists.log.store import RECORDS_KEPT

GAP, FORK = "gap", "fork"
"""Kinds of events of a list that continues after changes which the node has not seen, or on another chain."""
REPLACED = frozenset({FORK, "heal", "apply-again", "abandon", "restore"})
"""Kinds of events after which the store may lack earlier changes of a list."""


@dataclass(slots=True)
class SeenChanges:
    """Changes of a list that a journal or a log has."""

    generations: dict[str, int] = field(default_factory=dict)
    """Generation of each change by its digest."""
    fed: set[str] = field(default_factory=set)
    """Digests of changes by a feed."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Generations before and after each gap."""
    oldest: int = 0
    """Generation from which the changes are complete, but those of a feed."""
    oldest_fed: int = 0
    """Generation from which the changes of a feed are complete."""
    replaced: int = 0
    """Generation up to which the store may lack changes."""

    @property
    def newest(self) -> int:
        """Highest generation."""
        return max(self.generations.values(), default=0)

    def oldest_of(self, digests: Iterable[str]) -> int:
        """Return the lowest generation of some changes; without a change, the highest of all."""
        return min((self.generations[digest] for digest in digests), default=self.newest)


def changes_of_journal(folder: Path) -> dict[str, SeenChanges]:
    """Return the changes that a journal has recorded, by list."""
    seen: dict[str, SeenChanges] = {}
    has_gap: set[str] = set()
    for event in read_events(folder, witnesses=False):
        if event.list is None:
            continue
        each = seen.setdefault(event.list, SeenChanges())
        if event.what == GAP:
            has_gap.add(event.list)
        elif event.what in REPLACED:
            each.replaced = each.newest
        if event.change is None or event.generation is None:
            continue
        if event.list in has_gap:
            has_gap.remove(event.list)
            each.gaps.append((each.newest, event.generation))
        each.generations[event.change] = event.generation
        if event.what in FEED_KINDS:
            each.fed.add(event.change)
    has_all, has_all_fed = (first_line(folder, series) == 1 for series in (MAIN, FEED))
    for each in seen.values():
        each.oldest = 0 if has_all else each.oldest_of(each.generations.keys() - each.fed)
        each.oldest_fed = 0 if has_all_fed else each.oldest_of(each.fed)
    return seen


def changes_of_log(changes: Sequence[Change]) -> SeenChanges:
    """Return the changes of a store's log, which is complete from the oldest change that leads to the newest one."""
    seen = SeenChanges({change.digest: change.generation for change in changes})
    seen.fed = {change.digest for change in changes if change.what in FEED_KINDS}
    tail = newest_chain(changes)
    seen.oldest = seen.oldest_fed = tail[0].generation if tail else 0
    return seen


def log_faults(name: str, changes: Sequence[Change], head: str) -> Iterator[str]:
    """Verify that the changes of a log form a chain up to the digest `head`; yield a message about a fault.

    The log may lack changes before the newest RECORDS_KEPT, and changes before a write-back.
    """
    if (changes[-1].digest if changes else NO_CHANGE) != head:
        yield f"list {name}: the log of the store does not lead to the head of the list"
        return
    tail = newest_chain(changes)
    is_whole = not tail or tail[0].before == NO_CHANGE or len(tail) >= RECORDS_KEPT
    if not is_whole and REPLACED.isdisjoint(change.what for change in tail):
        yield f"list {name}: the change before change {tail[0].generation} is missing in the store, or was changed"


def newest_chain(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes that lead to the newest one without a gap, oldest first."""
    for at in range(len(changes) - 1, 0, -1):
        if changes[at].before != changes[at - 1].digest:
            return changes[at:]
    return changes


def differences(ours: Mapping[str, SeenChanges], theirs: Mapping[str, SeenChanges], witness: str) -> Iterator[str]:
    """Compare the changes of a journal with those of a witness; yield a message about each difference. `witness`: its name."""
    for name in sorted(ours.keys() & theirs.keys()):
        yield from _missing(
            name, theirs[name], ours[name], f"differs from that of {witness}", "is missing in the journal"
        )
        yield from _missing(name, ours[name], theirs[name], "", f"is missing in {witness}")


def _missing(name: str, whole: SeenChanges, partial: SeenChanges, differs: str, missing: str) -> Iterator[str]:
    """Yield a message about each change that only `whole` has, within the span of `partial`. `differs`: text if both have the generation."""
    generations = set(partial.generations.values())
    for digest, generation in whole.generations.items():
        is_explained = (
            digest in partial.generations
            or not min(generations, default=0) <= generation <= partial.newest
            or generation <= max(whole.replaced, partial.replaced)
            or generation < (partial.oldest_fed if digest in whole.fed else partial.oldest)
            or any(before < generation < after for before, after in partial.gaps)
        )
        fault = differs if generation in generations else missing
        if fault and not is_explained:
            yield f"list {name}: change {generation} {fault}"
