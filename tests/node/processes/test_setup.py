"""Setup of a process: how many files it may open."""

import resource
from resource import RLIM_INFINITY
from types import SimpleNamespace

import pytest

from eir.node.processes.setup import OTHER_FILES, allow_open_files

WANTED = 1000 + OTHER_FILES


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "logged"),
    [
        (RLIM_INFINITY, RLIM_INFINITY, [], []),
        (WANTED, WANTED, [], []),
        (WANTED - 1, WANTED, [(WANTED, WANTED)], []),
        (100, RLIM_INFINITY, [(WANTED, RLIM_INFINITY)], []),
        (100, WANTED - 1, [(WANTED - 1, WANTED - 1)], [WANTED - 1]),
        (WANTED - 1, WANTED - 1, [], [WANTED - 1]),
    ],
)
def test_open_files_are_allowed_as_far_as_the_host_permits(monkeypatch, soft, hard, raised, logged):
    limits, lines = [], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    config = SimpleNamespace(limits=SimpleNamespace(connections_max=1000))
    allow_open_files(config, lambda event, **fields: lines.append((event, fields["limit"])))
    assert (limits, lines) == (raised, [("open_files", limit) for limit in logged])
