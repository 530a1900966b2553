"""Network for `bench tamper` that is made from facts of the field: several operators, one register, and causes for each check.

Shares no code with the other generators, except for the form of a simulated network. Nothing is fitted to it. A physical phone (body)
is carried by one person at a time, and is where that person is. Each MME belongs to a pool of its operator; a pool serves some areas.

Rates with a source:

- SIMs per person: 1.44 (GSMA Intelligence, 2016), from second slots in use (65 % of phones with two slots) and second phones (5 %).
- Phones with two slots: 25 % of all (OpenSignal, 2015); 98 % in India, 77 % in Indonesia, 29 % in the UK, 4 % in the USA (IDC, 2018).
  60 % here. Each slot usually has its own IMEI.
- A phone is replaced after 43 months (Strategy Analytics, 2020). Two thirds get a second life, 23 % in the family (Gartner, 2015).
- Copied IMEIs: 0.5 % of IMEIs, 6.0 subscribers each on average (PTA, Pakistan, 2022: 0.88 million on 5.28 million numbers).
- Forms of an IMEI, requests without a software version, checks at attach or also at TAU: as known clients differ. A list of TACs lags
  behind new models (DIRBS waits for 20 to 69 days). The periodic timer T3412 is 54 minutes (TS 24.301 10.2).
- A batch of modules can have one IMEI (Bangladesh, 2026).

All other rates are guesses. People: 12 % commute, 4 % live where two areas meet, 1 % drive all day, a journey every 35 days (one in ten
abroad), 25 % switch the phone off at night, 3 % are roamers, of whom one in five buys a local SIM. In 30 days: `MONTHLY`. Phones: 15 %
of models are cheap; one IMEI is in both slots of 20 % of the cheap models with two slots; 4 % of devices are modules, one batch in
10,000 devices. Firmware: a model has a release every 30 to 120 days, or none (20 %); a phone installs it 4 to 90 days later on average,
by model; 15 % of phones never do. Copies: `SIZES`; the original is in use in 60 %; 40 % have the firmware of the original's model; half
of a number's copies are sold in one area; 30 % begin and 20 % end within the record. Stolen phones: 0.1 % have the IMEI of a living phone.

Without: identifiers that are no IMEI, TACs that were never allocated, Wi-Fi calling, outages and clocks of MMEs (see `world`,
`networks_shared`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from eir.sightings.conditions import Tac

from .network_record import CORE, START, write_checks
from .networks_shared import Market

Ids = np.ndarray
REPLACED = 1 / 43
MONTHLY = {
    "replaced": REPLACED * 0.33, "sold": REPLACED * 0.35, "refurbished": REPLACED * 0.09, "handed down": REPLACED * 0.23, "new contract": 0.012, "ported": 0.01, "travel SIM": 0.01, "SIMs change slots": 0.01,
    "repaired, another board": 0.003, "repaired, IMEI moved": 0.0005, "lent": 0.02, "shared": 0.005, "drivers in shifts": 0.002, "stolen": 0.001,
}  # fmt: skip
"""Event of an honest phone → share of phones in 30 days. Each phone has at most one."""
AT_HOME = {"handed down", "lent", "shared", "drivers in shifts"}
"""Events in which people of one home hand over a phone."""
SIZES = ((2, 2, 0.35), (3, 3, 0.2), (4, 6, 0.25), (7, 24, 0.18), (25, 60, 0.02))
"""Minimum and maximum number of devices with a copied IMEI, and share of the copied IMEIs: 6 devices on average."""
RESIDENT, SETTLED, FIXED, VEHICLE, DRIVER = range(5)
"""Kinds of carriers. Settled people make no journeys; a fixed carrier is a place; a vehicle is at its depot at the ends of shifts."""
ABROAD = 255
COLUMNS, MODULES, SECOND_USE, ABSENT_TACS, TIMER_H = 6, 8, 0.4, 100, 0.9
ATTACH, MOVE, TIMER, PAUSE = range(4)
"""Causes of a check: attach, another area, the periodic timer, a call or data after a pause."""
ACTIVITY = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 9, 9, 9, 10, 9, 8, 8, 9, 10, 10, 9, 8, 7, 5, 3], float)
"""Calls and data in each hour of a day."""
CHUNK_ROWS = 1_500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FactRates:
    """Options of a network that is made from facts."""

    phones: int = 12_000
    """Number of honest devices, modules included; owners of replaced phones and roamers are added."""
    days: int = 30
    checks: float = 3.0
    """Checks per phone and day; it stands for the network's settings. From about 1 on."""
    operators: int = 4
    areas: int = 24
    pool_areas: int = 4
    pool_mmes: int = 3
    sticky: float = 0.5
    """Share of operators with whom a SIM has one MME in a pool; with the others each attach can choose another MME."""
    versions: float = 0.8
    """Share of pools whose MMEs send the software version."""
    two_slots: float = 0.6
    copied: float = 0.005
    boxes: int = 2
    refurbishers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FactWorld(Market):
    """Simulated network with the phones behind its honest devices."""

    slots: dict[int, int]
    """IMEI of slot 1 → IMEI of slot 2, of honest phones with two slots; equal if both slots have one IMEI."""


class _People:
    """Carriers, SIMs, bodies and their uses while a network is made."""

    def __init__(self, rates: FactRates, rng: np.random.Generator) -> None:
        self.rates, self.rng, self.hours = rates, rng, rates.days * 24
        self.weights = rng.permutation(1 / np.arange(2, rates.areas + 2))
        self.weights /= self.weights.sum()
        self.market = rng.dirichlet(np.full(rates.operators, 6))
        self.home: list[int] = []
        self.manner: list[int] = []
        self.operator: list[int] = []
        self.foreign: list[bool] = []
        self.model: list[int] = []
        """Model of each body, by its firmware."""
        self.genuine: list[bool] = []
        self.uses: list[tuple[int, int, int, int, float, float, float]] = []
        """Body, SIM, device, carrier, begin and end in hours, weight of its traffic."""
        count = int(np.clip(rates.phones // 60, 240, 1500))
        number = np.arange(count)
        self.module = number >= count - MODULES
        self.popular = np.where(self.module, 0, 1 / (number + 5))
        self.popular /= self.popular.sum()
        self.tac = rng.choice((35, 86), count) * 10**6 + rng.choice(500_000, count, replace=False)
        self.other_tac = np.where(rng.random(count) < 0.5, self.tac + 500_000, self.tac)
        # Shares are the same among popular and rare models
        self.two = (number * (5**0.5 - 1) / 2 % 1 < rates.two_slots) & ~self.module
        cheap = self.two & ((number * 2**0.5 + 0.4) % 1 < 0.15)
        self.one = cheap & (np.cumsum(cheap) % 5 == 2)
        self.period = np.where(self.module | (rng.random(count) < 0.2), np.inf, rng.choice((30, 60, 90, 120), count))
        self.released, self.lag = rng.uniform(0, 120, count), np.exp(rng.uniform(np.log(4), np.log(90), count))
        self.issued, self.variants = np.zeros(count, int), rng.choice((1, 2, 4, 6), count)
        self.waiting: list[tuple[float, tuple[int, int, int]]] = []
        """Hour from which a refurbisher has a phone, and the phone."""

    def add_people(self, count: int, manner: int = RESIDENT, home: int | None = None) -> Ids:
        first = len(self.home)
        self.home.extend([home] * count if home is not None else self.rng.choice(self.rates.areas, count, p=self.weights).tolist())  # fmt: skip
        self.manner.extend([manner] * count)
        return np.arange(first, first + count)

    def add_sims(self, count: int, *, operator: int | None = None, foreign: bool = False) -> Ids:
        first = len(self.operator)
        self.operator.extend([operator] * count if operator is not None else self.rng.choice(self.rates.operators, count, p=self.market).tolist())  # fmt: skip
        self.foreign.extend([foreign] * count)
        return np.arange(first, first + count)

    def add_bodies(self, models: Sequence[int] | Ids, *, genuine: bool = True) -> Ids:
        first = len(self.model)
        self.model.extend(np.asarray(models).tolist())
        self.genuine.extend([genuine] * len(models))
        return np.arange(first, first + len(models))

    def draw_models(self, count: int) -> Ids:
        return self.rng.choice(len(self.popular), count, p=self.popular)

    def issue(self, models: Ids) -> tuple[Ids, Ids]:
        """Return new IMEIs of slot 1 and of slot 2 (-1 if there is no second slot). Ten phones of a carton have consecutive serial numbers."""
        order = np.argsort(models, kind="stable")
        rank = np.empty(len(models), int)
        rank[order] = np.arange(len(models)) - np.searchsorted(models[order], models[order])
        number = self.issued[models] + rank
        np.add.at(self.issued, models, 1)
        serial = 2 * ((number // 10 * 7919 + models * 131) % 50_000 * 10 + number % 10)
        first, other = self.tac[models] * 10**6 + serial, self.other_tac[models]
        second = other * 10**6 + serial + (other == self.tac[models])
        return first, np.where(self.one[models], first, np.where(self.two[models], second, -1))

    def use(self, phone: Sequence[int], sims: Sequence[int], carrier: int, begin: float, end: float) -> None:
        """Add the use of a phone (body, IMEI of each slot) by a carrier with a SIM in each slot (-1: no SIM)."""
        end = min(end, self.hours)
        for slot, sim in enumerate(sims):
            if sim >= 0 and phone[1 + slot] >= 0 and begin < end:
                self.uses.append((phone[0], sim, phone[1 + slot], carrier, begin, end, SECOND_USE if slot else 1.0))

    def new_phone(self, model: int | None = None) -> tuple[int, int, int]:
        models = self.draw_models(1) if model is None else np.array([model])
        first, second = self.issue(models)
        return int(self.add_bodies(models)[0]), int(first[0]), int(second[0])


def _phones(land: _People, hard: dict[int, str]) -> tuple[list[tuple[int, int, int]], Ids]:
    """Add the honest phones with their events; return the phones, and which of them have no event."""
    rates, rng = land.rates, land.rng
    count = round(rates.phones * 0.96)
    owners = land.add_people(round(count / 1.05))
    carrier = np.concatenate([owners, rng.choice(owners, count - len(owners), replace=False)])
    models = land.draw_models(count)
    first, second = land.issue(models)
    body, main = land.add_bodies(models), land.add_sims(count)
    other = np.where((second >= 0) & (rng.random(count) < 0.65), land.add_sims(count), -1)
    shares = np.array([*MONTHLY.values()]) * rates.days / 30
    event = rng.choice(len(shares) + 1, count, p=[*shares, 1 - shares.sum()])
    event[np.isin(carrier, carrier[len(owners) :])] = len(shares)  # people with two phones have no event
    plain = event == len(shares)
    plain |= (event == list(MONTHLY).index("SIMs change slots")) & ((other < 0) | (first == second))
    columns = [each.tolist() for each in (body, first, second, main, other, carrier)]
    names = [*MONTHLY]
    for place, (phone_body, one, two, sim, sim_two, who) in enumerate(zip(*columns, strict=True)):
        phone, sims = (phone_body, one, two), (sim, sim_two)
        if plain[place]:
            land.use(phone, sims, who, 0, land.hours)
            if one == two and sim_two >= 0:
                hard[one] = "one IMEI in both slots"
        else:
            name = names[event[place]]
            for number in {one, two} - {-1} if sim_two >= 0 else {one}:
                hard[number] = name
            if name in AT_HOME:
                land.manner[who] = SETTLED
            _event(land, name, phone, sims, who, hard)
    _refurbish(land)
    return list(zip(*columns[:3], strict=True)), plain


def _refurbish(land: _People) -> None:
    """Test the phones that are at the refurbishers, in working hours and one at a time, with SIMs of the shop; sell most of them in a few days."""
    rng, count = land.rng, land.rates.refurbishers
    shops, sims, free = land.add_people(count, FIXED).tolist(), land.add_sims(3 * count).reshape(count, 3).tolist(), [0.0] * count  # fmt: skip
    for when, phone in sorted(land.waiting) if count else ():
        shop = int(rng.integers(0, count))
        at = max(when, free[shop])
        at += max(9 - at % 24, 0.0) if at % 24 < 17.5 else 33 - at % 24
        for sim in sims[shop][: int(rng.integers(1, 4))]:
            takes = float(rng.uniform(0.08, 0.25))
            land.use(phone, (-1, sim) if phone[2] >= 0 and rng.random() < 0.3 else (sim, -1), shops[shop], at, at + takes)  # fmt: skip
            at += takes + 0.02
        free[shop] = at
        if rng.random() < 0.7:
            _sell(land, phone, at + float(rng.uniform(24, 240)))


def _sell(land: _People, phone: tuple[int, int, int], when: float, home: int | None = None) -> None:
    """Give a phone to somebody who often had another one before."""
    buyer = int(land.add_people(1, RESIDENT if home is None else SETTLED, home)[0])
    sim = int(land.add_sims(1)[0])
    if land.rng.random() < 0.7:
        land.use(land.new_phone(), (sim, -1), buyer, 0, when)
    land.use(phone, (sim, -1), buyer, when, land.hours)


def _event(land: _People, name: str, phone: tuple[int, int, int], sims: tuple[int, int], who: int, hard: dict[int, str]) -> None:  # noqa: C901, PLR0915 - the list of events # fmt: skip
    """Add the uses of a phone with one event."""
    rng, hours = land.rng, land.hours
    at = float(
        rng.uniform(0, hours) if name not in AT_HOME else rng.integers(1, land.rates.days) * 24 - 4 + rng.random()
    )
    home, operator = land.home[who], land.operator[sims[0]]

    def relative() -> tuple[int, int]:
        return int(land.add_people(1, SETTLED, home)[0]), int(land.add_sims(1)[0])

    if name in {"replaced", "sold", "refurbished", "handed down", "stolen"}:
        land.use(phone, sims, who, 0, at)
        new_sims = (int(land.add_sims(1, operator=operator)[0]), -1) if name == "stolen" else sims
        land.use(land.new_phone(), new_sims, who, at + float(rng.gamma(2, 5 if name == "stolen" else 0.1)), hours)
        if name == "sold":
            _sell(land, phone, at + float(rng.uniform(24, 360)))
        elif name == "handed down":
            _sell(land, phone, at + 0.5, home)
        elif name == "refurbished":
            land.waiting.append((at + float(rng.uniform(24, 120)), phone))
    elif name in {"new contract", "ported", "travel SIM"}:
        new = int(land.add_sims(1, operator=operator if name == "new contract" else (operator + 1) % land.rates.operators)[0])  # fmt: skip
        back = at + float(rng.uniform(48, 240)) if name == "travel SIM" else hours
        land.use(phone, sims, who, 0, at)
        land.use(phone, (new, sims[1]), who, at + float(rng.uniform(0.05, 4)), back)
        land.use(phone, sims, who, back + 0.1, hours)
    elif name == "SIMs change slots":
        land.use(phone, sims, who, 0, at)
        land.use(phone, sims[::-1], who, at + 0.1, hours)
    elif name.startswith("repaired"):
        board = land.new_phone(land.model[phone[0]])
        if name == "repaired, IMEI moved":
            board = (board[0], *phone[1:])
        land.use(phone, sims, who, 0, at)
        land.use(board, sims, who, at + float(rng.uniform(4, 96)), hours)
    elif name == "lent":
        (borrower, sim), own = relative(), land.new_phone()
        back = at + (float(rng.uniform(0.3, 2)) if rng.random() < 0.4 else 24.0 * int(rng.integers(1, 6)))
        land.use(phone, sims, who, 0, at)
        land.use(own, (sim, -1), borrower, 0, at)
        land.use(phone, (sim, -1), borrower, at + 0.05, back)
        if rng.random() < 0.5:  # the two exchange phones
            land.use(own, (sims[0], -1), who, at + 0.05, back)
            hard[own[1]] = name
        land.use(phone, sims, who, back + 0.05, hours)
        land.use(own, (sim, -1), borrower, back + 0.05, hours)
    elif name == "shared":
        turns = (sims[0], relative()[1])
        begin, turn = 0.0, 0
        while begin < hours:
            end = begin + float(rng.uniform(8, 60))
            land.use(phone, (turns[turn % 2], -1), who, begin, end)
            begin, turn = end + 0.05, turn + 1
    else:  # drivers in shifts: the SIM of each is in the vehicle's phone for 8 hours, then in a phone of their own
        vehicle = int(land.add_people(1, VEHICLE, home)[0])
        drivers = [(who, sims[0]), relative(), *([relative()] if rng.random() < 0.5 else [])]
        own = [land.new_phone() for _ in drivers]
        free = [0.0] * len(drivers)
        for day in range(land.rates.days):
            for shift, (driver, sim) in enumerate(drivers):
                if rng.random() < 0.75:
                    begin = day * 24 + 5 + 8 * shift + 0.1
                    land.use(own[shift], (sim, -1), driver, free[shift], begin - 0.1)
                    land.use(phone, (sim, -1), vehicle, begin, begin + 7.8)
                    free[shift] = begin + 8
        for shift, (driver, sim) in enumerate(drivers):
            land.use(own[shift], (sim, -1), driver, free[shift], hours)


def _others(land: _People, hard: dict[int, str]) -> None:
    """Add modules and roamers."""
    rates, rng, hours = land.rates, land.rng, land.hours
    count = round(rates.phones * 0.04)
    models = rng.choice(np.flatnonzero(land.module), count)
    numbers, bodies = land.issue(models)[0].tolist(), land.add_bodies(models).tolist()
    moving = rng.random(count) < 0.2
    for batch in range(max(1, round(rates.phones / 10_000))):
        for place in range(batch * 12, min(batch * 12 + 12, count)):
            numbers[place] = numbers[batch * 12]
        hard[numbers[batch * 12]] = "a batch of modules"
    for body, number, sim, moves in zip(bodies, numbers, land.add_sims(count).tolist(), moving.tolist(), strict=True):
        where = int(land.add_people(1, DRIVER if moves else FIXED)[0])
        land.uses.append((body, sim, number, where, 0, hours, 0.6))
    for sim in land.add_sims(round(rates.phones * 0.03), foreign=True).tolist():
        who, phone = int(land.add_people(1)[0]), land.new_phone()
        begin = float(rng.uniform(-240, hours))
        end, bought = begin + float(rng.uniform(72, 336)), begin + float(rng.uniform(2, 24))
        local = rng.random() < 0.2 and 0 < bought < end
        land.use(phone, (sim, -1), who, max(begin, 0), bought if local else end)
        if local:
            land.use(phone, (int(land.add_sims(1)[0]), -1), who, bought, end)
            hard[phone[1]] = "travel SIM"


def _copies(land: _People, phones: list[tuple[int, int, int]], plain: Ids, hard: dict[int, str]) -> dict[int, str]:
    """Add phones with a copied IMEI; return each copied IMEI and its kind."""
    rates, rng, hours = land.rates, land.rng, land.hours
    kinds: dict[int, str] = {}
    stolen = [phone for phone in phones if hard.get(phone[1]) == "stolen"]
    count = round(rates.copied * rates.phones)
    originals = rng.choice(np.flatnonzero(plain), count + 2 * len(stolen), replace=False).tolist()
    size = rng.choice(len(SIZES), count, p=[share for *_, share in SIZES])

    def copy(device: int, model: int, home: int | None, body: int | None = None) -> None:
        """Add a phone with this IMEI. It begins and ends on its own, and sometimes has two SIMs or a new one."""
        who, sim = int(land.add_people(1, home=home)[0]), int(land.add_sims(1)[0])
        if body is None:
            body = int(land.add_bodies([model if rng.random() < 0.4 else int(land.draw_models(1)[0])], genuine=False)[0])  # fmt: skip
        begin = float(rng.uniform(0, hours * 0.9)) if rng.random() < 0.3 else 0.0
        end = float(rng.uniform(begin + 24, hours)) if rng.random() < 0.2 and begin + 24 < hours else float(hours)
        second = int(land.add_sims(1)[0]) if rng.random() < 0.2 else -1
        changed = float(rng.uniform(begin, end)) if rng.random() < 0.03 else end
        land.use((body, device, device), (sim, second), who, begin, changed)
        if changed < end:
            land.use((body, device, device), (int(land.add_sims(1)[0]), second), who, changed + 0.1, end)

    for number in range(count):
        least, most, _ = SIZES[size[number]]
        copies = int(rng.integers(least, most + 1))
        if rng.random() < 0.6:
            body, device, _ = phones[originals[number]]
            model, copies = land.model[body], copies - 1
        else:
            model = int(land.draw_models(1)[0])
            device = int(land.issue(np.array([model]))[0][0])
        kinds[device] = "clone"
        market = int(rng.choice(rates.areas, p=land.weights))
        for _ in range(copies):
            copy(device, model, market if rng.random() < 0.5 else None)
    for place, (body, *_) in enumerate(stolen):
        victim = phones[originals[count + 2 * place]]
        kinds[victim[1]] = "taken"
        last = max(use[5] for use in land.uses if use[0] == body)
        buyer, sim = int(land.add_people(1)[0]), int(land.add_sims(1)[0])
        changed = int(land.add_bodies([land.model[body]], genuine=False)[0])
        land.use((changed, victim[1], -1), (sim, -1), buyer, last + float(rng.uniform(24, 240)), hours)
        earlier = phones[originals[count + 2 * place + 1]]  # a phone that was stolen before the record begins
        kinds[earlier[1]] = "taken"
        copy(earlier[1], land.model[earlier[0]], None)
    return kinds


def _boxes(land: _People) -> dict[int, tuple[str, int]]:
    """Add SIM boxes: in each period another SIM and another identity is in each port; return the identities."""
    rng, found = land.rng, {}
    for _ in range(land.rates.boxes):
        ports, cards = int(rng.integers(8, 33)), int(rng.integers(32, 97))
        where, sims = int(land.add_people(1, FIXED)[0]), land.add_sims(cards, operator=int(rng.integers(0, land.rates.operators)))  # fmt: skip
        models = land.draw_models(ports + int(rng.integers(0, 17)))
        numbers, bodies = land.issue(models)[0], land.add_bodies(np.full(ports, models[0]), genuine=False)
        found |= dict.fromkeys(numbers.tolist(), ("box", cards))
        at = 0.0
        while at < land.hours:
            end = at + float(rng.uniform(2, 8))
            for body, sim, number in zip(bodies.tolist(), rng.permutation(sims).tolist(), rng.permutation(numbers).tolist(), strict=False):  # fmt: skip
                land.use((body, number), (sim,), where, at, end)
            at = end + 0.05
    return found


def _places(land: _People) -> np.ndarray:  # noqa: C901 - the list of habits
    """Return the area of each carrier in each hour."""
    rates, rng, hours = land.rates, land.rng, land.hours
    home, manner = np.array(land.home), np.array(land.manner)
    where = np.repeat(home.astype(np.uint8)[:, None], hours, axis=1)
    grid = [(area % COLUMNS, area // COLUMNS) for area in range(rates.areas)]
    near = [[other for other, (x, y) in enumerate(grid) if abs(x - a) + abs(y - b) == 1] for a, b in grid]
    neighbour = np.array([near[area][int(pick * len(near[area]))] for area, pick in zip(home, rng.random(len(home)), strict=True)])  # fmt: skip
    hour, weekday = np.arange(hours) % 24, (START.weekday() + np.arange(hours) // 24) % 7 < 5
    person, kind = manner <= SETTLED, rng.random(len(home))
    some = np.flatnonzero(person & (kind < 0.12))
    begin, end = rng.integers(7, 10, (len(some), 1)), rng.integers(15, 19, (len(some), 1))
    where[some] = np.where((hour >= begin) & (hour < end) & weekday, neighbour[some, None], home[some, None])
    some = np.flatnonzero(person & (kind > 0.96))
    where[some] = np.where(rng.random((len(some), hours)) < 0.06, neighbour[some, None], home[some, None])

    def path(area: int, goal: int) -> list[int]:
        """Return the areas on the way, one an hour, with the goal and without the start."""
        (x, y), (to_x, to_y), areas = grid[area], grid[goal], []
        while (x, y) != (to_x, to_y):
            x, y = (x + (1 if to_x > x else -1), y) if x != to_x else (x, y + (1 if to_y > y else -1))
            areas.append(y * COLUMNS + x)
        return areas

    def journey(who: int, start: int, goal: int, stay: int) -> int:
        """Go to an area, stay and come back; return the hour of the return."""
        there = path(int(where[who, start]), goal)
        way = [*there, *[goal] * stay, *path(goal, int(home[who]))][: hours - start]
        where[who, start : start + len(way)] = way
        return start + len(way)

    drives = (manner == DRIVER) | ((manner == RESIDENT) & (kind > 0.5) & (kind < 0.51))
    departs = np.sort(rng.integers(0, rates.days, rng.poisson(rates.days / 35 * len(home))) * 24)
    back = np.zeros(len(home), int)
    for who, start in zip(rng.integers(0, len(home), len(departs)).tolist(), departs.tolist(), strict=True):
        if manner[who] == RESIDENT and not drives[who] and start >= back[who]:
            start += int(rng.integers(6, 20))  # noqa: PLW2901 - from the day to the hour
            if rng.random() < 0.1:
                back[who] = start + int(rng.integers(48, 240))
                where[who, start : back[who]] = ABROAD
            else:
                back[who] = journey(who, start, int(rng.choice(rates.areas)), int(rng.integers(20, 110)))
    for who in np.flatnonzero(drives).tolist():
        for day in np.flatnonzero(weekday[::24]).tolist():
            goal = near[neighbour[who]][int(rng.integers(0, len(near[neighbour[who]])))]
            journey(who, day * 24 + int(rng.integers(6, 10)), goal, int(rng.integers(1, 6)))
    for who in np.flatnonzero(manner == VEHICLE).tolist():
        for start in range(6, hours, 8):
            journey(who, start, int(neighbour[who]), int(rng.integers(1, 5)))
    return where


def _repeat(values: Ids, times: Ids) -> tuple[Ids, Ids]:
    """Return each value as often as given, and the number of the repetition."""
    return np.repeat(values, times), np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)


def _checks(land: _People) -> Iterator[pl.DataFrame]:  # noqa: PLR0915 - one chunk from causes to rows
    """Yield the checks of some SIMs at a time, by SIM and time."""
    rates, rng, hours = land.rates, land.rng, land.hours
    where, manner = _places(land), np.array(land.manner)
    people, sims = len(manner), len(land.operator)
    operator = np.array(land.operator)
    phase, habit, wake = rng.random(people), rng.gamma(2, 0.5, people), np.clip(rng.normal(6.8, 0.9, people), 4.5, 11)
    nightly = (rng.random(people) < 0.25) & (manner <= SETTLED)
    asks = rng.uniform(0.6, 1.4, rates.operators)
    asks /= asks @ land.market
    carrier, moved = np.nonzero((where[:, 1:] != where[:, :-1]) & (where[:, 1:] != ABROAD))
    moves = carrier * hours + moved + 1
    columns = list(zip(*land.uses, strict=True))
    body, sim, device, who = (np.array(columns[at], np.int64) for at in range(4))
    begin, end, weight = (np.array(columns[at], float) for at in range(4, 7))
    # The rest of the checks, after attaches and moves, are for the timer and for calls and data
    lasts = (end - begin) / 24
    low, high = np.searchsorted(moves, who * hours + begin), np.searchsorted(moves, who * hours + end)
    at_move = min(0.8, 0.3 * rates.checks)
    attaches = (begin > 0).sum() + (lasts * np.where(nightly[who], 1, 0.04)).sum()
    rest = rates.checks * lasts[weight >= 0.6].sum() - attaches - at_move * (high - low).sum()
    rate = max(rest, 0) / (lasts * weight).sum()
    pause = min(1.0, 0.5 / rates.checks)
    interval = max(1, round(24 * 0.475 / max(0.25 * rate, 0.01) / TIMER_H)) * TIMER_H
    busy = np.cumsum(ACTIVITY) / ACTIVITY.sum()
    lag = rng.exponential(land.lag[land.model])
    bought = np.where(rng.random(len(lag)) < 0.15, rng.uniform(200, 400, len(lag)), np.inf)
    """Day of the version that a phone keeps: that of its purchase, or none."""
    variant = rng.integers(0, land.variants[land.model]) * 17 + rng.integers(0, 99, len(land.tac))[land.model]
    order = np.arange(rates.areas)
    order = np.where(order // COLUMNS % 2, order // COLUMNS * COLUMNS + COLUMNS - 1 - order % COLUMNS, order)  # neighbours follow each other  # fmt: skip
    sticky = rng.permutation(rates.operators) < round(rates.sticky * rates.operators)
    chunks = max(1, round(rates.checks * lasts.sum() / CHUNK_ROWS))
    parts: list[tuple[Ids, Ids, Ids]] = []

    def add(uses: Ids, at: Ids, why: int) -> None:
        parts.append((uses, at, np.full(len(at), why, np.uint8)))

    for chunk in range(chunks):
        mine = np.flatnonzero(sim % chunks == chunk)
        parts.clear()
        started = mine[begin[mine] > 0]
        add(started, begin[started] + rng.uniform(0.01, 0.05, len(started)), ATTACH)
        days = np.ceil(end[mine] / 24).astype(int) - (begin[mine] // 24).astype(int)
        uses, turn = _repeat(mine, days)
        day = begin[uses] // 24 + turn
        off = nightly[who[uses]]
        kept = off | (rng.random(len(uses)) < 0.04)
        uses, day, off = uses[kept], day[kept], off[kept]
        add(uses, day * 24 + np.where(off, wake[who[uses]] + rng.gamma(2, 0.2, len(uses)), rng.uniform(6, 24, len(uses))), ATTACH)  # fmt: skip
        uses, turn = _repeat(mine, high[mine] - low[mine])
        kept = rng.random(len(uses)) < at_move
        uses, turn = uses[kept], turn[kept]
        add(uses, moves[low[uses] + turn] % hours + phase[who[uses]] + rng.uniform(0, 0.15, len(uses)), MOVE)
        uses, turn = _repeat(mine, np.ceil((end[mine] - begin[mine]) / interval * weight[mine]).astype(int))
        at = begin[uses] + (turn + phase[who[uses]]) * interval / weight[uses]
        kept = rng.random(len(at)) < np.where(at % 24 < 6, 1, 0.3)
        add(uses[kept], at[kept], TIMER)
        lively = 0.75 * rate * weight[mine] * asks[operator[sim[mine]]] * np.where(manner[who[mine]] <= SETTLED, habit[who[mine]], 1)  # fmt: skip
        uses = np.repeat(mine, rng.poisson(lively * days))
        day = begin[uses] // 24 + np.floor(rng.random(len(uses)) * (np.ceil(end[uses] / 24) - begin[uses] // 24))
        add(uses, day * 24 + np.searchsorted(busy, rng.random(len(uses))) + rng.random(len(uses)), PAUSE)
        uses, at, why = (np.concatenate([part[column] for part in parts]) for column in range(3))
        person = who[uses]
        kept = (at >= begin[uses]) & (at < end[uses]) & ((why == ATTACH) | ~nightly[person] | (at % 24 > wake[person]))
        uses, at, why, person = uses[kept], at[kept], why[kept], person[kept]
        area = where[person, np.maximum((at - phase[person]).astype(int), 0)]
        sort = np.argsort(sim[uses] * 2.0 * hours + at)
        sort = sort[area[sort] != ABROAD]
        card, at, why = sim[uses[sort]], at[sort], why[sort]
        early = np.zeros(len(sort), bool)
        early[1:] = (why[1:] == PAUSE) & (card[1:] == card[:-1]) & (at[1:] - at[:-1] < pause)
        sort, at, why, card = sort[~early], at[~early], why[~early], card[~early]
        uses, area = uses[sort], area[sort]
        pool = (order[area] + 3 * operator[card]) % rates.areas // rates.pool_areas
        fresh = np.ones(len(card), bool)
        fresh[1:] = (why[1:] == ATTACH) | (card[1:] != card[:-1]) | (pool[1:] != pool[:-1])
        session = np.where(sticky[operator[card]], card * 64 + pool, np.cumsum(fresh) + sims * 64)
        chosen = (session.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(rates.pool_mmes)  # fmt: skip
        model = np.array(land.model)[body[uses]]
        passed = np.maximum(np.minimum(at / 24 + 400, bought[body[uses]]) - land.released[model] - lag[body[uses]], 0)
        yield pl.DataFrame({
            "time": (at * 3600e6).astype(np.int64), "device": device[uses], "body": body[uses], "sim": card, "area": area, "operator": operator[card],
            "mme": (pool * rates.pool_mmes + chosen.astype(np.int64)), "version": (variant[body[uses]] + passed // land.period[model]).astype(np.int64) % 99, "cause": why,
        })  # fmt: skip


def _write(folder: Path, number: int, checks: pl.DataFrame, rates: FactRates, names: pl.DataFrame, silent: np.ndarray) -> None:  # fmt: skip
    """Write checks to files, one for each day."""
    text, shown = pl.col("device").cast(pl.String).str.zfill(14), pl.col("version").cast(pl.String).str.zfill(2)
    rest, total = checks["device"].to_numpy(), np.zeros(len(checks), np.int64)
    for position in range(14):
        rest, digit = np.divmod(rest, 10)
        doubled = digit * 2 if position % 2 == 0 else digit
        total += doubled // 10 + doubled % 10
    realm = [f"epc.mnc{operator + 1:03d}.{CORE}" for operator in range(rates.operators)]
    pools = -(-rates.areas // rates.pool_areas)
    hosts = [
        f"mmec{mme % rates.pool_mmes:02x}.mmegi{0x8000 + mme // rates.pool_mmes:04x}.mme.{name}" if place % 2 else f"node{mme * 7 + 11}.{name}"
        for place, name in enumerate(realm) for mme in range(pools * rates.pool_mmes)
    ]  # fmt: skip
    place, form = checks["operator"] * pools * rates.pool_mmes + checks["mme"], pl.col("operator") % 4
    checks = checks.with_columns(
        pl.Series("digit", (10 - total % 10) % 10), pl.Series("silent", silent[place.to_numpy() // rates.pool_mmes])
    )
    write_checks(folder, checks.with_columns(
        pl.when(form == 0).then(text).when(form == 1).then(text + pl.col("digit").cast(pl.String)).when(form == 2).then(text + "0").when(~pl.col("silent")).then(text + shown).otherwise(text).alias("imei"),
        pl.when(~pl.col("silent")).then(shown).alias("software_version"), pl.Series("origin_host", hosts).gather(place), names["name"].gather(checks["sim"]).alias("subscriber"),
        names["home"].gather(checks["sim"]),
    ), number)  # fmt: skip


def build_fact_world(
    folder: Path, rates: FactRates, *, seed: int, watch: Callable[[pl.DataFrame], object] | None = None
) -> FactWorld:
    """Write the record of a network; call `watch` with the checks (their body, area and cause included) of some SIMs at a time."""
    rng = np.random.default_rng(seed)
    land, hard = _People(rates, rng), dict[int, str]()
    phones, plain = _phones(land, hard)
    _others(land, hard)
    kinds, truth = _copies(land, phones, plain, hard), _boxes(land)
    named = rng.choice(1 << 60, len(land.operator)) | 1 << 62
    homes = np.where(land.foreign, rng.choice(["208010", "262020", "404450"], len(named)), [f"001{operator + 1:03d}" for operator in land.operator])  # fmt: skip
    names = pl.DataFrame({"name": [f"{name:016x}" for name in named.tolist()], "home": homes})
    silent = rng.random(rates.operators * -(-rates.areas // rates.pool_areas)) >= rates.versions
    rows, seen = 0, set[tuple[int, int]]()
    for number, checks in enumerate(_checks(land)):
        if watch is not None:
            watch(checks)
        _write(folder, number, checks, rates, names, silent)
        rows += len(checks)
        seen.update(checks.filter(pl.col("device").is_in([*kinds])).select("device", "body").unique().iter_rows())
    bodies: dict[int, set[int]] = {}
    for device, body in seen:
        bodies.setdefault(device, set()).add(body)
    holders: dict[bool, dict[int, set[str]]] = {True: {}, False: {}}
    for body, sim, device, *_ in land.uses:
        if device in kinds:
            holders[land.genuine[body]].setdefault(device, set()).add(names["name"][sim])
    truth |= {device: (kinds[device], len(those)) for device, those in bodies.items() if len(those) > 1}
    truth |= {device: ("free", 1) for device in kinds if device not in truth and device not in holders[True]}
    owners, copies = ({device: frozenset(who) for device, who in holders[genuine].items() if truth.get(device, ("", 0))[1] > 1} for genuine in (True, False))  # fmt: skip
    newest = START.date() + timedelta(days=rates.days - 10)
    tacs = [
        Tac(int(tac), newest if number % 40 == 7 else date(2016 + number % 10, 4, 1), "Module" if land.module[number] else "Smartphone")
        for number in range(len(land.tac)) if number % ABSENT_TACS != 50 for tac in {land.tac[number], land.other_tac[number]}
    ]  # fmt: skip
    return FactWorld(
        folder=folder, tacs=tuple(tacs), since=START, until=START + timedelta(days=rates.days), rows=rows, truth=truth, owners=owners, copies=copies,
        hard={device: kind for device, kind in hard.items() if device not in truth}, slots={one: two for _, one, two in phones if two >= 0},
    )  # fmt: skip
