"""Content of lists as a load makes it, for stores, followers and the index."""

import asyncio
import inspect
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import pytest

from eir.device import SNR_KEYS
from eir.errors import StoreError
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.log.change import Change, Head
from eir.lists.log.journal import JournalEvent
from eir.lists.log.reader import LoggedList, read_content
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.listed_entries import entries_in, is_whole
from eir.lists.record.reasons import reason_at
from eir.lists.table.columns import ENDS, NO_ROWS, REASONS, WHOLE, TableRows, join, rows_of, sorted_rows
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import Table, device_count, table_of

TEXTS = ("", "stolen", "lost")
"""Reasons of the lists that are written here."""


def page(
    number: int,
    keys: Iterable[int],
    *,
    reasons: Sequence[int] = (),
    until: Sequence[int] = (),
    imsis: Sequence[Sequence[int]] = (),
    tac: tuple[int, int] | None = None,
) -> TableRows:
    """Return the rows of one TAC: keys without the TAC, and in their order reasons, ends (one for all, or one each; with IMSIs one for each of these), IMSIs.

    `tac`: reason and end of the whole TAC.
    """
    seconds = [imsi for each in imsis for imsi in each]
    devices = [number * SNR_KEYS + key for key in keys]
    if imsis:
        devices = [device for device, each in zip(devices, imsis, strict=True) for _ in each]
    rows = rows_of(devices, seconds=seconds or 0, reasons=[*reasons] or 0, ends=until[0] if len(until) == 1 else [*until] or 0)  # fmt: skip
    return rows if tac is None else joined([rows, rows_of([WHOLE | number], reasons=tac[0], ends=tac[1])])


def pair_rows(pairs: Mapping[int, Sequence[int]], **columns) -> TableRows:
    """Return the rows of a list of pairs: device key → IMSI keys."""
    both = [(key, imsi) for key, imsis in pairs.items() for imsi in imsis]
    return rows_of([key for key, _ in both], seconds=[imsi for _, imsi in both], **columns)


def joined(parts: TableRows | Iterable[TableRows]) -> TableRows:
    """Return rows, or several groups of rows, as one group."""
    parts = [parts] if isinstance(parts, TableRows) else [*parts]
    return sorted_rows(join(parts)) if parts else NO_ROWS


def as_table(content: Table | TableRows | Iterable[TableRows]) -> Table:
    """Return the table of a list's content, which is one already, or rows."""
    return content if isinstance(content, Table) else table_of(joined(content))


def tacs_of(rows: TableRows) -> dict[int, tuple[int, int]]:
    """Return the whole TACs among the rows: TAC → reason and end."""
    whole = rows.select(is_whole(rows))
    values = zip(whole.column(REASONS).tolist(), whole.column(ENDS).tolist(), strict=True)
    return dict(zip((key - WHOLE for key in whole.keys.tolist()), values, strict=True))


def devices_of(rows: TableRows) -> int:
    """Return the number of identifiers that rows list: a million for a whole TAC."""
    whole = set(tacs_of(rows))
    singles = {key for key in rows.keys.tolist() if key < WHOLE and key // SNR_KEYS not in whole}
    return len(singles) + len(whole) * SNR_KEYS


def state(content=(), *, serial: int = 1, kind: str = "devices", generation: int = 0, **fields) -> Head:
    """Return a head that fits this content; `entries` and `devices` if the content is not complete."""
    table = as_table(content)
    counted = {"entries": len(table), "devices": device_count(table)}
    return Head(
        kind=kind, serial=serial, generation=generation, highest_serial=serial, release=f"{serial:064x}",
        content=digest_tree(table, fields.get("reasons", ("",) * 256)).root, **counted | fields,
    )  # fmt: skip


def put(index: Index, name: str, found: Head, content=()) -> None:
    """Put this content of a list in force."""
    index.switch(name, found, image_of(as_table(content)))


def fill(index: Index, name: str, content=(), **fields) -> None:
    """Put this content of a list in force, with a head that fits it."""
    put(index, name, state(content, kind=index.lists[name].kind, **fields), content)


def event(
    list_name: str | None = "stolen", outcome: str = "accepted", *, time: str = "2026-11-24T00:00:00Z", **fields
) -> JournalEvent:
    """Return an event of a journal."""
    fields = {"what": "load", **fields}
    return JournalEvent(time=time, who="tester@host", list=list_name, outcome=outcome, **fields)


async def until(condition, timeout_s: float = 180) -> None:
    """Wait for a condition (plain or a coroutine) that no event tells of, since another process or a clock makes it true."""

    async def holds():
        found = condition()
        return await found if inspect.isawaitable(found) else found

    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


class Altered:
    """A store with some methods of the test's own: `Altered(store, commit=fails)`."""

    def __init__(self, store, **methods):
        self._store = store
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._store, name)


def directly(store):
    """A connection to the file of an SQLite store, beside that store."""
    return closing(sqlite3.connect(store.path, isolation_level=None))


# ---- lists in a store ----


class Lists:
    """Writer of lists in a store. `kinds`: kind of each list that is not one of devices; `options` as for ListWriter."""

    def __init__(self, store, who="eir@host", kinds=(), **options):
        self.store, self._who, self._kinds, self._options, self._writers = store, who, dict(kinds), options, {}

    def writer(self, name):
        kind = self._kinds.get(name, "devices")
        return self._writers.setdefault(name, ListWriter(self.store, name, kind, self._who, **self._options))

    async def load(self, keys, serial=0, name="own", what="load", **fields) -> Change:
        """Put a whole content in force: keys, rows or a table; `serial` 0: as a local list. `fields` as for ListUpdate."""
        state = {"serial": serial, "highest_serial": serial} if serial else {}
        is_content = isinstance(keys, (Table, TableRows))
        table = as_table(keys if is_content else rows_of(keys, reasons=1))
        fields = {"reasons": TEXTS, "state": state | fields.pop("state", {})} | fields
        return await self.writer(name).write(lambda _: ListUpdate(what=what, table=table, **fields))

    async def change(self, added=(), removed=(), name="own", what="add", reason=1, **fields) -> Change:
        """Add and remove rows: keys, or rows."""
        added = added if isinstance(added, TableRows) else rows_of(added, reasons=reason)
        removed = removed if isinstance(removed, TableRows) else rows_of(removed)
        texts = TEXTS if len(added) else ()
        return await self.writer(name).write(
            lambda content: ListUpdate(
                what=what, added=added, removed=removed, reasons=content.head.reasons or texts, **fields
            )
        )


async def content_of(store, name="own", at: int | None = None) -> LoggedList:
    """Read a list from a store. `at`: an earlier generation."""
    return await read_content(store, name, (await store.heads())[name], at)


async def rows_in(store, name="own", at: int | None = None) -> TableRows:
    """Return all rows of a list in a store."""
    return (await content_of(store, name, at)).table.rows()


async def entries_of(store, name="own", at: int | None = None) -> dict[str, str]:
    """Return the entries of a list in a store as texts, each with its reason: IMEI, `TAC 35123456`, IMSI, or IMEI+IMSI."""
    content = await content_of(store, name, at)
    head = content.head
    return {
        ("TAC " if entry.whole_tac else "") + entry.text(head.kind) + (f"+{entry.imsi}" if entry.imsi else ""): reason_at(
            head.reasons, entry.reason
        )
        for entry in entries_in(content.table.rows())
    }  # fmt: skip


async def generation_of(store, name="own") -> int:
    """Return the generation of a list in a store; 0 if the store lacks the list."""
    head = (await store.heads()).get(name)
    return 0 if head is None else head.generation


async def cause_of(awaitable):
    """Return the cause of the StoreError that this raises."""
    with pytest.raises(StoreError) as caught:
        await awaitable
    return caught.value.cause
