"""Phones with a tampered identity: those planted in two made networks are found and honest ones are not; what is reported and exported."""

import csv
import io
import random
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from luhn import check_digit

from eir.analysis import page
from eir.analysis.conditions import CONDITIONS, PARAMETERS, PRIOR, WEIGHTS, Place, TamperSettings
from eir.analysis.duck import duck
from eir.analysis.engine import SQL
from eir.analysis.judge import calibrated, judge
from eir.analysis.schema import SCHEMA, files
from eir.errors import EirError, SetupFault

SCRIPTS = Path(__file__).parents[2] / "scripts"
START = datetime(2026, 10, 27)  # noqa: DTZ001 - as in the files
UNTIL = START + timedelta(days=30)
IMEI = "35209900176148"
PEOPLE = 1000


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A network of each generator; the seed of the second differs from run to run there, and is one that is known here."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        from benchmark import world, world_other

        folders = [tmp_path_factory.mktemp("world") for _ in range(2)]
        return [world.make(folders[0], PEOPLE, seed=5), world_other.make(folders[1], PEOPLE, seed=6)]
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def judged(worlds):
    """What is found in them."""
    found = []
    for made in worlds:
        settings = TamperSettings(tac_db=made.tac_db)
        with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory) as engine:
            found.append(judge(engine, settings, since=made.since, until=made.until))
    return found


@pytest.fixture
def judge_rows(tmp_path):
    """Judges a few sightings: (hours from the start, IMEI, subscriber, origin, software version)."""

    def judged(rows, warn=lambda _: None, status="whitelisted", **settings):
        write(tmp_path, rows, status=status)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            return judge(engine, TamperSettings(**settings), since=START, until=UNTIL, warn=warn)

    return judged


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


def recall(made, found, kinds, copies=range(1000)):
    planted = {device for device, (kind, many) in made.truth.items() if kind in kinds and many in copies}
    return len(planted & {finding.device for finding in found.findings}) / len(planted)


# ---- in whole networks ----


def test_what_is_planted_is_found(worlds, judged):
    for made, found in zip(worlds, judged, strict=True):
        assert recall(made, found, {"clone"}, range(2, 4)) >= 0.8
        assert recall(made, found, {"clone"}, range(4, 1000)) >= 0.95
        assert recall(made, found, {"box"}) >= 0.95
        assert recall(made, found, {"taken", "never_allocated"}) >= 0.8
        assert recall(made, found, {"zero"}) == 1
        assert found.left_out == ()


def test_who_is_honest_is_left_alone(worlds, judged):
    for made, found in zip(worlds, judged, strict=True):
        wrongly = {
            finding.imei: (finding.conditions, made.hard.get(finding.device))
            for finding in found.findings
            if finding.device not in made.truth
        }
        assert len(wrongly) <= 0.02 * len(found.findings), wrongly
        assert len(set(made.hard.values())) >= 4  # and there were such as are hard to tell


def test_checks_that_name_no_device_are_counted_by_origin(judged):
    assert sum(seen for _, seen, _ in judged[0].malformed) > 100
    assert judged[1].malformed == ()


def test_the_second_network_is_another_with_each_seed(worlds, tmp_path):
    sys.path.insert(0, str(SCRIPTS))
    try:
        from benchmark import world_other

        again = world_other.make(tmp_path, 200, seed=7)
    finally:
        sys.path.remove(str(SCRIPTS))
    assert again.truth.keys() != worlds[1].truth.keys()


# ---- one device at a time ----

DAY = 24
EACH_DAY = range(0, 20 * DAY, DAY)
SALE = [(at, IMEI, "a" if at < 10 * DAY else "b", "mme1", "05") for at in range(0, 20 * DAY, 5)]
LENT = [
    *((at, IMEI, "a", "mme1", "05") for at in range(0, 20 * DAY, 5)),
    (100.2, IMEI, "b", "mme1", "05"),
    (220.2, IMEI, "b", "mme1", "05"),
]
UPDATED = [(at, IMEI, "a", "mme1", "05" if at < 200 else "06") for at in range(0, 400, 5)]
PUT_BACK = [(at, IMEI, "a", "mme1", "06" if 200 <= at < 300 else "05") for at in range(0, 400, 5)]
HONEST = {
    "a phone that is sold": SALE,
    "one that is lent twice": LENT,
    "new firmware": UPDATED,
    "firmware that was put back once": PUT_BACK,
    "a repair: another SIM in it for an hour": [*SALE[:40], (201.1, IMEI, "shop", "mme2", "05"), *SALE[41:]],
    "two SIMs that come together": [
        (at + late, IMEI, who, "mme1", "05") for at in range(0, 600, 3) for who, late in (("a", 0), ("b", 0.01))
    ],
    "a loan phone": [(at * DAY + hour, IMEI, f"guest{at}", "mme1", "05") for at in range(30) for hour in (9, 12, 15)],
    "a shop's phone": [(at * 0.5, IMEI, f"guest{at}", "mme1", "05") for at in range(300)],
    "a carton of phones": [(number, f"352099{number + 100:08d}", f"s{number}", "mme1", "05") for number in range(20)],
    "one identity never seen elsewhere": [(1, IMEI, "a", "mme1", None)],
    "nobody said who": [(at, IMEI, None, "mme1", "05") for at in range(0, 400, 5)],
}


def phones(who, *, a_day=5, days=30, imei=IMEI, places=None, versions=None, seed=1):
    """Each subscriber in a phone of its own: checks at random, while people are awake."""
    drawn = random.Random(seed)
    return sorted(
        (day * DAY + drawn.uniform(6, 23), imei, each, (places or {}).get(each, "mme1"), (versions or {}).get(each))
        for each in who for day in range(days) for _ in range(drawn.choice((a_day - 2, a_day, a_day + 2)))
    )  # fmt: skip


OTHERS = [
    row
    for number in range(40)
    for row in phones(
        [f"o{number}"], imei=f"3520995{number:07d}", places={f"o{number}": f"mme{1 + number % 2}"}, seed=number
    )
]
"""People with one phone and one SIM, at two places: what is usual."""
TAMPERED = {
    "conflict": [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2))
    ],
    "alternates": phones("abc"),
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


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_device_is_not_reported(judge_rows, what):
    assert [(finding.imei, finding.evidence) for finding in judge_rows(HONEST[what]).findings] == []


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_device_is_reported_with_its_evidence(judge_rows, what):
    found = judge_rows([*TAMPERED[what], *OTHERS]).findings
    assert {finding.device for finding in found} == {int(imei[:14]) for _, imei, *_ in TAMPERED[what]}
    assert all(what.split()[0] in finding.conditions for finding in found)
    assert all(0.95 <= finding.score < 1 and finding.evidence for finding in found)


def test_places_say_whether_two_origins_are_far_apart(judge_rows):
    rows = [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2))
    ]
    near = {"mme1": Place(50.45, 30.52), "mme2": Place(50.40, 30.60)}
    far = {"mme1": Place(50.45, 30.52), "mme2": Place(49.84, 24.03)}
    assert judge_rows(rows, origins=near).findings == ()
    assert judge_rows(rows, origins=far).findings[0].conditions[0] == "conflict"


def test_origins_that_meet_are_learned_from_phones_with_one_sim(judge_rows):
    crossing = [
        (at + number / 60, f"3520995{number:07d}", f"s{number}", f"mme{1 + at % 2}", None)
        for number in range(30)
        for at in range(12)
    ]
    border = [
        (at / 5 + late, f"3520996{number:07d}", f"t{number}", f"mme{1 + (at + turn) % 2}", None)
        for number in range(30)
        for at in range(12)
        for turn, late in ((0, 0), (1, 0.1))
    ]
    pair = [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2))
    ]
    assert judge_rows([*crossing, *pair]).findings[0].conditions[0] == "conflict"
    home = [
        (at / 5 + late, f"3520997{number:07d}", f"u{number}", "mme1", None)
        for number in range(30)
        for at in range(12)
        for late in (0, 0.1)
    ]
    assert judge_rows([*border, *home, *pair]).findings == ()


TACS = "TAC|Manufacturer|Model_Name|Bands|Allocation_Date|Device_Type|Optional_Fields\n"


def test_tacs(judge_rows, tmp_path):
    listed = tmp_path / "tac-db.txt"
    listed.write_text(
        f"{TACS}35209900|M|N|LTE 3|01-Jan-2020|Phone|\n35209901|M|N|LTE 3, NR n78|25-Nov-2026|Phone|\n\nnonsense\n"
    )
    rows = [
        (1, IMEI, "a", "mme1", None),
        (1, "35209901000000", "b", "mme1", None),
        (1, "35209977000000", "c", "mme1", None),
    ]
    rows += [
        (1, f"352099880000{number:02d}", f"d{number}", "mme1", None) for number in range(20)
    ]  # a model that is new
    found = {finding.imei: finding.evidence for finding in judge_rows(rows, tac_db=listed).findings}
    assert found.keys() == {"35209901000000", "35209977000000"}
    assert "allocated on 2026-11-25, after" in found["35209901000000"]
    assert "whose newest is of 2026-11-25; devices that show it: 1" in found["35209977000000"]
    (barred,) = judge_rows(rows, barred_tacs=("35209900",)).findings
    assert (barred.imei, barred.conditions, barred.evidence) == (IMEI, ("tac",), "a TAC that is barred")
    assert judge_rows(rows).findings == ()
    with pytest.raises(SetupFault, match=r"tamper\.tac_db: .*none"):
        judge_rows(rows, tac_db=tmp_path / "none")


@pytest.mark.parametrize(("newest", "sure"), [("28-Sep-2026", True), ("25-Sep-2026", False)])
def test_a_list_of_tacs_knows_no_models_newer_than_itself(judge_rows, tmp_path, newest, sure):
    (tmp_path / "tac-db.txt").write_text(
        f"{TACS}35209900|M|N|LTE|01-Jan-2020|Phone|\n35209902|M|N|LTE|{newest}|Phone|\n"
    )
    found = judge_rows(
        [(1, "35209977000000", "c", "mme1", None), (1, "12209977000000", "d", "mme1", None)],
        tac_db=tmp_path / "tac-db.txt",
    )
    assert {finding.imei for finding in found.findings} == {"12209977000000", *(["35209977000000"] if sure else [])}


@pytest.mark.parametrize(("others", "sure"), [(3, True), (4, False)])
def test_five_devices_of_an_unknown_tac_are_rather_a_new_model(judge_rows, tmp_path, others, sure):
    (tmp_path / "tac-db.txt").write_text(f"{TACS}35209900|M|N|LTE|01-Jan-2020|Phone|\n")
    rows = [(1, f"352099770000{number:02d}", f"c{number}", "mme1", None) for number in range(others + 1)]
    assert bool(judge_rows(rows, tac_db=tmp_path / "tac-db.txt").findings) is sure


def test_modules_with_one_number_are_counted_and_no_findings(judge_rows, tmp_path):
    (tmp_path / "tac-db.txt").write_text(
        f"{TACS}35209900|M|N|LTE|01-Jan-2020|IoT Module|\n35209950|M|N|LTE|01-Jan-2021|Smartphone|\n"
    )
    rows = [*phones("abcdefgh"), *OTHERS]
    found = judge_rows(rows, tac_db=tmp_path / "tac-db.txt")
    assert (found.findings, found.batches) == ((), ((IMEI, 8),))
    assert judge_rows(rows).findings[0].imei == IMEI  # without a list that has types nobody can tell


@pytest.mark.parametrize(
    ("people", "says"), [(100, "; they change"), (101, ", of whom the busiest 100 are looked at; they change")]
)
def test_of_a_number_in_many_phones_the_busiest_are_looked_at(judge_rows, people, says):
    rows = [
        (day * DAY + number / 10, IMEI, f"s{number}", f"mme{number % 3}", None)
        for number in range(people)
        for day in (0, 3)
    ]
    (finding,) = judge_rows([*rows, *OTHERS]).findings
    assert (finding.subscribers, finding.copies) == (people, people)
    assert f"subscribers who came back: {people}{says}" in finding.evidence


def test_pools_are_known_by_their_names(judge_rows):
    def two(first, second):
        return [
            (at + late, IMEI, who, mme, "05")
            for at in EACH_DAY
            for who, mme, late in (("a", first, 0), ("b", second, 0.2))
        ]

    domain = ".mme.epc.mnc001.mcc001.3gppnetwork.org"
    assert judge_rows(two(f"mmec01.mmegi8001{domain}", f"mmec02.mmegi8001{domain}")).findings == ()
    assert (
        judge_rows(two(f"mmec01.mmegi8001{domain}", f"mmec01.mmegi8002{domain}")).findings[0].conditions[0]
        == "conflict"
    )


def test_pools_in_which_a_sim_keeps_its_mme_are_learned_from_phones_with_two(judge_rows):
    pair = [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2))
    ]
    families = [
        (day * DAY + late, f"3520994{number:07d}", f"{who}{number}", f"mme{1 + (number + (who == 'b') * (number % 4 < 2)) % 2}", "05")
        for number in range(12) for day in range(0, 20, 3) for who, late in (("a", 0), ("a", 5), ("b", 5.5), ("a", 30))
    ]  # fmt: skip
    assert judge_rows(pair).findings[0].conditions[0] == "conflict"
    assert judge_rows([*pair, *families]).findings == ()


def test_what_one_peer_alone_says_of_many_is_not_believed(tmp_path):
    victims = [
        row for number in range(60) for row in phones([f"v{number}"], a_day=4, imei=f"3520993{number:07d}", seed=number)
    ]
    lies = [
        (3 * DAY + at * 26 + number / 60, f"3520993{number:07d}", f"x{number}", "liar", "00")
        for number in range(60)
        for at in range(24)
    ]
    real = [*TAMPERED["conflict"], *OTHERS]
    said = []

    def judged(rows):
        write(tmp_path, rows)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            return judge(engine, TamperSettings(), since=START, until=UNTIL, warn=said.append)

    found = judged([*victims, *lies, *real])
    assert [finding.imei for finding in found.findings] == [IMEI]
    assert found.left_out == ("liar",)
    assert "liar" in said[0]
    assert judged([*victims, *real]).left_out == ()


def test_who_claims_another_s_origin_is_not_believed(tmp_path):
    victims = [
        row for number in range(30) for row in phones([f"v{number}"], a_day=4, imei=f"3520993{number:07d}", seed=number)
    ]
    far = [(at, f"3520992{at:07d}", f"f{at}", "mme2", None) for at in range(600)]
    lies = [
        (DAY + at * 26 + number / 60, f"3520993{number:07d}", f"x{number}", "mme2", "00")
        for number in range(2)
        for at in range(24)
    ]
    write(tmp_path, [*victims, *far, *lies], peers={"mme2": "dra"} | {f"x{number}": "liar" for number in range(2)})
    with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
        assert judge(engine, TamperSettings(), since=START, until=UNTIL).findings == ()


def test_checks_before_the_sim_was_authenticated_are_left_out(tmp_path):
    """Anybody may have named the SIM: nobody is judged by that. Files from before there was the mark have no such column."""
    rows = TAMPERED["conflict"]
    found = []
    for early in (None, True, False):
        write(tmp_path, rows)
        for path in (tmp_path / "sightings").glob("*/*.parquet"):
            frame = pl.read_parquet(path, glob=False).drop("early", strict=False)
            (frame if early is None else frame.with_columns(early=pl.lit(early))).write_parquet(path)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            found.append([each.imei for each in judge(engine, TamperSettings(), since=START, until=UNTIL).findings])
    assert found == [[IMEI], [], [IMEI]]


def test_checks_of_probes_and_auditors_are_left_out(tmp_path):
    write(tmp_path, [*TAMPERED["conflict"], (5, "000000000000000", "z", "audit", None)], peers={"mme2": "it's"})
    found = {}
    for without in ((), ("audit",), ("audit", "it's")):
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28, without=without) as engine:
            found[without] = [
                finding.imei for finding in judge(engine, TamperSettings(), since=START, until=UNTIL).findings
            ]
    assert list(found.values()) == [["00000000000000", IMEI], [IMEI], []]


def test_subscribers_seen_on_one_day_are_no_evidence(judge_rows):
    crowd = [(at * 0.4, IMEI, f"s{at % 20}", f"mme{at % 2}", "05" if at % 2 else "33") for at in range(55)]
    assert judge_rows([*crowd, *phones("a")]).findings == ()


@pytest.mark.parametrize(("minutes", "conflicts"), [(54, 20), (56, 0)])
def test_a_conflict_is_sooner_by_five_minutes_than_a_phone_gets_there(judge_rows, minutes, conflicts):
    rows = [
        (at + late, IMEI, who, mme, None)
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", minutes / 60))
    ]
    said = "; ".join(finding.evidence for finding in judge_rows(rows, report_min=0).findings)
    assert (f"days at two places at once: {conflicts} (times: {conflicts})" in said) is bool(conflicts)
    assert ("two places" in said) is bool(conflicts)


@pytest.mark.parametrize(("days", "found"), [(4, True), (3, False)])
def test_ports_are_a_box_from_four_days_on(judge_rows, days, found):
    rows = [
        (turn * 4, f"3520990000{port:04d}", f"card{(turn * 5 + port) % 12}", "mme1", "01")
        for turn in range(days * 6)
        for port in range(8)
    ]
    assert ("sim_box" in judge_rows(rows, report_min=0).findings[0].conditions) is found


@pytest.mark.parametrize(("numbers", "found"), [(5, True), (4, False)])
def test_a_sim_of_a_box_uses_up_five_devices(judge_rows, numbers, found):
    rows = [
        (number * 50 + late, f"3520991234{number:04d}", "a", "mme1", "01")
        for number in range(numbers)
        for late in (0, 5)
    ]
    assert bool(judge_rows(rows).findings) is found


def test_a_laboratory_and_a_refurbisher_are_no_box(judge_rows):
    laboratory = [
        (at * 30 + number / 2, f"3520991111{at:04d}", f"card{number}", "mme1", "01")
        for at in range(10)
        for number in range(4)
    ]
    refurbished = [
        (at * 7 + number / 3, f"3520992222{at:04d}", f"try{(at + number) % 6}", "mme1", "01")
        for at in range(60)
        for number in range(5)
    ]
    sold = [
        (at * 7 + later, f"3520992222{at:04d}", f"buyer{at}", "mme1", "01")
        for at in range(0, 60, 2)
        for later in (60, 90, 110, 130)
    ]
    assert judge_rows([*laboratory, *refurbished, *sold]).findings == ()


def test_versions_that_go_back_on_a_second_day_say_more(judge_rows):
    def score(days):
        rows = [
            (at + late, IMEI, who, "mme1", "33" if who == "a" or at >= days * DAY else "05")
            for at in EACH_DAY
            for who, late in (("a", 0), ("b", 3), ("a", 7), ("b", 11))
        ]
        (finding,) = (each for each in judge_rows([*rows, *OTHERS], report_min=0).findings if each.imei == IMEI)
        assert f"as the subscriber changes: {days}, between 33 and 05" in finding.evidence
        return finding.score

    assert score(1) < 0.01 < score(2)


def test_scores_are_shifted_by_cases():
    odds = [(number, 2.0) for number in range(100)]
    assert calibrated(odds, {}) == 0
    assert calibrated(odds, dict.fromkeys(range(100), False)) < -3
    assert calibrated(odds, {number: number < 88 for number in range(100)}) == pytest.approx(0, abs=0.05)
    assert PRIOR == 0.005


def test_what_the_engine_cannot_do_is_said(tmp_path):
    write(tmp_path, SALE)
    with (
        pytest.raises(EirError, match=r"tamper\.memory is 1 MiB"),
        duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 20) as engine,
    ):
        judge(engine, TamperSettings(), since=START, until=UNTIL)
    (damaged,) = tmp_path.glob("sightings/*/*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with (
        pytest.raises(EirError, match=f"cannot be judged: .*{damaged.name}"),
        duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine,
    ):
        judge(engine, TamperSettings(), since=START, until=UNTIL)


def test_tables_of_conditions_are_the_files():
    assert {path.stem for path in (SQL / "conditions").glob("*.sql")} == CONDITIONS.keys()
    text = "".join(path.read_text() for path in SQL.rglob("*.sql"))
    assert set(re.findall(r"parameters\.(\w+)", text)) <= {*PARAMETERS, "sample_one_of", "until"}
    assert set(re.findall(r"\{(\w+)\}", text)) == WEIGHTS.keys()
    page_text = (SQL.parent / "README.md").read_text()
    assert all(f"`{name}`" in page_text for name in CONDITIONS)


# ---- what people and scripts get ----


@pytest.fixture
def operator(site):
    """A site whose record has a dozen clones, an identifier of zeros and a box, among honest devices."""
    clones = [
        (at + late, f"352099008800{number:02d}", f"{who}{number}", mme, "05")
        for number in range(12)
        for at in range(0, 240, 24)
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2))
    ]
    honest = [(number, f"3520994{number:07d}", f"s{number}", "mme1", "05") for number in range(300)]
    write(site.state, [*clones, *TAMPERED["sim_box"], *TAMPERED["placeholder"], *honest])
    return site


UNTIL_DAY = ("--until", f"{UNTIL:%Y-%m-%d}")


def test_the_report(operator, tmp_path):
    out, public = tmp_path / "report.html", tmp_path / "public.html"
    sheet = tmp_path / "report.csv"
    rows = operator.json("tamper", "report", *UNTIL_DAY, "--csv", sheet, "--html", out, "--public", public)
    assert len(rows) == 12 + 8 + 1
    assert list(rows[0])[:7] == ["imei", "score", "conditions", "subscribers", "first_seen", "last_seen", "evidence"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(
        re.fullmatch(r"[0-9]{14}", row["imei"]) and re.fullmatch(r"2026-1[01]-\d\dT\d\d:\d\d:\d\dZ", row["first_seen"])
        for row in rows
    )
    assert [row["imei"] for row in csv.DictReader(io.StringIO(sheet.read_text()))] == [row["imei"] for row in rows]
    assert {path.stat().st_mode & 0o777 for path in (out, public, sheet)} == {0o600}
    said = out.read_text()
    assert all(row["imei"] in said for row in rows)
    hidden = public.read_text()
    assert not re.search(r"[0-9]{8}", hidden)
    assert not any(row["imei"] in hidden for row in rows)
    assert "mme" not in hidden
    assert Elements.of(said)["script"] == Elements.of(hidden)["script"] == 0
    assert not re.search(r"(?:src|href)=|url\(", said + hidden)


class Elements(HTMLParser):
    """Counts the elements of a page."""

    @classmethod
    def of(cls, text):
        from collections import Counter

        parser = cls()
        parser.counted = Counter()
        parser.feed(text)
        return parser.counted

    def handle_starttag(self, tag, _):
        self.counted[tag] += 1


def test_the_table_for_people(operator):
    done = operator.eir("tamper", "report", *UNTIL_DAY, "-n", "3")
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["imei", "score", "sure"]
    assert len(rows) == 3


def test_wrong_use_and_no_record(site):
    site.state.mkdir(exist_ok=True)
    assert "no sightings from" in site.eir("tamper", "report", status=1).stderr
    assert "--since 90d: expected" in site.eir("tamper", "report", "--since", "90d", status=2).stderr
    assert (
        "--condition clone: no such condition" in site.eir("tamper", "export", "--condition", "clone", status=2).stderr
    )


def test_names_from_the_wire_do_not_steer_the_page(judge_rows):
    rows = [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("<b>a", "<script>x</script>", 0), ("b", "mme2", 0.2))
    ]
    text = page.page(judge_rows([*rows, (1, "?", "a", "<img>", None)]))
    assert Elements.of(text)["script"] == Elements.of(text)["img"] == 0
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [((50, 20), ()), ((50, 9), (50, 9)), ((50, 30, 9), (30, 9)), ((50, 3, 9), (3, 9)), ((0, 50, 12), ()), ((4,), (4,))],
)
def test_small_counts_are_not_published_nor_can_they_be_worked_out(counts, hidden):
    named = dict(zip("abcdef", counts, strict=False))
    assert {name for name, count in page.suppressed(named).items() if count is None} == {
        name for name, count in named.items() if count in hidden
    }


# ---- from a finding to a list ----


@pytest.mark.parametrize("layout", ["eir", "dirbs-notifications"])
def test_what_is_exported_is_signed_and_loaded(operator, tmp_path, layout):
    data = tmp_path / "tampered.csv"
    operator.eir("tamper", "export", *UNTIL_DAY, "--as", layout, "--condition", "conflict", "--out", data)
    operator.load(data)
    for imei in ("35209900880000", "35209900880001"):
        answer = operator.json("check", imei)
        assert (answer["status"], answer["list"]) == ("blacklisted", "stolen")
        assert answer["reason"].startswith("tampered: ")


def test_notifications_name_the_copies_that_came_back(site):
    site.state.mkdir(exist_ok=True)
    first, copy, other, once = (f"00101000000000{number}" for number in range(1, 5))
    rows = [(at, IMEI, first, "mme1", "05") for at in range(0, 29 * DAY, 7)]
    rows += [
        (at + late, IMEI, who, "mme2", "05")
        for at in range(12 * DAY, 29 * DAY, DAY)
        for who, late in ((copy, 0.1), (other, 0.3))
    ]
    write(site.state, [*rows, (300, IMEI, once, "mme1", "05")])
    site.configure()
    done = site.eir("tamper", "export", *UNTIL_DAY, "--as", "dirbs-notifications")
    written = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["imei"], row["imsi"]) for row in written] == [(IMEI, first), (IMEI, copy), (IMEI, other)]
    assert "nothing found" in site.eir("tamper", "export", *UNTIL_DAY, "--condition", "sim_box", status=1).stderr


# ---- what comes of a finding ----


def test_the_sheet_of_a_device(operator, tmp_path):
    out = tmp_path / "sheet.html"
    made = operator.json("tamper", "show", "352099008800001", *UNTIL_DAY, "--html", out)
    assert (made["imei"], made["finding"]["conditions"][0]) == ("35209900880000", "conflict")
    assert {each["condition"] for each in made["says"]} == {"conflict", "alternates", "version_alternates"}
    assert {each["subscriber"] for each in made["subscribers"]} == {"a0", "b0"}
    first = made["too_soon"][0]
    assert (first["from"], first["to"], first["gap_s"], first["needed_s"]) == ("mme1", "mme2", 720, 3600)
    assert len(made["checks"]) == 20
    assert made["against"] == ["the same software version with all subscribers"]
    said = out.read_text()
    assert "35209900880000" in said
    assert "mme2" in said
    assert Elements.of(said)["script"] == 0
    assert not re.search(r"(?:src|href)=|url\(", said)
    assert "is not on record" in operator.eir("tamper", "show", "490154203237518", *UNTIL_DAY, status=1).stderr


def test_the_strongest_example_is_shown(judge_rows):
    rows = [
        (at + late, IMEI, who, mme, "05")
        for at in EACH_DAY
        for who, mme, late in (("a", "mme1", 0), ("b", "mme2", 0.2 if at != 120 else 0.01))
    ]
    (finding,) = judge_rows(rows).findings
    assert "such as on 2026-11-01 mme1 and mme2 within 0 min, where a phone takes 60" in finding.evidence


def test_what_is_cleared_is_neither_reported_nor_exported_and_what_is_confirmed_is(operator):
    cleared, confirmed = "35209900880003", "35209940000007"
    made = operator.json("tamper", "clear", f"{cleared}{check_digit(cleared)}", "--reason", "a mast at the border")
    assert (made["imei"], made["verdict"], made["reason"]) == (cleared, "cleared", "a mast at the border")
    operator.eir("tamper", "confirm", confirmed, "--reason", "seen at the customs office")
    assert (operator.state / "tamper-cases.jsonl").stat().st_mode & 0o777 == 0o600
    page = operator.folder / "report.html"
    rows = {
        row["imei"]: row for row in operator.json("tamper", "report", *UNTIL_DAY, "--min-score", "0", "--html", page)
    }
    assert cleared not in rows
    here = re.search(
        r"0\.95 and more<td class=n>97%<td class=n>([0-9]+)<td class=n>0<td class=n>1<tr>", page.read_text()
    )
    assert (
        int(here[1]) == sum(row["score"] >= 0.95 and not row["confirmed"] for row in rows.values()) + 1
    )  # and the one that is cleared
    assert "35209900880004" in rows
    exported = operator.eir("tamper", "export", *UNTIL_DAY).stdout
    assert cleared not in exported
    assert operator.json("tamper", "show", cleared, *UNTIL_DAY)["decisions"][0]["reason"] == "a mast at the border"
    events = [(event["what"], event["detail"]) for event in operator.json("history")]
    assert ("cleared", f"{cleared}: a mast at the border") in events
    assert ("confirmed", f"{confirmed}: seen at the customs office") in events
    operator.eir("tamper", "confirm", cleared, "--reason", "it was one after all")
    rows = {row["imei"]: row for row in operator.json("tamper", "report", *UNTIL_DAY)}
    assert (rows[cleared]["confirmed"], rows[cleared]["sure"], rows[cleared]["score"]) == (True, "confirmed", 0.999)


def test_only_what_is_nearly_certain_is_exported(site):
    site.state.mkdir(exist_ok=True)
    write(site.state, [*OTHERS, *phones("ab", seed=3), *TAMPERED["placeholder"]])
    reported = {row["imei"]: row["score"] for row in site.json("tamper", "report", *UNTIL_DAY, "--min-score", "0.02")}
    assert 0.02 <= reported[IMEI] < 0.95
    assert [row["imei"] for row in csv.DictReader(io.StringIO(site.eir("tamper", "export", *UNTIL_DAY).stdout))] == [
        "00000000000000"
    ]


def test_files_from_before_there_were_peers(tmp_path):
    write(tmp_path, TAMPERED["conflict"])
    (file,) = tmp_path.glob("sightings/*/*.parquet")
    pl.read_parquet(file).drop("peer").write_parquet(file)
    with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
        assert [finding.imei for finding in judge(engine, TamperSettings(), since=START, until=UNTIL).findings] == [
            IMEI
        ]


# ---- in a browser ----


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_in_a_browser_light_and_dark(judged, tmp_path):
    from PIL import Image

    (tmp_path / "report.html").write_text(page.page(judged[0]))
    ground = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / scheme}", f"--blink-settings=preferredColorScheme={number}",
             "--window-size=1200,1400", f"--screenshot={picture}", (tmp_path / "report.html").as_uri()],
            check=True, capture_output=True, timeout=100,
        )  # fmt: skip
        with Image.open(picture) as image:
            ground[scheme] = image.convert("L").getpixel((4, 700))
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # text and bars are there
    assert ground["dark"] < 64
    assert ground["light"] > 192
