"""Reader of lists in Redis: states, pages and changes.

The keys are listed in eir.lists.stores.redis.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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

Numbers = npt.NDArray[np.int64]


def key(name: str, *what: str) -> str:
    """Return the name of a list's key in Redis, such as `eir:{stolen}:state`."""
    return ":".join((f"eir:{{{name}}}", *what))


class PageSet(NamedTuple):
    """Redis hash with the pages of one version of a list."""

    key: str
    fields: int
    """Number of fields of the complete hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRow(Stored[PageSet]):
    """Stored row of a list in Redis: its state, its page sets and its kept releases."""

    name: str
    change: bytes
    """Random ID of the last write."""
    form: bytes | None = None
    """Version of the format, as in eir.lists.stores.records."""
    event: Event | None = None
    """Event of the last write, for the history."""

    def check(self, change: bytes | None) -> None:
        """Raise StoreChanged if the list was written since this row was read.

        `change`: ID of the last write that Redis has now. After a further write, the pages of this row may no longer be in force.
        """
        if change != self.change:
            raise StoreChanged(f"list {self.name} changed while its pages were read")


async def read_row(link: RedisClient, name: str, *, past: bool = False) -> ListRow | None:
    """Read the row of a list. If fields of its page set are missing in Redis, the row is marked `lost`.

    If `past` is set, the releases for a rollback and the events are read too.
    """
    names = ["state", "set", "fields", "change", "form"]
    if past:
        names.append("past")
    state, set_id, count, change, form, *past_value = await link.execute("HMGET", key(name, "state"), *names)
    if state is None or set_id is None or change is None:
        return None
    with link.decoding():
        page_set = PageSet(key(name, "set", set_id.decode()), int(count or 0))
        past_fields = _decode_past(name, change, *past_value) if past_value else {}
    lost = await link.execute("HLEN", page_set.key) != page_set.fields
    # Another set may have come into force between the two commands; the set is lost only if the state is unchanged.
    if lost and await read_change(link, name) != change:
        return await read_row(link, name, past=past)
    row = ListRow(name=name, state=decode_state(state), page_set=page_set, lost=lost, change=change, form=form)
    return replace(row, **past_fields)


def _decode_past(name: str, change: bytes, past: bytes | None) -> dict[str, Any]:
    """Decode the field `past` of a list's row in Redis: the releases kept for a rollback, and the events of writes.

    A node of a version without this field writes a list and leaves the field unchanged. `past` then has another
    `change`, and the result is empty.
    """
    fields = {} if past is None else json.loads(past)
    if fields.get("change") != change.decode():
        return {}
    kept = tuple(_decode_kept(name, release) for release in fields["kept"])
    made, event = _decode_optional_event(fields["made"]), _decode_optional_event(fields["event"])
    return {"kept": kept, "made": made, "event": event}


def _decode_kept(name: str, fields: dict[str, Any]) -> Kept[PageSet]:
    whole = bool(fields["whole"])
    hash_key = key(name, "set" if whole else "kept", str(fields["set"]))
    page_set = PageSet(hash_key, int(fields["fields"]))
    made = _decode_optional_event(fields.get("made"))
    return Kept(decode_state(fields["state"]), page_set, whole, made)


def _decode_optional_event(fields: dict[str, Any] | None) -> Event | None:
    return None if fields is None else decode_event(fields)


async def read_change(link: RedisClient, name: str) -> bytes | None:
    """Read the ID of the last write of a list."""
    (change,) = await link.execute("HMGET", key(name, "state"), "change")
    return change  # type: ignore[no-any-return]


async def read_numbers(link: RedisClient, row: ListRow, page_set: PageSet) -> Numbers:
    """Return the numbers of all pages in a page set, in ascending order.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    parts = []
    with link.decoding():
        async for names in _scan_names(link, page_set.key):
            page_names = [name for name in names if not name.endswith(b"+")]
            parts.append(np.array(page_names, dtype=np.int64))
    row.check(await read_change(link, row.name))
    numbers: Numbers = np.concatenate(parts)
    await asyncio.to_thread(numbers.sort)  # 10 ms for 250,000 numbers, without the interpreter's lock
    if len(numbers):
        first, last = numbers[0], numbers[-1]
        if first < 0 or last >> NUMBER_BITS:
            invalid = max(-first, last)
            raise StoreError("corrupt", f"list {row.name} has a page of the number {invalid}, which is invalid")
    differences = np.diff(numbers, prepend=-1)
    return numbers[np.flatnonzero(differences)]  # HSCAN may return a name twice


async def _scan_names(link: RedisClient, hash_key: str) -> AsyncIterator[Iterable[bytes]]:
    """Yield the field names of a hash in batches.

    A server before Redis 7.4 also sends the values.
    """
    cursor = None
    while cursor != 0:
        scan = ("HSCAN", hash_key, cursor or 0, "COUNT", SCAN_COUNT)
        try:
            cursor, names = await link.execute(*scan, *link.names_only, no_values=bool(link.names_only))
        except StoreError as error:
            if not link.names_only or error.cause != "error":
                raise
            link.names_only = ()
        else:
            yield names


async def read_pages(
    link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int], *, plain: bool = False
) -> list[Page]:
    """Return the pages of a page set with these numbers, without missing pages.

    `plain`: True if no page has `extra`, so that this field is not read.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    texts = map(str, numbers) if plain else [f"{number} {number}+" for number in numbers]
    # All names are encoded at once, because the library would take longer to encode each number than for the rest.
    names = " ".join(texts).encode().split()
    read_values, read_id = ("HMGET", page_set.key, *names), ("HMGET", key(row.name, "state"), "change")
    values, (change,) = await link.execute_all(read_values, read_id)
    row.check(change)
    return build_pages(numbers, values, plain=plain)


async def read_each(link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int]) -> list[Page]:
    """Return the pages of a page set with these numbers; a missing page is returned empty.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    existing: dict[int, Page] = {}
    for start in range(0, len(numbers), BATCH_PAGES_MAX):
        pages = await read_pages(link, row, page_set, numbers[start : start + BATCH_PAGES_MAX])
        existing |= {page.number: page for page in pages}
    return [existing.get(number) or Page(number, b"") for number in numbers]


async def read_in_set(link: RedisClient, row: ListRow, page_set: PageSet, numbers: Sequence[int]) -> list[Page] | None:
    """Return the pages of a page set with these numbers, without missing pages. Pages that are stored as empty are included.

    If the set is incomplete, the result is `None`.

    Raises:
        StoreChanged: if the list changed meanwhile.
    """
    names = [name for number in numbers for name in (number, f"{number}+")]
    read_values = ("HMGET", page_set.key, *(names or ["0"]))
    read_id = ("HMGET", key(row.name, "state"), "change")
    fields_count, values, (change,) = await link.execute_all(("HLEN", page_set.key), read_values, read_id)
    row.check(change)
    if fields_count != page_set.fields:
        return None
    pages = []
    for number, keys, extra in zip(numbers, values[::2], values[1::2], strict=False):
        if keys is not None or extra is not None:
            pages.append(Page(number, keys or b"", extra or b""))
    return pages


def build_pages(numbers: Sequence[int], values: Sequence[bytes | None], *, plain: bool) -> list[Page]:
    """Build pages from the values of an HMGET reply, without missing pages.

    Each page has one value, its keys, if `plain` is True. Otherwise it has two values: its keys, then its `extra`.
    """
    if plain:
        return [Page(number, keys) for number, keys in zip(numbers, values, strict=True) if keys]
    parts = zip(numbers, values[::2], values[1::2], strict=True)
    return [Page(number, keys or b"", extra or b"") for number, keys, extra in parts if keys or extra]
