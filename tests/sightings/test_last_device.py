"""Last devices of SIMs: sightings from workers' messages, events of changes, and both on nodes. Conformance row 71."""

import asyncio
import os
import signal
import subprocess
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from operator import itemgetter

import numpy as np
import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site, children, until_async
from simulated.servers import Server, programs
from test_events import desk, told
from test_sightings import IMSI, OTHER_IMSI, Handed, Kept, asked, each

from eir.config import load_config
from eir.device import SNR_KEYS, device_key, device_type_key
from eir.errors import EirError
from eir.lists.log.change import LEARN
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.last_devices import (
    PAIRING,
    SIGHTING,
    file_form,
    pairing_rows,
    pairings_after,
    sim_key,
    sim_of,
    sim_text,
)
from eir.lists.record.settings import LAST_DEVICE, TYPES
from eir.lists.stores.open import open_store
from eir.lists.table.columns import rows_of
from eir.node.processes import last_device
from eir.node.processes.last_device import DeviceChanges, agree_on_key, sim_sightings
from eir.sightings.deliver import EventSender, webhook
from eir.sightings.events import DEVICE_CHANGED

ONE, TWO, SAME_MODEL = "35209900176148", "86123456789012", "35209900176155"
START = 1_796_000_000
KEY = sim_key(b"secret")


def sightings_of(*checks, key=None):
    handed = Handed()
    handed.add(*checks)
    handed.flush()
    found = {}
    for peer, octets in sim_sightings(handed.messages, key):
        found[peer] = [(sim_text(int(sim), key), int(device)) for sim, device, _ in np.frombuffer(octets, SIGHTING)]
    return found


def test_sightings_are_of_authenticated_sims_in_devices_with_an_imei():
    checks = [
        each(LISTED),
        each(LISTED),
        each(TRACKED + "0", imsi=OTHER_IMSI),
        each(UNLISTED, imsi=""),
        each("nonsense"),
        each("0" * 15),
        each("A00000123456DE"),
    ]
    assert sightings_of(*checks) == {"mme": [(IMSI, device_key(LISTED)), (OTHER_IMSI, device_key(TRACKED))]}
    assert sightings_of(each(LISTED, early=True)) == {}
    assert sightings_of(each(LISTED), key=KEY) == {"mme": [(f"{sim_of(IMSI, KEY):016x}", device_key(LISTED))]}


@pytest.fixture
def configured(site):
    """Makes the configuration of a host; `more` are settings."""

    def configured(how="full", url="http://127.0.0.1:9/", **more):
        (site.folder / "webhook.key").write_text("secret\n")
        hook = {"url": url, "key_file": "webhook.key"}
        site.configure(sightings={"subscribers": how, "webhook": hook}, last_device=more)
        return load_config(site.path)

    return configured


class TestKey:
    async def test_the_first_node_chooses_the_form_of_the_sims_and_others_must_have_it(
        self, configured, store, tmp_path
    ):
        config = configured("hashed")
        key = await agree_on_key(store, config, config.last_device, "a")
        assert len(key) == 32
        assert await agree_on_key(store, config, config.last_device, "b") == key
        (tmp_path / "sim.key").write_text("another\n")
        for other in (configured("full"), configured("hashed", key_file=str(tmp_path / "sim.key"))):
            with pytest.raises(
                EirError,
                match=r"last-device has SIMs of another form or key.*set sightings.subscribers and last_device.key_file",
            ):
                await agree_on_key(store, other, other.last_device, "b")

    async def test_two_keys_on_two_nodes_are_named(self, configured, store, tmp_path):
        (tmp_path / "sim.key").write_text("secret\n")
        config = configured("hashed", key_file=str(tmp_path / "sim.key"))
        assert await agree_on_key(store, config, config.last_device, "a") == KEY
        (tmp_path / "sim.key").write_text("other\n")
        with pytest.raises(EirError, match="another form or key"):
            await agree_on_key(store, config, config.last_device, "b")
        (tmp_path / "sim.key").unlink()
        with pytest.raises(EirError, match=r"sim\.key: No such file"):
            file_form(tmp_path / "sim.key")

    async def test_imsis_have_no_key(self, configured, store):
        config = configured("full")
        assert await agree_on_key(store, config, config.last_device, "a") is None


class Changes:
    """Writer of a list of last devices, and the events of its log."""

    def __init__(self, config, store, url, who="here"):
        self.store, self.counts, self.faults = store, [], []
        self.writer = ListWriter(store, "last-device", LAST_DEVICE, "mme-host:1")
        self.form = {"registered": ("imsi",)}
        sender = EventSender(
            "webhook", webhook(url, config.sightings.webhook.key_file), lambda *count: self.counts.append(count), again_s=(0.05, 0.1),
            report=lambda *_, **fields: self.faults.append(fields),
        )  # fmt: skip
        self.events = DeviceChanges(
            config, config.last_device, store, sender, who=who, report=lambda *_, **fields: self.faults.append(fields)
        )
        self.pairings = np.empty(0, PAIRING)

    async def come(self, device, at, imsi=IMSI):
        """Write the change of a SIM that comes into a device."""
        sightings = np.array([(sim_of(imsi, None), device_key(device), START + at)], SIGHTING)
        mine = self.pairings[self.pairings["sim"] == sightings["sim"][0]]
        after = pairings_after(mine, sightings, START + at)
        self.pairings = np.concatenate([self.pairings[self.pairings["sim"] != sightings["sim"][0]], after])
        update = ListUpdate(what=LEARN, added=pairing_rows(after), removed=pairing_rows(mine), state=self.form)
        await self.writer.write(lambda _: update)

    @asynccontextmanager
    async def posting(self):
        task = asyncio.create_task(self.events.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def posted(monkeypatch):
    monkeypatch.setattr(last_device, "LEASE_S", 0.6)
    monkeypatch.setattr(last_device, "OLD_S", 1e10)


@pytest.fixture
async def store(tmp_path):
    opened = open_store("sqlite", tmp_path)
    yield opened
    await opened.close()


@pytest.mark.usefixtures("posted")
class TestEvents:
    async def test_an_event_has_sim_number_devices_types_kind_and_time(self, configured, store, tmp_path):
        (tmp_path / "numbers").write_text(f"85512345678,{IMSI}\n")
        with desk() as server:
            config = configured(url=f"http://127.0.0.1:{server.server_port}/", events=["first", "device", "model"])
            tacs = {"tacs": replace(next(iter(config.lists.values())), name="tacs", kind=TYPES)}
            config = replace(config, numbers=tmp_path / "numbers", lists=tacs)
            types = rows_of([device_key(ONE) // SNR_KEYS * SNR_KEYS], seconds=device_type_key("Smartphone"), reasons=1)
            await ListWriter(store, "tacs", TYPES, "x").write(
                lambda _: ListUpdate(what="load", added=types, reasons=("", "Smartphone"))
            )
            changes = Changes(config, store, config.sightings.webhook.url)
            for at, device in enumerate((ONE, SAME_MODEL, TWO)):
                await changes.come(device, at)
            async with changes.posting():
                await until_async(lambda: len(told(server)) == 3)
        first, same, other = told(server)
        assert first == {
            "id": first["id"], "event": DEVICE_CHANGED, "kind": "first", "dual_use": False, "time": START, "subscriber": IMSI, "msisdn": "85512345678",
            "imei": ONE, "type": "Smartphone", "previous": None, "previous_type": None, "origin": "mme-host",
        }  # fmt: skip
        assert (same["kind"], same["previous"], other["kind"], other["type"], other["previous_type"]) == (
            "device",
            ONE,
            "model",
            None,
            "Smartphone",
        )
        assert len({event["id"] for event in told(server)}) == 3

    async def test_a_sim_that_alternates_is_named_once_and_then_quiet(self, configured, store):
        with desk() as server:
            config = configured(url=f"http://127.0.0.1:{server.server_port}/")
            changes = Changes(config, store, config.sightings.webhook.url)
            for at, device in enumerate((ONE, TWO, ONE, TWO, ONE, TWO, SAME_MODEL)):
                await changes.come(device, at)
            async with changes.posting():
                await until_async(lambda: len(told(server)) == 4)
        assert [(event["imei"], event["dual_use"]) for event in told(server)] == [
            (TWO, False),
            (ONE, False),
            (TWO, True),
            (SAME_MODEL, False),
        ]

    async def test_events_are_in_order_and_none_is_lost_over_kills_of_the_posting_node_and_an_absent_receiver(
        self, configured, store
    ):
        with desk() as server:
            config = configured(url=f"http://127.0.0.1:{server.server_port}/")
            one, two = (Changes(config, store, config.sightings.webhook.url, who=who) for who in ("one", "two"))
            await one.come(ONE, 0)
            async with one.posting():
                await one.come(TWO, 1)
                await until_async(lambda: len(told(server)) == 1)
                async with two.posting():
                    await one.come(LISTED, 2)
                    await until_async(lambda: len(told(server)) == 2)
                server.status = 503
                await one.come(TRACKED, 3)
                await until_async(lambda: any(fault.get("reason") == "webhook" for fault in one.faults))
            assert not two.counts  # the other one held the lease
            server.status = 200
            await one.come(UNLISTED, 4)
            async with two.posting():
                await until_async(lambda: len(told(server)) >= 4)
            again = Changes(config, store, config.sightings.webhook.url, who="again")
            async with again.posting():
                await one.come(ONE, 5)
                await until_async(lambda: told(server)[-1]["imei"] == ONE)
        once = {event["id"]: event["imei"] for event in told(server)}  # an event may come again after a kill
        assert [*once.values()] == [text[:14] for text in (TWO, LISTED, TRACKED, UNLISTED, ONE)]

    async def test_old_changes_cause_no_event_where_nothing_was_posted_before(self, configured, store, monkeypatch):
        monkeypatch.setattr(last_device, "OLD_S", -1e10)
        with desk() as server:
            config = configured(url=f"http://127.0.0.1:{server.server_port}/")
            changes = Changes(config, store, config.sightings.webhook.url)
            for at, device in enumerate((ONE, TWO)):
                await changes.come(device, at)
            async with changes.posting():
                await until_async(lambda: changes.events._posted == 2)
                await changes.come(LISTED, 2)
                await until_async(lambda: told(server))
        assert [event["imei"] for event in told(server)] == [LISTED[:14]]


def changed(server):
    return [event for event in told(server) if event["event"] == DEVICE_CHANGED]


async def next_second(server):
    """Wait until a change is later than the last one: times are in seconds."""
    await until_async(lambda: time.time() >= changed(server)[-1]["time"] + 1)


def find_and_block(site, kept):
    """The last devices of a number are LISTED and then UNLISTED; only the last one is blocked, after a question."""
    found = kept.json("seen", "+85512345678")["last_devices"]
    assert [device["imei"] for device in found] == [LISTED[:14], UNLISTED[:14]]
    assert found == sorted(found, key=itemgetter("since")) == kept.json("seen", IMSI)["last_devices"]
    table = kept.eir("seen", IMSI).out.partition("\nLast devices of the SIM:\n")[2].splitlines()
    assert [line.split()[0] for line in table] == ["imei", LISTED[:14], UNLISTED[:14]]
    add = ("add", "own", "--reason", "stolen", "--number", "+85512345678")
    asked = site.eir(*add, status=1, stdin=subprocess.DEVNULL).stderr
    assert f"+85512345678: last device {UNLISTED[:14]}, since {found[1]['since']}\nAdd {UNLISTED[:14]} to own?" in asked
    assert kept.json("show", "own", status=1)["entries"] == []
    kept.eir(*add, "--yes")
    blocked = kept.json("show", "own")
    assert (blocked["total"], UNLISTED[:14] in str(blocked["entries"])) == (1, True)
    for status, expected, *options in (
        (1, f"the last device is not known: no device of its IMSI {OTHER_IMSI} is on record; give the IMEI", "own", "--number", "+85512345679"),
        (1, "the last device is not known: no recorded check has the number; give the IMEI", "own", "--number", "+85512345670"),
        (2, "expected a number such as +", "own", "--number", "85512345678"), (2, "expected IMEIs, or --number", "own", LISTED, "--number", "+85512345678"),
        (2, "simlist is a list of subscribers; give +85512345678", "simlist", "--number", "+85512345678"),
    ):  # fmt: skip
        assert expected in kept.eir("add", *options, "--reason", "x", status=status).err


async def test_a_node_reports_known_changes_over_kills_of_its_processes(
    site, connect, configured, constants, eir, monkeypatch
):
    """From S13 to the receiver; kill -9 of recorder and follower between two changes."""
    constants({"eir.node.processes.last_device.LEASE_S": 1.0})
    with desk() as server:
        site.settings["lists"] |= {"own": {"local": True}, "simlist": {"local": True, "kind": "subscribers"}}
        (site.folder / "numbers").write_text(f"85512345678,{IMSI}\n85512345679,{OTHER_IMSI}\n")
        site.settings["numbers"] = "numbers"
        configured("full", f"http://127.0.0.1:{server.server_port}/", events=["first", "device", "model"])
        node = site.start()
        mme = await connect(node)
        await asked(mme, LISTED)
        await until_async(lambda: len(changed(server)) == 1)
        devices = [UNLISTED, TRACKED, LISTED, UNLISTED]
        for count, device in enumerate(devices, 2):
            name = "follower" if count % 2 else "recorder"
            await next_second(server)
            os.kill(children(node.pid)[name], signal.SIGKILL)
            await asked(mme, device)
            await until_async(lambda count=count: len({event["id"] for event in changed(server)}) == count)
        found = {event["id"]: event for event in changed(server)}
        assert [event["imei"] for event in found.values()] == [text[:14] for text in (LISTED, *devices)]
        assert {event["subscriber"] for event in found.values()} == {IMSI}
        assert node.metrics()["eir_last_device_changes_total{change=changed}"] >= 1
        monkeypatch.setenv("EIR_CONFIG", str(site.path))
        monkeypatch.chdir(site.folder)
        await asyncio.to_thread(find_and_block, site, Kept(site, eir))
        result = await asyncio.to_thread(site.json, "sightings", "forget", "--imsi", IMSI)
        assert result["last_devices"] == 2
        await next_second(server)
        await asked(mme, TRACKED)
        await until_async(lambda: changed(server)[-1]["kind"] == "first")
        assert changed(server)[-1]["imei"] == TRACKED[:14]


@pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")
async def test_two_nodes_report_one_change_once(tmp_path, publisher, connect, constants):
    """Two nodes on one Redis see each change in the same second; each has the key of the store; the node that posts is killed, and Redis loses its data."""
    constants({"eir.node.processes.last_device.LEASE_S": 1.0})
    with Server(programs()["redis"]) as redis, ExitStack() as stack, desk() as server:
        sites = [stack.enter_context(Site(tmp_path / name, publisher)) for name in ("a", "b")]
        for site in sites:
            (site.folder / "webhook.key").write_text("key")
            hook = {"url": f"http://127.0.0.1:{server.server_port}/", "key_file": "webhook.key"}
            site.configure(
                store=redis.url, sightings={"webhook": hook}, last_device={"events": ["first", "device", "model"]}
            )
        mmes = [await connect(site.start()) for site in sites]
        for count, device in enumerate((LISTED, UNLISTED, TRACKED), 1):
            for mme in mmes:
                await asked(mme, device)
            await until_async(lambda count=count: len({event["id"] for event in changed(server)}) == count)
            await next_second(server)
        assert [event["imei"] for event in changed(server)] == [LISTED[:14], UNLISTED[:14], TRACKED[:14]]
        redis.flush()
        sites[0].node.signal(signal.SIGKILL)
        await asked(mmes[1], LISTED)
        await until_async(lambda: len({event["id"] for event in changed(server)}) == 4)
        assert changed(server)[-1]["previous"] == TRACKED[:14]
        assert len({event["subscriber"] for event in changed(server)}) == 1
