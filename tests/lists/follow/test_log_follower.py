"""Following lists that are logs: what comes into force, and what happens when the store fails, loses data, forks or is damaged."""

import asyncio
import csv
from dataclasses import replace

import groups
import pytest
from follower import AWAY, QUICK, FaultyLogStore, LogNode, Recorder, execute, snapshot
from simulated import servers
from simulated.store_content import Altered, Lists, until

from eir.errors import StoreError
from eir.lists.follow import log_follower as following
from eir.lists.follow import write_back
from eir.lists.follow.list_copy import copied_heads
from eir.lists.follow.list_reader import ListReader
from eir.lists.follow.write_back import abandon, refuse_lost
from eir.lists.log import writer as writing
from eir.lists.log.change import Head
from eir.lists.log.reader import read_content
from eir.lists.stores import redis as redis_store
from eir.lists.stores import sqlite as sqlite_store
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.columns import REASONS


@pytest.fixture(scope="module")
def running():
    with groups.started(servers.Server) as server:
        yield server


@pytest.fixture(params=["sqlite", *(["redis"] if "redis" in servers.programs() else [])])
async def store(request, tmp_path, running):
    if request.param == "redis":
        running("redis").flush()
        opened = RedisStore(running("redis").url)
    else:
        opened = SqliteStore(tmp_path / "lists.sqlite")
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite(tmp_path):
    opened = SqliteStore(tmp_path / "lists.sqlite")
    yield opened
    await opened.close()


@pytest.fixture
def lists(store):
    return Lists(store)


async def flush(store):
    if isinstance(store, RedisStore):
        await store.link.execute("FLUSHALL", key="eir:lists")
    else:
        for table in ("heads", "log", "parts"):
            await execute(store, f"DELETE FROM {table}")


async def evict(store, name="own"):
    """Lose the head of a list, and nothing else."""
    if isinstance(store, RedisStore):
        await store.link.execute("DEL", redis_store.list_key(name, "head"))
    else:
        await execute(store, "DELETE FROM heads WHERE list = ?", name)


async def stored(store, name="own"):
    return await read_content(store, name, (await store.heads())[name])


async def keys_in(store, name="own"):
    return (await stored(store, name)).table.rows().keys.tolist()


class TestFollowing:
    async def test_each_change_comes_into_force_and_is_recorded_with_its_rows(self, store, lists, tmp_path):
        async with LogNode(store, tmp_path) as node:
            assert node.follower.missing == ("own",)
            await lists.load([1, 2])
            await node.has(1, 2)
            await lists.change([3], [1])
            await node.has(2, 3)
            await lists.load([7], what="rollback")
            await node.has(7)
            await node.is_level()
            assert node.journal.whats() == ["load", "add", "rollback"]
            assert node.follower.up
            assert not node.follower.errors
            assert copied_heads(tmp_path / "copies") == {"own": node.head()}

    async def test_a_node_that_comes_later_records_all_that_the_log_has(self, store, lists, tmp_path):
        await lists.load([1, 2])
        await lists.change([3], [1])
        await lists.change([4])
        async with LogNode(store, tmp_path) as node:
            await node.has(2, 3, 4)
            assert node.journal.whats() == ["load", "add", "add"]
            assert all(parts for parts, _ in [*node.journal.rows.values()][1:])

    async def test_a_load_is_followed_as_soon_as_the_store_reports_it(self, store, lists, tmp_path):
        async with LogNode(store, tmp_path, pauses=replace(QUICK, wait_s=3600.0, answer_s=3600.0)) as node:
            await lists.load([1])
            await node.has(1)
            node.follower.apply({"own": "devices", "other": "devices"})
            await lists.load([5], name="other")
            await node.has(5, name="other")

    async def test_a_list_of_another_kind_than_configured_is_not_in_force(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
        async with LogNode(store, tmp_path, {"own": "pairs"}) as node:
            assert node.follower.missing == ("own",)
            assert node.follower.errors["kind"] == 1
            assert node.follower.errors["copy_kind"] == 1
            assert node.follower.up

    async def test_a_start_without_the_store_answers_from_the_copy(self, store, lists, tmp_path):
        await lists.load([1], serial=42)
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
        faulty = FaultyLogStore(store)
        faulty.fail = AWAY
        async with LogNode(faulty, tmp_path, ("own", "new")) as node:
            assert node.keys() == [1]
            assert (node.head().serial, node.follower.up, node.follower.from_copy) == (42, False, {"own"})
            assert node.follower.missing == ("new",)
            await lists.load([2], serial=43)
            faulty.fail = None
            await node.has(2)
            await node.waits()
            assert node.follower.up
            assert not node.follower.from_copy
            assert "store_back" in node.said()

    async def test_a_start_builds_the_newest_state_alone(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
        await lists.change([2])
        node = LogNode(store, tmp_path)
        await node.follower.start()
        assert node.switched == [("own", 2, [1, 2])]
        assert not node.follower.from_copy

    async def test_a_list_in_force_is_not_built_again(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as before:
            await before.is_level()
        node = LogNode(store, tmp_path)
        node.follower.accept("own", *before.contents["own"])
        async with node:
            await node.waits()
            assert (node.built, node.switched) == (0, [])
            await lists.change([2])
            await node.has(1, 2)
            assert node.built == 1

    async def test_an_image_that_cannot_be_built_leaves_the_list_in_force(self, store, lists, tmp_path):
        fails = []

        def build(table):
            if fails:
                raise fails[0]
            return table

        async with LogNode(store, tmp_path, build=build) as node:
            await lists.load([1])
            await node.has(1)
            for fault, cause in ((OSError(27, "File too large"), "image"), (ZeroDivisionError("a bug"), "internal")):
                fails.append(fault)
                await lists.change([*range(10, 10 + len(node.switched))])
                await until(lambda cause=cause: node.follower.errors[cause] > 1)
                assert node.switched[-1][1] < (await stored(store)).head.generation
                fails.clear()
                await node.is_level()

    async def test_a_full_disk_keeps_no_list_from_coming_into_force(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
            full = StoreError("full", "no room")
            save, journal = node.follower._lists["own"].copy.save, node.journal

            def no_room(*_):
                raise full

            node.follower._lists["own"].copy.save, journal.fails = no_room, True
            await lists.change([2])
            await node.has(1, 2)
            await until(lambda: node.follower.errors["copy_full"] and node.follower.errors["journal"])
            assert node.follower.copy_faults == {"own": "no room"}
            assert {"copy_failed", "journal_failed"} <= {*node.said()}
            await lists.change([3])
            await node.has(1, 2, 3)
            node.follower._lists["own"].copy.save, journal.fails = save, False
            await node.is_level()
            await until(lambda: not node.follower.copy_faults)
            assert journal.whats() == ["load", "add", "add"]

    async def test_changes_of_a_feed_are_applied_together(self, store, lists, tmp_path):
        async with LogNode(store, tmp_path) as node:
            await lists.load([0])
            await node.has(0)
            for key in range(1, 60):
                await lists.change([key], what="feed")
            await node.has(*range(60))
            assert len(node.switched) < 45
            await node.is_level()
            assert len(node.journal.changes) == 60

    async def test_the_store_away_leaves_the_list_in_force(self, store, lists, tmp_path):
        faulty = FaultyLogStore(store)
        await lists.load([1])
        async with LogNode(faulty, tmp_path) as node:
            faulty.fail = AWAY
            await until(lambda: node.follower.errors["refused"] > 2)
            assert (node.follower.up, node.keys()) == (False, [1])
            assert node.said().count("store_failed") == 1
            faulty.fail = None
            await lists.change([2])
            await node.has(1, 2)

    async def test_a_store_that_hangs_is_given_up_in_time(self, store, lists, tmp_path):
        faulty = FaultyLogStore(store)
        await lists.load([1])
        async with LogNode(faulty, tmp_path, pauses=replace(QUICK, wait_s=0.0, answer_s=0.2)) as node:
            faulty.hang = asyncio.Event()
            await until(lambda: node.follower.errors["timeout"] > 1)
            assert (node.follower.up, node.keys()) == (False, [1])
            faulty.hang.set()
            await node.waits()

    async def test_a_list_that_the_configuration_removes_is_forgotten(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await flush(store)
            await until(lambda: node.follower.lost or "store_healed" in node.said())
            node.follower.apply({})
            assert (node.follower.lost, node.follower.missing, node.follower.held) == ({}, (), {})


LOSSES = {"flushed": flush, "evicted head": evict}


class TestLost:
    @pytest.mark.parametrize("serial", [0, 3], ids=["local", "signed"])
    @pytest.mark.parametrize("how", [*LOSSES, "older snapshot"])
    async def test_it_is_written_back_once_and_all_nodes_follow(self, store, lists, tmp_path, how, serial):
        await lists.load([1], serial=serial)
        restore = await snapshot(store)
        await lists.load([1, 2], serial=serial + 1 if serial else 0)
        async with LogNode(store, tmp_path / "a", who="a") as one, LogNode(store, tmp_path / "b", who="b") as two:
            await one.is_level()
            await two.is_level()
            held = one.head()
            await (restore() if how == "older snapshot" else LOSSES[how](store))
            await until(lambda: "store_healed" in one.said() + two.said())
            await one.is_level()
            await two.is_level()
            assert await keys_in(store) == one.keys() == two.keys() == [1, 2]
            assert [keys for _, _, keys in one.switched] == [[1, 2]] * len(one.switched), "no phone is free in between"
            head = one.head()
            assert (head.content, head.mark, head.reasons) == (held.content, held.mark, held.reasons)
            assert head.generation > held.generation
            change = (await store.log("own", 0))[-1].change
            assert (change.what, change.continues) == ("heal", held.digest)
            assert {change.who} <= {"a", "b"}
            for node in (one, two):
                assert node.follower.errors["lost_data"] <= 1
                assert node.journal.whats()[-1] == "heal"
                assert not node.follower.lost
            await lists.change([3])
            await one.has(1, 2, 3)
            await two.has(1, 2, 3)

    async def test_not_unless_it_is_wanted(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path, heal=False) as node:
            await flush(store)
            await until(lambda: node.follower.lost)
            moment = node.follower.in_step_at
            await asyncio.sleep(10 * QUICK.heal_s)
            assert await store.heads() == {}
            assert (node.keys(), node.follower.in_step_at, node.follower.lost) == ([1], moment, {"own": "nothing"})
            assert node.said().count("store_lost_data") == 1
            assert node.follower.errors["lost_data"] == 1
        async with LogNode(store, tmp_path, heal=False) as node:
            assert (node.keys(), node.follower.from_copy) == ([1], {"own"})
        async with LogNode(store, tmp_path) as node:
            await until(lambda: "store_mended" in node.said())

    async def test_a_node_that_was_behind_cannot_take_the_newer_rows_away(self, store, lists, tmp_path):
        await lists.load([1])
        behind = LogNode(store, tmp_path / "behind", who="behind")
        await behind.follower.start()
        await lists.change([2])
        async with LogNode(store, tmp_path / "ahead", who="ahead", heal=False) as ahead:
            await ahead.is_level()
            await flush(store)
            while "store_healed" not in behind.said():
                await behind.follower._step()
            ahead.follower._heals = True
            async with behind:
                await ahead.is_level()
                await behind.is_level()
            assert await keys_in(store) == ahead.keys() == behind.keys() == [1, 2]
            assert all(2 in keys for _, _, keys in ahead.switched)

    async def test_rows_that_the_store_got_since_stay(self, store, lists, tmp_path):
        """The write-back of a node that was behind, then a new row, then the node that was ahead."""
        await lists.load([1])
        behind = LogNode(store, tmp_path / "behind", who="behind")
        ahead = LogNode(store, tmp_path / "ahead", who="ahead")
        await behind.follower.start()
        await ahead.follower.start()
        await lists.change([2])
        await ahead.follower._step()
        await flush(store)
        while "store_healed" not in behind.said():
            await behind.follower._step()
        await lists.change([9], reason=2)
        async with ahead, behind:
            await ahead.has(1, 2, 9)
            await behind.has(1, 2, 9)
            head, table = ahead.contents["own"]
            assert [head.reasons[reason] for reason in table.rows().column(REASONS)] == ["stolen", "stolen", "lost"]

    @pytest.mark.parametrize("serial", [0, 1], ids=["local", "signed"])
    async def test_a_node_that_returns_after_a_write_back_keeps_what_came_since(self, sqlite, tmp_path, serial):
        lists = Lists(sqlite)
        await lists.load([1], serial=serial)
        behind = LogNode(sqlite, tmp_path / "behind", who="behind")
        ahead = LogNode(sqlite, tmp_path / "ahead", who="ahead")
        await behind.follower.start()
        await ahead.follower.start()
        await (lists.load([1, 2], serial=2) if serial else lists.change([2]))
        await ahead.follower._step()
        await flush(sqlite)
        while "store_healed" not in behind.said():
            await behind.follower._step()
        await (Lists(sqlite).load([9], serial=3) if serial else lists.change([9]))
        async with ahead:
            await ahead.has(*([9] if serial else [1, 2, 9]))
            await ahead.is_level()
            assert "list_forked" in ahead.said()
            assert "store_healed" not in ahead.said()

    async def test_changes_between_a_write_back_and_the_change_that_it_continues_are_applied_again(
        self, sqlite, tmp_path
    ):
        lists = Lists(sqlite)
        await lists.load([1])
        behind = LogNode(sqlite, tmp_path / "behind", who="behind")
        ahead = LogNode(sqlite, tmp_path / "ahead", who="ahead")
        await behind.follower.start()
        await ahead.follower.start()
        await lists.change([2])
        await ahead.follower._step()
        await execute(sqlite, "UPDATE log SET rows = x'00' WHERE generation = 2")
        async with behind:
            await behind.is_level()
            assert behind.keys() == [1]
            assert (await sqlite.log("own", 0))[1].change.digest[:16] in str(behind.events)
            await Lists(sqlite).change([7])
            async with ahead:
                await ahead.has(1, 2, 7)
                await ahead.is_level()
                assert not ahead.follower.lost_rows

    async def test_one_unreadable_change_takes_no_other_row_away(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        await lists.load([1])
        node = LogNode(sqlite, tmp_path)
        await node.follower.start()
        for key in (2, 3, 4):
            await lists.change([key], reason=2)
        await execute(sqlite, "UPDATE log SET rows = x'00' WHERE generation = 3")
        unreadable = (await sqlite.log("own", 0))[2].change
        async with node:
            await node.has(1, 2, 4)
            await node.is_level()
            head, table = node.contents["own"]
            assert [head.reasons[reason] for reason in table.rows().column(REASONS)] == ["stolen", "lost", "lost"]
            (line,) = node.follower.lost_rows["own"].read_text().splitlines()[1:]
            assert line.split(",")[:5:4] == [unreadable.digest[:16], "unknown"]
            assert unreadable.digest[:16] in str(node.events)

    async def test_rows_of_a_base_stay_if_the_head_is_lost(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        await lists.load([1])
        node = LogNode(sqlite, tmp_path)
        await node.follower.start()
        await lists.change([5])
        await lists.load([1, 5, 6], what="rollback")
        await lists.change([7])
        await evict(sqlite)
        async with node:
            await node.has(1, 5, 6, 7)
            await node.is_level()
            assert not node.follower.lost_rows

    async def test_a_content_that_is_damaged_in_memory_is_not_written_back(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path, heal=False) as node:
            held = node.follower._lists["own"].held
            node.follower._lists["own"].held = replace(held, head=replace(held.head, content="0" * 64))
            node.follower._heals = True
            await flush(store)
            await until(lambda: node.follower.errors["heal_corrupt"])
            assert await store.heads() == {}
            assert "restart the node" in node.follower.copy_faults["own"]

    async def test_a_new_release_after_the_loss_is_followed(self, store, lists, tmp_path):
        await lists.load([1], serial=3)
        async with LogNode(store, tmp_path, heal=False) as node:
            await flush(store)
            await until(lambda: node.follower.lost)
            await Lists(store).load([5], serial=4)
            await node.has(5)
            await node.is_level()
            assert "list_forked" in node.said()

    async def test_while_a_local_list_is_lost_writers_refuse_it_until_it_is_given_up(self, store, lists, tmp_path):
        await lists.load([1])
        await lists.change([2])
        async with LogNode(store, tmp_path, heal=False) as node:
            await node.is_level()
            held = copied_heads(tmp_path / "copies")["own"]
            refuse_lost("own", held, (await store.heads()).get("own"))
            refuse_lost("own", None, None)
            await flush(store)
            with pytest.raises(StoreError, match="eir lists abandon own --reason") as caught:
                refuse_lost("own", held, (await store.heads()).get("own"))
            assert caught.value.cause == "lost"
            change = await abandon(lists.writer("own"), held, "the list is wrong")
            assert (change.what, change.detail) == ("abandon", "the list is wrong")
            await node.has()
            await until(lambda: not node.follower.lost)
            assert await abandon(lists.writer("own"), held, "again") is None


class TestForked:
    """A failover that lost writes: the store goes back to a snapshot, and others write on."""

    async def fork(self, store, lists, tmp_path, *, lost, since, **settings):
        await lists.load([1, 2, 3])
        async with LogNode(store, tmp_path / "a", **settings) as node:
            await node.is_level()
            restore = await snapshot(store)
            for update in lost:
                await (lists.load if "keys" in update else lists.change)(**update)
            await node.is_level()
        await restore()
        others = Lists(store)
        for update in since:
            await others.change(**update)
        return LogNode(store, tmp_path / "a", journal=node.journal, **settings)

    async def test_a_lost_block_is_in_force_again_once(self, store, lists, tmp_path):
        node = await self.fork(
            store, lists, tmp_path, lost=[{"added": [8], "what": "feed"}], since=[{"added": [9], "reason": 2}]
        )
        async with node:
            await node.has(1, 2, 3, 8, 9)
            await node.is_level()
            assert all(8 in keys for _, _, keys in node.switched), "it was never free"
            applied = [entry.change for entry in await store.log("own", 0) if entry.change.what == "apply-again"]
            assert [(change.added, change.detail.partition(" of")[0]) for change in applied] == [(1, "feed")]
            assert applied[0].continues in {digest for _, digest in node.journal.changes}
            assert node.follower.errors["forked"] == 1
            assert ("own", "fork", 2, 2) in node.journal.gaps
            assert not node.follower.lost_rows
            assert node.journal.whats() == ["load", "feed", "add", "apply-again"]
        async with LogNode(store, tmp_path / "a", journal=node.journal) as again:
            await again.waits()
            assert "list_forked" not in again.said()

    async def test_two_nodes_apply_each_change_once(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path / "a", who="a") as one, LogNode(store, tmp_path / "b", who="b") as two:
            await one.is_level()
            await two.is_level()
            restore = await snapshot(store)
            for key in (5, 6, 7):
                await lists.change([key])
            await one.is_level()
            await two.is_level()
        await restore()
        await Lists(store).change([9])
        journals = one.journal, two.journal
        one, two = (
            LogNode(store, tmp_path / who, who=who, journal=journal)
            for who, journal in zip("ab", journals, strict=True)
        )
        async with one, two:
            await one.has(1, 5, 6, 7, 9)
            await two.has(1, 5, 6, 7, 9)
            applied = [
                entry.change.continues for entry in await store.log("own", 0) if entry.change.what == "apply-again"
            ]
            assert len(applied) == len({*applied}) == 3

    @pytest.mark.parametrize(
        ("lost", "since", "after"),
        [
            ({"added": [8]}, {"added": [8], "removed": ()}, [1, 2, 3, 8]),
            ({"removed": [2], "what": "remove"}, {"added": [9]}, [1, 3, 9]),
            # The present row wins if it was changed since: a freed phone is not blocked again, a blocked one not freed.
            ({"added": [2], "reason": 2}, {"removed": [2], "what": "remove"}, [1, 3]),
            ({"removed": [2], "what": "remove"}, {"added": [2], "reason": 2}, [1, 2, 3]),
        ],
    )
    async def test_the_present_row_wins_if_it_was_changed_since(self, store, lists, tmp_path, lost, since, after):
        async with await self.fork(store, lists, tmp_path, lost=[lost], since=[since]) as node:
            await node.is_level()
            assert node.keys() == await keys_in(store) == after
            assert not node.follower.lost_rows

    async def test_an_interrupted_application_still_knows_the_rows_that_were_removed_since(self, sqlite, tmp_path):
        node = await self.fork(
            sqlite, Lists(sqlite), tmp_path, lost=[{"added": [7]}, {"added": [8]}], since=[{"removed": [8], "what": "remove"}]
        )  # fmt: skip
        applied = []

        async def commit(name, head, entry, **fields):
            applied.append(entry.change.what)
            if applied == ["apply-again"] * 2:
                raise AWAY
            await sqlite.commit(name, head, entry, **fields)

        node.follower._store = Altered(sqlite, commit=commit)
        async with node:
            await node.has(1, 2, 3, 7)
            await node.is_level()
            assert applied == ["apply-again"] * 3
            assert node.follower.errors["apply_refused"] == 1
            assert not node.follower.lost_rows

    async def test_a_change_that_is_too_old_goes_to_a_file(self, store, lists, tmp_path, monkeypatch):
        node = await self.fork(store, lists, tmp_path, lost=[{"added": [8], "reason": 2}], since=[{"added": [9]}])
        monkeypatch.setattr(write_back, "APPLY_AGAIN_MAX", -write_back.APPLY_AGAIN_MAX)
        async with node:
            await node.has(1, 2, 3, 9)
            path = node.follower.lost_rows["own"]
            (row,) = csv.DictReader(path.read_text().splitlines())
            assert [*row] == [*write_back.LOST_COLUMNS]
            assert [row[column] for column in ("what", "effect", "imei", "reason")] == [
                "add",
                "added",
                "00000000000008",
                "lost",
            ]
            assert path.stat().st_mode & 0o777 == 0o600
            assert "lost_changes_kept" in node.said()
            assert ("own", "fork", 2, 2) in node.journal.gaps

    async def test_without_the_right_to_write_the_lost_rows_go_to_a_file(self, store, lists, tmp_path):
        node = await self.fork(store, lists, tmp_path, lost=[{"added": [8]}], since=[{"added": [9]}])

        async def claim(*_):
            raise StoreError("noperm", "this user may only read")

        node.follower._store.claim = claim
        async with node:
            await node.has(1, 2, 3, 9)
            assert node.follower.up
            assert node.follower.errors["apply_noperm"] == 1
            assert "00000000000008" in node.follower.lost_rows["own"].read_text()

    async def test_a_copy_that_is_older_than_the_list_in_force_is_not_written_back(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as before:
            await before.is_level()
        await lists.change([2])
        newer = LogNode(store, tmp_path / "newer")
        await newer.follower.start()
        await flush(store)
        node = LogNode(store, tmp_path)
        node.follower.accept("own", *newer.contents["own"])
        async with node:
            await until(lambda: node.follower.errors["heal_behind"])
            assert await store.heads() == {}
            assert (node.switched, node.follower.missing) == ([], ())
            assert "is older than the list in force" in node.follower.copy_faults["own"]

    async def test_a_change_without_rows_raises_an_alert_that_names_it(self, store, lists, tmp_path):
        lost = [{"keys": [1, 2, 3, 8], "what": "rollback"}]
        async with await self.fork(store, lists, tmp_path, lost=lost, since=[{"added": [9]}]) as node:
            await node.has(1, 2, 3, 9)
            (digest,) = [
                digest for _, digest in node.journal.changes if node.journal.changes["own", digest].what == "rollback"
            ]
            (detail,) = [fields["detail"] for event, fields in node.events if event == "lost_changes_kept"]
            assert digest[:16] in detail
            assert node.follower.lost_rows["own"].read_text().splitlines()[1].split(",")[3:5] == ["rollback", "unknown"]

    async def test_a_change_before_a_lost_write_back_is_applied_again(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
            restore = await snapshot(store)
            await lists.change([5])
            await node.is_level()
            await restore()
            await until(lambda: "store_healed" in node.said())
            await node.is_level()
        await restore()
        await Lists(store).change([9])
        async with LogNode(store, tmp_path, journal=node.journal) as again:
            await again.has(1, 5, 9)
            assert not again.follower.lost_rows

    async def test_a_signed_list_follows_the_stored_chain(self, store, lists, tmp_path):
        await lists.load([1], serial=1)
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
            restore = await snapshot(store)
            await lists.load([2], serial=2)
            await node.is_level()
            await node.__aexit__()
            await restore()
            await Lists(store).load([3], serial=3)
            again = LogNode(store, tmp_path, journal=node.journal)
            async with again:
                await again.has(3)
                assert "list_forked" in again.said()


class TestStoppedForLong:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        """A short log: it keeps two records beside those with a base, and a base comes with each ten rows."""
        for module in (sqlite_store, redis_store):
            monkeypatch.setattr(module, "RECORDS_KEPT", 2)
        monkeypatch.setattr(writing, "BASE_ROWS", 10)
        monkeypatch.setattr(writing, "LOCAL_KEPT", -writing.LOCAL_KEPT)

    @pytest.mark.parametrize("serial", [0, 1], ids=["local", "signed"])
    async def test_a_node_that_was_stopped_reads_the_base_and_records_the_gap(self, sqlite, tmp_path, serial):
        lists = Lists(sqlite, keep=1)
        await lists.load(range(30), serial=serial, what="load" if serial else "feed")
        await lists.change([100], what="feed")
        async with LogNode(sqlite, tmp_path) as node:
            await node.is_level()
        held = node.head()
        for number in range(2, 62):
            if serial:
                await lists.load(range(number, number + 30), serial=number)
            else:
                await lists.change([200 + number], what="feed")
        async with LogNode(sqlite, tmp_path, journal=node.journal) as again:
            await again.is_level()
            assert again.keys() == await keys_in(sqlite)
            assert ("own", "gap", held.generation, again.head().generation) in node.journal.gaps
            assert "list_forked" not in again.said()


class TestDamage:
    """A damaged record concerns one list: it stays in force, the others are followed, and after some tries it is written back."""

    @pytest.mark.parametrize(
        ("statement", "after"),
        [
            ("UPDATE heads SET head = '[1' WHERE list = 'own'", [1, 2]),
            ("UPDATE heads SET head = replace(head, '\"entries\":2', '\"entries\":9') WHERE list = 'own'", [1, 2]),
            ("UPDATE log SET rows = x'00' WHERE list = 'own' AND generation = 2", [1]),
            (
                "UPDATE log SET change = replace(change, 'eir@host', 'mallory') WHERE list = 'own' AND generation = 2",
                [1],
            ),
            ("DELETE FROM log WHERE list = 'own' AND generation = 2", [1]),
        ],
    )
    async def test_in_sqlite(self, sqlite, tmp_path, statement, after):
        lists = Lists(sqlite)
        for name in ("own", "other"):
            await lists.load([1], name=name)
        faulty = FaultyLogStore(sqlite)
        async with LogNode(faulty, tmp_path, ("own", "other")) as node:
            await node.is_level()
            faulty.fail = AWAY
            await until(lambda: not node.follower.up)
            await lists.change([2])
            await execute(sqlite, statement)
            faulty.fail = None
            await lists.change([5], name="other")
            await node.has(1, 5, name="other")
            await until(lambda: node.follower.errors["corrupt"])
            assert node.follower.up
            await until(lambda: "store_healed" in node.said())
            await until(lambda: not node.follower.lost)
            assert node.keys() == await keys_in(sqlite) == after
            assert ("own" in node.follower.lost_rows) == (after == [1])
            assert node.said().count("store_lost_data") == 1
            await Lists(sqlite).change([7])
            await node.has(*after, 7)

    async def test_a_damaged_base_is_not_read(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        for name in ("own", "other"):
            await lists.load([1], name=name)
        (entry,) = await sqlite.log("own", 0)
        async with LogNode(sqlite, tmp_path / "a", ("own", "other")) as holder:
            await holder.is_level()
            await execute(sqlite, "UPDATE parts SET octets = x'00' WHERE id = ? AND number = 1", entry.change.base_id)
            async with LogNode(sqlite, tmp_path / "b", ("own", "other")) as fresh:
                await fresh.has(1, name="other")
                await until(lambda: fresh.follower.errors["corrupt"] > following.DAMAGE_TRIES)
                assert fresh.follower.missing == ("own",)
                await lists.change([2])
                await holder.has(1, 2)
                await lists.load([5, 6])
                await fresh.has(5, 6)

    async def test_the_change_of_the_damaged_rows_comes_back_from_the_node_that_has_it(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        await lists.load([1])
        faulty = FaultyLogStore(sqlite)
        async with LogNode(sqlite, tmp_path / "a") as whole, LogNode(faulty, tmp_path / "b", who="b") as behind:
            await behind.is_level()
            faulty.fail = AWAY
            await until(lambda: not behind.follower.up)
            await lists.change([2])
            await whole.is_level()
            await execute(sqlite, "UPDATE log SET rows = x'00' WHERE generation = 2")
            faulty.fail = None
            await until(lambda: "store_healed" in behind.said())
            await behind.has(1, 2)
            await whole.is_level()
            assert all(2 in keys for _, _, keys in whole.switched[1:])

    async def test_in_redis_a_head_of_another_type(self, running, tmp_path):
        if "redis" not in servers.programs():
            pytest.skip("redis-server is not installed")
        server = running("redis")
        server.flush()
        store = RedisStore(server.url)
        lists = Lists(store)
        for name in ("own", "other"):
            await lists.load([1], name=name)
        async with LogNode(store, tmp_path, ("own", "other")) as node:
            await node.is_level()
            server.command("DEL", "eir:{own}:head")
            server.command("SET", "eir:{own}:head", "mine")
            await lists.change([2], name="other")
            await node.has(1, 2, name="other")
            await until(lambda: node.follower.errors["heal_corrupt"])
            assert (node.keys(), node.follower.up) == ([1], True)
        await store.close()

    async def test_a_damaged_copy_concerns_its_list_alone(self, store, lists, tmp_path):
        for name in ("own", "other"):
            await lists.load([1], name=name)
        async with LogNode(store, tmp_path, ("own", "other")) as node:
            await node.is_level()
            await node.is_level("other")
        path = tmp_path / "copies" / "own.copy"
        octets = path.read_bytes()
        path.write_bytes(octets[:-1] + b"x")
        faulty = FaultyLogStore(store)
        faulty.fail = AWAY
        async with LogNode(faulty, tmp_path, ("own", "other")) as node:
            assert (node.follower.missing, node.keys("other")) == (("own",), [1])
            assert node.follower.errors["copy_corrupt"] == 1
            assert "is damaged" in node.follower.copy_faults["own"]
            faulty.fail = None
            await node.is_level()
            assert path.read_bytes() == octets
            await until(lambda: not node.follower.copy_faults)


class TestNewest:
    """The list in force is never older than the newest of store, copy and image."""

    async def test_a_list_that_a_reload_adds_comes_from_the_copy_while_the_store_is_away(self, sqlite, tmp_path):
        await Lists(sqlite).load([1])
        async with LogNode(sqlite, tmp_path) as node:
            await node.is_level()
        faulty = FaultyLogStore(sqlite)
        faulty.fail = AWAY
        async with LogNode(faulty, tmp_path, ()) as node:
            node.follower.apply({"own": "devices"})
            await node.has(1)
            assert (node.follower.up, node.follower.from_copy) == (False, {"own"})

    @pytest.mark.parametrize("serial", [0, 1], ids=["local", "signed"])
    @pytest.mark.parametrize("stored", [1, 2])
    async def test_an_image_that_is_newer_than_copy_and_store_stays(self, sqlite, tmp_path, serial, stored):
        lists, restores = Lists(sqlite), []
        for number in (1, 2, 3):
            await lists.load(range(number), serial=number * serial)
            restores.append(await snapshot(sqlite))
            if number == 1:
                async with LogNode(sqlite, tmp_path) as node:
                    await node.is_level()
        newer = LogNode(sqlite, tmp_path / "newer")
        await newer.follower.start()
        await restores[stored - 1]()
        node = LogNode(sqlite, tmp_path)
        node.follower.accept("own", *newer.contents["own"])
        async with node:
            await until(lambda: node.follower.errors["heal_behind"])
            assert node.switched == []
            assert node.follower.in_force["own"].generation == 3
            await restores[2]()
            await until(lambda: not node.follower.lost)
            await until(lambda: copied_heads(tmp_path / "copies")["own"].generation == 3)
            assert node.switched[-1:] == [] or node.keys() == [0, 1, 2]

    async def test_an_image_that_is_older_than_the_copy_is_replaced_while_the_store_is_away(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        await lists.load([1])
        async with LogNode(sqlite, tmp_path) as node:
            await node.is_level()
            older = node.contents["own"]
            await lists.change([2])
            await node.is_level()
        for heal in (False, True):  # the store is away, or has lost the list
            faulty = FaultyLogStore(sqlite)
            faulty.fail = None if heal else AWAY
            await flush(sqlite)
            again = LogNode(faulty, tmp_path, heal=False)
            again.follower.accept("own", *older)
            async with again:
                assert again.keys() == [1, 2]

    @pytest.mark.parametrize("what", ["load", "rollback"])
    async def test_a_reader_beside_the_node_reads_the_newer_copy(self, sqlite, tmp_path, what):
        lists = Lists(sqlite)
        await lists.load([1], serial=1)
        reader = ListReader(sqlite, tmp_path / "copies")

        async def keys():
            return (await reader.content("own")).table.rows().keys.tolist()

        assert await keys() == [1]
        await lists.load([1, 2], serial=2)
        restore = await snapshot(sqlite)
        await lists.load([3], what=what, state={"serial": 3 if what == "load" else 1})
        async with LogNode(sqlite, tmp_path) as node:
            await node.is_level()
        await restore()
        assert await keys() == [3]
        await flush(sqlite)
        assert await keys() == [3]

    async def test_changes_that_were_not_recorded_are_recorded_after_a_restart(self, sqlite, tmp_path):
        lists = Lists(sqlite)
        await lists.load([1])
        async with LogNode(sqlite, tmp_path) as node:
            await node.is_level()
            node.journal.fails = True
            await lists.change([2])
            await lists.change([3])
            await node.is_level()
        node.journal.fails = False
        await lists.change([4])
        async with LogNode(sqlite, tmp_path, journal=node.journal) as again:
            await again.has(1, 2, 3, 4)
            await again.is_level()
            assert again.journal.whats() == ["load", "add", "add", "add"]
            assert [parts is not None for parts, _ in again.journal.rows.values()][1:] == [True] * 3

    async def test_the_changes_of_a_node_keep_as_many_releases_as_the_list_is_configured_to(self, sqlite, tmp_path):
        lists = Lists(sqlite, keep=50)
        for name in ("own", "other"):
            for serial in range(1, 8):
                await lists.load(range(10 * serial), serial=serial, name=name)
        keep = {"own": 50, "other": 1}
        async with LogNode(sqlite, tmp_path, ("own", "other"), keep=keep.__getitem__) as node:
            for name in keep:
                await node.is_level(name)
                await evict(sqlite, name)
                await until(lambda name=name: name not in node.follower.lost and node.head(name).generation > 7)
                rows = await sqlite._file.rows("SELECT DISTINCT list, generation FROM parts")
                assert sum(row[0] == name for row in rows) == (8 if name == "own" else 3)


class TestKilled:
    """A node that is killed between two steps: store, journal, copy, in force."""

    async def test_between_store_and_copy(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
        await lists.change([2])
        stopped = LogNode(store, tmp_path, journal=node.journal)
        stopped.follower._save_copy = stopped.follower._switch = lambda *_: asyncio.sleep(0)
        await stopped.follower.start()
        assert node.journal.whats() == ["load", "add"]
        async with LogNode(store, tmp_path, journal=node.journal) as again:
            await again.is_level()
            assert again.keys() == [1, 2]
            assert node.journal.whats() == ["load", "add"]

    async def test_between_a_write_back_and_the_copy(self, store, lists, tmp_path):
        await lists.load([1])
        async with LogNode(store, tmp_path) as node:
            await node.is_level()
        await flush(store)
        stopped = LogNode(store, tmp_path, journal=node.journal, pauses=replace(QUICK, heal_s=0.0))
        stopped.follower._put_in_force = lambda *_: asyncio.sleep(0)
        await stopped.follower.start()
        await stopped.follower._step()
        assert (await store.heads())["own"].generation == 2
        async with LogNode(store, tmp_path, journal=node.journal) as again:
            await again.is_level()
            assert node.journal.whats() == ["load", "heal"]
            assert "list_forked" not in again.said()


def test_the_heads_of_a_host_without_a_node(tmp_path):
    assert copied_heads(tmp_path / "copies") == {}
    refuse_lost("own", Head(kind="devices", generation=9, highest_serial=1), None)
    assert Recorder().whats() == []
