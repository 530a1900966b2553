"""Lists that are pulled: what becomes of a folder that is as it should be, and of every other one; with real servers and real TLS."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from full_disk import no_file_above
from simulated.certificates import Authority
from simulated.node import Site, children, is_gone, until
from simulated.publisher_folder import NAME, ROWS, Register
from simulated.releases import make_key, public
from simulated.servers import Server
from simulated.web_folder import tls

from eir import curl
from eir.config import load_config
from eir.errors import ConfigError
from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.journal import REFUSED
from eir.lists.log.writer import ListWriter
from eir.lists.record.settings import ListSettings, SourceSettings
from eir.lists.releases.openssh import sign_document
from eir.lists.sources.folder_index import INDEX, encode_index, parse_index
from eir.lists.sources.publisher_folder import load_published
from eir.lists.sources.release_result import accepted
from eir.lists.sources.source import TurnSettings
from eir.lists.stores.sqlite import SqliteStore


@pytest.fixture
def register(tmp_path, keys):
    made = Register(tmp_path / "register", keys[0])
    with made.web:
        yield made


class Node:
    """Who pulls, without a node."""

    def __init__(self, folder, register, store=None, **source):
        self.room, self.register = folder / "room", register
        folder.mkdir(exist_ok=True)
        self.store = store or SqliteStore(folder / "lists.sqlite")
        self.source = SourceSettings(**{"url": register.web.url} | source)
        self.settings = ListSettings(name=NAME, signers=register.signers)
        self.loads, self.is_alone, self.rejected = [], True, []

    async def pull(self, *, force=False, until=None, **changes):
        async def load(release, place):
            self.loads.append(release.manifest.serial)
            loader = ReleaseLoader({NAME: self.settings}, self.store, "x", datetime.now(UTC), {}, force)
            return accepted("", await loader.load(release, place))

        async def alone():
            return self.is_alone

        def emit(result):
            if result.outcome == REFUSED:
                self.rejected.append(result)

        given = {
            "lists": {NAME: replace(self.settings, source=self.source)}, "store": self.store, "load": load, "claim": alone, "emit": emit,
            "clock": lambda: datetime.now(UTC) + timedelta(seconds=1), "attempts": self.room / "attempts.json", "marks": {},
        }  # fmt: skip
        made = await load_published(TurnSettings(**given | changes), NAME, self.room, force=force, until=until)
        json.dumps(made.as_json())
        self.said = made
        return made.outcome, made.reason

    async def serial(self):
        head = await self.head()
        return head and head.serial

    async def head(self):
        return (await self.store.heads()).get(NAME)

    async def roll_back(self):
        writer = ListWriter(self.store, NAME, "devices", "tester@host")
        await writer.write((await plan_rollback(self.store, NAME)).make)


@pytest.fixture
async def node(tmp_path, register):
    made = Node(tmp_path / "node", register)
    yield made
    await made.store.close()


async def test_a_list_follows_its_folder(register, node):
    register.publish(ROWS[:20])
    assert await node.pull() == ("loaded", "")
    assert node.said.loaded == (1,)
    for row in ROWS[20:23]:
        register.publish(added=[row])
    assert await node.pull() == ("loaded", "")
    assert (node.said.loaded, node.said.serial, node.loads) == ((2, 3, 4), 4, [1, 2, 3, 4])
    asked = len(register.web.asked)
    assert await node.pull() == ("unchanged", "")
    assert register.web.asked[asked:] == [(f"/{INDEX}", 304)]
    assert (await node.head()).content == parse_index(_document(register)).content_of(4)
    assert [path.name for path in node.room.iterdir() if path.is_dir()] == []


async def test_what_a_failing_disk_left_of_an_earlier_pull_is_fetched_again(register, node):
    """The index that is kept, and a data file: neither is a reason to refuse the publisher's own."""
    register.publish(ROWS[:20])
    await node.pull()
    (node.room / INDEX).write_bytes(b"")
    assert await node.pull() == ("unchanged", "")
    register.publish(added=[ROWS[20]])
    register.web.fault = lambda path: "error" if path.endswith(".zst") else None
    assert await node.pull() == ("unreached", "status_503")
    (node.room / "2" / "stolen-2-added.csv.zst").write_bytes(b"")
    register.web.fault = lambda _: None
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 2


async def test_a_disk_without_room_is_not_left_with_parts_of_files(register, node):
    register.publish(ROWS[:20])
    await node.pull()
    register.publish(added=ROWS[20:23])
    with no_file_above((register.folder / INDEX).stat().st_size - 1):
        assert await node.pull() == ("waiting", "disk")
    assert [path.name for path in node.room.iterdir() if path.name.startswith(".")] == []
    assert await node.pull() == ("loaded", "")


def _document(register):
    content = (register.folder / INDEX).read_bytes()
    return content[: content.rfind(b"-----BEGIN")]


async def test_whoever_is_far_behind_gets_the_full_release(register, node):
    register.publish(ROWS[:20])
    for n in range(6):
        register.publish(added=[ROWS[20 + n]], ahead_s=n - 30, keep=timedelta(seconds=1))
    assert await node.pull() == ("loaded", "")
    assert node.loads[0] == parse_index(_document(register)).full.serial > 1
    assert await node.serial() == 7


FAULTS = {
    "drop": {"answer", "connection"}, "cut": {"cut_off"}, "stall": {"timeout"}, "corrupt": {"bad_signature", "signature_missing", "changed"},
    "redirect": {"redirect"}, "error": {"status_503"}, "endless": {"too_large"}, "garbage": {"answer"},
}  # fmt: skip


@pytest.mark.long(
    short=[
        "index.signed-cut",
        ".sig-corrupt",
        ".zst-drop",
        ".zst-cut",
        ".zst-stall",
        ".zst-corrupt",
        ".zst-redirect",
        ".zst-error",
        ".zst-endless",
        ".zst-garbage",
    ]
)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", [INDEX, ".manifest.json", ".sig", ".zst"])
async def test_what_a_network_does_keeps_nothing_out_once_it_is_over(register, node, fault, where, monkeypatch):
    """And nothing unproven comes in: whatever befalls one of the files of a delta."""
    register.publish(ROWS[:20])
    await node.pull()
    register.publish(added=ROWS[20:23])
    register.web.fault = lambda path: fault if path.endswith(where) else None
    with monkeypatch.context() as hurried:
        if fault == "stall":
            hurried.setattr(curl, "STALL_S", 2.0)
        outcome = await node.pull()
    assert outcome in {
        ("unreached" if reason not in {"bad_signature", "signature_missing"} else "refused", reason)
        for reason in FAULTS[fault]
    }, node.said
    assert node.said.reached == (where != INDEX)
    assert (await node.serial(), node.loads) == (1, [1])
    register.web.fault = None
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 2
    assert node.rejected == []


async def test_a_redirect_to_nowhere_is_no_answer(register, node):
    register.web.fault = "nowhere"
    assert await node.pull() == ("unreached", "answer")


@pytest.mark.parametrize(
    "tag", ['"' + 60_000 * "x" + '"', '"a\r\n b"', '"a b"', "a", '"a', '"\x80"', '"' + 199 * "x" + '"']
)
async def test_a_tag_that_is_none_is_not_sent_back(register, node, tag):
    register.publish(ROWS[:20])
    register.web.tag = tag
    assert await node.pull() == ("loaded", "")
    register.publish(added=ROWS[20:22])
    assert await node.pull() == ("loaded", "")
    assert register.web.conditions == []


@pytest.mark.parametrize("tag", ['""', '"!#~"', 'W/"a"', '"' + 198 * "x" + '"'])
async def test_a_tag_is_sent_back(register, node, tag):
    register.publish(ROWS[:20])
    register.web.tag = tag
    assert await node.pull() == ("loaded", "")
    assert await node.pull() == ("unchanged", "")
    assert register.web.conditions == [tag]
    assert register.web.asked[-1] == (f"/{INDEX}", 304)


async def test_the_tag_of_an_index_without_news_is_sent_back_too(register, node):
    register.publish(ROWS[:20])
    register.web.tag = '"a"'
    assert await node.pull() == ("loaded", "")
    register.web.tag = '"b"'
    for _ in range(2):
        assert await node.pull() == ("unchanged", "")
    assert register.web.conditions == ['"a"', '"b"']


@pytest.mark.parametrize("fault", ["status_400", "drop"])
async def test_a_tag_that_a_server_fails_over_is_forgotten(register, node, fault):
    """The next request has no condition, so that no tag stops a pull for good; a tag of an earlier version neither."""
    register.publish(ROWS[:20])
    assert await node.pull() == ("loaded", "")
    register.publish(added=ROWS[20:22])
    register.web.takes_conditions = False
    register.web.fault = "drop" if fault == "drop" else None
    assert await node.pull() in {("unreached", "status_400"), ("unreached", "answer")}
    register.web.fault = None
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 2


@pytest.mark.long(short=["index.signed-drip", ".zst-drip"])
@pytest.mark.parametrize("fault", ["continue", "drip"])
@pytest.mark.parametrize("where", [INDEX, ".manifest.json", ".zst"])
async def test_an_answer_that_never_begins_does_not_hold_a_pull(register, node, fault, where, monkeypatch):
    """A recent curl breaks the connection earlier, when the interim responses have more than 300 KiB."""
    register.publish(ROWS[:20])
    register.web.fault = lambda path: fault if path.endswith(where) else None
    reasons = {"timeout", "connection"} if fault == "continue" else {"timeout"}
    with monkeypatch.context() as hurried:
        hurried.setattr(curl, "ANSWER_S", 1.0)
        outcome, reason = await node.pull()
        assert (outcome, reason in reasons) == ("unreached", True), reason
    outcome, reason = await node.pull(until=time.monotonic() + 1.0)
    assert (outcome, reason in reasons) == ("unreached", True), reason
    register.web.fault = None
    assert await node.pull() == ("loaded", "")


async def test_a_body_that_trickles_has_the_time_of_a_pull_and_goes_on_where_it_ended(register, node):
    register.publish([f"{100_000_000_000_00 + n}" for n in range(1000)])
    register.web.fault = lambda path: "trickle" if path.endswith(".zst") else None
    (file,) = (register.folder / "1").glob("*.zst")
    part = node.room / "1" / f"{file.name}.part"
    for within_s in (1.0, 3.0, 9.0):
        assert await node.pull(until=time.monotonic() + within_s) == ("unreached", "timeout")
        if part.exists():
            break
    received = part.stat().st_size
    register.web.fault = None
    assert await node.pull() == ("loaded", "")
    size = file.stat().st_size
    assert 0 < received < size
    assert node.said.bytes < size - received + (register.folder / INDEX).stat().st_size + 5000


@pytest.mark.parametrize(
    "to", ["file:///etc/hostname?", "http://127.0.0.1:9/", "https://localhost:9/", "ftp://localhost/", "//elsewhere.example/", "gopher://127.0.0.1:9/_"]
)  # fmt: skip
@pytest.mark.parametrize("where", [INDEX, ".zst"])
async def test_no_redirect_leads_to_another_place(register, node, to, where):
    register.publish(ROWS[:20])
    register.web.fault, register.web.elsewhere = (lambda path: "redirect" if path.endswith(where) else None), to
    assert await node.pull() == ("unreached", "redirect")
    register.web.fault = None
    assert await node.pull() == ("loaded", "")


async def test_an_index_of_a_million_names_is_not_read(register, node):
    register.publish(ROWS[:20])
    good = (register.folder / INDEX).read_bytes()
    document = json.loads(_document(register))
    document["releases"] *= 5_000
    (register.folder / INDEX).write_bytes(sign_document(json.dumps(document).encode() + b"\n", register.key))
    assert await node.pull() == ("unreached", "too_large")
    document["releases"] = document["releases"][:2500]
    for each in document["releases"]:
        each["signatures"] = each["signatures"][:1]
    (register.folder / INDEX).write_bytes(sign_document(json.dumps(document).encode() + b"\n", register.key))
    assert await node.pull() in {("refused", "index"), ("unreached", "too_large")}
    (register.folder / INDEX).write_bytes(good)
    assert await node.pull() == ("loaded", "")


async def test_a_serial_far_above_is_refused_and_the_next_good_one_is_loaded(register, node):
    register.publish(ROWS[:20])
    assert await node.pull() == ("loaded", "")
    register.serial = 10**15 - 1
    register.publish(ROWS[:22])
    assert await node.pull() == ("refused", "serial_step")
    assert [path for path in register.web.paths() if path.endswith(".zst") and f"/{10**15}/" in path] == []
    index = parse_index(_document(register))
    shutil.rmtree(register.folder)
    register.folder.mkdir()
    register.serial = 1
    register.publish(ROWS[:21], ahead_s=1)
    assert parse_index(_document(register)).issued >= index.issued
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 2


async def test_the_body_of_a_redirect_is_not_read(register, node):
    register.publish(ROWS[:20])
    first = iter(["flood"])
    register.web.fault = lambda _: next(first, None)
    assert await node.pull(until=time.monotonic() + 10) == ("loaded", "")


@pytest.mark.parametrize("fault", ["other part", "status_400"])
async def test_a_download_that_a_server_cannot_go_on_with_is_started_again(register, node, fault):
    register.publish([f"{100_000_000_000_00 + n}" for n in range(30_000)])
    register.web.fault = lambda path: "cut" if path.endswith(".zst") else None
    assert await node.pull() == ("unreached", "cut_off")
    register.web.fault, register.web.ranges = None, fault
    assert await node.pull() == ("unreached", "answer" if fault == "other part" else fault)
    assert await node.pull() == ("loaded", "")


async def test_a_download_that_broke_goes_on_where_it_ended(register, node):
    register.publish([f"{100_000_000_000_00 + n}" for n in range(30_000)])
    register.web.fault = lambda path: "cut" if path.endswith(".zst") else None
    for _ in range(3):
        assert await node.pull() == ("unreached", "cut_off")
    register.web.fault = None
    assert await node.pull() == ("loaded", "")
    size = (register.folder / "1" / "stolen-1.csv.zst").stat().st_size
    assert node.said.bytes < size / 4
    assert [code for path, code in register.web.asked if path.endswith(".zst")] == [200, 206, 206, 206]
    register.publish([ROWS[0]])
    (node.room / "2").mkdir()
    (node.room / "2" / "stolen-2.csv.zst.part").write_bytes(b"x" * 10_000)  # longer than what is there now
    assert await node.pull(force=True) == ("unreached", "status_416")
    assert await node.pull(force=True) == ("loaded", "")


async def test_an_index_of_before_and_one_of_another_list_are_refused(register, node, tmp_path):
    register.publish(ROWS[:20], ahead_s=-5)
    register.web.remember()
    register.publish(added=ROWS[20:22])
    assert await node.pull() == ("loaded", "")
    register.web.fault = "repeat"
    assert await node.pull() == ("refused", "replayed")
    assert not node.said.reached
    register.web.fault = None
    assert await node.pull() == ("unchanged", "")
    index = parse_index(_document(register))
    for change, reason in (
        ({"list": "other"}, "mixed"), ({"holds": "pairs"}, "mixed"), ({"issued": index.issued + timedelta(hours=1)}, "issued_in_future"),
    ):  # fmt: skip
        (register.folder / INDEX).write_bytes(sign_document(encode_index(replace(index, **change)), register.key))
        assert await node.pull() == ("refused", reason)
    (register.folder / INDEX).write_bytes(sign_document(encode_index(index), make_key(tmp_path, "stranger")))
    assert await node.pull() == ("refused", "untrusted_signer")
    (register.folder / INDEX).write_bytes(sign_document(b'{"format": "eir-index/2"}\n', register.key))
    assert await node.pull() == ("refused", "index")
    (register.folder / INDEX).write_bytes(b"{}\n")
    assert await node.pull() == ("refused", "signature_missing")
    assert await node.serial() == 2


async def test_a_release_that_differs_from_the_index_is_refused(register, node):
    register.publish(ROWS[:20])
    index = parse_index(_document(register))
    (first,) = index.releases
    (register.folder / INDEX).write_bytes(
        sign_document(encode_index(replace(index, releases=(replace(first, serial=7),))), register.key)
    )
    assert await node.pull() == ("refused", "mixed")
    assert await node.serial() is None
    assert [each.reason for each in node.rejected] == ["mixed"]


async def test_what_passes_a_limit_is_fetched_once_and_by_force(register, node):
    node.settings = replace(node.settings, change_min=0)
    register.publish(ROWS[:20])
    await node.pull()
    register.publish(added=ROWS[20:40])
    for _ in range(3):
        assert await node.pull() == ("refused", "growth")
    assert node.loads == [1, 2]
    assert sum(path.endswith(".zst") for path in register.web.paths()) == 2
    assert len(node.rejected) == 1
    assert await node.pull(force=True) == ("loaded", "")
    assert await node.serial() == 2


@pytest.mark.long
async def test_only_the_newest_rejections_are_remembered(register, node):
    node.settings = replace(node.settings, change_min=0)
    register.publish(ROWS[:1])
    await node.pull()
    for number in range(21):
        register.publish(ROWS[: 20 + number])
        assert await node.pull() == ("refused", "growth")
    assert len(json.loads((node.room / "note.json").read_text())["refused"]) == 20


async def test_what_was_refused_is_tried_again_by_other_settings(register, node, tmp_path):
    """A limit that was raised, and a key that was added: no force is needed, which would lift all limits."""
    register.publish(ROWS[:20])
    node.settings = replace(node.settings, change_min=0)
    await node.pull()
    register.publish(added=ROWS[20:40])
    assert await node.pull() == ("refused", "growth")
    node.settings = replace(node.settings, growth_max=1.0)
    assert await node.pull() == ("loaded", "")
    other = make_key(tmp_path, "other")
    register.publish(added=ROWS[:1], key=other, new_key=True)
    (register.folder / INDEX).write_bytes(sign_document(_document(register), register.key))
    assert await node.pull() == ("refused", "untrusted_signer")
    assert await node.pull() == ("refused", "untrusted_signer")
    rejection = node.rejected[-1]
    assert (rejection.list, rejection.serial, rejection.reason) == ("stolen", 3, "untrusted_signer")
    register.signers.write_text(f"{register.signers.read_text()}\nother {public(other)}")
    assert await node.pull() == ("loaded", "")
    assert node.loads == [1, 2, 2, 3]


async def test_where_a_delta_is_refused_a_full_release_may_lead_on(register, node):
    node.settings = replace(node.settings, change_min=0)
    register.publish(ROWS[:20])
    await node.pull()
    register.publish(added=ROWS[20:40])
    assert await node.pull() == ("refused", "growth")
    register.publish(ROWS[:21])
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 3


async def test_deltas_are_not_put_on_another_publishers_list(register, node, tmp_path):
    register.publish(ROWS[30:50])
    register.publish(added=[ROWS[50]])
    assert await node.pull() == ("loaded", "")
    other, soon = Register(tmp_path / "other", register.key), datetime.now(UTC) + timedelta(days=1)
    with other.web:
        other.publish(ROWS[:20], expires=soon)
        other.publish(added=[ROWS[20]], expires=soon)
        other.publish(added=[ROWS[21]])  # and a full release, since the one before ends soon
        node.source = replace(node.source, url=other.web.url)
        assert await node.pull() == ("loaded", "")
        assert (await node.head()).content == parse_index(_document(other)).content_of(3)


async def test_a_delta_waits_where_another_content_is_in_force_and_no_full_release_leads_on(register, node, tmp_path):
    other = Register(tmp_path / "other", register.key)
    with other.web:
        other.publish(ROWS[30:50])
        node.source = replace(node.source, url=other.web.url)
        assert await node.pull() == ("loaded", "")
    node.source = replace(node.source, url=register.web.url)
    register.publish(ROWS[:20])
    register.publish(added=[ROWS[20]])
    held = (await node.head()).content
    assert await node.pull() == ("waiting", "base")
    assert "differs from serial 1 of index.signed" in node.said.detail
    assert (await node.head()).content == held
    register.publish(ROWS[:22])
    node.settings = replace(node.settings, shrink_max=1, growth_max=10)
    assert await node.pull() == ("loaded", "")
    assert (await node.head()).content == parse_index(_document(register)).content_of(3)


async def test_after_a_rollback_nothing_is_loaded_that_was_undone(register, node):
    register.publish(ROWS[:20])
    register.publish(added=ROWS[20:22])
    await node.pull()
    await node.roll_back()
    assert await node.pull() == ("unchanged", "")
    register.publish(added=ROWS[22:24])
    assert await node.pull() == ("waiting", "base")
    register.publish(ROWS[:25])
    assert await node.pull() == ("loaded", "")
    assert await node.serial() == 4


def at(minute):
    return datetime(2100, 1, 1, 0, minute, tzinfo=UTC)


class Late:
    """A node, and the times at which it pulls."""

    def __init__(self, node):
        self.node = node

    async def behind(self, minute, **how):
        """Pull; return the minute since when the node has been behind the source."""
        self.outcome = await self.node.pull(clock=lambda: at(minute), **how)
        since = self.node.said.behind_since
        return since and datetime.fromisoformat(since).minute


@pytest.fixture
def late(register, node):
    """Releases do not expire before the minutes that a test counts."""
    publish = register.publish
    register.publish = lambda *rows, **how: publish(*rows, expires=at(59), **how)
    return Late(node)


async def test_a_withheld_release_counts_from_its_first_offer(register, node, late, tmp_path, monkeypatch):
    """Neither newer offers nor a restart begin it again, and a source that is away meanwhile does not end it.

    Of more offers than OFFERS_MAX, the newest one has the time of the one that it replaces.
    """
    monkeypatch.setattr("eir.lists.sources.publisher_folder.OFFERS_MAX", 2)
    register.publish(ROWS[:20])
    assert await late.behind(0) is None
    assert (late.outcome, node.said.in_force) == (("loaded", ""), 1)
    register.web.fault = lambda path: None if path == INDEX else "error"
    for minute in (10, 20, 30):
        register.publish(added=[ROWS[20 + minute // 10]])
        assert await late.behind(minute) == 10
        assert late.outcome == ("unreached", "status_503")
        assert (node.said.reached, node.said.in_force) == (True, 1)
    late.node = again = Node(tmp_path / "node", register)
    register.web.fault = "error"
    assert await late.behind(40) == 10
    register.web.fault = lambda path: "error" if path.startswith("4/") else None
    assert await late.behind(45) == 20
    register.web.fault = None
    assert await late.behind(50) is None
    assert (late.outcome, again.said.in_force) == (("loaded", ""), 4)
    await again.store.close()


async def test_a_server_that_lets_through_one_release_at_a_time_is_behind(register, node, late):
    """The time is that of the first offer above the serial in force, and no later one."""
    register.publish(ROWS[:20])
    assert await late.behind(0) is None
    for minute, withheld, since in ((1, 2, 1), (2, 3, 2), (3, 3, 2), (4, 4, 3)):
        register.publish(added=[ROWS[20 + minute]])
        register.web.fault = lambda path, withheld=withheld: "error" if path.startswith(f"{withheld}/") else None
        assert await late.behind(minute) == since
    assert await node.serial() == 3
    assert await late.behind(9) == 3
    register.web.fault = None
    assert await late.behind(10) is None


async def test_what_waits_is_behind(register, node, late, tmp_path):
    """A delta without its base after a rollback, one beside a fork, a lease that another node holds."""
    register.publish(ROWS[:20])
    register.publish(added=ROWS[20:22])
    assert await late.behind(0) is None
    await node.roll_back()
    assert await late.behind(1) == 1
    assert late.outcome == ("unchanged", "")
    register.publish(added=ROWS[22:24])
    assert await late.behind(2) == 1
    assert late.outcome == ("waiting", "base")
    register.publish(ROWS[:25])
    node.is_alone = False
    assert await late.behind(3) == 1
    assert late.outcome == ("elsewhere", "")
    node.is_alone = True
    assert await late.behind(4) is None
    fork = Register(tmp_path / "fork", register.key)
    with fork.web:
        fork.serial = 3
        fork.publish(ROWS[30:50], expires=at(59))
        node.source = replace(node.source, url=fork.web.url)
        assert await late.behind(5) is None
        fork.publish(added=[ROWS[51]], expires=at(59))
        assert await late.behind(6) == 6
        assert late.outcome == ("waiting", "base")
    node.source = replace(node.source, url=register.web.url)
    assert await late.behind(7) is None


async def test_a_refused_release_is_behind_and_a_serial_that_is_offered_no_more_is_not(register, node, late):
    node.settings = replace(node.settings, change_min=0)
    register.publish(ROWS[:20])
    assert await late.behind(0) is None
    register.serial = 41
    register.publish(ROWS[:40])
    for minute in (1, 2):
        assert await late.behind(minute) == 1
        assert late.outcome == ("refused", "growth")
    index = parse_index(_document(register))
    index = replace(index, issued=index.issued + timedelta(seconds=1), releases=(replace(index.full, serial=1),))
    (register.folder / INDEX).write_bytes(sign_document(encode_index(index), register.key))
    assert await late.behind(3) is None


async def test_a_clock_that_was_ahead_is_no_time_to_wait_for(register, late):
    register.publish(ROWS[:20])
    register.web.fault = lambda path: None if path == INDEX else "error"
    assert await late.behind(30) == 30
    assert await late.behind(20) == 20
    assert await late.behind(25) == 20


async def test_of_two_nodes_on_one_store_one_fetches(register, node, tmp_path):
    other = Node(tmp_path / "other", register, node.store)
    register.publish(ROWS[:20])
    other.is_alone = False
    assert await other.pull() == ("elsewhere", "")
    assert await node.pull() == ("loaded", "")
    other.is_alone = True
    assert await other.pull() == ("unchanged", "")
    assert (node.loads, other.loads) == ([1], [])
    assert sum(path.endswith(".zst") for path in register.web.paths()) == 1


async def test_a_pull_has_its_time(register, node):
    register.publish(ROWS[:20])
    assert await node.pull(until=0.0) == ("unreached", "timeout")


async def test_who_is_there_is_proved_both_ways(tmp_path, keys):
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    ours = authority.write("node.example", folder=tmp_path / "ours")
    context = tls(authority, "localhost")
    context.verify_mode = 2  # CERT_REQUIRED
    authority.ca.configure_trust(context)
    register = Register(tmp_path / "register", keys[0], context=context)
    elsewhere = Register(tmp_path / "elsewhere", keys[0], context=tls(authority, "elsewhere.example"))
    with register.web, elsewhere.web:
        for each in (register, elsewhere):
            each.publish(ROWS[:20])
        ca, certificate, key = (Path(ours[name]) for name in ("ca", "certificate", "key"))
        for at, source, expected in (
            (register, {"ca": other.pem}, {("unreached", "certificate")}),
            (register, {}, {("unreached", "certificate")}),
            (register, {"ca": ca}, {("unreached", "tls"), ("unreached", "connection"), ("unreached", "answer")}),
            (elsewhere, {"ca": ca}, {("unreached", "certificate")}),
            (register, {"ca": tmp_path / "nothing"}, {("unreached", "setup")}),
            (register, {"ca": ca, "certificate": certificate, "key": key}, {("loaded", "")}),
        ):
            node = Node(tmp_path / "node", at, **source)
            assert await node.pull() in expected, node.said
            await node.store.close()


async def test_a_token_and_a_redirect_on_the_same_server(tmp_path, keys):
    register = Register(tmp_path / "register", keys[0], needs="Bearer secret-1")
    with register.web:
        register.publish(ROWS[:20])
        (tmp_path / "token").write_text("secret-1\n")
        node = Node(tmp_path / "node", register)
        assert await node.pull() == ("unreached", "status_401")
        node.source = replace(node.source, token=tmp_path / "token", url=f"{register.web.url}moved/moved/moved/")
        assert await node.pull() == ("loaded", "")
        node.source = replace(node.source, url=f"{node.source.url}moved/")
        assert await node.pull() == ("unreached", "redirect")
        assert "at most 3 times" in node.said.detail
        register.web.fault, register.web.elsewhere = "redirect", "https://elsewhere.example/x?signature=secret-2&y="
        assert await node.pull() == ("unreached", "redirect")
        assert "to https://elsewhere.example/x;" in node.said.detail
        await node.store.close()


async def test_proxies_are_not_asked_for_this_hosts_own_addresses(register, node, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    register.publish(ROWS[:20])
    assert await node.pull() == ("loaded", "")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("http://register.example/x/", "expected https://; http:// is allowed only for this host's own addresses"),
        ("ftp://register.example/", "expected a folder such as https://"), ("https://a:b@register.example/", "expected a folder such as"),
        ({"ca": "ca.pem"}, "the key 'url' is missing"), ({"url": "https://x.example/", "ca": "ca.pem"}, "the ca of the source of stolen does not exist"),
        ({"url": "https://x.example/", "certificate": "signers"}, "certificate and key of the source of stolen need each other"),
        ({"url": "https://x.example/", "every": "0s"}, "expected seconds from 1"), ({"url": "https://x.example/", "often": 1}, "unknown key 'often'"),
        (["https://x.example/"], "expected keys"),
    ],
)  # fmt: skip
def test_what_a_source_may_not_be(site, source, says):
    site.configure(lists={"stolen": {"signers": "signers", "source": source}, "tracked": {"signers": "signers"}})
    with pytest.raises(ConfigError, match=says):
        load_config(site.path)


@pytest.mark.parametrize(
    ("written_as", "url"),
    [
        ("https://register.example/eir/stolen", "https://register.example/eir/stolen/"), ("https://register.example:8443", "https://register.example:8443/"),
        ("http://127.0.0.1:8080/a/", "http://127.0.0.1:8080/a/"), ("http://[::1]:8080/a/", "http://[::1]:8080/a/"), ("http://localhost/", "http://localhost/"),
    ],
)  # fmt: skip
def test_a_source_may_be_a_url_alone(site, written_as, url):
    site.configure(lists={"stolen": {"signers": "signers", "source": written_as}, "tracked": {"signers": "signers"}})
    assert load_config(site.path).lists["stolen"].source == SourceSettings(url=url)
    shown = site.eir("config").stdout
    (site.folder / "again.yaml").write_text(shown)
    assert load_config(site.folder / "again.yaml").lists["stolen"].source == SourceSettings(url=url)
    site.configure(lists={"stolen": {"local": True, "source": written_as}, "tracked": {"signers": "signers"}})
    with pytest.raises(ConfigError, match="stolen is local"):
        load_config(site.path)


def test_the_command_and_a_node(site, tmp_path, publisher, constants):
    """A node follows the folder, says when it is not reached, goes on when it is; a process that was killed costs one look."""
    constants({"eir.node.processes.acknowledging.AGAIN_S": 0.1})
    authority = Authority(tmp_path / "ca")
    register = Register(tmp_path / "register", publisher.key, context=tls(authority, "localhost"))
    with register.web:
        source = {"url": register.web.url, "ca": str(authority.pem), "every": "1s", "patience": "1s"}
        site.configure(lists={"stolen": {"signers": "signers", "source": source}, "tracked": {"signers": "signers"}})
        assert "stolen: unreached: status_404" in site.eir("pull", status=1).stderr
        register.publish(ROWS[:20])
        assert "stolen: loaded: serial 1 loaded" in site.eir("pull", "stolen").stderr
        node = site.start()
        register.publish(added=ROWS[20:22])
        until(lambda: node.status()["lists"]["stolen"]["serial"] == 2)
        assert site.json("check", ROWS[20])["status"] == "blacklisted"
        until(lambda: node.metrics().get("eir_source_serial{list=stolen}") == 2)
        until(lambda: node.lines("source_loaded", list="stolen"))
        assert {line["serial"] for line in node.lines("source_loaded", list="stolen")} == {"2"}
        assert [event["who"].partition("@")[0] for event in site.json("history", "stolen") if event["what"] == "load"][
            -1
        ].startswith("pull of ")
        register.web.fault = "error"
        until(lambda: node.lines("source_unreached", list="stolen", reason="status_503"))
        register.web.fault = lambda path: "stall" if path.endswith(".zst") else None
        register.publish(added=ROWS[22:24])
        pid = until(
            lambda: (
                children(node.pid).get("pull")
                if register.web.paths()[-1:] == ["/3/stolen-3.manifest.json.sig"]
                else None
            )
        )
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid))
        register.web.fault = None
        until(lambda: node.status()["lists"]["stolen"]["serial"] == 3)
        until(lambda: node.lines("source_reached", list="stolen"))
        until(lambda: node.metrics()["eir_source_pulls_total{list=stolen,outcome=loaded}"] >= 2)
        metrics = node.metrics()
        assert metrics["eir_source_faults_total{list=stolen,reason=status_503}"] >= 1
        assert metrics["eir_source_patience_seconds{list=stolen}"] == 1
        register.web.fault = "redirect"
        until(lambda: "lists whose source is not reached: stolen (eir pull)" in node.status()["summary"])
        site.configure(lists={"stolen": {"signers": "signers"}, "tracked": {"signers": "signers"}})
        site.eir("reload")
        assert not any(name.startswith("eir_source_patience") for name in node.metrics())


@pytest.mark.long
def test_a_node_that_is_behind_its_source_warns(site, tmp_path, publisher):
    """The server gives the newest index and withholds the release: the source counts as reached."""
    register = Register(tmp_path / "register", publisher.key)
    with register.web:
        source = {"url": register.web.url, "every": "1s", "patience": "2s"}
        site.configure(
            http="127.0.0.1:0",
            lists={"stolen": {"signers": "signers", "source": source}, "tracked": {"signers": "signers"}},
        )
        site.load(ROWS[:1], list_name="tracked")
        register.publish(ROWS[:20])
        site.eir("pull", "stolen")
        node = site.start()
        until(lambda: node.metrics().get("eir_source_serial{list=stolen}") == 1)
        metric = "eir_source_ahead_timestamp_seconds{list=stolen}"
        assert metric not in node.metrics()
        register.web.fault = lambda path: None if path == INDEX else "error"
        register.publish(added=ROWS[20:22])
        until(lambda: "behind their source" in node.status()["summary"])
        (trouble,) = [each for each in node.status()["troubles"] if "behind their source" in each]
        assert trouble == "lists behind their source for longer than `source.patience`: stolen (eir pull)"
        assert site.eir("status", status=1).stdout.startswith("EIR WARNING")
        assert re.search(
            rf'{re.escape(trouble)} .*<a href="/runbook#eirlistbehind">EirListBehind</a>', node.get("/")[1]
        )
        assert "<a id=eirlistbehind>" in node.get("/runbook")[1]
        since = node.metrics()[metric]
        register.publish(added=ROWS[22:24])
        until(lambda: node.metrics().get("eir_source_serial{list=stolen}") == 3)
        assert node.metrics()[metric] == since
        register.web.fault = None
        until(lambda: node.status()["lists"]["stolen"]["serial"] == 3)
        until(lambda: metric not in node.metrics())
        assert "behind their source" not in node.status()["summary"]


@pytest.mark.long
def test_two_nodes_on_one_redis_fetch_once(tmp_path, publisher):
    """Both look at the index; what is new is fetched and loaded by one of them, and in force on both."""
    register = Register(tmp_path / "register", publisher.key)
    with (
        register.web,
        Server("redis-server") as redis,
        Site(tmp_path / "a", publisher) as one,
        Site(tmp_path / "b", publisher) as other,
    ):
        register.publish(ROWS[:20])
        source = {"url": register.web.url, "every": "1s"}
        for site in (one, other):
            site.configure(
                store=f"{redis.url}/0",
                lists={"stolen": {"signers": "signers", "source": source}, "tracked": {"signers": "signers"}},
            )
        nodes = [site.start(ready=False) for site in (one, other)]

        def in_force():
            return [node.status()["lists"].get("stolen", {"serial": 0})["serial"] for node in nodes]

        until(lambda: in_force() == [1, 1])
        for row in ROWS[20:23]:
            register.publish(added=[row])
            until(lambda: in_force() == [register.serial] * 2)
        fetched = [path for path in register.web.paths(200) if path.endswith(".zst")]
        assert sorted(fetched) == sorted(set(fetched))
        assert len(fetched) == 4
        assert len([event for event in one.json("history", "stolen") if event["what"] == "load"]) == 4
        assert [
            line
            for node in nodes
            for line in node.lines()
            if line["event"] in {"source_refused", "source_unreached", "fault"}
        ] == []
