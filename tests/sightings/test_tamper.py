"""Phones with a tampered identity: those planted in two simulated networks are found and honest ones are not; what is reported and exported."""

import csv
import io
import re
from pathlib import Path

import pytest
from simulated import networks, world_facts
from simulated.luhn import check_digit
from tampered import DAY, FAR, IMEI, NEAR, OTHERS, START, TAMPERED, UNTIL, files, lent, phones, write

from eir.errors import EirError
from eir.sightings.conditions import COLUMNS, CONDITIONS, TamperSettings
from eir.sightings.engine import TABLES, duck
from eir.sightings.judge import MODEL, judge

PEOPLE = 1000


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A network of one operator, and one of several, to which no weight was fitted."""
    folders = [tmp_path_factory.mktemp("world") for _ in range(2)]
    one = networks.Network(subscribers=2 * PEOPLE, regions=5, clones=0.04, boxes=(2, 0, 1), a_day=4)
    facts = world_facts.FactRates(phones=PEOPLE, copied=0.06)
    return [networks.make(folders[0], one, seed=5), world_facts.build_fact_world(folders[1], facts, seed=5)]


@pytest.fixture(scope="module")
def judged(worlds):
    """What is found in them."""
    found = []
    for made in worlds:
        settings = TamperSettings()
        with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory) as engine:
            found.append(judge(engine, settings, since=made.since, until=made.until, tacs=made.tacs))
    return found


def recall(made, found, kinds, copies=range(1000)):
    planted = {device for device, (kind, many) in made.truth.items() if kind in kinds and many in copies}
    return len(planted & {finding.device for finding in found.findings}) / len(planted)


def test_what_is_planted_is_found(worlds, judged):
    for made, found, few in zip(worlds, judged, (0.8, 0.7), strict=True):
        assert recall(made, found, {"clone"}, range(2, 4)) >= few
        assert recall(made, found, {"clone"}, range(4, 1000)) >= 0.95
        assert recall(made, found, {kind for kind, _ in made.truth.values() if kind.startswith("box")}) >= 0.95
        assert found.left_out == ()
    assert recall(worlds[0], judged[0], {"never_allocated"}) >= 0.8
    assert recall(worlds[0], judged[0], {"zero"}) == 1


def test_who_is_honest_is_left_alone(worlds, judged):
    for made, found in zip(worlds, judged, strict=True):
        wrongly = {
            finding.imei: (finding.conditions, made.hard.get(finding.device))
            for finding in found.findings
            if finding.device not in made.truth
        }
        assert len(wrongly) <= 0.02 * len(found.findings), wrongly
        assert len(set(made.hard.values())) >= 4  # and there were such as are hard to tell


def test_checks_that_name_no_device_are_counted_by_origin(judged, tmp_path):
    write(tmp_path, [*OTHERS, *((hours, "?12345", "a", NEAR, None) for hours in range(5)), (9, "?", "a", FAR, None)])
    settings = TamperSettings()
    with duck(files(tmp_path), since=START, until=UNTIL, memory=settings.memory) as engine:
        assert judge(engine, settings, since=START, until=UNTIL).malformed == ((NEAR, 5), (FAR, 1))
    assert judged[0].malformed == ()


def test_too_little_memory_and_a_damaged_file_are_errors(tmp_path):
    write(tmp_path, TAMPERED["conflict"])
    with (
        pytest.raises(EirError, match=r"tamper\.memory \(1 MiB\)"),
        duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 20) as engine,
    ):
        judge(engine, TamperSettings(), since=START, until=UNTIL)
    (damaged,) = tmp_path.glob("sightings/*/*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with (
        pytest.raises(EirError, match=f"cannot be analysed: .*{damaged.name}"),
        duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine,
    ):
        judge(engine, TamperSettings(), since=START, until=UNTIL)


def test_the_page_names_each_condition_and_each_column_of_the_model():
    page = (Path(judge.__code__.co_filename).parent / "README.md").read_text()
    assert all(f"`{name}`" in page for name in {*CONDITIONS, *COLUMNS})
    assert {condition for condition, _ in COLUMNS.values()} < CONDITIONS.keys()
    assert all(re.search(rf"AS {name}\b", TABLES["evidence"]) for name in COLUMNS)


def test_fractions_in_the_sql_are_doubles():
    """Without an exponent Spark computes with decimal numbers, which it rounds."""
    assert not [name for name, select in (*TABLES.items(), ("model", MODEL)) if re.search(r"\d\.\d+(?![\de])", select)]


COPY = "00101000001{:04d}"
OWNED = {
    "two SIMs": 2,
    "a new SIM while the copy is in use": 2,
    "a sale while the copy is in use": 2,
    "old software": 1,
    "an invented model": 1,
    "a rival with the owner's number": 1,
}
"""Copied phones by situation of the owner, with the number of the owner's SIMs (and of the buyer's)."""


def owner(at, number=0):
    """IMSI of an owner."""
    return f"00101000000{at:02d}{number:02d}"


def imei(at):
    """Number of a copied phone."""
    return f"352099008800{at:02d}"


def copied():
    """For each situation a phone with its owner, and one copy that stays at another place; the owner's version is the unusual one."""
    rows = []
    for at, (situation, sims) in enumerate(OWNED.items()):
        owners = [owner(at, number) for number in range(sims)]
        version = (
            "01" if situation in {"old software", "an invented model", "a rival with the owner's number"} else "05"
        )
        who = [*owners, COPY.format(at)]
        made = phones(who, imei=imei(at), places=dict.fromkeys(owners, NEAR) | {COPY.format(at): FAR}, versions=dict.fromkeys(owners, version) | {COPY.format(at): "05"}, seed=at)  # fmt: skip
        for row in made:
            is_first = row[2] == owners[0]
            if (
                situation.startswith(("a new SIM", "a sale"))
                and row[2] in owners
                and is_first is not (row[0] < 12 * DAY)
            ):
                continue
            if situation.startswith("a rival") and not is_first and row[0] < 10 * DAY:
                continue
            rows.append(row)
    model = [(number, f"{imei(4)[:8]}1{number:05d}", f"invented{number}", NEAR, "05") for number in range(200)]
    families = [row for at in range(60) for row in lent(at, *[(NEAR, FAR)[at % 2]] * 2)]
    return [*rows, *model, *families]


@pytest.fixture
def operator(site):
    """A site whose record has copied phones, an identifier of zeros and a box, among honest devices."""
    write(site.state, [*copied(), *TAMPERED["sim_box"], *TAMPERED["placeholder"], *OTHERS])
    return site


UNTIL_DAY = ("--until", f"{UNTIL:%Y-%m-%d}")
COPIED = {imei(at) for at in range(len(OWNED))}
BOX = {f"3520990000{port:04d}" for port in range(8)}


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_report_and_the_sheet_of_a_device(operator, tmp_path):
    sheet = tmp_path / "report.csv"
    sheet.touch(mode=0o644)
    rows = operator.json("tamper", "report", *UNTIL_DAY, "--csv", sheet)
    assert {row["imei"] for row in rows} == COPIED | BOX | {"00000000000000"}
    assert list(rows[0])[:7] == ["imei", "score", "conditions", "subscribers", "first_seen", "last_seen", "evidence"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(re.fullmatch(r"[0-9]{14}", row["imei"]) and re.fullmatch(r"2026-1[01]-\d\dT\d\d:\d\d:\d\dZ", row["first_seen"]) for row in rows)  # fmt: skip
    assert [row["imei"] for row in rows_of(sheet.read_text())] == [row["imei"] for row in rows]
    assert sheet.stat().st_mode & 0o777 == 0o600
    head, *lines = operator.eir("tamper", "report", *UNTIL_DAY, "-n", "3").stdout.splitlines()
    assert head.split()[:3] == ["imei", "rank", "score"]
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]
    made = operator.json("tamper", "show", f"{imei(0)}{check_digit(imei(0))}", *UNTIL_DAY)
    assert (made["imei"], made["finding"]["conditions"][0]) == (imei(0), "conflict")
    assert rows[made["rank"] - 1]["imei"] == imei(0)
    assert {each["condition"] for each in made["says"]} >= {"conflict", "alternates"}
    assert {each["subscriber"] for each in made["subscribers"]} == {owner(0), owner(0, 1), COPY.format(0)}
    assert {made["two_places"][0]["from"], made["two_places"][0]["to"]} == {NEAR, FAR}
    assert 0 <= made["two_places"][0]["gap_s"] <= made["two_places"][1]["gap_s"]
    assert len(made["checks"]) > 100
    text = operator.eir("tamper", "show", imei(0), *UNTIL_DAY).stdout
    assert f"{imei(0)}: score " in text
    assert FAR in text
    assert "is not on record" in operator.eir("tamper", "show", "490154203237518", *UNTIL_DAY, status=1).stderr


def test_identifiers_are_exported_and_no_pair_without_a_person_s_word(operator):
    """A confirmed device whose owner is not named exports no pair, and no owner's SIM is ever exported."""

    def exported(*more, status=0):
        done = operator.eir("tamper", "export", *UNTIL_DAY, *more, status=status)
        return rows_of(done.stdout), done.stderr

    rows, said = exported()
    assert {row["imei"] for row in rows} == COPIED | {"00000000000000"}, "no SIM box, unless a person confirmed it"
    assert list(rows[0]) == ["imei", "reason", "date"]
    assert "to sign them: eir publish" in said
    assert "--owner IMSI names the owner" in exported("--rows", "pairs", status=1)[1]
    assert "has only confirmed devices" in exported("--rows", "devices", status=1)[1]
    for at in range(len(OWNED)):
        operator.eir("tamper", "confirm", imei(at), "--reason", "both phones were seen")
    assert exported("--rows", "pairs", status=1)[0] == []
    assert {row["imei"] for row in exported("--rows", "devices")[0]} == COPIED
    for at, sims in enumerate(OWNED.values()):
        named = [word for number in range(sims) for word in ("--owner", owner(at, number))]
        operator.eir("tamper", "confirm", imei(at), "--reason", "both phones were seen", *named)
    rows, _ = exported("--rows", "pairs")
    assert [(row["imei"], row["imsi"]) for row in rows] == [(imei(at), COPY.format(at)) for at in range(len(OWNED))]
    box = min(BOX)
    operator.eir("tamper", "confirm", box, "--reason", "a rack of modems in a flat")
    assert {row["imei"] for row in exported()[0]} == COPIED | {"00000000000000", box}
    assert "expected tracked, pairs, devices" in exported("--rows", "all", status=2)[1]
    assert "expected an IMSI" in operator.eir("tamper", "confirm", box, "--reason", "x", "--owner", "me", status=2).stderr  # fmt: skip
    history = [event["detail"] for event in operator.json("history")]
    assert any(imei(0) in detail for detail in history)
    assert not any(owner(0) in detail for detail in history)


def test_an_exported_pair_blocks_the_copy_and_not_the_owner(operator, tmp_path):
    data = tmp_path / "copies.csv"
    operator.eir("tamper", "confirm", imei(3), "--reason", "both phones were seen", "--owner", owner(3))
    operator.eir("tamper", "export", *UNTIL_DAY, "--rows", "pairs", "--out", data)
    lists = operator.settings["lists"] | {"copies": {"kind": "pairs", "signers": "signers"}}
    operator.configure(lists=lists, policy={"rules": [{"list": "copies", "answer": "blacklisted"}]}, sightings={})
    operator.load(data, list_name="copies")
    copy = operator.json("check", imei(3), "--imsi", COPY.format(3))
    assert (copy["status"], copy["list"]) == ("blacklisted", "copies")
    assert copy["reason"].startswith("tampered: ")
    assert operator.json("check", imei(3), "--imsi", owner(3))["status"] == "whitelisted"


def test_without_imsis_no_pair_is_exported(site):
    site.state.mkdir(exist_ok=True)
    write(site.state, [*OTHERS, *TAMPERED["conflict"]])
    site.eir("tamper", "confirm", IMEI, "--reason", "seen at the customs office", "--owner", "001010000000001")
    done = site.eir("tamper", "export", *UNTIL_DAY, "--rows", "pairs", status=1)
    assert "sightings.subscribers: full" in done.stderr


def test_tacs_come_from_the_signed_list_that_rules_ask(operator):
    lists = operator.settings["lists"] | {"tacs": {"kind": "device_types", "signers": "signers"}}
    operator.configure(lists=lists, sightings={})
    assert "no rule uses the list" not in operator.eir("config").stderr
    assert "list tacs was never loaded" in operator.eir("tamper", "report", *UNTIL_DAY).stderr
    listed = operator.folder / "tacs.txt"
    listed.write_text(
        "TAC|Manufacturer|Allocation Date|Device Type\n35209900|Maker|01-Jan-2020|IoT Module\n86209940|Maker|25-Nov-2026|Smartphone\n"
    )
    operator.load(listed, list_name="tacs")
    write(operator.state, [*phones("abcdefghij"), *OTHERS, (1, "35209977000000", "x", NEAR, None)])
    rows = operator.json("tamper", "report", *UNTIL_DAY, "--min-score", "0")
    assert IMEI not in {row["imei"] for row in rows}
    assert operator.json("tamper", "report", *UNTIL_DAY, "--batches") == [{"imei": IMEI, "subscribers": 10}]
    assert "1 IMEIs are used by ten modules or more" in operator.eir("tamper", "report", *UNTIL_DAY).stderr
    assert {row["evidence"] for row in rows if "tac" in row["conditions"]} == {"its TAC is not in the list, whose newest is of 2026-11-25"}  # fmt: skip


def test_wrong_use_and_no_record(site):
    site.state.mkdir(exist_ok=True)
    assert "no sightings from" in site.eir("tamper", "report", status=1).stderr
    assert "--since 400d: expected" in site.eir("tamper", "report", "--since", "400d", status=2).stderr
    assert "--until x: expected" in site.eir("tamper", "report", "--until", "x", status=2).stderr


def test_a_decision_holds_for_its_device_and_moves_no_other_score(operator):
    cleared, confirmed, box = imei(3), OTHERS[0][1], min(BOX)
    scores = {row["imei"]: row["score"] for row in operator.json("tamper", "report", *UNTIL_DAY, "--min-score", "0")}
    made = operator.json("tamper", "clear", f"{cleared}{check_digit(cleared)}", "--reason", "a mast at the border")
    assert (made["imei"], made["verdict"], made["reason"]) == (cleared, "cleared", "a mast at the border")
    for unseen in (box, "35209977000000", "00101009000001", confirmed):
        operator.eir("tamper", "confirm", unseen, "--reason", "seen at the customs office")
    assert (operator.state / "tamper-cases.jsonl").stat().st_mode & 0o777 == 0o600
    rows = {row["imei"]: row for row in operator.json("tamper", "report", *UNTIL_DAY, "--min-score", "0")}
    assert cleared not in rows
    decided = {cleared, confirmed, box}
    assert {name: row["score"] for name, row in rows.items() if name not in decided} == {name: score for name, score in scores.items() if name not in decided}  # fmt: skip
    assert (rows[confirmed]["score"], rows[confirmed]["conditions"], rows[confirmed]["confirmed"]) == (0.999, [], True)
    done = operator.eir("tamper", "export", *UNTIL_DAY, "--rows", "devices")
    reasons = {row["imei"]: row["reason"] for row in rows_of(done.stdout)}
    assert reasons == {box: "tampered: sim_box", confirmed: "tampered: confirmed", "35209977000000": "tampered: confirmed"}  # fmt: skip
    assert "1 devices with a TAC for tests are left out" in done.stderr
    assert "3 devices are written" in done.stderr, "each once, whether it was found or not"
    assert operator.json("tamper", "show", cleared, *UNTIL_DAY)["decisions"][0]["reason"] == "a mast at the border"
    forget = ("tamper", "forget-decision", cleared, "--reason", "the wrong phone")
    operator.eir(*forget)
    assert cleared in {row["imei"] for row in operator.json("tamper", "report", *UNTIL_DAY) if not row["confirmed"]}
    assert "has no decision to withdraw" in operator.eir(*forget, status=1).stderr
    events = [(event["what"], event["detail"]) for event in operator.json("history")]
    assert ("cleared", f"{cleared}: a mast at the border") in events
    assert ("confirmed", f"{confirmed[:14]}: seen at the customs office") in events
    assert ("forgotten", f"{cleared}: the wrong phone") in events
