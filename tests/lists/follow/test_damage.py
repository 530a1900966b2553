"""A damaged list harms no other: whatever stands in its place in a store, the lists beside it are followed, and its own memory stays."""

import asyncio
import contextlib
import json
from dataclasses import asdict, replace

import pytest
from simulated.follower import Node
from simulated.store_content import page, pages_of, state, until

from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.stores import sqlite
from eir.lists.stores.redis import RedisStore, link
from eir.lists.stores.sqlite import SqliteStore

A, B = pages_of([1, 2, 5 * PAGE_KEYS]), pages_of([3])
DEEP = "[" * 100_000 + "]" * 100_000
LONG_BYTES = 3 << 20
"""Longer than what the stores take here."""
STATE = asdict(state(A, generation=1))


def with_state(**fields):
    return json.dumps(STATE | fields)


class Redis:
    """A list in Redis, damaged by hand."""

    def __init__(self, server):
        self.server, self.store = server, RedisStore(server.url)

    def _set(self, field, value):
        self.server.command("HSET", "eir:{a}:state", field, value)
        self.server.command("HSET", "eir:{a}:state", "change", "other")

    def state(self, text):
        self._set("state", text)

    def value(self, content):
        name = self.server.command("HGET", "eir:{a}:state", "set").split(b"\r\n")[1].decode()
        self.server.command("HSET", f"eir:{{a}}:set:{name}", "5", content)
        self.state(with_state(generation=2, content_digest="0" * 64))

    def page_number(self):
        name = self.server.command("HGET", "eir:{a}:state", "set").split(b"\r\n")[1].decode()
        self.server.command("HSET", f"eir:{{a}}:set:{name}", str(2**70), "x")
        self._set("fields", 3)
        self.state(with_state(generation=2, content_digest="0" * 64))

    def changes(self):
        self.server.command("XADD", "eir:{a}:changes", "2-0", "before", "1", "pages", (2**63).to_bytes(8, "little"))
        self.state(with_state(generation=2, content_digest="0" * 64))

    def wrong_type(self):
        self.server.command("DEL", "eir:{a}:state")
        self.server.command("SET", "eir:{a}:state", "no hash")

    def deep_past(self):
        self._set("past", DEEP)

    def no_log(self):
        self.server.command("SET", "eir:{a}:changes", "no stream")


class Sqlite:
    """The same in SQLite."""

    def __init__(self, folder):
        self.path = folder / "lists.sqlite"
        self.store = SqliteStore(self.path)

    def _do(self, statement, *values):
        with contextlib.closing(sqlite.file.sqlite3.connect(self.path)) as db, db:
            db.execute(statement, values)

    def state(self, text):
        self._do("UPDATE lists SET state = ?, generation = 2 WHERE name = 'a'", text)

    def value(self, content):
        self._do(
            "UPDATE pages SET keys = ? WHERE id = (SELECT page_set << 37 | 5 FROM lists WHERE name = 'a')", content
        )
        self.state(with_state(generation=2, content_digest="0" * 64))

    def changes(self):
        self._do("INSERT INTO changes VALUES ('a', 1, 2, ?)", (2**63).to_bytes(8, "little"))
        self.state(with_state(generation=2, content_digest="0" * 64))

    def wrong_type(self):
        self.state(b"\xff\x00")

    def deep_past(self):
        self._do("INSERT INTO kept VALUES ('a', 0, ?, 1, 1, ?)", DEEP, DEEP)


DAMAGE = {
    "deep JSON": lambda damaged: damaged.state(DEEP),
    "wrong type": lambda damaged: damaged.wrong_type(),
    "deep past": lambda damaged: damaged.deep_past(),
    "long state": lambda damaged: damaged.state(with_state(kind="x" * LONG_BYTES)),
    "long page": lambda damaged: damaged.value(b"x" * LONG_BYTES),
    "entries of a wrong type": lambda damaged: damaged.state(with_state(entries=[1])),
    "entries below 0": lambda damaged: damaged.state(with_state(entries=-1)),
    "generation 10^400": lambda damaged: damaged.state(with_state(generation=10**400)),
    "generation 2^63": lambda damaged: damaged.state(with_state(generation=1 << 63)),
    "changes of impossible pages": lambda damaged: damaged.changes(),
}


@pytest.fixture(autouse=True)
def bounds(monkeypatch):
    monkeypatch.setattr(link, "VALUE_BYTES_MAX", 1 << 20)
    monkeypatch.setitem(sqlite.reading.BOUND, "most", 1 << 20)
    monkeypatch.setattr(sqlite.writing, "VALUE_BYTES_MAX", 1 << 20)


@pytest.fixture(params=["SQLite", "Redis"])
async def damaged(request, tmp_path):
    if request.param == "Redis":
        one = Redis(request.getfixturevalue("server"))
        one.server.flush()
    else:
        one = Sqlite(tmp_path)
    await one.store.replace("a", state(A), A, seen=0)
    await one.store.replace("b", state(A), A, seen=0)
    yield one
    await one.store.close()


async def other_is_followed(node, store, serial):
    await store.replace("b", state(B, serial=serial), B, seen=serial - 1)
    await until(lambda: node.index.lists["b"].state.serial == serial)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_the_memory_of_the_damaged_list_stays_and_the_other_is_followed(damaged, damage):
    async with Node(damaged.store, {"a": "devices", "b": "devices"}) as node:
        await asyncio.to_thread(damage, damaged)
        await other_is_followed(node, damaged.store, 2)
        if damage is not DAMAGE["deep past"]:  # which nobody reads who follows
            await until(lambda: node.follower.errors.keys() & {"corrupt", "digest"})
        await other_is_followed(node, damaged.store, 3)
        assert list(node.index.lists["a"]) == [1, 2, 5 * PAGE_KEYS]
        assert node.follower.up
        assert not node.follower.errors["internal"]
    late = Node(damaged.store, {"a": "devices", "b": "devices"})
    await late.follower.start()
    assert late.index.lists["b"].state.serial == 3
    assert not late.follower.errors["internal"]


@pytest.mark.parametrize("damaged", ["Redis"], indirect=True)  # a row id of SQLite has no room for it
async def test_a_page_number_that_cannot_be(damaged):
    async with Node(damaged.store, {"a": "devices", "b": "devices"}) as node:
        damaged.page_number()
        await until(lambda: node.follower.errors["corrupt"])
        await other_is_followed(node, damaged.store, 2)
        assert not node.follower.errors["internal"]


@pytest.mark.parametrize("damaged", ["Redis"], indirect=True)  # SQLite's log is a table
async def test_a_log_of_changes_that_is_none_holds_up_nobody_and_is_begun_anew(damaged):
    async with Node(damaged.store, {"a": "devices", "b": "devices"}) as node:
        damaged.no_log()
        await other_is_followed(node, damaged.store, 2)
        assert node.follower.up
        assert not node.follower.errors
        for serial in (2, 3):
            await damaged.store.replace("a", state(B, serial=serial), B, seen=serial - 1)
            await node.reaches(serial)
        assert [step.after for step in await damaged.store.changes("a", 2)] == [3]


async def test_the_count_of_entries_costs_no_memory(damaged):
    """The pages are right, so the list comes into force; how many entries it says it has is believed for nothing large."""
    async with Node(damaged.store, {"a": "devices", "b": "devices"}) as node:
        damaged.state(with_state(generation=2, entries=10**15, content_digest=state(A).content_digest))
        await until(lambda: node.generation("a") == 2)
        new = [*A, page(7, [1])]
        await damaged.store.amend("a", replace(state(new), entries=10**15), [page(7, [1])], seen=2)
        await until(lambda: node.generation("a") == 3)
        await damaged.store.replace("a", replace(state(B, serial=4), entries=10**15), B, seen=3)
        await until(lambda: node.keys("a") == [3])
        await other_is_followed(node, damaged.store, 2)
        assert not node.follower.errors


@pytest.mark.parametrize("damaged", ["Redis"], indirect=True)  # SQLite has no names without lists
async def test_names_of_other_lists_cost_nothing(damaged):
    def commands():
        return int(damaged.server.command("INFO", "stats").split(b"total_commands_processed:")[1].split(b"\r\n")[0])

    damaged.server.command("SADD", "eir:lists", *(f"stray-{number}" for number in range(20_000)))
    before = commands()
    async with Node(damaged.store, {"a": "devices", "b": "devices"}) as node:
        await other_is_followed(node, damaged.store, 2)
    assert commands() - before < 500
