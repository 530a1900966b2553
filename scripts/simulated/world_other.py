"""Simulated network for `bench tamper` under other assumptions than `world`; the seed draws each of its rates.

Shares nothing with `world` but the form of a simulated network. A pool of MMEs serves a province, and any of them may ask. People stay in
a province for days or weeks and then travel for hours without checks. Checks come at random while a person is awake, from once to
twenty times a day. Copies may be sold in one market and stay in its province.
"""

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from eir.sightings.conditions import Tac

from .world import START, World

MOVES = 10


def make(folder: Path, subscribers: int, *, days: int = 30, seed: int) -> World:  # noqa: C901, PLR0915 - the list of what there is in a network
    """Make a network with this number of honest subscribers in a folder."""
    rng = np.random.default_rng([seed, 2])
    provinces = int(rng.integers(3, 16))
    pools = rng.integers(1, 4, provinces)
    mean_rate, stay_days = rng.uniform(2.5, 7), rng.uniform(6, 40)
    families, doubles, handed = rng.uniform(0.003, 0.025), rng.uniform(0, 0.01), rng.uniform(0.01, 0.05)
    swaps_a_day, bazaar, other_firmware, updates = (
        rng.uniform(0.05, 1.2),
        rng.uniform(0, 0.5),
        rng.uniform(0.2, 0.8),
        rng.uniform(0.05, 0.5),
    )
    tacs = rng.choice(np.arange(35_000_000, 35_990_000, 37), 400, replace=False)
    weights = rng.exponential(1, 400)
    everything = np.unique(
        tacs[rng.choice(400, subscribers * 2 + 20_000, p=weights / weights.sum())] * 10**6
        + rng.integers(0, 10**6, subscribers * 2 + 20_000)
    )
    stock = iter(rng.permutation(everything))
    firmware = dict(zip(tacs.tolist(), rng.integers(2, 90, 400).tolist(), strict=True))

    rows: list[tuple[int, int, int, float, float, int, float, float]] = []
    """device, subscriber, person, begin, end, version, when it is updated, part of the person's rate"""
    partners: list[tuple[int, int]] = []
    truth: dict[int, tuple[str, int]] = {}
    hard: dict[int, str] = {}
    persons = 0

    def person() -> int:
        nonlocal persons
        persons += 1
        return persons - 1

    def usual(device: int) -> int:
        return firmware[device // 10**6] + int(rng.random() < 0.2)

    def update() -> float:
        return float(rng.uniform(0, days)) if rng.random() < updates else 1e9

    phones: list[tuple[int, int, int, float]] = []
    """Those who keep to one SIM: person, device, version, and the time of its update."""
    for _ in range(subscribers):
        who, device, chance = person(), int(next(stock)), rng.random()
        version, at = usual(device), update()
        if chance < families:
            other, time, mine = person(), 0.0, True
            while time < days:
                lasts = rng.exponential(1 / swaps_a_day) + 0.01 if mine else rng.exponential(0.3) + 0.01
                rows.append((device, who if mine else other, who, time, time + lasts, version, at, 1))
                time, mine = time + lasts, not mine
            hard[device] = "lent in a family"
        elif chance < families + doubles:
            rows.append((device, who, who, 0, 1e9, version, at, 1))
            partners.append((who, person()))
            hard[device] = "two SIMs, one IMEI"
        elif chance < families + doubles + handed:
            end = float(rng.uniform(0, days))
            rows += [(device, who, who, 0, end, version, at, 1), (int(next(stock)), who, who, end, 1e9, 5, 1e9, 1)]
            buyer = person()
            rows.append((device, buyer, buyer, end + float(rng.exponential(1)), 1e9, version, at, 1))
        else:
            phones.append((who, device, version, at))
            rows.append((device, who, who, 0, 1e9, version, at, 1))
    for _ in range(max(2, subscribers // 8000)):
        shop, tester, owner = int(next(stock)), person(), person()
        for time in rng.uniform(0, days, int(rng.integers(40, 200))):
            guest, device, version, at = phones[int(rng.integers(0, len(phones)))]
            rows += [
                (shop, guest, owner, time, time + 0.01, 8, 1e9, 20),
                (device, tester, guest, time + 0.02, time + 0.03, version, at, 20),
            ]
            hard[device] = "a tester's SIM in it"
        hard[shop] = "a shop's phone for SIMs"
    for _ in range(max(3, subscribers // 2500)):
        loan, time = int(next(stock)), 0.0
        while time < days:
            lasts, guest = float(rng.uniform(0.3, 4)), int(rng.integers(0, subscribers))
            rows.append((loan, guest, guest, time, time + lasts, 6, 1e9, 1))
            time += lasts + float(rng.exponential(0.5))
        hard[loan] = "a loan phone handed on"
    province_of: dict[int, int] = {}
    for _ in range(max(60, int(subscribers * rng.uniform(0.003, 0.008)))):
        copies = int(
            rng.choice(
                [2, 3, int(rng.integers(4, 7)), int(rng.integers(7, 21)), int(rng.integers(21, 40))],
                p=[0.3, 0.25, 0.25, 0.17, 0.03],
            )
        )
        genuine = rng.random() < 0.5
        if genuine:
            first, device, version, _ = phones[int(rng.integers(0, len(phones)))]
        else:
            first, device, version = -1, int(next(stock)), 0
        where = first if genuine else None
        for _ in range(copies - genuine):
            who = person()
            if where is not None and rng.random() < bazaar:
                province_of[who] = where
            where = who if where is None else where
            begin = 0.0 if rng.random() < 0.8 else float(rng.uniform(0, days / 2))
            rows.append(
                (
                    device,
                    who,
                    who,
                    begin,
                    1e9,
                    int(rng.integers(1, 95)) if rng.random() < other_firmware else version or 30,
                    1e9,
                    1,
                )
            )
        truth[device] = ("clone", copies)
    for _ in range(max(12, subscribers // 4000)):
        who, taken = person(), phones[int(rng.integers(0, len(phones)))][1]
        rows.append((taken, who, who, float(rng.uniform(0, days / 2)), 1e9, int(rng.integers(1, 95)), 1e9, 1))
        truth.setdefault(taken, ("taken", 2))
        who, device = person(), int(rng.integers(36_000_000, 85_000_000)) * 10**6 + int(rng.integers(0, 10**6))
        rows.append((device, who, who, float(rng.uniform(0, days / 2)), 1e9, int(rng.integers(1, 95)), 1e9, 1))
        truth[device] = ("never_allocated", 1)
        who, device = person(), int(next(stock))
        rows.append((device, who, who, float(rng.uniform(0, days / 2)), 1e9, int(rng.integers(1, 95)), 1e9, 1))
        truth[device] = ("free", 1)
    for _ in range(max(3, subscribers // 20_000)):
        room, cards = person(), [person() for _ in range(int(rng.integers(10, 80)))]
        turn, time = float(rng.uniform(0.1, 1.5)), 0.0
        ports = [int(next(stock)) for _ in range(int(rng.integers(6, 40)))]
        while time < days:
            order = rng.permutation(cards)
            rows += [
                (port, int(card), room, time, time + turn, 4, 1e9, 1.5)
                for port, card in zip(ports, order, strict=False)
            ]
            time += turn
        truth.update((port, ("box", len(cards))) for port in ports[: len(cards)])
    truth[0] = ("zero", 6)
    for _ in range(6):
        who = person()
        rows.append((0, who, who, 0, 1e9, 0, 1e9, 1))

    # Where everybody is, and when
    rate = mean_rate * rng.lognormal(-0.32, 0.8, persons)
    moved = np.cumsum(rng.exponential(stay_days, (persons, MOVES)), axis=1)
    size = rng.dirichlet(np.ones(provinces) * 2)
    stays = rng.choice(provinces, (persons, MOVES + 1), p=size)
    stays[:, 1::2] = rng.choice(provinces, (persons, (MOVES + 1) // 2), p=size)
    stays[:, 2::2] = stays[:, :1]  # home again
    for who, like in province_of.items():
        stays[who] = stays[like, 0]
    on_way = rng.uniform(0.08, 0.5, (persons, MOVES))
    wakes, awake = rng.uniform(0.2, 0.4, persons), rng.uniform(0.5, 0.75, persons)
    agent = np.array(rows)
    lasting = np.clip(np.minimum(agent[:, 4], days) - np.maximum(agent[:, 3], 0), 0, days)
    who = agent[:, 2].astype(int)
    of = np.repeat(np.arange(len(agent)), rng.poisson(rate[who] * agent[:, 7] * lasting))
    time = agent[of, 3] + rng.random(len(of)) * lasting[of]
    carrier = who[of]
    time = np.floor(time) + (wakes[carrier] + (time % 1) * awake[carrier]) % 1
    attached = np.flatnonzero((agent[:, 3] > 0) & (agent[:, 3] < days))
    of, time = np.concatenate([of, attached]), np.concatenate([time, agent[attached, 3] + 2e-4])
    keep = (time >= agent[of, 3]) & (time < np.minimum(agent[of, 4], days))
    of, time = of[keep], time[keep]
    subscriber = agent[of, 1].astype(int)
    if partners:
        second = np.full(persons, -1)
        second[[first for first, _ in partners]] = [other for _, other in partners]
        with_it = np.flatnonzero((second[subscriber] >= 0) & (rng.random(len(of)) < 0.6))
        of, time, subscriber = (
            np.concatenate([of, of[with_it]]), np.concatenate([time, np.minimum(time[with_it] + rng.exponential(30, len(with_it)) / 86400, days - 1e-6)]),
            np.concatenate([subscriber, second[subscriber[with_it]]]),
        )  # fmt: skip
    carrier = who[of]
    seconds_part = (time[:, None] >= moved[carrier]).sum(axis=1)
    before_move = moved[carrier, np.minimum(seconds_part, MOVES - 1)] - time
    here = before_move > on_way[carrier, np.minimum(seconds_part, MOVES - 1)]
    of, time, subscriber, carrier, seconds_part = (
        of[here],
        time[here],
        subscriber[here],
        carrier[here],
        seconds_part[here],
    )
    province = stays[carrier, seconds_part]
    mme = (rng.random(len(province)) * pools[province]).astype(int)
    version = np.where(time >= agent[of, 6], agent[of, 5] + 1, agent[of, 5]).astype(int)
    names = pl.Series([f"{(number * 2654435761 + seed) % 2**64:016x}{number:016x}" for number in range(persons)])
    quiet = rng.random((provinces, 4)) < rng.uniform(0, 0.5)
    frame = pl.DataFrame({
        "time": (time * 86400e6).astype(np.int64) + int((START - datetime(1970, 1, 1)).total_seconds()) * 10**6,  # noqa: DTZ001 - as in the files
        "device": agent[of, 0].astype(np.int64), "version": np.where(quiet[province, mme], -1, version), "who": subscriber, "province": province, "mme": mme,
    }).sort("time")  # fmt: skip
    _write(folder, frame, names)
    return World(
        folder=folder, tacs=tuple(Tac(tac, date(2020, 5, 1), "") for tac in tacs.tolist()), since=START, until=START + timedelta(days=days), rows=len(frame), truth=truth,
        hard={device: what for device, what in hard.items() if device not in truth},
    )  # fmt: skip


def _write(folder: Path, frame: pl.DataFrame, names: pl.Series) -> None:
    moment = pl.col("time").cast(pl.Datetime("us"))
    whole = frame.select(
        moment.alias("time"), moment.alias("last"), pl.lit(1, pl.UInt32).alias("checks"), pl.col("device").cast(pl.String).str.zfill(14).alias("imei"), "device",
        pl.when(pl.col("version") >= 0).then(pl.col("version").cast(pl.String).str.zfill(2)).alias("software_version"), names.gather(frame["who"]).alias("subscriber"),
        pl.lit("001010").alias("home"), pl.format("mme{}-{}.epc.example", "province", "mme").alias("origin_host"), pl.format("mme{}-{}.epc.example", "province", "mme").alias("peer"), pl.lit("epc.example").alias("origin_realm"),
        pl.lit("s13").alias("protocol"), pl.lit("whitelisted").alias("status"), pl.lit("default").alias("rule"), pl.lit(None, pl.String).alias("list"), pl.lit(None, pl.String).alias("observed"),
    )  # fmt: skip
    for (day,), part in whole.group_by(pl.col("time").dt.strftime("%Y-%m-%d"), maintain_order=True):
        target = folder / "sightings" / str(day)
        target.mkdir(parents=True, exist_ok=True)
        part.write_parquet(target / "00-0-made.parquet", compression="zstd", row_group_size=1 << 16)
