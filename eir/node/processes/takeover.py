"""Replacement of lists in the memory of a worker.

The new image is mapped beside the image in force. Then one reference changes, and the memory of the old image is freed.
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
        """Create an empty queue. `switched`: function to call each time that a list has been put in force."""
        self._index = index
        self._process = process
        self._switched = switched
        self._arrived: asyncio.Queue[tuple[Listed, Image] | None] = asyncio.Queue()
        """Lists to put in force; None after the last list of the worker's start."""
        self._replaced: asyncio.Queue[Image] = asyncio.Queue()
        """Replaced images, whose memory is not freed yet."""
        self.longest_slice_s = 0.0
        """Longest time in seconds for which a switch blocked the loop."""

    def enqueue(self, listed: Listed, memory: int | None) -> None:
        """Map the shared memory of a list, and queue the list, which `run` then puts in force."""
        if memory is None:
            return  # the supervisor sends the list again
        try:
            image = Image.map(memory)
        except (ImageError, OSError) as e:
            self._process.log.report("image_failed", level="error", list=listed.name, detail=str(e))
        else:
            self._arrived.put_nowait((listed, image))

    def complete(self) -> None:
        """Queue an end mark, because the supervisor has sent all lists for the worker's start.

        When `run` reaches the mark, it reports to the supervisor that the worker has started.
        """
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Put the queued lists in force as they arrive, until cancelled."""
        while True:
            arrived = await self._arrived.get()
            if arrived is None:
                gc.collect()
                gc.freeze()  # the garbage collector then skips the objects of the start, which stay
                self._process.channel.notify("started")
            else:
                try:
                    self._switch(*arrived)
                except Exception as e:  # noqa: BLE001 - outermost loop of this task: it logs the fault and continues
                    self._process.log.report("fault", reason="lists", level="error", detail=detail_of(e))

    async def free(self) -> None:
        """Free the memory of replaced lists in small parts with pauses, until cancelled.

        Other workers do the same at that time. With pauses, none waits on a shared processor for another's time slice.
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
        """Put a list in force in this worker, unless the same version of the list is in force already."""
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
        slice_s = time.perf_counter() - began
        self.longest_slice_s = max(self.longest_slice_s, slice_s)
