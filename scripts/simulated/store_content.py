"""Pages and states as a load makes them, for stores, followers and the index."""

import asyncio
import inspect
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import pytest
from pyroaring import BitMap

from eir.errors import StoreError
from eir.lists.images.imaging import image_of, image_with
from eir.lists.images.index import Index
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, content_digest
from eir.lists.pages.roaring import encode_keys
from eir.lists.record.store import Event, ListState


def page(
    number: int,
    keys: Iterable[int],
    *,
    reasons: bytes = b"",
    until: Sequence[int] = (),
    imsis: Sequence[Sequence[int]] = (),
    tac: tuple[int, int] | None = None,
):
    """One page: remainders, and in their order reason bytes, ends (one for all, or one each; with IMSIs one for each of these), IMSI keys.

    `tac`: reason byte and end of the whole TAC.
    """
    counts = b"".join(len(bound).to_bytes(4, "little") for bound in imsis)
    bound = b"".join(imsi.to_bytes(8, "little") for each in imsis for imsi in each)
    ends = b"".join(end.to_bytes(8, "little") for end in until)
    extra = Sections(reasons, ends, counts + bound).encode()
    bitmap = BitMap(keys)
    whole = b"" if tac is None else b"T\x09\0\0\0" + bytes([tac[0]]) + tac[1].to_bytes(8, "little")
    return Page(number, encode_keys(bitmap) if bitmap else b"", whole + (extra if bitmap else b""))


def tacs_of(pages: Iterable[Page]) -> dict[int, tuple[int, int]]:
    """The whole TACs among the entries: page number → reason byte and end, by the format's own words."""
    return {
        p.number: (p.extra[5], int.from_bytes(p.extra[6:14], "little")) for p in pages if p.extra[:5] == b"T\x09\0\0\0"
    }


def devices_of(pages: Iterable[Page]) -> int:
    """The number of identifiers that pages list: a million for a TAC that is an entry."""
    pages = list(pages)
    whole = tacs_of(pages)
    return sum(
        PAGE_KEYS if p.number in whole else len(BitMap.deserialize(p.keys))
        for p in pages
        if p.keys or p.number in whole
    )


def pages_of(keys: Iterable[int]) -> list[Page]:
    """The pages of a plain list of keys."""
    found: dict[int, list[int]] = {}
    for key in keys:
        found.setdefault(key // PAGE_KEYS, []).append(key % PAGE_KEYS)
    return [page(number, found[number]) for number in sorted(found)]


def pair_pages(pairs: Mapping[int, Sequence[int]]) -> list[Page]:
    """The pages of a list of pairs: device key → IMSI keys."""
    found: dict[int, dict[int, Sequence[int]]] = {}
    for key, imsis in pairs.items():
        found.setdefault(key // PAGE_KEYS, {})[key % PAGE_KEYS] = imsis
    return [
        page(number, rows, imsis=[sorted(rows[key]) for key in sorted(rows)]) for number, rows in sorted(found.items())
    ]


def state(
    pages: Iterable[Page] = (), *, serial: int = 1, kind: str = "devices", generation: int = 0, **fields
) -> ListState:
    """A state that fits these pages; `entries` if they are not all of it."""
    pages = list(pages)
    entries = fields.pop("entries", None) or sum(len(BitMap.deserialize(p.keys)) for p in pages if p.keys) + len(
        tacs_of(pages)
    )
    return ListState(
        kind=kind, serial=serial, generation=generation, highest_serial=serial, release_digest=f"{serial:064x}",
        content_digest=content_digest(pages), entries=entries, devices=devices_of(pages), **fields,
    )  # fmt: skip


def put(index: Index, name: str, found: ListState, pages: Iterable[Page] = (), *, amend: bool = False) -> None:
    """Put these pages in force; `amend`: in the place of those of the same number."""
    in_order, before = sorted(pages), index.lists[name].image
    index.switch(name, found, image_with(before, in_order) if amend and before is not None else image_of(in_order))


def event(
    list_name: str | None = "stolen", outcome: str = "accepted", *, time: str = "2026-11-24T00:00:00Z", **fields
) -> Event:
    return Event(
        time=time, who="tester@host", what=fields.pop("what", "load"), list=list_name, outcome=outcome, **fields
    )


async def until(condition, timeout_s: float = 180) -> None:
    """Wait for a condition (plain or a coroutine) that no event tells of, since another process or a clock makes it true."""

    async def holds():
        found = condition()
        return await found if inspect.isawaitable(found) else found

    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


def fill(index, name, pages, *, amend=False, **fields):
    """Put a list of an index in force, made of pages, with a state that fits them."""
    put(index, name, state(pages, kind=index.lists[name].kind, **fields), pages, amend=amend)


class Altered:
    """A store with some methods of the test's own: `Altered(store, record=fails)`."""

    def __init__(self, store, **methods):
        self._store = store
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._store, name)


def directly(store):
    """A connection to the file of an SQLite store, beside that store."""
    return closing(sqlite3.connect(store.path, isolation_level=None))


async def pages_in(store, name="a"):
    """Return all pages of a list."""
    return [each async for _, batch in store.pages(name) for each in batch]


async def cause_of(awaitable):
    """Return the cause of the StoreError that this raises."""
    with pytest.raises(StoreError) as caught:
        await awaitable
    return caught.value.cause
