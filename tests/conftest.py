"""Fixtures that several test files share; what they hand out is in node.py."""

import asyncio
import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import clock
import drop
import in_kernel
import processor_time
import pytest
from hypothesis import HealthCheck, settings
from simulated import patience
from simulated.commands import CONSTANTS
from simulated.node import Publisher, Site
from simulated.releases import make_key
from simulated.wire import HOST, REALM, Connection, cer

from eir.cli.app import main

sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")})
"""A test may use what another one has, in whichever folder."""
elsewhere = in_kernel.Elsewhere()
settings.register_profile("long", deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault of a test: nothing in hypothesis goes by the clock."""
settings.register_profile("same", settings.get_profile("long"), derandomize=True, max_examples=40)
"""Each run has the same examples, so that a new failure comes from the change. `--long` draws other examples, and more of them."""
settings.load_profile("same")
os.environ.setdefault("PYTEST_TIMEOUT", str(patience.TEST_S))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also tests with the mark `long`")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="random order of the files and of the tests in a file")


class _Reports:
    """Inside a kernel of scripts/sctp: keeps reports for the one who started it."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        in_kernel.write_report(self.config, report)


def pytest_configure(config):
    if config.getoption("--long"):
        settings.load_profile("long")
    if in_kernel.REPORTS in os.environ:
        config.pluginmanager.register(_Reports(config))
    else:
        config.pluginmanager.register(processor_time.ProcessorTime(config), "processor_time")


def pytest_collection_modifyitems(config, items):
    """Leave long tests to `--long`, or to whoever names them.

    Begin with the files that take most processor time, so that none runs on alone at the end; with `--shuffle` the order is random.
    """
    if not config.getoption("--long") and not any("::" in argument for argument in config.args):
        _check_short_cases(items)
        long = [item for item in items if _is_long(item)]
        items[:] = [item for item in items if not _is_long(item)]
        config.hook.pytest_deselected(items=long)
    if (seed := config.getoption("--shuffle")) is not None:
        items[:] = _shuffled(items, random.Random(seed))
    elif costs := config.pluginmanager.get_plugin("processor_time"):
        items.sort(key=costs.place)


def _is_long(item):
    """True for a test with the mark `long`, unless the mark names its case as short."""
    return any(
        item.callspec.id not in mark.kwargs["short"] if mark.kwargs else True for mark in item.iter_markers("long")
    )


def _check_short_cases(items):
    """Raise pytest.UsageError for a mark `long` that names a case that is not there."""
    cases, named = defaultdict(set), defaultdict(set)
    for item in items:
        for mark in item.iter_markers("long"):
            if mark.kwargs:
                cases[item.location[0], item.originalname].add(item.callspec.id)
                named[item.location[0], item.originalname].update(mark.kwargs["short"])
    for (file, test), short in named.items():
        if unknown := short - cases[file, test]:
            raise pytest.UsageError(f"{file}: {test}: no case {unknown} for the mark `long`")


def _shuffled(items, chance):
    """Return the tests in random order; those of a file stay together, as `--dist loadfile` needs it."""
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    groups = list(files.values())
    for tests in (groups, *groups):
        chance.shuffle(tests)
    return [item for tests in groups for item in tests]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories():
    return {"counted": clock.Loop}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    return elsewhere.run(item, nextitem) or None


@pytest.fixture(scope="session")
def publisher(tmp_path_factory):
    """One publisher with a real key, for all tests that need lists and are not about signatures."""
    return Publisher(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def site(tmp_path, publisher):
    """An EIR host of the test's own; its node, if one runs at the end, must end by SIGTERM with exit status 0."""
    with Site(tmp_path / "site", publisher) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory, publisher):
    """An EIR host for those tests of a module that only read."""
    with Site(tmp_path_factory.mktemp("shared") / "site", publisher) as made:
        yield made


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Three real keys for signatures; an EIR trusts the first two, where a test says nothing else."""
    folder = tmp_path_factory.mktemp("keys")
    return [make_key(folder, name) for name in ("agency", "second", "stranger")]


@pytest.fixture
async def drop_site(tmp_path, keys):
    """An EIR's drop folder and store, without a node."""
    made = drop.Site(tmp_path, keys)
    yield made
    await made.store.close()


@pytest.fixture
async def connect():
    """Makes clients: `await connect(node, host)` is a connection with its capabilities exchanged (`opened`); closed at the end."""
    made = []

    async def connect(node, host=HOST, realm=REALM, *, opened=True):
        client = Connection(*await asyncio.open_connection(*node.address))
        made.append(client)
        if opened:
            await client.open(cer(host, realm))
        return client

    yield connect
    for client in made:
        client.writer.transport.abort()
        await client.close()


class Done(NamedTuple):
    """Result of a command."""

    status: int
    out: str
    err: str


@pytest.fixture
def eir(capsys):
    """Run a command in this process; `Site.eir` runs one in a process of its own."""

    def run(*arguments):
        capsys.readouterr()
        try:
            main(arguments=[*map(str, arguments)])
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture
def constants(monkeypatch):
    """Give the commands and nodes that are forked from now on these constants: `constants({"eir.disk.MODE": 0o600})`."""
    return lambda values: monkeypatch.setenv(CONSTANTS, json.dumps(values))


@pytest.fixture
def altered(tmp_path, monkeypatch):
    """Have every Python that is started from now on run this code first, as its sitecustomize."""

    def by(code):
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return by
