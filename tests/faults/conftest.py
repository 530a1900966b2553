"""Fixtures of the fault runs."""

import pytest
from fleet import OPTIONS, Fleet
from simulated import servers
from simulated.servers import Server


@pytest.fixture(scope="session", autouse=True)
def redis_program():
    """Each fault run needs a real server."""
    found = servers.programs().get("redis")
    if found is None:
        pytest.skip("redis-server is not installed")
    return found


class Calm:
    """One server and one fleet for the tests of a module; a new one where a test has left them in disorder."""

    def __init__(self, program, folder, publisher, **settings):
        self._program, self._folder, self._publisher, self._settings = program, folder, publisher, settings
        self._number, self.server, self.fleet = 0, None, None

    def get(self):
        if self.fleet is None or not self._is_calm():
            self.close()
            self._number += 1
            self.server = Server(self._program, *OPTIONS).start()
            url = self.server.url.replace("//", "//eir:secret@")
            self.fleet = Fleet(self._folder / str(self._number), self._publisher, url, **self._settings)
        return self.server, self.fleet

    def _is_calm(self):
        try:
            return self.fleet.is_level()
        except (OSError, AssertionError):
            return False

    def close(self):
        if self.fleet is not None:
            fleet, self.fleet = self.fleet, None
            try:
                fleet.__exit__(None, None, None)
            finally:
                self.server.stop()


@pytest.fixture(scope="module")
def calm(tmp_path_factory, publisher, redis_program):
    made = Calm(redis_program, tmp_path_factory.mktemp("fleet"), publisher)
    yield made
    made.close()


@pytest.fixture
def server(calm):
    """A redis-server, running and with everything in it."""
    return calm.get()[0]


@pytest.fixture
def fleet(calm):
    """Two nodes that follow it."""
    return calm.get()[1]
