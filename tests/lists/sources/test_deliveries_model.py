"""Deliveries of every kind against a model of the drop folder, without a node."""

from deliveries import KINDS, LISTS, Deliveries
from drop import PATIENCE_S, Site

from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.record.settings import ListSettings


async def test_every_kind_of_delivery_has_the_end_that_it_should(tmp_path, keys):
    site = Site(tmp_path / "site", keys)
    deliveries = Deliveries(tmp_path, site.drop, seed=11)
    site.lists = {
        name: ListSettings(name=name, signers=tmp_path / f"signers-{name}", growth_max=1000, shrink_max=1)
        for name in LISTS
    }
    order = ["full"] * 6 + KINDS
    deliveries.chance.shuffle(order)
    order.sort(key=["again", "old", "past_base", "growth"].__contains__)  # these need a list that is there
    for number, kind in enumerate(order):
        if deliveries.deliver(kind) is None:
            deliveries.catch_up()
            deliveries.deliver(kind)
        if number % 8 == 7:
            await site.turn()
            deliveries.catch_up()
    deliveries.catch_up()
    await site.turn()
    site.ahead_s = PATIENCE_S + 10.0
    for _ in range(5):
        await site.turn()
    logs = [(name, await site.store.log(name, 0)) for name in await site.store.heads()]
    loaded = [(name, entry.change.serial) for name, log in logs for entry in log]
    await site.store.close()
    broken = deliveries.broken([site.drop / ACCEPTED, site.drop / REFUSED], loaded)
    assert not broken, "\n".join(broken)
    assert {each.kind for each in deliveries.made} == set(KINDS)
    assert len(loaded) > 20
