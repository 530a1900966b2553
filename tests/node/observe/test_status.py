"""What a node says of itself: readiness and warnings by the report of the answering process, and pages that a fault of ours does not take away."""

import asyncio
import getpass
import socket
from dataclasses import replace
from functools import partial

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, until
from simulated.wire import ecr
from troubles import alerts_of

from eir import __version__
from eir.errors import EirError
from eir.interfaces.s13.lane import COMPILED, LANE
from eir.lists.log.change import Head
from eir.node.observe.alerts import Alerts
from eir.node.observe.control import ask as control
from eir.node.observe.http import pages
from eir.node.observe.metrics import FAMILIES
from eir.node.observe.status import AnsweringReport, NodeHealth, Running, merged_peers
from eir.node.processes.following import Followed, Following
from eir.schema import DETAILS
from eir.wire.peers.status import Failure
from eir.wire.web.http1 import HttpRequest

HEALTHY = {"missing": (), "lists": {}, "checks": 0, "connected": {"mme": 1}}
HEALTHY_METRICS = {"eir_store_up": {(): 1.0}, "eir_list_serial": {("stolen",): 1.0}}
AWAY = "the store is away; the node answers from memory"
SHEDDING = "peers whose requests above a rate limit were rejected in the last 5 minutes: mme rate_max"
LISTENING = Running(["tcp://127.0.0.1:3868"])


def status_of(metrics=lambda: HEALTHY_METRICS, running=lambda: LISTENING, **parts):
    """The status of a node whose parts have these metrics, as the manager puts it together."""
    known = {
        "pid": 1,
        "report": lambda *_, **__: None,
        "running": running,
        "snapshots": lambda: [metrics()],
    }
    return NodeHealth(**known | parts)


def document_of(node, found, **metrics):
    """The document of `eir status` if the answering process reports this, and the node has these metrics as well."""
    return node.document(found, Alerts().troubles(node.snapshot(found) | metrics, node.started + 3600))


def answering(**changes):
    """What the answering process reports."""
    return AnsweringReport(**HEALTHY | changes)


@pytest.fixture
def told():
    """Reports, as (event, reason)."""
    return []


@pytest.fixture
def report(told):
    return lambda event, *, reason=None, **_: told.append((event, reason))


@pytest.fixture
def metrics():
    """Metrics of the parts of the manager, for a test to change."""
    return dict(HEALTHY_METRICS)


@pytest.fixture
def running():
    """The addresses of a node that listens, for a test to change."""
    return [LISTENING]


@pytest.fixture
def node(report, metrics, running):
    """The status of such a node."""
    return status_of(lambda: metrics, lambda: running[0], report=report)


async def shown(node, found, path="/ready"):
    """A page while the answering process reports this."""

    async def reported():
        return found

    served = pages(reported, reported, node, computing=asyncio.Semaphore(), report=lambda *_, **__: None)
    return await served[path](HttpRequest("GET", path))


def test_a_refusal_is_a_warning_until_the_peer_is_connected(report):
    now = 10_000.0
    node = status_of(report=report, now=lambda: now)

    def summary(refused, newest):
        failure = Failure(refused, "it offers no S13", refusal=True)
        found = answering(refused={"mme": failure}, newest={"mme": newest} if newest else {})
        return document_of(node, found)["summary"]

    assert "peers that were refused, or refused the node: mme (it offers no S13)" in summary(now - 5000, None)
    assert "it offers no S13" in summary(now - 100, now - 200)  # another one of that label is connected
    assert "it offers no S13" not in summary(now - 5000, now - 9000)
    assert "it offers no S13" not in summary(now - 200, now - 100)


def test_the_first_line_has_version_and_lane_and_others_only_what_changed(metrics, running):
    lines = []
    running[0] = Running()
    node = status_of(lambda: metrics, lambda: running[0], report=lambda *event, **more: lines.append((event, more)))
    node.log_readiness(answering())
    running[0] = LISTENING
    node.log_readiness(answering())
    node.log_readiness(answering())
    metrics["eir_store_up"] = {(): 0.0}
    node.log_readiness(answering())
    running[0] = LISTENING._replace(is_stopping=True)
    node.log_readiness(None)
    nothing = {"version": None, "lane": None, "detail": None}
    slow = None if COMPILED else "no compiled lane: a check costs many times as much"
    assert lines == [
        (("serving",), {"level": "warning", "reason": "not listening yet", "version": __version__, "lane": LANE, "detail": slow}),
        (("ready",), {"level": "info", "reason": None} | nothing),
        (("degraded",), {"level": "warning", "reason": AWAY} | nothing),
    ]  # fmt: skip


def test_a_lost_path_is_a_warning(node):
    details = {("EirPathLost", "mme", "10.30.1.1"): 1.0}
    found = document_of(node, answering(), eir_sctp_paths={("mme", "down"): 1.0}, details=details)
    assert (found["code"], "peers with SCTP paths that are down: mme (10.30.1.1)" in found["summary"]) == (1, True)


@pytest.mark.parametrize(("days", "warned"), [(None, False), (15, False), (13, True), (0, True)])
def test_a_certificate_that_ends_soon_is_a_warning(node, days, warned):
    ends = {} if days is None else {(): node.started + 3600 + days * 86400}
    found = document_of(node, answering(), eir_tls_certificate_expires_timestamp_seconds=ends)
    assert ("EirCertificateExpires" in alerts_of(found)) is warned


def test_conditions_that_degrade_the_node_come_first(node, metrics):
    metrics["eir_override_active"] = {(): 1.0}
    metrics["eir_copy_failed"] = {("stolen",): 1.0}
    metrics[DETAILS] = {("EirCopyFailed", "stolen", "no room"): 1.0}
    found = document_of(node, answering())
    assert found["troubles"] == [
        "lists whose last good copy cannot be written or read, or is in force without the store: stolen (no room)",
        "the policy's override gives every check the same answer",
    ]
    assert (found["state"], found["ready"]) == ("WARNING", "degraded")


async def test_a_metric_without_a_place_is_reported_once_and_costs_no_page(node, report, told):
    async def numbers():
        return {"eir_surprise": {(): 1.0}, "eir_store_up": {(): 1.0}}

    served = pages(numbers, numbers, node, computing=asyncio.Semaphore(), report=report)
    show = partial(served["/metrics"], HttpRequest("GET", "/metrics"))
    for _ in range(2):
        page = await show()
        assert page.status == 200
        assert b"eir_store_up 1.0" in page.body
    assert told == [("metric_unknown", "eir_surprise")]


def test_a_node_has_no_metric_without_a_place(site):
    node = site.start()
    assert len(node.metrics()) > len(FAMILIES) / 2
    node.end()
    assert node.lines("metric_unknown") == []


def test_requests_that_are_turned_away_are_a_warning(node):
    assert document_of(node, answering())["state"] == "OK"
    said = document_of(node, answering(), eir_shed_total={("mme", "rate_max"): 1.0})
    assert (said["state"], said["ready"]) == ("WARNING", "ready")
    assert said["summary"].startswith(SHEDDING)


async def test_a_flood_above_the_limit_is_a_line_with_its_count_and_a_warning(site, connect):
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    site.configure(peers=[site.settings["peers"][0] | {"rate_max": 1}])
    node = site.start()
    client = await connect(node)
    await client.send(*[ecr(LISTED)] * 50)
    results = [(await client.read()).result for _ in range(50)]
    assert SHEDDING in node.status()["troubles"]
    client.writer.transport.abort()  # nobody is waited for at the end, so that the line is of the end
    node.end()
    lines = node.lines("shed", peer="mme", reason="rate_max", level="warning")
    assert 1 <= len(lines) <= 2
    assert sum(int(line["count"]) for line in lines) == 50 - results.count(2001) > 0


def test_peers_that_are_missing_or_disabled_are_named(node):
    def found(connected, disabled=(), up_s=3600):
        node.started = 1_000_000.0
        metrics = node.snapshot(answering()) | {
            "eir_peer_up": {(label,): float(number) for label, number in connected.items()},
            "eir_peer_disabled": {(label,): float(label in disabled) for label in connected},
        }
        document = node.document(answering(), Alerts().troubles(metrics, node.started + up_s))
        return document["state"], document["troubles"]

    absent = {"mme": 0, "dra": 0}
    assert found(absent, up_s=59) == ("OK", [])  # they may well be on their way just after the start
    assert found(absent) == ("CRITICAL", ["peers without a connection: mme, dra", "no peer is connected"])
    assert found({"mme": 1, "dra": 0}, ["dra"]) == ("WARNING", ["peer dra is disabled"])
    assert found({"mme": 1, "dra": 0}) == ("WARNING", ["peers without a connection: dra"])
    assert found({"mme": 1, "dra": 0, "sgsn": 0}, ["sgsn"]) == (
        "WARNING", ["peers without a connection: dra", "peer sgsn is disabled"],
    )  # fmt: skip
    many = {"mme": 1} | {f"p{n}": 0 for n in range(12)}
    shown = ", ".join(f"p{n}" for n in range(10))
    assert found(many) == ("WARNING", [f"peers without a connection: {shown}, 2 more"])
    assert found({"mme": 1, "dra": 2}) == ("OK", [])


def test_a_peer_that_is_disabled_is_a_metric_and_a_warning(site):
    node = site.start()
    assert node.metrics()["eir_peer_disabled{peer=mme}"] == 0
    control(site.state, "peer_disable", name="mme")
    assert node.metrics()["eir_peer_disabled{peer=mme}"] == 1
    assert "peer mme is disabled" in node.status()["summary"]
    control(site.state, "peer_enable", name="mme")
    assert node.metrics()["eir_peer_disabled{peer=mme}"] == 0


async def test_peers_are_shown_with_who_connects_and_what_went_wrong(site, connect):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    site.configure(peers=[*site.settings["peers"], {"name": "dra", "host": "dra.example.org", "connect": nobody}])
    node = site.start()
    await connect(node)
    until(
        lambda: [
            row["last_error"] for row in control(site.state, "peers") if row["label"] == "dra" and row["last_error"]
        ]
    )
    there, absent = control(site.state, "peers")
    assert (there["label"], there["direction"], there["last_error"]) == ("mme", "in", None)
    assert there["since"] <= there["last_seen"]
    assert (absent["label"], absent["direction"], absent["since"], absent["last_seen"]) == ("dra", "out", None, None)
    assert site.eir("peers").stdout.count(" out ") + site.eir("peers").stdout.count("out\n") >= 1


def test_connections_that_are_over_are_one_row_whichever_protocols_had_them():
    nothing = dict.fromkeys(("since", "last_error", "last_error_at", "last_seen", "address"))
    amf = nothing | {"label": "amf", "state": "ended", "connections": 2, "requests": 5, "answers": 4}
    away = nothing | {"label": "mme", "state": "closed", "connections": 0}
    there = nothing | {"label": "amf", "state": "open", "address": "127.0.0.1:1", "since": 7.0, "last_seen": 8.0}
    shown = merged_peers([amf | {"last_seen": 3.0}, away, there, amf | {"requests": 6}, away])
    assert [(row["label"], row["state"]) for row in shown] == [
        ("amf", "open"), ("amf", "ended"), ("mme", "closed"),
    ]  # fmt: skip
    assert [shown[1][name] for name in ("connections", "requests", "answers", "last_seen")] == [4, 11, 8, 8.0]


async def test_a_list_that_is_new_to_a_ready_node_degrades_it_and_one_that_it_started_without_does_not(node, told):
    stolen = Head(kind="devices", serial=1, generation=1, highest_serial=1, release="", entries=1)
    node.log_readiness(answering(missing=["stolen"]))
    assert told == [("serving", "list stolen has never been loaded")]
    assert (await shown(node, answering(missing=["stolen"]))).status == 503
    assert (await shown(node, answering(lists={"stolen": stolen}))).body == b"ready\n"
    late = answering(lists={"stolen": stolen}, missing=["late"])
    said = await shown(node, late)
    assert (said.status, said.body) == (200, b"degraded\nlist late has never been loaded\n")
    assert document_of(node, late)["state"] == "CRITICAL"
    assert (await shown(node, answering(missing=["stolen"]))).status == 503  # the process came back without it


def test_each_change_of_readiness_is_one_line(report, told, running):
    followed = Followed(None, None, report=report)
    followed.status = following = Following(store_up=False, lost={}, from_copy=(), in_step_at=0.0)
    node = status_of(followed.snapshot, lambda: running[0], report=report)
    node.log_readiness(answering())
    assert told == [("serving", AWAY)]
    lost = "lists of which the store lost data: stolen (it shows serial 1)"
    copied = "lists whose last good copy cannot be written or read, or is in force without the store: stolen (this node's last good copy is in force)"
    changes = [
        ({"store_up": False}, []),
        ({}, [("ready", None)]),
        ({}, []),
        ({"store_up": False}, [("degraded", AWAY)]),
        ({"store_up": False, "lost": {"stolen": "serial 1"}}, [("degraded", f"{AWAY}; {lost}")]),
        ({"lost": {"stolen": "serial 1"}}, [("degraded", lost)]),
        ({"lost": {"stolen": "serial 1"}}, []),
        ({"from_copy": ["stolen"]}, [("degraded", copied)]),
        ({}, [("ready", None)]),
    ]
    for changed, lines in changes:
        told.clear()
        followed.status = replace(following, **{"store_up": True} | changed)
        node.log_readiness(answering())
        assert told == lines
    told.clear()
    node.log_readiness(None)
    assert told == [("not_ready", "the answering process does not answer")]
    running[0] = LISTENING._replace(is_stopping=True)
    node.log_readiness(answering())  # the end has lines of its own
    assert len(told) == 1


def test_a_node_that_began_without_lists_reports_when_it_is_ready(site):
    node = site.start()
    until(lambda: node.lines("serving"))
    missing = [f"list {name} has never been loaded" for name in ("stolen", "tracked")]
    assert node.lines("serving")[0]["reason"] == "; ".join(missing)
    site.load([LISTED])
    until(lambda: node.lines("not_ready", reason=missing[1]))
    site.load([TRACKED], list_name="tracked")
    until(lambda: node.lines("ready"))
    node.end()
    assert [line["event"] for line in node.lines() if line["event"] in {"serving", "not_ready", "degraded", "ready"}] == [
        "serving", "not_ready", "ready",
    ]  # fmt: skip


def test_who_did_what_stands_in_the_log(site):
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    until(lambda: node.lines("ready"))
    user = getpass.getuser()
    control(site.state, "peer_disable", name="mme")
    control(site.state, "peer_enable", name="mme")
    policy = site.settings["policy"]
    late = {"list": "late", "answer": "blacklisted"}
    site.configure(
        lists=site.settings["lists"] | {"late": {"signers": "signers"}}, policy={"rules": [late, *policy["rules"]]}
    )
    assert control(site.state, "reload") == "reloaded; list late has never been loaded: load it first"
    assert node.get("/ready") == (200, "degraded\nlist late has never been loaded\n")
    site.configure(surplus=1)
    with pytest.raises(EirError, match="surplus"):
        control(site.state, "reload")
    del site.settings["surplus"]
    node.end()
    for event in ("peer_disabled", "peer_enabled"):
        assert len(node.lines(event, peer="mme", who=user)) == 1
    assert len(node.lines("reloaded", who=user, changed="lists,policy")) == 1
    (refused,) = node.lines("reload_refused", who=user)
    assert "surplus" in refused["detail"]
    digest = digest_of_stolen(site)
    (line,) = node.lines("list_in_force", list="stolen")  # the manager read it, for all
    assert (line["digest"], line["signers"].partition(" ")[0]) == (digest[:12], "agency@publisher.example")


def digest_of_stolen(site):
    return next(row["digest"] for row in site.json("lists") if row["list"] == "stolen")


def test_changes_of_a_local_list_are_no_releases(site):
    site.configure(lists=site.settings["lists"] | {"own": {"local": True}})
    site.load([LISTED])
    site.eir("add", "own", TRACKED, "--reason", "lost")
    site.eir("add", "own", UNLISTED, "--reason", "lost")
    site.eir("rollback", "own")
    node = site.start()
    shown = until(lambda: {name for name in node.metrics() if name.startswith("eir_releases_total{")})
    assert shown == {"eir_releases_total{list=stolen,outcome=accepted}"}
    forced = "eir_release_last_forced_timestamp_seconds{list=own}"
    assert forced not in node.metrics()
    limited = {"local": True, "growth_max": "1%", "change_min": 0}
    site.configure(lists=site.settings["lists"] | {"own": limited})
    site.eir("add", "own", UNLISTED, "--reason", "lost", "--force")  # which is to be seen for a day
    assert until(lambda: node.metrics().get(forced, 0)) > 1.7e9
    assert node.metrics()["eir_releases_total{list=own,outcome=forced}"] == 1


async def test_an_observed_rule_is_called_by_its_name(site, connect):
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    trial = {"name": "on-trial", "list": "stolen", "answer": "blacklisted", "observe": True}
    site.configure(policy={"rules": [trial, {"list": "tracked", "answer": "greylisted"}]})
    node = site.start()
    client = await connect(node)
    await client.ask(ecr(LISTED))
    assert node.metrics()["eir_observed_total{rule=on-trial,status=blacklisted}"] == 1
    node.end()
    assert node.lines("observed", rule=1, name="on-trial", count=1)
    site.configure(policy={"rules": [trial, trial]})
    assert "two rules have the name 'on-trial'" in site.eir("config", status=2).stderr
