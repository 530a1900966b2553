"""Networks for `bench tamper`, each under one assumption: pools, one MME, few checks, old lists of TACs, refurbishers, and others.

A network is a row of ROWS: a record of sightings, and the truth. Physics holds: a body (a phone, a router, a SIM box) is at one place, and
its SIMs are there too. The module shares no code with the analysis and has none of its thresholds. Assumptions:

- People live in regions whose sizes follow Zipf's law, on a map of 800 by 600 km. The time between two regions follows from 100 km/h,
  without checks on the way. One person in seven works in the next region, one in twenty lives at the border of two, and everybody
  travels every forty days. Checks come at random by the hour of the day, a fifth of them in pairs.
- Bodies with several SIMs: people who change SIMs by hand in one slot (once a day to once a week; in one row several times a day), two
  SIMs under one IMEI (registered together, and at times separately), SIMs with several IMSIs, routers that fail over for a while,
  families that lend a phone.
- Phones with a new owner or user: sales, repairs, ported numbers, phones of shops, SIMs of testers, loan phones, refurbishers, a laboratory.
- Copies: 2, 3, 4 to 6, 7 to 20 or more bodies with one IMEI, each with an owner of its own; some are sold in one region; some
  appear later.
- Models: six years of them. The list of TACs lacks two new models, and in one row all models of the last six months.
- SIM boxes of three kinds: ports with one IMEI each and changing SIMs; SIMs with a new IMEI at every second check; SIMs with a new IMEI
  every few days. One IMEI in a share of all phones. Modules of which a whole batch has one IMEI.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eir.sightings.conditions import Tac

from .network_record import CORE, DAY_S, START, World, write_checks

HOURS = np.array([1, 0.5, 0.3, 0.3, 0.5, 1.5, 4, 7, 8, 7, 6, 6, 7, 6, 6, 6, 7, 8, 8, 7, 6, 5, 3, 2], dtype=float)
"""Traffic in each hour of a day."""
COPIES = ((2, 2, 0.26), (3, 3, 0.22), (4, 6, 0.28), (7, 20, 0.20), (21, 40, 0.04))
"""Minimum and maximum number of copies, and share of cloned identities; about six copies on average."""
TRIPS = 4
KMH = 100
MEGA = 35_999_999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One row: the assumptions. Shares are of all subscribers."""

    subscribers: int = 12_000
    days: int = 30
    a_day: float = 5.0
    regions: int = 12
    pool: int = 1
    """Number of MMEs of one region."""
    sticky: bool = True
    """True: a SIM keeps its MME of the pool."""
    standard_names: bool = False
    """True: names of MMEs follow TS 23.003."""
    versions: float = 0.8
    """Share of MMEs that send the software version."""
    jugglers: float = 0.01
    several_imsis: float = 0.005
    double: float = 0.006
    swift: float = 1.0
    """Factor by which people with several SIMs change them sooner than in most networks."""
    routers: float = 0.002
    families: float = 0.02
    handed_on: float = 0.04
    refurbishers: int = 0
    tac_age_days: int = 0
    """Age of the list of TACs."""
    skew_s: float = 20
    """Standard deviation of the MMEs' clocks."""
    missing_days: int = 0
    clones: float = 0.012
    boxes: tuple[int, int, int] = (2, 1, 1)
    """Number of SIM boxes of each kind: ports, an IMEI for two checks, an IMEI for days."""
    mega: float = 0.0
    """Share of subscribers whose phones have one and the same IMEI."""
    batches: int = 0
    """Number of batches of eighty modules with one IMEI."""


ROWS: Mapping[str, Network] = {
    "physics": Network(jugglers=0.02, several_imsis=0.01, double=0.01, routers=0.003),
    "pools, sticky": Network(pool=3),
    "pools, sticky, named": Network(pool=3, standard_names=True),
    "pools, random": Network(pool=3, sticky=False),
    "one MME": Network(regions=1, versions=1, a_day=3.5),
    "one MME, no versions": Network(regions=1, versions=0, a_day=3.5),
    "small operator": Network(regions=1, versions=0, a_day=1.2),
    "old list of TACs": Network(tac_age_days=182),
    "three refurbishers": Network(refurbishers=3),
    "boxes": Network(boxes=(4, 4, 3)),
    "jugglers 3 %, swift, IMSIs 2 %": Network(jugglers=0.03, several_imsis=0.02, swift=2.5),
    "10 checks a day": Network(a_day=10),
    "7 days": Network(days=7),
    "60 days": Network(days=60, subscribers=8000),
    "clocks off, days missing": Network(skew_s=180, missing_days=4),
    "one number in many": Network(mega=0.05, batches=3),
}


@dataclass(slots=True)
class _Stints:
    """Columns of stints: a SIM in a device from one day to another, with its carrier."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(
        self,
        sim: Any,
        device: Any,
        person: Any,
        begin: Any = 0.0,
        end: Any = 1e9,
        *,
        version: Any = 5,
        rate: Any = 1.0,
        attach: Any = False,
        echo: Any = -1.0,
        still: Any = -1,
    ) -> None:
        """`rate`: part of the person's; `echo`: share of the person's own checks that come with one of this SIM; `still`: the region in which the device stays."""
        row = {
            "sim": sim,
            "device": device,
            "person": person,
            "begin": begin,
            "end": end,
            "version": version,
            "rate": rate,
            "attach": attach,
            "echo": echo,
            "still": still,
        }
        size = max(np.size(value) for value in row.values())
        for name, value in row.items():
            self.columns.setdefault(name, []).append(np.broadcast_to(np.asarray(value), (size,)))

    def whole(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}


def make(folder: Path, network: Network, *, seed: int) -> World:  # noqa: C901, PLR0915 - the list of what there is in a network
    """Make a network in a folder."""
    rng = np.random.default_rng([seed, 27])
    days, people = network.days, network.subscribers
    until = START + timedelta(days=days)
    models = 900
    tacs = np.unique(rng.choice([35, 86, 1], models, p=[0.5, 0.45, 0.05]) * 10**6 + rng.integers(0, 9 * 10**5, models))
    rng.shuffle(tacs)
    popular = 1 / np.arange(1, len(tacs) + 1) ** 1.05
    popular /= popular.sum()
    age_days = rng.integers(days + 30, 6 * 365, len(tacs))
    age_days[[8, 500]] = 15  # two models that are just coming out: one that many have, and one that few have
    usual = rng.integers(1, 60, len(tacs))
    usual_of = dict(zip(tacs.tolist(), usual.tolist(), strict=True))
    stock = np.unique(
        tacs[rng.choice(len(tacs), people * 3 + 20_000, p=popular)].astype(np.int64) * 10**6
        + rng.integers(0, 10**6, people * 3 + 20_000)
    )
    rng.shuffle(stock)
    used = sims_made = 0
    stints = _Stints()
    truth: dict[int, tuple[str, int]] = {}
    hard: dict[int, str] = {}

    def fresh(count: int) -> np.ndarray:
        nonlocal used
        used += count
        return stock[used - count : used]

    def sims(count: int) -> np.ndarray:
        nonlocal sims_made
        sims_made += count
        return np.arange(sims_made - count, sims_made)

    def version_of(device: np.ndarray) -> np.ndarray:
        return np.clip(
            np.array([usual_of.get(int(each) // 10**6, 1) for each in device])
            - rng.choice([0, 0, 0, 1, 1, 2], len(device)),
            0,
            98,
        )

    def in_turn(lengths: tuple[float, float], rest: tuple[float, float]) -> np.ndarray:
        """Return the boundaries of turns of two SIMs, whose lengths have two exponential distributions."""
        mean = (np.exp(rng.uniform(*np.log(lengths))), np.exp(rng.uniform(*np.log(rest))))
        count = 2 * int(days / (mean[0] + mean[1]) * 2 + 10)
        edges = np.concatenate([[0], np.cumsum(rng.exponential(np.tile(mean, count // 2)))])
        return np.append(edges[edges < days], days)

    own, person = fresh(people), sims(people)
    version = version_of(own)
    fate = rng.random(people)
    steps = np.cumsum(
        [
            0,
            network.jugglers,
            network.several_imsis,
            network.double,
            network.routers,
            network.families,
            network.handed_on,
        ]
    )
    kinds = (
        "changes SIMs by hand",
        "several IMSIs",
        "two SIMs, one IMEI",
        "a router that fails over",
        "lent in a family",
        "handed on",
    )
    some = {
        kind: np.flatnonzero((fate >= low) & (fate < high))
        for kind, low, high in zip(kinds, steps[:-1], steps[1:], strict=True)
    }
    plain = np.flatnonzero(fate >= steps[-1])
    foreign: list[int] = []
    updated = rng.random(people) < 0.25
    update = rng.uniform(0, days, people)
    for late in (False, True):  # before its firmware was updated, and after
        which = plain[updated[plain]] if late else plain
        stints.add(
            person[which],
            own[which],
            which,
            update[which] if late else 0,
            1e9 if late else np.where(updated[which], update[which], 1e9),
            version=version[which] + late,
        )
    for kind in ("changes SIMs by hand", "several IMSIs", "lent in a family", "a router that fails over"):
        for who in some[kind]:
            others = sims(1 + int(rng.choice(3, p=[0.85, 0.12, 0.03]) if kind != "a router that fails over" else 0))
            if kind == "changes SIMs by hand":
                edges = in_turn((0.8 / network.swift, 8), (0.3 / network.swift, 3))
            elif kind == "several IMSIs":
                edges = in_turn((0.7 / network.swift, 8), (0.7 / network.swift, 8))
                foreign.extend(others.tolist())
            elif kind == "lent in a family":
                edges = in_turn((1, 12), (0.1, 2))
            else:
                edges = in_turn((0.5, 6), (0.01, 0.15))
            mine = np.arange(len(edges) - 1) % 2 == 0
            stints.add(
                np.where(mine, person[who], rng.choice(others, len(mine))),
                own[who],
                who,
                edges[:-1],
                edges[1:],
                version=version[who],
                attach=edges[:-1] > 0,
                rate=1.0,
            )
            hard[int(own[who])] = kind
    both = some["two SIMs, one IMEI"]
    stints.add(person[both], own[both], both, version=version[both])
    stints.add(
        sims(len(both)),
        own[both],
        both,
        version=version[both],
        echo=rng.uniform(0.5, 0.95, len(both)),
        rate=rng.uniform(0, 0.5, len(both)),
    )
    hard.update((int(device), "two SIMs, one IMEI") for device in own[both])
    # Sales, numbers that move, repairs
    moved = some["handed on"]
    how = rng.choice(3, len(moved), p=[0.55, 0.3, 0.15])
    at = rng.uniform(1, days, len(moved))
    stints.add(person[moved], own[moved], moved, 0, at, version=version[moved])
    sold, ported, repaired = (moved[how == number] for number in range(3))
    since = dict(zip(moved.tolist(), at.tolist(), strict=True))
    begin = np.array([since[who] for who in sold])
    stints.add(person[sold], (bought := fresh(len(sold))), sold, begin + 0.02, version=version_of(bought), attach=True)
    stints.add(
        (buyers := sims(len(sold))),
        own[sold],
        buyers,
        begin + 0.05 + rng.exponential(3, len(sold)),
        version=version[sold],
        attach=True,
    )
    begin = np.array([since[who] for who in ported])
    stints.add(sims(len(ported)), own[ported], ported, begin + 0.01, version=version[ported], attach=True)
    begin = np.array([since[who] for who in repaired])
    (shop_sim,) = sims(1)
    stints.add(shop_sim, own[repaired], repaired, begin + 0.1, begin + 0.15, version=version[repaired] + 1, attach=True)
    stints.add(person[repaired], own[repaired], repaired, begin + 0.5, version=version[repaired] + 1, attach=True)
    hard.update((int(own[who]), "handed on") for who in moved)
    # Shops, testers, loan phones
    for _ in range(max(2, people // 8000)):
        (phone,), (tester,) = fresh(1), sims(1)
        count = int(days * rng.integers(3, 9))
        begin, visitors = np.sort(rng.uniform(0, days, count)), rng.choice(plain, count, replace=False)
        stints.add(person[visitors], phone, int(tester), begin, begin + 0.01, version=7, attach=True)
        hard[int(phone)] = "a shop's phone for SIMs"
        begin, visited = np.sort(rng.uniform(0, days, count // 2)), rng.choice(plain, count // 2, replace=False)
        stints.add(tester, own[visited], visited, begin, begin + 0.01, version=version[visited], attach=True)
        hard.update((int(device), "a tester's SIM in it") for device in own[visited])
    for phone in fresh(max(4, people // 3000)):
        edges = np.concatenate([[0], np.cumsum(rng.uniform(0.7, 3.5, 60))])
        edges = edges[edges < days]
        guests = rng.choice(plain, len(edges), replace=False)
        stints.add(person[guests], phone, guests, edges, edges + rng.uniform(0.3, 0.7), version=9, attach=True)
        hard[int(phone)] = "a loan phone handed on"
    # A laboratory: each phone with four SIMs, once each
    lab, cards = fresh(10), sims(4)
    for number, phone in enumerate(lab):
        begin = rng.uniform(0, days - 1) + np.arange(4) * 0.02
        stints.add(cards, phone, int(cards[0]), begin, begin + 0.015, version=3, attach=True)
        hard[int(phone)] = "a laboratory's phone"
        del number
    # Refurbishers: a phone of before, tried with some of six SIMs, and sold to somebody here or elsewhere
    for _ in range(network.refurbishers):
        cards = sims(6)
        for phone in fresh(int(days * rng.integers(5, 12))):
            came = rng.uniform(0, days)
            tried = int(rng.integers(2, 7))
            begin = came + np.sort(rng.uniform(0, rng.choice([0.1, 0.3, 1.2]), tried))
            stints.add(
                rng.choice(cards, tried, replace=tried > 4),
                phone,
                int(cards[0]),
                begin,
                begin + 0.02,
                version=int(version_of(np.array([phone]))[0]),
                attach=True,
                rate=3.0,
            )
            hard[int(phone)] = "a refurbisher's phone"
            before, after = sims(2)
            if rng.random() < 0.4:
                stints.add(before, phone, int(before), 0, came - 2, version=4)
            if rng.random() < 0.6:
                stints.add(after, phone, int(after), came + rng.exponential(3) + 1.3, version=4, attach=True)
    # Tourists, who roam, or take a local SIM after a while
    guests = people // 50
    brought, visitor, arrive = fresh(guests), sims(guests), rng.uniform(-5, days, guests)
    half = rng.random(guests) < 0.5
    stay = arrive + rng.uniform(2, 14, guests)
    foreign.extend(visitor.tolist())
    stints.add(
        visitor,
        brought,
        visitor,
        np.maximum(arrive, 0),
        np.where(half, arrive + 0.3, stay),
        version=version_of(brought),
        attach=True,
    )
    stints.add(
        sims(int(half.sum())),
        brought[half],
        visitor[half],
        np.maximum(arrive[half] + 0.35, 0),
        stay[half],
        version=version_of(brought[half]),
        attach=True,
    )

    # Copies
    regions = network.regions
    x, y = rng.uniform(0, 800, regions), rng.uniform(0, 600, regions)
    km = np.hypot(x[:, None] - x, y[:, None] - y)
    size = 1 / np.arange(1, regions + 1) ** 0.8
    size /= size.sum()
    sold_in: dict[int, int] = {}
    victims = iter(rng.permutation(plain))
    bands = rng.choice(len(COPIES), int(people * network.clones), p=[share for *_, share in COPIES])
    for band in bands:
        low, high, _ = COPIES[band]
        copies = int(rng.integers(low, high + 1))
        genuine = rng.random() < 0.6
        victim = next(victims)
        device = int(own[victim]) if genuine else int(fresh(1)[0])
        who = sims(copies - genuine)
        begin = np.where(rng.random(len(who)) < 0.75, 0, rng.uniform(0, days * 0.6, len(who)))
        end = np.where(rng.random(len(who)) < 0.85, 1e9, rng.uniform(begin + days * 0.25, days + 5))
        theirs = rng.integers(1, 95, len(who)) if rng.random() < 0.5 else np.full(len(who), rng.integers(1, 95))
        stints.add(
            who,
            device,
            who,
            begin,
            end,
            version=np.where(rng.random(len(who)) < 0.6, theirs, version[victim]),
            attach=begin > 0,
        )
        if rng.random() < 0.25:  # all of them from one bazaar, and in its region
            region = int(rng.choice(regions, p=size))
            sold_in.update(dict.fromkeys(who.tolist(), region))
        truth[device] = ("clone", copies)
    # Numbers of no allocated TAC
    some_of = max(8, people // 1500)
    never = (
        rng.choice([12, 35, 77, 86], some_of) * 10**6 + 9 * 10**5 + rng.integers(0, 10**5, some_of)
    ) * 10**6 + rng.integers(0, 10**6, some_of)
    stints.add(
        (who := sims(some_of)),
        never,
        who,
        rng.uniform(0, days * 0.8, some_of),
        version=rng.integers(1, 60, some_of),
        attach=True,
    )
    truth.update((int(device), ("never_allocated", 1)) for device in never)
    # SIM boxes
    ports_boxes, second_check, for_days = network.boxes
    for number in range(ports_boxes):
        cards, room = sims(int(rng.integers(12, 49))), int(rng.choice(regions, p=size))
        ports = fresh(int(rng.integers(8, 33)))
        length = float(rng.choice([0.25, 0.5, 1.0]))
        begin = np.arange(0, days, length)
        for at_port, port in enumerate(ports):
            stints.add(
                cards[rng.integers(0, len(cards), len(begin))],
                port,
                int(cards[0]),
                begin,
                begin + length,
                version=at_port % 3 + 1,
                attach=True,
                still=room,
            )
        truth.update((int(port), ("box, ports", len(cards))) for port in ports)
        del number
    for number in range(second_check + for_days):
        throws = number < second_check
        cards, room = sims(int(rng.integers(4, 13))), int(rng.choice(regions, p=size))
        for card in cards:
            length = float(rng.uniform(1.5, 2.5)) / network.a_day if throws else float(rng.uniform(1.5, 4))
            begin = np.arange(rng.uniform(0, length), days, length)
            numbers = fresh(len(begin))
            stints.add(card, numbers, int(cards[0]), begin, begin + length, version=3, attach=True, still=room)
            truth.update(
                (int(device), ("box, a number for two checks" if throws else "box, a number for days", len(cards)))
                for device in numbers
            )
    # One number in many phones; modules of one number
    if network.mega:
        who = sims(int(people * network.mega))
        stints.add(who, MEGA, who, version=rng.integers(1, 95, len(who)))
        truth[MEGA] = ("one number in many", len(who))
    modules = tacs[-network.batches :] if network.batches else tacs[:0]
    for tac in modules:
        who = sims(80)
        stints.add(who, int(tac) * 10**6 + 4711, who, version=1, rate=0.4, still=rng.choice(regions, 80, p=size))
        hard[int(tac) * 10**6 + 4711] = "a batch of modules"
    zero = sims(6)
    stints.add(zero, 0, zero, version=0)
    truth[0] = ("zero", 6)

    kind_of = dict.fromkeys(modules.tolist(), "Module")
    listed = [
        Tac(tac, (until - timedelta(days=age)).date(), kind_of.get(tac, "Smartphone"))
        for tac, age in zip(tacs.tolist(), age_days.tolist(), strict=True)
        if age >= max(network.tac_age_days, 25)
    ]
    newest: date = (until - timedelta(days=max(network.tac_age_days, 3))).date()
    listed.append(Tac(35899999, newest, "Smartphone"))  # a model just allocated
    rows = _write(
        folder,
        stints.whole(),
        rng,
        network,
        km=km,
        size=size,
        persons=sims_made,
        foreign=foreign,
        sold_in=sold_in,
        seed=seed,
    )
    return World(
        folder=folder, tacs=tuple(listed), since=START, until=until, rows=rows, truth=truth,
        hard={device: what for device, what in hard.items() if device not in truth},
    )  # fmt: skip


def _write(  # noqa: PLR0915 - from who is where to files
    folder: Path,
    what: dict[str, np.ndarray],
    rng: np.random.Generator,
    network: Network,
    *,
    km: np.ndarray,
    size: np.ndarray,
    persons: int,
    foreign: list[int],
    sold_in: Mapping[int, int],
    seed: int,
) -> int:
    days, regions = network.days, network.regions
    begin, end = np.maximum(what["begin"], 0), np.minimum(what["end"], days)
    rate = network.a_day * rng.gamma(4, 0.25, persons)
    home = rng.choice(regions, persons, p=size)
    if sold_in:
        home[list(sold_in)] = list(sold_in.values())
    nearest = (km + np.eye(regions) * 1e9).argmin(axis=1)
    work = np.where(rng.random(persons) < 0.14, nearest[home], home)
    border = rng.random(persons) < 0.05
    cumulated = np.cumsum(HOURS) / HOURS.sum()

    def clock(count: int) -> np.ndarray:
        """Return times of the day, by how busy its hours are."""
        return (np.searchsorted(cumulated, rng.random(count)) + rng.random(count)) / 24

    # Checks: at random while the SIM is in and as it comes, and a fifth of them in twos
    lasts = np.maximum(end - begin, 0)
    count = rng.poisson(rate[what["person"]] * what["rate"] * lasts / 1.2)
    of = np.repeat(np.arange(len(begin)), count)
    time = begin[of] + rng.random(len(of)) * lasts[of]
    long = lasts[of] > 0.5
    time = np.where(long, np.floor(time) + clock(len(of)), time)
    starts = np.flatnonzero(what["attach"] & (begin < days) & (lasts > 0))
    of, time = np.concatenate([of, starts]), np.concatenate([time, begin[starts] + 1e-4])
    twice = np.flatnonzero(rng.random(len(of)) < 0.2)
    of, time = np.concatenate([of, of[twice]]), np.concatenate([time, time[twice] + rng.exponential(0.008, len(twice))])
    kept = (time >= begin[of]) & (time < end[of])
    of, time = of[kept], time[kept]
    second = np.flatnonzero(what["echo"] >= 0)
    partner = np.full(persons, -1)
    partner[what["person"][second]] = second
    first = np.flatnonzero(
        (partner[what["person"][of]] >= 0) & (what["echo"][of] < 0) & (what["sim"][of] == what["person"][of])
    )
    first = first[rng.random(len(first)) < what["echo"][partner[what["person"][of[first]]]]]
    of, time = (
        np.concatenate([of, partner[what["person"][of[first]]]]),
        np.concatenate([time, time[first] + rng.exponential(25, len(first)) / DAY_S + 1e-5]),
    )

    # Where the body is, and who is on the way
    who, part = what["person"][of], time % 1
    place = home[who].copy()
    shift = (who % 37) / 37 / 12
    hop = np.clip(km[home, work] / KMH / 24, 0.01, 0.04)[who]
    commutes = (work[who] != home[who]) & (np.floor(time) % 7 < 5)
    place = np.where(commutes & (part > 0.34 + shift) & (part < 0.68 + shift), work[who], place)
    on_way = commutes & (
        ((part > 0.34 + shift - hop) & (part < 0.34 + shift)) | ((part > 0.68 + shift) & (part < 0.68 + shift + hop))
    )
    flips = ((who * 7919 + np.floor(time * 24).astype(int) * 104_729) % 97 % 2).astype(bool)
    place = np.where(border[who] & flips, nearest[home[who]], place)
    for _ in range(TRIPS):
        leave = np.where(rng.random(persons) < days / 40 / TRIPS, rng.uniform(0, days, persons), 1e9)
        back, away = leave + rng.uniform(0.5, 3, persons), rng.choice(regions, persons, p=size)
        far = np.maximum(km[home, away], km[work, away]) / KMH / 24
        there = (time > leave[who]) & (time < back[who])
        place = np.where(there, away[who], place)
        on_way |= (~there & (time > (leave - far)[who]) & (time < (back + far)[who])) & (far[who] > 0)
    still = what["still"][of]
    place = np.where(still >= 0, still, place)
    kept = ~on_way | (still >= 0)
    if network.missing_days:
        gone = rng.choice(days, network.missing_days, replace=False)
        kept &= ~np.isin(np.floor(time).astype(int), gone)
    of, time, place = of[kept], time[kept], place[kept]
    sim = what["sim"][of]
    mme = place * network.pool + (
        (sim * 2_654_435_761 + place * 40_503) // 65_536 % network.pool
        if network.sticky
        else rng.integers(0, network.pool, len(of))
    )
    origins = regions * network.pool
    time += (rng.normal(0, network.skew_s, origins) / DAY_S)[mme]
    kept = (time >= 0) & (time < days)
    of, time, mme, sim = of[kept], time[kept], mme[kept], sim[kept]

    names = pl.Series(
        [f"00{(number * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03) % 2**64:016x}" for number in range(persons)]
    )
    homes = np.zeros(persons, np.int64)
    homes[foreign] = 1
    hosts = pl.Series([
        f"mmec{number % network.pool + 1:02x}.mmegi{0x8000 + number // network.pool:04x}.mme.epc.mnc001.{CORE}" if network.standard_names else f"mme-{(number * 7 + 3) % 101}.epc.mnc001.{CORE}"
        for number in range(origins)
    ])  # fmt: skip
    silent = np.repeat(rng.random(regions) >= network.versions, network.pool)
    version = np.where(silent[mme], -1, what["version"][of])
    checks = pl.DataFrame({
        "time": (time * DAY_S * 1e6).astype(np.int64), "device": what["device"][of].astype(np.int64), "version": version, "subscriber": names.gather(sim),
        "home": np.where(homes[sim], "310410", "001010"), "origin_host": hosts.gather(mme),
    })  # fmt: skip
    shown = pl.when(pl.col("version") >= 0).then(pl.col("version").cast(pl.String).str.zfill(2))
    return write_checks(folder, checks.with_columns(shown.alias("software_version")))
