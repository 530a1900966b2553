"""Simulated network for `bench tamper`: a month of honest and other checks, in the form of the EIR's record, and the truth.

Shares no code with the analysis and has none of its thresholds. Assumptions, with their sources:

- People: 5 checks a day on average (attach, TAU in another area), more for some (gamma), by the hour of the day; one MME for each region
  of a country of 800 by 600 km, sizes by Zipf's law. One person in seven commutes to the next region, one in twenty lives where two
  meet, and 3 % of days are spent far away.
- Honest devices with several SIMs: a phone is kept for about three years, so that some 3 % change owner or SIM in a month (sales,
  repairs); 2 % of phones are lent within a family for hours or days; 0.5 % are cheap phones whose two SIMs share an IMEI, and are seen
  together. Shops have a phone into which each customer's SIM is put once, and a SIM that is put into each customer's phone. Loan phones
  have a new user after a day or two. Tourists buy a SIM for a week, or roam. Firms buy cartons with consecutive serial numbers.
- MMEs: a fifth send no software version; IMEIs have 14, 15 or 16 digits, the 15th is the check digit or a spare 0. Firmware is updated
  at times, and rarely downgraded.
- The list of TACs lacks one new model.
- Clones: 0.4 % of IMEIs (0.9 million among 150 million subscribers were blocked in Pakistan as duplicates), with 2, 3, 4 to 6, 7 to 20,
  or more copies, six on average. The genuine phone is among them in 6 of 10 cases. Copies appear and disappear, and 6 of 10 have
  another firmware. Copies are distributed over the regions as people are.
- Reprogrammed phones, seen from the moment of their new identity on: the IMEI of an existing phone (taken), an IMEI of a TAC that was
  never allocated, a free serial number of a real TAC. SIM boxes: 16 to 64 SIMs on 8 to 32 identities in rotation, or an identity that is
  given up after some days; one region, with the daily hours of people. Identifiers of zeros, and identifiers that name no device.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eir.sightings.conditions import Tac

START = datetime(2026, 10, 27)  # noqa: DTZ001 - times in the files are UTC without saying so
HOURS = np.array([1, 0.5, 0.3, 0.3, 0.5, 1.5, 4, 7, 8, 7, 6, 6, 7, 6, 6, 6, 7, 8, 8, 7, 6, 5, 3, 2], dtype=float)
"""Traffic in each hour of a day."""
COPIES = ((2, 2, 0.26), (3, 3, 0.22), (4, 6, 0.28), (7, 20, 0.20), (21, 40, 0.04))
"""Minimum and maximum number of copies, and share of cloned identities; about six copies on average."""
KINDS = ("clone", "taken", "never_allocated", "free", "box", "zero", "malformed")
DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Simulated network."""

    folder: Path
    """State folder of a node, which contains its record."""
    tacs: tuple[Tac, ...]
    """List of TACs."""
    since: datetime
    until: datetime
    rows: int
    truth: dict[int, tuple[str, int]]
    """Tampered device → kind, and number of copies."""
    hard: dict[int, str]
    """Honest device with suspicious traffic → its kind."""


@dataclass(slots=True)
class _Segments:
    """Columns: the use of devices by subscribers from one day to another."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(
        self,
        subscriber: Any,
        device: Any,
        begin: Any = 0.0,
        end: Any = 1e9,
        *,
        person: Any = None,
        version: Any = -1,
        update: Any = 1e9,
        rate: Any = -1.0,
        pinned: Any = False,
        attach: Any = False,
        echo: Any = False,
    ) -> None:
        """`person`: the phone follows this person's days; `attach`: a check at the beginning; `echo`: its checks come with the person's own."""
        row = {
            "subscriber": subscriber, "device": device, "begin": begin, "end": end, "person": subscriber if person is None else person,
            "version": version, "update": update, "rate": rate, "pinned": pinned, "attach": attach, "echo": echo,
        }  # fmt: skip
        size = max(np.size(value) for value in row.values())
        for name, value in row.items():
            self.columns.setdefault(name, []).append(np.broadcast_to(np.asarray(value), (size,)))

    def whole(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}


def make(  # noqa: C901, PLR0915 - the list of what there is in a network
    folder: Path, subscribers: int, *, days: int = 30, a_day: float = 5.0, seed: int = 1, boxes: int | None = None
) -> World:
    """Make a network with this number of honest subscribers in a folder."""
    rng = np.random.default_rng(seed)
    regions = int(np.clip(round(subscribers**0.5 / 20), 8, 40))
    boxes = boxes if boxes is not None else max(5, min(50, subscribers // 20_000))
    x, y = rng.uniform(0, 800, regions), rng.uniform(0, 600, regions)
    km = np.hypot(x[:, None] - x, y[:, None] - y)
    size = 1 / np.arange(1, regions + 1) ** 0.8
    size /= size.sum()
    nearest = (km + np.eye(regions) * 1e9).argmin(axis=1)

    # TACs, models, and devices
    tacs = np.unique(rng.choice([35, 86, 1], 2000, p=[0.5, 0.45, 0.05]) * 10**6 + rng.integers(0, 10**6, 2000))
    rng.shuffle(tacs)
    popular = 1 / np.arange(1, len(tacs) + 1) ** 1.1
    popular /= popular.sum()
    base_version = rng.integers(1, 60, len(tacs))
    unlisted = int(tacs[8])  # the model that is just coming out
    device_count = int(subscribers * 1.35) + 2000
    model = rng.choice(len(tacs), device_count, p=popular)
    devices = np.unique(tacs[model].astype(np.int64) * 10**6 + rng.integers(0, 10**6, device_count))
    rng.shuffle(devices)
    used = 0

    def fresh(count: int) -> np.ndarray:
        nonlocal used
        used += count
        if used > len(devices):
            raise ValueError("more devices than were made")
        return devices[used - count : used]

    by_tac = dict(zip(tacs.tolist(), base_version.tolist(), strict=True))
    people = subscribers
    next_subscriber = people

    def sims(count: int) -> np.ndarray:
        nonlocal next_subscriber
        next_subscriber += count
        return np.arange(next_subscriber - count, next_subscriber)

    def version_of(device: np.ndarray) -> np.ndarray:
        usual = np.array([by_tac.get(int(each) // 10**6, 1) for each in device])
        return np.clip(usual - rng.choice([0, 0, 0, 1, 1, 2], len(device)), 0, 98)

    segments = _Segments()
    truth: dict[int, tuple[str, int]] = {}
    hard: dict[int, str] = {}
    # Everyone has a phone; some change it, sell it, lend it.
    own = fresh(people)
    version = version_of(own)
    update = np.where(rng.random(people) < 0.25, rng.uniform(0, days, people), 1e9)
    fate = rng.random(people)
    ends = np.full(people, 1e9)
    changes = fate < 0.03
    ends[changes] = rng.uniform(1, days, changes.sum())
    plain = np.ones(people, bool)
    lenders = np.flatnonzero((fate > 0.03) & (fate < 0.05))
    plain[lenders] = False
    segments.add(np.arange(people)[plain], own[plain], 0, ends[plain], version=version[plain], update=update[plain])
    moved = np.flatnonzero(changes)
    segments.add(moved, (bought := fresh(len(moved))), ends[moved] + 0.02, version=version_of(bought), attach=True)
    sold = moved[rng.random(len(moved)) < 0.6]  # the old phone goes on with another SIM, of someone elsewhere perhaps
    segments.add(
        sims(len(sold)),
        own[sold],
        ends[sold] + rng.exponential(3, len(sold)) + 0.05,
        version=version[sold],
        update=update[sold],
        attach=True,
    )
    # A phone lent within a family: the other's SIM goes in for hours or days, some five times a month; a few do it nearly daily.
    others = sims(len(lenders))
    for who, other in zip(lenders, others, strict=True):
        often = rng.choice([2, 5, 10, 25], p=[0.4, 0.35, 0.2, 0.05])
        cuts = np.sort(rng.uniform(0, days, 2 * rng.poisson(often) + 1))
        edges = np.concatenate([[0], cuts, [days]])
        mine = np.arange(len(edges) - 1) % 2 == 0
        for begin, end, is_mine in zip(edges[:-1], edges[1:], mine, strict=True):
            segments.add(
                who if is_mine else other,
                own[who],
                begin,
                end,
                person=who,
                version=version[who],
                update=update[who],
                attach=begin > 0,
            )
        hard[int(own[who])] = "lent in a family"
    # Two SIMs under one IMEI
    double = rng.choice(np.flatnonzero(plain & ~changes), int(people * 0.005), replace=False)
    segments.add(
        sims(len(double)), own[double], 0, person=double, version=version[double], update=update[double], echo=True
    )
    hard.update((int(device), "two SIMs, one IMEI") for device in own[double])
    # Shops: a phone for all SIMs, and a SIM for all phones
    shops = max(2, people // 20_000)
    for phone in fresh(shops):
        count = int(days * rng.integers(3, 9))
        begin = np.sort(rng.uniform(0, days, count))
        visitors = rng.choice(np.flatnonzero(plain), count, replace=False)
        segments.add(
            visitors, phone, begin, begin + 0.01, person=people + 0 * visitors + int(phone) % 97, version=7, attach=True
        )
        hard[int(phone)] = "a shop's phone for SIMs"
    for tester in sims(shops):
        count = int(days * rng.integers(2, 6))
        begin = np.sort(rng.uniform(0, days, count))
        visited = rng.choice(np.flatnonzero(plain), count, replace=False)
        segments.add(
            np.full(count, tester),
            own[visited],
            begin,
            begin + 0.01,
            person=visited,
            version=version[visited],
            update=update[visited],
            attach=True,
        )
        hard.update((int(device), "a tester's SIM in it") for device in own[visited])
        stock = fresh(8)  # new phones of the shop's, tried once
        begin = rng.uniform(0, days, 8)
        segments.add(np.full(8, tester), stock, begin, begin + 0.01, version=version_of(stock), attach=True)
    for phone in fresh(max(5, people // 3000)):  # loan phones, handed on
        edges = np.concatenate([[0], np.cumsum(rng.uniform(0.7, 3.5, 60))])
        edges = edges[edges < days]
        who = rng.choice(np.flatnonzero(plain), len(edges), replace=False)
        segments.add(who, phone, edges, edges + 0.6, version=9, attach=True)
        hard[int(phone)] = "a loan phone handed on"
    # Tourists: roamers for a week, in the phones that they brought; half of them take a local SIM halfway
    guests = people // 50
    brought, arrive, stay = fresh(guests), rng.uniform(-5, days, guests), rng.uniform(2, 14, guests)
    half = rng.random(guests) < 0.5
    visitor = sims(guests)
    segments.add(
        visitor,
        brought,
        np.maximum(arrive, 0),
        np.where(half, arrive + 0.3, arrive + stay),
        version=version_of(brought),
        attach=True,
    )
    segments.add(
        sims(int(half.sum())),
        brought[half],
        np.maximum(arrive[half] + 0.35, 0),
        arrive[half] + stay[half],
        version=version_of(brought[half]),
        attach=True,
    )
    # A firm's carton of phones
    for _ in range(max(2, people // 50_000)):
        carton = int(tacs[rng.integers(5, 60)]) * 10**6 + int(rng.integers(0, 900_000)) + np.arange(20)
        segments.add(sims(20), carton, version=5)
        hard.update((int(device), "a carton of phones") for device in carton)

    # Clones
    clones = max(60, int(people * 0.004))
    band = rng.choice(len(COPIES), clones, p=[share for *_, share in COPIES])
    candidates = iter(rng.choice(np.flatnonzero(plain & ~changes), clones, replace=False))
    for which in band:
        low, high, _ = COPIES[which]
        copies = int(rng.integers(low, high + 1))
        with_genuine = rng.random() < 0.6
        device = int(own[next(candidates)]) if with_genuine else int(fresh(1)[0])
        count = copies - with_genuine
        begin = np.where(rng.random(count) < 0.7, 0, rng.uniform(0, days * 0.7, count))
        end = np.where(rng.random(count) < 0.8, 1e9, rng.uniform(begin + 5, days + 5))
        usual = int(version_of(np.array([device]))[0])
        versions = np.where(
            rng.random(count) < 0.6, rng.integers(1, 60, count) if rng.random() < 0.5 else rng.integers(1, 60), usual
        )
        segments.add(sims(count), device, begin, end, version=versions, attach=begin > 0)
        truth[device] = ("clone", copies)
        hard.pop(device, None)
    # Reprogrammed phones
    some = max(15, people // 5000)
    victims = rng.choice(np.flatnonzero(plain & ~changes), some, replace=False)
    begin = rng.uniform(0, days * 0.6, some)
    segments.add(sims(some), own[victims], begin, version=rng.integers(1, 60, some), attach=True)
    truth.update((int(device), ("taken", 2)) for device in own[victims] if int(device) not in truth)
    never = (rng.choice([12, 35, 77, 86], some) * 10**6 + rng.integers(0, 10**6, some)) * 10**6 + rng.integers(
        0, 10**6, some
    )
    never = never[~np.isin(never // 10**6, tacs)]
    segments.add(
        sims(len(never)),
        never,
        rng.uniform(0, days * 0.8, len(never)),
        version=rng.integers(1, 60, len(never)),
        attach=True,
    )
    truth.update((int(device), ("never_allocated", 1)) for device in never)
    free = fresh(some)
    segments.add(sims(some), free, rng.uniform(0, days * 0.8, some), version=rng.integers(1, 60, some), attach=True)
    truth.update((int(device), ("free", 1)) for device in free)
    # SIM boxes
    for number in range(boxes):
        cards = sims(int(rng.integers(16, 65)))
        home = int(rng.integers(0, people))
        if number % 5 < 3:
            ports = int(rng.integers(8, 33))
            identities = (
                fresh(ports)
                if number % 2
                else int(tacs[rng.integers(0, 200)]) * 10**6 + int(rng.integers(0, 900_000)) + np.arange(ports)
            )
            length = float(rng.choice([0.25, 0.5, 1.0]))
            begin = np.arange(0, days, length)
            for at, port in enumerate(identities):
                turn = rng.integers(0, len(cards), len(begin))
                segments.add(
                    cards[turn],
                    port,
                    begin,
                    begin + length,
                    person=home,
                    version=int(at % 3) + 1,
                    rate=a_day * 1.5,
                    pinned=True,
                    attach=True,
                )
        else:
            identities = []
            for card in cards[
                : max(4, people // 1500)
            ]:  # in a small network few, or their devices were a large part of all
                length = float(rng.uniform(2, 4))
                begin = np.arange(0, days, length)
                each = fresh(len(begin))
                segments.add(
                    card, each, begin, begin + length, person=home, version=3, rate=a_day, pinned=True, attach=True
                )
                identities.extend(each)
        truth.update((int(device), ("box", len(cards))) for device in identities)
    zeros = max(5, people // 10_000)
    segments.add(sims(zeros), 0, version=0)
    segments.add(sims(zeros), 11111111111111, version=0)
    truth[0] = truth[11111111111111] = ("zero", zeros)
    segments.add(sims(zeros), -1, version=-1)

    allocated = tuple(Tac(tac, date(2022, 1, 1), "Smartphone") for tac in tacs.tolist() if tac != unlisted)
    rows = _write(
        folder,
        segments.whole(),
        rng,
        days=days,
        a_day=a_day,
        people=people,
        all_subscribers=next_subscriber,
        km=km,
        size=size,
        nearest=nearest,
        seed=seed,
    )
    return World(
        folder=folder, tacs=allocated, since=START, until=START + timedelta(days=days), rows=rows, truth=truth,
        hard={device: what for device, what in hard.items() if device not in truth},
    )  # fmt: skip


def _write(  # noqa: PLR0915 - one day from beginning to end
    folder: Path,
    what: dict[str, np.ndarray],
    rng: np.random.Generator,
    *,
    days: int,
    a_day: float,
    people: int,
    all_subscribers: int,
    km: np.ndarray,
    size: np.ndarray,
    nearest: np.ndarray,
    seed: int,
) -> int:
    """Write the checks of each day, into files of three hours."""
    regions = len(size)
    persons = all_subscribers
    home = rng.choice(regions, persons, p=size)
    work = np.where(rng.random(persons) < 0.15, nearest[home], home)
    border = rng.random(persons) < 0.05
    rate = a_day * rng.gamma(4, 0.25, persons)
    names = pl.Series(
        [hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=16).hexdigest() for number in range(all_subscribers)]
    )
    homes = pl.Series(np.where(np.arange(all_subscribers) >= people, 1, 0)).cast(pl.String)
    hosts = pl.Series([f"mme{number}.epc.mnc001.mcc001.3gppnetwork.org" for number in range(regions)])
    form = rng.choice(4, regions, p=[0.4, 0.3, 0.15, 0.15])  # 14 digits, check digit, spare 0, IMEISV
    silent = rng.random(regions) < 0.2
    cumulated = np.cumsum(HOURS) / HOURS.sum()
    del homes
    away_before = np.full(persons, -1)
    total = 0
    for day in range(days):
        live = np.flatnonzero((what["begin"] < day + 1) & (what["end"] > day))
        begin, end, person = what["begin"][live], what["end"][live], what["person"][live]
        away = np.where(rng.random(persons) < 0.03, rng.choice(regions, persons, p=size), -1)
        hop = (
            np.maximum(km[home, np.where(away < 0, home, away)], km[home, np.where(away_before < 0, home, away_before)])
            / 80
            / 24
        )
        own_rate = np.where(what["rate"][live] >= 0, what["rate"][live], rate[what["subscriber"][live]])
        echo = what["echo"][live]
        count = rng.poisson(np.where(echo, 0.3, 1) * own_rate)
        at = np.repeat(np.arange(len(live)), count)
        hour = np.searchsorted(cumulated, rng.random(len(at)))
        time = day + (hour + rng.random(len(at))) / 24
        # The second SIM of a phone comes with the first: at most within a minute of seven in ten of its checks.
        partner = {int(who): number for number, who in enumerate(person) if echo[number]} if echo.any() else {}
        if partner:
            marks = np.full(persons, -1)
            marks[list(partner)] = list(partner.values())
            first = np.flatnonzero((marks[person[at]] >= 0) & ~echo[at] & (what["subscriber"][live][at] == person[at]))
            first = first[rng.random(len(first)) < 0.7]
            at = np.concatenate([at, marks[person[at[first]]]])
            time = np.concatenate([time, time[first] + rng.uniform(2, 60, len(first)) / DAY_S])
        starts = np.flatnonzero(what["attach"][live] & (begin >= day) & (begin < day + 1))
        at, time = np.concatenate([at, starts]), np.concatenate([time, begin[starts] + 1e-4])
        who = person[at]
        clock = time - day
        kept = (time >= begin[at]) & (time < end[at]) & (time < day + 1)
        pinned = what["pinned"][live][at]
        kept &= pinned | ~((clock > 0.2) & (clock < 0.2 + hop[who]))  # on the way
        at, time, who, clock, pinned = at[kept], time[kept], who[kept], clock[kept], pinned[kept]
        shift = (who % 37) / 37 / 12
        working = (clock > 0.34 + shift) & (clock < 0.68 + shift) & (day % 7 < 5)
        place = np.where(working & ~pinned, work[who], home[who])
        place = np.where(border[who] & (rng.random(len(who)) < 0.5) & ~pinned, nearest[home[who]], place)
        place = np.where((away[who] >= 0) & (clock > 0.2) & ~pinned, away[who], place)
        place = np.where((away_before[who] >= 0) & (clock <= 0.2) & ~pinned, away_before[who], place)
        away_before = away
        index = live[at]
        device, version = what["device"][index], what["version"][index]
        version = np.clip(np.where(time >= what["update"][index], version + 1, version), -1, 99)
        total += _files(
            folder,
            day,
            time,
            device,
            version,
            what["subscriber"][index],
            place,
            names=names,
            hosts=hosts,
            form=form,
            silent=silent,
        )
    return total


def _files(
    folder: Path,
    day: int,
    time: np.ndarray,
    device: np.ndarray,
    version: np.ndarray,
    subscriber: np.ndarray,
    place: np.ndarray,
    *,
    names: pl.Series,
    hosts: pl.Series,
    form: np.ndarray,
    silent: np.ndarray,
) -> int:
    moment = (time * DAY_S * 1e6).astype(np.int64) + int((START - datetime(1970, 1, 1)).total_seconds()) * 10**6  # noqa: DTZ001 - both are without a zone
    digits = form[place]
    checked = _check_digit(device)
    frame = pl.DataFrame(
        {
            "time": moment,
            "device": device,
            "version": version,
            "subscriber": subscriber,
            "place": place,
            "form": digits,
            "digit": checked,
        }
    ).sort("time")
    text = pl.col("device").cast(pl.String).str.zfill(14)
    shown = pl.col("version").cast(pl.String).str.zfill(2)
    frame = frame.with_columns(
        pl.when(pl.col("device") < 0)
        .then(pl.lit("?12345"))
        .when(pl.col("form") == 1)
        .then(text + pl.col("digit").cast(pl.String))
        .when(pl.col("form") == 2)
        .then(text + pl.lit("0"))
        .when((pl.col("form") == 3) & (pl.col("version") >= 0))
        .then(text + shown)
        .otherwise(text)
        .alias("imei"),
        pl.when((pl.col("version") < 0) | pl.Series(silent)[frame["place"]])
        .then(None)
        .otherwise(shown)
        .alias("software_version"),
        names.gather(frame["subscriber"]).alias("hashed"),
        hosts.gather(frame["place"]).alias("origin_host"),
        hosts.gather(frame["place"]).alias("peer"),
    )
    whole = frame.select(
        pl.col("time").cast(pl.Datetime("us")), pl.col("time").cast(pl.Datetime("us")).alias("last"), pl.lit(1, pl.UInt32).alias("checks"), "imei",
        pl.when(pl.col("device") >= 0).then(pl.col("device")).alias("device"), "software_version", pl.col("hashed").alias("subscriber"), "peer",
        pl.lit("001010").alias("home"), "origin_host", pl.lit("epc.mnc001.mcc001.3gppnetwork.org").alias("origin_realm"), pl.lit("s13").alias("protocol"),
        pl.lit("whitelisted").alias("status"), pl.lit("default").alias("rule"), pl.lit(None, pl.String).alias("list"), pl.lit(None, pl.String).alias("observed"),
    )  # fmt: skip
    target = folder / "sightings" / f"{START + timedelta(days=day):%Y-%m-%d}"
    target.mkdir(parents=True, exist_ok=True)
    for hours, part in (
        whole.with_columns((pl.col("time").dt.hour() // 6).alias("part"))
        .partition_by("part", as_dict=True, include_key=False)
        .items()
    ):
        part.write_parquet(
            target / f"{int(hours[0]) * 6:02d}-{part['time'].cast(pl.Int64)[0]}-made.parquet",
            compression="zstd",
            row_group_size=1 << 16,
        )
    return len(whole)


def _check_digit(device: np.ndarray) -> np.ndarray:
    total = np.zeros(len(device), np.int64)
    rest = np.maximum(device, 0)
    for position in range(14):
        digit = rest % 10
        rest = rest // 10
        doubled = digit * 2 if position % 2 == 0 else digit
        total += doubled // 10 + doubled % 10
    return (10 - total % 10) % 10
