"""Phones that are on the network when a change lists them: one event per device and listing, the same from each node. Conformance row 66."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site, until_async
from simulated.servers import Server, programs
from test_events import desk, told
from test_sightings import IMSI, asked

from eir.device import SNR_KEYS, device_key
from eir.lists.images.newly_listed import KEYS_AT_ONCE, newly_listed, without_listed
from eir.lists.images.table_image import image_of
from eir.lists.stores.open import open_store
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.table import table_of
from eir.node.processes.listed_search import _build_events
from eir.sightings.batches import FRAME
from eir.sightings.events import LISTED as EVENT
from eir.sightings.events import Events
from eir.sightings.files import write
from eir.sightings.seen import find_newest
from eir.sightings.settings import FULL
from eir.sightings.subscribers import Subscribers

OTHER, NEVER_SEEN = "86123456000017", "86123456000025"
TAC = int(UNLISTED[:8])


def keys(*imeis):
    return sorted(map(device_key, imeis))


def image(devices, tacs=()):
    """The image of a list of devices and of whole TACs."""
    return image_of(table_of(rows_of([*devices, *(WHOLE | tac for tac in tacs)])))


def test_more_newly_listed_devices_than_a_batch_has_come_once():
    devices = np.arange(130 * SNR_KEYS // 100, dtype="<u8") * np.uint64(100)
    found = np.concatenate([each.keys for each in newly_listed(None, image_of(table_of(rows_of(devices))))])
    assert len(found) == len(np.unique(found)) == len(devices) > KEYS_AT_ONCE


def test_newly_listed_devices_are_the_difference_of_two_images():
    before, now = image(keys(LISTED, OTHER)), image(keys(LISTED, TRACKED, NEVER_SEEN), [TAC])
    found = list(newly_listed(before, now))
    assert [key for each in found for key in each.keys.tolist()] == keys(TRACKED, NEVER_SEEN)
    assert [tac for each in found for tac in each.tacs.tolist()] == [TAC]
    assert list(newly_listed(now, now)) == []
    assert [key for each in newly_listed(None, before) for key in each.keys.tolist()] == keys(LISTED, OTHER)
    # A device that was listed by its TAC is not newly listed, and one that was listed singly is not if its TAC is.
    assert list(newly_listed(image([], [TAC]), image(keys(UNLISTED)))) == []
    assert without_listed(image(keys(UNLISTED)), np.array(keys(LISTED, UNLISTED), np.uint64)).tolist() == [False, True]


def test_the_newest_check_of_each_device_counts_of_the_last_hours_only(tmp_path):
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        dict.fromkeys(FRAME) | {"time": now - timedelta(hours=hours), "last": now - timedelta(hours=hours), "checks": 1, "imei": imei,
                                "device": device_key(imei), "peer": peer, "subscriber": IMSI, "status": "whitelisted"}
        for hours, imei, peer in ((30, LISTED, "old"), (30, TRACKED, "old"), (5, TRACKED, "mme1"), (2, TRACKED, "mme2"), (3, UNLISTED, "mme1"), (1, OTHER, "mme1"))
    ]  # fmt: skip
    write(tmp_path, pl.DataFrame(rows, schema=FRAME))
    since = datetime.now(UTC) - timedelta(hours=24)
    found = find_newest(tmp_path, since, np.array(keys(LISTED, TRACKED), np.uint64), np.array([TAC], np.uint64))
    assert [(row["device"], row["peer"]) for row in found.to_dicts()] == sorted(
        [(device_key(TRACKED), "mme2"), (device_key(UNLISTED), "mme1")]
    )


def test_the_id_of_an_event_is_that_of_the_change_which_listed_the_device_or_its_tac():
    device = device_key(UNLISTED)
    row = dict.fromkeys(("peer", "origin_host", "protocol", "subscriber", "home")) | {
        "device": device,
        "last": datetime(2026, 1, 1, tzinfo=UTC),
    }

    keys = {"single": device, "whole": WHOLE | TAC, "other": TAC * SNR_KEYS}

    def id_of(generation, *marks):
        changes = [(digest, np.array([keys[name]], "<u8")) for name, digest in marks]
        head = SimpleNamespace(generation=generation, serial=0)
        (event,) = _build_events(
            SimpleNamespace(listed=SimpleNamespace(name="own", state=head)), pl.DataFrame([row]), changes
        )
        return event["id"]

    assert id_of(5, ("single", "a")) == id_of(6, ("single", "a"), ("whole", "b")) == id_of(6, ("whole", "a"))
    assert len({id_of(5, ("single", "a")), id_of(5, ("whole", "b")), id_of(5), id_of(6)}) == 4
    assert id_of(5, ("other", "a")) == id_of(5)


def test_events_of_listed_devices_wait_for_room_and_lose_a_forgotten_subscriber():
    events = Events(per_second_max=2, watched={}, seen={}, origin="here")
    events.add_listed([{"id": str(number), "subscriber": IMSI} for number in range(5)])
    subscribers = Subscribers(FULL)
    assert [event["id"] for event in events.due(1.0, subscribers, 10)] == ["0", "1"]
    assert events.due(2.0, subscribers, 0) == []
    events.forget([IMSI])
    assert events.due(2.0, subscribers, 1) == [{"id": "2", "subscriber": None}]
    assert [len(events.due(second, subscribers, 10)) for second in (3.0, 4.0)] == [2, 0]
    assert (events.has_listed, events.dropped) == (False, 0)


@pytest.mark.long
@pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")
async def test_two_nodes_raise_the_same_event_for_each_listing(tmp_path, publisher, connect):
    """Row 66: a change that lists a seen device; the same content again; a rollback and a new load; an entry by hand; a whole TAC."""
    with Server(programs()["redis"]) as server, ExitStack() as stack, desk() as receiver:
        sites = [stack.enter_context(Site(tmp_path / name, publisher)) for name in ("a", "b")]
        rules = [
            {"list": "allowed", "answer": "whitelisted"},
            *({"list": name, "answer": "blacklisted"} for name in ("stolen", "own")),
        ]
        for site, how in zip(sites, ("full", "hashed"), strict=True):
            (site.folder / "webhook.key").write_text("key")
            webhook = {"url": f"http://127.0.0.1:{receiver.server_port}/", "key_file": "webhook.key"}
            site.configure(
                store=server.url, sightings={"subscribers": how, "webhook": webhook}, policy={"rules": rules},
                lists={"stolen": {"signers": "signers"}, "own": {"local": True}, "allowed": {"local": True}},
            )  # fmt: skip
        a, b = sites
        a.load([OTHER])
        for site in sites:
            await asked(await connect(site.start()), LISTED, TRACKED, UNLISTED, OTHER)

        def raised():
            return [event for event in told(receiver) if event["event"] == EVENT]

        async def follow(generation, name="stolen"):
            for site in sites:
                await until_async(lambda site=site: site.node.lines("list_in_force", list=name, generation=generation))

        async def await_events(count):
            await until_async(lambda: len(raised()) >= count)
            return raised()[-2:]

        assert raised() == []  # a list that is in force at the start lists nobody
        a.load([OTHER, LISTED, NEVER_SEEN], serial=2)
        first = await await_events(2)
        assert len({event["id"] for event in first}) == 1
        for event in first:
            assert {name: event[name] for name in ("list", "serial", "imei", "peer", "protocol")} == {
                "list": "stolen", "serial": 2, "imei": LISTED, "peer": "mme", "protocol": "s13",
            }  # fmt: skip
            assert abs(event["time"] - datetime.now(UTC).timestamp()) < 3600
        assert IMSI in {event["subscriber"] for event in first}
        assert len({event["subscriber"] for event in first}) == 2  # the other node has a hash
        a.load([OTHER, LISTED, NEVER_SEEN], serial=3)
        await follow(3)
        a.eir("rollback", "stolen", "--to", "1")
        await follow(4)
        a.load([OTHER, LISTED], serial=4)
        again = await await_events(4)
        assert {(event["imei"], event["serial"]) for event in again} == {(LISTED, 4)}
        assert len({event["id"] for event in (*first, *again)}) == 2
        b.eir("add", "allowed", TRACKED, "--reason", "registered")
        b.eir("add", "own", TRACKED, "--reason", "stolen")
        by_hand = await await_events(6)
        assert {(event["list"], event["imei"], event["serial"]) for event in by_hand} == {("own", TRACKED, 0)}
        store = open_store(server.url, a.state)
        change = (await store.heads())["own"].digest
        await store.close()
        digest = sha256(f"own\0{device_key(TRACKED)}\0{change}".encode()).hexdigest()
        assert {event["id"] for event in by_hand} == {f"{EVENT}-{digest[:32]}"}
        b.eir("add", "own", UNLISTED[:8], "--tac", "--force", "--reason", "recalled")
        model = await await_events(8)
        assert {(event["list"], event["imei"]) for event in model} == {("own", UNLISTED)}
        assert len({event["id"] for event in (*first, *again, *by_hand, *model)}) == 4
        assert len(raised()) == 8
