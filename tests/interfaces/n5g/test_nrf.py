"""The registration with an NRF (TS 29.510 5.2.2), by a clock of the test's own (eir/interfaces/n5g/nrf.py, eir/interfaces/n5g/nrf.py)."""

import json

import pytest

from eir.interfaces.n5g.nrf import (
    HEARTBEAT_EARLY,
    HOPS_MAX,
    PAUSE_S,
    PAUSE_S_MAX,
    PREFER_S,
    NodeLoad,
    Registration,
    profile_of,
)
from eir.interfaces.n5g.settings import NrfSettings

INSTANCE = "0b8f1d3e-1111-4222-8333-0000000000e1"
ONE, TWO = "http://127.0.0.1:8000", "https://nrf2.5gc.mnc001.mcc001.3gppnetwork.org"
GOOD = NodeLoad(serving=True, load=7)
TIMER = 10


def settings_of(*uri, **more):
    said = {
        "instance": INSTANCE,
        "endpoints": (),
        "fqdn": None,
        "plmns": ("00101",),
        "capacity": 100,
        "priority": 1,
        "heartbeat_s": TIMER,
    }
    return NrfSettings(uri=uri, **{**said, **more})


class Play:
    """A registration and its clock; what it asks is answered as the test says."""

    def __init__(self, *uri: str, **more):
        self.now = 1000.0
        self.told = []
        settings = settings_of(*uri, **more)
        profile = profile_of(
            settings, INSTANCE, ["http://127.0.0.1:7777"], tokens=False, started="2026-11-26T00:00:00Z"
        )
        self.registration = Registration(
            settings,
            INSTANCE,
            profile,
            report=lambda event, **fields: self.told.append((event, fields)),
            chance=lambda: 1.0,
            now=self.now,
        )

    def asks(self, standing=GOOD):
        """The next request, after the time until then."""
        self.now = max(self.now, self.registration.due)
        return self.registration.step(self.now, standing)

    def answers(self, status, body=b"", **headers):
        self.registration.answered(
            self.now, status, {name.replace("_", "-"): value for name, value in headers.items()}, body
        )

    def registers(self, timer=TIMER, status=201):
        ask = self.asks()
        assert ask.method == "PUT"
        self.answers(status, json.dumps({**json.loads(ask.body), "heartBeatTimer": timer}).encode())
        return ask

    @property
    def waits(self):
        return self.registration.due - self.now


def test_it_registers_and_beats():
    play = Play(ONE)
    ask = play.registers()
    assert (ask.root, ask.url) == (ONE, f"{ONE}/nnrf-nfm/v1/nf-instances/{INSTANCE}")
    assert dict(ask.headers)["content-type"] == "application/json"
    assert dict(ask.headers)["content-length"] == str(len(ask.body))
    profile = json.loads(ask.body)
    assert (profile["nfInstanceId"], profile["nfType"], profile["nfStatus"], profile["load"]) == (
        INSTANCE,
        "5G_EIR",
        "REGISTERED",
        7,
    )
    assert play.registration.where == ONE
    for _ in range(3):
        assert play.waits == pytest.approx(TIMER * HEARTBEAT_EARLY)
        ask = play.asks(NodeLoad(serving=True, load=42))
        assert (ask.method, dict(ask.headers)["content-type"]) == ("PATCH", "application/json-patch+json")
        assert json.loads(ask.body) == [
            {"op": "replace", "path": "/nfStatus", "value": "REGISTERED"},
            {"op": "replace", "path": "/load", "value": 42},
        ]
        play.answers(204)
    assert play.registration.requests == {(ONE, "register", "201"): 1, (ONE, "heartbeat", "204"): 3}
    assert [event for event, _ in play.told] == ["nrf_registered"]


def test_a_node_that_is_not_ready_registers_as_suspended():
    play = Play(ONE)
    play.registers()
    assert json.loads(play.asks(NodeLoad(serving=False, load=0)).body)[0]["value"] == "SUSPENDED"


@pytest.mark.parametrize(
    ("said", "waits"),
    [
        (3, 3),
        (60, 60),
        (None, TIMER),
        (0, TIMER),
        (-5, TIMER),
        ("3", TIMER),
        (True, TIMER),
        (10**9, 3600),
        (2.5, TIMER),
    ],
    ids=str,
)
def test_the_timer_is_the_nrfs(said, waits):
    play = Play(ONE)
    play.registers(timer=said)
    assert play.waits == pytest.approx(waits * HEARTBEAT_EARLY)


def test_the_timer_changes_with_a_heartbeats_answer():
    play = Play(ONE)
    play.registers()
    play.asks()
    play.answers(200, b'{"heartBeatTimer": 4}')
    assert play.waits == pytest.approx(4 * HEARTBEAT_EARLY)
    play.asks()
    play.answers(204)
    assert play.waits == pytest.approx(4 * HEARTBEAT_EARLY)


def test_the_node_registers_again_at_once_with_an_nrf_that_has_forgotten_it():
    play = Play(ONE, TWO)
    play.registers()
    play.asks()
    play.answers(404, b'{"title": "Not Found"}')
    assert (play.waits, play.registration.where) == (0, None)
    assert play.registers().root == ONE
    assert play.registration.where == ONE


def test_an_nrf_that_restarts():
    play = Play(ONE)
    play.registers()
    play.asks()
    play.registration.failed(play.now, "connection refused")
    assert play.registration.where is None
    assert 0 < play.waits <= PAUSE_S
    play.asks()
    play.registration.failed(play.now, "connection refused")
    play.registers(status=200)
    assert play.registration.where == ONE
    assert [event for event, _ in play.told] == ["nrf_registered", "nrf_lost", "nrf_not_registered", "nrf_registered"]


def test_an_nrf_that_is_away_is_asked_less_and_less_often():
    play = Play(ONE)
    pauses = []
    for _ in range(10):
        play.asks()
        play.registration.failed(play.now, "no answer in 3 s")
        pauses.append(play.waits)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert play.registration.last_error == f"{ONE}: no answer in 3 s"
    play.registers()
    assert play.registration.last_error is None
    play.asks()
    play.registration.failed(play.now, "no answer in 3 s")
    assert play.waits == PAUSE_S


def test_two_nrfs():
    play = Play(ONE, TWO)
    play.registers()
    play.asks()
    play.registration.failed(play.now, "connection refused")
    assert play.waits == 0
    ask = play.registers()
    assert (ask.root, play.registration.where) == (TWO, TWO)
    began = play.now
    while (ask := play.asks()).method == "PATCH":
        assert ask.root == TWO
        play.answers(204)
    # The preferred one is asked again, and the other keeps the node meanwhile.
    assert (ask.method, ask.root) == ("PUT", ONE)
    assert play.now - began >= PREFER_S
    play.registration.failed(play.now, "connection refused")
    assert play.registration.where == TWO
    ask = play.asks()
    assert (ask.method, ask.root) == ("PATCH", TWO)
    play.answers(204)
    while (ask := play.asks()).method == "PATCH":
        play.answers(204)
    assert ask.root == ONE
    play.answers(201, b'{"heartBeatTimer": 20}')
    assert (play.registration.where, play.waits) == (ONE, pytest.approx(18))


def test_a_round_over_both_comes_before_a_pause():
    play = Play(ONE, TWO)
    roots = []
    for _ in range(4):
        roots.append(play.asks().root)
        play.registration.failed(play.now, "connection refused")
    assert roots == [ONE, TWO, ONE, TWO]
    assert play.waits == 2 * PAUSE_S


@pytest.mark.parametrize("status", [303, 400, 403, 500, 503])
@pytest.mark.parametrize(("title", "quoted"), [("No", "No"), ("\\ud800!", "?!")])
def test_an_nrf_that_refuses_is_quoted(status, title, quoted):
    """Half a character, by its number in JSON, is one that no page for people and no terminal could show."""
    play = Play(ONE)
    play.asks()
    play.answers(status, f'{{"title": "{title}", "cause": "SOME_CAUSE"}}'.encode())
    assert play.registration.where is None
    assert play.registration.last_error == f"{ONE}: status {status} (SOME_CAUSE, {quoted})"


@pytest.mark.parametrize(
    ("said", "waits"),
    [("30", 30), ("100000", PAUSE_S), ("99999", PAUSE_S_MAX), ("soon", PAUSE_S), ("-1", PAUSE_S), ("²", PAUSE_S)],
)
def test_retry_after_is_kept_to(said, waits):
    play = Play(ONE)
    play.asks()
    play.answers(503, retry_after=said)
    assert play.waits == waits


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[1]", b"\xff", b'{"title": 7}', b"[" * 100_000], ids=lambda body: str(body[:9])
)
def test_an_answer_that_is_no_json_is_taken_all_the_same(body):
    play = Play(ONE)
    play.asks()
    play.answers(201, body)
    assert play.registration.where == ONE
    play.asks()
    play.answers(500, body)
    assert play.registration.where is None


def test_an_nrf_that_wants_an_access_token_gets_one():
    play = Play(ONE)
    ask = play.asks()
    assert "authorization" not in dict(ask.headers)
    play.answers(401, b"{}")
    ask = play.asks()
    assert (ask.what, ask.method, ask.url) == ("token", "POST", f"{ONE}/oauth2/token")
    assert (
        ask.body.decode()
        == f"grant_type=client_credentials&nfInstanceId={INSTANCE}&nfType=5G_EIR&targetNfType=NRF&scope=nnrf-nfm"
    )
    play.answers(200, b'{"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 60}')
    ask = play.asks()
    assert (ask.method, dict(ask.headers)["authorization"]) == ("PUT", "Bearer a.b.c")
    play.answers(201)
    ask = play.asks()
    assert (ask.method, dict(ask.headers)["authorization"]) == ("PATCH", "Bearer a.b.c")
    play.answers(401)  # it has expired
    assert play.registration.where == ONE
    assert play.asks().what == "token"
    play.answers(200, b'{"access_token": "d.e.f"}')
    assert dict(play.asks().headers)["authorization"] == "Bearer d.e.f"
    play.answers(204)
    assert play.registration.where == ONE
    assert dict(play.registration.leave().headers)["authorization"] == "Bearer d.e.f"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"access_token": 7}',
        b'{"access_token": "a\\nb"}',
        b'{"access_token": ""}',
        b'{"access_token": "a b"}',
    ],
    ids=repr,
)
def test_a_token_that_is_none(body):
    play = Play(ONE)
    play.asks()
    play.answers(401)
    play.asks()
    play.answers(200, body)
    assert (play.registration.where, play.waits) == (None, PAUSE_S)
    assert play.asks().method == "PUT"


def test_an_nrf_that_refuses_its_own_token_is_not_asked_for_ever():
    play = Play(ONE, TWO)
    play.asks()
    play.answers(401)
    play.asks()
    play.answers(200, b'{"access_token": "a.b.c"}')
    play.asks()
    play.answers(401)
    assert play.registration.last_error == f"{ONE}: status 401"
    ask = play.asks()
    assert (ask.root, ask.method) == (TWO, "PUT")
    assert "authorization" not in dict(ask.headers)  # it is the other's


def test_the_preferred_nrf_may_want_a_token_while_another_has_the_node():
    play = Play(ONE, TWO)
    play.asks()
    play.registration.failed(play.now, "away")
    play.registers()
    while (ask := play.asks()).method == "PATCH":
        play.answers(204)
    assert ask.root == ONE
    play.answers(401)
    assert (play.asks().what, play.registration.where) == ("token", TWO)
    play.answers(400)
    assert play.registration.where == TWO
    assert play.asks().method == "PATCH"


INSTANCES = f"/nnrf-nfm/v1/nf-instances/{INSTANCE}"
OTHER = "http://127.0.0.2:8000"


def test_a_redirect_for_this_time():
    play = Play(ONE)
    first = play.asks()
    play.answers(307, location=f"{OTHER}{INSTANCES}")
    assert play.waits == 0
    ask = play.asks()
    assert (ask.url, ask.root) == (f"{OTHER}{INSTANCES}", ONE)
    assert (ask.method, ask.headers, ask.body) == (first.method, first.headers, first.body)
    play.answers(201, b'{"heartBeatTimer": 4}')
    assert (play.registration.where, play.waits) == (ONE, pytest.approx(4 * HEARTBEAT_EARLY))
    assert play.told[-1] == ("nrf_registered", {"nrf": ONE, "heartbeat_s": 4, "redirected_to": f"{OTHER}{INSTANCES}"})
    # The next request begins where the settings say.
    assert play.asks().url == f"{ONE}{INSTANCES}"
    play.answers(204)
    assert play.registration.requests == {
        (ONE, "register", "307"): 1,
        (ONE, "register", "201"): 1,
        (ONE, "heartbeat", "204"): 1,
    }


def test_a_redirect_leads_to_hosts_that_are_named_and_nowhere_else():
    for redirects, host, follows in (
        ((), "127.0.0.2", False), ((), "127.0.0.1", True), (("127.0.0.2",), "127.0.0.2", True), (("Nrf3.example",), "nrf3.EXAMPLE", True),
        (("nrf3.example",), "nrf3.example.evil", False), (("[::1]",), "[::1]", True),
    ):  # fmt: skip
        play = Play(ONE, redirects=redirects)
        play.asks()
        play.answers(307, location=f"http://{host}:9000{INSTANCES}")
        assert (play.asks().url == f"http://{host}:9000{INSTANCES}") is follows
        if not follows:
            assert "n5g.nrf.redirects" in play.registration.last_error


def test_a_redirect_from_now_on():
    play = Play(ONE, TWO)
    play.asks()
    play.answers(308, location=f"{OTHER}/prefix{INSTANCES}?x=1#y")
    there = f"{OTHER}/prefix{INSTANCES}?x=1"
    assert play.asks().url == there
    play.answers(201)
    for _ in range(2):
        ask = play.asks()
        assert (ask.method, ask.url) == ("PATCH", there)
        play.answers(204)
    play.asks()
    play.answers(404)
    assert play.asks().url == there
    play.answers(201)
    assert play.registration.leave().url == there


def test_a_place_from_now_on_that_goes_away_is_forgotten():
    play = Play(ONE)
    play.asks()
    play.answers(308, location=f"{OTHER}{INSTANCES}")
    play.asks()
    play.registration.failed(play.now, "connection refused")
    assert (play.registration.last_error, play.waits) == (f"{ONE}: connection refused", PAUSE_S)
    assert play.asks().url == f"{ONE}{INSTANCES}"


def test_redirects_round_and_round_end_and_the_next_nrf_is_asked():
    play = Play(ONE, TWO)
    urls = []
    while (ask := play.asks()).root == ONE:
        urls.append(ask.url)
        play.answers(308, location=f"{ONE if len(urls) % 2 == 0 else OTHER}{INSTANCES}")
    assert len(urls) == HOPS_MAX + 1
    assert play.registration.last_error == f"{ONE}: status 308, not followed: more than {HOPS_MAX} in a row"
    assert ask.url == f"{TWO}{INSTANCES}"


def test_tokens_go_along_with_redirects_and_are_redirected_themselves():
    play = Play(ONE)
    play.asks()
    play.answers(401)
    play.asks()
    play.answers(307, location="/elsewhere")
    ask = play.asks()
    assert (ask.what, ask.method, ask.url) == ("token", "POST", f"{ONE}/elsewhere")
    play.answers(200, b'{"access_token": "a.b.c"}')
    play.asks()
    play.answers(307, location=f"{OTHER}{INSTANCES}")
    ask = play.asks()
    assert (ask.url, dict(ask.headers)["authorization"]) == (f"{OTHER}{INSTANCES}", "Bearer a.b.c")
    play.answers(201)
    assert play.registration.where == ONE


def test_an_end_that_is_redirected():
    play = Play(ONE)
    play.registers()
    play.registration.leave()
    play.answers(307, location=f"{OTHER}{INSTANCES}")
    ask = play.registration.redirected()
    assert (ask.method, ask.url) == ("DELETE", f"{OTHER}{INSTANCES}")
    play.answers(204)
    assert play.registration.redirected() is None
    assert play.told[-1] == ("nrf_deregistered", {"nrf": ONE, "status": 204})


def test_a_redirect_that_was_under_way_when_the_end_came():
    play = Play(ONE)
    play.registers()
    play.asks()
    play.answers(307, location=f"{OTHER}{INSTANCES}")
    assert play.registration.leave().url == f"{ONE}{INSTANCES}"
    play.answers(307)
    assert play.registration.redirected() is None
    assert play.told[-1][0] == "nrf_not_deregistered"


NO_SERVER = "is not a URL of a server"


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (None, "no Location"), ("", "no Location"), ("http://a b/", "its Location is no URL"), ("http://a/\x7f", "its Location is no URL"),
        ("http://\xe9/", "its Location is no URL"), ("http://a/".ljust(2049, "b"), "its Location is no URL"),
        ("ftp://127.0.0.1/", NO_SERVER), ("file:///etc/passwd", NO_SERVER), ("http:", NO_SERVER), ("http://", NO_SERVER), ("http://:80/", NO_SERVER),
        ("http://me:it@127.0.0.1/", NO_SERVER), ("http://127.0.0.1:0/", NO_SERVER), ("http://127.0.0.1:99999/", NO_SERVER),
        ("http://127.0.0.1:x/", NO_SERVER), ("http://[::1/", NO_SERVER), ("http://a..b/", NO_SERVER), (f"http://{'a' * 70}.org/", NO_SERVER),
        ("http://127.0.0.1/", "is without TLS"), ("HTTP://127.0.0.1/", "is without TLS"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_a_redirect_that_is_not_followed(location, why):
    play = Play(TWO)
    play.asks()
    play.answers(307, b'{"cause": "SCP_REDIRECTION"}', **({} if location is None else {"location": location}))
    assert play.registration.last_error.startswith(f"{TWO}: status 307 (SCP_REDIRECTION), not followed: ")
    assert play.registration.last_error.endswith(why)
    assert play.waits == PAUSE_S
    assert play.asks().url == f"{TWO}{INSTANCES}"


def test_without_tls_is_not_reached_by_a_detour():
    play = Play(TWO)
    play.asks()
    longest = "HTTPS://127.0.0.1:8000/".ljust(2048, "b")
    play.answers(307, location=longest)
    assert play.asks().url == longest.lower()
    play.answers(307, location="http://127.0.0.1:8000/")
    assert play.registration.last_error.endswith("is without TLS")


def test_the_end():
    play = Play(ONE)
    assert play.registration.leave() is None
    play.registers()
    ask = play.registration.leave()
    assert (ask.method, ask.root, ask.body) == ("DELETE", ONE, b"")
    play.answers(204)
    assert play.registration.where is None
    assert play.registration.leave() is None


def test_a_profile_of_many_endpoints():
    settings = settings_of(ONE, plmns=("00101", "001001"), fqdn=None)
    endpoints = [
        "http://10.0.0.1:7777",
        "http://[2001:db8::1]:7777",
        "https://eir.5gc.mnc001.mcc001.3gppnetwork.org:7778",
    ]
    profile = profile_of(settings, INSTANCE, endpoints, tokens=True, started="2026-11-26T00:00:00Z")
    assert profile["plmnList"] == [{"mcc": "001", "mnc": "01"}, {"mcc": "001", "mnc": "001"}]
    assert (profile["ipv4Addresses"], profile["ipv6Addresses"]) == (["10.0.0.1"], ["2001:db8::1"])
    assert profile["fqdn"] == "eir.5gc.mnc001.mcc001.3gppnetwork.org"
    plain, secure = profile["nfServices"]
    assert (plain["scheme"], secure["scheme"]) == ("http", "https")
    assert plain["serviceInstanceId"] != secure["serviceInstanceId"]
    assert plain["ipEndPoints"] == [
        {"ipv4Address": "10.0.0.1", "transport": "TCP", "port": 7777}, {"ipv6Address": "2001:db8::1", "transport": "TCP", "port": 7777},
    ]  # fmt: skip
    assert secure["ipEndPoints"] == [{"transport": "TCP", "port": 7778}]
    assert secure["oauth2Required"] is True
    assert secure["versions"][0]["apiVersionInUri"] == "v1"
    # Nothing empty: the description gives a least number of members to each list (TS 29.510 A.2).
    bare = profile_of(
        settings_of(ONE, plmns=()), INSTANCE, ["http://10.0.0.1:7777"], tokens=False, started="2026-11-26T00:00:00Z"
    )
    assert {"plmnList", "ipv6Addresses", "fqdn"}.isdisjoint(bare)
