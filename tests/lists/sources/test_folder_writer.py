"""A publisher's folder: what its index offers, how its deltas are folded, and which releases lead a reader to the newest one."""

import asyncio
import json
import re
import shlex
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import blocks
from simulated.node import COMMAND, until
from simulated.patience import PROGRAM_S
from simulated.releases import load_release, make_key, precede_openssh, public, publish_files

from eir.errors import EirError, ReleaseRefused
from eir.lists.record.settings import ListSettings
from eir.lists.releases.openssh import verify_document
from eir.lists.releases.publish import ReleaseSpec
from eir.lists.sources import folder_index, folder_writer
from eir.lists.sources.folder_index import (
    INDEX,
    FolderIndex,
    Offer,
    encode_index,
    parse_index,
    releases_to_load,
    sort_offers,
    trim_index,
)
from eir.lists.sources.folder_writer import offer_release, publish_into
from eir.lists.stores.sqlite import SqliteStore

PAGE = Path(__file__).parents[3] / "deploy" / "REGULATOR.md"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "stolen"
ROWS = [f"001010060000{n:02}" for n in range(40)]

ENDS = ("", "20301231", "2026-11-25T12:08:00Z")
"""None, one that is far, and one between the times of the releases."""


class Publisher:
    """Who keeps a folder."""

    def __init__(self, folder):
        self.folder, self.data, self.now, self.serial = folder / "www", folder / "data", NOW, 0
        self.data.mkdir()
        self.key = make_key(folder, "agency")
        self.signers = folder / "signers"
        self.signers.write_text(f"agency {public(self.key)}")

    def publish(self, *, added=None, removed=None, header="imei", minutes=1, full=None, **how):
        """A delta of these rows, or a full release; returns what became of it."""
        self.now += timedelta(minutes=minutes)
        files = []
        for name, rows in (("added", added), ("removed", removed), ("all", full)):
            if rows is not None:
                files.append(self.data / f"x-{name}.csv")
                files[-1].write_text("".join(f"{row}\n" for row in (header, *rows)))
        base = None if full is not None else self.serial
        self.serial += 1
        options = {name: how.pop(name) for name in ("keep", "new_key", "warn") if name in how}
        given = {
            "list": NAME,
            "serial": self.serial,
            "base": base,
            "issued": self.now,
            "expires": self.now + timedelta(days=14),
        }
        keys = (how.pop("key", self.key), *how.pop("more_keys", ()))
        return publish_into(self.folder, ReleaseSpec(**{**given, "keys": keys, "files": files, **how}), **options)

    def index(self):
        return parse_index(verify_document((self.folder / INDEX).read_bytes(), INDEX, self.signers, self.now)[0])

    def index_of(self, key):
        """The index, which another key has signed."""
        self.signers.write_text(f"agency {public(key)}")
        return self.index()


@pytest.fixture
def keeper(tmp_path):
    return Publisher(tmp_path)


def content(keeper, offers, room, kind="devices", **terms):
    """The digest of what a reader has who loads these releases."""
    return asyncio.run(_content(keeper, offers, room, kind, terms))


async def _content(keeper, offers, room, kind, terms):
    store = SqliteStore(room / f"{len(list(room.iterdir()))}.sqlite")
    settings = {NAME: ListSettings(name=NAME, kind=kind, signers=keeper.signers, growth_max=1e9, shrink_max=1, **terms)}
    for offer in offers:
        await load_release(keeper.folder / offer.name, settings, store, now=keeper.now)
    heads = await store.heads()
    await store.close()
    return heads[NAME].content


def test_a_reader_that_begins_finds_a_full_release_that_has_not_expired(keeper, tmp_path):
    """Though the publisher sends deltas alone, and each release lasts for a shorter time than deltas are kept."""
    lasts, pause = timedelta(days=1), timedelta(hours=8)
    keeper.publish(full=ROWS[:10], expires=keeper.now + lasts)
    for row in ROWS[10:18]:
        keeper.publish(added=[row], minutes=pause.total_seconds() / 60, expires=keeper.now + pause + lasts)
        (room := tmp_path / row).mkdir()
        assert content(keeper, releases_to_load(keeper.index(), None, 0), room) == keeper.index().releases[-1].content


def test_what_a_run_leaves_that_was_killed_is_gone_after_the_next_one(keeper, tmp_path):
    """Killed before its index was in place: its releases are there, but nobody is told of them, and the serial is free."""
    keeper.publish(full=ROWS[:10])
    before = {path.name for path in keeper.folder.iterdir()}
    for left in (".eir-publish-abc/2", "2", "2-full", "7"):
        (keeper.folder / left).mkdir(parents=True)
        (keeper.folder / left / f"{NAME}-2.manifest.json").write_text("half a man")
    (keeper.folder / f".{INDEX}.4711").write_text("half an index")
    assert [offer.serial for offer in keeper.index().releases] == [1]
    keeper.publish(added=ROWS[10:11])
    assert {path.name for path in keeper.folder.iterdir()} == {*before, "2"}
    (tmp_path / "room").mkdir()
    assert content(keeper, keeper.index().releases, tmp_path / "room") == keeper.index().content_of(2)


def test_an_index_is_no_older_than_the_one_before_though_the_clock_went_back(keeper):
    said = []
    keeper.publish(full=ROWS[:10], warn=said.append)
    seen = keeper.index().issued
    keeper.publish(added=ROWS[10:11], minutes=-2, warn=said.append)
    assert (keeper.index().issued, keeper.index().serial, said) == (seen, 2, [])
    keeper.publish(added=ROWS[11:12], minutes=-10, warn=said.append)
    assert keeper.index().issued < seen
    assert "is the clock of this host right" in said[0]


def test_a_folder_of_releases(keeper):
    keeper.publish(full=ROWS[:10])
    for row in ROWS[10:13]:
        placed = keeper.publish(added=[row])
    index = keeper.index()
    assert index == placed.index
    assert [(offer.serial, offer.kind, offer.base, offer.folder) for offer in index.releases] == [
        (1, "full", None, "1"), (2, "delta", 1, "2"), (3, "delta", 2, "3"), (4, "delta", 3, "4"),
    ]  # fmt: skip
    assert (index.list, index.holds, index.serial, index.full.serial, placed.folded) == (NAME, "devices", 4, 1, False)
    assert {path.stat().st_mode & 0o777 for path in keeper.folder.rglob("*") if not path.name.startswith(".")} == {
        0o755,
        0o644,
    }
    assert not list(keeper.folder.glob(".eir-publish-*"))


@pytest.mark.long(short=["subscribers-imsi-rows2"])
@pytest.mark.parametrize(
    ("kind", "header", "rows"),
    [
        ("devices", "imei,reason,begin,until", [f"{row},r{n % 5},{'2026-11-20' * (n % 4 == 0)},{ENDS[n % 3]}" for n, row in enumerate(ROWS)]),
        ("pairs", "imei,imsi,reason", [f"{row},00101000000{n:04},r{n % 3}" for n, row in enumerate(ROWS)]),
        ("subscribers", "imsi", [f"00101000000{n:04}" for n in range(40)]),
    ],
)  # fmt: skip
def test_deltas_are_folded_and_every_way_leads_to_the_same_list(keeper, tmp_path, kind, header, rows):
    """Whoever begins with the full release, and whoever has followed since the first one, and all between."""
    how = {"header": header, "kind": kind, "keep": timedelta(minutes=5)}
    keeper.publish(full=rows[:10], **how)
    folded = [keeper.publish(added=rows[n + 10 : n + 11], removed=rows[n : n + 1], **how).folded for n in range(16)]
    assert 2 <= folded.count(True) <= 4
    index = keeper.index()
    oldest = min(offer.base for offer in index.releases if offer.kind == "delta")
    assert len(index.releases) < 12
    assert keeper.serial - oldest >= 5
    named = {offer.folder for offer in index.releases}
    assert {path.name for path in keeper.folder.iterdir() if path.is_dir()} >= named
    assert not (keeper.folder / "1").exists()
    wanted = index.content_of(index.serial)
    assert content(keeper, releases_to_load(index, None, 0), tmp_path / "data", kind) == wanted
    full = index.full
    behind = [offer for offer in index.releases if offer.kind == "delta" and offer.serial > full.serial]
    assert releases_to_load(index, None, 0) == (full, *behind)
    assert [offer.base for offer in releases_to_load(index, oldest, oldest)][:1] == [oldest]
    assert releases_to_load(index, oldest, oldest)[-1].serial == index.serial


def test_deltas_are_folded_at_their_maximum_number_and_not_at_the_end_of_a_time(keeper, monkeypatch):
    """At the second delta the first is as old as deltas are kept, and the full release ends in the middle of the delta's time."""
    monkeypatch.setattr(folder_writer, "DELTAS_MAX", 3)
    keeper.publish(full=ROWS[:10], expires=keeper.now + timedelta(days=7, minutes=3))
    how = {"keep": timedelta(minutes=1)}
    folded = [
        keeper.publish(added=[row], minutes=minutes, **how).folded
        for row, minutes in zip(ROWS[10:], (1, 1, 0), strict=False)
    ]
    assert folded == [False, False, True]


def test_a_list_with_tacs_and_devices_is_folded_too(keeper, tmp_path):
    how = {"keep": timedelta(minutes=1)}
    keeper.publish(full=["00101006", "00101007"], header="tac", **how)
    placed = keeper.publish(added=ROWS[:3], minutes=2, **how)
    placed = keeper.publish(added=["A0000012345678"], minutes=2, **how)
    assert placed.folded
    assert content(keeper, [placed.index.full], tmp_path / "data") == placed.index.content_of(3)


def test_a_list_that_two_must_sign_is_folded_too(keeper, tmp_path):
    second = make_key(tmp_path, "ministry")
    with keeper.signers.open("a") as signers:
        signers.write(f"ministry {public(second)}")
    how = {"keep": timedelta(minutes=1), "more_keys": [second]}
    keeper.publish(full=ROWS[:3], **how)
    keeper.publish(added=ROWS[3:5], minutes=2, **how)
    index = keeper.publish(added=ROWS[5:6], minutes=2, **how).index
    assert {len(offer.signatures) for offer in index.releases} == {2}
    for offers in (releases_to_load(index, None, 0), [index.full]):
        assert content(keeper, offers, tmp_path / "data", threshold=2) == index.content_of(3)
    alone = keeper.publish(full=ROWS[:3]).index.full
    with pytest.raises(ReleaseRefused) as caught:
        content(keeper, [alone], tmp_path / "data", threshold=2)
    assert caught.value.reason == "threshold"


def test_a_release_that_two_signed_on_their_own_hosts_is_offered(keeper, tmp_path):
    second, out = make_key(tmp_path, "ministry"), tmp_path / "out"
    with keeper.signers.open("a") as signers:
        signers.write(f"ministry {public(second)}")

    def made(serial, base, name, rows):
        (tmp_path / name).write_text("".join(f"{row}\n" for row in ("imei", *rows)))
        times = {"issued": NOW, "expires": NOW + timedelta(days=14)}
        return publish_files(
            [tmp_path / name],
            list_name=NAME,
            serial=serial,
            base=base,
            key=keeper.key,
            more_keys=[second],
            out=out,
            **times,
        ).manifest

    how = {"key": keeper.key, "now": NOW}
    full, delta = made(1, None, "all.csv", ROWS[:3]), made(2, 1, "x-added.csv", ROWS[3:5])
    with pytest.raises(ReleaseRefused, match="a full one is needed first"):
        offer_release(keeper.folder, delta, **how)
    for manifest in (full, delta):
        index = offer_release(keeper.folder, manifest, **how)
    assert index == keeper.index()
    assert content(keeper, releases_to_load(index, None, 0), tmp_path / "data", threshold=2) == index.content_of(2)
    before = keeper.index()
    unsigned, lacking = made(3, 2, "y-added.csv", ROWS[5:6]), made(4, 2, "z-added.csv", ROWS[5:6])
    for signature in out.glob(f"{unsigned.name}.sig*"):
        signature.unlink()
    (out / f"{NAME}-4-added.csv.zst").unlink()
    for manifest, reason in (
        (delta, "serial"),
        (unsigned, "signature_missing"),
        (lacking, "file_missing"),
        (out / "none", "file_missing"),
    ):
        with pytest.raises(ReleaseRefused) as caught:
            offer_release(keeper.folder, manifest, **how)
        assert caught.value.reason == reason
    assert keeper.index() == before


def test_only_so_many_deltas_are_offered_that_nobody_folds(keeper, tmp_path):
    out = tmp_path / "out"
    for serial, rows in enumerate((ROWS[:3], ROWS[3:4], ROWS[4:5]), 1):
        file = tmp_path / f"x{serial}-added.csv"
        file.write_text("".join(f"{row}\n" for row in ("imei", *rows)))
        base = serial - 1 or None
        manifest = publish_files(
            [file],
            list_name=NAME,
            serial=serial,
            base=base,
            key=keeper.key,
            out=out,
            issued=NOW,
            expires=NOW + timedelta(days=14),
        ).manifest
        if serial < 3:
            offer_release(keeper.folder, manifest, key=keeper.key, now=NOW, deltas_max=1)
    with pytest.raises(ReleaseRefused, match="a full release is needed now"):
        offer_release(keeper.folder, manifest, key=keeper.key, now=NOW, deltas_max=1)
    assert keeper.index().serial > 1
    assert not (keeper.folder / "3").exists()


def test_what_is_refused_leaves_the_folder_as_it_was(keeper, tmp_path):
    keeper.publish(full=ROWS[:3])
    before = keeper.index()
    for reason, how in (
        ("serial", {"full": ROWS, "serial": 1}), ("base", {"added": ROWS[3:4], "base": 7, "serial": 9}), ("mixed", {"full": ROWS, "list": "other"}),
        ("mixed", {"full": ["001010000000001"], "header": "imsi", "kind": "subscribers"}), ("bad_rows", {"full": ["x"]}),
    ):  # fmt: skip
        with pytest.raises(ReleaseRefused) as caught:
            keeper.publish(**how)
        assert caught.value.reason == reason
    assert keeper.index() == before
    keeper.folder, keeper.serial = tmp_path / "other", 1
    with pytest.raises(ReleaseRefused, match="a full one is needed first"):
        keeper.publish(added=ROWS)
    assert not (keeper.folder / INDEX).exists()


def refusal(publish, *rows, **how):
    with pytest.raises(ReleaseRefused) as caught:
        publish(*rows, **how)
    return caught.value.reason, caught.value.detail


def test_a_key_that_has_signed_nothing_in_the_folder_is_refused(keeper, tmp_path):
    """Each key of a release counts, and each of an index; nodes that do not trust one of them would freeze."""
    other, third = make_key(tmp_path, "other"), make_key(tmp_path, "third")
    keeper.publish(full=ROWS[:3])
    before = keeper.index()
    for how in ({"key": other}, {"more_keys": [other]}, {"key": other, "added": ROWS[3:4]}):
        rows = {} if "added" in how else {"full": ROWS}
        reason, detail = refusal(keeper.publish, **rows, **how)
        assert reason == "untrusted_signer"
        assert re.search(
            rf"SHA256:\S+ has signed no release in {keeper.folder} and is not in {keeper.folder}/signers", detail
        )
        assert "--new-key" in detail
        keeper.serial -= 1
    assert keeper.index() == before
    assert sorted(path.name for path in keeper.folder.iterdir()) == [".lock", "1", INDEX]
    keeper.publish(full=ROWS[:4], key=other, new_key=True)
    keeper.publish(added=ROWS[4:5], key=other)  # which has signed a release now
    signers = keeper.folder / "signers"
    signers.write_text(f'# of 2026\nthird namespaces="eir-release" {public(third)}\n')
    keeper.publish(added=ROWS[5:6], key=third)
    assert [offer.serial for offer in keeper.index_of(third).releases] == [2, 3, 4]


def test_a_folder_without_a_release_takes_any_key_unless_it_has_signers(keeper, tmp_path):
    other = make_key(tmp_path, "other")
    keeper.folder.mkdir()
    (keeper.folder / "signers").write_text(f"other {public(other)}\n")
    assert refusal(keeper.publish, full=ROWS[:3])[0] == "untrusted_signer"
    keeper.serial = 0
    keeper.publish(full=ROWS[:3], key=other)


def test_a_certificate_of_an_authority_in_the_signers_is_known(keeper, tmp_path):
    authority = make_key(tmp_path, "authority")
    keeper.publish(full=ROWS[:3])
    (keeper.folder / "signers").write_text(f"*@agency cert-authority {public(authority)}\n")
    staff = make_key(tmp_path, "staff")
    assert refusal(keeper.publish, full=ROWS, key=staff)[0] == "untrusted_signer"
    keeper.serial -= 1
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "x", "-n", "a@agency", f"{staff}.pub"], check=True)
    keeper.publish(full=ROWS, key=tmp_path / "staff-cert.pub")


def test_a_release_or_an_index_of_an_unknown_key_is_not_offered(keeper, tmp_path):
    other = make_key(tmp_path, "other")
    keeper.publish(full=ROWS[:3])

    def made(key, more_keys=()):
        (tmp_path / "all.csv").write_text("".join(f"{row}\n" for row in ("imei", *ROWS)))
        times = {"issued": NOW, "expires": NOW + timedelta(days=14)}
        how = {"list_name": NAME, "serial": 2, "key": key, "more_keys": more_keys, "out": tmp_path / "out"}
        return publish_files([tmp_path / "all.csv"], **how, **times).manifest

    def offered(manifest, key, **how):
        return offer_release(keeper.folder, manifest, key=key, now=NOW + timedelta(hours=1), **how)

    before = keeper.index()
    for keys, key in (([other], keeper.key), ([keeper.key, other], keeper.key), ([keeper.key], other)):
        assert refusal(offered, made(keys[0], keys[1:]), key)[0] == "untrusted_signer"
    assert keeper.index() == before
    assert not (keeper.folder / "2").exists()
    assert offered(made(other), keeper.key, new_key=True).serial == 2


def test_one_publishes_at_a_time(keeper, monkeypatch, tmp_path):
    """The first one waits for OpenSSH until the second one was refused."""
    keeper.publish(full=ROWS[:3])
    begun, end = tmp_path / "begun", tmp_path / "end"
    with monkeypatch.context() as waiting:
        precede_openssh(waiting, tmp_path / "bin", f"touch {begun}; until [ -e {end} ]; do sleep 0.01; done")
        first = threading.Thread(target=keeper.publish, kwargs={"added": ROWS[3:4]})
        first.start()
        until(begun.exists)
        with pytest.raises(EirError, match="somebody else publishes"):
            keeper.publish(added=ROWS[4:5])
        end.touch()
        first.join()
    assert keeper.index().serial > 1


def offer(serial, base=None, minutes=0):
    kind = "full" if base is None else "delta"
    return Offer(
        serial=serial, kind=kind, base=base, name=f"{serial}{'-full' * (base is None)}/x-{serial}.manifest.json", size=100, signatures=("0" * 64,),
        sha256=f"{serial:064}", issued=(NOW + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ"), content=f"{serial:064}",
    )  # fmt: skip


def index_of(*offers):
    return FolderIndex(list=NAME, holds="devices", issued=NOW, releases=sort_offers(offers))


CHAIN = index_of(offer(10), *(offer(n, n - 1) for n in (8, 9, 11, 12)), offer(15, 12))


@pytest.mark.parametrize(
    ("current", "highest", "wanted"),
    [
        (None, 0, [10, 11, 12, 15]), (15, 15, []), (12, 12, [15]), (10, 10, [11, 12, 15]), (7, 7, [8, 9]), (9, 9, [10, 11, 12, 15]), (3, 3, [10, 11, 12, 15]),
        (16, 16, []), (12, 15, []), (10, 12, []), (None, 12, []), (14, 14, []),
    ],
)  # fmt: skip
def test_the_way_to_the_newest_release(current, highest, wanted):
    """Behind 9 nothing leads on but the full one; where a rollback was made nothing is loaded again."""
    found = [each.serial for each in releases_to_load(CHAIN, current, highest)]
    assert found == ([10, 11, 12, 15] if wanted == [8, 9] else wanted)


@given(st.sets(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 31), st.integers(0, 31), st.integers(0, 40))
def test_any_way_ends_at_the_newest_and_rises(serials, full, current, above):
    offers = [offer(serial, serial - 1, serial) for serial in serials if serial > 1] + [offer(full, minutes=full)]
    index = trim_index(index_of(*offers), NOW + timedelta(minutes=above))
    assert parse_index(encode_index(index)) == index
    chain = releases_to_load(index, current or None, current)
    at, highest = current, current
    for each in chain:
        assert each.serial > highest
        assert each.base in {None, at}
        at = highest = each.serial
    if chain and all(each.kind == "delta" for each in chain):
        assert at == index.serial


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "eir-index/1"}, "publisher and node need versions"), ({"serial": 2}, '"serial"'), ({"list": "../x"}, '"list"'), ({"holds": "x"}, '"holds"'), ({"issued": "2026"}, '"issued"'), ({"releases": []}, '"releases"'),
        ({"releases": [1]}, "not an object"), ({"serial": 0}, '"serial"'), ({"serial": True}, '"serial"'), ({"kind": "x"}, '"kind"'), ({"name": "../x"}, '"name"'),
        ({"name": "1/2/x"}, '"name"'), ({"name": "x"}, '"name"'), ({"name": "1/.x"}, '"name"'), ({"size": 1 << 30}, '"size"'), ({"size": 0}, '"size"'), ({"signatures": ["x"]}, '"signatures"'), ({"signatures": []}, '"signatures"'),
        ({"sha256": "x"}, '"sha256"'), ({"issued": "x"}, '"issued"'), ({"content": 1}, '"content"'), ({"kind": "delta", "base": 1}, '"base"'),
        ({"kind": "delta", "base": 0}, "none of them is a full one"),
    ],
)  # fmt: skip
def test_an_index_that_is_not_one(change, says):
    said = json.loads(encode_index(index_of(offer(1))))
    if change.keys() <= said.keys() - {"serial"} or change == {"serial": 2}:
        said |= change
    else:
        said["releases"][0] |= change
    with pytest.raises(ReleaseRefused, match=says) as caught:
        parse_index(json.dumps(said).encode())
    assert caught.value.reason == "index"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"format": folder_index.FORMAT, "releases": [{}] * 3000}).encode(),
    ],
)
def test_what_is_no_index_at_all(document):
    with pytest.raises(ReleaseRefused):
        parse_index(document)


def test_an_index_has_at_most_a_limited_number_of_releases():
    offers = [offer(1), *(offer(serial, serial - 1) for serial in range(2, folder_index.RELEASES_MAX + 2))]
    most = index_of(*offers[:-1])
    assert len(parse_index(encode_index(most)).releases) == folder_index.RELEASES_MAX
    with pytest.raises(ReleaseRefused, match="an array of 1 to 2000 objects"):
        parse_index(encode_index(index_of(*offers)))


def test_releases_that_do_not_rise_are_no_index():
    index = index_of(offer(1), offer(2, 1))
    for releases in (index.releases[::-1], (*index.releases, index.releases[-1])):
        with pytest.raises(ReleaseRefused, match="do not rise"):
            parse_index(encode_index(FolderIndex(list=NAME, holds="devices", issued=NOW, releases=releases)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "other"}, "mixed"), ({"holds": "pairs"}, "mixed"), ({"now": NOW - timedelta(minutes=6)}, "issued_in_future"),
        ({"before": NOW + timedelta(seconds=1)}, "replayed"), ({}, None), ({"before": NOW}, None), ({"now": NOW - timedelta(minutes=4)}, None),
    ],
)  # fmt: skip
def test_an_index_that_is_not_the_next_one_of_its_list(arguments, reason):
    given = {"name": NAME, "holds": "devices", "now": NOW, "before": None} | arguments
    if reason is None:
        folder_index.check_index(CHAIN, **given)
        return
    with pytest.raises(ReleaseRefused) as caught:
        folder_index.check_index(CHAIN, **given)
    assert caught.value.reason == reason


def test_the_command(site, tmp_path):
    data = tmp_path / "x.csv"
    data.write_text("imei\n00101006000001\n")
    publish = ("publish", "--list", "stolen", "--expires", "14d", "--key", site.publisher.key, "--to", tmp_path / "www")
    said = site.eir(*publish, "--serial", 1, data)
    assert f"{tmp_path}/www offers stolen 1 (1 releases, the newest full one 1)" in said.stdout
    added = tmp_path / "x-added.csv"
    added.write_text("imei\n00101006000002\n")
    document = json.loads(site.eir(*publish, "--serial", 2, "--base", 1, "--json", added).stdout)
    assert (document["releases"], document["full"], document["folded"], document["added"]) == (2, 1, False, 1)
    assert document["manifest"] == f"{tmp_path}/www/2/stolen-2.manifest.json"
    assert "2 is the newest" in site.eir(*publish, "--serial", 9, "--base", 1, added, status=1).stderr
    second = make_key(tmp_path, "second")
    refused = site.eir(*publish, "--key", second, "--serial", 3, data, status=1).stderr
    assert "has signed no release in" in refused
    assert refused.count("--new-key") == 1
    full = site.eir(*publish, "--key", second, "--new-key", "--serial", 3, data).stdout
    assert "offers stolen 3" in full
    assert len(list((tmp_path / "www" / "3").glob("*.sig*"))) == 2
    out = (
        "publish",
        "--list",
        "stolen",
        "--expires",
        "14d",
        "--key",
        site.publisher.key,
        "--serial",
        4,
        "--out",
        tmp_path / "out",
    )
    site.eir(*out, data)
    manifest, third = tmp_path / "out" / "stolen-4.manifest.json", make_key(tmp_path, "third")
    site.eir("offer", manifest, "--to", tmp_path / "www", "--key", third, status=1)
    offered = site.eir("offer", manifest, "--to", tmp_path / "www", "--key", second)
    assert "offers stolen 4 (2 releases, the newest full one 4)" in offered.stdout
    for wrong in (["--force"], ["--keep", "soon"]):
        site.eir(*publish, "--serial", 5, *wrong, data, status=2)


def test_two_signers_on_their_own_hosts_make_a_release_that_is_offered(site):
    (block,) = (block for block in blocks(PAGE.read_text()) if "eir offer" in block)
    folder, other = site.folder / "agency", make_key(site.folder, "other")
    folder.mkdir()
    (folder / "stolen.csv").write_text("imei\n35209900176148\n")
    with (site.folder / "signers").open("a") as signers:
        signers.write(f"other {public(other)}\n")
    site.configure(lists={"stolen-national": {"signers": "signers", "threshold": 2}}, policy={"rules": []})
    block = block.replace("--key KEY", f"--key {site.publisher.key}").replace("-f OTHER", f"-f {other}")
    block = f'eir() {{ {shlex.join(COMMAND)} "$@"; }}\n{block}'
    done = subprocess.run(
        ["sh", "-euc", block],
        cwd=folder,
        env=site.environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
    )
    assert "offers stolen-national 44" in done.stdout
    (report,) = site.json("load", folder / "www/stolen-national/44/stolen-national-44.manifest.json")
    assert (report["serial"], report["entries"]) == (44, 1)
