"""Loads, end to end: files and signatures on disk, the SQLite store behind; each refusal leaves the list in force."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from datetime import timedelta

import pytest
import zstandard
from simulated.patience import PATIENCE_S
from simulated.releases import NAME, NOW, make_key, public, sign, text
from simulated.store_content import Altered, devices_of, tacs_of

from eir.device import MEID_BASE, device_key, imsi_key
from eir.errors import EntryRefused, NothingToRollBack, ReleaseRefused, StoreError
from eir.lists.changes.data_files import STAGES
from eir.lists.changes.load import load_release
from eir.lists.changes.rollback import reset_serial, roll_back
from eir.lists.pages.pages import PAGE_KEYS, Page, content_digest, decode_sections
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.history import list_of
from eir.lists.record.store import ACCEPTED, FORCED, REFUSED, ROLLED_BACK
from eir.lists.stores.sqlite import SqliteStore

IMEIS = [f"35123456{n:06d}" for n in range(0, 1000, 7)]

SCATTERED = b"".join(b"%014d\n" % random.Random(n).randrange(10**14) for n in range(20_000))


async def held(store, name=NAME):
    """(state, {key or TAC: reason}, pages) of the list in force; proves the content digest and the sums by the way."""
    state = await store.state(name)
    pages = [page async for _, batch in store.pages(name) for page in batch]
    assert state.content_digest == content_digest(pages)
    texts = state.reasons or ("",)
    found = {("TAC", number): texts[code] for number, (code, _) in tacs_of(pages).items()}
    for page in pages:
        low = decode_keys(page.keys).to_array()
        codes = decode_sections(page.extra).reasons or b"\0"
        for at, key in enumerate(low):
            found[page.number * PAGE_KEYS + key] = texts[codes[at if len(codes) > 1 else 0]]
    assert (state.entries, state.devices) == (len(found), devices_of(pages))
    return state, found, pages


UNVERIFIED = [f" (claims {NAME} {serial}, unverified)" for serial in range(1, 10)]


async def refused(agency, manifest, store, **arguments):
    """The refusal, after checking that it changed nothing and stands in the history."""
    before = await store.state(NAME), [page async for _, batch in store.pages(NAME) for page in batch]
    events = sum(event.count for event in await store.history())
    with pytest.raises(ReleaseRefused) as caught:
        await agency.load(manifest, store, **arguments)
    after = await store.state(NAME), [page async for _, batch in store.pages(NAME) for page in batch]
    assert after == before
    history = await store.history()
    assert sum(event.count for event in history) == events + 1
    assert (history[-1].what, history[-1].outcome, history[-1].who) == ("refuse", REFUSED, "tester@host")
    said = f"{caught.value.reason}: {caught.value.detail}"
    assert history[-1].detail.removeprefix(said) in {"", *UNVERIFIED}
    assert not history[-1].detail.removeprefix(said) or caught.value.list_name is None
    assert history[-1].list == caught.value.list_name
    return caught.value


async def test_a_full_release(agency, store):
    seen = []
    manifest = agency.release(IMEIS)
    report = await agency.load(manifest, store, progress=lambda *call: seen.append(call))
    state, found, _ = await held(store)
    assert set(found) == {device_key(text) for text in IMEIS}
    assert (state.kind, state.serial, state.highest_serial, state.generation) == ("devices", 1, 1, 1)
    assert state.release_digest == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert (state.issued, state.expires, state.loaded_at) == (
        text(NOW - timedelta(days=1)),
        text(NOW + timedelta(days=14)),
        text(NOW),
    )
    assert state.signers[0].startswith("agency SHA256:")
    assert state.reasons == ()
    assert report.state == state
    assert (report.rows, report.entries, report.devices, report.entries_before) == (143, 143, 143, 0)
    assert (report.bad_rows, report.skipped) == (0, 0)
    assert set(report.seconds) == set(STAGES)
    assert [stage for stage, done, _ in seen if done == 0] == [*STAGES[:3], "build", "build", "write"]
    assert all(0 <= done <= total for _, done, total in seen)
    (event,) = await store.history()
    assert (event.what, event.outcome, event.list, event.serial, event.digest) == (
        "load",
        ACCEPTED,
        NAME,
        1,
        state.release_digest,
    )
    assert "143 entries" in report.as_text()
    assert json.loads(json.dumps(report.as_json()))["entries"] == 143


async def test_all_kinds_of_file_in_one_release(agency, store):
    content = b"reason,imei\r\nlost,35000000000001\r\n"
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(b"tac,reason\n86000000,recall\n")
    files = {
        "singles.csv": ("entries", "eir", content),
        "more.txt": ("entries", "imei", b"35000000000002\nA0000000000001\n"),
        "ranges.csv": ("entries", "eir", b"imei_from,imei_to\n35000001999990,35000002000009\n"),
        "dirbs.csv": (
            "entries",
            "dirbs-blacklist",
            b"imei,block_date,reasons\r\n350000000000037,20260101,a|b\r\n12*#,20260101,x\r\n",
        ),
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
    assert (report.skipped, report.devices, report.entries) == (1, PAGE_KEYS + 25, 26)


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
        ({"layout": "gsma"}, "layout", "is unknown"),
        ({"layout": "dirbs-exceptions"}, "layout", "lists of pairs, not of devices"),
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


@pytest.mark.parametrize("kept", [True, False])
async def test_a_file_that_is_written_to_during_the_load(agency, store, kept):
    how = {"kept_max": (1 << 20) * kept}
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"

    def write(at, done, _total):
        if at == "read" and not done:
            data.write_bytes(data.read_bytes().replace(b"35123456000007", b"99999999000007"))

    if kept:
        await agency.load(manifest, store, progress=write, **how)
        assert set((await held(store))[1]) == {device_key(text) for text in IMEIS}
    else:
        assert (await refused(agency, manifest, store, progress=write, **how)).reason == "changed"


@pytest.mark.parametrize("length", [-1, +1])
async def test_a_file_that_is_cut_or_grows_while_it_is_hashed(agency, store, length):
    manifest = agency.release(IMEIS)
    data = agency.drop / "data-1.csv"

    def change(at, done, _total):
        if at == "digest" and not done:
            os.truncate(data, data.stat().st_size + length)

    if length < 0:
        assert (await refused(agency, manifest, store, progress=change)).reason == "digest"
    else:  # what was promised is there and is what is read
        assert (await agency.load(manifest, store, progress=change)).entries == 143


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


@pytest.mark.parametrize("kept", [True, False])
async def test_several_members_and_frames_in_one_file(agency, store, kept):
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
    assert (await agency.load(manifest, store, kept_max=(1 << 20) * kept)).entries == 3


async def test_serials_are_never_used_again(agency, store):
    await agency.load(agency.release(IMEIS, serial=5), store)
    again = agency.release(IMEIS, serial=5)
    assert (await refused(agency, again, store)).reason == "serial"
    await agency.load(agency.release(IMEIS[1:], serial=7), store)
    assert (await refused(agency, agency.release(IMEIS, serial=6), store)).reason == "serial"
    state = await roll_back(NAME, store, who="tester@host", now=NOW)
    assert (state.serial, state.highest_serial, state.generation) == (5, 7, 3)
    assert set((await held(store))[1]) == {device_key(text) for text in IMEIS}
    assert (await refused(agency, agency.release(IMEIS[1:], serial=7), store)).reason == "serial"
    assert (await refused(agency, agency.release(IMEIS, serial=8), store, marks={NAME: (0, 8)})).reason == "serial"
    await agency.load(agency.release(IMEIS, serial=8), store)
    rollback = [event for event in await store.history() if event.what == "rollback"]
    assert [(event.outcome, event.serial) for event in rollback] == [(ROLLED_BACK, 5)]


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
    state = await reset_serial(NAME, store, to=6, reason="was meant to be 6", who="tester@host", now=NOW)
    assert (state.serial, state.highest_serial, state.generation) == (2**63 - 1, 6, 3)
    assert (await held(store))[0] == state
    event = (await store.history())[-1]
    assert (event.what, event.outcome, event.who, event.list) == ("reset-serial", FORCED, "tester@host", NAME)
    assert event.detail == f"was meant to be 6: the highest serial is 6 again, and was {2**63 - 1}"
    agency.settings()
    assert (await refused(agency, agency.release(IMEIS, serial=6), store)).reason == "serial"
    # A copy on this host that has not followed the reset says nothing, one that has seen more since does.
    assert (await refused(agency, old, store, marks={NAME: (1, 7)})).reason == "serial"
    report = await agency.load(old, store, marks={NAME: (0, 2**63 - 1)})
    assert report.state.mark == (1, 7)
    undone = await roll_back(NAME, store, who="tester@host", now=NOW)
    assert (undone.serial, undone.mark) == (2**63 - 1, (1, 7))
    assert (await agency.load(agency.release(IMEIS, serial=8), store)).state.mark == (1, 8)


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
        await reset_serial(NAME, store, to=3, reason="why", who="tester@host", now=NOW)
    await agency.load(agency.release(IMEIS, serial=5), store)
    with pytest.raises(EntryRefused, match=says):
        await reset_serial(NAME, store, to=to, reason=reason, who="tester@host", now=NOW)
    assert (await store.state(NAME)).mark == (0, 5)
    assert len(await store.history()) == 1


async def test_a_rollback_to_each_release_that_is_kept(agency, store):
    """Ten releases, full and delta, with reasons and TACs: to each of those that are kept, by its serial, then forward again."""
    agency.settings(keep=9, change_min=10**9)
    digests = {}
    for serial in range(1, 11):
        full = serial in {1, 5, 8}
        texts = {
            "devices": f"imei,reason\n35{serial:012d},reason {serial}\n",
            "tacs": f"tac,reason\n3500{serial:04d},model\n",
        }
        files = {
            f"{name}-{serial}.csv": ("entries" if full else "added", "eir", rows.encode())
            for name, rows in texts.items()
        }
        if full:
            manifest = agency.release(files, serial=serial)
        else:
            files[f"gone-{serial}.csv"] = ("removed", "eir", f"tac\n3500{serial - 1:04d}\n".encode())
            manifest = agency.release(files, serial=serial, kind="delta", base=serial - 1)
        digests[serial] = (await agency.load(manifest, store)).state.content_digest
    assert len({*digests.values()}) == 10
    back = {"who": "tester@host", "now": NOW}
    with pytest.raises(
        NothingToRollBack, match="serial 11 of list stolen-national is not kept; there are: 9, 8, 7, 6, 5, 4, 3, 2, 1"
    ):
        await roll_back(NAME, store, to=11, **back)
    assert (await roll_back(NAME, store, to=4, dry_run=True, **back)).content_digest == digests[4]
    for to in (9, 7, 5, 4, 2, 1):
        undone = await roll_back(NAME, store, to=to, **back)
        pages = [page async for _, batch in store.pages(NAME) for page in batch]
        assert (undone.serial, undone.highest_serial, undone.content_digest) == (to, 10, digests[to])
        assert content_digest(pages) == digests[to]
    events = [event.detail.partition(" undone")[0] for event in await store.history() if event.what == "rollback"]
    assert events == ["release 10", "release 9, 8", "release 7, 6", "release 5", "release 4, 3", "release 2"]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_nothing_to_roll_back(agency, store, dry_run):
    with pytest.raises(NothingToRollBack, match="never been loaded"):
        await roll_back(NAME, store, who="tester@host", now=NOW, dry_run=dry_run)
    assert not await store.history()
    await agency.load(agency.release(IMEIS, serial=7), store)
    with pytest.raises(NothingToRollBack, match="publish the good data again with a serial above 7"):
        await roll_back(NAME, store, who="tester@host", now=NOW, dry_run=dry_run)


async def test_a_dry_rollback_returns_the_release_that_would_be_in_force(agency, store):
    first = (await agency.load(agency.release(IMEIS), store)).state
    await agency.load(agency.release(IMEIS, serial=2), store)
    before = await store.state(NAME), await store.history()
    would = await roll_back(NAME, store, who="tester@host", now=NOW, dry_run=True)
    assert (would.serial, would.content_digest, would.highest_serial) == (1, first.content_digest, 2)
    assert (await store.state(NAME), await store.history()) == before


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
    event = (await store.history())[-1]
    assert f"; {add} devices come, {100 - keep} go; " in event.detail
    assert event.outcome == (FORCED if reason else ACCEPTED)
    assert ("--force lifted the limit on" in event.detail) is bool(reason)


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
    assert (
        (await store.history())[-1]
        .detail.partition("; signed by")[0]
        .endswith("999 go; --force, which lifted no limit")
    )
    counted = {(each.outcome, each.count) for each in await store.outcomes()}
    assert counted == {(ACCEPTED, 2), (REFUSED, 1), (FORCED, 1)}


async def test_an_empty_list_in_force_has_limits_and_a_first_release_has_none(agency, store):
    many = [f"35111111{n:06d}" for n in range(1000)]
    assert (await agency.load(agency.release(many), store, dry_run=True)).come == 1000
    await agency.load(agency.release({"none.csv": ("entries", "eir", b"imei\n")}), store)
    assert (await refused(agency, agency.release(many), store)).reason == "growth"


async def test_rows_that_end_go_and_rows_that_have_ended_come(agency, store):
    agency.settings(change_min=0)
    over = f"imei,until\n{''.join(f'{imei},2020-01-01{chr(10)}' for imei in IMEIS)}".encode()
    await agency.load(agency.release(IMEIS), store)
    why = await refused(agency, agency.release({"o.csv": ("entries", "eir", over)}), store)
    assert "0 devices come, 143 go" in why.detail
    delta = agency.release({"o.csv": ("added", "eir", over)}, serial=3, kind="delta", base=1)
    assert "0 devices come, 143 go" in (await refused(agency, delta, store)).detail
    assert (await agency.load(delta, store, force=True)).lifted == ("shrink",)
    assert "143 devices come, 0 go" in (await refused(agency, agency.release(IMEIS, serial=4), store)).detail


async def test_a_damaged_list_can_be_replaced(agency, store):
    await agency.load(agency.release(IMEIS), store)

    async def damaged(name):
        yield await store.state(name), [Page(35_123_456, b"junk"), Page(99, b"", b"T\x09"), Page(100, b"", b"R\x09")]

    report = await agency.load(agency.release(IMEIS[:100]), Altered(store, pages=damaged))
    assert (report.entries, report.come, report.gone) == (100, 100, 0)


async def test_a_release_whose_whole_tacs_exceed_a_limit_is_not_built(agency, store):
    await agency.load(agency.release(IMEIS), store)
    seen = []
    tacs = {"t.csv": ("entries", "eir", b"tac\n35123456\n35123457\n")}
    why = await refused(agency, agency.release(tacs), store, progress=lambda stage, *_: seen.append(stage))
    assert why.reason == "growth"
    assert "at least 1,999,857 devices come" in why.detail
    assert "read" in seen
    assert "build" not in seen


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
    assert (report.devices, report.entries) == (2 * PAGE_KEYS + 1, 3)
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
    (event,) = await store.history()
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
    assert (report.come, report.gone, report.state) == (143, 0, None)
    assert await store.state(NAME) is None
    agency.settings(change_min=10)
    await agency.load(agency.release(IMEIS), store)
    report = await agency.load(agency.release([*IMEIS[3:], "99999999999999"]), store, dry_run=True)
    assert (report.come, report.gone, report.entries, report.entries_before) == (1, 3, 141, 143)
    with pytest.raises(ReleaseRefused):
        await agency.load(agency.release([]), store, dry_run=True)
    assert (await store.state(NAME)).serial == 2
    assert len(await store.history()) == 1


async def test_a_dry_run_counts_wrong_check_digits_and_refuses_nothing(agency, store):
    rows = [
        "35209900176148",
        "352099001761481",
        "352099001761480",
        "352099001761482",
        "351234567890127",
    ]  # none, good, spare, wrong twice
    report = await agency.load(agency.release(rows), store, dry_run=True)
    assert (report.wrong_check_digits, report.bad_rows, report.entries) == (2, 0, 2)
    assert "warning: 2 IMEIs of 15 digits end in a wrong check digit" in report.as_text()
    report = await agency.load(agency.release(rows[:3]), store, dry_run=True)
    assert (report.wrong_check_digits, "check digit" in report.as_text()) == (0, False)
    assert (await agency.load(agency.release(rows), store)).wrong_check_digits is None


async def test_of_two_loaders_one_wins(agency, store, tmp_path):
    await agency.load(agency.release(IMEIS), store)
    first, second = agency.release(IMEIS[1:], serial=2), agency.release(IMEIS[2:], serial=3)
    other = SqliteStore(tmp_path / "lists.sqlite")
    results = await asyncio.gather(agency.load(first, store), agency.load(second, other), return_exceptions=True)
    lost = [result for result in results if isinstance(result, ReleaseRefused)]
    assert len(lost) == 1
    assert lost[0].reason in {"conflict", "serial"}
    state, _, _ = await held(store)
    assert state.serial in {2, 3}
    assert state.generation == 2
    await other.close()


async def test_a_history_that_cannot_be_written_leaves_the_refusal_as_it_was(agency, store):
    async def fail(_event):
        raise StoreError("full", "no space left")

    manifest = agency.release(IMEIS)
    full = Altered(store, record=fail)
    await agency.load(manifest, full)
    with pytest.raises(ReleaseRefused) as caught:
        await agency.load(manifest, full)
    assert caught.value.reason == "serial"


async def test_a_delta_and_its_base(agency, store):
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
    change = (await store.changes(NAME, 1))[-1]
    assert change.pages == (35_123_456, 99_999_999, (MEID_BASE + 0xA0000000000001) // PAGE_KEYS)
    await roll_back(NAME, store, who="tester@host", now=NOW)
    after = await held(store)
    assert after[1:] == before[1:]


@pytest.mark.long
async def test_a_chain_of_deltas_equals_the_full_list(agency, store):
    agency.settings(growth_max=100, shrink_max=1)
    agency.settings(name="whole", growth_max=100, shrink_max=1)
    rng = random.Random(5)
    pool = [f"{35000000 + rng.randrange(4):08d}{rng.randrange(60):06d}" for _ in range(150)]
    truth = dict.fromkeys(rng.sample(pool, 60), "first")
    for serial in range(1, 12):
        if serial == 1:
            rows = "".join(f"{imei},{reason}\n" for imei, reason in truth.items())
            manifest = agency.release({"f.csv": ("entries", "eir", f"imei,reason\n{rows}".encode())}, serial=1)
        else:
            removed = rng.sample(pool, 20)
            added = {imei: f"r{rng.randrange(6)}" for imei in rng.sample(pool, 20)}
            for imei in removed:
                truth.pop(imei, None)
            truth.update(added)
            files = {
                "a.csv": ("added", "eir", ("imei,reason\n" + "".join(f"{k},{v}\n" for k, v in added.items())).encode()),
                "r.csv": ("removed", "imei", "".join(f"{imei}\n" for imei in removed).encode()),
            }
            manifest = agency.release(files, serial=serial, kind="delta", base=serial - 1)
        await agency.load(manifest, store)
        rows = "imei,reason\n" + "".join(f"{imei},{reason}\n" for imei, reason in truth.items())
        await agency.load(
            agency.release({"w.csv": ("entries", "eir", rows.encode())}, serial=serial, list="whole"), store
        )
        _, by_deltas, _ = await held(store)
        _, whole, _ = await held(store, "whole")
        assert by_deltas == whole == {device_key(imei): reason for imei, reason in truth.items()}


async def test_subscribers_and_pairs(agency, store):
    agency.settings(kind="subscribers")
    agency.settings(name="pairs", kind="pairs")
    await agency.load(agency.release({"s.csv": ("entries", "eir", b"imsi\n001010000000001\n00101000002\n")}), store)
    assert set((await held(store))[1]) == {imsi_key("001010000000001"), imsi_key("00101000002")}
    pairs = b"imei,imsi,msisdn\r\n35123456789012,001010000000001,1\r\n35123456789012,001010000000002,1\r\n"
    exceptions = {"e.csv": ("entries", "dirbs-exceptions", pairs)}
    await agency.load(agency.release(exceptions, serial=1, list="pairs"), store)
    removed = {"e.csv": ("removed", "dirbs-exceptions", pairs[: pairs.index(b"\n", 30) + 1])}
    await agency.load(agency.release(removed, serial=2, list="pairs", kind="delta", base=1), store)
    _, found, pages = await held(store, "pairs")
    assert set(found) == {35123456789012}
    assert decode_sections(pages[0].extra).imsis[4:] == imsi_key("001010000000002").to_bytes(8, "little")
    agency.settings(name="pairs", kind="devices")
    why = await refused(
        agency,
        agency.release({"d.csv": ("added", "imei", b"35123456789012\n")}, serial=3, list="pairs", kind="delta", base=2),
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
    assert len((await store.state(NAME)).signers) == 2


def test_the_server_side_of_this_module_does_without_polars():
    code = "import sys, eir.lists.changes.load, eir.lists.releases.publish; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_load_release_is_what_others_build_against():
    assert load_release.__kwdefaults__ == {"force": False, "dry_run": False, "marks": None, "progress": None}
