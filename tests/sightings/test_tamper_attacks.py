"""What one peer sends of others' devices gets no honest one reported, and no tampered one overlooked (scripts/benchmark/attacks.py)."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tampered import files

from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge, liars

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
try:
    from benchmark import attacks, networks
finally:
    sys.path.pop(0)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with many clones, its record, and what is found in it."""
    made = networks.make(
        tmp_path_factory.mktemp("network"),
        networks.Network(subscribers=1000, days=20, clones=0.08, regions=5, a_day=4),
        seed=3,
    )
    return made, attacks.record(made), judged(made)


def judged(made):
    settings = TamperSettings()
    with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory, threads=1) as engine:
        return judge(engine, settings, since=made.since, until=made.until, tacs=made.tacs)


def after(made, rows):
    """What is found once a peer has sent these rows."""
    planted = attacks.plant(made, rows)
    try:
        return judged(made)
    finally:
        planted.unlink()


@pytest.mark.parametrize(
    ("attack", "count"),
    [*((attack, attacks.VICTIMS) for attack in attacks.PLANTED), ("a second phone", 4), ("SIMs that go round", 4)],
)
def test_no_victim_of_one_peer_is_reported(network, attack, count):
    made, checks, before = network
    chosen = attacks.victims(made, checks, 1, count)
    rows = attacks.PLANTED[attack](checks, chosen, np.random.default_rng(2))
    assert count <= len(rows) <= count * attacks.REQUESTS
    found = after(made, rows)
    assert not {finding.device for finding in found.findings} & set(chosen)
    assert set(found.left_out) <= {attacks.PEER}
    assert lost(made, before, found) < 0.02


@pytest.mark.parametrize("attack", attacks.BLINDING)
def test_one_peer_blinds_nothing(network, attack):
    made, checks, before = network
    rows = attacks.BLINDING[attack](checks, attacks.clones(made), np.random.default_rng(2))
    found = after(made, rows)
    assert set(found.left_out) <= {attacks.PEER}
    assert lost(made, before, found) < 0.02


def lost(made, before, found):
    """Share of the tampered devices that are reported no more."""
    tampered = made.truth.keys() & {finding.device for finding in before.findings}
    assert len(tampered) > 100
    return len(tampered - {finding.device for finding in found.findings}) / len(tampered)


def test_who_sends_these_checks_beside_others_is_believed(network):
    made, checks, _ = network
    rows = attacks.second_phone(checks, attacks.victims(made, checks, 1, 4), np.random.default_rng(2))
    others = [
        {"time": time, "device": 35_000_000_000_000 + number, "subscriber": f"guest{number}"}
        for number in range(60) for time in checks["time"][:: len(checks) // 20].to_list()
    ]  # fmt: skip
    assert (
        after(made, rows + others).left_out == ()
    )  # a peer with subscribers of its own: that a copy lives there is told by it alone


SENT = {"large": 1_000_000, "small": 1000}


@pytest.mark.parametrize(
    ("alone", "left_out"),
    [
        ([(device, "small", 20, 1) for device in range(10)], ["small"]),  # a fifth of what it sends
        ([(device, "small", 19, 1) for device in range(10)], []),
        ([(device, "large", 100_000, 1) for device in range(10)], []),  # there is nobody else who sends as much
        # a dozen devices, far more for its checks than others, and by a twentieth of these
        ([(device, "small", 5, 1) for device in range(12)], ["small"]),
        ([(device, "small", 5, 1) for device in range(11)], []),
        ([(device, "small", 4, 1) for device in range(12)], []),
        ([(device, "small", 5, 0) for device in range(12)], []),  # a box's numbers are many
        (
            [(device, peer, 20, 1) for device in range(200) for peer in ("small", "large")],
            ["small"],
        ),  # of the same devices
    ],
)
def test_thresholds_of_what_is_not_believed(alone, left_out):
    assert liars(alone, SENT) == left_out


def test_one_peer_s_word_is_all_there_is():
    assert liars([(device, "large", 100, 1) for device in range(100)], {"large": 1000}) == []
