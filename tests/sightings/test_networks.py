"""The made network of several operators: its record holds the kinds that it promises, and the truth beside it."""

from dataclasses import replace

import polars as pl
import pytest
from simulated import networks_shared

RULES = networks_shared.Shared(people=600, days=12, stalls=0.01, fleets=0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return networks_shared.make(tmp_path_factory.mktemp("shared"), RULES, seed=3)


def record(network):
    return pl.read_parquet(network.folder / "sightings" / "*" / "*.parquet")


def test_all_causes_are_in_the_network(made):
    assert {"by hand", "family", "stall", "drivers", "SIMs change slots", "a refurbisher's phone", "a measuring van's modem", "a test laboratory's phone", "a batch of modules", "ported", "sold"} <= set(made.hard.values())  # fmt: skip
    assert {"clone", "never_allocated", "box", "box, a number for days", "zero"} == {
        kind for kind, _ in made.truth.values()
    }
    checks = record(made)
    assert len(checks) == made.rows
    assert checks["origin_realm"].n_unique() == RULES.operators
    assert checks["origin_host"].str.starts_with("aaa.").any()


def test_the_truth_names_owners_and_copies(made):
    seen = {(device, who) for device, who in record(made).select("device", "subscriber").unique().iter_rows()}
    for device, copies in made.copies.items():
        owners = made.owners.get(device, frozenset())
        assert not owners & copies
        assert len(owners | copies) == made.truth[device][1]
    named = {(device, who) for device, holders in made.copies.items() for who in holders}
    assert len(named & seen) > 0.9 * len(named)
    assert {who for device, who in seen if device in made.copies} <= {who for device in made.copies for who in made.copies[device] | made.owners.get(device, frozenset())}  # fmt: skip


def test_half_of_the_mmes_send_about_half_of_the_checks(made, tmp_path):
    half = networks_shared.make(tmp_path, replace(RULES, reporting=0.5), seed=3)
    assert 0.25 * made.rows < half.rows < 0.75 * made.rows
    assert set(record(half)["origin_host"]) < set(record(made)["origin_host"])


def test_another_seed_is_another_network(made, tmp_path):
    other = networks_shared.make(tmp_path, RULES, seed=4)
    assert not (other.truth.keys() & made.truth.keys()) - {0}
