"""Lists in Redis as readers find them: records, pages, steps. The keys stand in eir.lists.stores.redis."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eir.errors import StoreChanged, StoreError
from eir.lists.pages.pages import NUMBER_BITS, Page
from eir.lists.record.store import Event
from eir.lists.stores.records import decode_event, decode_state
from eir.lists.stores.redis.link import Link
from eir.lists.stores.write import Kept, Stored

BATCH_PAGES_MAX = 500
"""Most pages that one command reads."""
SCAN_COUNT = 1_000
"""Names of pages that are asked for at a time."""


def key(name: str, *what: str) -> str:
    """A key of a list."""
    return ":".join((f"eir:{{{name}}}", *what))


class PageSet(NamedTuple):
    """A hash with pages, and how many fields it has if it is whole."""

    key: str
    fields: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Stored[PageSet]):
    """The state hash of a list; `change` is another one after each write."""

    name: str
    change: bytes
    form: bytes | None = None
    """The version of what is there, as in eir.lists.stores.records."""
    event: Event | None = None
    """The event of the last write, for the history."""

    def check(self, change: bytes | None) -> None:
        """Raise StoreChanged if it has another `change` by now; until then its pages are those that it points to."""
        if change != self.change:
            raise StoreChanged(f"list {self.name} changed while its pages were read")


async def read_row(link: Link, name: str, *, past: bool = False) -> Row | None:
    """The record of a list; `lost` if the set in force is not there with all its fields.

    `past`: also read the kept releases and the events.
    """
    fields = ("state", "set", "fields", "change", "form", *(("past",) if past else ()))
    state, set_id, count, change, form, *was = await link.do("HMGET", key(name, "state"), *fields)
    if state is None or set_id is None or change is None:
        return None
    with link.as_written():
        page_set = PageSet(key(name, "set", set_id.decode()), int(count or 0))
        more = _past(name, change, *was) if was else {}
    lost = await link.do("HLEN", page_set.key) != page_set.fields
    # Between the two commands another set may have come into force; only a state that stays has lost its set.
    if lost and await read_change(link, name) != change:
        return await read_row(link, name, past=past)
    return Row(name=name, state=decode_state(state), page_set=page_set, lost=lost, change=change, form=form, **more)


def _past(name: str, change: bytes, past: bytes | None) -> dict[str, Any]:
    """Return the kept releases of a list, and the events."""
    said = {} if past is None else json.loads(past)
    if said.get("change") == change.decode():
        kept = tuple(_kept(name, each) for each in said["kept"])
        return {"kept": kept, "made": _event(said["made"]), "event": _event(said["event"])}
    return {}


def _kept(name: str, said: dict[str, Any]) -> Kept[PageSet]:
    whole = bool(said["whole"])
    page_set = PageSet(key(name, "set" if whole else "kept", str(said["set"])), int(said["fields"]))
    return Kept(decode_state(said["state"]), page_set, whole, _event(said.get("made")))


def _event(said: dict[str, Any] | None) -> Event | None:
    return None if said is None else decode_event(said)


async def read_change(link: Link, name: str) -> bytes | None:
    """The present `change` of the state hash."""
    (change,) = await link.do("HMGET", key(name, "state"), "change")
    return change  # type: ignore[no-any-return]


async def read_numbers(link: Link, row: Row, page_set: PageSet) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """The numbers of all pages in a set, in order. Raises StoreChanged."""
    with link.as_written():
        scanned = _names_in(link, page_set.key)
        parts = [np.array([each for each in names if each[-1:] != b"+"], dtype=np.int64) async for names in scanned]
    row.check(await read_change(link, row.name))
    found: np.ndarray[Any, np.dtype[np.int64]] = np.concatenate(parts)
    await asyncio.to_thread(found.sort)  # 10 ms for 250 thousand, without the interpreter's lock
    if len(found) and (found[0] < 0 or found[-1] >> NUMBER_BITS):
        raise StoreError(
            "corrupt", f"list {row.name} has a page of the number {max(-found[0], found[-1])}, which cannot be"
        )
    return found[np.flatnonzero(np.diff(found, prepend=-1))]  # a scan may give a name twice


async def _names_in(link: Link, hash_key: str) -> AsyncIterator[Iterable[bytes]]:
    """The names of a hash's fields. Before Redis 7.4 the values come with them."""
    cursor = None
    while cursor != 0:
        scan = ("HSCAN", hash_key, cursor or 0, "COUNT", SCAN_COUNT)
        try:
            cursor, names = await link.do(*scan, *link.names_only, no_values=bool(link.names_only))
        except StoreError as error:
            if not link.names_only or error.cause != "error":
                raise
            link.names_only = ()
        else:
            yield names


async def read_pages(
    link: Link, row: Row, page_set: PageSet, numbers: Sequence[int], *, plain: bool = False
) -> list[Page]:
    """Numbered pages of a set, those that exist; `plain`: none has an `extra`. Raises StoreChanged."""
    # As bytes: redis turns one number after another into such, for longer than all else takes.
    names = " ".join(map(str, numbers) if plain else [f"{number} {number}+" for number in numbers]).encode().split()
    found, (change,) = await link.do_all(("HMGET", page_set.key, *names), ("HMGET", key(row.name, "state"), "change"))
    row.check(change)
    return pages_in(numbers, found, plain=plain)


async def read_each(link: Link, row: Row, page_set: PageSet, numbers: Sequence[int]) -> list[Page]:
    """All the numbered pages, one that does not exist as one that is `gone`. Raises StoreChanged."""
    there: dict[int, Page] = {}
    for at in range(0, len(numbers), BATCH_PAGES_MAX):
        pages = await read_pages(link, row, page_set, numbers[at : at + BATCH_PAGES_MAX])
        there.update((page.number, page) for page in pages)
    return [there.get(number) or Page(number, b"") for number in numbers]


async def read_in_set(link: Link, row: Row, page_set: PageSet, numbers: Sequence[int]) -> list[Page] | None:
    """Those of the numbered pages that are in a set, also those that are `gone`; None if the set is not whole.

    Raises StoreChanged.
    """
    names = [name for number in numbers for name in (number, f"{number}+")]
    there, found, (change,) = await link.do_all(
        ("HLEN", page_set.key), ("HMGET", page_set.key, *(names or ["0"])), ("HMGET", key(row.name, "state"), "change")
    )
    row.check(change)
    if there != page_set.fields:
        return None
    parts = zip(numbers, found[::2], found[1::2], strict=False)
    return [
        Page(number, keys or b"", extra or b"")
        for number, keys, extra in parts
        if keys is not None or extra is not None
    ]


def pages_in(numbers: Sequence[int], found: Sequence[bytes | None], *, plain: bool) -> list[Page]:
    """The pages that HMGET found: their keys and, unless `plain`, the `extra` behind each."""
    if plain:
        return [Page(number, keys) for number, keys in zip(numbers, found, strict=True) if keys]
    parts = zip(numbers, found[::2], found[1::2], strict=True)
    return [Page(number, keys or b"", extra or b"") for number, keys, extra in parts if keys or extra]
