"""Changes of a local list (`local: true`) by operators and by a feed: many rows in one change of its log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from eir.device import SNR_KEYS, TAC_DIGITS, imsi_text
from eir.errors import EntryRefused, GenerationConflict
from eir.lists.changes.local_entries import Entry
from eir.lists.changes.merged_rows import ended_before, has_other, with_days, with_reasons, without_unused
from eir.lists.log.change import Change, Head, utc_text
from eir.lists.log.reader import LoggedList
from eir.lists.log.writer import TRIES_MAX, ComputedUpdate, ListUpdate, ListWriter, Make
from eir.lists.record.entries import ListEntry, until_text
from eir.lists.record.listed_entries import entries_in, is_whole
from eir.lists.record.reasons import Reasons, check_reason
from eir.lists.record.settings import ListSettings
from eir.lists.rows.turnover import exceeded_by, force_text, turnover
from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    NO_COLUMNS,
    NO_ROWS,
    REASONS,
    SECONDS,
    WHOLE,
    Numbers,
    TableRows,
    block_numbers,
    distinct,
    matches,
    rows_of,
)
from eir.lists.table.table import Table, change, not_ended

ADD, REMOVE, FEED = "add", "remove", "feed"
"""Kinds of change of a local list."""
NAMED_MAX = 10
"""Maximum number of entries that a rejection names."""
TACS = "TACs "
"""Prefix of the entries in the detail of a change that are whole TACs."""

FILE = "a file with SHA-256 "
"""Text in the detail of a change in place of entries that are too many to be named."""

Guard = Callable[[Head], None]
"""Function that raises StoreError (`lost`) if the store has lost changes of a list that this host has. It receives the stored head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsEdit:
    """Change of a local list: rows to add or to remove."""

    what: str
    """ADD or REMOVE."""
    rows: TableRows
    """Rows with indexes in `texts`. A row without a reason, begin or end has that of the edit."""
    reason: str
    texts: tuple[str, ...] = ("",)
    """Reason texts by index."""
    begin: int = 0
    """Begin of added rows in Unix seconds; 0: they are in force at once."""
    until: int = 0
    """End of added rows in Unix seconds; 0: they do not end."""
    names: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Text of a row as the operator typed it, by its keys."""
    replace: bool = False
    """Give existing rows the new reason, begin and end."""
    force: bool = False
    """Lift the limits on shrinking and growth, but no other check."""
    source: str = ""
    """Name and SHA-256 of the rows' file, which the change names; empty: the change names each row."""

    @property
    def full_rows(self) -> TableRows:
        """Rows with reason, begin and end of the edit where they have none. Their indexes are those of `full_texts`."""
        seconds, _, _, _, days = self.rows.columns
        reason = Reasons(self.texts).index(self.reason)
        given = [(REASONS, reason), (BEGINS, self.begin), (ENDS, self.until)]
        columns = [
            np.where(column == 0, column.dtype.type(value), column)
            for column, value in ((self.rows.column(index), value) for index, value in given)
        ]
        return TableRows(self.rows.keys, (seconds, *columns, days))

    @property
    def full_texts(self) -> tuple[str, ...]:
        """Reason texts of `full_rows` by index."""
        reasons = Reasons(self.texts)
        reasons.index(self.reason)
        return reasons.texts

    def select(self, where: Numbers) -> "RowsEdit":
        """Return the edit with a part of its rows."""
        return replace(self, rows=self.rows.select(where))


def rows_of_entries(
    entries: Sequence[Entry], *, days: Sequence[int] = (), begins: Sequence[int] | int = 0
) -> tuple[TableRows, dict[tuple[int, int], str]]:
    """Return the rows of parsed identifiers, and the text of each. `days`, `begins`: day and begin of each, 0 for none."""
    keys = [keys_of_entry(entry) for entry in entries]
    names = {each: entry.text for each, entry in zip(keys, entries, strict=True)}
    seconds = [second for _, second in keys]
    return rows_of([key for key, _ in keys], seconds=seconds, days=days or 0, begins=begins), names


def keys_of_entry(entry: Entry) -> tuple[int, int]:
    """Return the key and the second key of the row of an entry."""
    return WHOLE | entry.key // SNR_KEYS if entry.whole_tac else entry.key, entry.imsi


def rows_update(edit: RowsEdit, settings: ListSettings, *, now: datetime, guard: Guard = lambda _: None) -> Make:
    """Return the function that computes a change of a local list by an operator.

    It raises EntryRefused if a row that is added exists, or a row that is removed does not, and the errors of `guard`.
    """
    check_edit(edit, settings, now)

    def make(content: LoggedList) -> ListUpdate:
        check_present_list(content, settings, guard)
        present = present_rows(content.table, edit.rows)
        _reject_no_ops(edit, settings, content.table, present, int(now.timestamp()))
        return _update(edit, content, present, int(now.timestamp()))

    return make


def feed_update(
    edit: RowsEdit, settings: ListSettings, *, who: str, now: datetime, guard: Guard = lambda _: None,
    note: Callable[[TableRows], None] = lambda _: None,
) -> Make:  # fmt: skip
    """Return the function that computes a change by a feed: only those rows that have an effect; None if no row has one.

    An added row has an effect if no row in force has its keys, or if it begins earlier or ends later than this row.

    Args:
        edit: rows of the feed.
        settings: settings of the list.
        who: user of the feed.
        now: time of the change.
        guard: as for `rows_update`.
        note: receives the rows that have an effect, each time that the change is computed.
    """
    check_edit(edit, settings, now)

    def make(content: LoggedList) -> ListUpdate | None:
        check_present_list(content, settings, guard)
        present = present_rows(content.table, edit.rows)
        wanted = edit.select(_has_effect(edit, present, int(now.timestamp())))
        note(wanted.rows)
        if not len(wanted.rows):
            return None
        return replace(_update(wanted, content, present, int(now.timestamp())), what=FEED, who=who)

    return make


def complete_edit(edit: RowsEdit, settings: ListSettings) -> Callable[[ComputedUpdate], ListUpdate]:
    """Return the function that verifies the limits on a change of a local list, and completes its record.

    It raises EntryRefused if the change exceeds a limit.
    """

    def complete(computed: ComputedUpdate) -> ListUpdate:
        come, gone = computed.effect.devices_added, computed.effect.devices_removed
        passed = exceeded_by(settings, computed)
        if passed and not edit.force:
            excess = next(iter(passed.values()))
            raise EntryRefused(f"nothing was changed: {excess}; if this is intended, repeat the command with --force")
        forced = f"; {turnover(settings.kind, come, gone)}; {force_text(passed)}" if edit.force else ""
        times = [f", {word} {until_text(time)}" for word, time in (("from", edit.begin), ("until", edit.until)) if time]
        detail = f"{edit.reason}{''.join(times)}{forced}{computed.update.detail}"
        return replace(computed.update, lifted=tuple(passed), detail=detail)

    return complete


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """Effect of a change of a local list, real or in a dry run."""

    list: str
    holds: str
    """Kind of the list."""
    what: str
    entries: int
    """Number of entries after the edit."""
    entries_change: int
    """Number of entries after the edit less the number before."""
    come: int
    gone: int
    """Numbers of added and of removed identifiers (TableEffect)."""
    generation: int
    """Generation after the edit; for a dry run the present one."""
    lifted: tuple[str, ...]
    """Limits that the edit exceeds and that `force` lifted: `shrink`, `growth`."""
    dry_run: bool

    def as_text(self) -> str:
        """Format the effect of the change of a local list in one line."""
        if self.come or self.gone:
            change = turnover(self.holds, self.come, self.gone)
        elif self.entries_change:
            change = f"{self.entries_change:+,} entries that listed no further device"
        else:
            change = "reason and times replaced"
        moment = "then" if self.dry_run else "now"
        parts = [f"{self.list}: {change}", f"entries {moment}: {self.entries:,}"]
        if self.lifted:
            parts.append(force_text(self.lifted))
        if self.dry_run:
            parts.append("nothing was changed")
        return "; ".join(parts)


def edit_report(settings: ListSettings, computed: ComputedUpdate, made: Change | None) -> EditReport:
    """Return the report of a change of a local list. `made`: None for a dry run."""
    effect, update = computed.effect, computed.update
    return EditReport(
        list=settings.name, holds=settings.kind, what=update.what, entries=len(effect.table),
        entries_change=effect.rows_added - effect.rows_removed, come=effect.devices_added, gone=effect.devices_removed,
        generation=computed.content.head.generation if made is None else made.generation, lifted=update.lifted, dry_run=made is None,
    )  # fmt: skip


async def write_edit(
    edit: RowsEdit, settings: ListSettings, writer: ListWriter, make: Make, *, dry_run: bool = False
) -> tuple[ComputedUpdate | None, Change | None]:
    """Write a change of a local list; return its effect, and the change. `make`: result of `rows_update` or `feed_update`.

    Both are None if no row has an effect. For a dry run the change is None.

    Raises:
        EntryRefused: if the change is not permitted; nothing was written.
        GenerationConflict: if other writers were faster each time.
        StoreError: if the store fails.
    """
    seen: list[ComputedUpdate] = []
    complete = complete_edit(edit, settings)

    def completed(computed: ComputedUpdate) -> ListUpdate:
        update = complete(computed)
        seen[:] = [computed._replace(update=update)]
        return update

    try:
        made = None
        if dry_run:
            await writer.compute(make, completed)
        else:
            made = await writer.write(make, completed)
    except GenerationConflict:
        raise GenerationConflict(
            f"{settings.name} was changed {TRIES_MAX} times while this change was being made: try again"
        ) from None
    return (seen[0] if seen else None), made


def check_edit(edit: RowsEdit, settings: ListSettings, now: datetime) -> None:
    """Reject a change if its list is not local, its reason is not valid, or its end has passed or is not after its begin."""
    if not settings.local:
        raise EntryRefused(f"{settings.name} changes only by signed releases; expected a list with `local: true`")
    check_reason(edit.reason)
    if edit.until and edit.until <= now.timestamp():
        raise EntryRefused(f"the end has passed: it is {utc_text(now)}")
    rows = edit.full_rows
    ends = rows.column(ENDS)
    if ((ends > 0) & (ends <= rows.column(BEGINS))).any():
        raise EntryRefused("the begin is not before the end: expected --from before --until")


def check_present_list(content: LoggedList, settings: ListSettings, guard: Guard) -> None:
    """Check that a local list can be changed.

    Raises:
        StoreError: `lost`, if the store has lost changes of the list. Nodes would ignore a change of the rest, or it would hide the loss.
        EntryRefused: if the list has another kind in the store.
    """
    head = content.head
    guard(head)
    if head.generation and head.kind != settings.kind:
        kinds = f"{settings.name} is a list of {head.kind} in the store and of {settings.kind} in the configuration"
        raise EntryRefused(f"{kinds}; give the new kind a list of another name")


def present_rows(table: Table, rows: TableRows) -> TableRows:
    """Return the rows of a table that have the keys of other rows."""
    present = table.rows(distinct(block_numbers(rows.keys)))
    return present.select(matches(present, rows) >= 0)


def _update(edit: RowsEdit, content: LoggedList, present: TableRows, now: int) -> ListUpdate:
    """Compute the update of a list. `present`: its rows that have the keys of the edit."""
    named = _names_text(edit, content.head.kind)
    if edit.what == REMOVE:
        seconds = edit.rows.columns[SECONDS]
        removed = TableRows(edit.rows.keys, (seconds, *NO_COLUMNS[1:]))
        return ListUpdate(what=edit.what, removed=removed, detail=named)
    removed = present if edit.replace else ended_before(content.table, edit.rows, now)
    rows = with_days(edit.full_rows, present)
    added, texts = with_reasons(rows, edit.full_texts, content.head.reasons)
    if not has_other(added):
        return ListUpdate(what=edit.what, added=added, removed=removed, reasons=texts, detail=named)
    # The reason table is full: reasons that no row has any more make room, and the list gets a new base.
    kept, present_texts = without_unused(change(content.table, NO_ROWS, removed).table, content.head.reasons)
    added, texts = with_reasons(rows, edit.full_texts, present_texts)
    table = change(kept, added, NO_ROWS).table
    return ListUpdate(what=edit.what, table=table, reasons=texts, detail=named)


def _has_effect(edit: RowsEdit, present: TableRows, now: int) -> Numbers:
    """Return a mask of the rows of a feed that have an effect on a list."""
    present, rows = not_ended(present, now), edit.full_rows
    at = matches(rows, present)
    if edit.what == REMOVE:
        return at >= 0
    effective: Numbers = at < 0
    if len(present):
        begins, ends = present.column(BEGINS)[at], present.column(ENDS)[at]
        is_later = (ends > 0) & ((rows.column(ENDS) == 0) | (rows.column(ENDS) > ends))
        effective |= is_later | (rows.column(BEGINS) < begins)
    return effective


def _reject_no_ops(edit: RowsEdit, settings: ListSettings, table: Table, present: TableRows, now: int) -> None:
    """Reject a change that adds an existing row or removes a missing one. A row that has ended can be added again, or removed."""
    if edit.what == REMOVE:
        is_missing = matches(edit.rows, present) < 0
        wrong, state_text, advice = edit.select(is_missing), f"not in {settings.name}", ""
    else:
        is_present = matches(edit.rows, not_ended(present, now)) >= 0
        wrong, state_text = edit.select(is_present & (not edit.replace)), f"in {settings.name} already"
        advice = "; --replace gives them the new reason, begin and end"
    if not len(wrong.rows):
        return
    first = wrong.select(np.arange(min(len(wrong.rows), NAMED_MAX)))
    texts = _names(first, settings.kind)
    if edit.what == REMOVE:
        texts = [
            _missing_text(key, text, table, now) for key, text in zip(first.rows.keys.tolist(), texts, strict=True)
        ]
    named = ", ".join(texts)
    if len(wrong.rows) > NAMED_MAX:
        named += ", …"
    raise EntryRefused(f"nothing was changed: {len(wrong.rows)} of {len(edit.rows)} are {state_text}: {named}{advice}")


def _missing_text(key: int, text: str, table: Table, now: int) -> str:
    """Format an entry that the list lacks, for an error message. The text has a note if the list has the entry's whole TAC."""
    tac = key // SNR_KEYS
    if key >= WHOLE or not len(not_ended(table.find(WHOLE | tac), now)):
        return text
    return f"{text} (it is covered by TAC {tac:0{TAC_DIGITS}d}; not listed on its own)"


def _names(edit: RowsEdit, kind: str) -> list[str]:
    """Return the texts of the rows of an edit, as the operator typed them."""
    seconds = edit.rows.column(SECONDS).tolist()
    keys = zip(edit.rows.keys.tolist(), seconds, strict=True)
    entries = entries_in(edit.rows)
    return [edit.names.get(key) or entry_text(entry, kind) for key, entry in zip(keys, entries, strict=True)]


def entry_text(entry: ListEntry, kind: str) -> str:
    """Format the identifiers of an entry; a pair as `IMEI+IMSI`."""
    return entry.text(kind) + (f"+{imsi_text(entry.imsi)}" if entry.imsi else "")


def _names_text(edit: RowsEdit, kind: str) -> str:
    """Format the rows of an edit for the detail of its change."""
    if edit.source:
        return f"; {len(edit.rows)} entries of {edit.source}"
    prefix = TACS if is_whole(edit.rows).any() else ""
    return f": {prefix}{', '.join(_names(edit, kind))}"
