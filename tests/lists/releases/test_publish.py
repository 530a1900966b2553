"""The publisher's side: what publish writes is what a load takes, DIRBS zips included, and nothing else is touched."""

import gzip
import json
import os
import subprocess
import zipfile
from dataclasses import replace
from datetime import timedelta

import pytest
import zstandard
from full_disk import no_file_above
from simulated.releases import NAME, NOW, make_key, public, publish_files

from eir.device import device_key
from eir.errors import ReleaseRefused
from eir.lists.log.reader import read_content
from eir.lists.releases.release import verify_release
from eir.lists.rows.layout import USUAL_DATES
from eir.lists.stores.sqlite import SqliteStore

NOTHING_ODD = {"wrong_dates": 0, "ended": 0, "zeros": 0, "future_dates": 0, "long_rows": 0}
RUN = "20261124_010203"
BLACKLIST = b"imei,block_date,reasons\r\n35111111111111,20261124,stolen|dup\r\n351111111111128,20261124,x\r\n*#06#,20261124,x\r\n"
BLOCKED = b"imei,block_date,reasons\r\n35111111111113,20261125,stolen\r\n"
UNBLOCKED = b"imei,block_date,reasons\r\n35111111111111,20261124,stolen|dup\r\n"
CHANGED = b"imei,block_date,reasons\r\n35111111111112,20261124,y\r\n"


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def make(agency, *files, **arguments):
    return published(agency, *files, **arguments).manifest


def published(agency, *files, **arguments):
    given = {"list_name": NAME, "serial": 1, "issued": NOW, "expires": NOW + timedelta(days=14), "key": agency.key}
    return publish_files(files, **{**given, **arguments})


def refusal(agency, *files, **arguments):
    with pytest.raises(ReleaseRefused) as caught:
        make(agency, *files, **arguments)
    assert not list(agency.drop.glob("*.sig"))
    return caught.value


def described(manifest):
    return [
        (entry["name"], entry["role"], entry["layout"], entry["rows"])
        for entry in json.loads(manifest.read_bytes())["files"]
    ]


def rows_of(manifest):
    """Rows of the data files of a release, by their role, each without the line of column names."""
    rows = {}
    for entry in json.loads(manifest.read_bytes())["files"]:
        packed = (manifest.parent / entry["name"]).read_bytes()
        text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
        rows.setdefault(entry["role"], []).extend(text.splitlines()[1:])
    return rows


async def held(store):
    content = await read_content(store, NAME, (await store.heads())[NAME])
    return set(content.table.rows().keys.tolist())


async def test_what_is_published_loads(agency, store):
    files = [
        put(agency.drop, "a.csv", b"\xef\xbb\xbfimei,reason\r\n35123456789012,lost\r\n\r\n35123456789013,\r\n"),
        put(agency.drop, "b.txt", b"35123456789014\nA0000000000001"),
        put(agency.drop, "c.csv.gz", gzip.compress(b"imei_to,imei_from\n35123456789019,35123456789015\n")),
        put(agency.drop, "d.csv.zst", zstandard.compress(b'"imei"\n"35123456789020"\n')),
    ]
    seen = []
    manifest = make(agency, *files, progress=lambda *call: seen.append(call))
    assert manifest == agency.drop / f"{NAME}-1.manifest.json"
    assert described(manifest) == [
        (f"{NAME}-1.csv.zst", "entries", "eir", 5),
        (f"{NAME}-1-ranges.csv.zst", "entries", "eir", 1),
    ]
    assert {stage for stage, _, _ in seen} == {"read"}
    report = await agency.load(manifest, store)
    assert (report.entries, report.bad_rows) == (10, 0)
    assert await held(store) == {*range(35123456789012, 35123456789021), device_key("A0000000000001")}
    assert sorted(path.name for path in agency.drop.iterdir()) == sorted(
        [
            *(file.name for file in files),
            f"{NAME}-1.csv.zst",
            f"{NAME}-1-ranges.csv.zst",
            manifest.name,
            f"{manifest.name}.sig",
        ]
    )


async def test_publishing_again_replaces_manifest_and_signatures(agency, store):
    file = put(agency.drop, "a.csv", b"imei\n35123456789012\n")
    second = make_key(agency.folder, "second")
    manifest = make(agency, file, more_keys=[second])
    agency.settings(threshold=2, signers=agency.trust("two", f"a {public(agency.key)}", f"b {public(second)}"))
    assert len((await agency.load(manifest, store)).head.signers) == 2
    file.write_bytes(b"imei\n35123456789013\n")
    assert make(agency, file, serial=1) == manifest
    assert [path.name for path in agency.drop.glob("*.sig*")] == [f"{manifest.name}.sig"]
    agency.settings()
    report = await agency.load(make(agency, file, serial=2), store)
    assert report.serial == 2
    assert await held(store) == {35123456789013}


def dirbs_zip(folder, members, name=f"{RUN}_blacklist.zip", **arguments):
    path = folder / name
    with zipfile.ZipFile(path, "w", **arguments) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


DIRBS = {
    f"{RUN}_blacklist.csv": BLACKLIST,
    f"{RUN}_blacklist_delta_-1_42_blocked.csv": BLOCKED,
    f"{RUN}_blacklist_delta_-1_42_unblocked.csv": UNBLOCKED,
    f"{RUN}_blacklist_delta_-1_42_changed.csv": CHANGED,
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "out/"])
async def test_a_dirbs_zip_as_it_comes(agency, store, compression, prefix):
    agency.settings(growth_max=10, shrink_max=10)
    members = {f"{prefix}{name}": content for name, content in {**DIRBS, "README.txt": b"x"}.items()}
    archive = dirbs_zip(agency.drop, members, compression=compression)
    manifest = make(agency, archive)
    assert described(manifest) == [(f"{NAME}-1.csv.zst", "entries", "eir", 2)]
    report = await agency.load(manifest, store)
    assert report.entries == 2
    delta = make(agency, archive, serial=2, base=1)
    assert described(delta) == [
        (f"{NAME}-2-added.csv.zst", "added", "eir", 2),
        (f"{NAME}-2-removed.csv.zst", "removed", "eir", 1),
    ]
    assert sorted(path.name for path in agency.drop.glob("*.csv*")) == sorted(
        name for release in (manifest, delta) for name, *_ in described(release)
    )
    await agency.load(delta, store)
    assert await held(store) == {35111111111112, 35111111111113}


def test_other_dirbs_files(agency):
    """Each row of a file gets the role that the name of the file has."""
    header = "imei,imsi,msisdn,block_date,reasons"
    changes = ["new", "resolved", "blacklisted", "no_longer_seen", "changed"]
    rows = [f"3511111111111{number},00101000000000{number}" for number in range(7)]
    files = [
        put(agency.drop, f"{RUN}_notifications_op1_delta_7_42_{change}.csv", f"{header}\r\n{row},,,\r\n".encode())
        for change, row in zip(changes, rows[:5], strict=True)
    ]
    files += [
        put(
            agency.drop,
            f"{RUN}_exceptions_operator_two_delta_7_42_{change}.csv",
            f"imei,imsi,msisdn\r\n{row},\r\n".encode(),
        )
        for change, row in (("added", rows[5]), ("removed", rows[6]))
    ]
    found = rows_of(make(agency, *files, serial=43, base=42))
    assert found == {"added": [rows[0], rows[4], rows[5]], "removed": [rows[1], rows[2], rows[3], rows[6]]}


def test_a_delta_that_both_adds_and_removes_an_entry_is_not_published(agency):
    files = [
        put(agency.drop, f"{what}.csv", f"imei\n{rows}\n".encode())
        for what, rows in (("added", "35000000000001\n35000000000002"), ("removed", "35000000000001\n35000000000003"))
    ]
    assert "1 entries are both added and removed" in refusal(agency, *files, serial=2, base=1).detail


async def test_a_device_that_is_notified_with_two_sims_does_not_go_with_one(agency, store, tmp_path):
    header = "imei,imsi,msisdn,block_date,reasons"
    rows = [f"35111111111111,00101000000000{sim},,20261201,duplicate" for sim in (1, 2)]
    full, gone = (
        put(agency.drop, f"{RUN}_notifications_op1{change}.csv", "\r\n".join([header, *some, ""]).encode())
        for change, some in (("", rows), ("_delta_1_2_resolved", rows[:1]))
    )
    why = refusal(agency, gone, serial=2, base=1, kind="devices")
    assert (why.reason, "may leave the device listed with another" in why.detail) == ("layout", True)
    why = refusal(agency, full)
    assert (why.reason, "is for lists of devices or pairs; give one of them (--kind)" in why.detail) == ("layout", True)
    await agency.load(make(agency, full, kind="devices"), store)
    assert await held(store) == {35111111111111}
    pairs = SqliteStore(tmp_path / "pairs.sqlite")
    agency.lists = {NAME: replace(agency.lists[NAME], kind="pairs", change_min=10)}
    for made, entries in (
        (lambda: make(agency, full, kind="pairs"), 2),
        (lambda: make(agency, gone, serial=2, base=1, kind="pairs"), 1),
    ):
        assert (await agency.load(made(), pairs)).entries == entries
    await pairs.close()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a/x.csv": BLACKLIST, "b/x.csv": BLACKLIST}, "file_name"),
        ({"readme.txt": b"x"}, "layout"),
        ({f"{RUN}_blacklist_delta_1_2_blocked.csv": BLOCKED}, "layout"),
        ({f"{RUN}_notifications_a.csv": b"x", f"{RUN}_notifications_b.csv": b"x"}, "layout"),
        ({f"{RUN}_blacklist.csv": BLACKLIST, f"{RUN}_exceptions_a.csv": b"x"}, "layout"),
        ({f"{n}.csv": b"" for n in range(1001)}, "data"),
    ],
)
def test_zips_that_are_not_taken(agency, members, reason):
    before = set(agency.folder.rglob("*"))
    archive = dirbs_zip(agency.drop, members)
    assert refusal(agency, archive).reason == reason
    assert set(agency.folder.rglob("*")) == before | {archive}


def test_names_in_a_zip_lead_nowhere(agency):
    members = {"../../evil.csv": BLACKLIST, "a/../../worse.csv": BLACKLIST, "-rf.csv": BLACKLIST, "x\\y.csv": BLACKLIST}
    archive = dirbs_zip(agency.drop, members)
    before = set(agency.folder.rglob("*"))
    manifest = make(agency, archive)
    assert described(manifest) == [(f"{NAME}-1.csv.zst", "entries", "eir", 2)]
    written = {manifest, manifest.with_name(f"{manifest.name}.sig"), agency.drop / f"{NAME}-1.csv.zst"}
    assert set(agency.folder.rglob("*")) == before | written


def test_zips_that_are_damaged_or_bombs(agency):
    bomb = dirbs_zip(agency.drop, {"x.csv": b"imei\n" + b" " * 10_000_000}, compression=zipfile.ZIP_DEFLATED)
    assert refusal(agency, bomb).reason == "expanded"
    damaged = dirbs_zip(agency.drop, DIRBS)
    content = bytearray(damaged.read_bytes())
    content[70] ^= 1
    damaged.write_bytes(content)
    assert refusal(agency, damaged).reason == "data"
    assert refusal(agency, put(agency.drop, "no.zip", b"PK")).reason == "data"
    assert refusal(agency, agency.drop / "nothing.zip").reason == "file_missing"
    lies = bytearray(dirbs_zip(agency.drop, {"y.csv": b"imei\n" * 100}).read_bytes())
    for at in (22, lies.rindex(b"PK\x01\x02") + 24):
        lies[at : at + 4] = (20).to_bytes(4, "little")
    assert refusal(agency, put(agency.drop, "lies.zip", bytes(lies))).reason in {"data", "expanded"}
    assert not list(agency.drop.glob("*.csv"))


def test_a_data_file_is_never_overwritten(agency):
    file = put(agency.drop, f"{NAME}-1.csv.zst", zstandard.compress(b"imei\n35123456789012\n"))
    before = file.read_bytes()
    assert refusal(agency, file).reason == "file_exists"
    assert (file.read_bytes(), [*agency.drop.iterdir()]) == (before, [file])
    make(agency, file, serial=2)


def test_the_same_data_may_be_signed_again_but_no_other(agency):
    """As `eir publish` without `--force`."""
    file = put(agency.drop, "a.csv", b"imei\n35123456789012\n")
    make(agency, file, replace=False)
    manifest = make(agency, file, replace=False, expires=NOW + timedelta(days=20))
    before = {path: path.read_bytes() for path in agency.drop.iterdir()}
    file.write_bytes(b"imei\n35123456789013\n")
    with pytest.raises(ReleaseRefused, match="is a release of this serial with other data"):
        make(agency, file, replace=False)
    file.write_bytes(before[file])
    assert {path: path.read_bytes() for path in agency.drop.iterdir()} == before
    assert "20" in json.loads(manifest.read_bytes())["expires"]


async def test_another_folder(agency, store):
    out = agency.folder / "out" / "releases"
    source = put(agency.folder, "a.csv", b"imei\n35123456789012\n")
    manifest = make(agency, source, dirbs_zip(agency.folder, DIRBS), out=out)
    assert manifest.parent == out
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{NAME}-1.csv.zst", manifest.name, f"{manifest.name}.sig"]
    )
    assert (await agency.load(manifest, store)).entries == 3
    other = put(agency.drop, "b.csv", b"imei\n")
    why = refusal(agency, source, other)
    assert (why.reason, "--out" in why.detail) == ("file_name", True)


def test_an_empty_file_is_called_that(agency):
    assert refusal(agency, put(agency.drop, "a.csv", b"")).detail.startswith("a.csv: the file is empty; ")
    truncated, cr = (
        refusal(agency, put(agency.drop, "a.csv", content)).detail for content in (b"ime", b"imei\r35209900176148\r")
    )
    assert "(the file ends within it and may be truncated)" in truncated
    assert cr.startswith("a.csv: its lines end with CR alone; save it with LF or CRLF; ")


def test_a_refusal_leaves_nothing(agency):
    out = agency.folder / "out"
    assert refusal(agency, put(agency.folder, "a.csv", b"imei\nabc\n"), out=out).reason == "bad_rows"
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "arguments", "reason"),
    [
        ("a.csv", b"TAC|Manufacturer\n", {}, "layout"),
        ("a.csv", b"", {}, "layout"),
        ("a.csv", b"", {"layout": "eir"}, "layout"),
        ("a.csv", b"reason\nlost\n", {"layout": "eir"}, "layout"),
        ("a.csv", b"imei,imei\n", {"layout": "eir"}, "layout"),
        ("a.csv", b"imei\n", {"layout": "gsma"}, "layout"),
        ("a.csv", b"imei\n", {"base": 1, "serial": 2}, "file_name"),
        ("a.csv", b"imei\n", {"serial": 0}, "manifest"),
        ("a.csv", b"imei\n", {"serial": 2, "base": 2}, "manifest"),
        ("a.csv", b"imei\n", {"list_name": "../x"}, "manifest"),
        ("a.csv", b"imei\n", {"expires": NOW}, "manifest"),
        ("a.csv.gz", b"imei\n", {}, "data"),
    ],
)
def test_what_cannot_be_published(agency, name, content, arguments, reason):
    assert refusal(agency, put(agency.drop, name, content), **arguments).reason == reason


async def test_a_bad_row_is_named_before_anything_is_signed(agency, store):
    files = [
        put(agency.drop, "a.csv", b"imei\r\n35123456789012\r\n\r\n3512345678901x\r\n"),
        put(agency.drop, "b.csv", b"tac\n3512345\n"),
    ]
    said = [
        "a.csv:4: no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 14 characters, not all of them digits",
        "b.csv:2: a TAC has 8 digits; got 7 characters",
    ]
    for most in (0, 1):
        why = refusal(agency, *files, bad_rows_max=most)
        assert why.reason == "bad_rows"
        assert why.detail.split("\n") == [f"2 bad rows; {most} are allowed (--bad-rows-max)", *said]
    assert not list(agency.drop.glob("*.json"))
    told = []
    manifest = make(agency, *files, bad_rows_max=2, warn=told.append)
    assert told == [f"a bad row, left out of the release: {complaint}" for complaint in said]
    report = await agency.load(manifest, store)
    assert (report.bad_rows, report.entries) == (0, 1)


def test_bad_rows_and_files_without_rows_are_warnings(agency):
    many = b"imei\n" + b"x\n" * 22
    told = []
    make(agency, put(agency.drop, "a.csv", many), put(agency.drop, "b.csv", b"imei\n351234567890127\n"), put(agency.drop, "c.csv", b"tac\n"),
         bad_rows_max=22, warn=told.append)  # fmt: skip
    assert told[0] == "c.csv holds no row"
    assert len(told) == 1 + 20 + 2
    assert told[-2:] == ["22 bad rows in all", "1 IMEIs of 15 digits end in a wrong check digit"]


def test_all_bad_rows_are_counted_and_twenty_are_named(agency):
    why = refusal(agency, put(agency.drop, "a.csv", b"imei\n" + b"x\n" * 25), put(agency.drop, "b.csv", b"imei\ny\n"))
    assert why.detail.startswith("26 bad rows; 0 are allowed")
    assert [line.split(":")[1] for line in why.detail.splitlines()[1:]] == [str(line) for line in range(2, 22)]


ONE, TWO, THREE = "35123456789012", "35123456789013", "35123456789014"


@pytest.mark.parametrize(
    ("files", "arguments", "counts"),
    [
        ({"a.csv": f"imei\n{ONE}\n{TWO}\n"}, {}, (2, {"entries": 2}, 0, 0)),
        ({"a.csv": f"imei,reason\n{ONE},lost\n{ONE},lost\n{ONE},stolen\n{TWO},\n{TWO},\n"}, {}, (5, {"entries": 2}, 3, 1)),
        ({"a.csv": f"imei,until\n{ONE},20301231\n{ONE},20311231\n{ONE},20311231\n{TWO},\n"}, {}, (4, {"entries": 2}, 2, 1)),
        ({"a.csv": f"imei\n{ONE}\n", "b.csv": f"imei,reason\n{ONE}0,\n{TWO},\n"}, {}, (3, {"entries": 2}, 1, 0)),
        ({"a.csv": "tac,reason\n35123456,x\n35123456,y\n35123457,y\n"}, {}, (3, {"entries": 2}, 1, 1)),
        ({"a.csv": f"imei_from,imei_to\n{ONE},{THREE}\n{ONE},{THREE}\n"}, {}, (2, {"entries": 3}, 3, 0)),
        ({"a.csv": f"imei,imsi\n{ONE},001010000000001\n{ONE},001010000000002\n{ONE},001010000000001\n"}, {}, (3, {"entries": 2}, 1, 0)),
        ({"a.csv": "imsi\n001010000000001\n001010000000001\n"}, {}, (2, {"entries": 1}, 1, 0)),
        ({"a.csv": f"imei\nA0000000000001\na0000000000001\n{ONE}\n"}, {}, (3, {"entries": 2}, 1, 0)),
        ({"x-added.csv": f"imei\n{ONE}\n{TWO}\n", "x-removed.csv": f"imei\n{THREE}\n{THREE}\n"}, {"serial": 2, "base": 1}, (4, {"added": 2, "removed": 1}, 1, 0)),
    ],
)  # fmt: skip
def test_rows_entries_and_repeats_are_counted(agency, files, arguments, counts):
    made = published(
        agency, *(put(agency.drop, name, content.encode()) for name, content in files.items()), **arguments
    )
    assert (made.rows, made.entries, made.duplicates, made.conflicting) == counts
    assert made.as_json() == {
        "manifest": str(made.manifest), "signature": f"{made.manifest}.sig", "rows": counts[0], "entries": sum(counts[1].values()),
        **counts[1], "duplicates": counts[2], "conflicting": counts[3], "other_reasons": 0, "bad_rows": 0, "skipped": 0, "wrong_check_digits": 0, **NOTHING_ODD,
    }  # fmt: skip
    assert ("duplicates" in made.as_text()) == bool(counts[2])


def test_what_an_eir_does_not_read_and_may_be_meant_is_named(agency):
    told = []
    content = f"imei,reasn,date,colour\n{ONE},lost,2026-11-20,red\n{TWO},lost,20.11.2026,\n{THREE},,,\n{ONE},,20261301,".encode()
    made = published(agency, put(agency.drop, "a.csv", content), put(agency.drop, "b.csv", b"imei\n"), warn=told.append)
    assert told == [
        "a.csv does not end with a newline: it may be truncated",
        "a.csv: unknown column without effect: 'reasn'; did you mean 'reason'?",
        "a.csv: unknown column without effect: 'colour'",
        "b.csv holds no row",
        "a.csv:3: its date is not like 20261231, 2026-12-31 or 2026-12-31T12:00:00Z",
        "a.csv:5: its date is not like 20261231, 2026-12-31 or 2026-12-31T12:00:00Z",
    ]
    assert (made.rows, made.bad_rows, made.odd) == (4, 0, NOTHING_ODD | {"wrong_dates": 2})


UNMEANT = (
    "imei,reason,date,until\n"
    f"{ONE},lost,2026-11-20,20991231\n"
    f"{ONE},lost,2026-11-20,20200101\n"
    "00000000000000,lost,,\n"
    f"{TWO},lost,2999-01-01,\n"
    f"{TWO},lost, in Paris,,\n"
    f'{TWO},"lost, in Paris",,\n'
    "\n"
    f'{THREE},"lost, in Paris",,,more\n'
)
UNMEANT_WARNINGS = [
    "a.csv:3: its end (until) is over",
    "a.csv:4: its IMEI is all zeros",
    "a.csv:5: its date is more than a year ahead",
    "a.csv:6: it has more fields than the header",
    "a.csv:9: it has more fields than the header",
]


def test_rows_that_are_probably_not_meant_are_named_and_counted(agency):
    """The comma without quotes also shifts the date, which is then invalid."""
    told = []
    made = published(agency, put(agency.drop, "a.csv", UNMEANT.encode()), warn=told.append)
    assert sorted(told) == sorted([*UNMEANT_WARNINGS, f"a.csv:6: its date is not like {USUAL_DATES}"])
    assert made.odd == {"wrong_dates": 1, "ended": 1, "zeros": 1, "future_dates": 1, "long_rows": 2}
    assert made.as_json() == made.as_json() | made.odd


def test_more_than_twenty_such_rows_are_counted(agency):
    told = []
    rows = "".join(f"{10_000_000 + number:014d},2020-01-01\n" for number in range(30))
    published(agency, put(agency.drop, "a.csv", f"imei,until\n{rows}".encode()), warn=told.append)
    assert told[:20] == [f"a.csv:{line}: its end (until) is over" for line in range(2, 22)]
    assert told[20:] == ["30 rows have expired"]


def test_strict_refuses_a_release_with_a_warning_and_leaves_nothing(agency):
    data = put(agency.drop, "a.csv", UNMEANT.encode())
    with pytest.raises(ReleaseRefused) as refused:
        published(agency, data, strict=True)
    assert refused.value.reason == "warnings"
    assert set(UNMEANT_WARNINGS) <= set(str(refused.value).splitlines())
    assert [path.name for path in agency.drop.iterdir()] == ["a.csv"]
    told = []
    published(agency, put(agency.drop, "b.csv", f"imei\n{ONE}\n".encode()), strict=True, warn=told.append)
    assert told == []


def test_every_bad_row_is_handed_on(agency):
    rows = "".join(f"{ONE}\nwrong {number}\n" for number in range(50))
    bad = []
    with pytest.raises(ReleaseRefused, match="50 bad rows"):
        published(agency, put(agency.drop, "a.csv", f"imei\n{rows}".encode()), each_bad=lambda *each: bad.append(each))
    assert [each[:2] for each in bad] == [("a.csv", 3 + 2 * number) for number in range(50)]
    assert bad[7][3] == b"wrong 7"
    assert bad[7][2].startswith("no IMEI (14 to 16 digits)")


def test_reasons_that_an_eir_does_not_keep_as_they_are_are_named(agency):
    def told(*reasons):
        said = []
        rows = b"".join(b"%014d,%s\n" % (10_000_000 + number, reason) for number, reason in enumerate(reasons))
        published(agency, put(agency.drop, "a.csv", b"imei,reason\n" + rows), warn=said.append)
        return said

    cases = [b"case %d" % number for number in range(254)]
    assert told(*cases, b"x" * 199, b"M\xc3\xbcller")[0].startswith("an EIR keeps the first 254 different reasons")
    assert told(*cases[1:], b"M\xc3\xbcller") == []
    assert "such as 'M\ufffdller'" in told(b"M\xfcller")[0]
    assert told(b"x" * 201) == [f"an EIR keeps 200 characters of a reason, as of '{'x' * 20}…'"]


def test_files_for_lists_of_different_kinds_are_no_release(agency):
    files = {
        "a.csv": b"imei\n",
        "b.csv": b"imei,imsi\n",
        "c.csv": b"imsi\n",
        "d.csv": b"imei,imsi,msisdn,block_date,reasons\n",
    }
    one, pair, sim, either = (put(agency.drop, name, content) for name, content in files.items())
    for mixed in ((one, pair), (pair, sim), (either, one, pair)):
        why = refusal(agency, *mixed)
        assert (why.reason, "publish them apart" in why.detail) == ("layout", True)
    for fitting in ((one, either), (either, pair)):
        make(agency, *fitting)


def test_files_that_are_not_there_or_are_no_files(agency):
    assert refusal(agency, agency.drop / "nothing.csv").reason == "file_missing"
    assert refusal(agency, agency.folder / "nothing.csv", out=agency.drop).reason == "file_missing"
    os.mkfifo(agency.drop / "pipe.csv")
    assert refusal(agency, agency.drop / "pipe.csv").reason == "not_a_file"


def test_names_of_delta_files(agency):
    files = [put(agency.drop, name, b"imei\n") for name in ("x-added.csv", "removed.csv.gz", "nation_removed.csv")]
    for number, file in enumerate(files):
        row = b"imei\n3512345678901%d\n" % number
        file.write_bytes(gzip.compress(row) if number == 1 else row)
    delta = make(agency, *files, serial=9, base=4)
    assert rows_of(delta) == {"added": ["35123456789010"], "removed": ["35123456789011", "35123456789012"]}
    assert json.loads(delta.read_bytes())["base"] == 4


def test_a_key_that_cannot_sign(agency, capfd):
    file = put(agency.drop, "a.csv", b"imei\n")
    assert refusal(agency, file, key=agency.folder / "nokey").reason == "signing"
    assert "nokey" in capfd.readouterr().err
    assert [*agency.drop.iterdir()] == [file]


def test_a_full_disk_is_an_error_of_the_manifest(agency):
    data = put(agency.drop, "a.csv", b"imei\n35209900176148\n")
    for most, name in ((8, f"{NAME}-1.csv.zst"), (320, f"{NAME}-1.manifest.json")):
        with no_file_above(most), pytest.raises(OSError, match="too large") as caught:
            make(agency, data)
        assert caught.value.filename == str(agency.drop / name)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """An ssh-agent of the test's own, which the environment names."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield process
    process.terminate()
    process.wait()


def test_a_key_that_an_agent_holds(agency, agent):
    while subprocess.run(["ssh-add", "-q", agency.key], check=False, stderr=subprocess.DEVNULL).returncode:
        assert agent.poll() is None
    agency.key.unlink()
    manifest = make(agency, put(agency.drop, "a.csv", b"imei\n35123456789012\n"), key=agency.folder / "agency.pub")
    assert verify_release(manifest, agency.lists, now=NOW).signers[0].startswith("agency SHA256:")


async def test_lists_of_lsds_are_published_as_they_come(agency, store):
    """Guessed by their first line; a delta is one file of additions and removals, and the last row of a device counts."""
    head = "imei,reporting_date,status"
    full = put(
        agency.drop,
        "full.csv",
        f"{head}\n35000000000001,20261101,blacklist\n35000000000002,20261101,pending\n35000000000003,20261101,\n".encode(),
    )
    delta = put(
        agency.drop,
        "delta.csv",
        f"{head},change_type\n35000000000002,20261101,blacklist,update\n35000000000001,20261101,recovered,remove\n".encode(),
    )
    for serial, base, file, roles in ((1, None, full, {"entries": 2}), (2, 1, delta, {"added": 1, "removed": 1})):
        manifest = make(agency, file, serial=serial, base=base)
        assert {role: rows for _, role, _, rows in described(manifest)} == roles
        assert (await agency.load(manifest, store, force=True)).entries == 2
    assert await held(store) == {35000000_000002, 35000000_000003}
    # The last row about a device counts, in one file or in the next, in a delta and in a full release.
    stolen, found = (
        put(agency.drop, name, f"{head},change_type\n35000000000005,20261101,{status},update\n".encode())
        for name, status in (("first.csv", "blacklist"), ("second.csv", "recovered"))
    )
    for serial, base, files, there in (
        (3, 2, [stolen, found], [2, 3]),
        (4, 3, [found, stolen], [2, 3, 5]),
        (5, None, [stolen, found, full], [1, 3]),
    ):
        await agency.load(make(agency, *files, serial=serial, base=base), store, force=True)
        assert await held(store) == {35000000_000000 + number for number in there}
