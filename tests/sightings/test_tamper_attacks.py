"""Peers that lie about others' devices get no honest one reported, and no tampered one missed (scripts/simulated/attacks.py).

All attacks are in one network, each with peers and victims of its own, which is judged once without and once with them.
"""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from simulated import attacks, networks
from tampered import files

from eir.sightings.conditions import Tac, TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge

VICTIMS = 25
MODULE = 98765432
"""TAC of modules, whose identifiers a counterfeiter copies."""
PLANTED = attacks.PLANTED | {"an MME behind two agents": attacks.by_agents}


def judged(made):
    settings = TamperSettings()
    with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory, threads=1) as engine:
        tacs = [*made.tacs, Tac(MODULE, None, "IoT Module")]
        return judge(engine, settings, since=made.since, until=made.until, tacs=tacs)


def own_peers(rows, number):
    """Rows of an attack with peers and an operator of its own. Peers and origins that are not the attack's stay."""
    liars = {attacks.PEER, attacks.ACCOMPLICE}
    made = []
    for row in rows:
        names = {"origin_host": attacks.PEER, "peer": attacks.PEER} | {
            name: row[name] for name in ("origin_host", "peer") if name in row
        }
        made.append(row | {"origin_realm": f"realm{number}"} | {name: f"{host}{number}" if host in liars or host.startswith("accomplice") else host for name, host in names.items()})  # fmt: skip
    return made


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with many clones behind two agents and its findings, victims of each attack, and the findings after all attacks."""
    rules = networks.Network(subscribers=9000, days=20, clones=0.015, regions=8, a_day=4)
    made = networks.make(tmp_path_factory.mktemp("network"), rules, seed=3)
    made = attacks.behind_agents(made, tmp_path_factory.mktemp("agents"))
    small = networks.make(tmp_path_factory.mktemp("small"), networks.Network(subscribers=400, days=20, a_day=2, clones=0.06, regions=2, routers=0.01, double=0.02, several_imsis=0.02, boxes=(1, 1, 1)), seed=4)  # fmt: skip
    name = pl.concat_str(pl.lit("small."), "origin_host")
    own = attacks.record(small).with_columns(origin_host=name, peer=name, origin_realm=pl.lit("small.example"))
    own.write_parquet(next(made.folder.glob("sightings/*")) / "00-8-small.parquet")
    made = replace(made, tacs=(*made.tacs, *small.tacs))
    before = judged(made)
    checks = attacks.record(made).filter(pl.col("origin_realm") != "small.example")
    rng = np.random.default_rng(2)
    chosen = iter(attacks.victims(made, checks, 1, VICTIMS * (len(PLANTED) + 2)))
    rows, victims = [], {}
    for number, (name, attack) in enumerate(PLANTED.items()):
        victims[name] = [next(chosen) for _ in range(VICTIMS)]
        rows += own_peers(attack(checks, victims[name], rng), number)
    few = [next(chosen) for _ in range(4)]
    victims["a second phone, four victims"] = few
    rows += own_peers(attacks.second_phone(checks, few, rng), "few")
    rivals = [next(chosen) for _ in range(VICTIMS)]
    least = checks.group_by("origin_host").len().sort("len")["origin_host"][0]
    rows += [row | {"origin_host": least, "peer": attacks.AGENTS[0]} for row in attacks.rival(checks, rivals, rng, days=30)]  # fmt: skip
    for name, attack in attacks.BLINDING.items():
        rows += own_peers(attack(checks, attacks.clones(made), rng), name)
    copied = [MODULE * 10**6 + number for number in range(20)]
    real = checks["origin_host"].unique().sort().to_list()
    rows += [
        {"time": checks["time"].min() + timedelta(hours=24 * day + 2 * copy), "device": device, "subscriber": f"copy{copy}of{device}", "origin_host": real[copy % len(real)], "peer": attacks.AGENTS[0]}
        for device in copied for copy in range(10) for day in range(12)
    ]  # fmt: skip
    attacks.plant(made, rows)
    clones = {device for device, (kind, _) in small.truth.items() if kind == "clone"}
    return made, before, victims, judged(made), rivals, least, copied, clones


def reported(found):
    return {finding.device for finding in found.findings}


@pytest.mark.parametrize("attack", [*PLANTED, "a second phone, four victims"])
def test_no_victim_is_reported(network, attack):
    _, _, victims, found, *_ = network
    assert not reported(found) & set(victims[attack])


def test_no_tampered_device_is_missed(network):
    made, before, _, found, *_ = network
    tampered = made.truth.keys() & reported(before)
    assert len(tampered) > 100
    assert len(tampered - reported(found)) <= 0.02 * len(tampered)
    assert before.left_out == ()


def test_liars_alone_are_left_out(network):
    _, _, _, found, *_ = network
    real = {name for name in found.left_out if not name.startswith(("liar", "accomplice"))}
    assert real == set()
    assert {f"{attacks.PEER}{[*PLANTED].index(name)}" for name in ("two colluding peers", "six colluding peers", "invented phones", "an MME behind two agents")} <= {*found.left_out}  # fmt: skip


def test_a_small_operator_with_peers_of_its_own_keeps_its_findings(network):
    _, before, _, found, *_, clones = network
    assert len(clones & reported(before)) > 12
    assert clones & reported(before) == clones & reported(found)


def test_rivals_at_a_small_mme_are_found(network):
    _, _, _, found, rivals, small, *_ = network
    assert small not in found.left_out
    assert len(reported(found) & set(rivals)) >= 0.9 * len(rivals)


def test_copies_under_a_module_s_tac_are_a_list_of_their_own(network):
    _, before, _, found, _, _, copied, _ = network
    assert {int(imei) for imei, sims in found.batches if sims == 10} == set(copied)
    assert before.batches == ()
