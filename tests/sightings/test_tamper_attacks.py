"""Peers that lie about others' devices get no honest one reported, and no tampered one overlooked (scripts/simulated/attacks.py)."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from simulated import attacks, networks
from tampered import files

from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge
from eir.sightings.trust import find_distrusted


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with many clones, its record, and what is found in it."""
    made = networks.make(
        tmp_path_factory.mktemp("network"),
        networks.Network(subscribers=1000, days=20, clones=0.08, regions=5, a_day=4),
        seed=3,
    )
    return made, attacks.record(made), judged(made)


def judged(made, *, keep_users=False):
    settings = TamperSettings()
    with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory, threads=1) as engine:
        return judge(engine, settings, since=made.since, until=made.until, tacs=made.tacs, keep_users=keep_users)


def after(made, rows, *, keep_users=False):
    """What is found once a peer has sent these rows."""
    planted = attacks.plant(made, rows)
    try:
        return judged(made, keep_users=keep_users)
    finally:
        planted.unlink()


@pytest.mark.long(short=["a second phone-4"])
@pytest.mark.parametrize(
    ("attack", "count"),
    [*((attack, attacks.VICTIMS) for attack in attacks.PLANTED), ("a second phone", 4), ("SIMs that go round", 4)],
)
def test_no_victim_is_reported(network, attack, count):
    made, checks, before = network
    chosen = attacks.victims(made, checks, 1, count)
    rows = attacks.PLANTED[attack](checks, chosen, np.random.default_rng(2))
    assert count <= len(rows)
    found = after(made, rows)
    assert not {finding.device for finding in found.findings} & set(chosen)
    assert set(found.left_out) <= {attacks.PEER, attacks.ACCOMPLICE}
    assert lost(made, before, found) < 0.02


def test_an_mme_behind_two_agents_has_no_victims(network, tmp_path):
    """The agents send everybody's checks: it is the MME that is not trusted."""
    made, checks, before = network
    agents = attacks.behind_agents(made, tmp_path)
    assert judged(agents).left_out == ()
    chosen = attacks.victims(made, checks, 1)
    found = after(agents, attacks.by_agents(checks, chosen, np.random.default_rng(2)))
    assert not {finding.device for finding in found.findings} & set(chosen)
    assert found.left_out == (attacks.PEER,)
    assert lost(made, before, found) < 0.02


def test_what_rests_on_distrusted_peers_is_listed_apart(network):
    made, checks, _ = network
    chosen = attacks.victims(made, checks, 1)
    found = after(made, attacks.colluding(checks, chosen, np.random.default_rng(2)))
    liars = (attacks.ACCOMPLICE, attacks.PEER)
    assert found.left_out == liars
    assert {finding.device for finding in found.doubted} & set(chosen)
    assert all(finding.distrusted == liars and finding.evidence for finding in found.doubted)
    assert not {finding.device for finding in found.doubted} & {finding.device for finding in found.findings}


def test_a_rival_with_the_owner_s_number_has_no_owner_blocked(network):
    made, checks, _ = network
    early = checks.filter(pl.col("time") < made.since + timedelta(days=3))["device"].unique()
    chosen = [device for device in attacks.victims(made, checks, 1, 60) if device in early]
    owners = dict(checks.filter(pl.col("device").is_in(chosen)).select("device", "subscriber").unique().iter_rows())
    for days in (10, 20):
        rows = attacks.rival(checks, chosen, np.random.default_rng(2), days=days)
        found = {each.device: each for each in after(made, rows, keep_users=True).findings if each.device in owners}
        assert found
        assert not {owners[device] for device in found} & {who for each in found.values() for who in each.users}


@pytest.mark.long(short=["a peer is discredited"])
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


def ordinary(reporters, phones):
    return [reporters] * phones


CITY = [*ordinary(["city", "town"], 100), *ordinary(["city", "port"], 300)]
"""Ordinary phones, by whose checks came by which MMEs."""


@pytest.mark.parametrize(
    ("reports", "carried", "found"),
    [
        # A peer that carries no phone that anybody else sees
        ([(1, "own", "city"), (1, "invented", "liar")], CITY, {"liar"}),
        ([(1, "own", "city"), (1, "invented", "liar")], [*CITY, *ordinary(["liar"], 90)], {"liar"}),
        # One that carries two such phones for each victim is an MME
        ([(1, "own", "city"), (1, "copy", "hamlet")], [*CITY, *ordinary(["hamlet", "city"], 2)], set()),
        ([(1, "own", "city"), (1, "copy", "hamlet")], [*CITY, *ordinary(["hamlet", "city"], 1)], {"hamlet"}),
        # A small operator, whose phones nobody else sees
        ([(1, "own", "city"), (1, "copy", "hamlet")], [*CITY, *ordinary(["hamlet"], 100)], set()),
        ([(1, "own", "city"), (1, "copy", "hamlet")], [*CITY, *ordinary(["hamlet"], 99)], {"hamlet"}),
        # A town with many copies
        ([row for device in range(46) for row in ((device, "own", "city"), (device, "copy", "town"))], CITY, set()),
        # All of a device's subscribers come by the same one: nobody else's device is concerned
        ([(1, "a", "liar"), (1, "b", "liar")], CITY, set()),
        # Two that vouch for one SIM, and for each other's phones
        ([(1, "own", "city"), (1, "x", "liar"), (1, "x", "second")], [*CITY, *ordinary(["liar", "second"], 99)], {"liar", "second"}),
        ([(1, "own", "city"), (1, "x", "liar")], [*CITY, *ordinary(["liar", "second"], 99)], {"liar", "second"}),
        # A liar that is after an MME's phones discredits itself
        ([row for device in range(80) for row in ((device, "own", "town"), (device, "x", "liar"))], CITY, {"liar"}),
    ],
)  # fmt: skip
def test_who_is_distrusted(reports, carried, found):
    sent = {"city": 10_000, "town": 2000, "port": 3000, "hamlet": 20, "liar": 600, "second": 600}
    assert find_distrusted(reports, carried, share=1, sent=sent) == found


def test_who_sends_a_tenth_of_all_checks_is_believed():
    reports = [row for device in range(9) for row in ((device, "own", "small"), (device, "copy", "large"))]
    assert find_distrusted(reports, [], share=1, sent={"large": 10_000, "small": 1000}) == {"small"}
    assert find_distrusted(reports, [], share=1, sent={"large": 10_000, "small": 1200}) == set()


def test_a_sample_of_ordinary_phones_counts_for_all():
    reports = [row for device in range(10) for row in ((device, "own", "city"), (device, "copy", "town"))]
    few = [*ordinary(["city", "town"], 5), *ordinary(["city", "port"], 30)]
    sent = {"city": 1000, "town": 100, "port": 100}
    assert find_distrusted(reports, few, share=1, sent=sent) == {"town"}
    assert find_distrusted(reports, few, share=4, sent=sent) == set()
