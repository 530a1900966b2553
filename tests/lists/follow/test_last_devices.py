"""The list of the last devices of SIMs over stores: changes, returns, limits, losses, and the form of its rows. Conformance row 71."""

import contextlib
import random

import numpy as np
import pytest
from simulated.first_sightings import PAUSES, Away, NoJournal

from eir.device import device_key
from eir.lists.changes.forget_sims import forget_sims
from eir.lists.follow.last_devices import CHANGED, REMOVED, LastDevices
from eir.lists.follow.log_follower import LogFollower, _StoreAway
from eir.lists.log.change import LEARN
from eir.lists.log.reader import has_rows, read_rows
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import DAY_S
from eir.lists.record.last_devices import (
    DUAL_USE,
    PAIRING,
    SIGHTING,
    changed_pairings,
    pairing_rows,
    pairings_of,
    sim_key,
    sim_of,
    sim_text,
)
from eir.lists.record.settings import LAST_DEVICE, LastDeviceSettings
from eir.lists.table.table import table_of

NAME, NOON = "last-device", 20_787 * DAY_S + DAY_S // 2
KEY = sim_key(b"key of all nodes\n")
IMSI, OTHER = "001010000000001", "26201123456789"
ONE, TWO, THREE = (device_key(text) for text in ("35209900176148", "35209900176149", "86123456789012"))


def sim_number(number):
    """Return one of many SIMs, whose bits are spread."""
    return sim_of(f"00101{number:010d}", None)


def number_of(sim):
    return int(sim_text(sim, None)[5:])


class Node:
    """One node; SIMs are numbers; `now` is its clock."""

    def __init__(self, store, folder, *, who="node on test", **settings):
        self.now, self.folder, self.faults, self.store = NOON, folder, [], Away(store)
        self.learned = LastDevices(
            LastDeviceSettings(list=NAME, **settings), self.store, folder, now=lambda: self.now, who=who,
            report=lambda event, **fields: self.faults.append((event, fields)), held=lambda: self.follower.held,
        )  # fmt: skip
        self.follower = LogFollower(
            self.store, {NAME: LAST_DEVICE}, folder, build=None, on_switch=None, journal=NoJournal(), who=who, pauses=PAUSES,
            report=lambda event, **fields: self.faults.append((event, fields)), learned=[self.learned],
        )  # fmt: skip

    async def start(self):
        await self.learned.open()
        await self.follower.start()
        return self

    async def follow(self):
        with contextlib.suppress(_StoreAway):
            await self.follower._step()

    async def round(self, times=1):
        for _ in range(times):
            await self.follow()
            await self.learned.round()
        await self.follow()

    def see(self, *sightings, peer="mme"):
        rows = np.array(
            [(sim_number(sim), device, self.now if at is None else at) for sim, device, at in sightings], SIGHTING
        )
        self.learned.note_sightings([(peer, rows.tobytes())])

    async def come(self, sim, device, after_s=60):
        """A SIM comes into a device some seconds later."""
        self.now += after_s
        self.see((sim, device, None))
        await self.round()

    def devices(self, sim):
        return [device_key(device["imei"]) for device in self.learned.find(f"00101{sim:010d}")]


NODE = Node


class SimulatedDays:
    """Sightings of SIMs that now and then change their device; each change is known."""

    def __init__(self):
        self.rng, self.now, self.present, self.changes = random.Random(62), NOON, {}, []

    def set_clocks(self, nodes):
        for node in nodes:
            node.now = self.now

    def pass_time(self, nodes):
        self.now += 1800
        self.set_clocks(nodes)

    def sightings(self, changes=0.3):
        for sim in self.rng.sample(range(1, 30), 6):
            before = self.present.get(sim, 0)
            device = self.rng.choice([ONE, TWO, THREE]) if self.rng.random() < changes or not before else before
            if device != before:
                self.changes.append((sim, device, before))
            self.present[sim] = device
            yield sim, device, self.now


async def changes_in(store, after=0):
    """Each change of device that the log has, in its order: SIM, new device, device before, and number of returns."""
    found = []
    for entry in await store.log(NAME, after):
        if has_rows(entry):
            added, removed = map(pairings_of, (await read_rows(store, NAME, entry)).decoded(NAME))
            news, olds = changed_pairings(added, removed)
            found += [
                (number_of(int(new["sim"])), int(new["device"]), int(old["device"]), int(new["returns"]))
                for new, old in zip(news, olds, strict=True)
            ]
    return found


class TestRows:
    def test_a_row_has_64_bits_of_the_sim_and_all_of_a_stay(self):
        rng = np.random.default_rng(7)
        pairings = np.zeros(5_000, PAIRING)
        for name, most in (
            ("sim", 1 << 64),
            ("device", 10**14),
            ("changed", 1 << 32),
            ("day", 1 << 16),
            ("returns", 4),
        ):
            pairings[name] = rng.integers(0, most, len(pairings), np.uint64)
        pairings[:2]["sim"] = (1 << 64) - 1, 0
        rows = pairing_rows(pairings)
        assert np.array_equal(pairings_of(rows), pairings[np.lexsort((pairings["changed"], pairings["sim"]))])
        assert np.array_equal(pairings_of(table_of(rows).rows()), pairings_of(rows))

    def test_a_sim_is_a_keyed_hash_or_the_imsi(self):
        assert sim_text(sim_of(IMSI, None), None) == IMSI
        assert sim_text(sim_of(OTHER, None), None) == OTHER
        hashes = {sim_of(IMSI, KEY), sim_of(IMSI, sim_key(b"another")), sim_of(OTHER, KEY), sim_of(IMSI, None)}
        assert len(hashes) == 4
        assert sim_text(sim_of(IMSI, KEY), KEY) == f"{sim_of(IMSI, KEY):016x}"
        # IMSIs of one operator are spread over the blocks of a table.
        assert len({sim_of(f"00101{number:010d}", None) >> 44 for number in range(1000)}) > 900


class TestChanges:
    async def test_only_changes_are_written_and_the_last_day_every_30_days(self, node_on, started):
        node = await started()
        for days in (0, 1, 29, 30, 31, 61):
            node.now = NOON + days * DAY_S
            node.see((1, ONE, None))
            await node.round(2)
        log = await node_on.store.log(NAME, 0)
        assert [entry.change.time[:10] for entry in log] == ["2026-11-30", "2026-12-30", "2027-01-30"]
        assert await changes_in(node_on.store) == [(1, ONE, 0, 0)]
        found = {"imei": "35209900176148", "since": "2026-11-30T12:00:00Z", "last_day": "2027-01-30"}
        assert node.learned.find("001010000000001") == [found]

    async def test_a_sim_that_alternates_is_in_dual_use_after_three_changes(self, node_on, started):
        node = await started()
        for device in (ONE, TWO, ONE, TWO, ONE, THREE, ONE):
            await node.come(1, device)
        returns = [0, 0, 1, DUAL_USE, DUAL_USE, 0, 1]
        assert [change[3] for change in await changes_in(node_on.store)] == returns
        assert node.devices(1) == [THREE, ONE]
        assert node.learned.changes == {CHANGED: 7}

    async def test_all_changes_of_one_round_are_in_the_log_one_by_one(self, node_on, started):
        node = await started()
        node.see((1, ONE, NOON - 9), (2, ONE, NOON - 9), (1, TWO, NOON - 5), (1, TWO, NOON - 4), (1, THREE, NOON - 2))
        await node.round(4)
        assert sorted((await changes_in(node_on.store))[:2]) == [(1, ONE, 0, 0), (2, ONE, 0, 0)]
        assert (await changes_in(node_on.store))[2:] == [(1, TWO, ONE, 0), (1, THREE, TWO, 0)]
        assert not len(node.learned._waiting)

    async def test_a_previous_device_stays_for_30_days_and_a_sim_for_the_configured_time(self, started):
        node = await started(remember=100)
        await node.come(1, ONE)
        await node.come(1, TWO)
        await node.come(2, ONE)
        node.now += 31 * DAY_S
        await node.round()
        assert (node.devices(1), node.devices(2)) == ([TWO], [ONE])
        node.now = NOON + 129 * DAY_S
        await node.round()
        assert node.devices(1) == [TWO]
        node.now += DAY_S
        await node.round(2)
        assert (node.devices(1), node.devices(2), node.learned.changes[REMOVED]) == ([], [], 3)

    async def test_a_peer_adds_a_limited_number_of_sims_in_a_day(self, node_on, started):
        node = await started(new_per_peer=3)
        node.see(*((sim, ONE, None) for sim in range(1, 6)))
        node.see((9, ONE, None), peer="other")
        await node.round()
        first = [change[0] for change in await changes_in(node_on.store)]
        assert (len(first), 9 in first) == (4, True)
        assert node.learned.unrecorded == {"mme": 2}
        known, new = min(first), min({1, 2, 3, 4, 5} - {*first})
        await node.come(known, TWO)
        await node.come(new, ONE, after_s=DAY_S)
        assert [change[:2] for change in (await changes_in(node_on.store))[4:]] == [(known, TWO), (new, ONE)]

    async def test_a_change_from_the_future_excludes_no_later_one(self, node_on, started):
        node, ahead = await started(), await started("b")
        await node.come(1, ONE)
        ahead.now = node.now + 3 * DAY_S
        await ahead.round()
        await ahead.come(1, TWO)
        await node.come(1, THREE)
        assert (await changes_in(node_on.store))[-1][:3] == (1, THREE, TWO)


class TestNodes:
    async def test_one_change_that_two_nodes_see_in_a_second_is_one(self, node_on, started):
        one, two = await started(), await started("b")
        for device in (ONE, TWO):
            for node in (one, two):
                node.now += 60
                node.see((1, device, None))
                await node.follow()
            await one.learned.round()
            await two.learned.round()  # it has not followed the other
            for node in (one, two):
                await node.round()
        assert [change[:3] for change in await changes_in(node_on.store)] == [(1, ONE, 0), (1, TWO, ONE)]

    async def test_known_changes_of_simulated_days_on_two_nodes(self, node_on, started):
        """Each is in the log once and none is invented, over an absent store, and kills of the follower before its round."""
        nodes = [await started(), await started("b")]
        days = SimulatedDays()
        for turn in range(60):
            at = days.rng.randrange(2)
            days.pass_time(nodes)
            nodes[at].see(*days.sightings())
            nodes[at].store.is_away = turn % 9 in {3, 4}
            if turn % 7 == 5:
                nodes[at] = await started("ab"[at])
                days.set_clocks(nodes)
            for node in (*nodes, *nodes):
                await node.round()
                node.store.is_away = False
            await nodes[at].round()
        assert sorted(change[:3] for change in await changes_in(node_on.store)) == sorted(days.changes)

    async def test_a_store_that_lost_the_list_gets_it_from_the_nodes_and_no_change_is_invented(self, node_on, started):
        nodes = [await started(), await started("b")]
        days = SimulatedDays()
        for turn in range(20):
            days.pass_time(nodes)
            nodes[turn % 2].see(*days.sightings())
            for node in (*nodes, *nodes):
                await node.round()
        node_on.lose(*nodes)
        days.pass_time(nodes)
        nodes[0].see(*days.sightings(changes=0.0))
        for node in (*nodes, *nodes, *nodes):
            await node.round()
        assert {sim: nodes[1].devices(sim)[-1] for sim in days.present} == days.present
        assert set(await changes_in(node_on.store)) <= {
            (*change, returns) for change in days.changes for returns in range(3)
        }

    async def test_two_keys_on_two_nodes_are_a_fault(self, node_on, started):
        node = await started()
        await ListWriter(node_on.store, NAME, LAST_DEVICE, "x").write(
            lambda _: ListUpdate(what=LEARN, state={"registered": ("file 1",)})
        )
        await node.come(1, ONE)
        node_on.lose(node)
        await ListWriter(node_on.store, NAME, LAST_DEVICE, "x").write(
            lambda _: ListUpdate(what=LEARN, state={"registered": ("file 2",)})
        )
        await node.round(2)
        assert any("another key" in str(fields.get("detail")) for _, fields in node.faults)
        assert pairings_of(node.follower.held[NAME].table.rows())["device"] == [ONE]

    async def test_a_sim_is_forgotten_in_store_and_copies(self, node_on, started):
        node = await started()
        await node.come(1, ONE)
        await node.come(2, TWO)
        await node.come(1, TWO)
        assert await forget_sims([sim_number(1)], NAME, node_on.store, who="eir@test") == 2
        await node.round()
        assert (node.devices(1), node.devices(2)) == ([], [TWO])
        assert not [entry for entry in await node_on.store.log(NAME, 0) if has_rows(entry)]
        assert not list((node.folder / "copies").glob("*.changes"))
        assert await forget_sims([sim_number(1)], NAME, node_on.store, who="eir@test") == 0
        await node.come(1, THREE)
        assert (await changes_in(node_on.store)) == [(1, THREE, 0, 0)]

    async def test_a_full_disk_and_a_fault_of_the_store_are_reported(self, node_on, started):
        node = await started()
        node.store.is_away = True
        await node.come(1, ONE)
        assert node.learned.errors["refused"] == 1
        node.learned._path.unlink()
        node.learned._path.mkdir()
        await node.come(2, ONE)
        assert node.learned.errors["copy_io"] == 2
        node.store.is_away = False
        await node.round()
        assert {change[0] for change in await changes_in(node_on.store)} == {1, 2}


def test_an_unknown_text_is_no_imsi():
    with pytest.raises(Exception, match="IMSI has 6 to 15 digits"):
        sim_of("12345", KEY)
