"""What one delivery cannot do to others, whoever signed it: stop them, delay them, take their files, or write over what was kept."""

import errno
import hashlib
import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from drop import PATIENCE_S
from simulated.releases import sign
from simulated.store_content import Altered

from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.log.store import StoredHeads
from eir.lists.releases.release import Manifest, VerifiedRelease
from eir.lists.sources import drop_folder
from eir.lists.sources.drop_folder import order_by_turn
from eir.lists.sources.source import WAITING, Candidate

GOOD = {"other-1.manifest.json": (ACCEPTED, "")}


@pytest.fixture
def site(drop_site):
    return drop_site


def signed_by_hand(site, name="stolen", serial=1, *, files, key=0, **members):
    """A manifest in the drop folder that names what its publisher pleases: {name: content, or None for what is there}."""
    now = datetime.now(UTC).replace(microsecond=0)
    entries = []
    for file, content in files.items():
        if content is not None:
            (site.drop / file).write_bytes(content)
        said = content or b"imei\n"
        entries.append({
            "name": file, "role": "entries", "layout": "eir", "bytes": len(said), "rows": max(said.count(b"\n") - 1, 0),
            "sha256": hashlib.sha256(said).hexdigest(),
        })  # fmt: skip
    document = {
        "format": "eir-release/1", "list": name, "kind": "full", "serial": serial, "issued": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "expires": f"{now + timedelta(days=9):%Y-%m-%dT%H:%M:%SZ}", "files": entries, **members,
    }  # fmt: skip
    manifest = site.drop / f"{name}-{serial}.manifest.json"
    manifest.write_text(json.dumps(document))
    sign(manifest, site.keys[key])
    return manifest


# ---- one delivery stops no other ----


async def test_names_that_are_not_utf_8(site):
    site.deliver(site.publish(1, name="other"))
    for name in (
        b"stolen-\xff.manifest.json",
        b"stolen-\xff.manifest.json.sig",
        b"stolen-\xff.csv",
        b"two\nlines.manifest.json",
        b"two\nlines.manifest.json.sig",
    ):
        (site.drop / os.fsdecode(name)).write_bytes(b"-----END SSH SIGNATURE-----" if name.endswith(b".sig") else b"}")
    taken = await site.turn()
    names = [r"stolen-\xff.manifest.json", r"two\nlines.manifest.json"]
    assert taken == GOOD | dict.fromkeys(names, (REFUSED, "file_name"))
    assert site.refusals() == ["file_name"] * 2
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn() == {r"stolen-\xff.csv": (REFUSED, "stray")}
    assert site.lying() == []
    said = (site.drop / REFUSED / os.fsdecode(b"stolen-\xff.manifest.json.txt")).read_text("utf-8")
    assert "Reason: file_name" in said
    assert r"Files: stolen-\xff.manifest.json, stolen-\xff.manifest.json.sig" in said


@pytest.mark.parametrize(
    ("kind", "content", "outcome"),
    [
        ("devices", b"imei,reason\n\n\n\n", (ACCEPTED, "")),
        ("devices", b"imei,reason,until\n\r\n\r\n", (ACCEPTED, "")),
        ("subscribers", b"imsi,reason\n\n", (ACCEPTED, "")),
        ("pairs", b"imei,imsi,reason\n\n\n", (ACCEPTED, "")),
        ("pairs", b"imei,imsi\nx,y\n", (ACCEPTED, "")),
        ("pairs", b"imei,imsi\n" + b"x,y\n" * 101, (REFUSED, "bad_rows")),
        ("pairs", b"imei,imsi\n", (ACCEPTED, "")),
    ],
)
async def test_rows_that_hold_nothing(site, kind, content, outcome):
    site.trust("stolen", kind=kind)
    rows = len([line for line in content.splitlines()[1:] if line])
    files = {"stolen-1.csv": content}
    manifest = signed_by_hand(site, files=files)
    document = json.loads(manifest.read_bytes())
    document["files"][0]["rows"] = rows
    manifest.write_text(json.dumps(document))
    sign(manifest, site.keys[0])
    site.deliver(site.publish(1, name="other"))
    assert await site.turn() == GOOD | {"stolen-1.manifest.json": outcome}


@pytest.mark.parametrize("where", ["load", "verify", "name"])
async def test_a_fault_of_the_program_is_a_refusal_of_that_delivery(site, monkeypatch, where):
    site.deliver(site.publish(1) + site.publish(1, name="other") + site.publish(2))
    real_verify = drop_folder.verify_release

    def fails():
        if where == "name":
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        raise KeyError("35209900176148")

    async def load(release, folder):
        if where != "verify" and (release.manifest.list, release.manifest.serial) == ("stolen", 1):
            fails()
        return await site.load(release, folder)

    def verify(manifest, *args, **kwargs):
        if where == "verify" and manifest.name == "stolen-1.manifest.json":
            fails()
        return real_verify(manifest, *args, **kwargs)

    monkeypatch.setattr(drop_folder, "verify_release", verify)
    expected = {"stolen-1.manifest.json": (REFUSED, "fault"), "stolen-2.manifest.json": (ACCEPTED, "")}
    assert await site.turn(load=load) == GOOD | expected
    assert site.again_s is None or site.again_s > 60
    said = site.said["stolen-1.manifest.json"]
    assert f"{'OSError' if where == 'name' else 'KeyError'} at eir/lists/sources/" in said
    assert "35209900176148" not in said
    assert site.refusals() == ["fault"]
    assert (await site.serial(), await site.serial("other")) == (2, 1)


async def test_a_store_that_fails_for_one_list_leaves_the_others_their_turn(site):
    site.deliver(site.publish(1) + site.publish(2) + site.publish(1, name="other") + site.publish(7, key=2))

    def damaged():
        raise StoreError("corrupt", "its head cannot be read")

    async def heads():
        found = await store.heads()
        return StoredHeads({"stolen": damaged, "other": lambda: found["other"]} if found else {"stolen": damaged}, {})

    store, site.store = site.store, Altered(site.store, heads=heads)
    site.ahead_s = 10 * PATIENCE_S
    assert await site.turn() == GOOD | {
        "stolen-1.manifest.json": (WAITING, "corrupt"), "stolen-7.manifest.json": (REFUSED, "untrusted_signer"),
        "stolen-7.csv": (REFUSED, "stray"),
    }  # fmt: skip
    assert site.again_s == 30
    site.store = store
    assert len([name for name in site.lying() if name.startswith(("stolen-1", "stolen-2"))]) == 6
    site.ahead_s = 2.0
    assert [outcome for outcome, _ in (await site.turn()).values()] == [ACCEPTED, ACCEPTED]


async def test_data_that_cannot_be_read_is_waited_for_and_not_for_ever(site):
    site.deliver(site.publish(1))

    async def denied(*_args):
        raise ReleaseRefused("file_missing", "stolen-1.csv: Permission denied")

    assert await site.turn(load=denied) == {"stolen-1.manifest.json": (WAITING, "file_missing")}
    assert site.again_s == 30
    site.ahead_s = PATIENCE_S + 1
    assert await site.turn(load=denied) == {"stolen-1.manifest.json": (REFUSED, "file_missing")}


# ---- what belongs to another delivery ----


@pytest.mark.parametrize(
    "name",
    ["other-1.manifest.json", "other-1.manifest.json.sig", "other-1.manifest.json.sig.2", "OTHER-1.MANIFEST.JSON"],
)
async def test_another_release_cannot_be_named_as_data(site, name):
    site.deliver(site.publish(1, name="other")[:2])
    (site.drop / "other-1.manifest.json.sig.2").write_text("x")
    signed_by_hand(site, files={name: None})
    assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "file_name")}
    site.deliver(site.publish(1, name="other"))
    (site.drop / "other-1.manifest.json.sig.2").unlink()
    assert await site.turn() == GOOD
    assert site.lying(REFUSED) == [f"stolen-1.manifest.json{end}" for end in ("", ".sig", ".txt")]


async def test_signatures_beside_what_is_no_manifest_take_nothing_with_them(site):
    """Anyone can put them there; they are strays."""
    site.deliver(site.publish(1, name="other"))
    strays = ["other-1.csv.sig", "other-1.manifest.json.sig.sig"]
    for name in strays:
        (site.drop / name).write_text("x")
    assert await site.turn() == GOOD
    assert site.lying() == strays
    assert site.lying(REFUSED) == []


@pytest.mark.parametrize("bad", ["serial", "digest"])
async def test_a_refused_release_does_not_take_data_that_another_may_be_about_to_name(site, bad):
    site.deliver(site.publish(5))
    await site.turn()
    data, manifest, signature = site.publish(1, name="other")
    site.deliver([data])
    if bad == "serial":
        signed_by_hand(site, serial=4, files={"other-1.csv": None})  # its size is not the one promised
        assert await site.turn() == {"stolen-4.manifest.json": (REFUSED, "serial")}
        signed_by_hand(
            site,
            serial=4,
            files={"other-1.csv": None, "more.csv": b"imei\n"},
            expires="2020-01-01T00:00:00Z",
            issued="2019-01-01T00:00:00Z",
        )
        expected = {"stolen-4.manifest.json": (REFUSED, "expired")}
    else:
        files = {"other-1.csv": data.read_bytes()}
        lying = signed_by_hand(site, serial=6, files=files)
        document = json.loads(lying.read_bytes())
        document["files"][0]["sha256"] = "0" * 64
        lying.write_text(json.dumps(document))
        sign(lying, site.keys[0])
        expected = {"stolen-6.manifest.json": (REFUSED, "digest")}
    assert await site.turn() == expected
    assert "other-1.csv" in site.lying()
    site.deliver([manifest, signature])
    assert await site.turn() == GOOD


async def test_a_refused_release_takes_its_own_data_along(site):
    site.deliver(site.publish(5))
    await site.turn()
    site.deliver(site.publish(4))
    assert await site.turn() == {"stolen-4.manifest.json": (REFUSED, "serial")}
    assert site.lying() == []
    assert "stolen-4.csv" in site.lying(REFUSED)


@pytest.mark.parametrize("room", [ACCEPTED, REFUSED])
async def test_a_link_in_place_of_a_room_is_refused_by_name(site, tmp_path, room):
    (tmp_path / "elsewhere").mkdir()
    (site.drop / room).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EirError, match=f"{room} in it is a link; remove it"):
        await site.turn()


async def test_names_as_long_as_a_file_system_takes(site):
    for name in ("a" * 255, "b" * 251 + ".txt", "c" * 237 + ".manifest.json", "c" * 237 + ".manifest.json.sig"):
        (site.drop / name).write_text("}")
    site.ahead_s = PATIENCE_S + 1
    for _ in range(3):
        for name in ("a" * 255, "c" * 237 + ".manifest.json", "c" * 237 + ".manifest.json.sig"):
            (site.drop / name).write_text("}")
        await site.turn()
        await site.turn()
        assert site.lying() == []
    assert len([name for name in site.lying(REFUSED) if name.startswith("a" * 200)]) == 6


# ---- whose turn it is ----


async def test_what_nobody_trusted_has_signed_comes_last(site):
    """And a turn ends when its right to load is over: then the next one continues."""
    for serial in range(101, 106):
        site.deliver(site.publish(serial, name="other", key=2))
    for serial in (1, 2, 3):
        site.deliver(site.publish(serial))
    site.deliver(site.publish(9, name="other"))
    rights = iter([True, True, False, True, False])
    assert list(await site.turn(is_held=rights.__next__)) == ["other-9.manifest.json", "stolen-1.manifest.json"]
    assert site.again_s == 30
    assert list(await site.turn(is_held=rights.__next__)) == ["stolen-2.manifest.json"]
    taken = await site.turn()
    assert next(iter(taken)) == "stolen-3.manifest.json"
    assert set(list(taken.values())[1:]) == {(REFUSED, "untrusted_signer")}
    assert len(site.lying()) == 5  # their data


async def test_a_flood_that_is_refused_or_waits_holds_nobody_up(site):
    """Signatures of a trusted key over other bytes, and such as end in the middle: these wait for an hour and are verified each time."""
    old = site.publish(1, name="other")
    site.deliver(old)
    signature = old[2].read_bytes()
    flood = [f"stolen-{n}.manifest.json" for n in range(30)]
    for n, name in enumerate(flood):
        (site.drop / name).write_text("{}")
        (site.drop / f"{name}.sig").write_bytes(signature if n % 2 else signature[:-40])
    site.deliver(site.publish(40))
    wanted, taken = {"other-1.manifest.json", "stolen-40.manifest.json"}, {}
    for _ in range(200):  # by chance 3 of them at a time
        made = await site.turn(verified_max=3)
        assert site.again_s <= 1
        taken |= made
        if all(taken.get(name) == (ACCEPTED, "") for name in wanted):
            break
    assert {name: taken[name] for name in wanted} == dict.fromkeys(wanted, (ACCEPTED, ""))
    await site.turn()
    assert sorted(name for name in site.lying() if name.endswith(".json")) == sorted(flood[::2])


def test_lists_take_turns():
    def of(name, serial, *, verified=True):
        manifest = Manifest(list=name, kind="full", serial=serial, base=None, issued=None, expires=None, files=())
        release = VerifiedRelease(manifest=manifest, digest=f"{name}{serial}", signers=()) if verified else None
        return Candidate(f"{name}-{serial}", (), release, None)

    found = [of("a", 3), of("a", 1), of("c", 9), of("a", 2), of("b", 5), of("b", 4), of("x", 1, verified=False)]
    turns = order_by_turn(found, {"b4"})
    assert [each.name for each in turns] == ["a-1", "b-5", "c-9", "a-2", "a-3", "b-4", "x-1"]


async def test_a_signers_file_that_cannot_be_read_makes_nobody_less_likely(site):
    site.deliver(site.publish(1, key=2))
    trusted = site.signers.read_text()
    site.signers.unlink()
    assert await site.turn() == {"stolen-1.manifest.json": (WAITING, "signers_file")}
    site.signers.write_text(trusted)
    shutil.rmtree(site.outbox)
    assert await site.turn() == {"stolen-1.manifest.json": (REFUSED, "untrusted_signer")}
