"""Reader of lists in Redis: states, pages and changes.

The keys are listed in eir.lists.stores.redis.
"""

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
from eir.lists.stores.redis.link import RedisClient
from eir.lists.stores.write import Kept, Stored

BATCH_PAGES_MAX = 500
"""Maximum number of pages that one command reads."""
SCAN_COUNT = 1_000
"""Number of field names that one HSCAN requests."""


def key(name: str, *what: str) -> str:
    """Return the name of a list's key in Redis."""
    return ":".join((f"eir:{{{name}}}", *what))


class PageSet(NamedTuple):
    """Redis hash with pages of a list, and the number of fields that it has when it is complete."""

    key: str
    fields: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRow(Stored[PageSet]):
    """Content of a list's state hash in Redis. Each write sets a new random ID, `change`."""

    name: str
    change: bytes
    form: bytes | None = None
    """Version of the format, as in eir.lists.stores.records."""
    event: Event | None = None
    """Event of the last write, for the history."""

    def check(self, change: bytes | None) -> None:
        """Raise StoreChanged if `change`, the ID of the last write, differs from that of this row.

        Then other pages may be in force.
        """
        if change != self.change:
            raise StoreChanged(f"list {self.name} changed while its pages were read")


async def read_row(link: RedisClient, name: str, *, past: bool = False) -> ListRow | None:
    """Read the state hash of a list. The result is marked `lost` if fields of its set of pages are missing.

    If `past` is set, the releases for a rollback and the events are read too.

    If `past` is set, the kept releases and the events are read too.
    """
    fields = ("state", "set", "fields", "change", "form", *(("past",) if past else ()))
    state, set_id, count, change, form, *was = await link.do("HMGET", key(name, "state"), *fields)
    if state is None or set_id is None or change is None:
        return None
    with link.as_written():
        page_set = PageSet(key(name, "set", set_id.decode()), int(count or 0))
        more = _decode_past(name, change, *was) if was else {}
    lost = await link.do("HLEN", page_set.key) != page_set.fields
    # Another set may have come into force between the two commands; the set is lost only if the state is unchanged.
    if lost and await read_change(link, name) != change:
        return await read_row(link, name, past=past)
    return ListRow(name=name, state=decode_state(state), page_set=page_set, lost=lost, change=change, form=form, **more)


def _decode_past(name: str, change: bytes, past: bytes | None) -> dict[str, Any]:
    """Decode a list's releases for a rollback and its events from the field `past`.

    A node of a version without this field leaves it unchanged when it writes. Then `change` differs, and the result is
    empty.
    """
    fields = {} if past is None else json.loads(past)
    if fields.get("change") == change.decode():
        kept = tuple(_decode_kept(name, each) for each in fields["kept"])
        return {
            "kept": kept,
            "made": _decode_optional_event(fields["made"]),
            "event": _decode_optional_event(fields["event"]),
        }
    return {}


def _decode_kept(name: str, fields: dict[str, Any]) -> Kept[PageSet]:
    whole = bool(fields["whole"])
    page_set = PageSet(key(name, "set" if whole else "kept", str(fields["set"])), int(fields["fields"]))
    return Kept(decode_state(fields["state"]), page_set, whole, _decode_optional_event(fields.get("made")))


def _decode_optional_event(fields: dict[str, Any] | None) -> Event | None:
    return None if fields is None else decode_event(fields)


async def read_change(link: RedisClient, name: str) -> bytes | None:
    """Read the ID (`change`) of the last write from a list's state hash."""
    (change,) = await link.do("HMGET", key(name, "state"), "change")
    return change  # type: ignore[no-any-return]


async def read_numbers(link: RedisClient, row: ListRow, page_set: PageSet) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the numbers of all pages in a set, in ascending order.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    with link.as_written():
        scanned = _names_in(link, page_set.key)
        parts = [np.array([each for each in names if each[-1:] != b"+"], dtype=np.int64) async for names in scanned]
    row.check(await read_change(link, row.name))
    numbers: np.ndarray[Any, np.dtype[np.int64]] = np.concatenate(parts)
    await asyncio.to_thread(numbers.sort)  # 10 ms for 250,000 numbers, without the interpreter's lock
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >> NUMBER_BITS):
        raise StoreError(
            "corrupt", f"list {row.name} has a page of the number {max(-numbers[0], numbers[-1])}, which is invalid"
        )
    return numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]  # HSCAN may return a name twice


async def _names_in(link: RedisClient, hash_key: str) -> AsyncIterator[Iterable[bytes]]:
    """Yield the field names of a hash in batches.

    Before Redis 7.4 the server also sends the values.
    """
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
    link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int], *, plain: bool = False
) -> list[Page]:
    """Return the numbered pages that a set contains; other numbers are skipped.

    If `plain` is set, no page has the field `extra`, so it is not read.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    # As bytes: the library would encode each number separately, which would take longer than the rest.
    names = " ".join(map(str, numbers) if plain else [f"{number} {number}+" for number in numbers]).encode().split()
    values, (change,) = await link.do_all(("HMGET", page_set.key, *names), ("HMGET", key(row.name, "state"), "change"))
    row.check(change)
    return pages_in(numbers, values, plain=plain)


async def read_each(link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int]) -> list[Page]:
    """Return all numbered pages of a set; a page that does not exist is returned empty.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    existing: dict[int, Page] = {}
    for at in range(0, len(numbers), BATCH_PAGES_MAX):
        pages = await read_pages(link, row, page_set, numbers[at : at + BATCH_PAGES_MAX])
        existing.update((page.number, page) for page in pages)
    return [existing.get(number) or Page(number, b"") for number in numbers]


async def read_in_set(link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int]) -> list[Page] | None:
    """Return the numbered pages that a set contains, including pages that are stored empty.

    If the set is incomplete, the result is `None`.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    names = [name for number in numbers for name in (number, f"{number}+")]
    fields_count, values, (change,) = await link.do_all(
        ("HLEN", page_set.key), ("HMGET", page_set.key, *(names or ["0"])), ("HMGET", key(row.name, "state"), "change")
    )
    row.check(change)
    if fields_count != page_set.fields:
        return None
    parts = zip(numbers, values[::2], values[1::2], strict=False)
    return [
        Page(number, keys or b"", extra or b"")
        for number, keys, extra in parts
        if keys is not None or extra is not None
    ]


def pages_in(numbers: Sequence[int], values: Sequence[bytes | None], *, plain: bool) -> list[Page]:
    """Build pages from the values of an HMGET reply: the keys of each page and, unless `plain`, its `extra`."""
    if plain:
        return [Page(number, keys) for number, keys in zip(numbers, values, strict=True) if keys]
    parts = zip(numbers, values[::2], values[1::2], strict=True)
    return [Page(number, keys or b"", extra or b"") for number, keys, extra in parts if keys or extra]
