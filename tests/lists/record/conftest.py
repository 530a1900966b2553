"""Stores that tests of the record use: SQLite files, and one real Redis for each test file."""

import contextlib

import pytest

from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore


@pytest.fixture
async def opener(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        def open_one(name):
            opened = SqliteStore(tmp_path / f"{name}.sqlite")
            stack.push_async_callback(opened.close)
            return opened

        yield open_one


@pytest.fixture(params=["sqlite", "redis"])
async def store(request, opener):
    if request.param == "sqlite":
        yield opener("store")
        return
    server = request.getfixturevalue("server")
    server.flush()
    opened = RedisStore(server.url)
    yield opened
    await opened.close()
