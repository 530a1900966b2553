"""Deliveries of every kind against a model of the drop folder, without a node; for long, and with one: `scripts/soak deliveries`."""

from datetime import UTC, datetime, timedelta

from simulated.deliveries import KINDS, LISTS, Deliveries

from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.record.settings import ListSettings
from eir.lists.sources.inbox import Attempts, PassSettings, run_pass
from eir.lists.stores.sqlite import SqliteStore

PATIENCE_S = 3600


async def test_every_kind_of_delivery_has_the_end_that_it_should(tmp_path):
    drop, ahead_s = tmp_path / "in", 2.0
    drop.mkdir()
    deliveries = Deliveries(tmp_path, drop, seed=11)
    lists = {
        name: ListSettings(name=name, signers=tmp_path / f"signers-{name}", growth_max=1000, shrink_max=1)
        for name in LISTS
    }
    store = SqliteStore(tmp_path / "lists.sqlite")

    async def turn():
        terms = PassSettings(
            folder=drop, lists=lists, store=store, who="inbox", clock=lambda: datetime.now(UTC) + timedelta(seconds=ahead_s), patience_s=PATIENCE_S,
            attempts=Attempts(tmp_path / "attempt"), record=[].append,
        )  # fmt: skip
        return await run_pass(terms)

    order = ["full"] * 6 + KINDS
    deliveries.chance.shuffle(order)
    order.sort(key=["again", "old", "past_base", "growth"].__contains__)  # these need a list that is there
    for number, kind in enumerate(order):
        if deliveries.deliver(kind) is None:
            deliveries.catch_up()
            deliveries.deliver(kind)
        if number % 8 == 7:
            await turn()
            deliveries.catch_up()
    deliveries.catch_up()
    await turn()
    ahead_s = PATIENCE_S + 10.0
    for _ in range(5):
        await turn()
    logs = [(name, await store.log(name, 0)) for name in await store.heads()]
    loaded = [(name, entry.change.serial) for name, log in logs for entry in log]
    await store.close()
    broken = deliveries.broken([drop / ACCEPTED, drop / REFUSED], loaded)
    assert not broken, "\n".join(broken)
    assert {each.kind for each in deliveries.made} == set(KINDS)
    assert len(loaded) > 20
