"""`eir trace` on a running node: each check of one phone with its reasoning, over all protocols, and nothing of anyone else."""

import asyncio
import json
import os
import signal
import socket
import subprocess

import pytest
from simulated import lanes
from simulated.node import LISTED, TRACKED, UNLISTED, Site, children, until
from simulated.patience import PATIENCE_S
from simulated.servers import free_port
from simulated.wire import HOST, REALM, TGPP, Message, cer, ecr

from eir.checks.trace import TraceFilter
from eir.interfaces.gsup import INTERFACE as GSUP
from eir.interfaces.map import INTERFACE as MAP
from eir.interfaces.n5g import INTERFACE as N5G
from eir.interfaces.s13 import INTERFACE as S13

IMSI, OTHER = "001010123456789", "001010987654321"


@pytest.fixture
def site(tmp_path, publisher):
    with Site(tmp_path / "site", publisher) as site:
        site.configure(
            n5g={"listen": ["http://127.0.0.1:0"]},
            gsup={"listen": [f"tcp://127.0.0.1:{free_port()}"]},
            ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{free_port()}"]},
            policy={**site.settings["policy"], "bad_identity": "error"},
        )
        site.load(["imei,reason", f"{LISTED},stolen in transit"])
        site.load([TRACKED], list_name="tracked")
        site.start()
        yield site


class Trace:
    """A running `eir trace --json`."""

    def __init__(self, site, *arguments):
        self.out = site.folder / "trace.out"
        with self.out.open("w") as out, (site.folder / "trace.err").open("w") as err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.process = site.popen("trace", "--json", "--reason", "complaint 17", *arguments, **streams)
        until(lambda: "Ctrl-C" in (site.folder / "trace.err").read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, (site.folder / "trace.err").read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)

    def records(self, kind):
        return [record for record in map(json.loads, self.out.read_text().splitlines()) if record["kind"] == kind]


def ask(site, *imeis, imsi=None):
    return [
        each.status
        for each in asyncio.run(
            S13.probe_of("s13://{}:{}?origin_host={}&origin_realm={}".format(*site.node.address, HOST, REALM)).ask(
                imeis, imsi=imsi
            )
        )
    ]


def ask_amf(site, imei, imsi):
    url = next(url for url in site.node.status()["listening"] if url.startswith("http"))
    return [each.status for each in asyncio.run(N5G.probe_of(f"n5g{url[4:]}", timeout_s=10.0).ask([imei], imsi=imsi))]


def ask_of_2g(site, imei, imsi):
    """As an OsmoMSC asks, and as any MSC."""
    gsup, ss7 = (int(site.settings[section]["listen"][0].rpartition(":")[2]) for section in ("gsup", "ss7"))
    probes = (
        GSUP.probe_of(f"gsup://127.0.0.1:{gsup}", timeout_s=10.0),
        MAP.probe_of(f"map://127.0.0.1:{ss7}?point_code=1-1-3&to_point_code=1-1-2", timeout_s=10.0),
    )
    return [asyncio.run(probe.ask([imei], imsi=imsi))[0].status for probe in probes]


def test_each_check_of_a_subscriber_over_all_protocols_and_of_nobody_else(site):
    pcap = site.folder / "trace.pcap"
    with Trace(site, "--imsi", IMSI, "--for", "300s", "--pcap", str(pcap)) as trace:
        assert ask(site, LISTED, TRACKED, UNLISTED, imsi=IMSI) == ["blacklisted", "greylisted", "whitelisted"]
        assert ask(site, LISTED, imsi=OTHER) == ["blacklisted"]
        assert ask_amf(site, LISTED, IMSI) == ["blacklisted"]
        assert ask_of_2g(site, LISTED, OTHER) == ["blacklisted"] * 2
        assert ask_of_2g(site, LISTED, IMSI) == ["blacklisted"] * 2
        checks = until(lambda: found if len(found := trace.records("check")) == 6 else None)
        assert ask(site, "35209900", imsi=IMSI) == [None]
        wire = until(lambda: found if len(found := trace.records("wire")) == 4 else None)
    assert [(each["protocol"], each["imei"], each["status"], each["rule"], each["imsi"]) for each in checks] == [
        ("s13", LISTED, "blacklisted", 1, IMSI), ("s13", TRACKED, "greylisted", 2, IMSI), ("s13", UNLISTED, "whitelisted", "default", IMSI),
        ("n5g", checks[3]["imei"], "blacklisted", 1, IMSI),
        *((protocol, found["imei"], "blacklisted", 1, IMSI) for protocol, found in zip(("gsup", "map"), checks[4:], strict=True)),
    ]  # fmt: skip
    assert all(each["imei"].startswith(LISTED[:14]) for each in checks[3:])
    assert checks[0]["reason"] == "stolen in transit"
    assert "list stolen (serial 1)" in checks[0]["text"]
    assert [each["result"] for each in wire] == ["2001", "2001", "2001", "5004"]
    assert pcap.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(
        [
            "tshark",
            "-n",
            "-r",
            pcap,
            "-T",
            "fields",
            "-e",
            "diameter.cmd.code",
            "-e",
            "diameter.IMEI",
            "-e",
            "diameter.Result-Code",
            "-e",
            "_ws.malformed",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[1:3] for line in shown.stdout.splitlines()][:2] == [[LISTED, ""], ["", "2001"]]
    assert shown.stdout.count("324") == 8


def test_it_is_on_record_without_the_number(site):
    with Trace(site, "--imei", LISTED):
        pass
    (event,) = until(lambda: [event for event in site.json("history") if event["what"] == "trace"])
    assert event["detail"].endswith("for 600 s: complaint 17")
    assert LISTED not in event["detail"]
    until(lambda: site.node.lines("trace_ended"))
    assert site.node.lines("traced")
    assert LISTED not in site.node.text()


def test_it_ends_by_itself_and_there_is_one_at_a_time(site):
    ask_node = site.node.site.eir
    with Trace(site, "--imei", LISTED, "--for", "10m") as trace:
        assert "one trace at a time" in ask_node("trace", "--imei", TRACKED, "--reason", "another", status=1).stderr
        assert (
            ask(site, *[UNLISTED] * 50, LISTED, *[UNLISTED] * 50, imsi=IMSI)
            == ["whitelisted"] * 50 + ["blacklisted"] + ["whitelisted"] * 50
        )
        os.kill(children(site.node.pid)["answering"], signal.SIGKILL)
        until(site.node.is_restarted)
        assert ask(site, LISTED) == ["blacklisted"]
        until(lambda: len(trace.records("check")) == 2)
        assert trace.records("limit") == []
    assert site.eir("trace", "--imei", LISTED, "--reason", "a second", "--for", "0m", status=2)
    from eir.node.observe.control import ask as command

    command(site.state, "trace", imei=LISTED, imsi="", lasts_s=0.2, reason="short")
    until(lambda: command(site.state, "trace_read")["over"])


def exchange(site, *imeis):
    """The answers to ECRs that are sent all at once, on one connection."""
    requests = [ecr(imei, ids=(number, number)) for number, imei in enumerate(imeis)]
    with socket.create_connection(site.node.address, 60) as link, link.makefile("rb") as answers:

        def receive():
            head = answers.read(4)
            return head + answers.read(int.from_bytes(head[1:]) - 4)

        link.sendall(cer())
        assert Message(receive()).result == 2001
        link.sendall(b"".join(requests))
        return [receive() for _ in requests]


def test_many_checks_of_one_phone_are_all_answered_and_partly_traced(site):
    with Trace(site, "--imei", LISTED) as trace:
        assert {Message(answer).number(1445, TGPP) for answer in exchange(site, *[LISTED] * 2000)} == {1}
        until(lambda: trace.records("limit"))
    assert len(trace.records("check")) < 2000


def test_the_bytes_are_those_without_a_trace(site):
    imeis = UNLISTED, LISTED, UNLISTED, TRACKED, LISTED, UNLISTED
    plain = exchange(site, *imeis)
    with Trace(site, "--imei", LISTED) as trace:
        assert exchange(site, *imeis) == plain
        until(lambda: len(trace.records("check")) == 2)


def test_the_lane_leaves_what_is_sought_and_nothing_else():
    requests = [
        lanes.ecr(imei, imsi=imsi)
        for imei in (UNLISTED, TRACKED, LISTED + "0", UNLISTED)
        for imsi in (IMSI, OTHER, None)
    ]
    for sought, left in (
        (None, 0), (TraceFilter(int(LISTED), ""), 3), (TraceFilter(None, IMSI), 4), (TraceFilter(int(LISTED), OTHER), 1), (TraceFilter(int(LISTED) + 1, ""), 0),
        (TraceFilter(None, IMSI[:-1]), 0), (TraceFilter(int(LISTED), IMSI), 1),
    ):  # fmt: skip
        side, plain = lanes.Side(lane=True), lanes.Side(lane=True)
        side.lanes.exclude_traced(sought)
        assert side.feed(b"".join(requests)) == plain.feed(b"".join(requests))
        assert side.state() == plain.state()
        assert plain.by_lane - side.by_lane == left, sought


@pytest.mark.parametrize(
    "arguments",
    [
        ("--reason", "x"),
        ("--imei", LISTED),
        ("--imei", "35", "--reason", "x"),
        ("--imsi", "1", "--reason", "x"),
        ("--imei", LISTED, "--reason", "x", "--for", "soon"),
        ("--imei", LISTED, "--reason", "x", "--for", "20"),
    ],
)
def test_wrong_usage(shared, arguments):
    shared.eir("trace", *arguments, status=2)
