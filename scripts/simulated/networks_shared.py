"""Networks of several operators for `bench tamper`: one register serves all, and honest devices have several SIMs for many reasons.

Shares no code with `networks`, except for the form of a simulated network. A body has an area for each hour.
Its SIMs are checked for three causes: the phone is switched on in the morning, the body enters another area, or a timer ends. Each
operator has its own MMEs in each area, so two SIMs of one phone are often checked by two MMEs.

Rates with a source:

- SIMs per person: 1.44 (GSMA Intelligence, 2016). A quarter of phones have two slots, each with an IMEI (OpenSignal, 2015).
- Subscribers per copied IMEI: 6 on average, 5.28 million for 0.88 million (PTA, Pakistan, 2022). Copies are 3 times as frequent here,
  so that a network of 12,000 people has enough of them.

All other rates are guesses: 5 checks a day; one commuter in eight people; 4 % live where two areas meet; a journey every 35 days; 1 %
change SIMs by hand; 0.4 % of phones have one IMEI in both slots; 2 % are lent in a family; 3 % are sold, 1.2 % get a ported number;
0.3 % have a SIM that is used at work only; 0.2 % are phones of drivers in shifts; 0.08 % are phones of market stalls whose
SIMs change several times a day; 2 % are roamers; 15 % use Wi-Fi at home; 4 % are modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from eir.sightings.conditions import Tac

from .network_record import CORE, START, World, write_checks

HOURS_A_DAY = 24
AWAKE = np.array([
    0.2, 0.1, 0.1, 0.1, 0.2, 0.5, 1.5, 1.8, 1.5, 1.2, 1.1, 1.2, 1.3, 1.2, 1.1, 1.2, 1.3, 1.5, 1.6, 1.6, 1.4, 1.1, 0.7, 0.4,
])  # fmt: skip
"""Timers and calls in each hour, as a multiple of the mean."""
MODULES = 12
"""TACs of modules; all others are of phones."""
AT_AREA_CHANGE = 0.8
"""Share of area changes after which a SIM is checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Assumptions about one network. Shares are of all people."""

    people: int = 12_000
    days: int = 30
    a_day: float = 5.0
    operators: int = 3
    areas: int = 10
    reporting: float = 1.0
    """Share of MMEs that send checks to the register."""
    renamed: float = 0.1
    """Share of areas whose MMEs get other names in the month; half of these join those of another area."""
    clock_s: float = 90
    """Standard deviation of the MMEs' clocks."""
    outages: int = 6
    """Times at which one MME sends nothing for some hours."""
    versions: float = 0.75
    copied: float = 0.015
    refurbishers: int = 2
    stalls: float = 0.0008
    fleets: float = 0.002


ROWS: Mapping[str, Shared] = {
    "several operators": Shared(),
    "several operators, half of the MMEs": Shared(reporting=0.5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Market(World):
    """Simulated network with the genuine subscriber of each copied IMEI."""

    owners: dict[int, frozenset[str]]
    """Device → subscribers who hold the genuine phone. It is absent if no phone is genuine."""
    copies: dict[int, frozenset[str]]
    """Device → subscribers who hold copies."""


class _Country:
    """People, phones and SIMs of a network while it is made."""

    def __init__(self, rules: Shared, rng: np.random.Generator) -> None:
        self.rules, self.rng = rules, rng
        self.hours = rules.days * HOURS_A_DAY
        self.weights = rng.dirichlet(np.full(rules.areas, 1.5))
        self.neighbour = rng.permutation(rules.areas)
        self.market_share = rng.dirichlet(np.full(rules.operators, 4))
        self.bodies: list[np.ndarray] = []
        """For each body the area in each hour."""
        self.homes: list[int] = []
        self.sims: list[tuple[int, int, bool]] = []
        """For each SIM its operator, its home network, and whether Wi-Fi is used at home."""
        self.uses: list[tuple[int, int, int, float, float, int, float, bool]] = []
        """Body, SIM, device, begin and end (hours), version, checks a day, checked at the begin."""

    def body(self, *, area: int | None = None, still: bool = False, roving: bool = False) -> int:
        """Add a body and return its number."""
        rng, hours, areas = self.rng, self.hours, self.rules.areas
        home = int(rng.choice(areas, p=self.weights)) if area is None else area
        where = np.full(hours, home, np.int16)
        clock = np.arange(hours) % HOURS_A_DAY
        if roving:
            stay = rng.integers(3, 12, hours // 3 + 1)
            where = np.repeat(rng.choice(areas, len(stay), p=self.weights), stay)[:hours].astype(np.int16)
        elif not still:
            if rng.random() < 0.125:
                leave = int(rng.integers(6, 10))
                weekday = np.arange(hours) // HOURS_A_DAY % 7 < 5
                where[weekday & (clock >= leave) & (clock < leave + int(rng.integers(7, 10)))] = self.neighbour[home]
            if rng.random() < 0.04:
                where[rng.random(hours) < 0.4] = self.neighbour[home]
            for _ in range(rng.poisson(self.rules.days / 35)):
                begin, lasts = int(rng.integers(0, hours)), int(rng.integers(8, 100))
                where[begin : begin + lasts] = rng.choice(areas, p=self.weights)
                where[begin : begin + 2] = where[
                    begin + lasts : begin + lasts + 2
                ] = -1  # on the road, without coverage
        self.bodies.append(where)
        self.homes.append(home)
        return len(self.bodies) - 1

    def sim(self, *, operator: int | None = None, foreign: bool = False) -> int:
        """Add a SIM and return its number."""
        at = int(self.rng.choice(self.rules.operators, p=self.market_share)) if operator is None else operator
        home = at
        if foreign:
            home = 90 + int(self.rng.integers(0, 9))
        elif self.rng.random() < 0.08:
            home = 50 + at  # of an MVNO on this operator's network
        self.sims.append((at, home, self.rng.random() < 0.15))
        return len(self.sims) - 1

    def other_sim(self, sim: int, *, same: float = 0.35) -> int:
        """Add a second SIM of a person: of the same operator for this share of people."""
        return self.sim(operator=self.sims[sim][0] if self.rng.random() < same else None)

    def use(
        self,
        body: int,
        sim: int,
        device: int,
        begin: float = 0,
        end: float = 1e9,
        *,
        version: int = 5,
        rate: float | None = None,
        on: bool = False,
    ) -> None:
        """Put a SIM into a device, which is in a body, from one hour to another."""
        a_day = self.rules.a_day * self.rng.lognormal(-0.15, 0.55) if rate is None else rate
        since, until = max(begin, 0.0), min(end, float(self.hours))
        if until > since:
            self.uses.append((body, sim, device, since, until, version, a_day, on))

    def turns(
        self,
        body: int,
        cards: list[int],
        device: int,
        version: int,
        length: tuple[float, float],
        *,
        rate: float | None = None,
    ) -> None:
        """Put SIMs into one device in turn, each for some hours: at random, but never the same SIM twice in a row."""
        a_day = self.rules.a_day * self.rng.lognormal(0, 0.4) if rate is None else rate
        at, now = 0.0, int(self.rng.integers(0, len(cards)))
        mean = [float(np.exp(self.rng.uniform(*np.log(length)))) for _ in cards]
        while at < self.hours:
            lasts = float(self.rng.gamma(2, mean[now] / 2)) + 0.1
            self.use(body, cards[now], device, at, at + lasts, version=version, rate=a_day, on=True)
            at += lasts + 0.03
            now = (now + 1 + int(self.rng.integers(0, len(cards) - 1))) % len(cards)


def make(folder: Path, rules: Shared, *, seed: int) -> Market:  # noqa: C901, PLR0915 - the list of all that is in a network
    """Make a network in a folder."""
    rng = np.random.default_rng([seed, 41])
    land = _Country(rules, rng)
    hours, people = land.hours, rules.people
    tacs = np.unique(rng.choice([35, 86], 700) * 10**6 + rng.integers(0, 950_000, 700))
    rng.shuffle(tacs)
    fame = rng.pareto(1.1, len(tacs)) + 0.02
    fame[:MODULES] = 0  # no phone is of these
    serial = rng.permutation(10**6)
    firmware = {int(tac): int(rng.integers(1, 70)) for tac in tacs}
    made = 0

    def phone(tac: int | None = None) -> int:
        nonlocal made
        made += 1
        return int(tac if tac is not None else tacs[rng.choice(len(tacs), p=fame / fame.sum())]) * 10**6 + int(
            serial[made]
        )

    def version_of(device: int) -> int:
        return firmware.get(device // 10**6, 5) + int(rng.choice([0, 0, 1, 2]))

    hard: dict[int, str] = {}
    truth: dict[int, tuple[str, int]] = {}
    owner_sims: dict[int, set[int]] = {}
    copy_sims: dict[int, set[int]] = {}
    plain: list[tuple[int, int, int, int]] = []
    kinds = {
        "by hand": 0.01,
        "both slots": 0.004,
        "family": 0.02,
        "sold": 0.03,
        "ported": 0.012,
        "work SIM": 0.003,
        "drivers": rules.fleets,
        "stall": rules.stalls,
        "two slots": 0.2,
    }
    edges = np.cumsum(list(kinds.values()))
    for chance in rng.random(people):
        kind = next((name for name, edge in zip(kinds, edges, strict=True) if chance < edge), "plain")
        device = phone()
        version = version_of(device)
        body, sim = land.body(roving=kind == "drivers", still=kind == "stall"), land.sim()
        if kind == "plain":
            updated = float(rng.uniform(0, hours)) if rng.random() < 0.2 else 1e9
            land.use(body, sim, device, 0, updated, version=version)
            land.use(body, sim, device, updated, version=version + 1)
            plain.append((body, sim, device, version))
            continue
        hard[device] = kind
        if kind == "two slots":  # each slot has an IMEI; some people change SIMs between the slots, or the SIM for data
            second, other = phone(device // 10**6), land.other_sim(sim)
            hard.pop(device)
            cuts = sorted(rng.uniform(0, hours, rng.choice([0, 1, 2, 4], p=[0.86, 0.08, 0.04, 0.02])))
            for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, 1e9], strict=True)):
                first, last = (sim, other) if number % 2 == 0 else (other, sim)
                land.use(body, first, device, begin, end, version=version, on=number > 0)
                land.use(body, last, second, begin, end, version=version, rate=rules.a_day / 2, on=number > 0)
            if cuts:
                hard[device] = hard[second] = "SIMs change slots"
        elif kind == "both slots":
            land.use(body, sim, device, version=version)
            land.use(body, land.other_sim(sim), device, version=version, rate=rules.a_day * float(rng.uniform(0.3, 1)))
        elif kind == "by hand":
            land.turns(
                body, [sim, *(land.other_sim(sim) for _ in range(1 + (rng.random() < 0.15)))], device, version, (6, 150)
            )
        elif kind == "family":
            other, at = land.other_sim(sim, same=0.7), 0.0
            while at < hours:
                mine = float(rng.exponential(24 * float(rng.choice([2, 5, 10])))) + 2
                lent = float(rng.exponential(12)) + 0.5
                land.use(body, sim, device, at, at + mine, version=version, on=at > 0)
                land.use(body, other, device, at + mine + 0.02, at + mine + lent, version=version, on=True)
                at += mine + lent + 0.04
        elif kind in {"sold", "ported"}:
            at = float(rng.uniform(0, hours))
            land.use(body, sim, device, 0, at, version=version)
            if kind == "ported":  # the old SIM goes back in once or twice, for its contacts and messages
                land.use(body, land.other_sim(sim, same=0), device, at + 0.1, version=version, on=True)
                for later in at + rng.uniform(1, 200, rng.integers(0, 3)):
                    land.use(body, sim, device, later, later + 0.4, version=version, on=True)
            else:
                new = phone()
                land.use(body, sim, new, at + 0.5, version=version_of(new), on=True)
                land.use(land.body(), land.sim(), device, at + float(rng.exponential(72)), version=version, on=True)
        elif kind == "work SIM":
            other, edges_of = land.other_sim(sim), [0.0]
            for day in range(rules.days):
                if day % 7 < 5:
                    edges_of += [day * 24 + float(rng.uniform(7.5, 9.5)), day * 24 + float(rng.uniform(16, 19))]
            for number, (begin, end) in enumerate(zip(edges_of, [*edges_of[1:], 1e9], strict=True)):
                land.use(body, other if number % 2 else sim, device, begin, end, version=version, on=number > 0)
        elif kind == "drivers":
            land.turns(
                body,
                [sim, *(land.other_sim(sim, same=0.9) for _ in range(int(rng.integers(1, 4))))],
                device,
                version,
                (9, 14),
            )
        else:  # a stall for mobile money: a SIM of each operator, one phone
            cards = [sim, *(land.other_sim(sim, same=0.1) for _ in range(int(rng.integers(1, 4))))]
            land.turns(body, cards, device, version, (1, 6), rate=rules.a_day * 2)
    for _ in range(people // 50):  # roamers
        arrives, device = float(rng.uniform(-100, hours)), phone()
        body, leaves = land.body(), arrives + float(rng.uniform(48, 340))
        local = arrives + 8 if rng.random() < 0.4 else leaves
        land.use(body, land.sim(foreign=True), device, arrives, local, version=version_of(device), on=True)
        land.use(body, land.sim(), device, local + 0.3, leaves, version=version_of(device), on=True)
    for _ in range(people // 25):  # meters, trackers
        device = phone(int(tacs[rng.integers(0, MODULES)]))
        land.use(land.body(still=True), land.sim(), device, version=1, rate=1.0)
    batch = phone(int(tacs[3]))  # one number in a whole batch of them
    for _ in range(40):
        land.use(land.body(still=True), land.sim(operator=0), batch, version=1, rate=1.0)
    hard[batch] = "a batch of modules"
    for _ in range(rules.refurbishers):
        shop, cards = land.body(still=True), [land.sim() for _ in range(8)]
        for _ in range(int(rules.days * rng.integers(6, 14))):
            device, at = phone(), float(rng.uniform(0, hours))
            version, tested = version_of(device), at
            for card in rng.permutation(cards)[: int(rng.integers(2, 7))]:
                lasts = float(rng.choice([0.3, 3, 14]))
                land.use(shop, int(card), device, tested, tested + lasts, version=version, rate=8.0, on=True)
                tested += lasts + 0.1
            if rng.random() < 0.3:
                land.use(land.body(), land.sim(), device, 0, at - 60, version=version)
            if rng.random() < 0.7:
                land.use(land.body(), land.sim(), device, tested + float(rng.exponential(90)), version=version, on=True)
            hard[device] = "a refurbisher's phone"
    for operator in range(rules.operators):
        van, cards, modems = land.body(roving=True), [land.sim() for _ in range(6)], [phone() for _ in range(6)]
        for at in np.arange(float(rng.uniform(0, 24)), hours, 24):
            for modem, card in zip(modems, rng.permutation(cards), strict=True):
                land.use(van, int(card), modem, at, at + 9, version=2, rate=16.0, on=True)
        hard.update(dict.fromkeys(modems, "a measuring van's modem"))
        lab, cards = land.body(still=True), [land.sim(operator=operator) for _ in range(20)]
        for device in [phone() for _ in range(4)]:
            for at in np.sort(rng.uniform(0, hours, 50)):
                land.use(
                    lab,
                    int(rng.choice(cards)),
                    device,
                    at,
                    at + float(rng.uniform(0.2, 4)),
                    version=int(rng.integers(1, 9)),
                    rate=10.0,
                    on=True,
                )
            hard[device] = "a test laboratory's phone"
    plain_at = iter(rng.permutation(len(plain)))
    for _ in range(max(40, int(people * rules.copied))):  # a lot of phones that got one number
        count = int(min(2 + rng.geometric(0.32) - 1 if rng.random() < 0.7 else rng.integers(5, 30), 60))
        genuine = rng.random() < 0.55
        if genuine:
            _, sim, device, usual = plain[int(next(plain_at))]
            owner_sims[device] = {sim}
        else:
            device, usual = phone(), int(rng.integers(1, 70))
        markets = rng.choice(rules.areas, int(rng.integers(1, 4)), p=land.weights)
        lot = int(rng.integers(1, 90)) if rng.random() < 0.65 else usual
        for _ in range(max(count - genuine, 1)):
            begin = 0.0 if rng.random() < 0.7 else float(rng.uniform(0, hours * 0.7))
            end = 1e9 if rng.random() < 0.85 else begin + float(rng.exponential(300)) + 48
            area = int(rng.choice(markets)) if rng.random() < 0.6 else None
            card = land.sim()
            land.use(land.body(area=area), card, device, begin, end, version=lot, on=begin > 0)
            copy_sims.setdefault(device, set()).add(card)
        truth[device] = ("clone", max(count, 1 + genuine))
    for _ in range(max(6, people // 2000)):
        device = int(rng.choice([11, 36, 79])) * 10**12 + int(rng.integers(0, 10**12))
        land.use(
            land.body(),
            land.sim(),
            device,
            float(rng.uniform(0, hours * 0.8)),
            version=int(rng.integers(1, 90)),
            on=True,
        )
        truth[device] = ("never_allocated", 1)
    for number in range(3):  # SIM boxes: ports with a number each, or SIMs that take a new number after some days
        room, cards = land.body(still=True), [land.sim(operator=0) for _ in range(int(rng.integers(10, 40)))]
        if number < 2:
            ports, length = [phone() for _ in range(int(rng.integers(8, 24)))], float(rng.choice([5, 9, 20]))
            for at in np.arange(0, hours, length):
                for port, card in zip(ports, rng.permutation(cards), strict=False):
                    land.use(room, int(card), port, at, at + length, version=3, rate=7.0, on=True)
            truth.update((port, ("box", len(cards))) for port in ports)
        else:
            for card in cards[:6]:
                for at in np.arange(float(rng.uniform(0, 60)), hours, 70):
                    device = phone()
                    land.use(room, card, device, at, at + 70, version=3, on=True)
                    truth[device] = ("box, a number for days", 6)
    for _ in range(5):
        land.use(land.body(), land.sim(), 0, version=0)
    truth[0] = ("zero", 5)
    names = [
        f"001{(home if home >= 50 else home + 1):02d}{number:010d}" for number, (_, home, _) in enumerate(land.sims)
    ]
    rows = _write(folder, land, names)
    listed = tuple(
        Tac(tac, date(2023, 4, 1), "Module" if place < MODULES else "Smartphone")
        for place, tac in enumerate(tacs.tolist())
    )
    return Market(
        folder=folder, tacs=listed, since=START, until=START + timedelta(days=rules.days), rows=rows, truth=truth,
        hard={device: kind for device, kind in hard.items() if device not in truth},
        owners={device: frozenset(names[sim] for sim in sims) for device, sims in owner_sims.items()},
        copies={device: frozenset(names[sim] for sim in sims) for device, sims in copy_sims.items()},
    )  # fmt: skip


def _write(folder: Path, land: _Country, names: list[str]) -> int:  # noqa: PLR0915 - from uses to files
    """Write the checks of all uses; return their number."""
    rng, rules, hours = land.rng, land.rules, land.hours
    where, homes = np.array(land.bodies), np.array(land.homes)
    body, sim, device = (np.array([use[at] for use in land.uses]) for at in range(3))
    begin, end, rate = (np.array([use[at] for use in land.uses], float) for at in (3, 4, 6))
    version, on = np.array([use[5] for use in land.uses]), np.array([use[7] for use in land.uses])
    lasts = end - begin
    # A timer, by the hours of a day
    timers = np.repeat(np.arange(len(body)), rng.poisson(rate * 0.6 * lasts / HOURS_A_DAY * AWAKE.max() / AWAKE.mean()))
    at = begin[timers] + rng.random(len(timers)) * lasts[timers]
    kept = rng.random(len(at)) * AWAKE.max() < AWAKE[(at % HOURS_A_DAY).astype(int)]
    of, time = [timers[kept]], [at[kept]]
    # Another area, and the morning
    moved = np.zeros_like(where, bool)
    moved[:, 1:] = (where[:, 1:] != where[:, :-1]) & (where[:, 1:] >= 0)
    by_body: dict[int, np.ndarray] = {
        int(number): np.flatnonzero(moved[number]) for number in np.flatnonzero(moved.any(axis=1))
    }
    for number, carrier in enumerate(body.tolist()):
        changes = by_body.get(carrier)
        if changes is not None:
            mine = changes[
                (changes >= begin[number]) & (changes < end[number] - 1) & (rng.random(len(changes)) < AT_AREA_CHANGE)
            ]
            of.append(np.full(len(mine), number))
            time.append(mine + rng.random(len(mine)) * 0.2)
    mornings = np.repeat(np.arange(len(body)), rng.poisson(np.minimum(rate, 8) * 0.15 * lasts / HOURS_A_DAY))
    at = (
        np.floor((begin[mornings] + rng.random(len(mornings)) * lasts[mornings]) / HOURS_A_DAY) * HOURS_A_DAY
        + 6
        + rng.gamma(3, 0.4, len(mornings))
    )
    kept = (at >= begin[mornings]) & (at < end[mornings])
    of.append(mornings[kept])
    time.append(at[kept])
    started = np.flatnonzero(on)
    of.append(started)
    time.append(begin[started] + 0.01)
    which, when = np.concatenate(of), np.concatenate(time)
    kept = when < hours
    which, when = which[kept], when[kept]
    area = where[body[which], when.astype(int)].astype(int)
    kept = area >= 0
    which, when, area = which[kept], when[kept], area[kept]
    # The MME of the operator in this area
    card = sim[which]
    operator = np.array([each[0] for each in land.sims])[card]
    pool = rng.integers(1, 4, rules.operators)
    sticky, named = rng.random(rules.operators) < 0.6, rng.random(rules.operators) < 0.5
    visits = np.cumsum(moved, axis=1)[
        body[which], when.astype(int)
    ]  # a SIM keeps its MME of a pool until it enters the area again
    kept_one = (card * 2_654_435_761 + visits * 40_503) // 65_536 % pool[operator]
    one = np.where(sticky[operator], kept_one, rng.integers(0, 6, len(card)) % pool[operator])
    wifi = (
        np.array([each[2] for each in land.sims])[card] & (area == homes[body[which]]) & (rng.random(len(card)) < 0.4)
    )
    one = np.where(wifi, 9, one)
    renamed_at = rng.uniform(0.2, 0.8) * hours
    changed = np.flatnonzero(rng.random(rules.areas) < rules.renamed)
    into = {
        int(area_of): int(rng.integers(0, rules.areas)) if place % 2 else int(area_of) + 50
        for place, area_of in enumerate(changed)
    }
    after = np.array([into.get(number, number) for number in range(rules.areas)])
    area = np.where(when >= renamed_at, after[area], area)
    area = np.where(wifi, 0, area)
    code = (operator * 100 + area) * 10 + one
    codes = np.unique(code)
    silent, unheard = rng.random(len(codes)) >= rules.versions, rng.random(len(codes)) >= rules.reporting
    if unheard.all():
        unheard[0] = False
    place = np.searchsorted(codes, code)
    kept = ~unheard[place]
    for _ in range(rules.outages):
        quiet, since = int(rng.integers(0, len(codes))), float(rng.uniform(0, hours))
        kept &= ~((place == quiet) & (when >= since) & (when < since + float(rng.uniform(2, 30))))
    when = when + (rng.normal(0, rules.clock_s, len(codes)) / 3600)[place]
    kept &= (when >= 0) & (when < hours)
    which, when, place, card = which[kept], when[kept], place[kept], card[kept]

    def host(number: int) -> str:
        operator_of, rest = divmod(number, 1000)
        area_of, mme = divmod(rest, 10)
        realm = f"epc.mnc{operator_of + 1:03d}.{CORE}"
        if mme == 9:
            return f"aaa.{realm}"
        return (
            f"mmec{mme:02x}.mmegi{0x8000 + area_of:04x}.mme.{realm}"
            if named[operator_of]
            else f"node{(area_of * 13 + mme * 5) % 997}.{realm}"
        )

    hosts = pl.Series([host(int(number)) for number in codes])
    checks = pl.DataFrame({
        "time": (when * 3600e6).astype(np.int64), "device": device[which].astype(np.int64), "version": np.where(silent[place], -1, version[which]),
        "subscriber": pl.Series(names).gather(card), "origin_host": hosts.gather(place),
    })  # fmt: skip
    shown = pl.when(pl.col("version") >= 0).then((pl.col("version") % 99).cast(pl.String).str.zfill(2))
    home = pl.col("subscriber").str.slice(0, 6)
    return write_checks(folder, checks.with_columns(shown.alias("software_version"), home.alias("home")))
