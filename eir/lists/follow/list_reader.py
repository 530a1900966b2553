"""Reader of whole lists for commands and services beside a node's answers: it keeps the content of each list, and reads only later changes."""

import asyncio
from contextlib import suppress
from pathlib import Path

from eir.errors import StoreError
from eir.lists.follow.list_copy import ListCopy, copied_head
from eir.lists.log.change import Head
from eir.lists.log.reader import LoggedList, advance, read_content
from eir.lists.log.store import LogStore


class ListReader:
    """Reader of lists.

    Args:
        store: store of the lists.
        copies: folder of the node's copies, which have the lists in force while the store is unreachable or has lost them. None: the store alone counts.
    """

    def __init__(self, store: LogStore, copies: Path | None = None) -> None:
        self._store, self._copies = store, copies
        self._contents: dict[str, LoggedList] = {}
        self._lock = asyncio.Lock()

    async def content(self, name: str) -> LoggedList | None:
        """Return the content of a list; None if neither the store nor the node has the list.

        Raises:
            StoreError: if the list cannot be read, and the node has no copy.
        """
        async with self._lock:
            held, fault = self._contents.get(name), None
            try:
                stored = (await self._store.heads()).get(name)
            except StoreError as error:
                stored, fault = None, error
            if self._copies is not None and (held is None or stored is None or stored.digest != held.head.digest):
                held = await asyncio.to_thread(_newer_copy, self._copies, name, held, stored)
            try:
                if stored is not None and (self._copies is None or held is None or not _is_older(stored, held.head)):
                    held = await self._read(name, held, stored)
            except StoreError as error:
                fault = error
            if fault is not None and (self._copies is None or held is None):
                raise fault
            if held is not None:
                self._contents[name] = held
            return held

    async def _read(self, name: str, held: LoggedList | None, stored: Head) -> LoggedList:
        if held is None:
            return await read_content(self._store, name, stored)
        if held.head.digest == stored.digest:
            return held
        return await advance(self._store, name, held, stored)


def read_copy(folder: Path, name: str) -> LoggedList | None:
    """Read the copy of a list that a node writes; None if there is no readable copy."""
    try:
        return ListCopy(folder, name).read(repairs=False)
    except StoreError:
        return None


def _newer_copy(folder: Path, name: str, held: LoggedList | None, stored: Head | None) -> LoggedList | None:
    """Return the copy that a node writes, if it is newer than the held content, or equal to the stored list; otherwise the held content."""
    with suppress(StoreError):
        head = copied_head(folder, name)
        is_stored = head is not None and stored is not None and head.digest == stored.digest
        if head is not None and (held is None or is_stored or _is_older(held.head, head)):
            return read_copy(folder, name) or held
    return held


def _is_older(head: Head, held: Head) -> bool:
    """Return True if a head is older than one that the node holds."""
    return (head.mark, head.generation) < (held.mark, held.generation)
