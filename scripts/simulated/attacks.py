"""Attacks on the record of a simulated network: peers that send checks so that honest devices are reported or tampered ones missed.

Each attack is a function from the record to the rows that the attacking peer adds. It may use all of the record: identifiers, SIMs,
times. Unless stated otherwise, it sends from its own Origin-Host, and at most REQUESTS checks about each attacked device. The module
shares no code with the analysis.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from .network_record import World

PEER, ACCOMPLICE = "liar.example", "accomplice.example"
AGENTS = ("agent1.example", "agent2.example")
VICTIMS, REQUESTS, INVENTED = 100, 24, 11_000
Rows = list[dict[str, object]]
Attack = Callable[[pl.DataFrame, list[int], np.random.Generator], Rows]
"""(record, attacked devices, random generator) → rows that the peer adds."""


def record(made: World) -> pl.DataFrame:
    """Return all checks of a network that name a device."""
    return pl.read_parquet(made.folder / "sightings" / "*" / "*.parquet").filter(pl.col("device").is_not_null())


def victims(made: World, checks: pl.DataFrame, seed: int, count: int = VICTIMS) -> list[int]:
    """Return honest phones with one SIM, drawn at random."""
    of = (
        checks.filter(pl.col("device") > 0)
        .group_by("device")
        .agg(pl.col("subscriber").n_unique().alias("sims"), pl.col("origin_host").mode().min().alias("at"))
    )
    honest = (
        of.filter((pl.col("sims") == 1) & ~pl.col("device").is_in([*made.truth, *made.hard]))["device"]
        .sort()
        .to_numpy()
    )
    return [int(device) for device in np.random.default_rng(seed).choice(honest, count, replace=False)]


def clones(made: World) -> list[int]:
    """Return the identifiers that several phones have."""
    return sorted(device for device, (kind, _) in made.truth.items() if kind in {"clone", "taken"})


def plant(made: World, rows: Rows) -> Path:
    """Add rows to the record; yield the file, which is deleted with the rows at the end."""
    first = next(iter(sorted(made.folder.glob("sightings/*/*.parquet"))))
    schema = pl.read_parquet_schema(first)
    usual = {
        "checks": 1, "software_version": None, "home": "001010", "origin_host": PEER, "peer": PEER, "origin_realm": "example", "protocol": "s13",
        "status": "whitelisted", "rule": "default", "list": None, "observed": None,
    }  # fmt: skip
    whole = [usual | {"last": row["time"], "imei": f"{row['device']:014d}"} | row for row in rows]
    path = first.with_name("00-9-planted.parquet")
    pl.DataFrame([{name: row[name] for name in schema} for row in whole], schema=schema).write_parquet(path)
    return path


def _some(times: list[datetime], rng: np.random.Generator, count: int = REQUESTS) -> list[datetime]:
    """Return at most `count` of these times, in order."""
    chosen = rng.choice(len(times), min(count, len(times)), replace=False)
    return sorted(times[int(number)] for number in chosen)


def _at_once(checks: pl.DataFrame, device: int, rng: np.random.Generator) -> list[datetime]:
    """Return times a few minutes after checks of a device."""
    times = checks.filter(pl.col("device") == device)["time"].to_list()
    return [time + _minutes(rng.uniform(1, 20)) for time in _some(times, rng)]


def _minutes(number: float) -> timedelta:
    return timedelta(minutes=float(number))


def _of_model(device: int, number: int) -> int:
    """Return an identifier of the same TAC."""
    return device // 10**6 * 10**6 + number


def another_sim(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A SIM that does not exist, minutes after some checks of the victim."""
    return [
        {"time": time, "device": device, "subscriber": f"invented{device}"}
        for device in after
        for time in _at_once(checks, device, rng)
    ]


def other_version(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """The same with an old software version, every second check without a SIM."""
    return [
        row | {"software_version": "00", "subscriber": None if number % 2 else row["subscriber"]}
        for number, row in enumerate(another_sim(checks, after, rng))
    ]


def second_phone(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A SIM at random times, as in a separate phone with its own software version; every third check is minutes after the victim's."""
    hours = checks["time"].to_list()
    rows = []
    for device in after:
        times = [*_some(hours, rng, REQUESTS * 2 // 3), *_at_once(checks, device, rng)[::3]]
        rows += [
            {"time": time, "device": device, "subscriber": f"invented{device}", "software_version": "00"}
            for time in times
        ]
    return rows


def no_sim(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """Two checks on two days, version 00, no SIM."""
    return [
        {"time": time, "device": device, "subscriber": None, "software_version": "00"}
        for device in after
        for time in _at_once(checks, device, rng)[::12][:2]
    ]


def borrowed_origin(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """Checks that the peer attributes to an MME at which the victim never was."""
    places = checks["origin_host"].unique().sort().to_list()
    been = dict(
        checks.filter(pl.col("device").is_in(after)).group_by("device").agg(pl.col("origin_host").unique()).iter_rows()
    )
    return [
        row | {"origin_host": next((place for place in places if place not in been[row["device"]]), places[0])}
        for row in another_sim(checks, after, rng)
    ]


def four_sims(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """Eight SIMs in turn in all victims, four times a day on six days."""
    return [row | {"subscriber": f"card{number % 8}"} for number, row in enumerate(another_sim(checks, after, rng))]


def its_sim_elsewhere(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """The victim's SIM, each time with a new IMEI."""
    sim = dict(
        checks.filter(pl.col("device").is_in(after)).group_by("device").agg(pl.col("subscriber").first()).iter_rows()
    )
    return [
        {"time": time, "device": _of_model(device, 900_000 + number * VICTIMS + turn), "subscriber": sim[device]}
        for turn, device in enumerate(after) for number, time in enumerate(_at_once(checks, device, rng))
    ]  # fmt: skip


def exchanged_sims(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """The next victim's SIM in the victim's phone."""
    sim = dict(
        checks.filter(pl.col("device").is_in(after)).group_by("device").agg(pl.col("subscriber").first()).iter_rows()
    )
    following = dict(zip(after, [*after[1:], after[0]], strict=True))
    return [row | {"subscriber": sim[following[row["device"]]]} for row in another_sim(checks, after, rng)]


def colluding(checks: pl.DataFrame, after: list[int], rng: np.random.Generator, peers: int = 2) -> Rows:
    """Three SIMs that do not exist, each reported by two or more peers, twice a day on twelve days."""
    hosts = [PEER, ACCOMPLICE, *(f"accomplice{number}.example" for number in range(2, peers))]
    days = checks["time"].dt.date().unique().sort().to_list()
    rows: Rows = []
    for device in after:
        first = int(rng.integers(0, max(len(days) - REQUESTS // 2, 1)))
        for number in range(REQUESTS):
            time = datetime.combine(days[min(first + number // 2, len(days) - 1)], datetime.min.time()) + _minutes(
                rng.uniform(360, 1380)
            )
            host = hosts[int(rng.integers(0, peers))]
            rows.append(
                {
                    "time": time,
                    "device": device,
                    "subscriber": f"invented{number % 3}of{device}",
                    "origin_host": host,
                    "peer": host,
                }
            )
    return rows


def slow_poison(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A second phone, reported by a peer that sends four times as many checks about phones and SIMs of its own, and that has thirty real SIMs."""
    times, real = checks["time"].to_list(), checks.select("device", "subscriber").unique().sort("device", "subscriber")
    rows = second_phone(checks, after, rng)
    rows += [
        {"time": time, "device": _of_model(int(checks["device"][0]), 800_000 + number), "subscriber": f"guest{number}"}
        for number in range(VICTIMS * 2) for time in _some(times, rng, REQUESTS * 2)
    ]  # fmt: skip
    known = rng.choice(len(real), 30, replace=False)
    rows += [
        {"time": time, "device": real["device"][int(number)], "subscriber": real["subscriber"][int(number)]}
        for number in known for time in _some(times, rng, 4)
    ]  # fmt: skip
    return rows


def six_colluding(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """The same by six peers."""
    return colluding(checks, after, rng, peers=6)


def padded(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A second phone, by a peer that also invents 11,000 ordinary phones."""
    times = checks["time"].to_list()
    invented = [
        {"time": times[int(rng.integers(0, len(times)))], "device": _of_model(int(checks["device"][0]), 700_000 + number), "subscriber": f"own{number}"}
        for number in range(INVENTED)
    ]  # fmt: skip
    return [*second_phone(checks, after, rng), *invented]


def by_agents(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A second phone, by an MME behind the two agents that send all peers' checks (see `behind_agents`)."""
    return [row | {"peer": AGENTS[number % 2]} for number, row in enumerate(second_phone(checks, after, rng))]


def behind_agents(made: World, folder: Path) -> World:
    """Copy a network so that all its checks come through two agents."""
    for path in made.folder.glob("sightings/*/*.parquet"):
        target = folder / path.relative_to(made.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        agent = pl.when(pl.col("origin_host").hash(1) % 2 == 0).then(pl.lit(AGENTS[0])).otherwise(pl.lit(AGENTS[1]))
        pl.read_parquet(path).with_columns(agent.alias("peer")).write_parquet(target)
    return replace(made, folder=folder)


def rival(checks: pl.DataFrame, after: list[int], rng: np.random.Generator, *, days: int) -> Rows:
    """A phone with the owner's IMEI and a SIM of its own, checked by real MMEs, in the last days of the record."""
    until, places = checks["time"].max(), checks["origin_host"].unique().sort().to_list()
    rows: Rows = []
    for number, device in enumerate(after):
        place = places[int(rng.integers(0, len(places)))]
        for hour in np.sort(rng.uniform(0, days * 24, days * 5)):
            rows.append(
                {
                    "time": until - timedelta(hours=float(hour)),
                    "device": device,
                    "subscriber": f"{1990000000000 + number:015d}",
                    "origin_host": place,
                    "peer": place,
                    "software_version": "77",
                }
            )
    return rows


PLANTED: Mapping[str, Attack] = {
    "another SIM": another_sim, "a second phone": second_phone, "another software version": other_version, "version 00, no SIM": no_sim, "a borrowed origin": borrowed_origin,
    "SIMs that go round": four_sims, "its SIM with other numbers": its_sim_elsewhere, "exchanged SIMs": exchanged_sims,
    "two colluding peers": colluding, "six colluding peers": six_colluding, "slow poison": slow_poison, "invented phones": padded,
}  # fmt: skip
"""Attacks after which honest devices are reported."""


def peer_discredited(checks: pl.DataFrame, _: list[int], rng: np.random.Generator) -> Rows:
    """Another SIM for phones of the smallest MME, so that this MME seems to lie."""
    of = (
        checks.filter(pl.col("device") > 0)
        .group_by("device")
        .agg(pl.col("subscriber").n_unique().alias("sims"), pl.col("origin_host").mode().min().alias("at"))
    )
    of = of.filter(pl.col("sims") == 1).sort("device")
    smallest = of.group_by("at").len().filter(pl.col("len") >= VICTIMS).sort("len", "at")["at"][0]
    return second_phone(checks, of.filter(pl.col("at") == smallest)["device"].to_list()[:VICTIMS], rng)


def busy_numbers(checks: pl.DataFrame, _: list[int], __: np.random.Generator) -> Rows:
    """A few devices with all the checks of the attack, so that all other devices seem idle."""
    day = checks["time"].min()
    return [
        {"time": day + _minutes(number / 2), "device": _of_model(int(checks["device"][0]), 900_000 + number % 10), "subscriber": f"busy{number % 10}"}
        for number in range(VICTIMS * REQUESTS)
    ]  # fmt: skip


def unknown_tacs(checks: pl.DataFrame, _: list[int], __: np.random.Generator) -> Rows:
    """More devices of each TAC that only one device has."""
    tacs = (
        checks.filter(pl.col("device") > 0)
        .select((pl.col("device") // 10**6).alias("tac"), "device")
        .unique()
        .group_by("tac")
        .len()
        .filter(pl.col("len") == 1)["tac"]
        .sort()
        .to_list()
    )
    time = checks["time"][0]
    return [
        {"time": time, "device": tac * 10**6 + number, "subscriber": f"new{tac}{number}"}
        for tac in tacs[: VICTIMS * REQUESTS // 5]
        for number in range(5)
    ]


def quick_moves(checks: pl.DataFrame, _: list[int], __: np.random.Generator) -> Rows:
    """Phones with one SIM that are at two MMEs at once by the peer's checks, for all pairs of MMEs; no rows if there is one MME."""
    places = checks["origin_host"].unique().sort().to_list()
    pairs = [(a, b) for number, a in enumerate(places) for b in places[number + 1 :]]
    each = max(VICTIMS * REQUESTS // max(len(pairs), 1) // 2, 21)
    start = checks["time"].min()
    return [
        {"time": start + _minutes(60 * turn + late), "device": _of_model(int(checks["device"][0]), 900_000 + at), "subscriber": f"quick{at}", "origin_host": place}
        for at, pair in enumerate(pairs[: VICTIMS * REQUESTS // each // 2]) for turn in range(each) for place, late in zip(pair, (0, 1), strict=True)
    ]  # fmt: skip


def foreign_sim(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """A SIM of another network a minute after checks of the clones, as if they were phones with several IMSIs."""
    rows = another_sim(checks, after[:VICTIMS], rng)
    return [row | {"home": "310410"} for row in rows]


def loud_module(checks: pl.DataFrame, _: list[int], __: np.random.Generator) -> Rows:
    """A module with a check each 20 s for a day."""
    day, device = checks["time"].min(), _of_model(int(checks["device"][0]), 900_100)
    return [{"time": day + _minutes(number / 3), "device": device, "subscriber": "loud"} for number in range(4000)]


def million(checks: pl.DataFrame, after: list[int], rng: np.random.Generator) -> Rows:
    """One row of a million checks in each clone."""
    return [row | {"checks": 1_000_000} for device in after[:VICTIMS] for row in another_sim(checks, [device], rng)[:1]]


BLINDING: Mapping[str, Attack] = {
    "a peer is discredited": peer_discredited, "numbers that are busy": busy_numbers, "unknown TACs": unknown_tacs, "quick moves": quick_moves,
    "foreign SIMs in clones": foreign_sim, "a loud module": loud_module, "rows of a million checks": million,
}  # fmt: skip
"""Attacks after which tampered devices are missed; where an attack needs the copied identifiers, it gets them."""
