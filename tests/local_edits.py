"""Changes of local lists as commands and a feed make them, and the content of a list in a store."""

from datetime import UTC, datetime

import pytest

from eir.errors import EntryRefused
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import RowsEdit, edit_report, feed_update, rows_of_entries, rows_update, write_edit
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListWriter
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import ListSettings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
LISTS = {
    "own": ListSettings(name="own", local=True, change_min=10**9),
    "limited": ListSettings(name="limited", local=True),
    "sims": ListSettings(name="sims", kind="subscribers", local=True),
    "bound": ListSettings(name="bound", kind="pairs", local=True),
    "signed": ListSettings(name="signed"),
}


def writer(store, settings, now=NOW):
    return ListWriter(store, settings.name, settings.kind, "tester@host", keep=settings.keep, now=lambda: now)


async def edit(
    store, name, what, *identifiers, imsis=(), tacs=False, reason="lost", now=NOW, feed=False, dry_run=False, days=(),
    guard=lambda _: None, lists=LISTS, **options,
):  # fmt: skip
    """Change a local list; return the effect and the change, as `write_edit`."""
    listed = lists[name]
    rows, names = rows_of_entries(parse_entries(listed.kind, identifiers, imsis=imsis, tacs=tacs), days=days)
    one = RowsEdit(what=what, rows=rows, names=names, reason=reason, **options)
    if feed:
        make = feed_update(one, listed, who="register", now=now, guard=guard)
    else:
        make = rows_update(one, listed, now=now, guard=guard)
    return await write_edit(one, listed, writer(store, listed, now), make, dry_run=dry_run)


async def change(store, name, what, *identifiers, lists=LISTS, **options):
    """Change a local list, and return the report of the command."""
    computed, made = await edit(store, name, what, *identifiers, lists=lists, **options)
    return edit_report(lists[name], computed, made)


async def refused(store, name, what, *identifiers, **options):
    """Return the error of a change that is rejected; it changes nothing."""
    before = await store.heads()
    with pytest.raises(EntryRefused) as caught:
        await edit(store, name, what, *identifiers, **options)
    assert await store.heads() == before
    return str(caught.value)


async def undo(store, name, now=NOW, to=None):
    planned = await plan_rollback(store, name, to=to)
    return await writer(store, LISTS[name], now).write(planned.make)


async def read(store, name, at=None):
    return await read_content(store, name, (await store.heads())[name], at)


async def held(store, name, at=None):
    """Entry → reason."""
    content = await read(store, name, at)
    return {
        ("TAC " if e.whole_tac else "") + e.text(content.head.kind) + (f"+{e.imsi}" if e.imsi else ""): reason_at(
            content.head.reasons, e.reason
        )
        for e in entries_in(content.table.rows())
    }


async def times(store, name="own"):
    """Entry → begin, end and day."""
    return {
        entry.text("devices"): (entry.begin, entry.until, entry.date // 86_400)
        for entry in entries_in((await read(store, name)).table.rows())
    }


async def changes(store, name):
    return [entry.change for entry in await store.log(name, 0)]
