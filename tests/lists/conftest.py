"""Store, Redis and agency that tests of lists use."""

import pytest
from simulated.releases import Agency
from simulated.servers import Server, programs

from eir.lists.stores.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path):
    """A new SQLite store, in `tmp_path / "lists.sqlite"`."""
    opened = SqliteStore(tmp_path / "lists.sqlite")
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def server():
    """A Redis for the tests of a module; a test that uses it clears it first."""
    if "redis" not in programs():
        pytest.skip("redis-server is not installed")
    with Server(programs()["redis"]) as one:
        yield one


@pytest.fixture
def agency(tmp_path):
    """A publisher with real keys."""
    return Agency(tmp_path)
