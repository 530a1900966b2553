"""Declared layouts: an agency's own files, from the configuration over publish and load to the list in force; and what refuses them."""

import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pages import blocks, section
from simulated.node import COMMAND, until
from simulated.patience import PROGRAM_S
from simulated.releases import NAME, NOW, Agency, publish_files, read_into

from eir.config import load_layouts
from eir.errors import ConfigError, ReleaseRefused
from eir.lists.log.reader import read_content
from eir.lists.record.listed_entries import reason_and_day
from eir.lists.record.reasons import Reasons
from eir.lists.rows.layout import is_date_form, until_seconds
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.reader import Tally
from eir.lists.table.columns import ENDS

CONFIG = Path(__file__).parents[3] / "config"
SAMPLE = CONFIG / "lists" / "register"
DECLARED = next(
    block
    for block in re.findall(r"```yaml\n(.*?)```", (CONFIG.parent / "deploy" / "REGULATOR.md").read_text(), re.DOTALL)
    if "layouts:" in block
)
ONE, TWO, THREE = 35123456789012, 35123456789013, 35123456789014


@pytest.fixture
def layouts(tmp_path):
    def declared(text):
        path = tmp_path / "layouts.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump({"layouts": text}))
        return load_layouts(path)

    return declared


def read(layouts, content, *, kind="devices", chunks=None, **declared):
    """What a file of a layout that is so declared lists: keys, those that are removed, the tally, and its count of rows."""
    rows, removed = ListedRows(), ListedRows()
    tally = Tally(bad_rows_max=10**6, range_tacs_max=1000, dates=True)
    count = read_into(
        rows, chunks or [content], name="f.txt", layout="own", kind=kind, removed=removed, reasons=Reasons(), tally=tally,
        declared=layouts({"own": declared}),
    )  # fmt: skip
    return set(rows.pop().keys.tolist()), set(removed.pop().keys.tolist()), tally, count


# Several reasons of one entry


async def test_of_several_reasons_the_first_one_of_the_layout_counts(tmp_path, store, layouts):
    """In any order of the rows, files, ends and ranges; also for the node, which reads single devices before ranges."""
    agency = Agency(tmp_path)
    agency.settings(shrink_max=1, growth_max=1)
    columns = {"imei_from": "first", "imei_to": "last", "reason": "why", "until": "end"}
    declared = layouts({"own": {"columns": columns, "reasons": ["30=stolen", "20=lost", "10=fraud"]}})
    rows = [
        f"{ONE},,10,", f"{ONE},,30,20991231", f"{ONE},,,", f"{TWO},,40,", f"{TWO},,10,", f"{ONE + 2},{ONE + 9},20,", f"{ONE + 4},,30,",
        f"{ONE + 5},,10,", "35123457000000,35123457999999,10,", "35123457000000,35123458000001,20,", "35123457000005,,30,",
    ]  # fmt: skip
    expected = {
        ONE: "stolen", TWO: "fraud", ONE + 3: "lost", ONE + 4: "stolen", ONE + 5: "lost", ONE + 9: "lost", 35123458000001: "lost",
        35123457000004: "lost", 35123457000005: "stolen",
    }  # fmt: skip
    for serial, ordered in enumerate((rows, rows[::-1]), 1):
        files = [tmp_path / f"{name}{serial}.csv" for name in "ab"]
        for file, part in zip(files, (ordered[:5], ordered[5:]), strict=True):
            file.write_text("\n".join(["first,last,why,end", *part, ""]))
        made = publish_files(
            files, list_name=NAME, serial=serial, issued=NOW, expires=NOW + timedelta(days=14), key=agency.key, layout="own", declared=declared,
            out=agency.drop,
        )  # fmt: skip
        assert made.other_reasons == made.as_json()["other_reasons"] == 5
        assert "; 5 rows got the earlier reason of their entry" in made.as_text()
        await agency.load(made.manifest, store)
        content = await read_content(store, NAME, (await store.heads())[NAME])
        assert {key: reason_and_day(content.table, content.head.reasons, key)[0] for key in expected} == expected
        assert content.table.find(ONE).column(ENDS).tolist() == [0], "the latest end"
        assert content.head.devices == 2 + 8 + 1_000_000 + 2


# The worked sample of the page


async def test_the_sample_of_the_page_is_published_and_loaded(tmp_path, store, layouts):
    agency = Agency(tmp_path)
    declared = layouts(DECLARED)
    agency.settings(shrink_max=1, growth_max=1)
    given = {
        "list_name": NAME,
        "issued": NOW,
        "expires": NOW + timedelta(days=14),
        "key": agency.key,
        "layout": "register",
        "declared": declared,
    }
    told = []
    full = publish_files([SAMPLE / "register-20261120.txt"], serial=42, out=agency.drop, warn=told.append, **given)
    assert (told, full.rows, full.entries) == ([], 6, {"entries": 3 + 100 + 1})
    delta = publish_files([SAMPLE / "register-20261121.txt"], serial=43, base=42, out=agency.drop, **given)
    assert (delta.rows, delta.entries) == (3, {"added": 1, "removed": 51})
    report = await agency.load(full.manifest, store)
    assert (report.entries, report.devices, report.bad_rows) == (104, 1_000_103, 0)
    reasons = {
        "00101006000001": "stolen",
        "00101006000002": "lost",
        "00101006000150": "stolen",
        "00101010123456": "counterfeit",
        "00101006000003": "Prüfung",
    }
    content = await read_content(store, NAME, (await store.heads())[NAME])
    found = {imei: reason_and_day(content.table, content.head.reasons, int(imei))[0] for imei in reasons}
    assert found == reasons
    assert set(content.table.rows().column(ENDS).tolist()) == {0, until_seconds("2030-12-31")}
    report = await agency.load(delta.manifest, store)
    assert report.entries == 104 + 1 - 51
    content = await read_content(store, NAME, (await store.heads())[NAME])
    assert reason_and_day(content.table, content.head.reasons, 101006000005)[0] == "lost"
    assert reason_and_day(content.table, content.head.reasons, 101006000001)[0] is None


async def test_a_release_in_another_layout_is_rejected_with_the_way(tmp_path, store):
    agency = Agency(tmp_path)
    for layout in ("register", "lsds", "imei"):
        manifest = agency.release({"d.txt": ("entries", layout, f"{ONE}\n".encode())}, serial=1)
        with pytest.raises(ReleaseRefused, match=f"by eir publish --layout {layout}$") as caught:
            await agency.load(manifest, store)
        refused = caught.value
        assert (refused.reason, refused.list_name, refused.serial) == ("layout", NAME, 1)
    assert await store.heads() == {}
    manifest = agency.release({"d.txt": ("changes", "eir", f"imei\n{ONE}\n".encode())}, kind="delta", base=1, serial=2)
    with pytest.raises(ReleaseRefused, match='"role" is missing or is not added or removed'):
        await agency.load(manifest, store)


def test_the_commands_of_the_page_with_a_file_of_layouts_alone(site):
    folder = site.folder / "agency"
    folder.mkdir()
    (folder / "layouts.yaml").write_text(DECLARED)
    options = [
        "--list",
        "stolen",
        "--expires",
        "14d",
        "--key",
        site.publisher.key,
        "--layout",
        "register",
        "-c",
        folder / "layouts.yaml",
        "--out",
        folder,
    ]
    said = site.json("publish", *options, "--serial", "42", SAMPLE / "register-20261120.txt")
    assert (said["rows"], said["entries"]) == (6, 104)
    site.eir("publish", *options, "--serial", "43", "--base", "42", SAMPLE / "register-20261121.txt")
    site.eir("load", "--force", folder / "stolen-42.manifest.json", folder / "stolen-43.manifest.json")
    found = site.json("check", "00101006000150")
    assert (found["status"], found["reason"], found["serial"]) == ("blacklisted", "stolen", 43)
    assert site.json("check", "00101006000120")["status"] == "whitelisted"
    done = site.eir(
        "publish", *options, "--serial", "44", "--layout", "registre", SAMPLE / "register-20261120.txt", status=1
    )
    assert "layout 'registre' is unknown; expected one of register, eir, imei" in done.stderr


@pytest.mark.parametrize("signer", ["registry", "operator"])
def test_four_commands_from_a_registrys_file_to_a_blocked_phone(site, signer):
    """Each block of the page; between the first and the second command the operator trusts the key."""
    block = blocks(section((CONFIG / "LISTS.md").read_text(), "## From a registry's file to a blocked phone"))[
        signer == "operator"
    ]
    lines = block.replace("KEY", "key").splitlines(keepends=True)
    assert len(lines) == 4
    (site.folder / "stolen.csv").write_text("imei,reporting_date,status\n35209900176148,20261120,blacklist\n")
    (site.folder / "inbox").mkdir()
    site.configure(
        lists={"stolen-national": {"signers": "trusted"}},
        policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
        inbox="inbox",
    )
    trust = """printf '%s namespaces="eir-release" %s\\n' registry "$(cut -d' ' -f1,2 key.pub)" >trusted\n"""
    script = "".join((f'eir() {{ {shlex.join(COMMAND)} "$@"; }}\n', lines[0], trust, *lines[1:]))
    subprocess.run(
        ["sh", "-euc", script], cwd=site.folder, env=site.environment(), check=True, capture_output=True, text=True, timeout=PROGRAM_S
    )  # fmt: skip
    if signer == "operator":  # the files may have been too fresh
        until(lambda: "nothing waits" in site.eir("inbox").stderr)
    assert site.json("check", "35209900176148")["status"] == "blacklisted"


# Forms


ROWS = f"{ONE}\n{TWO}\n"


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (f"x|{ONE}|y\n z|{TWO}|\n", {"separator": "|", "columns": {"imei": 2}}),
        (f"IMEI\tnote\n{ONE}\tx\n{TWO}\t\n", {"separator": "tab", "columns": {"imei": "imei"}}),
        (f'"a;b";{ONE}\nc;"{TWO}"\n', {"separator": ";", "columns": {"imei": 2}}),
        (f"imei,imei nummer\n1,{ONE}\n2,{TWO}\n", {"columns": {"imei": "IMEI Nummer"}}),
        (f"nothing of this\nnor this\n{ROWS}", {"skip": 2, "columns": {"imei": 1}}),
        (f"H 2\n{ROWS}", {"header": {"begins": "H ", "count": 2}, "separator": "space", "columns": {"imei": 1}}),
        (f"H\n#\nIMEI\n{ROWS}T,2,20261124\n\n", {"header": {"begins": "H"}, "skip": 1, "trailer": {"begins": "T", "count": 2, "date": 3}, "columns": {"imei": "IMEI"}}),
        (f"{ONE},{ONE}\n{TWO},\n", {"columns": {"imei_from": 1, "imei_to": 2}}),
        (f"{ONE},{TWO}\n", {"columns": {"imei_from": 1, "imei_to": 2}}),
        (f"{ONE},001010000000001\n{TWO},x\n", {"columns": {"imei": 1, "imsi": 2}}),
        (f"{ONE}, A \n{TWO},B\n{THREE},D\n", {"columns": {"imei": 1, "action": 2}, "added": ["A", "B"], "removed": ["D"]}),
    ],
)  # fmt: skip
def test_forms_of_the_same_two_devices(layouts, content, declared):
    keys, _, tally, _ = read(layouts, content.encode(), **declared)
    assert keys == {ONE, TWO}
    assert tally.bad == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "windows-1252"])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_encodings_through_pieces_of_any_size(layouts, encoding, size, tmp_path):
    from eir.lists.rows.delivered import DataFile, open_folder

    name = "Gerät"
    text = f"HDR,3\n{name},Grund\n{ONE},größer\n{TWO},\n{THREE},x\nTRL"
    (tmp_path / "f.txt").write_bytes(text.encode(encoding))
    with open_folder(tmp_path) as folder, DataFile("f.txt", folder) as file:
        pieces = b"".join(file.chunks(10, file.sha256()))
    cut = (
        [pieces[at : at + size] for at in range(0, len(pieces), size)]
        if encoding == "utf-16"
        else pieces.splitlines(keepends=True)
    )
    declared = {
        "encoding": encoding,
        "columns": {"imei": name, "reason": "Grund"},
        "header": {"begins": "HDR", "count": 2},
        "trailer": {"begins": "TRL"},
    }
    keys, _, tally, count = read(layouts, b"", chunks=cut, **declared)
    assert (keys, tally.bad, count) == ({ONE, TWO, THREE}, 0, 3)


def test_lines_are_named_as_they_stand_in_the_file(layouts):
    content = f"H,5\nskip\nIMEI,END,CODE\n{ONE},,A\n{TWO},31-Dec-2030,C\n\n1,,A\n{ONE},2030-12-31,A\n{THREE},31-Dec-2030,D\nT\n".encode()
    declared = {
        "columns": {"imei": "IMEI", "until": "END", "action": "CODE"}, "dates": "DD-Mon-YYYY", "added": ["A"], "removed": ["D"],
        "header": {"begins": "H", "count": 2}, "skip": 1, "trailer": {"begins": "T"},
    }  # fmt: skip
    keys, removed, tally, count = read(layouts, content, **declared)
    assert (keys, removed, count, tally.bad) == ({ONE}, {THREE}, 5, 3)
    assert tally.complaints == [
        "f.txt:5: its code is none of A (added) and D (removed)",
        "f.txt:7: no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 1 characters",
        "f.txt:8: until is not like DD-Mon-YYYY",
    ]


@pytest.mark.parametrize(
    ("content", "declared", "reason", "says"),
    [
        ("", {"header": {"begins": "H"}}, "layout", "the first line does not begin with 'H'"),
        (ROWS, {"header": {"begins": "H"}}, "layout", "the first line does not begin with 'H', as a header record does"),
        ("H,x\n", {"header": {"begins": "H", "count": 2}}, "layout", "field 2 of the header record is not a number of rows"),
        ("H\n", {"header": {"begins": "H", "date": 2}}, "layout", "field 2 of the header record is not a date like 20261231"),
        ("H,2026-02-30\n", {"header": {"begins": "H", "date": 2}}, "layout", "is not a date"),
        (f"H,3\n{ROWS}", {"header": {"begins": "H", "count": 2}}, "rows", "f.txt has 2 rows; its header says 3"),
        (f"{ROWS}T,1\n", {"trailer": {"begins": "T", "count": 2}}, "rows", "f.txt has 2 rows; its trailer says 1"),
        (ROWS, {"trailer": {"begins": "T"}}, "rows", "the last line does not begin with 'T', as a trailer record does; the file is probably truncated"),
        ("", {"trailer": {"begins": "T"}}, "rows", "the file is probably truncated"),
        ("IMEI\n", {"columns": {"imei": "Gerät"}}, "layout", "f.txt:1: the header has no column 'gerät', which layout own declares for imei"),
        ("IMEI;Gerät\n", {"columns": {"imei": "Gerät"}}, "layout", "separated by semicolons; save it with commas"),
        ("IMEI,x\n", {"columns": {"imei": "IMEI"}, "separator": ";"}, "layout", None),
        ("Gerät,x,Gerät\n", {"columns": {"imei": "Gerät"}}, "layout", "twice in the header: 'gerät'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_declared_is_refused(layouts, content, declared, reason, says):
    with pytest.raises(ReleaseRefused, match=re.escape(says or "layout")) as caught:
        read(layouts, content.encode(), **{"columns": {"imei": 1}, **declared})
    assert caught.value.reason == reason


# Dates, and what a declaration may say


@pytest.mark.parametrize(
    ("form", "text", "iso"),
    [
        ("DD.MM.YYYY", "31.12.2026", "2027-01-01T00:00:00Z"),
        ("MM/DD/YYYY", "12/31/2026", "2027-01-01T00:00:00Z"),
        ("DD-Mon-YYYY", "12-Dec-2026", "2026-12-13T00:00:00Z"),
        ("YYYYMMDDhhmmss", "20261231120001", "2026-12-31T12:00:01Z"),
        ("YYYY-MM-DD hh:mm", "2026-12-31 12:00", "2026-12-31T12:00:00Z"),
    ],
)
def test_dates(form, text, iso):
    assert is_date_form(form)
    assert until_seconds(text, form) == datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp()
    for wrong in (text[:-1], f"{text}0", text.replace("12", "41"), text.replace("2", "٢")):
        with pytest.raises(ValueError, match=r"."):
            until_seconds(wrong, form)


@pytest.mark.parametrize(
    "form", ["", "YYYY", "DD.MM.YY", "YYYYMMDD%d", "YYYYMMMonDD", "YYYYMMDDDD", "YYYYMMDDhh", "yyyy-mm-dd"]
)
def test_forms_that_are_none(form):
    assert not is_date_form(form)


@pytest.mark.parametrize(
    ("declared", "line", "says"),
    [
        ("own: {}", 2, "the layout own has no column that identifies a row; expected columns with imei or identifier or tac or imei_from+imei_to"),
        ("eir: {columns: {imei: 1}}", 2, "the layout eir is built in"),
        ("own: {columns: {imei: 1, reason: WHY}}", 2, "columns of own by name and by position"),
        ("own: {columns: {imei: 1, reason: 1}}", 2, "two columns of own are the same"),
        ("own: {columns: {imei: 1}, added: [A]}", 2, "columns.action, added and removed of own need each other"),
        ("own: {columns: {imei: 1, action: 2}, added: [A], removed: [A]}", 2, "A is in both added and removed of own"),
        ("own: {columns: {imei: 0}}", 2, "expected a column's name or position from 1"),
        ("own: {columns: {reasn: 1}}", 2, "unknown key 'reasn' in layouts.own.columns; did you mean 'reason'?"),
        ("own: {columns: {imei: 1}, separator: a}", 2, "expected tab, space, or one sign"),
        ("own: {columns: {imei: 1}, dates: soon}", 2, "expected a form such as YYYYMMDD"),
        ("own: {columns: {imei: 1}, encoding: ebcdic}", 2, "expected utf-8, utf-16, latin-1"),
        ("own: {columns: {imei: 1}, reasons: [10]}", 2, "a code, an equals sign and its reason"),
        ("own: {columns: {imei: 1}, header: {count: 2}}", 2, "the key 'begins' is missing in layouts.own.header"),
    ],
)  # fmt: skip
def test_declarations_that_cannot_be_used(layouts, declared, line, says):
    with pytest.raises(ConfigError) as refused:
        layouts(f"layouts:\n  {declared}\n")
    (problem,) = refused.value.problems
    assert (problem.line, says in problem.text) == (line, True), problem
