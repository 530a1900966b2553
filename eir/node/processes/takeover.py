"""Replacement of a list's image in the memory of a worker.

The new image is mapped beside the one in force, one reference changes, and the old memory is freed.
"""

import asyncio
import gc
import time
from collections.abc import Callable

from eir.errors import detail_of
from eir.lists.images.image import Image, ImageError
from eir.lists.images.index import Index
from eir.node.processes.process import ThisProcess
from eir.node.processes.setup import Listed

PAUSE_S = 0.001
"""Seconds between two steps of freeing an image's memory."""


class Takeover:
    """Queue of lists that a worker receives and puts in force one after another."""

    def __init__(self, index: Index, process: ThisProcess, switched: Callable[[], object]) -> None:
        """Create an empty queue. `switched`: called after each list that is put in force."""
        self._index = index
        self._process = process
        self._switched = switched
        self._arrived: asyncio.Queue[tuple[Listed, Image] | None] = asyncio.Queue()
        """Lists to put in force; None: all lists have arrived."""
        self._replaced: asyncio.Queue[Image] = asyncio.Queue()
        """Images that have been replaced."""
        self.longest_slice_s = 0.0
        """Longest time in seconds for which a switch blocked the loop."""

    def enqueue(self, what: Listed, memory: int | None) -> None:
        """Map the memory of a list, and queue the list to be put in force."""
        if memory is None:
            return  # the supervisor sends it again
        try:
            self._arrived.put_nowait((what, Image.map(memory)))
        except (ImageError, OSError) as e:
            self._process.log.report("image_failed", level="error", list=what.name, detail=str(e))

    def complete(self) -> None:
        """Record in the queue that all lists have arrived."""
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Put the queued lists in force as they arrive, until cancelled."""
        while True:
            arrived = await self._arrived.get()
            if arrived is None:
                gc.collect()
                gc.freeze()  # objects from the start stay, so the garbage collector skips them
                self._process.channel.notify("started")
            else:
                try:
                    self._switch(*arrived)
                except Exception as e:  # noqa: BLE001 - outermost loop of this task: it logs the fault and continues
                    self._process.log.report("fault", reason="lists", level="error", detail=detail_of(e))

    async def free(self) -> None:
        """Free the memory of replaced images, with pauses, until cancelled.

        Other workers do the same at that time: on a shared processor, none should wait for the end of another's time slice.
        """
        while True:
            image = await self._replaced.get()
            done = 0
            while done < len(image.buffer):
                began = time.perf_counter()
                done = image.drop(done)
                self._note_slice(began)
                await asyncio.sleep(PAUSE_S)
            del image

    def _switch(self, listed: Listed, image: Image) -> None:
        """Put a list in force, unless this version of the list is in force already.

        The supervisor may send the last version again.
        """
        entries = self._index.lists.get(listed.name)
        if entries is None or entries.kind != listed.kind or entries.state == listed.state:
            return
        began = time.perf_counter()
        before = self._index.switch(listed.name, listed.state, image)
        self._switched()
        self._note_slice(began)
        if before is not None:
            self._replaced.put_nowait(before)

    def _note_slice(self, began: float) -> None:
        self.longest_slice_s = max(self.longest_slice_s, time.perf_counter() - began)
