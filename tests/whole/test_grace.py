"""Periods of grace on real nodes, over S13, N5g-eir and MAP, on SQLite and on Redis with two nodes. Conformance rows 62 to 64, 67, 68."""

import asyncio
import os
import signal
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from simulated.node import children, until
from simulated.patience import FACTOR
from simulated.wire import HOST
from three_protocols import BLACK, DAY_S, DEVICES, GREY, WHITE, Host

from eir.lists.log.change import LEARN
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.stores.open import open_store
from eir.lists.table.columns import rows_of

ANOTHER = "490154203237518"


def policy(*rules, first=({"list": "registered", "answer": "whitelisted"},)):
    return {
        "rules": [*first, *rules, {"first_seen_within": "60d", "answer": "greylisted"}],
        "default": "blacklisted",
    }  # fmt: skip


GRACE = {"lists": {"registered": {"local": True}}, "first_seen": {"list": "first-seen"}, "policy": policy()}


@pytest.fixture
def graced(hosts):
    """Hosts with a record of first sightings."""

    def made(**settings):
        return hosts(**GRACE | settings)

    made.server = hosts.server
    return made


@pytest.mark.long(short=["sqlite"])
def test_one_period_and_then_none(graced):
    """Row 62: holds, holds, does not hold, the register's rule decides, does not hold."""
    there = graced()
    first, last = there[0], there[-1]
    assert first.answers() == {GREY}
    until(lambda: {host.entries() for host in there} == {3})
    for host in there:
        host.restart(60)
    assert last.answers() == {GREY}
    for host in there:
        host.restart(61)
    assert last.answers() == {BLACK} == first.answers()
    shown = last.site.json("check", DEVICES["s13"])
    assert shown["status"] == BLACK
    assert shown["first_seen"]
    assert shown["until"] > shown["first_seen"]
    first.site.eir("add", "registered", *DEVICES.values(), "--reason", "tax paid")
    until(lambda: last.answers() == {WHITE})
    until(lambda: {host.entries() for host in there} == {0})
    first.site.eir("remove", "registered", *DEVICES.values(), "--reason", "tax returned")
    until(lambda: {host.entries() for host in there} == {3})
    until(lambda: last.answers() == {BLACK} == first.answers())


@pytest.mark.long
def test_killed_processes_and_a_lost_store_cost_no_period(graced):
    """Row 63: the start of a period is the earliest day that is known anywhere."""
    there = graced()
    first, last = there[0], there[-1]
    assert first.answers() == {GREY}
    until(lambda: {host.entries() for host in there} == {3})
    for process in ("follower", "answering"):
        os.kill(children(first.site.node.pid)[process], signal.SIGKILL)
        until(lambda: first.ask("s13") == {GREY})
    devices = len(DEVICES)
    if graced.server is not None:
        graced.server.kill()
        assert first.ask("n5g", ANOTHER) == {GREY}
        until(lambda: [first.entries(), last.entries()] == [devices + 1, devices])
        first.restart(1)  # its own disk has the record
        until(lambda: first.entries() == devices + 1)
        last.restart(61)  # the clock of the node ends periods while the store is away
        assert last.answers() == {BLACK}
        assert last.ask("n5g", ANOTHER) == {GREY}, "new to this node"
        graced.server.start()  # empty
        devices += 1
    for host in there:
        host.restart(61)
    until(lambda: {host.entries() for host in there} == {devices})
    assert last.answers() == {BLACK} == first.answers()
    if graced.server is not None:
        until(lambda: last.ask("n5g", ANOTHER) == {BLACK} == first.ask("n5g", ANOTHER))  # the earliest day counts


@pytest.mark.long(short=["sqlite"])
def test_a_list_under_a_further_condition_gives_no_grace_without_end(graced):
    """Row 67: with another SIM its phones have one period, and the start warns that the list registers nothing."""
    lent = {"list": "registered", "imsi": ["20801"], "answer": "whitelisted"}
    there = graced(policy=policy(first=(lent,)))
    first = there[0]
    first.site.eir("add", "registered", *DEVICES.values(), "--reason", "lent")
    warnings = first.site.node.lines("config_warning")
    assert any("registers no device for a period of grace" in line["detail"] for line in warnings)
    assert first.answers() == {GREY}
    until(lambda: {host.entries() for host in there} == {3})
    first.restart(61)
    assert first.answers() == {BLACK}


@pytest.mark.long(short=["sqlite"])
def test_no_second_period_after_a_stop_or_an_end(graced):
    """Row 67: the list changes while all nodes are stopped; a registration ends by its `until`."""
    there = graced()
    first, last = there[0], there[-1]
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + DAY_S))
    first.site.eir("add", "registered", DEVICES["s13"], DEVICES["n5g"], "--reason", "tax paid")
    first.site.eir("add", "registered", DEVICES["map"], "--reason", "visitor", "--until", soon)
    until(lambda: last.answers() == {WHITE} == first.answers())
    for host in there:
        host.site.node.end()
    first.site.eir("remove", "registered", DEVICES["s13"], "--reason", "tax returned")
    for host in there:
        host.start(2)
    until(lambda: {host.entries() for host in there} == {2})
    assert last.ask("n5g") == {WHITE}
    assert last.ask("s13") | last.ask("map") | first.ask("s13") | first.ask("map") == {BLACK}


@pytest.mark.long(short=["sqlite"])
def test_no_check_comes_between_a_registration_and_the_end_of_the_period(graced):
    """Row 67: a registration ends by its `until` or by a removal; the follower is killed as soon as the removal is in force."""
    there = graced()
    first = there[0]
    end = time.time() + 10 * FACTOR
    first.site.eir(
        "add", "registered", DEVICES["map"], "--reason", "visitor",
        "--until", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end)),
    )  # fmt: skip
    first.site.eir("add", "registered", DEVICES["s13"], "--reason", "tax paid")
    until(lambda: {answer for host in there for answer in host.ask("s13")} == {WHITE})
    first.site.eir("remove", "registered", DEVICES["s13"], "--reason", "tax returned")
    until(lambda: first.ask("s13") != {WHITE})
    os.kill(children(first.site.node.pid)["follower"], signal.SIGKILL)
    assert first.ask("s13") == {BLACK}
    assert first.ask("map") == {WHITE} or time.time() >= end - 1
    until(lambda: time.time() >= end - 1 and first.ask("map") != {WHITE})  # no probe for the time until then
    assert first.ask("map") == {BLACK}
    until(lambda: {host.entries() for host in there} == {2})
    assert {answer for host in there for answer in host.ask("s13") | host.ask("map")} == {BLACK}


def test_forged_rows_of_a_thief_are_an_alert_and_end_no_period(graced):
    """Row 68: a first day long ago, a change dated 2020, and a removal."""
    there = graced()
    first, last = there[0], there[-1]
    first.answers()
    until(lambda: {host.entries() for host in there} == {3})
    asyncio.run(_forge(first.site))
    for host in there:
        until(lambda host=host: host.site.node.metrics()["eir_first_seen_refused_devices"] == 2)
        assert any("break a bound" in each for each in host.site.node.status()["troubles"])
    assert last.answers() == {GREY} == first.answers()


async def _forge(site):
    """Write to the record as a thief of a node's password could."""
    store = open_store(site.settings["store"], site.state)
    keys = [np.array([int(DEVICES[each][:14])], "<u8") for each in ("s13", "n5g", "map")]
    today, old = int(time.time()) // DAY_S, datetime(2020, 1, 1, tzinfo=UTC)
    rows = sighted_rows(keys[0], today - 100, today), sighted_rows(keys[1], 18_000, today)
    for update, now in (
        (ListUpdate(what=LEARN, added=rows[0]), datetime.now(UTC)), (ListUpdate(what=LEARN, added=rows[1]), old),
        (ListUpdate(what=LEARN, removed=rows_of(keys[2])), datetime.now(UTC)),
    ):  # fmt: skip
        await ListWriter(store, "first-seen", FIRST_SEEN, "thief", now=lambda now=now: now).write(
            lambda _, update=update: update
        )
    await store.close()


@pytest.mark.long(short=["sqlite"])
def test_a_clock_that_jumps_ahead_ends_no_period(graced):
    """Row 63: the node goes on by the time that it saw last, and a day that is a guess is not earlier than the right one."""
    there = graced()
    first = there[0]
    assert first.answers() == {GREY}
    until(first.entries)
    first.site.node.end()
    (first.site.state / "clock").write_text(f"{time.time() - 61 * DAY_S:.0f}\n")  # as if the wall clock had jumped
    first.site.start()
    assert first.answers() == {GREY}


@pytest.mark.long(short=["sqlite"])
def test_the_limit_of_a_peer_survives_a_restart_of_the_processes(graced):
    """Row 64: the node keeps the number of new devices of each peer while its follower and answering process are replaced."""
    there = graced(first_seen={"new_per_peer": "5/d"}, peers=[{"name": "mme", "host": HOST}])
    first = there[0]
    invented = [f"{35100000000000 + 1_000_007 * number}" for number in range(40)]
    first.ask("s13", *invented[:3])
    until(lambda: {host.entries() for host in there} == {3})
    for process in ("answering", "follower"):
        pid = children(first.site.node.pid)[process]
        os.kill(pid, signal.SIGKILL)
        until(lambda name=process, pid=pid: children(first.site.node.pid).get(name, pid) != pid)
    first.ask("s13", *invented[3:])
    until(lambda: first.entries() >= 5)
    first.site.node.end()
    assert len(first.site.eir("export", "first-seen").stdout.splitlines()) == 1 + 5


def test_a_node_whose_clock_was_a_year_ahead_at_its_start_warns(tmp_path, publisher):
    """Row 68: its time stays a year ahead, because it never goes back."""
    host = Host(tmp_path / "a", publisher, "sqlite", **GRACE)
    with host.site as site:
        host.start(days=365)
        until(lambda: any("clock and the time of the node differ" in each for each in site.node.status()["troubles"]))
        until(lambda: site.node.metrics()["eir_clock_difference_seconds"] > 364 * DAY_S)
        until(lambda: site.node.lines("clock_jumped", level="warning"))
        site.node.end()
        (site.state / "clock").unlink()
        site.start()
        assert site.node.metrics()["eir_clock_difference_seconds"] < 60


@pytest.mark.long(short=["sqlite"])
def test_a_flood_of_one_peer_is_answered_and_not_recorded(graced):
    """Row 64: above the limit of a peer nothing is recorded; the devices of another peer are."""
    peers = [{"name": "mme", "host": HOST}, {"name": "amf", "from": ["127.0.0.0/8"]}]
    there = graced(first_seen={"list": "first-seen", "new_per_peer": "5/d"}, peers=peers)
    first = there[0]
    invented = [f"{35100000000000 + 1_000_007 * number}" for number in range(40)]
    assert first.ask("s13", *invented) == {GREY} == first.ask("n5g", ANOTHER)
    until(lambda: {host.entries() for host in there} == {6})
    assert first.site.node.metrics()["eir_first_seen_unrecorded_checks_total{peer=mme}"] == 35
