"""The application of eir/wire/diameter/README.md as the page has it: against itself, and both ways with a stack that nobody here wrote."""

import asyncio
import re
import runpy
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
import python_diameter
from diameter.message.avp.grouped import ExperimentalResult, VendorSpecificApplicationId
from diameter.message.commands.purge_ue import PurgeUeRequest
from diameter.node.application import Application
from simulated import wire
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.tcp_server import accepting

import eir.wire.diameter
from eir.wire.diameter import EirError, Servers

PAGE = (Path(eir.wire.diameter.__file__).parent / "README.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
IMSI, OTHER = "001010000000001", "001010000000002"
S6A, VENDOR, REALM, HSS, MME = 16777251, 10415, "epc.example", "hss.epc.example", "mme.epc.example"
NO_STATE = 1

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # python-diameter's count of an answer without Result-Code


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "purge_ue.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def page(script):
    return runpy.run_path(str(script))


@asynccontextmanager
async def asking(page, *addresses, **options):
    servers = Servers(
        [f"tcp://{host}:{port}" for host, port in addresses],
        page["ASKING"],
        origin_host=MME,
        origin_realm=REALM,
        **options,
    )
    try:
        yield servers
    finally:
        await servers.close()


@asynccontextmanager
async def hss(page, *imsis):
    node, address = await page["hss"]("tcp://127.0.0.1:0", set(imsis))
    try:
        yield address
    finally:
        await node.drain(1)


@asynccontextmanager
async def stranger(respond):
    """A server that does what `respond` says with each PUR."""
    asked = []

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readexactly(4)
                message = wire.Message(head + await reader.readexactly(int.from_bytes(head[1:]) - 4))
                if message.command == 321:
                    asked.append(message)
                    writer.write(respond(message))
                elif message.is_request:
                    writer.write(wire.answer_to(message, host=HSS))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with accepting(serve) as address:
        yield address, asked


def by_code(code):
    flags = 0x20 if code // 1000 == 3 else 0
    return lambda asked: wire.message(
        321, wire.avp(263, asked.data(263)) + wire.u32(268, code), flags, S6A, (asked.hop_by_hop, asked.end_to_end)
    )


def test_the_page_has_all_that_is_public():
    table = PAGE.partition("## What is public")[2]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(eir.wire.diameter.__all__)
    assert all(getattr(eir.wire.diameter, name) is not None for name in named)
    with pytest.raises(AttributeError, match="nothing"):
        eir.wire.diameter.nothing  # noqa: B018
    assert 60 <= sum(map(bool, CODE.splitlines())) <= 80


def test_both_sides_as_programs(script):
    with subprocess.Popen(
        [sys.executable, script, "hss", "tcp://127.0.0.1:0", IMSI], stdout=subprocess.PIPE, text=True
    ) as answering:
        try:
            host, port = answering.stdout.readline().split()
            command = [sys.executable, script, "mme", f"tcp://{host}:{port}", IMSI, OTHER]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            answering.terminate()
    assert done.stdout.splitlines() == [f"{IMSI} purged", f"{OTHER} refused: [(10415, 5001)]"]


async def test_a_server_that_is_away_is_passed_over_and_asked_last_from_then_on(page):
    async with accepting(lambda *_: None) as away:
        pass
    async with hss(page, IMSI, OTHER) as there, asking(page, away, there) as servers:
        assert await page["purge"](servers, IMSI) == "purged"
        assert servers.counts.messages["server", "Purge-UE", "request", "out"] == 1
        assert await page["purge"](servers, OTHER) == "purged"
    async with asking(page, away) as servers:
        with pytest.raises(EirError, match="cannot connect"):
            await page["purge"](servers, IMSI)


async def test_what_may_have_been_received_goes_out_again_under_the_same_name(page):
    async with (
        stranger(lambda _: b"") as (mute, asked), stranger(by_code(2001)) as (other, again), asking(page, mute, other, timeout_s=0.2) as servers,
    ):  # fmt: skip
        assert await page["purge"](servers, IMSI) == "purged"
        assert await page["purge"](servers, OTHER) == "purged"
    assert [message.flags & 0x10 for message in asked] == [0]
    assert [message.flags & 0x10 for message in again] == [0x10, 0], (
        "a server that did not answer is asked last for a while"
    )
    assert asked[0].end_to_end == again[0].end_to_end != again[1].end_to_end
    assert asked[0].data(263) == again[0].data(263) != again[1].data(263)


@pytest.mark.parametrize("code", [3002, 3004])
async def test_a_server_that_cannot_now_is_passed_over_for_this_request(page, code):
    async with stranger(by_code(code)) as (busy, asked), hss(page, IMSI) as there:
        async with asking(page, busy, there) as servers:
            assert await page["purge"](servers, IMSI) == "purged"
        async with asking(page, busy) as servers:
            assert await page["purge"](servers, IMSI) == f"refused: [{code}]", "its answer, if nobody has a better one"
    assert len(asked) == 2


async def test_a_server_that_ends_its_connection_is_asked_again_once_it_is_back(page):
    async with (
        stranger(lambda _: b"\1\0\0\0") as (broken, asked),
        hss(page, IMSI, OTHER) as there,
        asking(page, broken, there, pause_s=0) as servers,
    ):
        assert await page["purge"](servers, IMSI) == "purged"
        assert await page["purge"](servers, OTHER) == "purged"
        assert len(asked) == 2


def test_a_url_that_cannot_be():
    for url, says in (("tcp:/x", "expected tcp://"), ("tls://a", "needs a context")):
        with pytest.raises(EirError, match=says):
            Servers([url], None, origin_host=MME, origin_realm=REALM)


class OtherHss(Application):
    """HSS on python-diameter."""

    def __init__(self, subscribers):
        super().__init__(S6A, is_auth_application=True)
        self.subscribers, self.flags = subscribers, SimpleQueue()

    def handle_request(self, request):
        self.flags.put(request.header.is_retransmit)
        answer = request.to_answer()
        answer.auth_session_state = NO_STATE
        answer.origin_host, answer.origin_realm = HSS.encode(), REALM.encode()
        if request.user_name in self.subscribers:
            answer.result_code = 2001
        else:
            answer.experimental_result = ExperimentalResult(vendor_id=VENDOR, experimental_result_code=5001)
        self.send_answer(answer)


async def test_an_hss_that_nobody_here_wrote_is_asked(page, unused_tcp_port):
    application = OtherHss({IMSI})
    hss_options = {"force": True, "vendor_ids": [VENDOR], "ip_addresses": ["127.0.0.1"], "tcp_port": unused_tcp_port}
    async with (
        stranger(lambda _: b"\1\0\0\0") as (broken, _),
        asking(page, broken, ("127.0.0.1", unused_tcp_port)) as servers,
    ):
        with python_diameter.running(HSS, REALM, **hss_options) as node:  # it closes no connection after its DPA
            node.add_application(application, [node.add_peer(f"aaa://{MME}", REALM)])
            node.start()
            assert await page["purge"](servers, IMSI) == "purged"
            assert await page["purge"](servers, OTHER) == "refused: [(10415, 5001)]"
    assert [application.flags.get(timeout=PROGRAM_S), application.flags.get(timeout=PATIENCE_S)] == [True, False]


async def test_an_mme_that_nobody_here_wrote_asks(page):
    async with hss(page, IMSI) as (host, port):
        with python_diameter.running(MME, REALM, force=True, vendor_ids=[VENDOR]) as node:
            peer = node.add_peer(f"aaa://{HSS}:{port};transport=tcp", REALM, ip_addresses=[host], is_persistent=True)
            application = Application(S6A, is_auth_application=True)
            node.add_application(application, [peer], realms=[REALM])
            node.start()
            await asyncio.to_thread(application.wait_for_ready, PATIENCE_S)

            def ask(imsi):
                request = PurgeUeRequest()
                request.session_id = node.session_generator.next_id()
                request.vendor_specific_application_id = VendorSpecificApplicationId(
                    vendor_id=VENDOR, auth_application_id=S6A
                )
                request.auth_session_state = NO_STATE
                request.origin_host, request.origin_realm, request.destination_realm = (
                    MME.encode(),
                    REALM.encode(),
                    REALM.encode(),
                )
                request.user_name = imsi
                return application.send_request(request, timeout=PROGRAM_S)

            answer = await asyncio.to_thread(ask, IMSI)
            assert (answer.result_code, answer.pua_flags) == (2001, 1)
            answer = await asyncio.to_thread(ask, OTHER)
            assert answer.experimental_result.experimental_result_code == 5001
