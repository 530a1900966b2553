"""Lease in the store, which lets only one of several nodes do a task at a time."""

import asyncio
import time
from contextlib import suppress
from typing import Self

from eir.errors import StoreError
from eir.lists.log.store import LogStore

CLAIM_S = 30.0
"""Duration of a lease in seconds, and so the time for which the lease of a killed process blocks others."""


class Lease:
    """Lease in the store. It is renewed until the end of the `async with` block, then released."""

    def __init__(self, store: LogStore, name: str, holder: str) -> None:
        self._store = store
        self._name = name
        self._holder = holder
        self._until = 0.0
        """Time at which the lease ends (time.monotonic)."""
        self._keeping: asyncio.Task[None] | None = None

    async def claim(self) -> bool:
        """Acquire the lease; return false if another holder has it.

        Raises:
            StoreError: if the store cannot be reached.
        """
        began = time.monotonic()
        if not await self._store.claim(self._name, self._holder, CLAIM_S):
            return False
        self._until = began + CLAIM_S
        self._keeping = asyncio.create_task(self._renew())
        return True

    def is_held(self) -> bool:
        """Return true while the lease is held, so that no other holder can have it."""
        return time.monotonic() < self._until

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(StoreError):
                await self._store.claim(self._name, self._holder, 0)

    async def _renew(self) -> None:
        """Renew the lease every third of its duration, until cancelled."""
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            began = time.monotonic()
            with suppress(StoreError):
                is_ours = await self._store.claim(self._name, self._holder, CLAIM_S)
                self._until = began + CLAIM_S if is_ours else 0.0
