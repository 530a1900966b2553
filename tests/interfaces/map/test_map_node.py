"""A node that MSCs ask over SIGTRAN, from outside: as IPSP, and through Debian's osmo-stp; TCAP and MAP of the MSC are pycrate's."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest
from far import LINKS, OURS, THEIRS, far, linked, switch
from simulated import m3ua_wire as wire
from simulated import sctp_wire
from simulated.msc import Msc
from simulated.node import LISTED, TRACKED, UNLISTED, Site, until, until_async
from simulated.patience import PATIENCE_S
from simulated.servers import free_port
from simulated.tcp_server import accepting

from eir.interfaces.map import INTERFACE
from eir.interfaces.map import checkimei as codec
from eir.wire.ss7 import ber, m3ua, sccp
from eir.wire.ss7.m3ua import MessageKind
from eir.wire.transport.settings import SctpSettings

STP = shutil.which("osmo-stp") or "/usr/bin/osmo-stp"
STATUSES = ((LISTED, "black"), (TRACKED, "grey"), (UNLISTED, "white"))
CODES = "point_code=1-1-3&to_point_code=1-1-2"


@pytest.fixture
def site(tmp_path, publisher):
    with Site(tmp_path / "host", publisher) as made:
        made.load([LISTED])
        made.load([TRACKED], list_name="tracked")
        yield made


def serve(site, *, rules=(), peers=(), **ss7):
    site.configure(
        ss7={"point_code": "1-1-2"} | ss7, peers=[*peers, {"name": "near", "from": ["127.0.0.0/8"], "expected": False}],
        policy={"rules": [*rules, {"list": "stolen", "answer": "blacklisted"}, {"list": "tracked", "answer": "greylisted"}]},
    )  # fmt: skip
    return site.start()


def listening(site, **more):
    """A node that an MSC connects to, and where."""
    port = free_port()
    return serve(site, listen=[f"tcp://127.0.0.1:{port}"], **more), ("127.0.0.1", port)


def row(node, label):
    return [each for each in node_peers(node) if each["label"] == label and each["protocol"] == "map"]


def node_peers(node):
    from eir.node.observe.control import ask

    return ask(node.site.state, "peers")


async def test_an_msc_without_gateway(site):
    """IPSP: all statuses in all versions; who asks decides; the log, the counters and the table of peers know it."""
    peers = [
        {"name": "msc1", "gt": "49170", "answers": {"greylisted": "whitelisted"}},
        {"name": "sgsn1", "point_code": "1-1-3", "rate_max": 1},
    ]
    rules = [{"origin_host": "491799", "answer": "unknown"}]
    node, where = listening(site, peers=peers, rules=rules)
    msc = await Msc.to(*where)
    for version in (3, 2, 1):
        assert [await msc.ask(imei + "0", version=version) for imei, _ in STATUSES] == ["black", "white", "white"], (
            version
        )
    other = await Msc.to(*where, title="491799")
    assert [await other.ask(LISTED + "0", version=version) for version in (3, 2, 1)] == ["error 7"] * 3
    stranger = await Msc.to(*where, title="4366")
    assert [await stranger.ask(imei + "0") for imei, _ in STATUSES] == ["black", "grey", "white"]
    sgsn = await Msc.to(*where, title=None, pc=2059)
    assert sorted([await sgsn.ask(LISTED + "0") for _ in range(3)]) == ["black", "error 34", "error 34"]
    counted = node.metrics()
    assert counted["eir_map_answers_total{peer=msc1,result=blacklisted}"] == 3
    assert (
        counted["eir_map_answers_total{peer=sgsn1,result=error_34}"]
        == counted["eir_shed_total{peer=sgsn1,reason=rate_max}"]
        == 2
    )
    assert (
        sum(count for name, count in counted.items() if name.startswith("eir_checks_total") and "protocol=map" in name)
        == 9 + 3 + 3 + 1
    )
    assert [(each["state"], each["requests"]) for each in row(node, "msc1")] == [("open", 9)]
    assert counted["eir_peer_up{peer=msc1}"] == 1
    site.eir("peer", "disable", "msc1")
    assert await msc.ask(LISTED + "0") == "aborted"
    site.eir("peer", "enable", "msc1")
    assert await msc.ask(LISTED + "0") == "black"
    for each in (msc, other, stranger, sgsn):
        await each.close()


async def test_what_comes_that_is_no_question(site):
    """Fall-back, other subsystems and point codes, segments, octets that are none: each its answer, and the next question is answered."""
    node, where = listening(site)
    msc = await Msc.to(*where)
    assert (await msc.begin(bytes.fromhex(wire.V3.replace("0d036c", "0d046c")), otid=b"\0\0\0\1")).data[0] == 0x67
    assert await msc.ask(LISTED + "0", version=2) == "black"
    vector = bytes.fromhex(wire.V3)
    for called in (wire.address(ssn=8, pc=wire.EIR), wire.address(ssn=0, pc=wire.EIR)):
        msc.send(
            wire.data(wire.udt(vector, called=called, protocol_class=0x80)), wire.data(wire.udt(vector, called=called))
        )
    msc.send(wire.data(wire.udt(vector), dpc=77), wire.data(b"\x09"), wire.data(b""), wire.data(b"x", indicator=5))
    assert await msc.ask(LISTED + "0") == "black"
    assert [each[:2] for each in msc.returned] == [bytes((sccp.UDTS, sccp.ReturnCause.UNEQUIPPED_USER))] * 2
    title = await msc.begin(vector, otid=b"\0\0\0\1", called=wire.address(ssn=0, title="491999"), kind=sccp.XUDT)
    assert (title.kind, title.calling.ssn, title.calling.digits) == (sccp.XUDT, 9, "491999")
    # What cannot be answered within one unitdata: addresses that leave no room for ours or for each other, a context that the refusal repeats.
    title = "4" * 300
    for called in (wire.address(ssn=0, title=title), wire.address(ssn=8, title=title)):
        msc.send(wire.data(_backwards(vector, called, wire.address(ssn=8, title=title))))
    context = (encoded := ber.encoded)(0xA1, encoded(6, bytes((4,)) * 210))
    dialogue = encoded(0x6B, encoded(0x28, bytes.fromhex("060700118605010101") + encoded(0xA0, encoded(0x60, context))))
    msc.send(wire.data(wire.udt(encoded(0x62, bytes.fromhex("480400000001") + dialogue))))
    assert await msc.ask(LISTED + "0") == "black"
    counted = node.metrics()
    assert {name.partition("reason=")[2][:-1]: count for name, count in counted.items() if name.startswith("eir_sigtran_errors_total")} == {
        "sccp_unequipped_user": 5, "not_our_point_code": 1, "sccp_cut_off": 1, "sccp_message_type": 1, "not_sccp": 1, "sccp_too_long": 3,
    }  # fmt: skip
    msc.send(b"\1\0\1\1\0\0\0\0")
    await msc.until(lambda: msc.seen[-1] == b"END")
    assert until(lambda: node.lines("connection_fault", reason="framing"))
    await msc.close()


def _backwards(data, called, calling):
    """A UDT whose parts stand in another order than is usual (Q.713 1.7 permits any), so that longer addresses have room."""
    parts = data, called, calling
    places = [5 + sum(1 + len(each) for each in parts[:number]) for number in range(3)]
    pointers = bytes((places[1] - 2, places[2] - 3, places[0] - 4))
    return bytes((sccp.UDT, 0x80)) + pointers + b"".join(bytes((len(each),)) + each for each in parts)


async def test_drain_leaves_in_order(site):
    node, where = listening(site)
    msc = await Msc.to(*where)
    assert await msc.ask(LISTED + "0") == "black"
    node.signal(signal.SIGTERM)
    await msc.until(lambda: msc.kinds(MessageKind.ASPIA))
    msc.send(m3ua.message(MessageKind.ASPIA_ACK))
    await msc.until(lambda: msc.kinds(MessageKind.ASPDN))
    msc.send(m3ua.message(MessageKind.ASPDN_ACK))
    await msc.until(lambda: msc.seen[-1] == b"END")
    await msc.close()
    assert await asyncio.to_thread(node.wait) == 0


def test_the_probe_and_the_audit_ask_as_an_msc(site):
    """Statuses and errors; the exit status; fall-back is in tests/interfaces/map/test_map.py."""
    node, (host, port) = listening(
        site, peers=[{"name": "msc1", "gt": "49170"}], rules=[{"imsi": "26201", "answer": "unknown"}]
    )
    target = f"map://{host}:{port}"
    found = site.json("probe", f"{target}?gt=491700000001", LISTED, TRACKED, UNLISTED, "12")
    assert [each["status"] for each in found] == ["blacklisted", "greylisted", "whitelisted", "whitelisted"]
    assert node.metrics()["eir_map_answers_total{peer=msc1,result=blacklisted}"] == 1
    assert (
        site.json("probe", f"{target}?to_point_code=1-1-2", UNLISTED, "--imsi", "262010000000001")[0]["status"]
        == "unknown"
    )
    assert (
        "no answer within 0.5 s"
        in site.eir("probe", f"{target}?to_point_code=1-1-3", LISTED, "--timeout", "0.5", status=1).stderr
    )
    for query, said in (
        ("gt=x", "gt: expected digits, got x"),
        ("routing_context=x", "routing_context: expected an integer"),
        ("token=x", "unknown parameter token; expected gt, point_code, to_point_code, routing_context"),
    ):
        assert said in site.eir("probe", f"{target}?{query}", LISTED, status=2).stderr
    manifest = next((site.folder / "releases").glob("stolen-1.manifest.json"))
    report = site.json("audit", manifest, target, "--all")
    assert (report["asked"], report["as_listed"]) == (1, 1)


@pytest.mark.long
@pytest.mark.sctp
async def test_over_sctp_with_two_addresses(site):
    """The probe's association has both addresses of the node; DATA goes over a stream of its own."""
    port = free_port()
    node = serve(site, listen=[f"sctp://127.0.0.1,127.0.0.2:{port}"])
    found = site.json("probe", f"map://127.0.0.1,127.0.0.2:{port}?gt=491700000001", LISTED, TRACKED, UNLISTED)
    assert [each["status"] for each in found] == ["blacklisted", "greylisted", "whitelisted"]
    until(lambda: node.lines("peer_open", protocol="map"))
    probe = INTERFACE.probe_of(f"map://127.0.0.1,127.0.0.2:{port}?{CODES}", timeout_s=30)
    async with probe.asking() as ask:
        assert await ask(LISTED) == "blacklisted"
        assert node.metrics()["eir_sctp_paths{peer=near,state=up}"] > 0


@pytest.mark.long
@pytest.mark.sctp
async def test_one_of_two_paths_is_cut_and_comes_back(site):
    """Each question is answered meanwhile, over the path that is left; the node tells of both."""
    with linked():
        port = free_port()
        site.tune(SctpSettings, heartbeat_s=0.5)
        site.configure(
            ss7={"point_code": "1-1-2", "listen": [f"sctp://{','.join(OURS)}:{port}"]},
            peers=[{"name": "near", "from": ["10.0.0.0/8"], "expected": False}],
        )  # fmt: skip
        node = site.start()
        probe = INTERFACE.probe_of(f"map://{','.join(OURS)}:{port}?{CODES}", timeout_s=30)
        async with contextlib.AsyncExitStack() as stack:
            with far():
                ask = await stack.enter_async_context(probe.asking())

            async def paths(*, up, down):
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        for imei, status in (
                            (LISTED, "blacklisted"),
                            (TRACKED, "greylisted"),
                            (UNLISTED, "whitelisted"),
                        ):
                            assert await ask(imei) == status
                        found = node.metrics()
                        if [found[f"eir_sctp_paths{{peer=near,state={state}}}"] for state in ("up", "down")] == [
                            up,
                            down,
                        ]:
                            return

            await paths(up=2, down=0)
            for link in LINKS:
                switch(link, up=False)
                await paths(up=1, down=1)
                assert re.search(r"SCTP paths that are down: near \(10\.", node.status()["summary"])
                switch(link, up=True)
                await paths(up=2, down=0)
    for event in ("path_down", "path_up"):
        until(lambda event=event: {line["address"] for line in node.lines(event, peer="near")} == set(THEIRS))


# through a gateway


class Stp:
    """Debian's osmo-stp over TCP or SCTP, with an MSC at 1-1-1 (routing context 8) and at 1-1-2 (9) nodes that come from `eirs`."""

    def __init__(self, folder, name, *, mode="loadshare", eirs=("127.0.0.1",), transport="tcp"):
        self.folder, self.port, self.vty = folder, free_port(), free_port()
        self.name, self.mode, self.eirs, self.transport, self.process = name, mode, eirs, transport, None

    def text(self):
        lines = [
            "line vty", " no login", " bind 127.0.0.1 " + str(self.vty), "cs7 instance 0", " xua rkm routing-key-allocation static-only",
            f" listen m3ua {self.port} {self.transport}", "  local-ip 127.0.0.1", "  accept-asp-connections pre-configured",
        ]  # fmt: skip
        systems = {"msc": (8, "1.1.1", ["127.0.0.11"]), "eir": (9, "1.1.2", self.eirs)}
        for name, (_, _, addresses) in systems.items():
            for number, address in enumerate(addresses):
                lines += [f" asp asp-{name}-{number} 0 {self.port} m3ua {self.transport}", f"  remote-ip {address}"]
        for name, (context, code, addresses) in systems.items():
            lines += [f" as as-{name} m3ua", *(f"  asp asp-{name}-{number}" for number in range(len(addresses)))]
            lines += [f"  routing-key {context} {code}", f"  traffic-mode {self.mode}"]
        lines += [
            " route-table system",
            "  update route 1.1.1 7.255.7 linkset as-msc",
            "  update route 1.1.2 7.255.7 linkset as-eir",
        ]
        return "\n".join(lines) + "\n"

    def start(self):
        self.folder.mkdir(exist_ok=True)
        path, log = self.folder / f"{self.name}.cfg", self.folder / f"{self.name}.log"
        path.write_text(self.text())
        with log.open("a") as out:
            self.process = subprocess.Popen(
                [STP, "-c", path], stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self.folder
            )
        self.log = log
        return self

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.process = None

    def gateway(self, **more):
        return {
            "name": self.name,
            "connect": f"{self.transport}://127.0.0.1:{self.port}",
            "routing_context": 9,
            "mode": self.mode,
        } | more

    async def msc(self):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(OSError):
                    if self.transport == "tcp":
                        return await Msc.to("127.0.0.1", self.port, context=8, local="127.0.0.11")
                    made = await sctp_wire.connected(self.port, addresses=("127.0.0.11",))
                    sctp_wire.send_over(made, stream=0, ppid=m3ua.PPID)
                    msc = await Msc.over(sctp_wire.streams(made), context=8)
                    sctp_wire.send_over(made, stream=1, ppid=m3ua.PPID)  # RFC 4666 1.4.7: DATA not over stream 0
                    return msc
                await asyncio.sleep(0.05)


@pytest.fixture
def stps(tmp_path):
    made = []

    def make(name, **options):
        made.append(Stp(tmp_path / name, name, **options))
        return made[-1].start()

    yield make
    for each in made:
        each.stop()


def is_open(node, label):
    return any(each["state"] == "open" for each in row(node, label))


async def test_a_gateway_that_is_restarted(site, stps):
    stp = stps("stp1")
    node = serve(site, gateways=[stp.gateway()], peers=[{"name": "msc1", "gt": "49170"}])
    until(lambda: is_open(node, "stp1"))
    msc = await stp.msc()
    for version in (3, 2, 1):
        assert [await msc.ask(imei + "0", version=version) for imei, _ in STATUSES] == [
            status for _, status in STATUSES
        ]
    assert (await msc.begin(bytes.fromhex(wire.V3.replace("0d036c", "0d046c")), otid=b"\0\0\0\1")).data[0] == 0x67
    huawei = await msc.begin(bytes.fromhex(wire.HUAWEI), otid=b"\0\0\0\1")
    assert codec.CONTEXT in huawei.data
    await msc.close()
    stp.stop()
    until(lambda: node.metrics()["eir_peer_up{peer=stp1}"] == 0)
    assert node.metrics()["eir_peer_up{peer=msc1}"] == 0
    stp.start()
    until(lambda: is_open(node, "stp1"))
    msc = await stp.msc()
    assert await msc.ask(LISTED + "0") == "black"
    assert node.metrics()["eir_peer_up{peer=msc1}"] == 1
    site.eir("peer", "disable", "stp1")
    until(lambda: row(node, "stp1")[0]["state"] == "disabled")
    site.eir("peer", "enable", "stp1")
    until(lambda: is_open(node, "stp1"))
    assert await msc.ask(LISTED + "0") == "black"
    await msc.close()


@pytest.mark.long
@pytest.mark.sctp
async def test_through_a_gateway_over_sctp(site, stps):
    """By the kernel's SCTP on both sides, and again when the gateway has been restarted."""
    stp = stps("stp1", transport="sctp")
    node = serve(site, gateways=[stp.gateway()], peers=[{"name": "msc1", "gt": "49170"}])
    for _ in range(2):
        until(lambda: is_open(node, "stp1"))
        msc = await stp.msc()
        assert [await msc.ask(imei + "0") for imei, _ in STATUSES] == [status for _, status in STATUSES]
        assert node.metrics()["eir_sctp_paths{peer=stp1,state=up}"] == 1
        await msc.close()
        stp.stop()
        until(lambda: node.metrics()["eir_peer_up{peer=stp1}"] == 0)
        stp.start()


@pytest.mark.parametrize("mode", ["loadshare", "override"])
async def test_two_gateways(site, stps, mode):
    """Each serves its MSC; when one is away the other goes on."""
    pair = [stps(f"stp{number}", mode=mode) for number in (1, 2)]
    node = serve(site, gateways=[each.gateway() for each in pair])
    until(lambda: all(is_open(node, each.name) for each in pair))
    mscs = [await each.msc() for each in pair]
    for msc in mscs:
        assert [await msc.ask(imei + "0") for imei, _ in STATUSES] == [status for _, status in STATUSES]
    pair[0].stop()
    until(lambda: row(node, "stp1")[0]["state"] == "down")
    assert await mscs[1].ask(LISTED + "0") == "black"
    for msc in mscs:
        await msc.close()


@contextlib.asynccontextmanager
async def relay(port, local):
    """Where connections go on to a port, from this address."""

    async def carry(reader, writer):
        with contextlib.suppress(OSError):
            while octets := await reader.read(65536):
                writer.write(octets)
        writer.close()

    async def accept(*ours):
        theirs = await asyncio.open_connection("127.0.0.1", port, local_addr=(local, 0))
        try:
            await asyncio.gather(carry(ours[0], theirs[1]), carry(theirs[0], ours[1]))
        finally:
            theirs[1].transport.abort()

    async with accepting(accept) as (_, here):
        yield here


async def test_two_nodes_in_one_application_server(tmp_path, publisher, site, stps):
    """The gateway shares questions out among both nodes; when one is killed the other answers all of them."""
    stp = stps("stp1", eirs=("127.0.0.1", "127.0.0.12"))
    async with relay(stp.port, "127.0.0.12") as second_way:
        with Site(tmp_path / "second", publisher) as second:
            second.load([LISTED])
            second.load([TRACKED], list_name="tracked")
            gateways = [stp.gateway(), stp.gateway(connect=f"tcp://127.0.0.1:{second_way}")]
            nodes = [serve(each, gateways=[gateway]) for each, gateway in zip((site, second), gateways, strict=True)]
            for node in nodes:
                await until_async(lambda node=node: is_open(node, "stp1"))
            msc = await stp.msc()

            async def all_statuses():
                for sls in range(16):
                    for imei, status in STATUSES:
                        assert await msc.ask(imei + "0", sls=sls) == status

            await all_statuses()
            shares = [
                sum(count for name, count in node.metrics().items() if name.startswith("eir_checks_total"))
                for node in nodes
            ]
            assert sum(shares) == 16 * len(STATUSES)
            assert min(shares) >= len(STATUSES)
            os.kill(nodes[0].pid, signal.SIGKILL)
            await until_async(lambda: re.search("asp-eir-0.* connection closed", stp.log.read_text()))
            await all_statuses()
            await msc.close()


async def test_another_configuration_takes_gateways_away_and_brings_them(site, stps):
    stp = stps("stp1")
    node = serve(site)
    site.configure(ss7={"point_code": "1-1-2", "gateways": [stp.gateway()]})
    site.eir("reload")
    until(lambda: is_open(node, "stp1"))
    msc = await stp.msc()
    assert await msc.ask(LISTED + "0") == "black"
    site.configure(ss7={"point_code": "1-1-2"})
    site.eir("reload")
    until(lambda: not row(node, "stp1") or row(node, "stp1")[0]["address"] is None)
    await msc.close()
