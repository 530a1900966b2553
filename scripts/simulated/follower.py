"""Running follower of a store, without a node."""

import asyncio
import contextlib
import time

from eir.lists.follow.follower import Follower
from eir.lists.follow.pauses import Pauses
from eir.lists.images.index import Index

from .store_content import until

QUICK = Pauses(retry_s=0.02, unproved_s=0.02, unreadable_s=0.02)
"""Nobody waits long for the next try."""


class Node:
    """A follower with all that it is given, running."""

    def __init__(self, store, kinds, *, now=time.time, pauses=QUICK, **settings):
        self.store = store
        self.index = Index(kinds, now)
        self.events, self.switched = [], []
        self.follower = Follower(
            store, self.index, report=lambda event, **fields: self.events.append((event, fields)),
            on_switch=self._switched, pauses=pauses, **settings,
        )  # fmt: skip
        self.on_switch = lambda: None
        self.aside = []  # generations that heavy work began from

    @contextlib.contextmanager
    def heavy(self):
        self.aside.append(self.generation())
        yield

    def _switched(self, name, found, image, before):
        assert (self.index.lists[name].state, self.index.lists[name].image) == (found, image)
        assert before is not image
        self.switched.append((name, found.generation))
        self.on_switch()

    async def __aenter__(self):
        await self.follower.start()
        self.task = asyncio.create_task(self.follower.run(self.heavy))
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def keys(self, name="a"):
        return list(self.index.lists[name])

    def generation(self, name="a"):
        found = self.index.lists[name].state
        return 0 if found is None else found.generation

    async def reaches(self, generation, name="a"):
        await until(lambda: self.generation(name) == generation)

    @property
    def lag_s(self):
        return time.monotonic() - self.follower.in_step_at

    def said(self):
        return [event for event, _ in self.events]
