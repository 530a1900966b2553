"""The analysis on a Spark cluster gives, row by row, what it gives on one machine."""

import json
import math
from datetime import timedelta
from decimal import Decimal

import pytest
from simulated import networks
from simulated.patience import PROGRAM_S, TEST_S

pytest.importorskip("pyspark", reason="pyspark is not installed: scripts/test --spark brings it")

from cluster import WORKERS, cluster  # it needs pyspark
from tampered import files

from eir.errors import EirError
from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import TABLES, duck
from eir.sightings.judge import judge
from eir.sightings.spark import spark

PEOPLE = 500
COMPARED = {*TABLES, "chosen"}
"""Tables of the analysis, and those of the findings."""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 as /proc/net has it, of IPv4 and as an IPv6 address."""

pytestmark = pytest.mark.timeout(TEST_S)


@pytest.fixture(scope="module")
def standalone(tmp_path_factory):
    """A cluster, and this process as its user."""
    with cluster(tmp_path_factory.mktemp("cluster")) as (made, environment), pytest.MonkeyPatch.context() as patch:
        for name in ("SPARK_HOME", "SPARK_CONF_DIR", "SPARK_LOCAL_IP", "PYSPARK_PYTHON"):
            patch.setenv(name, environment[name])
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A made network, with what it holds of each kind."""
    network = networks.Network(subscribers=PEOPLE, clones=0.1)
    return networks.make(tmp_path_factory.mktemp("world"), network, seed=5)


class Watched:
    """An engine, and all rows of each table that it was told to make, as they were when it was made."""

    def __init__(self, engine):
        self.engine, self.tables = engine, {}

    def define(self, name, select):
        self.engine.define(name, select)
        if name in COMPARED:
            rows = self.engine.rows(f"SELECT * FROM {name}")
            self.tables[name] = sorted(
                (tuple(float(value) if isinstance(value, Decimal) else value for value in row) for row in rows),
                key=_order,
            )

    def fill(self, *what):
        self.engine.fill(*what)

    def rows(self, select):
        return self.engine.rows(select)


def _order(row):
    """By what is no double first: those may differ in their last digit."""
    return [(value is None, str(value)) for value in row if not isinstance(value, float)], [
        value for value in row if isinstance(value, float)
    ]


def differing(one, other):
    """The first pair of rows that differ, doubles by more than what adding in another order does."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for a, b in zip(left, right, strict=True):
            if not (math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b):
                return left, right
    return None


def test_a_cluster_finds_row_by_row_what_one_machine_finds(standalone, world, tmp_path):
    settings = TamperSettings()
    window = {"since": world.since, "until": world.until}
    judging = window | {"tacs": world.tacs}
    with duck(files(world.folder), **window, memory=1 << 30) as engine:
        alone = Watched(engine)
        by_one = judge(alone, settings, **judging)
    with spark(files(world.folder), **window, master=standalone.master, work=str(tmp_path)) as engine:
        spread = Watched(engine)
        by_many = judge(spread, settings, **judging)
        addresses = standalone.listening()
    assert alone.tables.keys() == spread.tables.keys() == COMPARED
    assert {name: pair for name in alone.tables if (pair := differing(alone.tables[name], spread.tables[name]))} == {}
    assert by_one == by_many
    assert len(by_one.findings) > 100
    assert sum(map(bool, alone.tables.values())) > 18  # most of what is compared is something
    (workers,) = standalone.apps().values()
    assert len(workers) == WORKERS
    assert addresses <= LOOPBACK
    assert list(tmp_path.iterdir()) == []  # the run's tables are gone


def test_the_command_on_a_cluster(standalone, world, site, tmp_path):
    site.configure(state=str(world.folder), lists={"tacs": {"kind": "device_types", "signers": "signers"}}, policy={})
    rows = [f"{tac:08d},{kind},{allocated}" for tac, allocated, kind in world.tacs]
    site.load(["tac,device_type,allocation_date", *rows], list_name="tacs")
    day = world.since + timedelta(days=9)
    what = ("tamper", "report", "--until", f"{day:%Y-%m-%d}", "--since", "9d", "--json")
    on_spark = ("--spark", standalone.master, "--work", tmp_path / "work", "--record", files(world.folder))
    done = site.eir(*what, *on_spark, timeout=PROGRAM_S)
    assert json.loads(done.stdout) == json.loads(site.eir(*what).stdout) != []
    assert list((tmp_path / "work").iterdir()) == []


def test_a_fault_of_spark_is_an_error(standalone, world, site, tmp_path):
    window = {"since": world.since, "until": world.until}
    with (
        pytest.raises(EirError, match="cannot be analysed"),
        spark(f"{tmp_path}/none/*.parquet", **window, master="local[1]", work=str(tmp_path)),
    ):
        pass
    assert (
        "--spark and --work go together" in site.eir("tamper", "report", "--spark", standalone.master, status=2).stderr
    )
