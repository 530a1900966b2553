"""Sightings made by hand: a record of a few, phones with one identity, people with one phone."""

import random
import re
from datetime import datetime, timedelta

import polars as pl

from eir.sightings.schema import FILES, FOLDER, SCHEMA

START = datetime(2026, 10, 27)  # noqa: DTZ001 - as in the files


UNTIL = START + timedelta(days=30)


IMEI = "35209900176148"


DAY = 24


EACH_DAY = range(0, 20 * DAY, DAY)


def phones(who, *, a_day=5, days=30, imei=IMEI, places=None, versions=None, seed=1):
    """Each subscriber in a phone of its own: checks at random, while people are awake."""
    drawn = random.Random(seed)
    return sorted(
        (day * DAY + drawn.uniform(6, 23), imei, each, (places or {}).get(each, "mme1"), (versions or {}).get(each))
        for each in who for day in range(days) for _ in range(drawn.choice((a_day - 2, a_day, a_day + 2)))
    )  # fmt: skip


def files(state):
    """The pattern of all files of a node, by its state folder."""
    return str(state / FOLDER / FILES)


NEAR, FAR = (f"mmec01.mmegi800{group}.mme.epc.mnc001.mcc001.3gppnetwork.org" for group in (1, 2))
"""MMEs of two places."""


def people(*places, first=0):
    """People with one phone and one SIM, who are at one place for half of the month, and then at the next one: ordinary traffic."""
    return [
        (hours, imei, who, places[(number + (hours > 15 * DAY)) % len(places)], version)
        for number in range(first, first + 40)
        for hours, imei, who, _, version in phones([f"o{number}"], imei=f"3520995{number:07d}", seed=number)
    ]


def lent(number, *mmes):
    """A phone whose SIMs change once a day, the second one two hours after the first one, by two MMEs."""
    return [
        (day * DAY + 8 + 2 * turn, f"3520994{number:07d}", f"{'ab'[turn]}{number}", mmes[turn], "05")
        for day in range(0, 20, 2) for turn in range(2)
    ]  # fmt: skip


OTHERS = [*people(NEAR, FAR), *(row for number in range(9900, 9912) for row in lent(number, *[(NEAR, FAR)[number % 2]] * 2))]  # fmt: skip
"""Ordinary people, and six phones at each place whose SIM changes there: by these the two origins are two places."""


TAMPERED = {
    "conflict": phones("ab", places={"a": NEAR, "b": FAR}, versions={"a": "05", "b": "05"}),
    "alternates": phones("abcd"),
    "version_alternates": phones("ab", versions={"a": "05", "b": "33"}),
    "sim_box": [
        (turn * 6, f"3520990000{port:04d}", f"card{(turn * 5 + port) % 12}", "mme1", "01")
        for turn in range(40)
        for port in range(8)
    ],
    "sim_box by its SIM": [
        (number * 50 + late, f"3520991234{number:04d}", "a", "mme1", "01") for number in range(9) for late in (0, 5)
    ],
    "placeholder": [(1, "000000000000000", "a", "mme1", None)],
}


def write(state, rows, *, status="whitelisted", peers=None):
    """A record in a state folder; `peers`: who sends the checks of a subscriber or of an origin, if not the origin itself."""
    peers = peers or {}
    types = {
        "TIMESTAMP": pl.Datetime("us"),
        "UINTEGER": pl.UInt32,
        "BIGINT": pl.Int64,
        "VARCHAR": pl.String,
        "BOOLEAN": pl.Boolean,
    }
    frame = pl.DataFrame(
        [
            {
                "time": START + timedelta(hours=hours), "last": START + timedelta(hours=hours), "checks": 1, "imei": imei,
                "device": int(imei[:14]) if re.fullmatch(r"[0-9]{14,16}", imei) else None, "software_version": version, "subscriber": subscriber,
                "home": "001010", "origin_host": origin, "peer": peers.get(subscriber, peers.get(origin, origin)), "origin_realm": "epc", "protocol": "s13", "status": status, "rule": "default",
            }
            for hours, imei, subscriber, origin, version in rows
        ],
        schema={name: types[kind] for name, kind in SCHEMA.items()},
    )  # fmt: skip
    folder = state / "sightings" / f"{START:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "00-1-made.parquet")
