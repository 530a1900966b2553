"""The history on a node's side: its copy, and what becomes of both where the store lost or changed it; a year of it; the command."""

import asyncio
import contextlib
import hashlib
import json
import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulated.history import YEAR_BYTES_MAX, one, records_of, year
from simulated.node import LISTED, UNLISTED, Publisher, Site, until
from simulated.store_content import Altered, event, pages_of, state

from eir.errors import StoreError
from eir.lists.follow.backup import restore_store
from eir.lists.follow.history import HistoryKeeper, adopt
from eir.lists.log.change import utc_text
from eir.lists.record.clock import TrustedClock
from eir.lists.record.history import append_events, chain_faults, events_of, is_linked, read_record, record_digest
from eir.lists.record.settings import HistorySettings
from eir.lists.record.store import MAIN, Fold, Ledger, Record
from eir.lists.stores.redis import RedisStore, writing
from eir.lists.stores.redis import history as redis_history
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.stores.sqlite import history as sqlite_history

DEFAULT = HistorySettings()
AB = "ab" * 32
PART = 12
NOW = utc_text(datetime.now(UTC))
LATER = utc_text(datetime.now(UTC) + timedelta(minutes=1))


class Node:
    """What a node does about the history, look by look, with a clock of the test's own."""

    def __init__(self, store, copy, name="node", *, writes=True):
        self.store, self.copy, self.said, self.anchors, self.clock = store, copy, [], [], 5.0
        self.keeper = HistoryKeeper(copy, writes=writes, who=name, report=self._heard, now=lambda: self.clock)

    def _heard(self, what, **said):
        if what == "history_at":
            self.anchors.append((said["record"], said["digest"]))
        else:
            self.said.append(what)

    async def look(self, settings=DEFAULT, lists=()):
        await self.keeper.maintain(self.store, settings, lists)


@pytest.fixture
def node(store, opener):
    return Node(store, opener("copy"))


async def details(store):
    return [each.detail for each in await store.history()]


async def holds(store):
    return not list(chain_faults(await records_of(store), await store.folds(), await store.ledger()))


async def recorded(store, *texts):
    for text in texts:
        await store.record(event(detail=text, time=NOW))


async def lose(store, keep=0, others=(), time=LATER):
    """The store has only the first so many records, and after them others; `a` is the one that all have."""
    records, seen = await records_of(store), await store.ledger()
    left = records[:keep]
    start = Ledger(number=keep, digest=record_digest(left[-1].text) if left else Ledger().digest)
    more, _ = append_events(start, [event(detail=text, time=NOW if text == "a" else time) for text in others])
    await store.rewrite_history(one([*left, *more]), (), after=0, seen=seen, exact=True)


async def test_a_copy_is_kept_level(node, store):
    for texts in (("a", "b"), (), ("c",)):
        await recorded(store, *texts)
        await store.record(event(None, "refused", what="refuse", detail="bad: …", time=NOW))
        await node.look()
        assert await records_of(node.copy) == await records_of(store)
        assert sorted(await node.copy.folds()) == sorted(await store.folds())
        assert await holds(node.copy)
    assert not node.said


async def test_a_copy_that_is_let_go_is_one_file(tmp_path):
    """SQLite puts what stands beside it into it, and that is a backup then."""
    copy = SqliteStore(tmp_path / "copy.sqlite")
    await recorded(copy, "a")
    await Node(None, copy).keeper.close()
    assert [each.name for each in tmp_path.iterdir()] == ["copy.sqlite"]


@pytest.mark.parametrize("keep", [0, 1, 2])
async def test_what_the_store_lost_is_given_back(node, store, keep):
    await recorded(store, "a", "b", "c")
    await store.record(event(None, "refused", what="refuse", detail="bad: …", time=NOW))
    await node.look()
    await lose(store, keep)
    await node.look()
    assert [text for text in await details(store) if "bad" not in text][:-1] == ["a", "b", "c"]
    assert (await details(store))[-1].endswith("given back from this node's copy")
    assert len(await store.folds()) == 1
    assert await holds(store)
    assert await records_of(node.copy) == await records_of(store)
    await node.look()
    assert node.said == ["history_healed"]
    assert not node.keeper.differs


LEDGER, RECORDS, REFUSALS, OUTCOMES = (
    "eir:{history}:ledger",
    "eir:{history}:records",
    "eir:{history}:refusals",
    "eir:{history}:outcomes",
)
DAMAGE = {
    "the ledger is of another type": [("SET", LEDGER, "x")],
    "the ledger is not JSON": [("HSET", LEDGER, "ledger", "{")],
    "the ledger is JSON and no object": [("HSET", LEDGER, "ledger", "[1]")],
    "the stream is of another type": [("SET", RECORDS, "x")],
    "the stream is gone": [("DEL", RECORDS)],
    "an entry has no record": [("XADD", RECORDS, "900-0", "x", "y")],
    "a record that nobody wrote": [("XADD", RECORDS, "900-0", "record", "[]")],
    "all but the newest is cut off": [("XTRIM", RECORDS, "MINID", "3-0")],
    "refusals are of another type": [("SET", REFUSALS, "x")],
    "outcomes are of another type": [("SET", OUTCOMES, "x")],
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_history_keeps_loads_away_only_until_a_node_gives_it_back(server, opener, damage):
    server.flush()
    store = RedisStore(server.url)
    node = Node(store, opener("copy"))
    for number, text in enumerate("abc"):
        await store.replace(
            "l", state(pages_of([number])), pages_of([number]), seen=number, event=event("l", detail=text, time=NOW)
        )
    await node.look()
    before = await records_of(node.copy)
    for command in DAMAGE[damage]:
        if command[0] == "SET":
            server.command("DEL", command[1])
        server.command(*command)
    await node.look()
    assert node.said == ["history_healed"]
    assert (await records_of(store))[:-1] == before
    assert [each.what for each in await store.history()] == ["load", "load", "load", "heal"], (
        "no record of a change is there twice"
    )
    assert await holds(store)
    await store.replace("l", state(pages_of([4])), pages_of([4]), seen=3, event=event("l", detail="d", time=NOW))
    assert (await details(store))[-1] == "d"
    await node.look()
    assert await records_of(node.copy) == await records_of(store)
    await store.close()


REPLACED = (LEDGER, RECORDS)


async def load(store, number):
    """Make a load; the history has its letter."""
    pages, text = pages_of([number]), "abcd"[number]
    await store.replace("l", state(pages), pages, seen=number, event=event("l", detail=text, time=NOW))


async def damaged(server, store, key, node=None):
    """Make three loads, and put a value of another type into a key of the history; before the last load, if that does not need the key."""
    for number in range(4):
        if number == (3 if key == LEDGER else 2):
            if node is not None:
                await node.look()
            server.command("DEL", key)
            server.command("SET", key, "x")
        if number < 3:
            await load(store, number)


@pytest.fixture
async def redis(server):
    server.flush()
    store = RedisStore(server.url)
    yield store
    await store.close()


@pytest.mark.parametrize("key", REPLACED)
async def test_a_load_waits_for_the_node_that_gives_the_history_back(server, redis, opener, key, monkeypatch):
    """And its record is there: it is not put into a history that cannot take it."""
    node, waits = Node(redis, opener("copy")), []

    async def heal(pause_s):
        waits.append(pause_s)
        await node.look()

    await damaged(server, redis, key, node)
    monkeypatch.setattr(writing, "sleep", heal)
    await load(redis, 3)
    assert len(waits) == 1
    assert (await redis.state("l")).generation == 4
    assert [each.detail for each in await redis.history("l")] == ["a", "b", "c", "d"]
    assert await holds(redis)


@pytest.fixture
def without_help(monkeypatch):
    """Have a load wait for no node that gives the history back."""
    monkeypatch.setattr(writing, "HEAL_S", 0.0)


@pytest.mark.usefixtures("without_help")
@pytest.mark.parametrize("key", REPLACED)
async def test_a_load_that_no_node_helps_names_the_key_and_changes_nothing(server, redis, key):
    await damaged(server, redis, key)
    with pytest.raises(StoreError) as caught:
        await load(redis, 3)
    assert caught.value.cause == "corrupt"
    assert f"{LEDGER}, or a key beside it, has another type than eir writes there" in str(caught.value)
    assert "WRONGTYPE" not in str(caught.value)
    assert (await redis.state("l")).generation == 3


@pytest.mark.usefixtures("without_help")
async def test_outcomes_of_another_type_do_not_hold_a_load(server, redis):
    await damaged(server, redis, OUTCOMES)
    await load(redis, 3)
    assert await details(redis) == ["a", "b", "c", "d"]
    assert await holds(redis)


async def test_an_outcome_that_cannot_be_counted_is_an_error(server, redis):
    await damaged(server, redis, OUTCOMES)
    with pytest.raises(StoreError) as caught:
        await redis.record(event("l", "refused", time=NOW))
    assert caught.value.cause == "corrupt"
    assert "has another type than eir writes there" in str(caught.value)


async def test_the_first_node_that_holds_a_history_gives_it_back_and_others_take_it(store, opener):
    nodes = [Node(store, opener(name), name) for name in ("one", "two")]
    await recorded(store, "a", "b")
    for each in nodes:
        await each.look()
    await lose(store)
    for _ in range(3):
        await asyncio.gather(*(each.look() for each in nodes))
    found = await details(store)
    assert found[:2] == ["a", "b"]
    assert len([text for text in found if text.endswith("given back from this node's copy")]) == len(found) - 2 == 1
    assert await holds(store)
    assert await records_of(nodes[0].copy) == await records_of(nodes[1].copy) == await records_of(store)


@pytest.mark.parametrize(
    ("keep", "others"), [(0, ("x",)), (0, ("x", "y", "z")), (1, ("x",)), (1, ("x", "y", "z")), (1, ("a", "b")), (2, ("x", "y"))],
)  # fmt: skip
async def test_a_history_that_does_not_continue_the_copy_is_reported_until_an_operator_adopts_it(
    node, store, keep, others
):
    await recorded(store, "a", "b", "c")
    await node.look()
    before = await records_of(node.copy)
    await lose(store, keep, others)
    there = await records_of(store)
    for _ in range(2):
        await node.look()
    assert node.said == ["history_differs"]
    assert "do not continue them" in node.keeper.differs
    assert await records_of(node.copy) == before, "the copy never loses what it has"
    assert await records_of(store) == there, "and nothing is written behind what it does not know"
    await recorded(store, "more")
    await node.look()
    assert await records_of(node.copy) == before
    await adopt(store, node.copy, event(None, what="adopt", detail="two stores were in use", time=NOW))
    await node.look()
    assert not node.keeper.differs
    assert await records_of(node.copy) == await records_of(store)
    assert (await details(store))[-2:] == ["more", "two stores were in use"]
    assert await holds(store)
    assert await holds(node.copy)


async def test_records_behind_a_ledger_that_begins_later_are_not_followed(node, store):
    """The attack: as many forged records as wanted, with numbers above all that were there."""
    await recorded(store, "a", "b")
    await node.look()
    before = await records_of(node.copy)
    forged, _ = append_events(Ledger(first=100, number=99), [event(detail=text, time=LATER) for text in "xyz"])
    await store.rewrite_history(one(forged), (), after=0, seen=await store.ledger(), exact=True)
    assert await holds(store)
    for _ in range(3):
        await node.look()
    assert await records_of(node.copy) == before
    assert node.said == ["history_differs"]
    assert "record 100 comes after 2" in node.keeper.differs


@pytest.mark.parametrize("begins", [1, 8])
async def test_a_new_node_takes_what_there_is_and_grows_from_there(store, opener, begins):
    chain, _ = append_events(Ledger(first=begins, number=begins - 1), [event(detail=text, time=NOW) for text in "abc"])
    await store.rewrite_history(one(chain), (), after=0, seen=Ledger())
    node = Node(store, opener("copy"))
    await node.look()
    await recorded(store, "d")
    await node.look()
    assert [each.number for each in await records_of(node.copy)] == [begins, begins + 1, begins + 2, begins + 3]
    assert not node.said


async def test_a_node_that_may_not_write_reports_it_and_keeps_its_copy(store, opener):
    node = Node(store, opener("copy"), writes=False)
    await recorded(store, "a", "b")
    await node.look()
    await lose(store)
    await node.look()
    assert await details(store) == []
    assert await details(node.copy) == ["a", "b"]
    node.keeper.add(event("x"))
    assert node.said == ["history_differs", "history_not_written"]


async def test_a_record_that_does_not_link_is_not_taken_over(node, store):
    await recorded(store, "a")
    await node.look()
    await recorded(store, "b", "c")
    records = await records_of(store)
    changed = [records[0], Record(2, records[1].text.replace('"b"', '"x"')), records[2]]
    await store.rewrite_history(one(changed), (), after=0, seen=await store.ledger())
    await node.look()
    assert node.said == ["history_differs"]
    assert await details(node.copy) == ["a"]
    await adopt(store, node.copy, event(None, what="adopt", detail="so be it", time=NOW))
    assert await details(store) == await details(node.copy) == ["a", "x", "c", "so be it"]
    assert await holds(store)


def newest_replaced(store, detail):
    """The store, with another newest record than the one that was written."""

    async def records(after=0, chain=MAIN):
        async for batch in store.records(after, chain):
            yield [Record(each.number, each.text.replace(f'"{detail}"', '"x"')) for each in batch]

    return Altered(store, records=records)


async def test_a_newest_record_that_was_replaced_is_not_copied(store, opener):
    """Its number and its link are right; only the ledger proves it."""
    node = Node(store, opener("copy"), writes=False)
    await recorded(store, "a")
    await node.look()
    await recorded(store, "b", "c")
    node.store = newest_replaced(store, "c")
    await node.look()
    assert node.said == ["history_differs"]
    assert "record 3, the newest, is not the one that was written" in node.keeper.differs
    assert await details(node.copy) == ["a"]
    node.store = store
    await node.look()
    assert not node.keeper.differs
    assert await details(node.copy) == ["a", "b", "c"]


async def test_a_newest_record_that_was_replaced_is_given_back(node, store):
    await recorded(store, "a", "b", "c")
    await node.look()
    node.store = newest_replaced(store, "c")
    await node.look()
    assert node.said == ["history_healed"]
    assert (await details(store))[:3] == ["a", "b", "c"]
    assert "its ends are not where they were" in (await details(store))[3]


async def change_newest(store, chain=MAIN):
    """Change the text of the newest record in the store, and leave its ledger."""
    records = [each async for batch in store.records(chain=chain) for each in batch]
    ledger = await store.ledger(chain)
    changed = Record(ledger.number, records[-1].text.replace('"detail":"', '"detail":"forged '))
    await damage_store(store, chain, [*records[:-1], changed], None)


async def damage_ledger(store, chain=MAIN):
    """Overwrite the ledger in the store with text that is not JSON, and leave the records."""
    await damage_store(store, chain, None, "{")


async def damage_store(store, chain, records, ledger):
    if isinstance(store, SqliteStore):
        table, row = sqlite_history.TABLES[chain]

        def write(db):
            with db:
                if ledger is not None:
                    db.execute("UPDATE ledger SET text = ? WHERE id = ?", (ledger, row))
                for record in records or ():
                    db.execute(f"UPDATE {table} SET text = ? WHERE number = ?", (record.text, record.number))

        await store.file.call(write)
        return
    stream = redis_history.STREAMS[chain]
    if ledger is not None:
        await store.link.execute("HSET", LEDGER, redis_history.FIELDS[chain][0], ledger)
    if records is not None:
        await store.link.execute("DEL", stream)
        for record in records:
            await store.link.execute("XADD", stream, f"{record.number}-0", "record", record.text)


DAMAGED = {"newest record": (change_newest, "forged d"), "ledger": (damage_ledger, "d")}


@pytest.mark.parametrize("damaged", DAMAGED)
async def test_a_damaged_history_that_is_newer_than_the_copy_waits_for_an_operator(node, store, damaged):
    """An older copy must not replace the records after its own."""
    damage, newest = DAMAGED[damaged]
    await recorded(store, "a", "b")
    await node.look()
    await recorded(store, "c", "d")
    await damage(store)
    for _ in range(2):
        with contextlib.suppress(StoreError):
            await node.look()
    assert node.said == ["history_differs"]
    assert "this node's copy has records up to 2 " in node.keeper.differs
    assert await details(node.copy) == ["a", "b"]
    assert [read_record(each).detail for each in await records_of(store)] == ["a", "b", "c", newest]
    await adopt(store, node.copy, event(None, what="adopt", detail="so be it", time=NOW))
    await node.look()
    assert not node.keeper.differs
    assert await details(store) == ["a", "b", "c", newest, "so be it"]
    assert await records_of(node.copy) == await records_of(store)
    assert await holds(store)


@pytest.mark.parametrize("copied", [("a", "b"), ("a", "b", "c")])
async def test_a_backup_replaces_no_newer_record_of_a_history_without_its_ledger(store, opener, copied):
    backup = opener("backup")
    await recorded(store, *copied)
    await Node(store, backup).look()
    await recorded(store, *"abc"[len(copied) :])
    await damage_ledger(store)
    done = await restore_store(backup, store, {}, who="operator", now=datetime.now(UTC), made="yesterday", force=False)
    assert done == []
    assert (await details(store))[:-1] == ["a", "b", "c"]
    assert [each.what for each in await store.history()][-1] == "heal"
    assert await holds(store)


async def test_without_a_copy_a_node_has_no_events_of_its_own(opener):
    copy = opener("copy")
    await recorded(copy, "a")
    for kept in (copy, None):
        keeper = Node(None, kept).keeper
        asked = keeper.events(None, limit=None, since=None, chain=None)
        if kept is None:
            with pytest.raises(StoreError, match="has no copy of the history") as caught:
                await asked
            assert caught.value.cause == "refused"
        else:
            assert [each.detail for each in await asked] == ["a"]


async def test_refusals_that_were_removed_from_the_store_stay_in_the_copy(node, store):
    for reason in ("bad_signature", "expired"):
        await store.record(event(None, "refused", what="refuse", detail=f"{reason}: …", time=NOW))
    await recorded(store, "a")
    await node.look()
    await store.rewrite_history(one(()), (), after=1, seen=await store.ledger(), exact=True)
    await node.look()
    assert len(await store.folds()) == 0
    assert len(await node.copy.folds()) == 2


async def test_the_newest_record_is_in_the_log_at_each_change(node, store):
    for texts in (("a",), (), ("b", "c")):
        await recorded(store, *texts)
        await node.look()
        ledger = await store.ledger()
        assert (node.keeper.ledgers[MAIN].number, node.keeper.ledgers[MAIN].digest) == (ledger.number, ledger.digest)
        assert node.anchors[-1] == (ledger.number, ledger.digest)
    assert [number for number, _ in node.anchors] == [1, 3]


async def test_a_list_without_its_record_is_reported(node, store):
    """As who holds the loader's user can make one: with another's name under it, and another content under the digest of a release."""
    first = replace(state(pages_of([1])), release_digest=AB, signers=("agency SHA256:x",))
    await store.replace("a", first, pages_of([1]), seen=0, event=event("a", serial=1, digest=AB, detail="load"))
    await store.replace("b", first, pages_of([1]), seen=0)
    await node.look(lists=["a", "b", "c"])
    assert node.keeper.unrecorded == [], "it may be on its way"
    node.clock += 20
    await node.look(lists=["a", "b", "c"])
    assert node.keeper.unrecorded == ["b"]
    forged = replace(state(pages_of([2])), release_digest=AB, signers=("agency SHA256:x",))
    await store.replace("a", forged, pages_of([2]), seen=1)
    for _ in range(3):
        await node.look(lists=["a", "b"])
        node.clock += 10
    await node.look(lists=["a", "b"])
    assert node.keeper.unrecorded == ["a", "b"]
    assert node.said == ["list_unrecorded", "list_unrecorded"]
    await store.rollback("a", seen=2, event=event("a", what="rollback", detail="back"))
    await store.replace("b", first, pages_of([1]), seen=1, event=event("b", serial=1, digest=AB, detail="load"))
    await node.look(lists=["a", "b"])
    assert node.keeper.unrecorded == []


async def test_a_list_whose_record_was_deleted_is_not_reported(node, store):
    """As after a hundred million rows of a register, which push out all records of before."""
    before, content = "2020-01-01T00:00:00Z", state(pages_of([1]))
    await store.replace("a", replace(content, loaded_at=before), pages_of([1]), seen=0, event=event("a", time=before))
    await store.replace("b", replace(content, loaded_at=LATER), pages_of([1]), seen=0)
    await recorded(store, "rows of a register")
    await store.trim_history("2021-01-01T00:00:00Z", 1 << 20, event(None, what="trim", detail="x", time=NOW))
    for _ in range(2):
        await node.look(lists=["a", "b"])
        node.clock += 20
    assert node.keeper.unrecorded == ["b"]


async def test_a_flood_of_refusals_hides_no_record(node, store):
    await store.replace("a", state(pages_of([1])), pages_of([1]), seen=0, event=event("a"))
    for number in range(40):
        await store.record(event("a", "refused", what="refuse", detail=f"try {number}: …", time=LATER))
    await node.look(lists=["a"])
    node.clock += 20
    await node.look(lists=["a"])
    assert node.keeper.unrecorded == []


async def test_a_list_of_a_version_without_a_content_digest_is_compared_by_its_release(node, store):
    await store.replace("a", replace(state(pages_of([1])), release_digest=AB), pages_of([1]), seen=0)
    await store.record(event("a", digest=AB))
    await node.look(lists=["a"])
    node.clock += 20
    await node.look(lists=["a"])
    assert node.keeper.unrecorded == []


@pytest.mark.parametrize("text", ["[1]", "7", '"x"', "null"])
def test_a_record_that_is_json_and_no_object_is_a_fault_of_the_history(text):
    records, ledger = append_events(Ledger(), [event(detail="a"), event(detail="b")])
    changed = [records[0], Record(2, text)]
    assert "record 2 was changed: it cannot be read" in [*chain_faults(changed, (), ledger)]
    assert not is_linked(changed, None)
    with pytest.raises(StoreError, match="not a JSON object") as caught:
        read_record(changed[1])
    assert caught.value.cause == "corrupt"


@pytest.mark.parametrize("change", [{"count": None}, {"count": "1"}, {"at": 1.5}, {"after": True}, {"first": 1}])
def test_a_refusal_that_is_not_whole_is_damage(change):
    whole = {"time": NOW, "who": "x", "what": "refuse", "list": None, "outcome": "refused"}
    whole |= {"count": 1, "at": 1, "after": 0, "first": NOW}
    assert len(events_of((), [Fold("k", json.dumps(whole))])) == 1
    with pytest.raises(StoreError, match="not whole") as caught:
        events_of((), [Fold("k", json.dumps(whole | change))])
    assert caught.value.cause == "corrupt"


async def test_a_clock_that_jumped_takes_nothing_from_the_history_until_it_is_believed(store):
    """Records of 2020 that are to be kept for ten days, and were written one day before the clock of this node was last seen."""
    now, seen = [5.0], datetime(2020, 1, 2, tzinfo=UTC).timestamp()
    keeper = HistoryKeeper(
        None, writes=True, who="node", report=lambda *_, **__: None, now=lambda: now[0], clock=TrustedClock(seen)
    )
    for detail in ("old", "last"):
        await store.record(event(detail=detail, time="2020-01-01T00:00:00Z"))
    for hours in (0, 1):
        now[0] += 3600 * hours
        await keeper.maintain(store, HistorySettings(keep=10))
        assert ("old" in await details(store)) is (not hours)


async def test_the_history_is_trimmed_each_hour(node, store):
    trimmed, trim = [], store.trim_history

    async def counted(*arguments):
        trimmed.append(node.clock)
        return await trim(*arguments)

    node.store = Altered(store, trim_history=counted)
    for hours, count in ((0, 1), (0.9, 1), (0.2, 2), (0.9, 2), (2, 3)):
        node.clock += 3600 * hours
        await node.look()
        assert len(trimmed) == count


async def test_events_wait_for_a_store_that_is_away(node, store):
    async def away(_event):
        raise StoreError("refused", "away")

    node.keeper.add(event(detail="first", time=NOW))
    node.keeper.add(event(detail="second", time=NOW))
    node.store = Altered(store, record=away)
    with pytest.raises(StoreError):
        await node.look()
    node.store = store
    await node.look()
    assert await details(store) == ["first", "second"]


async def test_what_is_older_than_kept_goes_from_store_and_copy(node, store):
    for days in (30, 20, 10, 0):
        time = utc_text(datetime.now(UTC) - timedelta(days=days))
        await store.record(event(detail=str(days), time=time))
    await node.look()
    node.clock += 3600
    await node.look(HistorySettings(keep=15))
    await node.look()
    assert (await details(store))[:2] == (await details(node.copy))[:2] == ["10", "0"]
    assert await holds(store)
    assert await holds(node.copy)
    assert await records_of(node.copy) == await records_of(store)


async def test_an_event_whose_writer_died_is_shown_and_written_by_the_next(server, opener, monkeypatch):
    server.flush()
    store = RedisStore(server.url)

    append = redis_history.append

    async def dead(link, said, about=None):
        if said.detail in {"first", "second"}:
            raise StoreError("refused", "away")
        await append(link, said, about)

    @contextlib.contextmanager
    def writer_dies():
        with monkeypatch.context() as patch:
            patch.setattr("eir.lists.stores.redis.history.append", dead)
            yield

    with writer_dies():
        await store.replace("a", state(pages_of([1])), pages_of([1]), seen=0, event=event("a", detail="first"))
    assert await details(store) == ["first"]
    assert await records_of(store) == []
    node = Node(store, opener("copy"))
    await node.look()
    await node.look()
    assert await details(store) == ["first"]
    assert [json.loads(text)["detail"] for _, text in await records_of(node.copy)] == ["first"]
    await store.replace("a", state(pages_of([1]), serial=2), pages_of([1]), seen=1, event=event("a", detail="between"))
    with writer_dies():
        await store.replace("a", state(pages_of([2])), pages_of([2]), seen=2, event=event("a", detail="second"))
        with pytest.raises(StoreError):  # nothing is written over what is not in the history yet
            await store.replace("a", state(pages_of([3])), pages_of([3]), seen=3, event=event("a", detail="third"))
    await store.replace("a", state(pages_of([3])), pages_of([3]), seen=3, event=event("a", detail="third"))
    assert await details(store) == ["first", "between", "second", "third"]
    await store.close()


async def test_a_year_takes_less_than_50_mb_and_holds(store, request, tmp_path):
    """By a part of it; the whole of it: scripts/soak history."""
    records, ledger = append_events(Ledger(), year(PART))
    assert len(records) > 95_000 // PART
    await store.rewrite_history(one(records), (), after=0, seen=Ledger())
    for number in range(200):
        await store.record(event(None, "refused", what="refuse", detail=f"bad_signature: try {number}"))
    if isinstance(store, SqliteStore):
        with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        taken = (tmp_path / "store.sqlite").stat().st_size
    else:
        server = request.getfixturevalue("server")
        (key,) = [
            key for key in server.command("KEYS", "eir:{history}:records*").split(b"\r\n") if key.startswith(b"eir")
        ]
        taken = int(server.command("MEMORY", "USAGE", key, "SAMPLES", "0")[1:])
    assert taken < YEAR_BYTES_MAX / PART
    assert await store.history("stolen-national-1", limit=3) == events_of(records, (), "stolen-national-1", limit=3)
    assert (await store.history(limit=1))[0].count == 200
    assert not list(chain_faults(records, (), ledger))


def make_form_2(path):
    """Give a file form 2 of the schema, which had no chain of the rows of feeds."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in (
            "DROP INDEX feed_records_of_list", "DROP TABLE feed_records", "DELETE FROM ledger WHERE id = 2",
            "UPDATE ledger SET text = json_remove(text, '$.anchored', '$.anchored_at')", "PRAGMA user_version = 2",
        ):  # fmt: skip
            db.execute(statement)


async def test_a_file_of_a_form_that_is_too_old_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "lists.sqlite"
    store = SqliteStore(path)
    await store.replace("a", state(pages_of([1])), pages_of([1]), seen=0)
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 1")
    for upgrades in (False, True):
        store = SqliteStore(path, upgrades=upgrades)
        with pytest.raises(
            StoreError, match=f"{re.escape(str(path))} has form 1, and this eir reads forms 2 to 3"
        ) as caught:
            await store.state("a")
        assert caught.value.cause == "schema"
        await store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A host with two loads and three refusals of one kind on record."""
    folder = tmp_path_factory.mktemp("history")
    (folder / "publisher").mkdir()
    with Site(folder / "site", Publisher(folder / "publisher")) as site:
        site.load([LISTED])
        site.load([LISTED, UNLISTED], serial=2)
        for _ in range(3):
            site.eir("load", site.release([UNLISTED], serial=1), status=1)
        yield site


def test_a_reader_upgrades_nothing_and_a_load_logs_the_upgrade_before(tmp_path):
    (tmp_path / "publisher").mkdir()
    with Site(tmp_path / "site", Publisher(tmp_path / "publisher")) as site:
        site.load([LISTED])
        site.load([LISTED, UNLISTED], serial=2)
        file = site.state / "lists.sqlite"
        make_form_2(file)
        for *command, status in (
            ("lists", 0), ("show", "stolen", 0), ("history", 0), ("history", "--verify", 0), ("check", LISTED, 0), ("why", LISTED, 1),
            ("export", "stolen", 0), ("backup", site.folder / "eir.tar", 0),
        ):  # fmt: skip
            assert "has form" not in site.eir(*command, status=status).stderr, command
            with contextlib.closing(sqlite3.connect(file)) as db:
                assert db.execute("PRAGMA user_version").fetchone() == (2,), command
        assert site.json("lists")[0]["entries"] == 2
        said = site.eir("load", site.release([LISTED], serial=3)).stderr.splitlines()
        assert [f"{file} has form 2, and is converted to form 3" in line for line in said].count(True) == 1
        make_form_2(file)
        node = site.start()
        assert len(until(lambda: node.lines("store_upgraded"))) == 1


@contextlib.contextmanager
def changed_record(file):
    """Change a record's text for the time of the block."""
    with contextlib.closing(sqlite3.connect(file)) as db:
        for old, new in (("load", "lost"), ("lost", "load")):
            with db:
                db.execute("UPDATE records SET text = replace(text, ?, ?) WHERE number = 1", (old, new))
            if new == "lost":
                yield


class TestCommand:
    @pytest.mark.long
    def test_refusals_are_counted(self, site):
        assert "3 times since 20" in site.eir("history").stdout

    def test_since(self, site):
        for since in ("1d", "2020-01-01T07:00:00Z", "2020-01-01 07:00:00Z"):
            assert len(site.json("history", "--since", since)) == 3
        assert len(site.json("history", "--since", f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%d}")) == 3
        assert site.json("history", "--since", "2100-01-01T00:00:00Z") == []
        assert "a day such as 2026-11-20" in site.eir("history", "--since", "yesterday", status=2).stderr

    def test_an_export_can_be_checked_by_hand(self, site):
        said = site.json("history", "--export", site.folder / "record.jsonl")
        lines = (site.folder / "record.jsonl").read_text().splitlines()
        assert (said["lines"], said["digest"]) == (3, hashlib.sha256(lines[1].encode()).hexdigest())
        first, second, refused = map(json.loads, lines)
        assert (first["number"], second["number"], refused["count"]) == (1, 2, 3)
        assert second["before"] == hashlib.sha256(lines[0].encode()).hexdigest()
        for since, left in ((refused["time"], ["count"]), ("2100-01-01T00:00:00Z", [])):
            out = site.folder / "part.jsonl"
            done = site.eir("history", "--export", out, "--since", since)
            assert done.stderr == f"{out}: {len(left)} lines; SHA-256 of the newest record: {said['digest']}\n"
            assert ["count" for line in out.read_text().splitlines() if "count" in json.loads(line)] == left

    def test_a_record_that_was_changed_is_found(self, site):
        assert site.eir("history", "--verify").stdout.startswith("the history is valid: 2 records, 1 to 2, ")
        whole = site.json("history", "--verify")
        assert (whole["whole"], whole["records"], whole["refusals"], whole["copied"]) == (True, 2, 3, None)
        with changed_record(site.state / "lists.sqlite"):
            done = site.eir("history", "--verify", status=1)
        assert done.stderr.startswith("record 1 is not the one that record 2 was written after: it was changed\n")

    def test_a_reload_is_on_record(self, tmp_path, publisher):
        with Site(tmp_path / "site", publisher) as site:
            site.load([LISTED])
            site.load([LISTED], list_name="tracked")
            site.start()
            site.configure(policy={"default": "greylisted"})
            site.eir("reload")
            until(lambda: site.json("history")[-1]["what"] == "reload")
            found = site.json("history")[-1]
            assert found["detail"] == "changed: policy"
            assert found["digest"] == hashlib.sha256(site.path.read_bytes()).hexdigest()
            assert "@" in found["who"]
