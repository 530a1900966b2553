"""The feed's chain of the history: a flood of rows displaces no load, both chains stay verifiable, a node's copy, a year of it."""

import asyncio
import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from simulated.history import (
    HistoryNode,
    assert_complete,
    events_of,
    faults_of,
    feed_for_days,
    one,
    records_of,
)
from simulated.node import LISTED, TRACKED, UNLISTED, Publisher, Site
from simulated.store_content import Altered, event, pages_of, state
from test_history import change_newest, damage_ledger, make_form_2

from eir.device import device_key
from eir.errors import StoreError
from eir.lists.changes.local import ADD, REMOVE, Edit, added_by, edit_differences
from eir.lists.changes.local_entries import Entry
from eir.lists.follow.history import ANCHOR_S, FEED_TRIM_S, HistoryKeeper, adopt
from eir.lists.log.change import utc_text
from eir.lists.record.history import (
    append_events,
    is_event_of,
    readable_events,
    record_digest,
)
from eir.lists.record.settings import HistorySettings, ListSettings
from eir.lists.record.store import ANCHOR, FEED, MAIN, Ledger
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

OWN = ListSettings(name="own", local=True, change_min=10**7)


@pytest.fixture
def node(store, opener):
    return HistoryNode(store, opener("copy"))


async def assert_level(node):
    """Both chains hold, in the store and in the copy, and are the same but for the oldest rows, which each forgets by itself."""
    assert await records_of(node.copy) == await records_of(node.store)
    ours, theirs = await records_of(node.copy, FEED), await records_of(node.store, FEED)
    first = max(each[0].number if each else 0 for each in (ours, theirs))
    assert [each for each in ours if each.number >= first] == [each for each in theirs if each.number >= first]
    assert (await node.copy.ledger(FEED)).digest == (await node.store.ledger(FEED)).digest
    assert await faults_of(node.store) == await faults_of(node.copy) == []


async def test_a_feed_displaces_no_load(store):
    """One user that adds and removes 16 rows in a loop."""
    now = datetime.now(UTC)
    entries = [Entry(f"00101001{number:06d}", 101001 * 10**6 + number) for number in range(16)]
    keeper = HistoryKeeper(None, writes=True, who="node", report=lambda *_, **__: None)
    settings = HistorySettings(max_bytes=20_000)
    await store.replace("stolen", state(pages_of([1])), pages_of([1]), seen=0, event=event(detail="a load"))
    for _ in range(50):
        for what in (ADD, REMOVE):
            edit = Edit(what=what, entries=entries, reason="fed by register")
            await edit_differences(edit, OWN, store, who="register at 192.0.2.1", now=now)
    await keeper.maintain(store, settings, ["stolen"])
    assert "a load" in [each.detail for each in await store.history("stolen")]


async def test_the_main_chain_is_deleted_by_age_alone(node, store):
    await node.load(1)
    for number in range(30):
        await node.load(number + 2, detail="x" * 200)
    await node.look(max_bytes=5_000)
    assert [each.serial for each in await events_of(store, "load")] == [*range(1, 32)]
    assert node.said == ["history_nearly_full"]
    await node.look(max_bytes=5_000)
    assert node.said == ["history_nearly_full"], "once"
    node.clock += 86400 * 20
    await node.load(32)
    await node.look(keep=10)
    assert [each.serial for each in await events_of(store, "load")] == [32]


async def test_a_full_feed_is_cut_and_anchored_before(node, store):
    await node.load(1)
    await node.feed(*range(40))
    size = (await store.ledger(FEED)).bytes
    await node.look(feed_max_bytes=size // 2)
    ledger = await store.ledger(FEED)
    assert size * 0.4 < ledger.bytes < size // 2
    (anchor,) = await events_of(store, ANCHOR)
    assert (anchor.head, anchor.who) == (40, "node")
    assert [each.what for each in await store.history(chain=FEED)][-1] == "trim"
    assert [each.what for each in await store.history(chain=MAIN)] == ["load", "anchor"]
    await node.look(feed_max_bytes=size // 2)
    await assert_level(node)


async def test_a_flood_writes_one_anchor_in_ten_minutes(node, store):
    for number in range(20):
        await node.feed(*range(10 * number, 10 * number + 10))
        await node.look(pass_s=FEED_TRIM_S / 4, feed_max_bytes=10_000)
    assert len(await events_of(store, ANCHOR)) == 5
    assert (await store.ledger(FEED)).bytes < 10_000 + 40 * 1200
    await assert_level(node)


async def test_a_feed_is_anchored_each_day(node, store):
    await node.look()
    for hours in range(60):
        if hours < 30:
            await node.feed(hours)
        await node.look(pass_s=3600)
    assert [each.head for each in await events_of(store, ANCHOR)] == [1, 25, 30]
    assert ANCHOR_S == 24 * 3600
    await assert_level(node)


async def test_rows_that_are_too_old_go(node, store):
    await node.feed(1, 2)
    await node.look()
    node.clock += 86400 * 20
    await node.feed(3)
    await node.look(keep=10)
    assert [each.what for each in await store.history(chain=FEED)] == ["add", "trim"]
    assert (await store.ledger(FEED)).first == 3
    await node.look(keep=10, pass_s=3600)
    assert [each.what for each in await node.copy.history(chain=FEED)] == ["add", "trim"]
    await assert_level(node)


async def test_two_nodes_anchor_once(store, opener):
    nodes = [HistoryNode(store, opener(name)) for name in ("one", "two")]
    nodes[1].begin += timedelta(seconds=5)
    await nodes[0].feed(*range(40))
    for _ in range(3):
        for each in nodes:
            await each.look(pass_s=5, feed_max_bytes=20_000)
    assert len(await events_of(store, ANCHOR)) == 1


async def test_a_node_that_was_away_follows_by_an_anchor(node, store, opener):
    """The feed's chain has lost all that the copy of this node has."""
    other = HistoryNode(store, opener("other"))
    await node.feed(*range(5))
    await node.look()
    for number in range(10):
        await other.feed(*range(10 * number, 10 * number + 10))
        await other.look(pass_s=FEED_TRIM_S, feed_max_bytes=10_000)
    assert (await store.ledger(FEED)).first > 6
    await node.look(feed_max_bytes=100_000)
    assert node.said == []
    await assert_level(node)


async def test_a_feed_behind_a_gap_without_an_anchor_is_not_followed(node, store):
    """The attack: a new chain with higher numbers."""
    await node.feed(*range(5))
    await node.look()
    before = await records_of(node.copy, FEED)
    rows = readable_events(await records_of(store, FEED), FEED)
    forged, _ = append_events(Ledger(first=100, number=99), rows, 0)
    await store.rewrite_history(one(forged), (), after=0, seen=await store.ledger(FEED), chain=FEED)
    for number in range(2):
        await node.look()
        await node.feed(number)
    await node.look()
    assert node.said == ["history_differs"]
    assert "history of the feed: " in node.keeper.differs
    assert await records_of(node.copy, FEED) == before
    await node.load(1)
    await node.look()
    assert await records_of(node.copy) == await records_of(store), "the main chain is followed all the same"
    await adopt(store, node.copy, event(None, what="adopt", detail="so be it", time=utc_text(node.time)))
    await node.look()
    assert not node.keeper.differs
    await assert_level(node)
    await node.feed(6)
    await node.look(pass_s=ANCHOR_S)
    await assert_level(node)


async def test_records_that_are_forgotten_while_a_copy_reads_them_are_no_difference(node, store):
    await node.feed(*range(5))
    await node.look()
    await node.feed(*range(5, 20))
    records, begun = store.records, []

    def trimmed(after=0, chain=MAIN):
        async def read():
            if chain == FEED and after == 5 and not begun:
                begun.append(after)
                trim = event(None, what="trim", detail="x", chain=FEED)
                await store.trim_history("2020-01-01T00:00:00Z", 5_000, trim, FEED)
            async for batch in records(after, chain):
                yield batch

        return read()

    await store.record(event(None, what=ANCHOR, time=utc_text(node.time)))
    node.store = Altered(store, records=trimmed)
    await node.look()
    assert begun
    assert node.said == []
    node.store = store
    await node.look()
    assert node.said == []
    await assert_level(node)


@pytest.mark.parametrize("keep", [0, 1, 3])
async def test_rows_that_the_store_lost_are_given_back(node, store, keep):
    await node.load(1)
    await node.feed(*range(5))
    await node.look()
    before, seen = await records_of(store, FEED), await store.ledger(FEED)
    await store.rewrite_history(one(before[:keep]), (), after=0, seen=seen, chain=FEED)
    if not keep:
        await store.rewrite_history(one(()), (), after=0, seen=None, chain=FEED)
    await node.look()
    assert node.said == ["history_healed"]
    assert await records_of(store, FEED) == before
    assert [each.what for each in await store.history(chain=MAIN)][:3] == ["load", "anchor", "heal"]
    await node.look()
    await assert_level(node)


@pytest.mark.parametrize("damage", [change_newest, damage_ledger])
async def test_a_damaged_feed_that_is_newer_than_the_copy_waits_for_an_operator(node, store, damage):
    await node.load(1)
    await node.feed(0, 1)
    await node.look()
    await node.feed(2, 3)
    await damage(store, FEED)
    for _ in range(2):
        with contextlib.suppress(StoreError):
            await node.look()
    assert node.said == ["history_differs"]
    rows = [each.detail for each in readable_events(await records_of(store, FEED), FEED)]
    assert len(rows) == 4
    await adopt(store, node.copy, event(None, what="adopt", detail="so be it", time=utc_text(node.time)))
    await node.look()
    assert not node.keeper.differs
    assert [each.detail for each in await store.history(chain=FEED)] == rows
    await assert_level(node)


async def test_a_feed_that_is_written_all_the_time_is_not_taken_for_damaged(node, store):
    """The ends of the chain are read one after the other."""
    await node.feed(1)
    await node.look()
    ledger = store.ledger

    async def busy(chain=MAIN):
        found = await ledger(chain)
        if chain == FEED:
            await node.feed(2)
        return found

    before = await records_of(store, FEED)
    node.store = Altered(store, ledger=busy, record=store.record)
    await node.look()
    assert node.said == []
    assert (await records_of(store, FEED))[:1] == before


async def test_a_list_whose_row_was_deleted_is_not_reported(node, store):
    """And one that is not made of rows, and that nobody recorded, is."""
    page = pages_of([1])
    time = utc_text(node.time)
    await store.replace("own", state(page, serial=0), page, seen=0, event=event("own", what="add", time=time))
    fed = event("own", what="add", detail="fed by register: 1", time=time, chain=FEED)
    for name in ("own", "new"):
        after = state(pages_of([1, 2]), serial=0, loaded_at=time)
        seen = 1 if name == "own" else 0
        await store.amend(name, after, pages_of([1, 2]), seen=seen, event=fed)
    await store.replace("stolen", state(page), page, seen=0, event=event("stolen", time=time))
    await store.replace("stolen", state(pages_of([2]), serial=2, loaded_at=time), pages_of([2]), seen=1)
    node.clock += 60
    for number in range(10):
        await node.feed(number)
    assert is_event_of((await store.history("own"))[2], await store.state("own"))
    await node.look(feed_max_bytes=5_000)
    for _ in range(2):
        await node.look(["own", "new", "stolen"], pass_s=20)
    assert node.keeper.unrecorded == ["stolen"]


async def test_the_author_of_a_row_is_found_in_either_chain(store):
    now = datetime.now(UTC)
    for number, who in enumerate(("operator", "register at 192.0.2.1")):
        edit = Edit(what=ADD, entries=[Entry(f"0010100100000{number}", 101001 * 10**6 + number)], reason="a case")
        await edit_differences(edit, OWN, store, who=who, now=now)
    found = added_by(await store.history("own"), "devices")
    assert [added.who for added in found.values()] == ["operator", "register at 192.0.2.1"]


async def test_days_of_a_flooding_feed_lose_no_load(node):
    """By a part of a year; the whole of it: scripts/soak history."""
    await assert_complete(node, await feed_for_days(node, 2))


async def test_others_write_while_a_feed_floods(store, opener):
    """Two processes at once: neither chain forks."""
    node = HistoryNode(store, opener("copy"))
    await asyncio.gather(*(node.feed(number) for number in range(20)), *(node.load(number) for number in range(20)))
    await node.look()
    assert len(await events_of(store, "load")) == 20
    await assert_level(node)


@pytest.mark.parametrize("reads", [True, False])
async def test_a_file_of_form_2_gets_the_chain_of_the_feed(tmp_path, reads):
    """Rows that an older version recorded stay where they are, and who only reads changes nothing."""
    path = tmp_path / "lists.sqlite"
    store = SqliteStore(path)
    await store.replace(
        "own", state(pages_of([1])), pages_of([1]), seen=0, event=event("own", what="add", detail="old")
    )
    await store.close()
    make_form_2(path)
    told = []
    store = SqliteStore(path, upgrades=not reads, report=lambda what, **fields: told.append((what, fields["detail"])))
    assert [(each.detail, each.chain) for each in await store.history("own")] == [("old", MAIN)]
    assert await store.ledger(FEED) == Ledger()
    assert await faults_of(store) == []
    assert len(told) == (not reads)
    fed = event("own", what="add", detail="new", chain=FEED)
    if reads:
        with pytest.raises(StoreError):
            await store.record(fed)
    else:
        assert told[0][1].startswith(f"{path} has form 2, and is converted to form 3")
        await store.record(fed)
        assert [(each.detail, each.chain) for each in await store.history("own")] == [("old", MAIN), ("new", FEED)]
        assert await faults_of(store) == []
    await store.close()


async def test_a_history_in_redis_of_form_2_gets_the_chain_of_the_feed(server):
    server.flush()
    store = RedisStore(server.url)
    await store.record(event(detail="old"))
    server.command("HSET", "eir:{history}:ledger", "form", 2)
    await store.close()
    told = []
    store = RedisStore(server.url, report=lambda what, **fields: told.append((what, fields.get("detail", ""))))
    assert len(await store.history()) == 1
    assert "store_upgraded" not in dict(told)
    await store.record(event("own", what="add", detail="new", chain=FEED))
    assert "has form 2, and is converted to form 3" in dict(told)["store_upgraded"]
    assert [(each.detail, each.chain) for each in await store.history()] == [("old", MAIN), ("new", FEED)]
    assert await faults_of(store) == []
    await store.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A host with a load, an entry by hand and a row of a register."""
    folder = tmp_path_factory.mktemp("fed")
    (folder / "publisher").mkdir()
    with Site(folder / "site", Publisher(folder / "publisher")) as site:
        own = {"local": True, "change_min": 10**7}
        rules = [{"list": "own", "answer": "blacklisted"}]
        site.configure(lists={"stolen": {"signers": "signers"}, "own": own}, policy={"rules": rules})
        site.load([LISTED])
        site.eir("add", "own", TRACKED, "--reason", "a case")
        asyncio.run(_fed(site))
        yield site


async def _fed(site):
    store = SqliteStore(site.state / "lists.sqlite")
    edit = Edit(what=ADD, entries=[Entry(UNLISTED[:14], device_key(UNLISTED))], reason="fed by register")
    await edit_differences(edit, OWN, store, who="register at 192.0.2.1", now=datetime.now(UTC))
    await store.record(event(None, what=ANCHOR, time=utc_text(datetime.now(UTC))))
    await store.close()


def _replace_author(site, old, new):
    """Replace a text in the feed's row of the store."""
    with contextlib.closing(sqlite3.connect(site.state / "lists.sqlite")) as db, db:
        db.execute("UPDATE feed_records SET text = replace(text, ?, ?)", (old, new))


class TestCommands:
    def test_the_history_shows_both_chains_or_one(self, site):
        shown = [(row["what"], row["chain"], row["number"]) for row in site.json("history")]
        assert shown == [("load", "main", 1), ("add", "main", 2), ("add", "feed", 1), ("anchor", "main", 3)]
        assert [row["what"] for row in site.json("history", "--chain", "main")] == ["load", "add", "anchor"]
        assert [row["who"] for row in site.json("history", "--chain", "feed")] == ["register at 192.0.2.1"]
        assert "expected main or feed" in site.eir("history", "--chain", "other", status=2).stderr

    def test_both_chains_are_exported(self, site):
        for options, lines in (((), 4), (("--chain", "feed"), 1), (("--chain", "main"), 3)):
            file = site.folder / "record.jsonl"
            assert site.json("history", "--export", file, *options)["lines"] == lines
        site.eir("history", "--export", file)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(row["what"], row["number"]) for row in rows] == [("load", 1), ("add", 2), ("anchor", 3), ("add", 1)]
        assert rows[2]["digest"] == record_digest(file.read_text().splitlines()[3])

    def test_the_author_of_a_row_of_either_chain_is_named(self, site):
        rows = {row["entry"]: row["who"] for row in site.json("show", "own")["entries"]}
        assert rows[UNLISTED[:14]] == "register at 192.0.2.1"
        assert rows[TRACKED[:14]] not in {None, "register at 192.0.2.1"}
        for device, who in rows.items():
            (own,) = (each for each in site.json("why", device, status=1)["lists"] if each["list"] == "own")
            assert [row["who"] for row in own["rows"]] == [who]
            assert (own["record"], own["chain"]) == (1, "feed")
        shown = site.eir("why", UNLISTED, status=1).stdout
        assert "by add of register at 192.0.2.1 (feed record 1)" in shown
        assert "put there by register at 192.0.2.1" in shown

    def test_both_chains_are_verified(self, site):
        assert "; 1 records of feeds, 1 to 1; " in site.eir("history", "--verify").stdout
        assert site.json("history", "--verify")["feed"] == {"records": 1, "first": 1, "last": 1}
        _replace_author(site, "register at", "somebody at")
        done = site.eir("history", "--verify", status=None)
        _replace_author(site, "somebody at", "register at")
        assert done.returncode == 1
        assert "feed: record 1, the newest, was changed\n" in done.stderr
        assert "record 1 of the feed is not the one that record 3 holds\n" in done.stderr
