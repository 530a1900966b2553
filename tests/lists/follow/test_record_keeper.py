"""The record of first sightings over stores: what is kept, forgotten and merged, whatever fails. Conformance rows 62 to 64."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import soak_first_seen
from simulated.first_sightings import NAME, TODAY, SightingNode, level

from eir.lists.changes.import_days import import_days, undo_import
from eir.lists.pages.first_days import DAY_S, WAS_LISTED, FirstDays
from eir.lists.pages.pages import amended_digest
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.stores.open import open_store

TODAY_2020 = 18_300
ONE, TWO, THREE, FOUR = "35209900176148", "35209900176149", "35332811002233", "86123456789012"


@pytest.fixture(params=["sqlite", "redis"])
async def node_on(request, tmp_path):
    """Makes nodes on one store; on Redis each has a copy of its own."""
    url = "sqlite"
    if request.param == "redis":
        server = request.getfixturevalue("server")
        server.flush()
        url = server.url
    async with contextlib.AsyncExitStack() as stack:

        def made(name="a", *, copy=None, **options):
            stores = [open_store(url, tmp_path)]
            if request.param == "redis":
                stores.insert(0, open_store("sqlite", tmp_path / (copy or name)))
            for store in stores:
                stack.push_async_callback(store.close)
            return SightingNode(*stores, **options)

        made.kind = request.param
        made.server = None if request.param == "sqlite" else request.getfixturevalue("server")
        yield made


@pytest.fixture
def started(node_on):
    """Makes nodes whose keeper has started."""

    async def started(*name, **options):
        node = node_on(*name, **options)
        await node.keeper.start()
        return node

    return started


async def test_a_device_keeps_the_day_on_which_it_was_first_seen(started):
    node = await started()
    node.see(ONE, TWO)
    await node.round()
    node.today += 40
    node.see(ONE, THREE)
    await node.round()
    assert node.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY + 40}
    state = await node.stores[-1].store.state(NAME)
    assert (state.kind, state.entries, state.content_digest) == (FIRST_SEEN, 3, node.published[-1].content_digest)
    assert node.published[-1] == state
    assert not node.faults


async def test_a_node_that_starts_in_2020_writes_no_day_before_the_newest_time_of_the_store(started):
    """Row 68: such days would end the periods of honest phones on all nodes."""
    node = await started()
    node.see(ONE)
    await node.round()
    wrong = await started(today=TODAY_2020)
    wrong.see(ONE, TWO)
    await wrong.round()
    assert wrong.days() == {ONE: TODAY - 1, TWO: TODAY - 1}
    again = await started(today=TODAY_2020 + 1)
    again.see(THREE)
    await again.round()
    assert again.days()[THREE] == TODAY - 1, "its own writes do not set the newest time back"


async def test_a_list_of_the_store_bounds_first_days_too(started):
    node = await started(today=TODAY_2020)
    node.record.note_time("2026-11-30T10:00:00Z")
    node.see(ONE)
    await node.round()
    assert node.days() == {ONE: TODAY - 1}


async def test_seeing_a_device_again_within_its_period_writes_nothing(started):
    node = await started()
    node.see(ONE)
    await node.round()
    before = await node.stores[-1].store.state(NAME)
    node.see(ONE)
    await node.round(3)
    assert await node.stores[-1].store.state(NAME) == before


async def test_a_restart_goes_on_with_what_is_stored(started):
    node = await started()
    node.see(ONE)
    await node.round()
    again = await started(today=TODAY + 5)
    again.see(ONE, TWO)
    await again.round()
    assert again.days() == {ONE: TODAY, TWO: TODAY + 5}


async def test_a_follower_that_is_replaced_goes_on_with_the_image_in_force(node_on, started):
    node = await started()
    node.see(ONE)
    await node.round()
    successor = node_on()
    successor.record.replace(node.record.state, node.record.image)
    for store in successor.stores:
        store.is_away = True
    await successor.keeper.start()
    successor.see(TWO)
    await successor.round()
    for store in successor.stores:
        store.is_away = False
    await successor.round()
    assert successor.days() == {ONE: TODAY, TWO: TODAY}
    assert (await successor.stores[-1].store.state(NAME)).entries == 2


async def test_a_registered_device_is_forgotten_and_gets_no_second_period(started):
    node = await started(registered=[FOUR])
    node.see(ONE, TWO, FOUR)
    await node.round()
    assert node.days() == {ONE: TODAY, TWO: TODAY}
    assert list(node.rejected) == [""]
    node.register([FOUR, ONE])
    await node.round()
    assert node.days() == {TWO: TODAY}
    node.today += 3
    node.register([FOUR])
    node.see(ONE)
    await node.round()
    assert node.days() == {ONE: WAS_LISTED, TWO: TODAY}
    assert (await node.stores[-1].store.state(NAME)).entries == 2


async def test_a_device_that_was_not_seen_for_so_long_is_forgotten(started):
    node = await started(remember=100)
    node.see(ONE, TWO)
    await node.round()
    for day in range(0, 140, 20):
        node.today = TODAY + day
        node.see(TWO)
        await node.round()
    assert node.days() == {TWO: TODAY}


async def test_a_clock_that_is_years_ahead_takes_only_a_part_of_the_record_a_day(started):
    node = await started(remember=100)
    node.see(*(f"{35209900000000 + number}" for number in range(3000)))
    await node.round()
    node.today += 2000
    await node.round(3)
    assert len(node.days()) == 2000


async def test_above_the_limit_of_a_peer_nothing_is_recorded_and_nothing_is_evicted(started):
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


async def test_the_limit_of_a_peer_survives_a_restart_of_the_follower(started):
    node = await started(new_per_peer=3)
    node.see(ONE, TWO)
    await node.round()
    again = await started(new_per_peer=3)
    again.keeper.resume(*node.counted)
    again.see(THREE, FOUR)
    await again.round()
    assert set(again.days()) == {ONE, TWO, THREE}
    tomorrow = await started(new_per_peer=3, today=TODAY + 1)
    tomorrow.keeper.resume(*again.counted)
    tomorrow.see(FOUR)
    await tomorrow.round()
    assert tomorrow.days()[FOUR] == TODAY + 1


async def test_confirmed_devices_have_room_of_their_own(started):
    node = await started(new_per_peer=1)
    node.see(ONE, TWO)
    node.see(THREE, confirmed=True)
    await node.round()
    assert set(node.days()) == {ONE, THREE}


async def test_a_summary_of_a_day_is_in_the_history_and_no_rows(started):
    node = await started()
    node.see(ONE, TWO)
    await node.round()
    node.today += 1
    node.see(THREE)
    await node.round(2)
    node.see(FOUR)
    await node.round(2)
    (event,) = await node.stores[-1].store.history(NAME)
    assert event.what == "first-seen"
    assert "2 new" in event.detail


async def test_a_summary_with_which_a_store_gets_the_whole_record_is_written_once(started):
    """The store was away for all of the first day, so the record and the summary are its first write."""
    node = await started()
    node.stores[-1].is_away = True
    node.see(ONE, TWO)
    await node.round()
    node.today += 1
    await node.round()
    node.stores[-1].is_away = False
    await node.round()
    node.see(THREE)
    await node.round(2)
    (event,) = await node.stores[-1].store.history(NAME)
    assert "2 new; 2 on record" in event.detail


async def test_a_store_that_is_away_is_brought_level_later(started):
    node = await started()
    node.see(ONE)
    await node.round()
    node.stores[-1].is_away = True
    node.see(TWO)
    await node.round(2)
    assert node.days() == {ONE: TODAY, TWO: TODAY}
    assert node.keeper.errors["refused"]
    assert {event for event, _ in node.faults} == {"store_failed"}
    node.stores[-1].is_away = False
    await node.round()
    assert (await node.stores[-1].store.state(NAME)).entries == 2


async def test_a_damaged_page_is_reported_and_memory_stays_in_force(started):
    node = await started()
    node.see(ONE)
    await node.round()
    store = node.stores[-1].store
    state, (page,) = await store.some_pages(NAME, [int(ONE) // 10**6])
    damaged = page._replace(extra=b"")
    following = replace(state, content_digest=amended_digest(state.content_digest, [page], [damaged]))
    await store.amend(NAME, following, [damaged], seen=state.generation, keep=0)
    await node.round()
    assert node.days() == {ONE: TODAY}
    assert node.faults


class TestTwoNodes:
    """Nodes that share a Redis, and lose it in every way."""

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
        assert a.published[-1] == b.published[-1]

    async def test_a_node_follows_what_others_forget(self, pair):
        a, b = pair
        a.see(ONE, TWO)
        await level(a, b)
        a.register([ONE])
        await level(a, b)
        assert a.days() == b.days() == {TWO: TODAY}

    async def test_a_partition_ends_with_the_earliest_day_everywhere(self, pair):
        a, b = pair
        a.see(ONE)
        await level(a, b)
        a.stores[-1].is_away = True
        a.see(TWO, THREE)
        await a.round()
        b.today += 2
        b.see(TWO, FOUR)
        await b.round()
        a.today += 3
        a.see(FOUR)
        await a.round()
        a.stores[-1].is_away = False
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY, FOUR: TODAY + 2}

    async def test_a_lost_redis_gets_everything_back(self, node_on, started, pair):
        a, b = pair
        a.see(ONE, TWO)
        await level(a, b)
        node_on.server.flush()
        b.today += 1
        b.see(ONE, THREE)
        await level(b, a)
        expected = {ONE: TODAY, TWO: TODAY, THREE: TODAY + 1}
        assert a.days() == b.days() == expected
        fresh = await started("c", today=TODAY + 2)
        assert fresh.days() == expected

    async def test_a_device_alone_in_its_tac_gets_into_a_lost_redis_that_another_node_filled(
        self, node_on, started, pair
    ):
        """The device is in no image yet when its node reads the pages that the other node wrote back."""
        a, b = pair
        a.see(ONE)
        await level(a, b)
        node_on.server.flush()
        b.see(TWO)
        await b.round()
        a.see(THREE)
        a.stores[-1].refusals = 1
        await a.round()
        fresh = await started("c")
        assert fresh.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY}

    async def test_an_import_that_was_taken_back_while_a_node_was_away_stays_taken_back(self, started, pair):
        """Its memory and its copy have the days of the import, and a merge keeps the earliest day."""
        a, b = pair
        a.see(ONE)
        await level(a, b)
        store = a.stores[-1].store
        now = datetime.fromtimestamp(TODAY * DAY_S, UTC)
        imported = FirstDays(
            np.array([int(ONE), int(THREE)], np.uint64), np.full(2, TODAY - 90, np.uint16), np.zeros(2, np.uint8)
        )
        await import_days(imported, NAME, store, registering=[], source="old.csv", who="test", now=now)
        await level(a, b)
        assert b.days() == {ONE: TODAY - 90, THREE: TODAY - 90}
        b.stores[-1].is_away = True
        b.see(TWO)
        await b.round()
        await undo_import(NAME, store, who="test", now=now)
        b.stores[-1].is_away = False
        await level(b, a)
        expected = {ONE: TODAY, TWO: TODAY}
        assert a.days() == b.days() == expected
        late = await started("late", copy="b")
        assert late.days() == expected
        await level(late, a)
        assert a.days() == expected

    async def test_an_older_redis_after_a_failover_loses_nothing(self, node_on, pair):
        """A replica that lacks the last writes takes over, gets others from one node, and reaches the generation that the other node knows."""
        a, b = pair
        a.see(ONE)
        await level(a, b)
        b.stores[-1].is_away = True
        a.see(TWO)
        await a.round()
        node_on.server.flush()
        a.stores[-1].is_away, b.stores[-1].is_away = True, False
        b.see(THREE)
        await b.round()
        a.stores[-1].is_away = False
        await level(a, b)
        assert a.days() == b.days() == {ONE: TODAY, TWO: TODAY, THREE: TODAY}

    async def test_a_start_without_redis_goes_by_the_copy(self, node_on, started):
        a = await started("a")
        a.see(ONE)
        await a.round()
        again = node_on("a2", copy="a", today=TODAY + 1)
        again.stores[-1].is_away = True
        await again.keeper.start()
        assert again.days() == {ONE: TODAY}
        again.see(TWO)
        await again.round()
        again.stores[-1].is_away = False
        await again.round()
        assert (await again.stores[-1].store.state(NAME)).entries == 2


@pytest.mark.long
def test_the_soak_in_its_short_form(server, capsys):  # noqa: ARG001  # without a Redis it is skipped
    """Weeks of two nodes with every fault, and a flood: scripts/soak first-seen."""
    short = ["--devices", "3000", "--days", "18", "--period", "5", "--flood", "22000"]
    assert soak_first_seen.main(short) == 0
    assert "22,000 invented IMEIs: 20,000 recorded, 2,000 not" in capsys.readouterr().out
