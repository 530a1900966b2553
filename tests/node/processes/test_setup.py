"""Setup of a process: how many files it may open, and the advice after a reload."""

import resource
from resource import RLIM_INFINITY
from types import SimpleNamespace

import pytest

from eir.config import load_config
from eir.errors import SetupFault
from eir.node.processes.setup import OTHER_FILES, allow_open_files, changed_lists, prepare

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


def test_a_reload_names_lists_that_left_the_configuration_and_no_record_of_first_sightings():
    config = SimpleNamespace(lists_and_record={"stolen": "devices", "first-seen": "first_seen"})
    before = SimpleNamespace(missing=(), lists={"stolen": None, "first-seen": None, "gone": None})
    after = SimpleNamespace(missing=("new",), lists={})
    assert changed_lists(config, before, after) == [
        "list new has never been loaded: load it first",
        "list gone is no longer configured: it has no effect; the store keeps it (eir show gone)",
    ]


@pytest.mark.parametrize("uses", ["source", "webhook"])
def test_a_node_that_needs_curl_names_its_package(site, monkeypatch, uses):
    if uses == "source":
        source = {"signers": "signers", "source": "https://register.example/x/"}
        site.configure(lists={"stolen": source, "tracked": {"signers": "signers"}})
    else:
        (site.folder / "key").write_text("x")
        site.configure(sightings={"webhook": {"url": "https://desk.example/", "key_file": "key"}})
    monkeypatch.setenv("PATH", str(site.folder))
    with pytest.raises(SetupFault, match="install a current package `curl`"):
        prepare(load_config(site.path))
