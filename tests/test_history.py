"""The history on a node's side: its copy, and what becomes of both where the store lost or changed it; a year of it; the command."""

import asyncio
import contextlib
import hashlib
import json
import random
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
import servers
from made import event, pages_of, state
from node import LISTED, UNLISTED, Publisher, Site, until

from eir.commands import record
from eir.errors import StoreError
from eir.follow.history import HistoryKeeper
from eir.lists.history import appended, broken, events_of, record_digest
from eir.lists.settings import HistorySettings
from eir.lists.store import Ledger, Record, utc_text
from eir.stores.redis import RedisStore
from eir.stores.redis import history as redis_history
from eir.stores.sqlite import SqliteStore
from eir.stores.sqlite.file import checkpoint

DEFAULT = HistorySettings()
YEAR_BYTES_MAX, PART = 50_000_000, 12
NOW = utc_text(datetime.now(UTC))
EARLIER, LATER = (utc_text(datetime.now(UTC) + timedelta(minutes=minutes)) for minutes in (-1, 1))


@pytest.fixture(scope="module")
def server():
    if "redis" not in servers.programs():
        pytest.skip("redis-server is not installed")
    with servers.Server(servers.programs()["redis"]) as one:
        yield one


@pytest.fixture
async def opener(tmp_path):
    async with contextlib.AsyncExitStack() as stack:

        def open_one(name):
            opened = SqliteStore(tmp_path / f"{name}.sqlite")
            stack.push_async_callback(opened.close)
            return opened

        yield open_one


@pytest.fixture(params=["sqlite", "redis"])
async def store(request, opener):
    if request.param == "sqlite":
        yield opener("store")
        return
    server = request.getfixturevalue("server")
    server.flush()
    opened = RedisStore(server.url)
    yield opened
    await opened.close()


class Node:
    """What a node does about the history, look by look."""

    def __init__(self, store, copy, name="node", *, writes=True):
        self.store, self.copy, self.said = store, copy, []
        self.keeper = HistoryKeeper(copy, writes=writes, who=name, report=lambda what, **_: self.said.append(what))

    async def look(self, settings=DEFAULT):
        await self.keeper.look(self.store, settings)


@pytest.fixture
def node(store, opener):
    return Node(store, opener("copy"))


async def records_of(store):
    return [each async for batch in store.records() for each in batch]


async def details(store):
    return [each.detail for each in await store.history()]


async def holds(store):
    return not list(broken(await records_of(store), await store.folds(), await store.ledger()))


async def one(batch):
    yield batch


async def recorded(store, *texts):
    for text in texts:
        await store.record(event(detail=text, time=NOW))


async def lose(store, keep=0, others=(), time=LATER):
    """The store has only the first so many records, and after them others; `a` is the one that all have."""
    records, seen = await records_of(store), await store.ledger()
    left = records[:keep]
    start = Ledger(number=keep, digest=record_digest(left[-1].text) if left else Ledger().digest)
    more, _ = appended(start, [event(detail=text, time=NOW if text == "a" else time) for text in others])
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


@pytest.mark.parametrize(
    ("keep", "others"), [(0, ()), (2, ()), (0, ("after",)), (2, ("after",)), (0, ("after", "a")), (1, ("after",)),
     (1, ("after", "and after", "and then"))],
)  # fmt: skip
async def test_what_the_store_lost_is_given_back_and_what_came_since_stays(node, store, keep, others):
    await recorded(store, "a", "b", "c")
    await store.record(event(None, "refused", what="refuse", detail="bad: …", time=NOW))
    await node.look()
    await lose(store, keep, others)
    await node.look()
    await node.look()
    found = await details(store)
    assert found[:3] == ["a", "b", "c"]
    assert sorted(found[3:-1]) == sorted([*({*others} - {"a"}), "bad: …"])
    assert found[-1].endswith("given back from this node's copy")
    assert await holds(store)
    assert await records_of(node.copy) == await records_of(store)
    assert node.said == ["history_healed"]


async def test_of_two_nodes_one_gives_back_and_both_come_to_the_same(store, opener):
    nodes = [Node(store, opener(name), name) for name in ("one", "two")]
    await recorded(store, "a", "b")
    await nodes[0].look()
    await recorded(store, "c", "d")
    await nodes[1].look()
    await lose(store, 0, ("since",))
    for _ in range(3):
        await asyncio.gather(*(each.look() for each in nodes))
    found = await details(store)
    assert {"a", "b", "c", "d", "since"} <= {*found}
    assert len([text for text in found if not text.startswith("history")]) == 5
    assert await holds(store)
    assert await records_of(nodes[0].copy) == await records_of(nodes[1].copy) == await records_of(store)


@pytest.mark.parametrize("others", [("x",), ("x", "y", "z")])
async def test_a_store_with_an_older_history_keeps_it_and_gets_the_rest(node, store, others):
    await recorded(store, "a", "b")
    await node.look()
    await lose(store, 1, others, EARLIER)
    await node.look()
    await node.look()
    assert await details(store) == ["a", *others, "b"]
    assert await records_of(node.copy) == await records_of(store)
    assert node.said == ["history_differs"]


async def test_a_node_that_may_not_write_says_so_and_keeps_its_own(store, opener):
    node = Node(store, opener("copy"), writes=False)
    await recorded(store, "a", "b")
    await node.look()
    await lose(store)
    await node.look()
    assert await details(store) == []
    assert await details(node.copy) == ["a", "b"]
    node.keeper.add(event("x"))
    assert node.said == ["history_lost", "history_not_written"]


async def test_a_record_that_does_not_link_is_not_taken_over(node, store):
    await recorded(store, "a")
    await node.look()
    await recorded(store, "b", "c")
    records = await records_of(store)
    changed = [records[0], Record(2, records[1].text.replace('"b"', '"x"')), records[2]]
    await store.rewrite_history(one(changed), (), after=0, seen=await store.ledger())
    await node.look()
    assert node.said == ["history_broken"]
    assert await details(node.copy) == ["a"]


async def test_events_wait_for_a_store_that_is_away(node, store, monkeypatch):
    async def away(_event):
        raise StoreError("refused", "away")

    node.keeper.add(event(detail="first", time=NOW))
    node.keeper.add(event(detail="second", time=NOW))
    with monkeypatch.context() as patch:
        patch.setattr(store, "record", away)
        with pytest.raises(StoreError):
            await node.look()
    await node.look()
    assert await details(store) == ["first", "second"]


async def test_what_is_older_than_kept_goes_from_store_and_copy(node, store):
    for days in (30, 20, 10, 0):
        time = utc_text(datetime.now(UTC) - timedelta(days=days))
        await store.record(event(detail=str(days), time=time))
    await node.look()
    node.keeper._trimmed_at = 0
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

    with monkeypatch.context() as patch:
        patch.setattr("eir.stores.redis.history.append", dead)
        await store.replace("a", state(pages_of([1])), pages_of([1]), seen=0, event=event("a", detail="first"))
    assert await details(store) == ["first"]
    assert await records_of(store) == []
    node = Node(store, opener("copy"))
    await node.look()
    await node.look()
    assert await details(store) == ["first"]
    assert [json.loads(text)["detail"] for _, text in await records_of(node.copy)] == ["first"]
    await store.replace("a", state(pages_of([1]), serial=2), pages_of([1]), seen=1, event=event("a", detail="between"))
    with monkeypatch.context() as patch:
        patch.setattr("eir.stores.redis.history.append", dead)
        await store.replace("a", state(pages_of([2])), pages_of([2]), seen=2, event=event("a", detail="second"))
        with pytest.raises(StoreError):  # nothing is written over what is not in the history yet
            await store.replace("a", state(pages_of([3])), pages_of([3]), seen=3, event=event("a", detail="third"))
    await store.replace("a", state(pages_of([3])), pages_of([3]), seen=3, event=event("a", detail="third"))
    assert await details(store) == ["first", "between", "second", "third"]
    await store.close()


def year():
    """What a busy register does in a year: ten lists with a delta each hour, twenty changes by hand a day, a reload and a rollback a week."""
    random.seed(1)
    fingerprint = hashlib.sha256(b"key").hexdigest()[:43]
    for hour in range(365 * 24 // PART):
        time = utc_text(datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=hour))
        for name in range(10):
            detail = f"{61_234 + hour} entries, before {61_233 + hour}; {random.randrange(100)} devices come, {random.randrange(50)} go; signed by agency@example SHA256:{fingerprint}"
            yield event(f"stolen-national-{name}", what="load", time=time, serial=hour, digest=random.randbytes(32).hex(), detail=detail)
        if hour % 24 == 0:
            for number in range(20):
                yield event("blocked-here", what="add", time=time, detail=f"ticket {hour}-{number}, until 2026-12-31T00:00:00Z: {LISTED}, {UNLISTED}")
        if hour % 168 == 0:
            yield event(None, what="reload", time=time, digest=random.randbytes(32).hex(), detail="changed: policy, lists")
            yield event("stolen-national-1", "rolled_back", what="rollback", time=time, serial=hour, digest=random.randbytes(32).hex(), detail="release 7 undone; 61234 entries")


async def test_a_year_takes_less_than_50_mb_and_holds(store, request, tmp_path):
    """By a part of it; the whole of it: scripts/soak history."""
    records, ledger = appended(Ledger(), year())
    assert len(records) > 95_000 // PART
    await store.rewrite_history(one(records), (), after=0, seen=Ledger())
    for number in range(200):
        await store.record(event(None, "refused", what="refuse", detail=f"bad_signature: try {number}"))
    if isinstance(store, SqliteStore):
        await store._file.call(checkpoint)
        taken = (tmp_path / "store.sqlite").stat().st_size
    else:
        server = request.getfixturevalue("server")
        (key,) = [key for key in server.command("KEYS", "eir:{history}:records*").split(b"\r\n") if key.startswith(b"eir")]
        taken = int(server.command("MEMORY", "USAGE", key, "SAMPLES", "0")[1:])
    assert taken < YEAR_BYTES_MAX / PART
    assert await store.history("stolen-national-1", limit=3) == events_of(records, (), "stolen-national-1", limit=3)
    assert (await store.history(limit=1))[0].count == 200
    assert not list(broken(records, (), ledger))


async def test_the_history_of_version_1_becomes_a_chain(tmp_path):
    path = tmp_path / "lists.sqlite"
    pages = pages_of([1])
    store = SqliteStore(path)
    await store.replace("a", state(pages), pages, seen=0)
    await store.replace("a", state(pages_of([2]), serial=2), pages_of([2]), seen=1)
    was, kept = await store.state("a"), (await store.releases("a"))[1].state
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in (
            "ALTER TABLE lists DROP COLUMN made", "ALTER TABLE lists ADD COLUMN before TEXT", "ALTER TABLE lists ADD COLUMN before_set INTEGER",
            "ALTER TABLE lists ADD COLUMN before_whole INTEGER", "UPDATE lists SET (before, before_set, before_whole) = (SELECT state, page_set, whole FROM kept)",
            "DROP TABLE kept", "DROP INDEX records_of_list", "DROP TABLE records", "DROP TABLE refusals", "DROP TABLE ledger",
            "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT, who TEXT, what TEXT, list TEXT, serial INTEGER, digest TEXT, outcome TEXT, detail TEXT)",
            "INSERT INTO events VALUES (NULL, '2026-01-01T00:00:00Z', 'me', 'load', 'a', 1, 'ab', 'accepted', 'x'), (NULL, '2026-01-02T00:00:00Z', 'me', 'refuse', 'a', NULL, NULL, 'refused', 'bad: y')",
            "PRAGMA user_version = 1",
        ):  # fmt: skip
            db.execute(statement)
    store = SqliteStore(path)
    assert await store.state("a") == was
    assert [release.state for release in await store.releases("a")] == [was, kept]
    assert [(each.what, each.detail, each.number) for each in await store.history()] == [("load", "x", 1), ("refuse", "bad: y", None)]
    assert await holds(store)
    assert (await store.rollback("a", seen=2)).content_digest == kept.content_digest
    await store.close()


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


class TestCommand:
    def test_refusals_are_counted(self, site):
        assert "3 times since 20" in site.eir("history").stdout

    @pytest.mark.parametrize(
        ("since", "begin"), [("", None), ("2020-01-01", "2020-01-01T00:00:00Z"), ("2020-01-01T07:00:00Z", "2020-01-01T07:00:00Z")]
    )
    def test_a_time(self, since, begin):
        assert record._begin(since) == begin
        assert record._begin("1d") < NOW

    def test_since(self, site):
        assert len(site.json("history", "--since", f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%d}")) == 3
        assert site.json("history", "--since", "2100-01-01T00:00:00Z") == []
        assert "expected 2026-11-01" in site.eir("history", "--since", "yesterday", status=2).stderr

    def test_an_export_can_be_checked_by_hand(self, site):
        site.eir("history", "--export", site.folder / "record.jsonl")
        lines = (site.folder / "record.jsonl").read_text().splitlines()
        first, second, refused = map(json.loads, lines)
        assert (first["number"], second["number"], refused["count"]) == (1, 2, 3)
        assert second["before"] == hashlib.sha256(lines[0].encode()).hexdigest()

    def test_a_record_that_was_changed_is_found(self, site):
        assert site.eir("history", "--verify").stdout.startswith("the history holds: 2 records, 1 to 2, ")
        whole = site.json("history", "--verify")
        assert (whole["whole"], whole["records"], whole["refusals"], whole["copied"]) == (True, 2, 3, None)
        with contextlib.closing(sqlite3.connect(site.state / "lists.sqlite")) as db, db:
            db.execute("UPDATE records SET text = replace(text, 'load', 'lost') WHERE number = 1")
        done = site.eir("history", "--verify", status=1)
        assert done.stderr.startswith("record 1 is not the one that record 2 was written after: it was changed\n")

    def test_a_reload_is_on_record(self, site):
        site.start()
        site.configure(policy={"default": "greylisted"})
        site.eir("reload")
        until(lambda: site.json("history")[-1]["what"] == "reload")
        found = site.json("history")[-1]
        assert found["detail"] == "changed: policy"
        assert found["digest"] == hashlib.sha256(site.path.read_bytes()).hexdigest()
        assert "@" in found["who"]
