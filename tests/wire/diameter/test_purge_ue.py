"""The application of eir/wire/diameter/README.md as the page has it: against itself, and both ways with a stack that nobody here wrote."""

import asyncio
import re
import runpy
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import python_diameter
from diameter.message.avp.grouped import ExperimentalResult, VendorSpecificApplicationId
from diameter.message.commands.purge_ue import PurgeUeRequest
from diameter.node.application import Application
from simulated.patience import PATIENCE_S, PROGRAM_S

import eir.wire.diameter
from eir.wire.diameter import connect

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
async def asking(page, host, port):
    client = await connect(host, port, page["ASKING"], origin_host=MME, origin_realm=REALM)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def hss(page, *imsis):
    node, address = await page["hss"]("tcp://127.0.0.1:0", set(imsis))
    try:
        yield address
    finally:
        await node.drain(1)


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
            command = [sys.executable, script, "mme", f"{host}:{port}", IMSI, OTHER]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            answering.terminate()
    assert done.stdout.splitlines() == [f"{IMSI} purged", f"{OTHER} refused: [(10415, 5001)]"]


class OtherHss(Application):
    """HSS on python-diameter."""

    def __init__(self, subscribers):
        super().__init__(S6A, is_auth_application=True)
        self.subscribers = subscribers

    def handle_request(self, request):
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
    with python_diameter.running(HSS, REALM, **hss_options) as node:  # it closes no connection after its DPA
        node.add_application(application, [node.add_peer(f"aaa://{MME}", REALM)])
        node.start()
        async with asking(page, "127.0.0.1", unused_tcp_port) as client:
            assert await page["purge"](client, IMSI) == "purged"
            assert await page["purge"](client, OTHER) == "refused: [(10415, 5001)]"


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
