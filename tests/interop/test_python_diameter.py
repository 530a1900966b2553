"""python-diameter's client, an implementation that no one here wrote, with `eir serve`; and Wireshark's opinion of it all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from diameter.message.constants import E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED
from dissect import capturing
from pymme import connected
from simulated.node import LISTED, TRACKED, UNLISTED, until
from simulated.wire import EIR, REALM

# Its threads raise, at a socket that was closed under them for one; that is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.mark.long
def test_it_exchanges_every_kind_of_message_and_wireshark_has_no_objection(site, tmp_path):
    site.load([LISTED], list_name="stolen")
    site.load([TRACKED], list_name="tracked")
    site.configure(peers=[{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "watchdog_s": 6}])
    node = site.start()
    port = node.address[1]
    with capturing(tmp_path / "python-diameter.pcapng", port) as capture:
        with connected(node.address) as mme:
            for imei, status in ((LISTED, 1), (f"{LISTED}1", 1), (TRACKED, 2), (UNLISTED, 0), ("nonsense", 0)):
                answer = mme.ask(imei, user_name="001010123456789")
                assert (answer.result_code, answer.equipment_status) == (2001, status)
                assert (answer.origin_host, answer.origin_realm) == (EIR.encode(), REALM.encode())
                assert answer.auth_session_state == E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED
            # Each side's watchdog speaks when nothing has come for a while: first the client's, then, with that one quiet, ours.
            mme.node.idle_timeout = 1
            until(lambda: watchdogs(node, "out"))
            mme.node.idle_timeout = 60
            until(lambda: watchdogs(node, "in"))
        until(lambda: node.status()["peers"] == {"mme": 0})
    commands = capture.commands()
    assert {(code, True) for code in (257, 280, 282, 324)} | {(code, False) for code in (257, 280, 282, 324)} == set(
        commands
    )
    assert commands.count((324, True)) == commands.count((324, False)) == 5
    assert capture.objections() == []
    assert capture.unanswered() == []


def watchdogs(node, direction):
    """DWAs that went in this direction."""
    return node.metrics().get(
        f"eir_diameter_messages_total{{command=Device-Watchdog,direction={direction},kind=answer,peer=mme}}"
    )


def test_many_requests_from_many_threads_each_get_their_own_answer(site):
    listed = [f"352099001{n:05d}" for n in range(0, 200, 2)]
    site.load(listed)
    node = site.start()
    with connected(node.address) as mme, ThreadPoolExecutor(8) as threads:
        asked = [f"352099001{n:05d}" for n in range(200)]
        statuses = list(threads.map(lambda imei: mme.ask(imei).equipment_status, asked))
    assert statuses == [int(imei in listed) for imei in asked]


def test_a_client_that_is_not_configured_is_refused(site):
    site.configure(peers=[{"name": "other", "realm": "other.realm", "from": ["127.0.0.0/8"]}])
    node = site.start()
    with connected(node.address, ready=False) as mme:
        until(lambda: node.metrics().get("eir_peers_refused_total{reason=unknown_peer}"))
        assert not mme.application.is_ready.is_set()
