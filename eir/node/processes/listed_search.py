"""Search for newly listed devices in the record of checks. An event is sent for each device that was seen before.

The search runs in the recorder, in a thread. The recorder maps each image of a list of devices. The difference of two images is the newly listed devices, which are looked up in the
record of the last 24 h. Changes that arrive during a search are queued.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from eir.config import Config
from eir.device import SNR_KEYS, key_text
from eir.errors import EirError, Report, StoreError, detail_of
from eir.lists.images.image import Image, ImageError
from eir.lists.images.newly_listed import NewlyListed, newly_listed, without_listed
from eir.lists.log.reader import has_rows, read_rows
from eir.lists.log.store import LogStore
from eir.lists.record.clock import await_store
from eir.lists.stores.open import open_store
from eir.lists.table.columns import WHOLE, Numbers
from eir.node.processes.setup import Listed
from eir.sightings.events import LISTED

if TYPE_CHECKING:
    import polars as pl

SEEN_WITHIN = timedelta(hours=24)
FLUSH_EVERY_S = 2.0
"""Seconds between two flushes of the buffered checks, because each flush writes a file."""
WAITING_BYTES_MAX = 256 << 20
"""Maximum bytes of queued images. Above it a new image of a list replaces the queued one, so that one search finds the devices of both."""
CHANGES_READ = 1000
"""Maximum number of changes in which the listing of a device is looked up."""
NEW_LIST = 1
"""Generation of a list after its first change."""
ID_DIGITS = 32
ROWS_AT_ONCE = 1000
"""Maximum number of events that are built at once."""

ListingMarks: TypeAlias = Sequence[tuple[str, Numbers]]
"""Digest of each change that has added rows to a list, oldest first, with the keys of these rows."""


class ListContent(NamedTuple):
    """Content of a list of devices after one change."""

    listed: Listed
    image: Image


class ListedSearch:
    """Queue of searches for newly listed devices in the record of checks, and the task that runs these searches.

    Args:
        config: configuration at the start.
        flush: function that writes the buffered checks to disk.
        send: function that queues events, and returns after the senders of all receivers have them.
        done: function that is called with list and generation after the search for a list.
        report: function that logs failures.
    """

    def __init__(
        self, config: Config, *, flush: Callable[[], Awaitable[None]], send: Callable[[Sequence[dict[str, Any]]], Awaitable[None]],
        done: Callable[[str, int], None], report: Report,
    ) -> None:  # fmt: skip
        self._config = config
        self._flush = flush
        self._send = send
        self._done = done
        self._report = report
        self._searched: dict[str, ListContent] = {}
        """Last searched content of each list."""
        self._waiting: deque[ListContent] = deque()
        self._has_work = asyncio.Event()
        self._flushed_at = -FLUSH_EVERY_S
        self._forgotten: set[str] = set()
        """Subscribers that were deleted from the record during the present search."""

    def forget(self, subscribers: Collection[str]) -> None:
        """Remove subscribers from the events that the running search has not sent yet: their field `subscriber` becomes null.

        `subscribers`: subscribers that are being deleted from the record of checks. The search may have read their rows before.
        """
        self._forgotten.update(subscribers)

    def set_baseline(self, listed: Listed, memory: int | None) -> None:
        """Store a list's content as already searched, so that the next search looks only for devices that are added later."""
        content = _map(listed, memory)
        if content is not None:
            self._searched[listed.name] = content

    def queue_search(self, listed: Listed, memory: int | None) -> None:
        """Queue a search for the devices that were added to a list after the list's last search. The record of checks is searched."""
        content = _map(listed, memory)
        if content is None:
            return
        waiting_bytes = sum(len(waiting.image.buffer) for waiting in self._waiting)
        if waiting_bytes > WAITING_BYTES_MAX:
            self._drop_newest(listed.name)
        self._waiting.append(content)
        self._has_work.set()

    def _drop_newest(self, name: str) -> None:
        for waiting in reversed(self._waiting):
            if waiting.listed.name == name:
                self._waiting.remove(waiting)
                return

    async def run(self) -> None:
        """Run the queued searches for newly listed devices until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._waiting:
                now = self._waiting.popleft()
                await self._search_if_known(now)
                listed = now.listed
                self._searched[listed.name] = now
                self._done(listed.name, listed.state.generation)
                self._forgotten.clear()

    async def _search_if_known(self, now: ListContent) -> None:
        """Search the record for the devices that a change has added to a list, if the list's previous content is known.

        The previous content of a new list is known: it was empty. A failure of the search is logged.
        """
        listed = now.listed
        before = self._searched.get(listed.name)
        if before is None and listed.state.generation > NEW_LIST:
            return  # the list is new in the configuration, or this process did not receive its previous content
        try:
            await self._search(now, before)
        except Exception as e:  # noqa: BLE001 - a fault of a search must not end the process that records checks
            detail = str(e) if isinstance(e, EirError | OSError) else detail_of(e)
            self._report("sightings_failed", reason="search", level="error", list=listed.name, detail=detail)

    async def _search(self, now: ListContent, before: ListContent | None) -> None:
        """Search the record for the devices that a change has added to a list, and send an event for each.

        `before`: previous content of the list, whose devices were searched before; None: the list is new.
        """
        name = now.listed.name
        since = datetime.now(UTC) - SEEN_WITHIN
        if name not in self._config.lists or name in self._config.policy.only_allowing:
            return
        image_before = before.image if before else None
        batches = newly_listed(image_before, now.image)
        is_flushed = False
        marks: ListingMarks | None = None
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            if not is_flushed:
                await self._flush_buffered()
                is_flushed = True
            rows = await asyncio.to_thread(self._find, image_before, batch, since)
            for part in rows.iter_slices(ROWS_AT_ONCE):
                if marks is None:
                    marks = await self._listing_marks(name, before)
                events = await asyncio.to_thread(_build_events, now, part, marks)
                await self._send_without_forgotten(events)

    async def _flush_buffered(self) -> None:
        await asyncio.sleep(self._flushed_at + FLUSH_EVERY_S - time.monotonic())
        await self._flush()
        self._flushed_at = time.monotonic()

    def _find(self, before: Image | None, batch: NewlyListed, since: datetime) -> "pl.DataFrame":
        """Return the newest recorded check of each device in a batch of added devices."""
        from eir.sightings.seen import find_newest  # noqa: PLC0415 - polars, which this process has already

        rows = find_newest(self._config.state, since, batch.keys, batch.tacs)
        devices = rows["device"].to_numpy().astype(np.uint64)
        return rows.filter(without_listed(before, devices))

    async def _send_without_forgotten(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["subscriber"] in self._forgotten:
                event["subscriber"] = None
        await self._send(events)

    async def _listing_marks(self, name: str, before: ListContent | None) -> ListingMarks:
        """Return the changes that have added rows to a local list since the last search; none for other lists.

        From the change all nodes compute the same id of an event, even if a node receives several changes of a local list at once. If
        the store is away, the id depends on the generation of the list.
        """
        after = before.listed.state.generation if before else 0
        if not self._config.lists[name].local:
            return ()
        store = open_store(self._config.store, self._config.state, report=self._report, check=False)
        try:
            with suppress(StoreError):
                return await await_store(_read_marks(store, name, after))
        finally:
            await store.close()
        return ()


async def _read_marks(store: LogStore, name: str, after: int) -> ListingMarks:
    """Read the changes of a list after a generation, with the keys of the rows that they added."""
    marks = []
    for entry in (await store.log(name, after))[:CHANGES_READ]:
        if has_rows(entry):
            added, _ = (await read_rows(store, name, entry)).decoded(name)
            marks.append((entry.change.digest, added.keys))
    return marks


def _map(listed: Listed, memory: int | None) -> ListContent | None:
    """Map the shared memory of a list and return the list's content; return None if no usable memory was received.

    The next change of the list is then compared with an older image.
    """
    if memory is not None:
        with suppress(ImageError, OSError):
            return ListContent(listed, Image.map(memory))
    return None


def _build_events(now: ListContent, rows: "pl.DataFrame", marks: ListingMarks) -> list[dict[str, Any]]:
    devices = rows["device"].to_numpy().astype(np.uint64)
    tacs = np.uint64(WHOLE) | devices // np.uint64(SNR_KEYS)
    listings = [f"generation {now.listed.state.generation}"] * len(devices)
    for digest, keys in reversed(
        marks
    ):  # the oldest change counts: later ones may be of the next search on another node
        for at in np.flatnonzero(np.isin(devices, keys) | np.isin(tacs, keys)).tolist():
            listings[at] = digest
    return [_event(now, row, listing) for row, listing in zip(rows.iter_rows(named=True), listings, strict=True)]


def _event(now: ListContent, row: Mapping[str, Any], listing: str) -> dict[str, Any]:
    """Build the event for a newly listed device that was seen before. The event has the data of the device's newest recorded check.

    `listing`: the change that listed the device; all nodes compute the id from it.
    """
    listed = now.listed
    device = row["device"]
    digest = sha256(f"{listed.name}\0{device}\0{listing}".encode()).hexdigest()
    return {
        "id": f"{LISTED}-{digest[:ID_DIGITS]}", "event": LISTED, "list": listed.name, "serial": listed.state.serial,
        "imei": key_text(device), "time": row["last"].replace(tzinfo=UTC).timestamp(), "peer": row["peer"],
        "origin_host": row["origin_host"], "protocol": row["protocol"], "subscriber": row["subscriber"], "home": row["home"],
    }  # fmt: skip
