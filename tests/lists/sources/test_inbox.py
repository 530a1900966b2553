"""The drop folder: real files, real signatures and the SQLite store; the clock is the real one, and some time ahead of it."""

import asyncio
import errno
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from drop import IMEIS, PATIENCE_S, Site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import patience
from simulated.node import children, is_gone, run_eir, until_async
from simulated.releases import precede_openssh, sign
from simulated.servers import free_port
from simulated.store_content import Altered
from simulated.wire import until

from eir.config import load_config
from eir.device import device_key
from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListWriter
from eir.lists.record.clock import TrustedClock
from eir.lists.releases.release import parse_manifest
from eir.lists.sources import drop_folder
from eir.lists.sources.drop_folder import Item, _numbered, is_settled, missing_part, scan_folder, signed_manifests
from eir.lists.sources.source import ATTEMPTS_MAX, ELSEWHERE, KILLED, WAITING, failed
from eir.node.processes.lease import CLAIM_S
from eir.node.processes.loading import ATTEMPTS_FILE, CLAIM, process_once
from eir.node.processes.process import Jobs
from eir.node.processes.sources import POLL_S, Sources, Watch
from eir.node.processes.state_folder import save_clock


@pytest.fixture
def site(drop_site):
    return drop_site


# ---- what is looked at ----


def test_what_counts_as_delivered():
    one = Item(1, 0.0)
    manifests = [f"{name}.manifest.json" for name in "abcd"]
    names = [
        *manifests[:3],
        *(f"{name}.sig" for name in manifests[1:]),
        f"{manifests[1]}.sig.2",
        "a",
        "a.sig",
        f"{manifests[1]}.sig.sig",
    ]
    assert signed_manifests(dict.fromkeys(names, one)) == manifests[1:3]
    assert signed_manifests({}) == []


def test_hidden_names_and_folders_are_not_read(tmp_path):
    for name in (".rsync.abc", "a.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "accepted").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = scan_folder(tmp_path)
    assert found.keys() == {"a.csv", "link", "pipe"}
    assert len(scan_folder(tmp_path, 2)) == 2


def test_a_numbered_name_is_no_longer_than_the_file_system_permits():
    assert [_numbered("a.csv", number) for number in (1, 2, 10)] == ["a.csv", "a.csv~2", "a.csv~10"]
    assert [_numbered("x" * 300, number) for number in (2, 10)] == ["x" * 253 + "~2", "x" * 252 + "~10"]


@pytest.mark.parametrize(
    ("changed", "expected"), [(98.9, True), (99.0, True), (99.1, False), (100.0, False), (100.1, True), (400.0, True)]
)
def test_a_file_settles(changed, expected):
    assert is_settled(Item(1, changed), 100.0) is expected


def test_what_a_release_lacks():
    files = [
        {"name": n, "role": "entries", "layout": "eir", "bytes": 10, "rows": 1, "sha256": "0" * 64} for n in ("a", "b")
    ]
    document = {
        "format": "eir-release/1", "list": "l", "kind": "full", "serial": 1, "issued": "2026-01-01T00:00:00Z",
        "expires": "2026-01-02T00:00:00Z", "files": files,
    }  # fmt: skip
    manifest = parse_manifest(json.dumps(document).encode())
    whole, half = Item(10, 0.0), Item(4, 0.0)
    assert missing_part(manifest, {"a": whole, "b": whole}) == ""
    assert missing_part(manifest, {"a": whole}) == "b is missing"
    assert missing_part(manifest, {"a": half, "b": whole}) == "a has 4 of 10 bytes"


SIGNED = {"m": Item(1, 50.0), "m.sig": Item(1, 50.0)}


class TestWatch:
    def taken(self, listing, again_s, now):
        watch = Watch()
        assert watch.is_due(listing, now)
        watch.note(listing, again_s, now)
        return watch

    def test_an_empty_folder_is_never_worth_a_turn(self):
        assert not Watch().is_due({}, 1e9)

    def test_one_turn_for_what_does_not_change(self):
        watch = self.taken(SIGNED, None, 100.0)
        assert not any(watch.is_due(SIGNED, 100.0 + second) for second in range(3000))

    def test_the_next_turn_starts_when_the_last_one_planned_it(self):
        watch = self.taken(SIGNED, 7.0, 100.0)
        assert not watch.is_due(SIGNED, 106.9)
        assert watch.is_due(SIGNED, 107.0)

    def test_a_new_file_is_read_once_it_settles(self):
        watch = self.taken(SIGNED, None, 100.0)
        more = SIGNED | {"n.manifest.json": Item(1, 103.4), "n.manifest.json.sig": Item(1, 103.5)}
        assert not watch.is_due(more, 104.0)
        assert watch.is_due(more, 104.6)

    def test_a_file_that_grows_for_hours_costs_no_turn_and_holds_no_other_up(self):
        watch = self.taken(SIGNED, None, 100.0)
        due = []
        for second in range(101, 140):
            listing = (
                SIGNED | {"big": Item(second, second - 0.5)} | {f"{n}": Item(1, n) for n in (110, 120) if n < second}
            )
            if watch.is_due(listing, second):
                due.append(second)
                watch.note(listing, None, second)
        assert due == [111, 121]

    def test_a_file_that_changes_during_a_turn_is_read_by_the_next(self):
        listing = SIGNED | {"n": Item(1, 99.5)}
        watch = self.taken(listing, None, 100.0)
        assert not watch.is_due(listing, 100.4)
        assert watch.is_due(listing, 100.6)

    def test_what_goes_away_is_nothing_new(self):
        watch = self.taken(SIGNED, None, 100.0)
        assert not watch.is_due({"m": SIGNED["m"]}, 101.0)


# ---- one turn ----


async def test_a_release_is_loaded_and_put_away(site):
    site.deliver(site.publish(1))
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    assert await site.serial() == 1
    assert (site.lying(), site.lying(REFUSED)) == ([], [])
    assert site.lying(ACCEPTED) == ["stolen-1.csv", "stolen-1.manifest.json", "stolen-1.manifest.json.sig"]
    (entry,) = await site.store.log("stolen", 0)
    assert (entry.change.what, entry.change.who, entry.change.serial) == ("load", "inbox of tester@host", 1)
    assert not (site.state / "attempt").exists()
    assert site.again_s is None


async def test_an_empty_folder(site):
    assert await site.turn() == {}
    assert site.again_s is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_files_in_any_order(site, order):
    files = site.publish(1)
    for place in order[:-1]:
        site.deliver([files[place]])
        assert not any(outcome == REFUSED for outcome, _ in (await site.turn()).values())
        assert await site.serial() is None
    site.deliver([files[order[-1]]])
    assert (await site.turn())["stolen-1.manifest.json"] == (ACCEPTED, "")
    assert await site.loads() == [("stolen", 1)]
    assert site.lying() == []


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_half_copied_files_wait(site, which):
    files = site.publish(1)
    site.deliver(files)
    whole = files[which].read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 3):
        (site.drop / files[which].name).write_bytes(whole[:size])
        assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "incomplete")}
        assert 1 <= site.again_s <= 30
    site.deliver([files[which]])
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    assert await site.loads() == [("stolen", 1)]


async def test_a_whole_release_is_loaded_at_once_and_a_faulty_one_is_rejected_once_its_files_rest(site):
    site.deliver(site.publish(1) + site.publish(2, key=2))
    damaged = site.publish(3)
    site.deliver(damaged)
    content = damaged[0].read_bytes()
    (site.drop / damaged[0].name).write_bytes(content[::-1])
    site.ahead_s = 0.0
    assert await site.turn() == {
        "stolen-1.manifest.json": (ACCEPTED, ""), "stolen-2.manifest.json": (WAITING, "untrusted_signer"),
        "stolen-3.manifest.json": (WAITING, "digest"),
    }  # fmt: skip
    assert site.again_s <= 1  # not the wait for a missing file
    site.deliver(damaged[:1])
    site.ahead_s = 2.0
    assert await site.turn() == {
        "stolen-2.manifest.json": (REFUSED, "untrusted_signer"), "stolen-3.manifest.json": (ACCEPTED, "")
    }  # fmt: skip


async def test_patience_has_an_end(site):
    files = site.publish(1)
    site.deliver(files)
    (site.drop / files[0].name).write_text("imei\n")
    site.ahead_s = PATIENCE_S - 30
    assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "incomplete")}
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "incomplete")}
    assert site.refusals() == ["incomplete"]
    assert site.lying() == []
    assert site.lying(REFUSED) == [*sorted(file.name for file in files), "stolen-1.manifest.json.txt"]
    text = (site.drop / REFUSED / "stolen-1.manifest.json.txt").read_text()
    for said in (
        "Reason: incomplete",
        f"stolen-1.csv has 5 of {files[0].stat().st_size} bytes",
        "List: stolen; serial: 1",
        "Files: stolen-1.csv, ",
    ):
        assert said in text


async def test_several_at_once_are_taken_by_serial(site):
    for serial in (11, 9, 10):  # as names, 10 comes before 9
        site.deliver(site.publish(serial, IMEIS[:serial]))
    site.deliver(site.publish(12, ["99999999999999"], base=11))
    site.deliver(site.publish(3, name="other"))
    assert set((await site.turn()).values()) == {(ACCEPTED, "")}
    assert await site.loads() == [("other", 3), ("stolen", 9), ("stolen", 10), ("stolen", 11), ("stolen", 12)]


async def test_a_delta_waits_for_its_base(site):
    site.deliver(site.publish(2, ["99999999999999"], base=1))
    assert await site.turn() == {"stolen-2.manifest.json": (WAITING, "base")}
    assert "there is no list yet" in site.said["stolen-2.manifest.json"]
    site.deliver(site.publish(3, ["88888888888888"], base=2))
    site.deliver(site.publish(1))
    assert list((await site.turn()).values()) == [(ACCEPTED, "")] * 3
    site.deliver(site.publish(6, ["77777777777777"], base=5))
    assert await site.turn() == {"stolen-6.manifest.json": (WAITING, "base")}
    assert site.said["stolen-6.manifest.json"] == "it builds on serial 5, and serial 3 is in force"
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn() == {"stolen-6.manifest.json": (REFUSED, "base")}
    assert "it builds on serial 5" in (site.drop / REFUSED / "stolen-6.manifest.json.txt").read_text()
    site.ahead_s = 2.0
    site.deliver(site.publish(7, ["66666666666666"], base=2))  # what it builds on is past
    assert await site.turn() == {"stolen-7.manifest.json": (REFUSED, "base")}


async def test_a_release_that_was_rolled_back_is_not_loaded_again(site):
    site.deliver(site.publish(1, IMEIS[:5]))
    files = site.publish(2)
    site.deliver(files)
    await site.turn()
    writer = ListWriter(site.store, "stolen", "devices", "tester@host")
    await writer.write((await plan_rollback(site.store, "stolen")).make)
    site.deliver(files)
    assert await site.turn() == {"stolen-2.manifest.json": (REFUSED, "serial")}
    assert await site.serial() == 1
    assert "not above 2, the highest ever accepted" in (site.drop / REFUSED / "stolen-2.manifest.json.txt").read_text()


async def test_a_release_that_was_loaded_and_not_moved(site):
    """As after a kill between the two: its files lie there again."""
    files = site.publish(1)
    site.deliver(files)
    await site.turn()
    assert (await site.serial(), site.lying()) == (1, [])
    site.deliver(files)
    assert len(site.lying()) == 3
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    assert site.said["stolen-1.manifest.json"] == "it is in force already"
    assert await site.loads() == [("stolen", 1)]
    assert site.lying() == []


async def test_a_bad_signature_is_refused_at_once_and_its_data_goes_when_nobody_names_it(site):
    site.deliver(site.publish(1, key=2))
    assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "untrusted_signer")}
    assert site.refusals() == ["untrusted_signer"]
    assert site.lying() == ["stolen-1.csv"]
    assert PATIENCE_S - 60 < site.again_s <= PATIENCE_S
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn() == {"stolen-1.csv": (REFUSED, "stray")}
    assert site.lying() == []
    assert "no signed release named it" in (site.drop / REFUSED / "stolen-1.csv.txt").read_text()
    assert site.refusals() == ["untrusted_signer"]


async def test_a_manifest_that_never_gets_its_signature(site):
    site.deliver(site.publish(1)[:2])
    assert await site.turn() == {}
    site.ahead_s = PATIENCE_S + 1
    assert set(await site.turn()) == {"stolen-1.csv", "stolen-1.manifest.json"}
    assert site.lying() == []


async def test_a_second_signature_may_come_later(site):
    site.trust("stolen", threshold=2)
    files = site.publish(1)
    site.deliver(files)
    assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "threshold")}
    sign(files[1], site.keys[1], target=site.drop / "stolen-1.manifest.json.sig.2")
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    assert "stolen-1.manifest.json.sig.2" in site.lying(ACCEPTED)
    site.deliver(site.publish(2))
    site.ahead_s = PATIENCE_S + 1
    assert (await site.turn())["stolen-2.manifest.json"] == (REFUSED, "threshold")
    assert site.refusals() == ["threshold"]


async def test_a_signers_file_that_cannot_be_read_is_no_fault_of_the_release(site):
    site.deliver(site.publish(1))
    trusted = site.signers.read_text()
    site.signers.unlink()
    site.ahead_s = 10 * PATIENCE_S
    assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "signers_file")}
    site.signers.write_text(trusted)
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    assert site.refusals() == []


async def test_a_file_that_two_releases_name_stays_for_the_second(site):
    site.deliver(site.publish(1, data="shared.csv"))
    later = site.publish(1, name="other", data="shared.csv")
    site.deliver(later[:2])
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
    site.deliver([later[0], later[2]])
    assert await site.turn() == {"other-1.manifest.json": (ACCEPTED, "")}
    site.deliver(site.publish(2, data="shared.csv") + site.publish(2, name="other", data="shared.csv"))
    assert list((await site.turn()).values()) == [(ACCEPTED, "")] * 2
    assert site.lying() == []


async def test_names_of_the_folder_that_are_no_releases(site):
    (site.drop / "sub").mkdir()
    (site.drop / "sub" / "kept").write_text("x")
    (site.drop / ".hidden").write_text("x")
    os.mkfifo(site.drop / "pipe.manifest.json")
    (site.drop / "pipe.manifest.json.sig").write_text("x")
    os.mkfifo(site.drop / "data")
    (site.drop / "data.sig").write_text("x")
    site.ahead_s = PATIENCE_S + 1
    strays = dict.fromkeys(["data", "data.sig"], (REFUSED, "stray"))
    assert await site.turn() == {"pipe.manifest.json": (REFUSED, "incomplete")} | strays
    assert site.lying() == [".hidden"]
    assert (site.drop / "sub" / "kept").exists()


# ---- what a sender may try ----


@pytest.mark.parametrize("same_size", [True, False])
async def test_a_data_file_that_is_a_link(site, tmp_path, same_size):
    files = site.publish(1)
    site.deliver(files)
    secret = tmp_path / ("x" * (files[0].stat().st_size - len(str(tmp_path)) - 1) if same_size else "secret")
    secret.write_bytes(files[0].read_bytes())
    (site.drop / files[0].name).unlink()
    (site.drop / files[0].name).symlink_to(secret)
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "not_a_file" if same_size else "incomplete")}
    assert await site.serial() is None
    assert secret.read_bytes() == files[0].read_bytes()
    assert (site.drop / REFUSED / files[0].name).is_symlink()


@pytest.mark.parametrize("swap", ["link", "gone", "longer"])
async def test_a_data_file_that_is_swapped_during_the_load(site, swap):
    files = site.publish(1)
    site.deliver(files)
    target = site.drop / files[0].name

    async def swapped(release, folder):
        target.unlink()
        if swap == "link":
            target.symlink_to("/etc/hostname")
        elif swap == "longer":
            target.write_bytes(files[0].read_bytes() + b"1\n")
        return await site.load(release, folder)

    outcome = {
        "link": (REFUSED, "not_a_file"),
        "gone": (WAITING, "file_missing"),
        "longer": (WAITING, "file_size"),
    }[swap]
    assert await site.turn(load=swapped) == {"stolen-1.manifest.json": outcome}
    assert await site.serial() is None
    if swap != "link":
        target.write_bytes(files[0].read_bytes())
        assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}


async def test_each_release_is_verified_once(site, monkeypatch):
    site.deliver(site.publish(1) + site.publish(2) + site.publish(3, name="other", key=2))
    calls = site.folder / "calls"
    precede_openssh(monkeypatch, site.folder / "bin", f'echo "$2" >> {calls}')
    outcomes = [outcome for outcome, _ in (await site.turn()).values()]
    assert sorted(outcomes) == [ACCEPTED, ACCEPTED, REFUSED]
    assert Counter(calls.read_text().split()) == {"find-principals": 3, "verify": 2, "check-novalidate": 1}
    assert site.refusals() == ["untrusted_signer"]


@pytest.mark.parametrize("name", ["stolen-1.csv", "stolen-1.manifest.json", "stolen-1.manifest.json.sig"])
async def test_what_was_verified_is_what_is_loaded(site, name):
    """Another release, as whole and as well signed, is put in the place of the verified one before that is loaded."""
    site.deliver(site.publish(1, IMEIS[:3]))
    other = {file.name: file.read_bytes() for file in site.publish(1, IMEIS)}

    async def swapped(release, folder):
        (site.drop / name).write_bytes(other[name])
        return await site.load(release, folder)

    taken = await site.turn(load=swapped)
    if name.endswith(".csv"):
        assert taken == {"stolen-1.manifest.json": (WAITING, "file_size")}
        assert await site.serial() is None
    else:
        assert taken == {"stolen-1.manifest.json": (ACCEPTED, "")}
        assert (await site.head()).entries == 3


async def test_a_manifest_that_is_replaced_while_it_is_verified_waits_for_its_signature(site, monkeypatch):
    site.deliver(site.publish(1, IMEIS[:3]))
    other = site.publish(1, IMEIS)
    real = drop_folder.verify_release

    def replaced(*args, **kwargs):
        site.deliver(other[:2])
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(drop_folder, "verify_release", replaced)
        assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "incomplete")}
    site.deliver(other)
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}


@pytest.mark.parametrize("name", [ACCEPTED, REFUSED])
async def test_folders_that_are_links_are_not_followed(site, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (site.drop / name).symlink_to(tmp_path / "elsewhere")
    site.deliver(site.publish(1))
    with pytest.raises(EirError, match=f"the drop folder cannot be used: {name}"):
        await site.turn()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert await site.serial() is None


async def test_a_drop_folder_that_is_not_there(site):
    shutil.rmtree(site.drop)
    with pytest.raises(EirError, match=r"the drop folder cannot be used: .*No such file"):
        await site.turn()


async def test_refused_files_are_bounded(site):
    for serial in range(1, 5):
        site.deliver(site.publish(serial, key=2, data="same.csv"))
        await site.turn(refused_max=(6, 1 << 30))
        assert f"stolen-{serial}.manifest.json.txt" in site.lying(REFUSED)
    assert len(site.lying(REFUSED)) == 6
    room = site.drop / REFUSED
    assert [path.stat().st_mode & 0o777 for path in (room, room / "stolen-4.manifest.json.txt")] == [0o750, 0o640]
    site.deliver(site.publish(5, key=2))
    await site.turn(refused_max=(6, 1))
    assert site.lying(REFUSED) == [
        f"stolen-5.manifest.json{end}" for end in ("", ".sig", ".txt")
    ]  # the latest, whatever its size


@pytest.mark.parametrize(("room", "key"), [(REFUSED, 2), (ACCEPTED, 0)])
async def test_nothing_that_was_put_away_is_replaced(site, room, key):
    """By the same names once more; and a link or a folder of that name stays what it is."""
    (site.drop / room).mkdir()
    (site.drop / room / "stolen-1.manifest.json").symlink_to("/etc/hostname")
    (site.drop / room / "stolen-1.manifest.json.sig~2").mkdir()
    signed = set()
    for serial in range(1, 4):
        data, *files = site.publish(serial, key=key, data="same.csv")
        site.deliver([data, *(file.rename(site.outbox / file.name.replace(str(serial), "1")) for file in files)])
        signed.add((site.drop / "stolen-1.manifest.json.sig").read_bytes())
        assert await site.turn() == {"stolen-1.manifest.json": (room, "" if room == ACCEPTED else "untrusted_signer")}
    assert {file.read_bytes() for file in (site.drop / room).glob("*.sig~*") if file.is_file()} == signed
    assert (site.drop / room / "stolen-1.manifest.json").is_symlink()
    said = sorted(name for name in site.lying(room) if name.endswith((".txt~3", ".txt~4", ".txt~5")))
    assert said == [f"stolen-1.manifest.json.txt~{n}" for n in (3, 4, 5)] * (room == REFUSED)


# ---- what is nobody's fault ----


@pytest.mark.parametrize("method", ["heads", "commit"])
async def test_a_store_that_fails_leaves_releases_where_they_are(site, method):
    site.deliver(site.publish(1))
    await site.turn()
    site.deliver(site.publish(2, ["99999999999999"], base=1) if method == "commit" else site.publish(2))
    before = site.lying()

    async def full(*_args, **_kwargs):
        raise StoreError("full", "no space left")

    store, site.store = site.store, Altered(site.store, **{method: full})
    site.ahead_s = 10 * PATIENCE_S
    assert await site.turn() == {"stolen-2.manifest.json": (WAITING, "full")}
    assert site.again_s == 30
    site.store = store
    assert site.lying() == before
    assert await site.turn() == {"stolen-2.manifest.json": (ACCEPTED, "")}
    assert site.refusals() == []


async def test_a_disk_that_is_full(site, monkeypatch):
    site.deliver(site.publish(1))
    with monkeypatch.context() as patched:

        def no_space(*_args, **_kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(drop_folder, "verify_release", no_space)
        assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "disk")}
        assert len(site.lying()) == 3
    assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}


async def test_a_refused_release_goes_without_its_text_where_there_is_no_room_for_it(site, monkeypatch):
    site.deliver(site.publish(1, key=2))
    real = os.open

    def no_space(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and str(path).endswith(".txt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_space)
        assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "untrusted_signer")}
    assert site.lying(REFUSED) == ["stolen-1.manifest.json", "stolen-1.manifest.json.sig"]


async def test_a_folder_that_lets_nothing_be_moved(site, monkeypatch):
    site.deliver(site.publish(1))

    def forbidden(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", forbidden)
        assert await site.turn() == {"stolen-1.manifest.json": (ACCEPTED, "")}
        assert "could not be moved" in site.said["stolen-1.manifest.json"]
        assert site.again_s >= 60
        await site.turn()
    assert await site.loads() == [("stolen", 1)]  # it was not loaded again


async def test_a_load_that_takes_the_process_with_it_is_not_tried_for_ever(site):
    """Each time the other lists have their turn before it, also those that follow by name."""
    site.deliver(site.publish(1, name="other"))

    async def killed(release, folder):
        if release.manifest.list == "other":
            return failed("", ReleaseRefused(KILLED, "the process was killed"))
        return await site.load(release, folder)

    for serial in range(1, ATTEMPTS_MAX + 1):
        site.deliver(site.publish(serial))
        taken = await site.turn(load=killed)
        assert taken == {f"stolen-{serial}.manifest.json": (ACCEPTED, ""), "other-1.manifest.json": (WAITING, KILLED)}
        assert serial == 1 or next(iter(taken)).startswith("stolen")
    assert site.again_s == 30
    assert await site.turn(load=killed) == {"other-1.manifest.json": (REFUSED, "crash")}
    assert site.refusals() == ["crash"]
    assert not (site.state / "attempt").exists()
    site.deliver(site.publish(2, name="other"))
    assert await site.turn() == {"other-2.manifest.json": (ACCEPTED, "")}


@pytest.mark.parametrize("reason", ["memory", "expired"])
async def test_a_rejection_is_recorded_once_with_the_release(site, reason):
    async def refuse(_release, _folder):
        raise ReleaseRefused(reason, "the load ended")

    site.deliver(site.publish(1))
    assert await site.turn(load=refuse) == {"stolen-1.manifest.json": (REFUSED, reason)}
    (event,) = site.rejected
    assert (event.what, event.outcome, event.who, event.list, event.serial) == (
        "refuse",
        REFUSED,
        "inbox of tester@host",
        "stolen",
        1,
    )
    assert (event.detail, len(event.digest)) == (f"{reason}: the load ended", 64)


async def test_the_right_to_load_may_be_lost_on_the_way(site):
    for serial in (1, 2, 3):
        site.deliver(site.publish(serial))
    asked = iter([True, True, False])
    assert len(await site.turn(is_held=lambda: next(asked))) == 2
    assert await site.serial() == 2
    assert site.again_s == 30


async def test_a_folder_with_more_files_than_one_pass_reads(site):
    for serial in range(1, 5):
        site.deliver(site.publish(serial, key=2))
    site.ahead_s = PATIENCE_S + 1
    for _ in range(12):
        assert site.lying()
        await site.turn(items_max=4)
        if not site.lying():
            break
        assert site.again_s == 1
    assert site.lying() == []


async def test_many_files_of_no_release_are_moved_in_portions(site, monkeypatch):
    """The result of a turn is one line of JSON, however many files there are."""
    monkeypatch.setattr(drop_folder, "STRAYS_MAX", 3)
    for number in range(7):
        (site.drop / f"{number}.txt").write_text("x")
    assert (await site.turn(), len(site.lying())) == ({}, 7)
    site.ahead_s = PATIENCE_S + 1
    for left in (4, 1, 0):
        await site.turn()
        assert (len(site.lying()), site.again_s) == (left, 1.0 if left else None)


arrivals = st.permutations([(release, part) for release in range(3) for part in range(5)])


@pytest.mark.long
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals)
def test_pieces_in_any_order_end_as_the_last_release(tmp_path_factory, keys, order):
    """Each file comes in two pieces, or three files in whole; whatever comes when, nothing is refused or half loaded."""

    async def run():
        site = Site(tmp_path_factory.mktemp("site") / "x", keys)
        releases = [
            site.publish(1),
            site.publish(2, ["99999999999999"], base=1),
            site.publish(3, ["88888888888888"], base=2),
        ]
        halves = {}
        for release, part in order:
            data, manifest, signature = releases[release]
            file = (data, data, manifest, manifest, signature)[part]
            if part == 4:
                site.deliver([signature])
            else:
                halves[file] = halves.get(file, 0) + 1
                content = file.read_bytes()
                (site.drop / file.name).write_bytes(content if halves[file] == 2 else content[: len(content) // 2])
            assert not any(outcome == REFUSED for outcome, _ in (await site.turn()).values())
            assert (await site.serial() or 0) in range(4)
        assert await site.serial() == 3
        assert site.lying() == []
        assert (await site.head()).entries == len(IMEIS) + 2
        await site.store.close()

    asyncio.run(run())


# ---- as a process, and in a node ----


@pytest.fixture
def settled(altered, constants):
    """A faulty release is rejected at once: in the processes of a node, and in commands."""
    constants({"eir.lists.sources.drop_folder.SETTLED_S": 0.0})
    altered("from eir.lists.sources import drop_folder\ndrop_folder.SETTLED_S = 0.0\n")


@pytest.fixture
def configured(site, settled):  # noqa: ARG001
    """The site as a configuration that `eir` reads."""
    path = site.folder / "eir.yaml"
    path.write_text(
        "identity: {host: eir.epc, realm: epc}\nhttp: off\nlisten: tcp://127.0.0.1:0\nstate: state\ninbox: in\n"
        "peers: [{realm: epc}]\nlists: {stolen: {signers: signers, growth_max: 10000%}}\n"
        "policy: {rules: [{list: stolen, answer: blacklisted}]}\n"
    )
    return load_config(path)


WORDS = ["inbox", "--json", "-c"]


async def run_inbox(config):
    """Run `eir inbox` to its end."""
    folder = config.path.parent
    return await asyncio.to_thread(run_eir, *WORDS, config.path, env=dict(os.environ), cwd=folder, status=None)


async def test_the_command(site, configured):
    site.deliver(site.publish(1))
    done = await run_inbox(configured)
    assert done.returncode == 0, done.stderr
    (taken,) = json.loads(done.stdout)["results"]
    assert (taken["manifest"], taken["outcome"], taken["list"], taken["serial"]) == (
        "stolen-1.manifest.json",
        ACCEPTED,
        "stolen",
        1,
    )
    site.deliver(site.publish(2, key=2))
    done = await run_inbox(configured)
    assert (done.returncode, json.loads(done.stdout)["results"][0]["reason"]) == (1, "untrusted_signer")


async def test_of_several_nodes_one_loads_and_another_when_that_one_died(site, configured):
    site.deliver(site.publish(1))
    assert await site.store.claim(CLAIM, "a node that is at it", 60)

    async def made():
        return json.loads((await run_inbox(configured)).stdout)

    nobodys = await made()
    assert (nobodys["outcome"], nobodys["results"], nobodys["again_s"]) == (ELSEWHERE, [], CLAIM_S / 3)
    assert await site.store.claim(CLAIM, "a node that is at it", 0.05)  # and dies
    async with asyncio.timeout(patience.PATIENCE_S):
        while not (taken := (await made())["results"]):
            pass
    assert taken[0]["outcome"] == ACCEPTED
    assert await site.store.claim(CLAIM, "another", 60)  # given back


async def test_two_processes_at_once_load_once(site, configured):
    for serial in (1, 2, 3):
        site.deliver(site.publish(serial, IMEIS[:serial]))
    taken = []
    while len(taken) < 3:  # on a busy host a pass may have time for one of them
        outs = [json.loads(run.stdout) for run in await asyncio.gather(*(run_inbox(configured) for _ in range(2)))]
        taken += [taken["manifest"] for out in outs for taken in out["results"]]
    assert sorted(taken) == [f"stolen-{serial}.manifest.json" for serial in (1, 2, 3)]
    assert await site.loads() == [("stolen", 1), ("stolen", 2), ("stolen", 3)]


async def test_a_store_that_is_away_is_an_outcome_of_the_turn(configured):
    away = replace(configured, store=f"redis://127.0.0.1:{free_port()}")
    made = await process_once(away, None, "tester", emit=[].append)
    assert (made.results, made.outcome, made.reason, made.again_s) == ([], WAITING, "refused", 30)


@pytest.mark.long
async def test_a_process_killed_at_any_moment_leaves_the_old_list_or_the_new_one(site, configured):
    many = [f"{35000000 + n // 1000:08d}{n % 1000:06d}" for n in range(30_000)]
    before = None
    for serial, after_s in enumerate((0.4, 0.6, 0.8), 1):
        site.deliver(site.publish(serial, many[: 10_000 * serial]))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "eir", *WORDS, str(configured.path), stdout=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(after_s):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
        assert await site.serial() in {before, serial}
        taken = await site.turn()
        assert not taken or taken == {f"stolen-{serial}.manifest.json": (ACCEPTED, "")}
        head = await site.head()
        assert (head.serial, head.entries) == (serial, 10_000 * serial)
        assert site.lying() == []
        before = serial
        with closing(sqlite3.connect(site.state / "lists.sqlite", isolation_level=None)) as db:
            db.execute("DELETE FROM leases")  # as if the killed process's time were over


class Reports(list):
    def __call__(self, event, **fields):
        self.append((event, fields))

    async def until(self, event, **wanted):
        await until(lambda: any(name == event and wanted.items() <= fields.items() for name, fields in self))


@asynccontextmanager
async def polled(config, reports=None):
    """The drop folder of a node, with its job."""
    reports = Reports() if reports is None else reports

    def record(event):
        reports("recorded", reason=event.detail.partition(":")[0])

    jobs = Jobs(reports)
    sources = Sources(lambda: config, jobs, record, report=reports)
    jobs.start("inbox", POLL_S / 10, sources.poll_drop_folder)
    try:
        yield sources
    finally:
        await jobs.close()


@pytest.fixture
async def watching(configured):
    """A node's drop folder, polled; the events that it reports."""
    reports = Reports()
    async with polled(configured, reports):
        yield reports


async def test_a_node_takes_what_arrives(site, watching):
    for files in (site.publish(1), site.publish(3, ["99999999999999"], base=2), site.publish(9, key=2)):
        site.deliver(files)
    await watching.until("release_accepted", list="stolen", serial=1)
    await watching.until("release_waiting", reason="base", serial=3)
    await watching.until("release_refused", reason="untrusted_signer", level="warning")
    await watching.until("recorded", reason="untrusted_signer")
    site.deliver(site.publish(2, IMEIS[:8]))
    await watching.until("release_accepted", serial=3)
    assert sum(name == "release_waiting" for name, fields in watching if fields["reason"] == "base") == 1
    assert await site.serial() == 3
    content = await read_content(site.store, "stolen", await site.head())
    assert len(content.table.find(device_key("99999999999999"))) == 1


async def test_releases_that_wait_are_counted(site, configured):
    async with polled(configured) as folder:

        def waiting():
            return folder.snapshot()["eir_inbox_waiting_releases"][()]

        assert waiting() == 0
        for files in (
            site.publish(1),
            site.publish(3, ["99999999999999"], base=2),
            site.publish(4, ["99999999999998"], base=3),
        ):
            site.deliver(files)
        await until(lambda: waiting() == 2)
        site.deliver(site.publish(2, IMEIS[:8]))

        async def loaded():
            return (await site.serial(), waiting()) == (4, 0)

        await until_async(loaded)


async def test_a_folder_of_no_use_is_a_trouble_of_the_node(site, configured):
    async with polled(configured) as folder:
        shutil.rmtree(site.drop)
        await until(lambda: folder.snapshot()["eir_inbox_usable"] == {(): 0.0})
        site.drop.mkdir()
        await until(lambda: folder.snapshot()["eir_inbox_usable"] == {(): 1.0})


async def test_a_node_reports_an_unusable_folder(site, watching):
    shutil.rmtree(site.drop)
    await watching.until("inbox_unusable")
    site.drop.mkdir()
    (site.drop / ACCEPTED).symlink_to(site.state)
    site.deliver(site.publish(1))
    await watching.until("inbox_failed")
    failed = next(fields for name, fields in watching if name == "inbox_failed")
    assert "the drop folder cannot be used: accepted" in failed["detail"]


async def test_without_a_drop_folder_there_is_nothing_to_do(configured):
    none = replace(configured, inbox=None)
    sources = Sources(lambda: none, Jobs(Reports()), [].append, report=Reports())
    await sources.poll_drop_folder()
    assert [name for name in sources.snapshot() if "inbox" in name] == []
    with pytest.raises(EirError, match="sets no drop folder"):
        await process_once(none, None, "tester", emit=[].append)


async def test_a_node_that_stops_ends_the_turn_and_its_load_and_gives_the_right_to_load_back(site, configured):
    async with polled(configured):
        site.deliver(site.publish(1))
        turn = await until_async(lambda: children(os.getpid()).get("inbox"))
        load = await until_async(lambda: children(turn).get("load"))
        os.kill(load, signal.SIGSTOP)  # it is at it when the node stops
        assert (site.state / ATTEMPTS_FILE).exists()
    assert is_gone(turn)
    await until_async(lambda: is_gone(load))
    assert not (site.state / ATTEMPTS_FILE).exists()
    assert await site.store.claim(CLAIM, "another node", 1), "the right to load is given back at once"


async def test_each_release_has_its_own_count_of_loads_that_were_killed(site):
    def count():
        return sorted(json.loads(site.attempts.read_text()).values()) if site.attempts.exists() else []

    async def killed(*_):
        return failed("", ReleaseRefused(KILLED, ""))

    for name in ("stolen", "other"):
        site.deliver(site.publish(1, name=name))
        assert set((await site.turn(load=killed)).values()) == {(WAITING, KILLED)}
    assert count() == [1, 2]

    async def half(release, folder):
        return await (killed if release.manifest.list == "stolen" else site.load)(release, folder)

    assert (await site.turn(load=half))["other-1.manifest.json"] == (ACCEPTED, "")
    assert count() == [3]
    assert await site.turn(load=killed) == {"stolen-1.manifest.json": (REFUSED, "crash")}
    assert count() == []


# ---- a clock that jumped ----


async def test_by_a_clock_that_is_ahead_nothing_is_too_old(site):
    """A release in time, half of another, and a file of nobody: they wait until the clock is right again, or believed."""
    site.deliver(site.publish(1))
    site.deliver(site.publish(2, name="other")[1:])
    (site.drop / "notes.txt").write_text("x")
    lying, site.ahead_s = site.lying(), 20 * 86400.0
    for _ in range(2):
        taken = await site.turn(believed=False)
        assert taken["stolen-1.manifest.json"] == (WAITING, "expired")
        assert {outcome for outcome, _ in taken.values()} == {WAITING}
        assert "not trusted yet" in site.said["stolen-1.manifest.json"]
        assert site.lying() == lying
    site.ahead_s = 2.0
    assert (await site.turn())["stolen-1.manifest.json"] == (ACCEPTED, "")
    site.deliver(site.publish(2))
    site.ahead_s = 20 * 86400.0
    assert (await site.turn())["stolen-2.manifest.json"] == (REFUSED, "expired")


async def test_a_turn_goes_by_the_time_that_its_node_saw_last(site, configured, monkeypatch):
    monkeypatch.setattr(drop_folder, "SETTLED_S", 0.0)
    keep, seen = partial(save_clock, folder=configured.state), []
    issued = datetime.now(UTC) - timedelta(days=9)
    site.deliver(site.publish(1, issued=issued, valid=timedelta(days=8)))
    keep(TrustedClock(time.time() - 86400))
    for _ in range(2):
        made = await process_once(configured, None, "tester", emit=lambda _: None)
        seen += [(each.outcome, each.reason) for each in made.results]
        keep(TrustedClock(time.time()))
    assert seen == [(WAITING, "expired"), (REFUSED, "expired")]
