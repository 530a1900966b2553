"""Loads, end to end: files and signatures on disk, a store behind; each refusal leaves the list in force."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import zstandard
from simulated.patience import PATIENCE_S
from simulated.releases import NAME, NOW, make_key, public, sign, text
from simulated.store_content import directly

from eir.device import MEID_BASE, SNR_KEYS, device_key, imsi_key
from eir.errors import EntryRefused, GenerationConflict, ReleaseRefused, StoreError
from eir.lists.changes.data_files import STAGES
from eir.lists.changes.undo import plan_rollback, serial_reset
from eir.lists.log.journal import REFUSED, list_of
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListWriter
from eir.lists.record.listed_entries import entries_in, reason_and_day
from eir.lists.record.reasons import reason_at
from eir.lists.sources.release_result import failed
from eir.lists.stores.redis import RedisStore
from eir.lists.table.columns import SECONDS

IMEIS = [f"35123456{n:06d}" for n in range(0, 1000, 7)]

IMEI, OTHER = "35123456000001", "35123456000002"
DAY = 86_400


@pytest.fixture(params=["sqlite", "redis"])
async def each_store(request, store):
    if request.param == "sqlite":
        yield store
        return
    server = request.getfixturevalue("server")
    server.flush()
    opened = RedisStore(server.url)
    yield opened
    await opened.close()


SCATTERED = b"".join(b"%014d\n" % random.Random(n).randrange(10**14) for n in range(20_000))


async def content_of(store, name=NAME):
    return await read_content(store, name, (await store.heads())[name])


async def held(store, name=NAME):
    """(head, {key or TAC: reason}, table) of the list in force."""
    content = await content_of(store, name)
    entries = [*entries_in(content.table.rows())]
    found = {
        ("TAC", entry.key // SNR_KEYS) if entry.whole_tac else entry.key: reason_at(content.head.reasons, entry.reason)
        for entry in entries
    }
    assert content.head.entries == len(entries)
    return content.head, found, content.table


async def reasons_of(store, name=NAME):
    """Identifier → reason."""
    content = await content_of(store, name)
    return {
        entry.text(content.head.kind): reason_at(content.head.reasons, entry.reason)
        for entry in entries_in(content.table.rows())
    }


async def newest(store, name=NAME):
    return (await store.log(name, 0))[-1].change


def writer(store, name=NAME):
    return ListWriter(store, name, "devices", "tester@host", now=lambda: NOW)


async def roll_back(store):
    await writer(store).write((await plan_rollback(store, NAME)).make)
    return (await store.heads())[NAME]


UNVERIFIED = [f" (claims {NAME} {serial}, unverified)" for serial in range(1, 10)]


async def refused(agency, manifest, store, **arguments):
    """The refusal, after checking that it changed nothing and what its event says."""
    before = dict(await store.heads())
    with pytest.raises(ReleaseRefused) as caught:
        await agency.load(manifest, store, **arguments)
    assert dict(await store.heads()) == before
    event = failed("", caught.value).rejection("tester@host", NOW)
    assert (event.what, event.outcome, event.who, event.time) == ("refuse", REFUSED, "tester@host", text(NOW))
    said = f"{caught.value.reason}: {caught.value.detail}"
    assert event.detail.removeprefix(said) in {"", *UNVERIFIED}
    assert not event.detail.removeprefix(said) or caught.value.list_name is None
    assert (event.list, event.serial) == (caught.value.list_name, caught.value.serial)
    return caught.value


def day(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def file(header, *rows):
    return "".join(f"{row}\n" for row in (header, *rows)).encode()


def delta(agency, serial, base, added=b"", removed=b"", **members):
    files = {f"a{serial}.csv": ("added", "eir", added), f"r{serial}.csv": ("removed", "eir", removed)}
    return agency.release(
        {name: entry for name, entry in files.items() if entry[2]}, serial=serial, kind="delta", base=base, **members
    )


async def test_a_full_release(agency, each_store):
    store = each_store
    seen, marks = [], {}
    manifest = agency.release(IMEIS)
    report = await agency.load(manifest, store, progress=lambda *call: seen.append(call), save_mark=marks.__setitem__)
    state, found, _ = await held(store)
    assert set(found) == {device_key(text) for text in IMEIS}
    assert (state.kind, state.serial, state.highest_serial, state.generation) == ("devices", 1, 1, 1)
    assert state.release == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert (state.issued, state.expires, state.loaded_at) == (
        text(NOW - timedelta(days=1)),
        text(NOW + timedelta(days=14)),
        text(NOW),
    )
    assert state.signers[0].startswith("agency SHA256:")
    assert state.reasons == ()
    assert (report.head, report.change.digest, marks) == (state, state.digest, {NAME: (0, 1)})
    assert (report.rows, report.entries, report.devices, report.entries_before) == (143, 143, 143, 0)
    assert report.bad_rows == 0
    assert set(report.seconds) == set(STAGES)
    assert [stage for stage, done, _ in seen if done == 0] == [*STAGES]
    assert all(0 <= done <= total for _, done, total in seen)
    (entry,) = await store.log(NAME, 0)
    assert (entry.change.what, entry.change.who, entry.change.lifted) == ("load", "tester@host", ())
    assert entry.change.detail.startswith("143 entries, before 0; 143 devices come, 0 go; signed by agency SHA256:")
    assert "143 entries" in report.as_text()
    assert json.loads(json.dumps(report.as_json()))["entries"] == 143


async def test_all_kinds_of_file_in_one_release(agency, store):
    content = b"reason,imei\r\nlost,35000000000001\r\n"
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(b"tac,reason\n86000000,recall\n")
    files = {
        "singles.csv": ("entries", "eir", content),
        "more.txt": ("entries", "eir", b"\xef\xbb\xbfimei\n35000000000002\nA0000000000001"),
        "ranges.csv": ("entries", "eir", b"imei_from,imei_to\n35000001999990,35000002000009\n"),
        "more.csv": ("entries", "eir", b"imei,note,reason\r\n350000000000037,20260101,a|b\r\n12*#,20260101,x\r\n"),
        "tacs.csv.gz": ("entries", "eir", buffer.getvalue()),
        "zst.csv.zst": ("entries", "eir", zstandard.compress(b"imei\n35000000000004\n")),
    }
    manifest = agency.release(files)
    document = json.loads(manifest.read_bytes())
    for entry in document["files"]:
        if entry["name"].endswith((".gz", ".zst")):
            entry["rows"] = 1
    agency.rewrite(manifest, document)
    report = await agency.load(manifest, store)
    _, found, _ = await held(store)
    assert found == {
        ("TAC", 86_000_000): "recall",
        35000000000001: "lost",
        35000000000002: "",
        35000000000003: "a|b",
        35000000000004: "",
        MEID_BASE + 0xA0000000000001: "",
        **dict.fromkeys(range(35000001999990, 35000002000010), ""),
    }
    assert (report.bad_rows, report.devices, report.entries) == (1, SNR_KEYS + 25, 26)


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"bytes": +1}, "file_size", "the manifest says"),
        ({"bytes": -1}, "file_size", "the manifest says"),
        ({"sha256": "0" * 64}, "digest", "SHA-256"),
        ({"rows": +1}, "rows", "has 143 rows; the manifest says 144"),
        ({"rows": -1}, "rows", "has 143 rows; the manifest says 142"),
        ({"name": "other.csv"}, "file_missing", "other.csv is missing"),
        ({"name": "../data-1.csv"}, "file_name", "not a plain file name"),
        ({"layout": "lsds"}, "layout", "the publisher has to convert the file by eir publish --layout lsds"),
    ],
)
async def test_a_manifest_that_does_not_fit_its_files(agency, store, changes, reason, says):
    manifest = agency.release(IMEIS)
    document = json.loads(manifest.read_bytes())
    for member, change in changes.items():
        entry = document["files"][0]
        entry[member] = entry[member] + change if isinstance(change, int) else change
    agency.rewrite(manifest, document)
    why = await refused(agency, manifest, store)
    assert why.reason == reason
    assert says in why.detail


@pytest.mark.parametrize("at", [0, 500, -2])
async def test_a_flipped_bit_in_the_data(agency, store, at):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"
    content = bytearray(data.read_bytes())
    content[at] ^= 1
    data.write_bytes(content)
    why = await refused(agency, manifest, store)
    assert (why.reason, why.list_name, why.serial) == ("digest", NAME, 1)


@pytest.mark.parametrize("put", ["link", "pipe", "folder"])
async def test_data_that_is_no_regular_file(agency, store, put):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"
    data.rename(agency.drop / "elsewhere.csv")
    {"link": lambda: data.symlink_to("elsewhere.csv"), "pipe": lambda: os.mkfifo(data), "folder": data.mkdir}[put]()
    async with asyncio.timeout(PATIENCE_S):
        assert (await refused(agency, manifest, store)).reason == "not_a_file"


@pytest.mark.parametrize("stage", ["digest", "read", "build"])
async def test_a_file_that_is_swapped_or_changed_during_the_load(agency, store, stage):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"

    def swap(at, done, _total):
        if at == stage and not done:
            content = data.read_bytes()
            other = agency.drop / "other"
            other.write_bytes(content.replace(b"35123456", b"99999999"))
            other.replace(data)

    await agency.load(manifest, store, progress=swap)  # another file under the name is not the one that was opened
    _, found, _ = await held(store)
    assert set(found) == {device_key(text) for text in IMEIS}


async def test_a_file_that_is_written_to_during_the_load(agency, store):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"

    def write(at, done, _total):
        if at == "read" and not done:
            data.write_bytes(data.read_bytes().replace(b"35123456000007", b"99999999000007"))

    assert (await refused(agency, manifest, store, progress=write)).reason == "changed"


@pytest.mark.parametrize("length", [-1, +1])
async def test_a_file_that_is_cut_or_grows_while_it_is_hashed(agency, store, length):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"

    def change(at, done, _total):
        if at == "digest" and not done:
            os.truncate(data, data.stat().st_size + length)

    assert (await refused(agency, manifest, store, progress=change)).reason == "digest"


@pytest.mark.parametrize(
    ("name", "content", "rows", "reason"),
    [
        ("bomb.csv.gz", gzip.compress(b"imei\n" + b" " * 60000 * 100), 1, "expanded"),
        ("bomb.csv.zst", zstandard.compress(b"imei\n" + b"\n" * 50_000_000), 1, "expanded"),
        ("line.csv", b"imei\n" + b"1" * 70_000 + b"\n", 1, "expanded"),
        ("line.csv", b"imei\n" + b"1" * 5_000_000, 10_000, "data"),
        ("cut.csv.gz", gzip.compress(b"imei\n" + os.urandom(1000).hex().encode() + b"\n")[:-20], 1, "data"),
        ("none.csv.gz", b"imei\n1\n", 1, "data"),
        ("none.csv.zst", b"imei\n1\n", 1, "data"),
        ("tail.csv.gz", gzip.compress(b"imei\n35123456789012\n", mtime=0) + b"tail", 1, "data"),
        ("cut.csv.zst", zstandard.compress(b"imei\n" + SCATTERED)[:-300], 20_000, "rows"),
    ],
)
async def test_data_that_does_not_expand_as_it_should(agency, store, name, content, rows, reason):
    agency.settings(bad_rows_max=10**6)
    manifest = agency.release({name: ("entries", "eir", content)})
    document = json.loads(manifest.read_bytes())
    document["files"][0]["rows"] = rows
    agency.rewrite(manifest, document)
    assert (await refused(agency, manifest, store)).reason == reason


async def test_several_members_and_frames_in_one_file(agency, store):
    parts = [b"imei\n35123456000001\n3512", b"3456000002\n", b"35123456000003\n"]
    files = {
        "a.csv.gz": ("entries", "eir", b"".join(map(gzip.compress, parts))),
        "b.csv.zst": ("entries", "eir", b"".join(map(zstandard.compress, parts))),
    }
    manifest = agency.release(files)
    document = json.loads(manifest.read_bytes())
    for entry in document["files"]:
        entry["rows"] = 3
    agency.rewrite(manifest, document)
    assert (await agency.load(manifest, store)).entries == 3


async def test_serials_are_never_used_again(agency, store):
    await agency.load(agency.release(IMEIS, serial=5), store)
    again = agency.release(IMEIS, serial=5)
    assert (await refused(agency, again, store)).reason == "serial"
    await agency.load(agency.release(IMEIS[1:], serial=7), store)
    assert (await refused(agency, agency.release(IMEIS, serial=6), store)).reason == "serial"
    state = await roll_back(store)
    assert (state.serial, state.highest_serial, state.generation) == (5, 7, 3)
    assert set((await held(store))[1]) == {device_key(text) for text in IMEIS}
    assert (await refused(agency, agency.release(IMEIS[1:], serial=7), store)).reason == "serial"
    assert (await refused(agency, agency.release(IMEIS, serial=8), store, marks={NAME: (0, 8)})).reason == "serial"
    await agency.load(agency.release(IMEIS, serial=8), store)


async def test_no_serial_uses_up_all_that_follow(agency, store):
    assert (await refused(agency, agency.release(IMEIS, serial=2**63 - 1), store)).reason == "serial_step"
    await agency.load(agency.release(IMEIS, serial=2026112601), store)
    much = agency.release(IMEIS, serial=2027112602)
    why = await refused(agency, much, store, force=True)  # which lifts no limit but those on sizes
    assert why.reason == "serial_step"
    assert "2026112601 is the highest ever accepted" in why.detail
    assert why.detail.endswith("publish it with a serial from 2026112602 to 2027112601")
    agency.settings(serial_step_max=10**6 + 1)
    await agency.load(much, store)


async def test_an_operator_sets_the_highest_serial_back(agency, store):
    agency.settings(serial_step_max=2**63)
    await agency.load(agency.release(IMEIS, serial=5), store)
    old = agency.release(IMEIS[1:], serial=7)
    await agency.load(agency.release(IMEIS[2:], serial=2**63 - 1), store)
    change = await writer(store).write(serial_reset(NAME, to=6, reason="was meant to be 6"))
    state = (await store.heads())[NAME]
    assert (state.serial, state.highest_serial, state.generation) == (2**63 - 1, 6, 3)
    assert (await held(store))[0] == state
    assert (change.what, change.who) == ("reset-serial", "tester@host")
    assert change.detail == f"was meant to be 6: the highest serial is 6 again, and was {2**63 - 1}"
    agency.settings()
    assert (await refused(agency, agency.release(IMEIS, serial=6), store)).reason == "serial"
    # A copy on this host that has not followed the reset says nothing, one that has seen more since does.
    assert (await refused(agency, old, store, marks={NAME: (1, 7)})).reason == "serial"
    report = await agency.load(old, store, marks={NAME: (0, 2**63 - 1)})
    assert report.head.mark == (1, 7)
    undone = await roll_back(store)
    assert (undone.serial, undone.mark) == (2**63 - 1, (1, 7))
    assert (await agency.load(agency.release(IMEIS, serial=8), store)).head.mark == (1, 8)


@pytest.mark.parametrize(
    ("to", "reason", "says"),
    [
        (5, "why", "the highest serial ever accepted for stolen-national is 5; expected a lower serial for --to"),
        (6, "why", "is 5; "),
        (3, " ", "a reason"),
    ],
)
async def test_a_reset_that_is_none(agency, store, to, reason, says):
    with pytest.raises(EntryRefused, match="never been loaded"):
        await writer(store).write(serial_reset(NAME, to=3, reason="why"))
    await agency.load(agency.release(IMEIS, serial=5), store)
    with pytest.raises(EntryRefused, match=says):
        await writer(store).write(serial_reset(NAME, to=to, reason=reason))
    assert (await newest(store)).mark == (0, 5)


@pytest.mark.parametrize(
    ("keep", "add", "change_min", "reason"),
    [
        (80, 0, 0, None),
        (79, 0, 0, "shrink"),
        (0, 0, 0, "shrink"),
        (100, 20, 0, None),
        (100, 21, 0, "growth"),
        (80, 20, 0, None),
        (50, 50, 0, "shrink"),  # as many come as go
        (0, 100, 0, "shrink"),
        (50, 50, 51, None),  # under the floor
        (50, 51, 51, "growth"),
        (0, 0, 100, "shrink"),
        (0, 0, 101, None),
    ],
)
async def test_what_goes_and_what_comes_is_limited(agency, store, keep, add, change_min, reason):
    agency.settings(shrink_max=0.2, growth_max=0.2, change_min=change_min)
    first = [f"35111111{n:06d}" for n in range(100)]
    await agency.load(agency.release(first), store)
    second = agency.release([*first[:keep], *(f"35222222{n:06d}" for n in range(add))])
    if reason:
        why = await refused(agency, second, store)
        assert why.reason == reason
        assert f"{add} devices come, {100 - keep} go, and 100 are in force" in why.detail
        assert "--force" in why.detail
    report = await agency.load(second, store, force=bool(reason))
    assert (report.devices, report.come, report.gone) == (keep + add, add, 100 - keep)
    assert f"; {add} devices come, {100 - keep} go; " in report.as_text()
    change = await newest(store)
    assert f"; {add} devices come, {100 - keep} go; " in change.detail
    assert ("--force lifted the limit on" in change.detail) is bool(reason)
    assert (change.lifted == report.lifted, bool(change.lifted)) == (True, bool(reason))


async def test_a_thousand_devices_that_are_swapped_for_others_are_refused(agency, store):
    await agency.load(agency.release([f"35111111{n:06d}" for n in range(1000)]), store)
    swapped = agency.release([f"35222222{n:06d}" for n in range(1000)])
    why = await refused(agency, swapped, store)
    sizes, _, advice = why.detail.partition("; if ")
    assert (why.reason, advice) == ("shrink", "this is intended, load it with --force")
    limits = "999 may go at most (shrink_max 20.0%, change_min 1,000)"
    assert sizes == f"1,000 devices come, 1,000 go, and 1,000 are in force: {limits}"
    with pytest.raises(ReleaseRefused):
        await agency.load(swapped, store, dry_run=True)
    delta = {
        "a.csv": ("added", "eir", b"imei\n35222222000001\n"),
        "r.csv": ("removed", "eir", b"imei\n35111111000001\n"),
    }
    report = await agency.load(agency.release(delta, serial=3, kind="delta", base=1), store)
    assert "1 devices come, 1 go" in report.as_text()
    report = await agency.load(agency.release([f"35222222{n:06d}" for n in range(1000)], serial=4), store, force=True)
    assert (report.come, report.gone, report.lifted) == (999, 999, ())  # those are within the limits
    detail = (await newest(store)).detail.partition("; signed by")[0]
    assert detail.endswith("999 go; --force, which lifted no limit")


async def test_an_empty_list_in_force_has_limits_and_a_first_release_has_none(agency, store):
    many = [f"35111111{n:06d}" for n in range(1000)]
    assert (await agency.load(agency.release(many), store, dry_run=True)).come == 1000
    await agency.load(agency.release({"none.csv": ("entries", "eir", b"imei\n")}), store)
    assert (await refused(agency, agency.release(many), store)).reason == "growth"


@pytest.mark.parametrize("what", ["base", "rows"])
async def test_a_damaged_list_can_be_replaced(agency, store, what):
    await agency.load(agency.release(IMEIS), store)
    await agency.load(delta(agency, 2, 1, added=file("imei", "99999999999999")), store)
    with directly(store) as db:
        db.execute("UPDATE parts SET octets = zeroblob(9)" if what == "base" else "UPDATE log SET rows = zeroblob(9)")
    with pytest.raises(StoreError, match="is damaged"):
        await agency.load(delta(agency, 3, 2, added=file("imei", "99999999999998")), store)
    full = agency.release(IMEIS[:100], serial=4)
    report = await agency.load(full, store, dry_run=True)
    assert (report.entries, report.come, report.gone) == (100, 0, 44)
    report = await agency.load(full, store)
    assert (report.entries, report.entries_before, report.come, report.gone) == (100, 144, 0, 44)
    head, found, _ = await held(store)
    assert (head, head.generation, set(found)) == (report.head, 3, {device_key(imei) for imei in IMEIS[:100]})


async def test_the_limit_on_shrinking_holds_for_a_damaged_list(agency, store):
    agency.settings(change_min=20)
    await agency.load(agency.release(IMEIS), store)
    with directly(store) as db:
        db.execute("UPDATE parts SET octets = zeroblob(9)")
    assert (await refused(agency, agency.release(IMEIS[:100], serial=2), store)).reason == "shrink"
    await agency.load(agency.release(IMEIS[:120], serial=2), store)


@pytest.mark.parametrize(
    ("imeis", "begin", "reason"),
    [
        (IMEIS[:100], -1, "shrink"),
        (IMEIS, 1, "shrink"),  # a row that moves to the future frees its device
        ([*IMEIS, *(f"35222222{n:06d}" for n in range(40))], -1, "growth"),
    ],
)
async def test_limits_are_shares_of_the_devices_in_force(agency, store, imeis, begin, reason):
    def release(imeis, begin):
        started, begins = (text(NOW + timedelta(days=days)) for days in (-1, 1))
        rows = [f"{imei},{text(NOW + timedelta(days=begin))}," for imei in imeis]
        rows += [f"35999999{n:06d},{begins}," for n in range(500)]
        rows += [f"35999998{n:06d},{started},{text(NOW)}" for n in range(500)]
        return agency.release({"f.csv": ("entries", "eir", file("imei,begin,until", *rows))})

    agency.settings(shrink_max=0.2, growth_max=0.2, change_min=0)
    report = await agency.load(release(IMEIS, -1), store)
    assert report.entries == 1143
    assert (await refused(agency, release(imeis, begin), store)).reason == reason


async def test_a_tac_counts_as_a_million(agency, store):
    await agency.load(agency.release(IMEIS), store)
    manifest = agency.release({"t.csv": ("entries", "eir", b"tac\n35123456\n")})
    why = await refused(agency, manifest, store)
    assert why.reason == "growth"
    assert "999,857 devices come, 0 go, and 143 are in force" in why.detail


async def test_ranges_are_limited(agency, store):
    agency.settings(range_tacs_max=2)
    wide = b"imei_from,imei_to\n35000000000000,35000001999999\n35000000000000,35000002000000\n"
    manifest = agency.release({"r.csv": ("entries", "eir", wide)})
    why = await refused(agency, manifest, store)
    assert why.reason == "range"
    assert "r.csv:3: the range holds 3 TACs" in why.detail
    assert "r.csv:2:" not in why.detail
    report = await agency.load(manifest, store, force=True)
    assert (report.devices, report.entries) == (2 * SNR_KEYS + 1, 3)
    everything = agency.release({"all.csv": ("entries", "eir", b"imei_from,imei_to\n00000000000000,99999999999999\n")})
    assert (await refused(agency, everything, store, force=True)).reason == "range"


async def test_bad_rows(agency, store):
    agency.settings(bad_rows_max=3)
    report = await agency.load(agency.release([*IMEIS, "x", "", "35", "351234560000001234"]), store)
    assert (report.entries, report.bad_rows) == (143, 3)
    assert [line.split(":")[1] for line in report.bad] == ["145", "147", "148"]
    assert "3 bad rows left out" in report.as_text()
    why = await refused(agency, agency.release([*IMEIS, *"abcd"]), store)
    assert why.reason == "bad_rows"
    assert "data-2.csv:148: " in why.detail


async def test_force_lifts_no_other_limit(agency, store):
    await agency.load(agency.release(IMEIS), store)
    assert (await refused(agency, agency.release([*IMEIS, *"x" * 101]), store, force=True)).reason == "bad_rows"
    assert (await refused(agency, agency.release(IMEIS, serial=1), store, force=True)).reason == "serial"
    assert (
        await refused(agency, agency.release(IMEIS, serial=9, expires=text(NOW)), store, force=True)
    ).reason == "expired"
    stranger = make_key(agency.folder, "stranger")
    why = await refused(agency, agency.release(IMEIS, serial=9, key=stranger), store, force=True)
    assert (why.reason, why.list_name) == ("untrusted_signer", None)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"list": NAME, "serial": 5}, f" (claims {NAME} 5, unverified)"),
        ({"list": "elsewhere", "serial": 5}, " (claims elsewhere 5, unverified)"),
        ({"list": "a b) (claims c", "serial": 5}, ""),
        ({"list": NAME, "serial": True}, ""),
        ({"list": NAME, "serial": 10**30}, ""),
        ({"list": 5}, ""),
        ([1], ""),
        (b"[" * 100_000, ""),
        (b"{" + b" " * (1 << 20) + b"}", ""),
        (b"\xff", ""),
    ],
    ids=range(10),
)  # fmt: skip
async def test_what_a_manifest_claims_that_nobody_vouches_for_is_on_record(agency, store, document, says):
    manifest = agency.drop / "x.manifest.json"
    agency.rewrite(manifest, document, key=make_key(agency.folder, "stranger"))
    with pytest.raises(ReleaseRefused) as caught:
        await agency.load(manifest, store)
    event = failed("", caught.value).rejection("tester@host", NOW)
    assert (event.list, event.serial, event.detail) == (
        None,
        None,
        f"{caught.value.reason}: {caught.value.detail}{says}",
    )
    assert (list_of(event) == NAME) is (NAME in says)


async def test_a_local_list_takes_no_releases(agency, store):
    agency.settings(name="other")
    agency.settings(local=True)
    why = await refused(agency, agency.release(IMEIS), store)
    assert (why.reason, why.list_name) == ("unknown_list", None)


async def test_a_dry_run_changes_and_records_nothing(agency, store):
    report = await agency.load(agency.release(IMEIS), store, dry_run=True)
    assert (report.come, report.gone, report.head, report.change) == (143, 0, None, None)
    assert not await store.heads()
    agency.settings(change_min=10)
    await agency.load(agency.release(IMEIS), store)
    report = await agency.load(agency.release([*IMEIS[3:], "99999999999999"]), store, dry_run=True)
    assert (report.come, report.gone, report.entries, report.entries_before) == (1, 3, 141, 143)
    with pytest.raises(ReleaseRefused):
        await agency.load(agency.release([]), store, dry_run=True)
    assert (await newest(store)).generation == 1


async def test_of_two_loaders_one_wins(agency, each_store):
    await agency.load(agency.release(IMEIS), each_store)
    for serial, kinds in ((2, {}), (4, {"kind": "delta"})):
        base = (await each_store.heads())[NAME].serial
        releases = [
            delta(agency, serial + number, base, file("imei", f"350000000000{number:02d}"))
            if kinds
            else agency.release(IMEIS[serial + number :], serial=serial + number)
            for number in range(2)
        ]
        loads = (agency.load(release, each_store) for release in releases)
        results = await asyncio.gather(*loads, return_exceptions=True)
        lost = [result for result in results if isinstance(result, ReleaseRefused)]
        assert len(lost) in ({1} if kinds else {0, 1}), "a later full release may follow"
        assert all(each.reason in {"conflict", "serial", "base"} for each in lost)
    head, _, _ = await held(each_store)
    assert head.serial in {4, 5}


async def test_a_delta_and_its_base(agency, each_store):
    store = each_store
    delta = {"kind": "delta", "base": 1}
    added = "imei,reason\n35123456000000,lost\n99999999999999,new\nA0000000000001,\n"
    files = {
        "a.csv": ("added", "eir", added.encode()),
        "r.csv": ("removed", "eir", b"imei\n35123456000007\n35123456000008\n"),
    }
    why = await refused(agency, agency.release(files, serial=2, **delta), store)
    assert why.reason == "base"
    assert "a full release is needed" in why.detail
    await agency.load(agency.release(IMEIS, serial=1), store)
    why = await refused(agency, agency.release(files, serial=4, kind="delta", base=3), store)
    assert why.reason == "base"
    assert "base 1" in why.detail
    before = await held(store)
    dry = await agency.load(agency.release(files, serial=5, **delta), store, dry_run=True)
    assert (dry.come, dry.gone) == (2, 1)
    report = await agency.load(agency.release(files, serial=5, **delta), store)
    state, found, _ = await held(store)
    assert found == {
        **{device_key(text): "" for text in IMEIS if not text.endswith("000007")},
        35123456000000: "lost",
        99999999999999: "new",
        MEID_BASE + 0xA0000000000001: "",
    }
    assert (report.come, report.gone, state.generation, state.serial) == (2, 1, 2, 5)
    assert state.reasons == ("", "lost", "new")
    await roll_back(store)
    after = await held(store)
    assert after[1] == before[1]
    assert after[0].content == before[0].content


async def test_subscribers_and_pairs(agency, store):
    agency.settings(kind="subscribers")
    agency.settings(name="pairs", kind="pairs")
    await agency.load(agency.release({"s.csv": ("entries", "eir", b"imsi\n001010000000001\n00101000002\n")}), store)
    assert set((await held(store))[1]) == {imsi_key("001010000000001"), imsi_key("00101000002")}
    pairs = b"imei,imsi\r\n35123456789012,001010000000001\r\n35123456789012,001010000000002\r\n"
    exceptions = {"e.csv": ("entries", "eir", pairs)}
    await agency.load(agency.release(exceptions, serial=1, list="pairs"), store)
    removed = {"e.csv": ("removed", "eir", pairs[: pairs.index(b"\n", 30) + 1])}
    await agency.load(agency.release(removed, serial=2, list="pairs", kind="delta", base=1), store)
    _, found, table = await held(store, "pairs")
    assert set(found) == {35123456789012}
    assert table.rows().column(SECONDS).tolist() == [imsi_key("001010000000002")]
    agency.settings(name="pairs", kind="devices")
    why = await refused(
        agency,
        agency.release(
            {"d.csv": ("added", "eir", b"imei\n35123456789012\n")}, serial=3, list="pairs", kind="delta", base=2
        ),
        store,
    )
    assert why.reason == "base"


async def test_two_signatures_for_a_list_that_wants_two(agency, store):
    second = make_key(agency.folder, "second")
    agency.settings(threshold=2, signers=agency.trust("two", f"a {public(agency.key)}", f"b {public(second)}"))
    manifest = agency.release(IMEIS)
    assert (await refused(agency, manifest, store)).reason == "threshold"
    signature = manifest.with_name(manifest.name + ".sig")
    first = signature.read_bytes()
    sign(manifest, second, target=signature.with_name(signature.name + ".2"))
    signature.write_bytes(first)
    await agency.load(manifest, store)
    assert len((await store.heads())[NAME].signers) == 2


async def test_a_replay_is_refused_before_its_files_are_read(agency, store):
    await agency.load(agency.release(IMEIS, serial=5), store)
    manifest = agency.release(IMEIS, serial=5)
    (agency.drop / "data-5.csv").write_bytes(b"")
    assert (await refused(agency, manifest, store)).reason == "serial"


async def test_times(agency, store):
    manifest = agency.release(IMEIS)
    assert (await refused(agency, manifest, store, now=NOW + timedelta(days=20))).reason == "expired"
    assert (await refused(agency, manifest, store, now=NOW - timedelta(days=2))).reason == "issued_in_future"


async def test_sims_that_devices_get_are_limited(agency, store):
    agency.settings(kind="pairs", change_min=0)
    pairs = [file("imei,imsi", *(f"{imei},00101000000000{sim}" for imei in IMEIS)) for sim in (1, 2)]
    await agency.load(agency.release({"1.csv": ("entries", "eir", pairs[0])}), store)
    why = await refused(agency, agency.release({"2.csv": ("entries", "eir", pairs[1])}), store)
    assert "143 devices come, 143 go, and 143 are in force" in why.detail


async def test_rows_that_have_ended_do_not_count_and_rows_that_have_not_begun_do(agency, store):
    agency.settings(change_min=0)
    await agency.load(agency.release(IMEIS), store)
    ended = file("imei,until", *(f"{imei},2020-01-01" for imei in IMEIS))
    why = await refused(agency, agency.release({"o.csv": ("entries", "eir", ended)}, serial=2), store)
    assert "0 devices come, 143 go" in why.detail
    later = file("imei,begin", *(f"35000000{number:06d},2027-01-01" for number in range(40)))
    why = await refused(agency, delta(agency, 3, 1, added=later), store)
    assert "40 devices come, 0 go" in why.detail
    until = file("imei,until", *(f"{imei},2026-11-26" for imei in IMEIS))
    await agency.load(agency.release({"u.csv": ("entries", "eir", until)}, serial=4), store)
    why = await refused(
        agency, agency.release(IMEIS, serial=5, expires="2028-01-01T00:00:00Z"), store, now=NOW + timedelta(days=10)
    )
    assert "143 devices come, 0 go" in why.detail
    none = agency.release({"n.csv": ("entries", "eir", b"imei\n")}, serial=6, expires="2028-01-01T00:00:00Z")
    assert (await agency.load(none, store, now=NOW + timedelta(days=10))).gone == 0


async def test_the_content_depends_on_the_releases_and_not_on_the_time_of_the_load(agency, store):
    agency.settings(name="later")
    rows = file("imei,until", f"{IMEI},2026-11-26", f"{OTHER},")
    added = file("imei,begin,until", f"{IMEI},2027-01-01,2027-02-01")
    for name, now in ((NAME, NOW), ("later", NOW + timedelta(days=5))):
        full = agency.release({"f.csv": ("entries", "eir", rows)}, serial=1, list=name)
        await agency.load(full, store, now=now)
        await agency.load(delta(agency, 2, 1, added=added, list=name), store, now=now)
    heads = await store.heads()
    assert heads[NAME].content == heads["later"].content
    assert set(await reasons_of(store)) == {IMEI, OTHER}


async def test_the_earliest_begin_and_the_latest_end_count_in_a_delta(agency, store):
    rows = (
        "A0000000000001,2026-12-22,2027-01-31",
        "A0000000000002,,",
        "A0000000000003,,2026-11-26",
        "A0000000000004,,2026-12-31",
    )
    await agency.load(agency.release({"f.csv": ("entries", "eir", file("imei,begin,until", *rows))}), store)
    rows = (
        "A0000000000001,2026-12-01,2026-12-31",
        "A0000000000002,2027-01-01,2027-02-01",
        "A0000000000003,2027-01-01,",
        "A0000000000004,2027-01-01,2027-02-01",
    )
    later = NOW + timedelta(days=3)
    await agency.load(delta(agency, 2, 1, added=file("imei,begin,until", *rows), issued=text(later)), store, now=later)
    found = {
        entry.text("devices")[-1]: (entry.begin, entry.until)
        for entry in entries_in((await content_of(store)).table.rows())
    }
    assert found == {
        "1": (day("2026-12-01"), day("2027-02-01")),
        "2": (0, 0),  # a later notice does not free a blocked phone
        "3": (day("2027-01-01"), 0),  # the row before had ended
        "4": (0, day("2027-02-02")),
    }


async def test_a_tac_has_one_type_at_a_time(agency, store):
    agency.settings(kind="device_types")
    files = {
        "t.csv": (
            "entries",
            "eir",
            file("tac,device_type,date", "35209900,Smartphone,2020-01-01", "35209901,Module,2021-02-01"),
        )
    }
    await agency.load(agency.release(files), store)
    changed = {"d.csv": ("added", "eir", file("tac,device_type", "35209900,Module", "35209901,module"))}
    await agency.load(agency.release(changed, serial=2, kind="delta", base=1), store)
    rows = [
        (
            entry.text("device_types")[:8],
            reason_at(("", "Smartphone", "Module", "module"), entry.reason),
            entry.date // DAY,
        )
        for entry in entries_in((await content_of(store)).table.rows())
    ]
    assert rows == [("35209900", "Module", 0), ("35209901", "module", 18_659)]


async def test_dates_of_entries(agency, store):
    agency.settings(dates=True)
    await agency.load(
        agency.release({"f.csv": ("entries", "eir", file("imei,date", f"{IMEI},2026-10-01", f"{OTHER},"))}),
        store,
    )
    await agency.load(delta(agency, 2, 1, added=file("imei,date", f"{IMEI},", f"{OTHER},2026-10-02")), store)
    content = await content_of(store)
    assert [reason_and_day(content.table, (), int(imei)) for imei in (IMEI, OTHER)] == [
        (None, 20_727),
        (None, 20_728),
    ]


@pytest.mark.parametrize(
    ("kind", "header", "entry"),
    [("devices", "imei", IMEI), ("devices", "tac", IMEI[:8]), ("pairs", "imei,imsi", f"{IMEI},001010000000001"), ("subscribers", "imsi", "001010000000001")],
)  # fmt: skip
async def test_a_delta_that_both_adds_and_removes_an_entry_is_rejected(agency, store, kind, header, entry):
    agency.settings(kind=kind, growth_max=100, shrink_max=1)
    await agency.load(agency.release({"f.csv": ("entries", "eir", file(header, entry))}), store)
    why = await refused(
        agency, delta(agency, 2, 1, file(f"{header},reason", f"{entry},new"), file(header, entry)), store
    )
    assert (why.reason, why.detail.partition(";")[0]) == ("rows", "1 entries are both added and removed")


async def test_a_chain_of_deltas_has_the_digest_of_the_full_list(agency, store):
    agency.settings(growth_max=100, shrink_max=1)
    agency.settings(name="whole", growth_max=100, shrink_max=1)
    rng = random.Random(5)
    pool = [f"{35000000 + rng.randrange(4):08d}{rng.randrange(60):06d}" for _ in range(150)]
    truth = dict.fromkeys(rng.sample(pool, 60), "first")
    for serial in range(1, 9):
        added = {imei: f"r{rng.randrange(6)}" for imei in rng.sample(pool, 20)}
        removed = set(rng.sample(pool, 20)) - added.keys()
        if serial == 1:
            manifest = agency.release({"f.csv": ("entries", "eir", file("imei,reason", *map(",".join, truth.items())))})
        else:
            truth = {imei: reason for imei, reason in truth.items() if imei not in removed} | added
            manifest = delta(
                agency,
                serial,
                serial - 1,
                file("imei,reason", *map(",".join, added.items())),
                file("imei", *removed),
            )
        await agency.load(manifest, store)
        rows = file("imei,reason", *map(",".join, random.Random(serial).sample([*truth.items()], len(truth))))
        await agency.load(agency.release({"w.csv": ("entries", "eir", rows)}, serial=serial, list="whole"), store)
        heads = await store.heads()
        assert heads[NAME].content == heads["whole"].content
        assert await reasons_of(store) == await reasons_of(store, "whole") == truth


async def test_reasons_keep_their_indexes_and_a_full_table_begins_anew(agency, store):
    def rows(first, last):
        return {
            "f.csv": (
                "entries",
                "eir",
                file("imei,reason", *(f"350000000{n:05d},r{n}" for n in range(first, last))),
            )
        }

    await agency.load(agency.release(rows(0, 200)), store)
    await agency.load(agency.release(rows(100, 250), serial=2), store)
    assert (await store.heads())[NAME].reasons == ("", *(f"r{n}" for n in range(250)))
    await agency.load(agency.release(rows(200, 400), serial=3), store)
    assert (await store.heads())[NAME].reasons == ("", *(f"r{n}" for n in range(200, 400)))
    assert await reasons_of(store) == {f"350000000{n:05d}": f"r{n}" for n in range(200, 400)}


async def test_a_list_that_never_stands_still_is_a_conflict(agency, store, monkeypatch):
    async def commit(*_, **__):
        raise GenerationConflict("changed")

    monkeypatch.setattr(store, "commit", commit)
    why = await refused(agency, agency.release(IMEIS), store)
    assert why.reason == "conflict"
    assert "was changed by another load or command meanwhile" in why.detail


def test_the_server_side_of_this_module_does_without_polars():
    code = "import sys, eir.lists.changes.release_load, eir.lists.releases.publish; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
