"""Random changes of a local list, losses and forks of its store under two nodes, against a dictionary."""

import random

import pytest
from follower import AWAY, FaultyLogStore, LogNode, snapshot
from simulated.store_content import Lists, until

from eir.lists.follow import list_copy
from eir.lists.log import writer as writing
from eir.lists.stores.sqlite import SqliteStore


class Model:
    """The list as it must be: its keys, and for each key that a change since the snapshot touched, this change's number."""

    def __init__(self, keys):
        self.keys, self.saved, self.touched = set(keys), set(keys), {}

    def change(self, added, removed):
        self.keys = self.keys - removed | added
        self.touched |= dict.fromkeys(added, True) | dict.fromkeys(removed - added, False)

    def save(self):
        self.saved, self.touched = set(self.keys), {}

    def fork(self, added, removed):
        """The store goes back to the snapshot, and then gets a change, which wins over the lost ones."""
        lost, self.keys = self.touched, self.saved - removed | added
        for key, is_added in lost.items():
            if key not in added | removed:
                (self.keys.add if is_added else self.keys.discard)(key)
        self.save()


def drawn(rng):
    added = {rng.randrange(40) for _ in range(rng.randrange(3))}
    removed = {rng.randrange(40) for _ in range(rng.randrange(3))} - added
    return added or {rng.randrange(40, 60)}, removed


class Fleet:
    """Two nodes on a store that loses data, and the model of their list."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.store = SqliteStore(folder / "lists.sqlite")
        self.faulty, self.model, self.nodes, self.restore = FaultyLogStore(self.store), Model(range(20)), {}, None

    async def start(self, who, **settings):
        self.nodes[who] = await LogNode(self.faulty, self.folder / who, who=who, **settings).__aenter__()

    async def level(self):
        for node in self.nodes.values():
            await node.has(*self.model.keys)
            await node.is_level()

    async def save(self):
        self.restore = await snapshot(self.store)
        self.model.save()

    async def change(self):
        added, removed = drawn(self.rng)
        await Lists(self.store).change(added, removed)
        self.model.change(added, removed)

    async def loss(self):
        await self.restore()

    async def fork(self):
        self.faulty.fail = AWAY
        await until(lambda: not any(node.follower.up for node in self.nodes.values()))
        await self.restore()
        added, removed = drawn(self.rng)
        await Lists(self.store).change(added, removed)
        self.model.fork(added, removed)
        self.faulty.fail = None
        await self.level()
        await self.save()

    async def restart(self):
        who = self.rng.choice("ab")
        await self.nodes[who].__aexit__()
        await self.start(who, journal=self.nodes[who].journal)

    async def close(self):
        for node in self.nodes.values():
            await node.__aexit__()
        await self.store.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_two_nodes_equal_a_dictionary(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(writing, "BASE_ROWS", 12)
    monkeypatch.setattr(list_copy, "APPENDED_BYTES", 2_000)
    fleet = Fleet(tmp_path, random.Random(seed))
    await Lists(fleet.store).load(range(20))
    for who in "ab":
        await fleet.start(who)
    await fleet.level()
    await fleet.save()
    steps = [fleet.change] * 4 + [fleet.save, fleet.loss, fleet.fork, fleet.restart]
    for step in fleet.rng.choices(steps, k=40):
        await step()
        await fleet.level()
    for node in fleet.nodes.values():
        assert not node.follower.lost_rows
        assert not node.follower.errors.keys() - {"lost_data", "forked", "refused"}
    await fleet.close()
