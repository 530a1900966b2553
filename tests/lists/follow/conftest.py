"""Fixtures of the learned lists: nodes on one store, SQLite or Redis. The module's `NODE` is the class of its nodes."""

from contextlib import AsyncExitStack

import pytest
from simulated import servers

from eir.lists.stores.open import SQLITE, open_store


class Nodes:
    """Nodes on one store, each with its own state folder. A call creates a node, which has not started."""

    def __init__(self, node, url, folder, server, closing):
        self.server, self.kind = server, SQLITE if server is None else "redis"
        self._node, self._url, self._folder, self._closing = node, url, folder, closing
        self.store = self._opened()

    def __call__(self, name="a", **options):
        return self._node(self._opened(), self._folder / name, who=f"node on {name}", **options)

    def lose(self, *nodes):
        """Delete all data of the store."""
        if self.server is not None:
            self.server.flush()
            return
        for path in self._folder.glob("lists.sqlite*"):
            path.unlink()
        self.store = self._opened()
        for node in nodes:
            node.store.store = self.store

    def _opened(self):
        store = open_store(self._url, self._folder)
        self._closing.push_async_callback(store.close)
        return store


@pytest.fixture(params=[SQLITE, *(["redis"] if "redis" in servers.programs() else [])])
async def node_on(request, tmp_path):
    """Creates nodes on one store."""
    server = None if request.param == SQLITE else request.getfixturevalue("server")
    if server is not None:
        server.flush()
    async with AsyncExitStack() as closing:
        yield Nodes(request.module.NODE, SQLITE if server is None else server.url, tmp_path, server, closing)


@pytest.fixture
def started(node_on):
    """Creates nodes that have started."""

    async def started(*name, **options):
        return await node_on(*name, **options).start()

    return started
