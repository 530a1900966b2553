"""Lists that a worker takes over: mapped beside those in force, put in force by changing one reference, the memory of the old ones freed."""

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
"""Pause between two steps of freeing an image's memory."""


class Takeover:
    """The lists of one worker, taken over as they come, one after another."""

    def __init__(self, index: Index, process: ThisProcess, switched: Callable[[], object]) -> None:
        """`switched` is called after each list that was put in force."""
        self._index, self._process, self._switched = index, process, switched
        self._arrived: asyncio.Queue[tuple[Listed, Image] | None] = asyncio.Queue()
        """Lists to take over; None: these are all."""
        self._replaced: asyncio.Queue[Image] = asyncio.Queue()
        """Images that others have replaced."""
        self.longest_slice_s = 0.0
        """The longest time that taking over a list held the loop."""

    def put_in_force(self, what: Listed, memory: int | None) -> None:
        """Map a list's memory, and put the list in force when its turn comes."""
        if memory is None:
            return  # the supervisor hands it over again
        try:
            self._arrived.put_nowait((what, Image.map(memory)))
        except (ImageError, OSError) as e:
            self._process.log.report("image_failed", level="error", list=what.name, detail=str(e))

    def complete(self) -> None:
        """Note that the lists so far are all that there are."""
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Take over lists as they come, until cancelled."""
        while True:
            arrived = await self._arrived.get()
            if arrived is None:
                gc.collect()
                gc.freeze()  # what the start made stays: no collection walks it again
                self._process.channel.tell("started")
            else:
                try:
                    self._switch(*arrived)
                except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and takes the next one
                    self._process.log.report("fault", reason="lists", level="error", detail=detail_of(e))

    async def free(self) -> None:
        """Free the memory of images that are no longer in force, with pauses, until cancelled.

        Other workers do the same at that time: where they share a processor, none is to wait for the end of another's
        time slice.
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
        """Put a list in force, of which the supervisor hands over the last version once more if it was not here yet."""
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
