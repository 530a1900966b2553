"""Phones with a tampered identity: those planted in two made networks are found and honest ones are not; what is reported and exported."""

import csv
import io
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from browser import in_chromium, looked_at
from hypothesis import given
from hypothesis import strategies as st
from simulated import world, world_other
from simulated.luhn import check_digit
from tampered import DAY, FAR, IMEI, NEAR, OTHERS, START, TAMPERED, UNTIL, files, people, phones, write

from eir.errors import EirError
from eir.sightings import page
from eir.sightings.conditions import CONDITIONS, PRIOR, WEIGHTS, TamperSettings
from eir.sightings.engine import SQL, duck
from eir.sightings.figures import FEW, WITHHELD, hidden_rows
from eir.sightings.judge import Finding, calibration_shift, judge

PEOPLE = 1000


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A network of each generator; the seed of the second differs from run to run there, and is one that is known here."""
    folders = [tmp_path_factory.mktemp("world") for _ in range(2)]
    return [world.make(folders[0], PEOPLE, seed=5), world_other.make(folders[1], PEOPLE, seed=6)]


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
    # In the second network nothing is known of places: so few people live there, and its MMEs have no names by TS 23.003.
    for made, found, few in zip(worlds, judged, (0.8, 0.3), strict=True):
        assert recall(made, found, {"clone"}, range(2, 4)) >= few
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
    again = world_other.make(tmp_path, 200, seed=7)
    assert again.truth.keys() != worlds[1].truth.keys()


def test_decisions_shift_their_condition_by_little_and_within_bounds():
    assert calibration_shift([]) == 0
    assert calibration_shift([(4.0, False)] * 6) == pytest.approx(-0.29, abs=0.01)
    assert calibration_shift([(4.0, False)] * 1000) == -1
    assert calibration_shift([(-40.0, True)] * 1000) == 1
    assert calibration_shift([(2.0, number < 88) for number in range(100)]) == pytest.approx(0, abs=0.05)
    assert PRIOR == 0.005


@given(st.lists(st.tuples(st.floats(-50, 50), st.booleans()), max_size=60), st.floats(-50, 50))
def test_each_decision_shifts_towards_itself(told, odds):
    before = calibration_shift(told)
    assert -1 <= calibration_shift([*told, (odds, False)]) <= before + 1e-12
    assert before - 1e-12 <= calibration_shift([*told, (odds, True)]) <= 1


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (0.999, "97 of 100 like it"), (0.95, "97 of 100 like it"), (0.949, "90 of 100 like it"), (0.9, "90 of 100 like it"), (0.899, "80 of 100 like it"),
        (0.8, "80 of 100 like it"), (0.799, "75 of 100 like it"), (0.7, "75 of 100 like it"), (0.699, "55 of 100 like it"), (0.6, "55 of 100 like it"),
        (0.599, "less than even"),
    ],
)  # fmt: skip
def test_a_score_in_words(score, words):
    """The words promise less than was found in each band of made networks (scripts/README.md)."""
    about = {
        "conditions": (),
        "subscribers": 2,
        "copies": 0,
        "first_seen": START,
        "last_seen": UNTIL,
        "evidence": "",
        "honest": "",
    }
    assert Finding(device=1, score=score, **about).sure == words
    assert Finding(device=1, score=score, **about, confirmed=True).sure == "confirmed"


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


def test_tables_of_conditions_are_the_files():
    assert {path.stem for path in (SQL / "conditions").glob("*.sql")} == CONDITIONS.keys()
    text = "".join(path.read_text() for path in SQL.rglob("*.sql"))
    assert set(re.findall(r"\{(\w+)\}", text)) == WEIGHTS.keys()
    page_text = (SQL.parent / "README.md").read_text()
    assert all(f"`{name}`" in page_text for name in CONDITIONS)


OWNER, COPY = "00101000000{:04d}", "00101000001{:04d}"


@pytest.fixture
def operator(site):
    """A site whose record has a dozen clones, each with an owner and a copy that came later, an identifier of zeros and a box, among honest devices."""
    clones = [
        row
        for number in range(12)
        for row in phones(
            [OWNER.format(number), COPY.format(number)], imei=f"352099008800{number:02d}", places={OWNER.format(number): NEAR, COPY.format(number): FAR},
            versions={OWNER.format(number): "05"}, seed=number,
        )
        if row[2] == OWNER.format(number) or row[0] > 10 * DAY
    ]  # fmt: skip
    honest = [(number, f"3520994{number:07d}", f"s{number}", (NEAR, FAR)[number % 2], "05") for number in range(300)]
    honest += [
        (number, f"3520990000010{number}", f"m{number}", (NEAR, FAR)[number % 2], "05") for number in range(3)
    ]  # of the model of the clones
    write(site.state, [*clones, *TAMPERED["sim_box"], *TAMPERED["placeholder"], *honest, *OTHERS])
    return site


UNTIL_DAY = ("--until", f"{UNTIL:%Y-%m-%d}")


def test_the_report(operator, tmp_path):
    out, public = tmp_path / "report.html", tmp_path / "public.html"
    sheet = tmp_path / "report.csv"
    sheet.touch(mode=0o644)
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


def test_tacs_come_from_the_signed_list_that_rules_ask(operator):
    lists = operator.settings["lists"] | {"tacs": {"kind": "device_types", "signers": "signers"}}
    operator.configure(lists=lists, sightings={})
    assert "no rule uses the list" not in operator.eir("config").stderr
    assert "list tacs was never loaded" in operator.eir("tamper", "report", *UNTIL_DAY).stderr
    listed = operator.folder / "tacs.txt"
    listed.write_text(
        "TAC|Manufacturer|Allocation Date|Device Type\n86209900|Maker|25-Nov-2026|Smartphone\n86209940|Maker|01-Jan-2020|Smartphone\n"
    )
    operator.load(listed, list_name="tacs")
    rows = {row["imei"]: row["evidence"] for row in operator.json("tamper", "report", *UNTIL_DAY)}
    assert "its TAC is not in the list, whose newest is of 2026-11-25" in rows["35209900880000"]
    assert len(rows) == 12 + 8 + 1 + 303 + 40  # none is of a body that has a TAC in the list


def test_wrong_use_and_no_record(site):
    site.state.mkdir(exist_ok=True)
    assert "no sightings from" in site.eir("tamper", "report", status=1).stderr
    assert "--since 90d: expected" in site.eir("tamper", "report", "--since", "90d", status=2).stderr
    assert (
        "--condition clone: no such condition" in site.eir("tamper", "export", "--condition", "clone", status=2).stderr
    )


def test_names_from_the_wire_do_not_steer_the_page(judge_rows):
    evil = "mmec01.mmegi<script>x</script>"
    rows = [*phones(["<b>a", "b"], places={"<b>a": evil, "b": FAR}), *people(evil, FAR)]
    text = page.page(judge_rows([*rows, (1, "?", "a", "<img>", None)]))
    assert Elements.of(text)["script"] == Elements.of(text)["img"] == 0
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [((50, 20), ()), ((50, 9), (50, 9)), ((50, 30, 9), (30, 9)), ((50, 3, 9), (3, 9)), ((0, 50, 12), ()), ((4,), (4,))],
)
def test_small_counts_are_not_published_nor_can_they_be_worked_out(counts, hidden):
    named = dict(zip("abcdef", counts, strict=False))
    texts = {name: FEW if count < 10 else WITHHELD for name, count in named.items() if count in hidden}
    assert hidden_rows(named, sum(counts)) == texts


@pytest.mark.parametrize("layout", ["eir", "dirbs-notifications"])
def test_confirmed_copies_are_exported_as_pairs_that_block_no_owner(operator, tmp_path, layout):
    data = tmp_path / "copies.csv"
    export = ("tamper", "export", *UNTIL_DAY, "--as", layout, "--condition", "conflict", "--out", data)
    assert "no device is confirmed (eir tamper confirm)" in operator.eir(*export, status=1).stderr
    assert not data.exists()
    for number in (1, 2):
        operator.eir("tamper", "confirm", f"352099008800{number:02d}", "--reason", "both phones were seen")
    operator.eir(*export)
    written = {(row["imei"], row["imsi"]) for row in csv.DictReader(io.StringIO(data.read_text()))}
    assert written == {(f"352099008800{number:02d}", COPY.format(number)) for number in (1, 2)}, "confirmed ones only"
    lists = operator.settings["lists"] | {"copies": {"kind": "pairs", "signers": "signers"}}
    operator.configure(lists=lists, policy={"rules": [{"list": "copies", "answer": "blacklisted"}]}, sightings={})
    operator.load(data, list_name="copies")
    copy = operator.json("check", "35209900880001", "--imsi", COPY.format(1))
    assert (copy["status"], copy["list"]) == ("blacklisted", "copies")
    assert copy["reason"].startswith("tampered: ")
    assert operator.json("check", "35209900880001", "--imsi", OWNER.format(1))["status"] == "whitelisted"


def test_imeis_are_exported_to_watch_and_confirmed_ones_to_block(operator):
    def exported(kind, *more, status=0):
        done = operator.eir("tamper", "export", *UNTIL_DAY, "--rows", kind, *more, status=status)
        return {row["imei"] for row in csv.DictReader(io.StringIO(done.stdout))}, done.stderr

    clones = {f"352099008800{number:02d}" for number in range(12)}
    tracked, _ = exported("tracked")
    assert tracked == clones | {"00000000000000"}  # no SIM box, unless somebody confirmed it
    _, why = exported("devices", status=1)
    assert "none can be written as devices" in why
    box = "35209900000004"
    operator.eir("tamper", "confirm", box, "--reason", "a rack of modems in a flat")
    assert exported("devices")[0] == {box}
    assert exported("tracked")[0] == tracked | {box}
    assert "expected pairs, tracked, devices" in exported("all", status=2)[1]
    assert "tracked only --as eir" in exported("tracked", "--as", "dirbs-notifications", status=2)[1]


def test_without_imsis_only_confirmed_devices_are_exported(site):
    site.state.mkdir(exist_ok=True)
    write(site.state, [*OTHERS, *TAMPERED["conflict"]])
    site.eir("tamper", "confirm", "35209940000007", "--reason", "seen at the customs office")
    done = site.eir("tamper", "export", *UNTIL_DAY)
    assert "the record holds no IMSIs" in done.stderr
    assert [row["imei"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["35209940000007"]


def test_the_sheet_of_a_device(operator, tmp_path):
    out = tmp_path / "sheet.html"
    made = operator.json("tamper", "show", "352099008800001", *UNTIL_DAY, "--html", out)
    assert (made["imei"], made["finding"]["conditions"][0]) == ("35209900880000", "conflict")
    assert {each["condition"] for each in made["says"]} == {"conflict", "alternates"}
    assert {each["subscriber"] for each in made["subscribers"]} == {OWNER.format(0), COPY.format(0)}
    first = made["too_soon"][0]
    assert {first["from"], first["to"]} == {NEAR, FAR}
    assert 0 <= first["gap_s"] <= made["too_soon"][1]["gap_s"]
    assert len(made["checks"]) > 100
    assert made["against"] == ["the same software version with all subscribers"]
    said = out.read_text()
    assert "35209900880000" in said
    assert FAR in said
    assert Elements.of(said)["script"] == 0
    assert not re.search(r"(?:src|href)=|url\(", said)
    assert "is not on record" in operator.eir("tamper", "show", "490154203237518", *UNTIL_DAY, status=1).stderr


def test_the_change_with_the_shortest_time_is_shown(judge_rows):
    rows = [*TAMPERED["conflict"], (120, IMEI, "a", NEAR, "05"), (120.001, IMEI, "b", FAR, "05")]
    (finding,) = judge_rows([*rows, *OTHERS]).findings
    assert f"such as on 2026-11-01 at {FAR}, 0 min after another SIM at {NEAR}" in finding.evidence


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
    assert (rows[confirmed]["score"], rows[confirmed]["conditions"]) == (0.999, [])
    assert [row["score"] for row in rows.values()] == sorted((row["score"] for row in rows.values()), reverse=True)
    unseen, for_tests = "35209977000000", "00101009000001"
    for imei in (unseen, for_tests):
        operator.eir("tamper", "confirm", imei, "--reason", "seen at the customs office")
    for layout in ("eir", "dirbs-notifications"):
        done = operator.eir("tamper", "export", *UNTIL_DAY, "--as", layout, "--rows", "devices")
        reasons = {
            row["imei"]: list(row.values())[1 if layout == "eir" else 4]
            for row in csv.DictReader(io.StringIO(done.stdout))
        }
        assert reasons[confirmed] == reasons[unseen] == "tampered: confirmed"
        assert not {cleared, for_tests} & reasons.keys()
        assert "1 devices with a TAC for tests are left out" in done.stderr
        assert f"{len(reasons)} devices are written" in done.stderr, "each once, if it was found or not"
    assert operator.json("tamper", "show", cleared, *UNTIL_DAY)["decisions"][0]["reason"] == "a mast at the border"
    events = [(event["what"], event["detail"]) for event in operator.json("history")]
    assert ("cleared", f"{cleared}: a mast at the border") in events
    assert ("confirmed", f"{confirmed}: seen at the customs office") in events
    operator.eir("tamper", "forget-decision", cleared, "--reason", "the wrong phone")
    assert cleared in {row["imei"] for row in operator.json("tamper", "report", *UNTIL_DAY) if not row["confirmed"]}
    assert (
        "has no decision to withdraw"
        in operator.eir("tamper", "forget-decision", cleared, *("--reason", "again"), status=1).stderr
    )
    assert ("forgotten", f"{cleared}: the wrong phone") in [
        (event["what"], event["detail"]) for event in operator.json("history")
    ]
    operator.eir("tamper", "confirm", cleared, "--reason", "it was one after all")
    rows = {row["imei"]: row for row in operator.json("tamper", "report", *UNTIL_DAY)}
    assert (rows[cleared]["confirmed"], rows[cleared]["sure"], rows[cleared]["score"]) == (True, "confirmed", 0.999)


def test_only_what_is_nearly_certain_is_exported(site):
    site.state.mkdir(exist_ok=True)
    write(site.state, [*OTHERS, *phones("ab", seed=3), *TAMPERED["placeholder"]])
    reported = {row["imei"]: row["score"] for row in site.json("tamper", "report", *UNTIL_DAY, "--min-score", "0.02")}
    assert 0.02 <= reported[IMEI] < 0.95
    done = site.eir("tamper", "export", *UNTIL_DAY, "--rows", "tracked")
    assert [row["imei"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["00000000000000"]
    for arguments in (("--rows", "other"), ("--rows", "tracked", "--as", "dirbs-notifications")):
        done = site.eir("tamper", "export", *UNTIL_DAY, *arguments, status=2)
        assert f"--rows {arguments[1]}: expected " in done.stderr


def test_files_from_before_there_were_peers(tmp_path):
    write(tmp_path, [*TAMPERED["conflict"], *OTHERS])
    (file,) = tmp_path.glob("sightings/*/*.parquet")
    pl.read_parquet(file).drop("peer").write_parquet(file)
    with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
        assert [finding.imei for finding in judge(engine, TamperSettings(), since=START, until=UNTIL).findings] == [
            IMEI
        ]


SHEET_MADE = {
    "imei": IMEI, "since": "2026-11-01T00:00:00Z", "until": "2026-12-01T00:00:00Z", "rules": 1, "base_rate": 0.004,
    "finding": {"score": 0.997, "sure": "nearly certain"}, "against": ["a mast at the border"], "left_out": ["mme9"],
    **{name: [{f"column_{at}": f"{'long' * 5} {at}" for at in range(9)}] * 2 for _, name in page.SHEET},
}  # fmt: skip


@pytest.mark.long
@in_chromium
def test_everybody_can_use_the_pages_in_light_and_dark_and_on_a_narrow_screen(judged, tmp_path):
    pages = [page.page(judged[0]), page.public_page(judged[0]), page.sheet_page(SHEET_MADE)]
    found = looked_at(tmp_path, pages)
    assert [each["wrong"] for each in found] == [[]] * 6
    assert [each["ground"] for each in found] == ["rgb(251, 251, 249)", "rgb(21, 23, 26)"] * 3
