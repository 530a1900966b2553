"""The record of first sightings over stores: sightings, merging, forgetting, devices that leave a list, and forged rows. Conformance rows 62 to 64, 67, 68."""

from datetime import UTC, datetime

import numpy as np
import pytest
import soak_first_seen
from simulated.first_sightings import NAME, REGISTERED, TODAY, SightingNode, level, register

from eir.device import device_key
from eir.lists.follow import learned
from eir.lists.follow.learned_state import read_state
from eir.lists.log.change import LEARN
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import DAY_S, WAS_LISTED, first_days, sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.table.columns import NO_ROWS, rows_of

TODAY_2020 = 18_300
ONE, TWO, THREE, FOUR = "35209900176148", "35209900176149", "35332811002233", "86123456789012"


NODE = SightingNode


async def content_of(store, name=NAME):
    head = (await store.heads()).get(name)
    return None if head is None else await read_content(store, name, head)


async def stored(store, name=NAME):
    """The stored devices with their first days."""
    content = await content_of(store, name)
    if content is None:
        return {}
    rows = content.table.rows()
    return {f"{key:014d}": day for key, day in zip(rows.keys.tolist(), first_days(rows).tolist(), strict=True)}


def keys_of(*devices):
    return np.array([*map(device_key, devices)], "<u8")


async def forge(store, *, added=None, removed=(), day=TODAY, seconds=0, lasts=None):
    """Write a change as a thief of the user `recorder` could. `added`: device → first day; `day`: day of the change's time."""
    now = datetime.fromtimestamp(day * DAY_S + DAY_S // 2 + seconds, UTC)
    added = added or {}
    rows = (
        sighted_rows(keys_of(*added), np.array([*added.values()], "<u4"), day if lasts is None else lasts)
        if added
        else NO_ROWS
    )
    writer = ListWriter(store, NAME, FIRST_SEEN, "thief@host", now=lambda: now)
    return await writer.write(lambda _: ListUpdate(what=LEARN, added=rows, removed=rows_of(keys_of(*removed))))


def said(node, event):
    return [fields for each, fields in node.faults if each == event]


class TestSightings:
    async def test_a_device_keeps_the_day_on_which_it_was_first_seen(self, node_on, started):
        node = await started()
        node.see(ONE, TWO)
        await node.round()
        node.today += 40
        node.see(ONE, THREE)
        await node.round()
        assert node.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY + 40} == await stored(node_on.store)
        head = (await node_on.store.heads())[NAME]
        assert (head.kind, head.entries) == (FIRST_SEEN, 3)
        assert (node.published[-1].content, node.published[-1].entries) == (head.content, 3)
        assert node.learned.first_days == {TODAY: 2, TODAY + 40: 1}
        assert not node.faults

    async def test_seeing_a_device_again_within_its_period_writes_nothing(self, node_on, started):
        node = await started()
        node.see(ONE)
        await node.round()
        before = await node_on.store.heads()
        node.see(ONE)
        await node.round(3)
        assert (await node_on.store.heads()).digests == before.digests

    async def test_a_restart_goes_on_with_what_is_stored(self, started):
        node = await started()
        node.see(ONE)
        await node.round()
        again = await started(today=TODAY + 5)
        assert again.days() == {ONE: TODAY}, "before its first round"
        again.see(ONE, TWO)
        await again.round()
        assert again.days() == {ONE: TODAY, TWO: TODAY + 5}

    async def test_a_device_that_was_not_seen_for_so_long_is_forgotten(self, started):
        node = await started(remember=100)
        node.see(ONE, TWO)
        await node.round()
        for day in range(0, 140, 20):
            node.today = TODAY + day
            node.see(TWO)
            await node.round()
        assert node.days() == {TWO: TODAY}

    async def test_a_clock_that_is_years_ahead_takes_only_a_part_of_the_record_a_day(self, started):
        node = await started(remember=100)
        node.see(*(f"{35209900000000 + number}" for number in range(3000)))
        await node.round()
        node.today += 2000
        await node.round(3)
        assert len(node.days()) == 2000

    async def test_conflicts_lose_nothing_and_count_no_quota_twice(self, node_on, started):
        """Another node writes between the read and the commit of each change."""
        node = await started(new_per_peer=3)
        other = await started("b")
        commit, times = node.store.store.commit, 3

        async def beaten(*args, **options):
            nonlocal times
            if times:
                times -= 1
                other.see(f"{86000000000000 + times}")
                await other.learned.round()
            return await commit(*args, **options)

        node.store.store.commit = beaten
        node.see(ONE, TWO, THREE)
        await node.round()
        node.see(FOUR)
        await node.round()
        assert {ONE, TWO, THREE} <= (await stored(node_on.store)).keys()
        assert FOUR not in node.days()
        assert len(node.days()) == 6

    async def test_a_store_that_is_away_gets_the_days_of_sightings_up_to_a_week_later(self, node_on, started):
        """The sightings wait on the disk of the node, over a restart."""
        node = await started()
        node.see(ONE)
        await node.round()
        node.store.is_away = True
        node.see(TWO)
        await node.round(2)
        assert node.days() == {ONE: TODAY, TWO: TODAY}, "the node's own image"
        assert node.learned.errors["refused"]
        assert {event for event, _ in node.faults} == {"store_failed"}
        again = node_on(today=TODAY + 6)
        again.store.is_away = True
        await again.start()
        assert again.days() == {ONE: TODAY, TWO: TODAY}
        again.see(THREE)
        await again.round()
        again.store.is_away = False
        await again.round()
        expected = {ONE: TODAY, TWO: TODAY, THREE: TODAY + 6}
        assert await stored(node_on.store) == expected == again.days()
        assert not len(read_state(again.learned._path).pending)

    async def test_sightings_that_waited_for_more_than_a_week_get_the_earliest_day_that_others_accept(self, started):
        node, other = await started(), await started("b")
        node.see(ONE)
        await level(node, other)
        node.store.is_away = True
        node.see(TWO)
        await node.round()
        node.store.is_away = False
        node.today = other.today = TODAY + 20
        await level(node, other)
        assert other.days() == {ONE: TODAY, TWO: TODAY + 13}
        assert not other.learned.refused

    async def test_a_damaged_file_of_waiting_sightings_is_reported(self, started):
        node = await started()
        node.see(ONE)
        await node.round()
        node.learned._path.write_bytes(b"{}\nx")
        again = await started()
        assert again.days() == {ONE: TODAY}
        assert "delete the file" in said(again, "copy_failed")[0]["detail"]


class TestQuota:
    async def test_above_the_limit_of_a_peer_nothing_is_recorded_and_nothing_is_evicted(self, started):
        node = await started(new_per_peer=3)
        node.see(ONE, TWO)
        await node.round()
        node.see(*(f"{35000000000000 + 7_000_000 * number}" for number in range(50)))
        node.see(ONE, TWO)
        node.see(THREE, FOUR, peer="other")
        await node.round()
        days = node.days()
        assert len(days) == 5
        assert {ONE, TWO, THREE, FOUR} < set(days)
        assert len(node.rejected["mme"]) == 49
        assert "other" not in node.rejected
        node.today += 1
        node.see("35000000000001")
        await node.round()
        assert node.days()["35000000000001"] == TODAY + 1

    async def test_the_limit_of_a_peer_survives_a_restart(self, started):
        node = await started(new_per_peer=3)
        node.see(ONE, TWO)
        await node.round()
        again = await started(new_per_peer=3)
        again.see(THREE, FOUR)
        await again.round()
        assert set(again.days()) == {ONE, TWO, THREE}
        tomorrow = await started(new_per_peer=3, today=TODAY + 1)
        tomorrow.see(FOUR)
        await tomorrow.round()
        assert tomorrow.days()[FOUR] == TODAY + 1

    async def test_confirmed_devices_have_room_of_their_own(self, started):
        node = await started(new_per_peer=1)
        node.see(ONE, TWO)
        node.see(THREE, confirmed=True)
        await node.round()
        assert set(node.days()) == {ONE, THREE}


class TestRegistered:
    """No second period: a device that leaves a registering list is on record with no first day."""

    async def test_a_registered_device_is_forgotten_and_gets_no_second_period(self, node_on, started):
        await register(node_on.store, [FOUR])
        node = await started()
        node.see(ONE, TWO, FOUR)
        await node.round()
        assert node.days() == {ONE: TODAY, TWO: TODAY}
        assert list(node.rejected) == [""]
        await register(node_on.store, [FOUR, ONE])
        await node.round()
        assert node.days() == {TWO: TODAY}
        node.today += 3
        await register(node_on.store, [FOUR])
        node.see(ONE)
        await node.round()
        assert node.days() == {ONE: WAS_LISTED, TWO: TODAY} == await stored(node_on.store)

    @pytest.mark.parametrize("rows", [None, "whole"])
    async def test_a_list_that_changed_while_all_nodes_were_stopped(self, node_on, started, rows):
        """Row 67. `whole`: the change has a base in place of rows."""
        await register(node_on.store, [ONE, TWO])
        node = await started()
        await node.round()
        await register(node_on.store, [TWO], rows=rows)
        again = await started(today=TODAY + 1)
        again.see(ONE)
        await again.round()
        assert again.days() == {ONE: WAS_LISTED}

    @pytest.mark.parametrize("rows", [None, "whole"])
    async def test_a_follower_that_was_killed_between_switch_and_merge(self, node_on, started, rows):
        """Row 67. `whole`: only the older copy shows the device that left."""
        await register(node_on.store, [ONE, TWO])
        node = await started()
        await node.round()
        await register(node_on.store, [TWO], rows=rows)
        await node.follow()  # its copy has the new list; the stored record lacks the device
        again = await started(today=TODAY + 1)
        assert again.days() == {ONE: WAS_LISTED}, "before its first round"
        again.see(ONE)
        await again.round()
        assert again.days() == {ONE: WAS_LISTED} == await stored(node_on.store)

    @pytest.mark.parametrize("name", ["a", "b"])
    @pytest.mark.parametrize("rows", [None, "whole"])
    async def test_a_follower_that_was_killed_before_it_read_the_stored_departure(self, node_on, started, rows, name):
        """Row 67. Node `name` stores the device that left: a itself, or another node."""
        if name == "b" and node_on.kind == "sqlite":
            pytest.skip("one host has one node")
        await register(node_on.store, [ONE, TWO])
        node, writer = await started(), await started("writer")
        await level(node, writer)
        await register(node_on.store, [TWO], rows=rows)
        await node.follow()
        if name == "a":
            await node.learned.round()
        else:
            await writer.round()
        assert await stored(node_on.store) == {ONE: WAS_LISTED}
        again = await started()
        assert again.days() == {ONE: WAS_LISTED}, "before its first round"
        again.see(ONE)
        await again.round()
        assert again.days() == {ONE: WAS_LISTED}
        assert not said(again, "first_seen_refused")

    async def test_a_device_is_on_record_before_the_list_without_it_is_in_force(self, node_on, started):
        await register(node_on.store, [ONE, TWO])
        node = await started()
        await node.round()
        await register(node_on.store, [TWO])
        node.published.clear()
        days = []
        node.follower._on_switch = lambda *_: days.append((len(node.published), node.days()))
        await node.follow()
        assert days == [(1, {ONE: WAS_LISTED})], node.faults

    async def test_a_registration_that_is_removed_before_its_begin_ends_no_period(self, node_on, started):
        writer = ListWriter(node_on.store, REGISTERED, "devices", "eir@host")
        added = rows_of(keys_of(ONE), begins=(TODAY + 2) * DAY_S)
        await writer.write(lambda _: ListUpdate(what="add", added=added))
        node = await started()
        node.see(ONE)
        await node.round()
        await register(node_on.store, [TWO])
        await node.round()
        assert node.days() == {ONE: TODAY}

    @pytest.mark.parametrize("seconds", [1800, 5400])
    async def test_a_registration_that_ends_soon(self, node_on, started, seconds):
        """Row 67. The device is on record before its registration ends, so that no check comes between; without a comparison of all lists."""
        await register(node_on.store, [FOUR])
        node = await started()
        node.see(ONE)
        await node.round()
        await register(node_on.store, [FOUR, ONE, TWO], ends=node.now() + seconds)
        await node.follow()
        await node.learned.round()
        expected = {ONE: WAS_LISTED, TWO: WAS_LISTED}
        assert node.days() == expected == await stored(node_on.store)
        await node.round()
        assert node.days() == expected
        assert not said(node, "first_seen_refused")
        await register(node_on.store, [FOUR, ONE, TWO])
        await node.round()
        assert node.days() == {}, "registered again"

    async def test_a_registration_that_ends(self, node_on, started):
        """Row 67."""
        await register(node_on.store, [ONE], ends=(TODAY + 10) * DAY_S)
        node = await started()
        node.see(ONE)
        await node.round()
        assert node.days() == {}
        node.today += 11
        node.see(ONE)
        await node.round()
        assert node.days() == {ONE: WAS_LISTED}

    async def test_a_registration_that_has_not_begun_registers_nothing(self, node_on, started):
        writer = ListWriter(node_on.store, REGISTERED, "devices", "eir@host")
        added = rows_of(keys_of(ONE), begins=(TODAY + 2) * DAY_S)
        await writer.write(lambda _: ListUpdate(what="add", added=added))
        node = await started()
        node.see(ONE)
        await node.round()
        assert node.days() == {ONE: TODAY}
        node.today += 3
        await node.round()
        assert node.days() == {}

    async def test_a_list_of_whole_tacs(self, node_on, started):
        writer = ListWriter(node_on.store, REGISTERED, "devices", "eir@host")
        node = await started()
        node.see(ONE, THREE)
        await node.round()
        await writer.write(lambda _: ListUpdate(what="add", added=rows_of([1 << 60 | int(ONE[:8])])))
        await node.round()
        assert node.days() == {THREE: TODAY}

    @pytest.mark.parametrize("rows", [None, "whole"])
    async def test_a_node_without_a_copy_reads_the_log_and_reports_a_gap(self, node_on, started, rows):
        """Row 67: all nodes were stopped, and come back without their disks."""
        await register(node_on.store, [ONE, TWO])
        node = await started()
        await node.round()
        await register(node_on.store, [TWO], rows=rows)
        again = await started("without-disk")
        await again.round()
        assert bool(said(again, "first_seen_gap")) == (rows == "whole")
        assert again.days() == ({} if rows == "whole" else {ONE: WAS_LISTED})


class TestClock:
    """Row 68."""

    async def test_a_node_that_starts_in_2020_writes_no_day_before_the_newest_time_of_the_store(self, started):
        node = await started()
        node.see(ONE)
        await node.round()
        wrong = await started("wrong", today=TODAY_2020)
        wrong.see(ONE, TWO)
        await wrong.round()
        await level(wrong, node)
        assert wrong.days() == {ONE: TODAY - 1, TWO: TODAY - 1} == node.days()
        again = await started("again", today=TODAY_2020 + 1)
        again.see(THREE)
        await again.round()
        assert again.days()[THREE] == TODAY - 1, "its own writes do not set the newest time back"

    async def test_a_list_of_the_store_bounds_first_days_too(self, started):
        node = await started(today=TODAY_2020)
        node.record.note_time("2026-11-30T10:00:00Z")
        node.see(ONE)
        await node.round()
        assert node.days() == {ONE: TODAY - 1}


class TestForged:
    """Row 68: changes that a thief of the user `recorder` writes are damage: alert, not merged."""

    @pytest.fixture
    async def pair(self, started):
        """Two nodes that have ONE and TWO on record."""
        a, b = await started("a"), await started("b")
        a.see(ONE, TWO)
        await level(a, b)
        return a, b

    @pytest.mark.parametrize(
        "change",
        [
            {"added": {ONE: TODAY - 8}}, {"added": {THREE: TODAY - 8}}, {"added": {ONE: WAS_LISTED}}, {"added": {THREE: WAS_LISTED}},
            {"added": {THREE: TODAY + 90}}, {"added": {ONE: TODAY_2020}, "day": TODAY_2020}, {"added": {THREE: TODAY_2020}, "day": TODAY_2020, "lasts": TODAY},
            {"added": {THREE: TODAY - 9}, "day": TODAY - 3}, {"added": {THREE: TODAY}, "lasts": TODAY + 900}, {"removed": [ONE]},
            {"added": {THREE: TODAY}, "seconds": 700},
        ],
    )  # fmt: skip
    async def test_a_change_out_of_bounds_is_left_out_by_all_nodes_alike(self, node_on, pair, change):
        a, b = pair
        await forge(node_on.store, **change)
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY}
        assert any(said(node, "first_seen_refused") for node in pair), (
            "the first node may have repaired it before the second one sees it"
        )
        a.see(FOUR)
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, FOUR: TODAY}, "the list is not frozen"

    async def test_a_removed_device_is_appended_again(self, node_on, pair):
        await forge(node_on.store, removed=[ONE, TWO])
        await level(*pair)
        assert await stored(node_on.store) == {ONE: TODAY, TWO: TODAY}
        assert {node.learned.refused for node in pair} == {0}

    async def test_within_the_bounds_a_forged_row_is_accepted(self, node_on, pair):
        """So a thief shortens a period by 7 days at most."""
        await forge(node_on.store, added={ONE: TODAY - 7})
        await level(*pair)
        assert [node.days() for node in pair] == [{ONE: TODAY - 7, TWO: TODAY}] * 2

    async def test_refused_rows_stay_refused_over_a_restart(self, node_on, started, pair):
        await forge(node_on.store, added={ONE: TODAY - 200, THREE: TODAY - 200})
        await level(*pair)
        again = await started("a")
        await again.round()
        assert again.days() == {ONE: TODAY, TWO: TODAY}
        assert again.learned.refused == 2

    async def test_a_device_with_a_refused_row_gets_its_period(self, node_on, pair):
        a, b = pair
        await forge(node_on.store, added={THREE: TODAY - 200})
        await level(a, b)
        a.today = b.today = TODAY + 3
        a.see(THREE)
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY + 3}

    async def test_an_undo_removes_the_rows_of_a_generation(self, node_on, pair):
        made = await forge(node_on.store, added={ONE: TODAY - 200, THREE: TODAY - 200})
        await level(*pair)
        writer = ListWriter(
            node_on.store, NAME, FIRST_SEEN, "eir@host", now=lambda: datetime.fromtimestamp(pair[0].now(), UTC)
        )
        await writer.write(
            lambda _: ListUpdate(
                what=LEARN, removed=rows_of(keys_of(ONE, THREE)), detail=f"undo of generation {made.generation}"
            )
        )
        await level(*pair)
        assert await stored(node_on.store) == {ONE: TODAY, TWO: TODAY}
        assert [node.days() for node in pair] == [{ONE: TODAY, TWO: TODAY}] * 2
        assert {node.learned.refused for node in pair} == {0}

    async def test_a_change_from_the_future_is_judged_again_in_its_time(self, node_on, pair):
        a, b = pair
        await forge(node_on.store, added={THREE: TODAY + 2}, day=TODAY + 2)
        await level(a, b)
        assert THREE not in a.days()
        a.today = b.today = TODAY + 3
        await level(a, b)
        assert a.days()[THREE] == b.days()[THREE] == TODAY + 2

    async def test_a_change_from_the_future_is_judged_again_in_its_time_by_a_node_that_restarts(
        self, node_on, started, pair
    ):
        await forge(node_on.store, added={THREE: TODAY + 2}, day=TODAY + 2)
        await level(*pair)
        again = await started("a")
        assert THREE not in again.days()
        again.today = TODAY + 3
        await again.round()
        assert again.days()[THREE] == TODAY + 2

    async def test_honest_rows_beside_a_forged_one_count(self, node_on, pair):
        await forge(node_on.store, added={ONE: TODAY - 100, THREE: TODAY})
        await level(*pair)
        assert [node.days() for node in pair] == [{ONE: TODAY, TWO: TODAY, THREE: TODAY}] * 2

    @pytest.mark.parametrize("mark", ["", "registered", f"{REGISTERED} x y", f"{REGISTERED} 99 {'0' * 64}"])
    async def test_a_forged_mark_gives_no_second_period(self, node_on, pair, monkeypatch, mark):
        a, b = pair
        await register(node_on.store, [ONE, FOUR])
        await level(a, b)
        writer = ListWriter(node_on.store, NAME, FIRST_SEEN, "thief", now=lambda: datetime.fromtimestamp(a.now(), UTC))
        await writer.write(lambda _: ListUpdate(what=LEARN, state={"registered": (mark,)}))
        await register(node_on.store, [FOUR])
        await level(a, b)
        assert a.days() == b.days() == {ONE: WAS_LISTED, TWO: TODAY}
        monkeypatch.setattr(learned, "BEHIND_S", 0.0)
        await level(a, b)
        head = (await node_on.store.heads())[REGISTERED]
        assert (await node_on.store.heads())[NAME].registered == (f"{REGISTERED} {head.generation} {head.digest}",)

    async def test_a_forged_time_that_is_no_time_freezes_nothing(self, node_on, pair):
        class NoTime(datetime):
            def strftime(self, _):
                return "soon"

        now = NoTime.fromtimestamp(pair[0].now(), UTC)
        writer = ListWriter(node_on.store, NAME, FIRST_SEEN, "thief", now=lambda: now)
        rows = sighted_rows(keys_of(THREE), TODAY, TODAY)
        await writer.write(lambda _: ListUpdate(what=LEARN, added=rows))
        pair[0].see(FOUR)
        await level(*pair)
        assert [node.days() for node in pair] == [{ONE: TODAY, TWO: TODAY, FOUR: TODAY}] * 2
        assert {node.learned.refused for node in pair} == {1}

    async def test_a_node_that_was_away_judges_by_the_times_in_the_chain(self, node_on, pair):
        """Honest rows of its absence are older than 7 days."""
        a, b = pair
        for day in range(0, 30, 6):
            a.today = TODAY + day
            a.see(f"{86000000000000 + day}")
            await a.round()
        await forge(node_on.store, added={THREE: TODAY + 10}, day=TODAY + 24)
        b.today = a.today = TODAY + 30
        await level(b, a)
        assert len(b.days()) == 2 + 5
        assert a.days() == b.days()
        assert THREE not in b.days()


class TestTwoNodes:
    """Nodes that share a store, and lose it in every way. Row 63."""

    @pytest.fixture
    def node_on(self, node_on):
        if node_on.kind == "sqlite":
            pytest.skip("one host has one node")
        return node_on

    @pytest.fixture
    async def pair(self, started):
        """Two started nodes."""
        return await started("a"), await started("b")

    async def test_both_see_a_device_on_one_day(self, pair):
        a, b = pair
        a.see(ONE)
        b.see(ONE)
        a.see(TWO)
        b.see(THREE)
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY}
        assert a.published[-1].content == b.published[-1].content

    async def test_a_node_follows_what_others_forget(self, node_on, pair):
        a, b = pair
        a.see(ONE, TWO)
        await level(a, b)
        await register(node_on.store, [ONE])
        await level(a, b)
        assert a.days() == b.days() == {TWO: TODAY}
        assert not any(said(node, "first_seen_refused") for node in pair)

    async def test_a_node_that_lags_behind_a_registering_list_refuses_nothing(self, node_on, pair):
        a, b = pair
        a.see(ONE, TWO)
        await level(a, b)
        await register(node_on.store, [ONE])
        await a.round()
        b.follower._lists[REGISTERED].not_before = float("inf")  # this list alone cannot be read
        await b.round()
        assert not said(b, "first_seen_refused")
        assert await stored(node_on.store) == {TWO: TODAY}
        b.follower._lists[REGISTERED].not_before = 0.0
        await b.round()
        assert b.days() == {TWO: TODAY}

    async def test_a_partition_ends_with_the_earliest_day_everywhere(self, pair):
        a, b = pair
        a.see(ONE)
        await level(a, b)
        a.store.is_away = True
        a.see(TWO, THREE)
        await a.round()
        a.today = b.today = TODAY + 2
        b.see(TWO, FOUR)
        await b.round()
        a.today = b.today = TODAY + 3
        a.see(FOUR)
        await a.round()
        a.store.is_away = False
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY, FOUR: TODAY + 2}
        assert not any(said(node, "first_seen_refused") for node in pair)

    @pytest.mark.parametrize("first", ["a", "b"])
    async def test_a_lost_redis_gets_everything_back(self, node_on, started, pair, first):
        a, b = pair
        a.see(ONE, TWO)
        await level(a, b)
        a.today = b.today = TODAY + 40
        b.store.is_away = True
        b.see(FOUR)
        await b.round()
        node_on.server.flush()
        b.store.is_away = False
        b.see(ONE, THREE)
        await level(*(pair if first == "a" else pair[::-1]))
        expected = {ONE: TODAY, TWO: TODAY, THREE: TODAY + 40, FOUR: TODAY + 40}
        assert a.days() == b.days() == expected == await stored(node_on.store)
        assert not any(said(node, "first_seen_refused") for node in pair)
        assert said(a, "store_lost_data") or said(b, "store_lost_data")
        fresh = await started("c", today=TODAY + 40)
        assert fresh.days() == expected

    async def test_a_lost_redis_that_refuses_the_first_write_gets_everything_back(self, node_on, started, pair):
        a, b = pair
        a.see(ONE)
        await level(a, b)
        node_on.server.flush()
        b.see(TWO)
        await b.round()
        a.see(THREE)
        a.store.refusals = 2
        await level(a)
        fresh = await started("c")
        assert fresh.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY}

    async def test_an_older_redis_after_a_failover_loses_nothing(self, node_on, pair):
        """A replica that lacks the last writes takes over, gets others from one node, and reaches the generation that the other node has."""
        a, b = pair
        a.see(ONE)
        await level(a, b)
        b.store.is_away = True
        a.see(TWO)
        await a.round()
        node_on.server.flush()
        a.store.is_away, b.store.is_away = True, False
        b.see(THREE)
        await b.round()
        a.store.is_away = False
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY}

    async def test_a_start_without_redis_goes_by_the_copy(self, node_on, started):
        a = await started("a")
        a.see(ONE)
        await a.round()
        again = node_on("a", today=TODAY + 1)
        again.store.is_away = True
        await again.start()
        assert again.days() == {ONE: TODAY}
        again.see(TWO)
        await again.round()
        again.store.is_away = False
        await again.round()
        assert (await node_on.store.heads())[NAME].entries == 2


@pytest.mark.long
def test_the_soak_in_its_short_form(server, capsys):  # noqa: ARG001  # without a Redis it is skipped
    """Weeks of two nodes with every fault, and a flood: scripts/soak first-seen."""
    short = ["--devices", "3000", "--days", "18", "--period", "5", "--flood", "22000"]
    assert soak_first_seen.main(short) == 0
    assert "22,000 invented IMEIs: 20,000 recorded, 2,000 not" in capsys.readouterr().out
