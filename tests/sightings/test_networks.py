"""Simulated networks of several operators: the record has the stated kinds and rates, and agrees with the truth."""

from dataclasses import replace

import polars as pl
import pytest
from simulated import networks_shared, world_facts

RULES = networks_shared.Shared(people=600, days=12, stalls=0.01, fleets=0.01)
RATES = world_facts.FactRates(phones=3000, copied=0.08)
HOUR_US = 3_600_000_000


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


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Network that is made from facts, and its checks with their body and area."""
    chunks = []
    network = world_facts.build_fact_world(tmp_path_factory.mktemp("facts"), RATES, seed=5, watch=chunks.append)
    return network, pl.concat(chunks)


def jumps(checks, by):
    """Return `by` of all checks that are farther from the check before than one area an hour and two areas at the ends of the way."""
    column, row = pl.col("area").cast(pl.Int64) % world_facts.COLUMNS, pl.col("area").cast(pl.Int64) // world_facts.COLUMNS  # fmt: skip
    way = (column.diff().abs() + row.diff().abs()).over(by)
    return set(checks.sort(by, "time").filter(way > (pl.col("time").diff() // HOUR_US).over(by) + 2)[by])


def test_a_phone_is_never_in_two_areas_at_once_and_copies_are(facts):
    network, checks = facts
    assert not jumps(checks, "body")
    batches = {device for device, kind in network.hard.items() if kind == "a batch of modules"}
    boxes = {device for device, (kind, _) in network.truth.items() if kind == "box"}
    apart = jumps(checks, "device") - boxes
    assert apart - batches <= network.copies.keys()
    assert len(apart) > 0.5 * len(network.copies)


def test_each_copied_imei_has_as_many_devices_as_the_truth_states(facts):
    network, checks = facts
    bodies = dict(checks.group_by("device").agg(pl.col("body").n_unique()).iter_rows())
    copied = {device: number for device, (kind, number) in network.truth.items() if kind in {"clone", "taken"}}
    assert copied.keys() == network.copies.keys()
    assert copied == {device: bodies[device] for device in copied}
    several = {device for device, number in bodies.items() if number > 1} - network.truth.keys()
    assert {network.hard[device] for device in several} <= {"a batch of modules", "repaired, IMEI moved"}
    seen = {}
    for device, who in record(network).select("device", "subscriber").unique().iter_rows():
        seen.setdefault(device, set()).add(who)
    for device, holders in network.copies.items():
        owners = network.owners.get(device, frozenset())
        assert not owners & holders
        assert seen[device] <= owners | holders


def test_the_stated_rates_are_in_the_record(facts):
    network, checks = facts
    assert len(record(network)) == len(checks) == network.rows
    phones = 0.96 * RATES.phones
    assert len(network.slots) / phones == pytest.approx(RATES.two_slots, abs=0.06)
    assert sum(one == two for one, two in network.slots.items()) / len(network.slots) == pytest.approx(0.15 * 0.2, abs=0.015)  # fmt: skip
    assert {*world_facts.MONTHLY, "one IMEI in both slots", "a batch of modules"} - {"repaired, IMEI moved"} <= set(network.hard.values())  # fmt: skip
    sizes = [number for kind, number in network.truth.values() if kind == "clone"]
    assert len(sizes) > 0.95 * RATES.copied * RATES.phones
    assert sum(sizes) / len(sizes) == pytest.approx(6, abs=1)
    for least, most, share in world_facts.SIZES[:3]:
        assert sum(least <= size <= most for size in sizes) / len(sizes) == pytest.approx(share, abs=0.1)
    assert set(checks["cause"]) == {world_facts.ATTACH, world_facts.MOVE, world_facts.TIMER, world_facts.PAUSE}


def test_firmware_lags(facts):
    network, _ = facts
    honest = record(network).filter(pl.col("software_version").is_not_null() & ~pl.col("device").is_in([*network.truth, *network.hard]))  # fmt: skip
    of_model = honest.filter(pl.col("time").dt.day() == 10).group_by(pl.col("device") // 10**6).agg(pl.col("software_version").n_unique(), pl.col("device").n_unique().alias("phones"))  # fmt: skip
    popular = of_model.top_k(10, by="phones")["software_version"]
    assert popular.median() > 1
    assert popular.max() > 5
    versions = honest.group_by("device").agg(pl.col("software_version").n_unique())["software_version"]
    assert 0.2 < (versions > 1).mean() < 0.5


@pytest.mark.parametrize("checks", [1, 3, 8])
def test_the_number_of_checks_a_day_is_chosen(tmp_path, checks):
    rates = world_facts.FactRates(phones=1000, days=10, checks=checks, copied=0, boxes=0)
    network = world_facts.build_fact_world(tmp_path, rates, seed=6)
    assert network.rows / rates.phones / rates.days == pytest.approx(checks, rel=0.15)


def test_a_sim_keeps_its_mme_of_a_pool_if_the_operator_is_sticky(tmp_path):
    def mmes(sticky):
        chunks, rates = [], world_facts.FactRates(phones=500, days=10, sticky=sticky)
        world_facts.build_fact_world(tmp_path / str(sticky), rates, seed=7, watch=chunks.append)
        pool = pl.col("mme") // rates.pool_mmes
        return pl.concat(chunks).group_by("sim", pool.alias("pool")).agg(pl.col("mme").n_unique())["mme"]

    assert mmes(1).max() == 1
    assert mmes(0).mean() > 1.2


def test_a_network_from_facts_is_reproducible(tmp_path):
    rates = world_facts.FactRates(phones=500, days=5)
    first, same, other = (world_facts.build_fact_world(tmp_path / name, rates, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))  # fmt: skip
    assert record(first).equals(record(same))
    assert (first.truth, first.owners, first.copies, first.hard, first.tacs) == (same.truth, same.owners, same.copies, same.hard, same.tacs)  # fmt: skip
    assert not first.truth.keys() & other.truth.keys()
