"""One connection without I/O: the table of RFC 6733 5.6 cell by cell, byte by byte, in any order, with a clock of our own."""

import struct
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated import wire

from eir.errors import DiameterError
from eir.interfaces.s13.application import S13
from eir.wire.diameter.capabilities import Capabilities, certificate_fits, find_peer, nearest_miss
from eir.wire.diameter.framing import NO_LANE_SHARE, TURN_BYTES, TURN_COST
from eir.wire.diameter.message import Reply
from eir.wire.diameter.peer import Alive, Answered, Arrived, Closed, DisconnectCause, Leaving, Opened, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.diameter.states import TABLE, Action, Input, State
from eir.wire.diameter.watchdog import WatchdogStatus
from eir.wire.peers.counts import OTHER, Counts
from eir.wire.peers.rate import Bucket, Limit, refusing
from eir.wire.peers.settings import Identity, Limits, PeerSettings, may_connect
from eir.wire.transport.settings import source_address

IDENTITY = Identity(host=wire.EIR, realm=wire.REALM, origin_state_id=77)
SETTINGS = PeerSettings(label="mme", host=wire.HOST)
WHITE = Reply(2001, avps=wire.u32(277, 1) + wire.u32(1445, 0, wire.TGPP))


class Driven:
    """A peer and what came of it."""

    def __init__(self, *, application=lambda _: WHITE, limits=None, now=0.0, settings=SETTINGS, **kwargs):
        self.counts, self.reported, self.settings = Counts(), [], settings
        self.context = NodeContext(
            identity=IDENTITY, limits=limits or Limits(), application=replace(S13, answer=application), counts=self.counts, report=lambda event, **fields: self.reported.append((event, fields)), jitter=lambda: 0.0,
        )  # fmt: skip
        self.now = now
        self.peer = Peer(self.context, self.identify, addresses=("127.0.0.1",), now=now, first_id=0xFFFFFFFE, **kwargs)
        self.received = b""

    def identify(self, said):
        if said.host != wire.HOST:
            raise DiameterError(3010, "unknown_peer")
        return self.settings

    def feed(self, octets):
        self.peer.receive(octets, self.now)
        return self.out()

    def out(self):
        """The messages that the peer wants sent."""
        octets, found = self.peer.data_to_send(), []
        while octets:
            size = int.from_bytes(octets[1:4])
            found.append(wire.Message(octets[:size]))
            octets = octets[size:]
        return found

    def events(self):
        events, self.peer.events = self.peer.events, []
        return events

    def at(self, now):
        self.now = now
        self.peer.timer(now)
        return self.out()

    def open(self):
        self.feed(wire.cer())
        self.peer.admit(self.now)
        self.out()
        self.events()
        return self


def connected():
    driven = Driven()
    driven.peer.connect(SETTINGS, 0.0)
    (cer,) = driven.out()
    return driven, cer


def in_state(state):
    """A peer that got into the state by what brings one there."""
    if state is State.WAIT_CEA:
        return connected()[0]
    driven = Driven()
    if state is State.WAIT_ADMISSION:
        driven.feed(wire.cer())
    elif state is not State.WAIT_CER:
        driven.open()
    if state is State.CLOSING:
        driven.peer.stop(DisconnectCause.REBOOTING, 0.0)
    elif state is State.LEAVING:
        driven.feed(wire.dpr())
    elif state is State.CLOSED:
        driven.peer.end(0.0)
    driven.out()
    driven.events()
    assert driven.peer.state is state
    return driven


def answer(command, app=0):
    return wire.message(command, wire.u32(268, 2001) + wire.avp(264, wire.HOST), 0, app)


STIMULI = {
    Input.CER: lambda peer: peer.receive(wire.cer(ids=(1, 2)), 1.0),
    Input.CEA: lambda peer: peer.receive(answer(257), 1.0),
    Input.DWR: lambda peer: peer.receive(wire.dwr(), 1.0),
    Input.DWA: lambda peer: peer.receive(answer(280), 1.0),
    Input.DPR: lambda peer: peer.receive(wire.dpr(), 1.0),
    Input.DPA: lambda peer: peer.receive(answer(282), 1.0),
    Input.REQUEST: lambda peer: peer.receive(wire.ecr(), 1.0),
    Input.ANSWER: lambda peer: peer.receive(answer(324, wire.APP), 1.0),
    Input.ADMIT: lambda peer: peer.admit(1.0),
    Input.REFUSE: lambda peer: peer.refuse(DiameterError(5012, "duplicate"), 1.0),
    Input.STOP: lambda peer: peer.stop(DisconnectCause.BUSY, 1.0),
    Input.TIMEOUT: lambda peer: peer.drop("test", 1.0),
    Input.END: lambda peer: peer.end(1.0),
}
BASE = {Input.CER, Input.CEA, Input.DWR, Input.DWA, Input.DPR, Input.DPA, Input.REQUEST, Input.ANSWER}
SENDS = {
    Action.SEND_CEA: 257, Action.REJECT: 257, Action.SEND_DWA: 280, Action.SEND_DPA: 282, Action.SEND_DPR: 282,
    Action.SERVE: 324, Action.CER_AGAIN: 257,
}  # fmt: skip


@pytest.mark.parametrize("what", Input, ids=lambda what: what.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_cell(state, what):
    driven = in_state(state)
    action, then = TABLE[state][what]
    STIMULI[what](driven.peer)
    if state is State.WAIT_ADMISSION and what in BASE:
        # What comes before the decision waits for it.
        assert (driven.peer.state, driven.out()) == (state, [])
        return
    if action is Action.PROCESS_CEA:
        then = State.CLOSED  # This one answers no CER of ours.
    assert driven.peer.state is then
    assert [message.command for message in driven.out()] == ([SENDS[action]] if action in SENDS else [])
    assert any(isinstance(event, Closed) for event in driven.events()) is (then is State.CLOSED is not state)


def test_the_table_is_whole():
    assert all(len(TABLE[state]) == len(Input) for state in State)


def test_a_message_shorter_than_the_cer_before_it_is_answered_at_admission():
    driven, cer, dwr = Driven(), wire.cer(), wire.dwr()
    assert len(dwr) < len(cer)
    driven.feed(cer[:40])
    driven.feed(cer[40:] + dwr)
    driven.peer.admit(0.0)
    assert [message.command for message in driven.out()] == [257, 280]


@given(st.lists(st.integers(1, 400), max_size=12))
@settings(max_examples=60)
def test_any_split_of_the_stream_has_the_same_answers(cuts):
    stream = wire.cer() + wire.ecr(ids=(1, 1)) + wire.dwr() + wire.ecr(ids=(2, 2)) + wire.dpr() + wire.ecr(ids=(3, 3))
    one_turn = Limits(turn_messages=65536)
    driven, got = Driven(limits=one_turn), b""
    while stream:
        size = cuts.pop() if cuts else len(stream)
        driven.peer.receive(stream[:size], 0.0)
        stream = stream[size:]
        if any(isinstance(event, Arrived) for event in driven.events()):
            driven.peer.admit(0.0)
        got += driven.peer.data_to_send()
    whole = Driven(limits=one_turn)
    whole.peer.receive(wire.cer(), 0.0)
    whole.peer.admit(0.0)
    stream = wire.ecr(ids=(1, 1)) + wire.dwr() + wire.ecr(ids=(2, 2)) + wire.dpr() + wire.ecr(ids=(3, 3))
    whole.peer.receive(stream, 0.0)
    assert got == whole.peer.data_to_send()
    assert driven.counts == whole.counts


def test_byte_by_byte():
    driven = Driven().open()
    for octet in wire.ecr() * 3:
        driven.peer.receive(bytes([octet]), 0.0)
    assert [message.result for message in driven.out()] == [2001] * 3
    assert driven.peer.deadline() == 30, "nothing is left of a message"


def test_a_message_has_its_time_from_its_first_byte():
    driven = Driven().open()
    driven.feed(wire.ecr()[:50])
    driven.now = 5.0
    driven.feed(wire.ecr()[50:100])
    assert driven.peer.deadline() == 10
    driven.feed(wire.ecr()[100:] + b"\1")
    assert driven.peer.deadline() == 15
    driven.at(15.0)
    assert driven.events()[-1].reason == "partial_message"


def test_a_long_message_in_small_pieces_is_parsed_once():
    driven = Driven().open()
    octets = wire.ecr(extra=wire.avp(9999, bytes(100_000), flags=0))
    for start in range(0, len(octets), 7):
        driven.peer.receive(octets[start : start + 7], 0.0)
    assert [message.result for message in driven.out()] == [2001]


def test_one_turn_has_its_share():
    cost = (TURN_COST + len(wire.ecr()) // TURN_BYTES) // NO_LANE_SHARE
    driven = Driven(limits=Limits(turn_messages=3 * cost)).open()
    assert len(driven.feed(wire.ecr() * 8)) == 3
    assert driven.peer.more
    assert [len(driven.feed(b"")), len(driven.feed(b"")), driven.peer.more] == [3, 2, False]
    assert len(driven.feed(wire.ecr(extra=wire.avp(9999, flags=0) * 500) * 8)) == 1, "long ones count for more"


def test_deadlines():
    driven = Driven()
    assert driven.peer.deadline() == 10
    driven.at(9.9)
    assert driven.peer.state is State.WAIT_CER
    driven.at(10.0)
    assert driven.peer.deadline() is None
    driven = Driven().open()
    assert driven.peer.deadline() == 30
    (dwr,) = driven.at(30.0)
    assert (dwr.command, dwr.data(264), dwr.number(278)) == (280, wire.EIR.encode(), 77)
    driven.now = 31.0
    driven.feed(wire.answer_to(dwr))
    assert (driven.peer.watchdog.pending, driven.peer.pending, driven.peer.deadline()) == (False, 0, 61)
    assert isinstance(driven.events()[-1], Alive)
    driven.peer.stop(DisconnectCause.BUSY, 40.0)
    assert driven.peer.deadline() == 45
    assert driven.out()[0].number(273) == 1
    driven.at(45.0)
    assert driven.events() == [Leaving(), Closed("disconnected", "", reset=False)]


@pytest.mark.parametrize("ours", [False, True])
def test_further_dprs_do_not_put_the_end_off(ours):
    driven = Driven().open()
    if ours:
        driven.peer.stop(DisconnectCause.REBOOTING, 0.0)
    for now in (0.0, 2.0, 4.0):
        driven.now = now
        assert driven.feed(wire.dpr())[-1].result == 2001
        assert driven.peer.deadline() == 5.0
    driven.at(5.0)
    assert driven.peer.state is State.CLOSED


def test_requests_put_off_the_watchdog():
    driven = Driven().open()
    driven.now = 29.0
    driven.feed(wire.ecr())
    assert driven.peer.deadline() == 59
    driven.now = 50.0
    driven.feed(wire.ecr()[:10])
    driven.now = 51.0
    driven.feed(wire.ecr()[10:])
    assert driven.peer.deadline() == 81


def test_a_peer_that_failed_before_is_asked_at_once():
    driven = Driven()
    driven.feed(wire.cer())
    driven.peer.admit(0.0, failed_before=True)
    assert [message.command for message in driven.out()] == [257, 280]
    assert driven.peer.watchdog.status is WatchdogStatus.REOPEN
    assert driven.feed(wire.ecr())[0].result == 2001


def test_a_probe_is_a_dwr_out_of_turn():
    driven = Driven().open()
    driven.peer.probe(1.0)
    (dwr,) = driven.out()
    driven.feed(wire.answer_to(dwr))
    assert [*driven.events(), driven.peer.pending] == [Alive(), 0]
    driven.feed(wire.answer_to(dwr))
    assert driven.counts.dropped == {"unsolicited_answer": 1}


def test_the_label_is_the_peers_only_once_it_is_taken():
    driven = Driven()
    driven.feed(wire.cer("stranger"))
    assert {peer for peer, *_ in driven.counts.messages} == {OTHER}
    driven = Driven().open()
    assert {peer for peer, *_ in driven.counts.messages} == {"mme"}


def test_a_pending_cer_that_ends_is_accounted_for():
    driven = Driven()
    driven.feed(wire.cer())
    driven.peer.end(0.0)
    assert driven.counts.messages == {(OTHER, "Capabilities-Exchange", "request", "in"): 1}
    assert driven.counts.dropped == {"closed": 1}


@pytest.mark.parametrize("message", [wire.cer(), wire.dwr(), wire.dpr(), answer(280)], ids=["CER", "DWR", "DPR", "DWA"])
def test_a_fault_of_our_own_closes_with_5012(message, monkeypatch):
    """Row 32, for what is no application request."""
    driven = Driven() if message[5:8] == b"\0\1\1" else Driven().open()
    before = driven.counts.messages.total() - driven.counts.answers.total(), driven.counts.answers.total()
    for name in ("read_capabilities", "check_grammar", "_hop_by_hop"):
        monkeypatch.setattr(f"eir.wire.diameter.peer.{name}", lambda *_: 1 / 0)
    answers = driven.feed(message)
    assert [(found.result, found.error) for found in answers] == [(5012, False)] * (message[4] >> 7)
    assert [(event, fields["detail"].partition(" ")[0]) for event, fields in driven.reported] == [
        ("fault", "ZeroDivisionError")
    ]
    assert (driven.peer.state, driven.events()[-1].reason) == (State.CLOSED, "internal")
    counts = driven.counts
    assert (counts.messages.total() - counts.answers.total(), counts.answers.total()) == (
        before[0] + 1,
        before[1] + len(answers),
    )
    assert len(answers) + counts.dropped["internal"] == 1


@pytest.mark.parametrize("size", [0, 3, 5, 3000])
def test_numbers_that_are_none(size):
    """An application id, a Result-Code or a DRMP of any length: as if it were not there, where no grammar forbids it."""
    odd = b"\xff" * size
    (cea,) = Driven().feed(wire.cer(app=wire.avp(260, wire.u32(266, wire.TGPP) + wire.avp(258, odd))))
    assert (cea.result, cea.error) == (5010, False)
    for number, extra, reason in (
        (2001, wire.avp(258, odd) + wire.avp(278, odd), "no_common_application"),
        (None, b"", "cea_result"),
    ):
        driven, cer = connected()
        result = wire.avp(268, odd) if number is None else wire.u32(268, number)
        avps = result + wire.avp(264, wire.HOST) + wire.avp(296, wire.REALM) + extra
        driven.feed(wire.message(257, avps, 0, 0, (cer.hop_by_hop, cer.end_to_end)))
        assert driven.events()[-1].reason == reason
    driven = Driven().open()
    driven.peer.limit([Limit("rate_max", Bucket(1000, 0.0))])
    assert driven.feed(wire.ecr(extra=wire.avp(301, odd)))[0].result == 5014


@st.composite
def mutated(draw):
    """A good message with bytes changed, cut out or repeated, and a length that fits most of the time."""
    octets = bytearray(
        draw(st.sampled_from([wire.cer(), wire.ecr(), wire.dwr(), wire.dpr(), *map(answer, (257, 280, 282))]))
    )
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, len(octets) - 1))
        match draw(st.sampled_from(["set", "cut", "repeat"])):
            case "set":
                octets[position] = draw(st.sampled_from([0, 1, 7, 8, 0x40, 0x80, 0xC0, 0xFF]))
            case "cut" if len(octets) > 40:
                del octets[position : position + draw(st.integers(1, 12))]
            case "repeat":
                octets[position:position] = octets[position : position + draw(st.integers(1, 40))]
            case _:
                pass
    if draw(st.integers(0, 9)):
        octets[1:4] = len(octets).to_bytes(3)
    return bytes(octets)


@given(st.lists(mutated(), max_size=12))
@settings(max_examples=150)
def test_whatever_comes_is_answered_well_formed_or_accounted_for(stream):
    driven = Driven().open()
    opened = driven.counts.messages.total()
    for octets in stream:
        driven.feed(octets)
    counts = driven.counts
    assert counts.errors["internal"] == 0
    received = counts.messages.total() - opened - (counts.answers.total() - 1)
    assert received == counts.answers.total() - 1 + counts.dropped.total()


# As initiator


def test_we_connect():
    driven, cer = connected()
    assert (cer.is_request, cer.command, cer.data(264), cer.hop_by_hop) == (True, 257, wire.EIR.encode(), 0xFFFFFFFF)
    assert not cer.every(299)
    assert driven.feed(wire.answer_to(cer, extra=wire.VSAI)) == []
    assert (driven.peer.state, driven.events()) == (State.OPEN, [Opened()])
    assert driven.peer.pending == 0
    assert driven.feed(wire.ecr())[0].result == 2001


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"code": 5010}, "cea_result"), ({"code": 3010, "flags": 0x20}, "cea_result"), ({"host": "other"}, "cea_origin_host"),
        ({"extra": b""}, "no_common_application"), ({"extra": wire.VSAI + wire.u32(268, 2001)}, "cea_result"),
    ],
)  # fmt: skip
def test_we_connect_and_the_cea_is_no_good(kwargs, reason):
    driven, cer = connected()
    driven.feed(wire.answer_to(cer, **({"extra": wire.VSAI} | kwargs)))
    assert driven.events()[-1].reason == reason
    assert driven.counts.peers_refused == {reason: 1}


@pytest.mark.parametrize(
    ("codes", "reason"),
    [((3004,), "cea_not_now"), ((4003,), "cea_not_now"), ((5012,), "cea_not_now"), ((), "cea_result")],
)
def test_a_peer_that_may_accept_us_soon_is_distinguished_from_one_that_will_not(codes, reason):
    driven, cer = connected()
    avps = b"".join(wire.u32(268, code) for code in codes) + wire.avp(264, wire.HOST) + wire.avp(296, wire.REALM)
    driven.feed(wire.message(257, avps, 0, 0, (cer.hop_by_hop, cer.end_to_end)))
    assert driven.events()[-1].reason == reason


def test_a_tls_hello_on_a_connection_without_tls_is_called_so():
    for limits in (Limits(), Limits(max_message_bytes=8_388_608)):
        driven = Driven(limits=limits, remote="192.0.2.1:40000")
        assert driven.feed(bytes.fromhex("16030100f5010000f10303").ljust(250, b"x")) == []
        assert driven.peer.state is State.CLOSED
        ((event, told),) = driven.reported
        assert (event, told["reason"], told["address"]) == ("connection_fault", "tls_hello", "192.0.2.1:40000")
        assert "tls://" in told["setting"]
        assert driven.counts.errors == {"tls_hello": 1}


def test_we_connect_and_nobody_answers():
    driven, _ = connected()
    driven.at(10.0)
    assert driven.events()[-1].reason == "cea_timeout"
    assert driven.peer.pending == 0


def test_we_ask():
    driven = Driven().open()
    first, second = driven.peer.ask(324, b""), driven.peer.ask(324, b"")
    requests = driven.out()
    assert [request.hop_by_hop for request in requests] == [first, second] == [0xFFFFFFFF, 0], "ids wrap"
    driven.peer.forget(first)
    driven.feed(wire.answer_to(requests[1]) + wire.answer_to(requests[0]))
    (answered,) = driven.events()
    assert (type(answered), answered.hop_by_hop, answered.answer.result_codes) == (Answered, second, [2001])
    assert driven.counts.dropped == {"unsolicited_answer": 1}


# Settings


def test_new_settings():
    driven = Driven().open()
    calm = replace(SETTINGS, label="calm", watchdog_s=60)
    driven.peer.configure(replace(driven.context, identity=replace(IDENTITY, aliases=("alias",))), calm, 5.0)
    assert driven.peer.deadline() == 65
    assert driven.feed(wire.ecr(extra=wire.avp(293, "ALIAS")))[0].result == 2001
    assert driven.counts.answers["calm", "2001"] == 1


def test_a_peer_is_shown_the_names_that_are_meant_for_it():
    shown = replace(SETTINGS, as_host="eir.roaming", as_realm="roaming")
    driven = Driven(settings=shown)
    driven.feed(wire.cer())
    driven.peer.admit(0.0)
    (cea,) = driven.out()
    assert (cea.data(264), cea.data(296)) == (b"eir.roaming", b"roaming")
    for host, realm, result in (
        ("eir.roaming", "x", 2001),
        (wire.EIR, "x", 2001),
        (None, "roaming", 2001),
        (None, "x", 3003),
    ):
        extra = wire.avp(293, host) if host else b""
        (answer,) = driven.feed(wire.ecr(extra=extra, to_realm=wire.avp(283, realm)))
        assert (answer.result, answer.data(264)) == (result, b"eir.roaming")


def test_rates():
    driven = Driven().open()
    driven.peer.limit([Limit("rate_max_all", Bucket(1000, 0.0)), Limit("rate_max", Bucket(4, 0.0))])
    answers = driven.feed(wire.ecr() * 3)
    assert [answer.result for answer in answers] == [2001, 3004, 3004]
    driven.now = 0.25
    assert driven.feed(wire.ecr())[0].result == 2001
    assert driven.counts.shed == {("mme", "rate_max"): 2}


def test_low_priorities_go_first():
    def take(bucket, now, priority):
        return refusing([Limit("rate_max", bucket)], now, priority) is None

    now, bucket = 0.0, Bucket(400, 0.0)
    while take(bucket, now, 15):
        pass
    assert not take(bucket, now, 14) or not take(bucket, now, 15)
    assert take(bucket, now, 0)
    passed = Counter()
    for _ in range(2000):
        now += 0.001  # a thousand a second, 400 are allowed
        for priority in (0, 15):
            passed[priority] += take(bucket, now, priority)
    assert passed[0] > 3 * passed[15]
    assert 700 < passed.total() < 950
    bucket = Bucket(0.5, 0.0)
    assert [take(bucket, 0.0, 15), take(bucket, 0.0, 0), take(bucket, 2.0, 15)] == [True, False, True]


def test_find_peer():
    first = PeerSettings(label="first", host="A.example", realm="example", sources=(network("192.0.2.0/24"),))
    second = PeerSettings(label="second", realm="example")
    there, elsewhere = source_address("::ffff:192.0.2.1"), source_address("2001:db8::1")
    assert find_peer([first, second], "a.EXAMPLE", "Example", there) is first
    assert find_peer([first, second], "a.example", "example", elsewhere) is second
    assert find_peer([first, second], "b.example", "example", there) is second
    assert find_peer([first, second], "a.example", "other", there) is None
    assert [may_connect([first], there), may_connect([first], elsewhere), may_connect([], there)] == [
        True,
        False,
        False,
    ]


def network(text):
    from ipaddress import ip_network

    return ip_network(text)


@pytest.mark.parametrize(
    ("host", "source", "keys", "nearest"),
    [
        ("mme.example", "192.0.2.1", {}, (None, "")),
        ("other.example", "192.0.2.1", {}, ("mme", "host")),
        ("mme.example", "192.0.2.9", {}, ("mme", "from")),
        ("other.example", "192.0.2.9", {}, (None, "")),
        ("other.example", "192.0.2.9", {"realm": "example"}, (None, "")),
        ("mme.example", "192.0.2.1", {"realm": "other"}, ("mme", "realm")),
        ("other.example", "192.0.2.1", {"sources": ()}, (None, "")),
    ],
)
def test_the_entry_that_differs_in_one_key_is_the_nearest(host, source, keys, nearest):
    entry = {"host": "mme.example", "sources": (ip_network("192.0.2.1"),)} | keys
    said = Capabilities(host, "example", None, frozenset(), frozenset())
    assert nearest_miss([PeerSettings(label="mme", **entry)], said, ip_address(source)) == nearest


@pytest.mark.parametrize(
    ("names", "host", "realm", "configured", "fits"),
    [
        (["mme.example"], "MME.example", "example", (), True),
        (["*.example"], "mme.example", "example", (), True),
        (["*.example"], "a.mme.example", "example", (), False),
        (["other.example"], "mme.example", "example", (), False),
        (["mme.example"], "mme.example", "bank", (), False),
        (["mme.example"], "mme.example", "ample", (), False),
        ([], "mme.example", "example", (), False),
        (["Dra1.transit"], "mme.example", "example", ("dra1.transit",), True),
        (["mme.example"], "mme.example", "example", ("dra1.transit",), False),
    ],
)
def test_certificates(names, host, realm, configured, fits):
    said = Capabilities(host, realm, None, frozenset(), frozenset())
    assert certificate_fits(names, said, PeerSettings(label="x", tls_names=configured)) is fits


# Any order


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes in whatever order: no exception, each request answered or accounted for, deadlines in the future."""

    @initialize(start=st.sampled_from([State.WAIT_CER, State.WAIT_CEA, State.OPEN, State.OPEN]))
    def begin(self, start):
        self.driven, self.last = Driven(application=self.application), None
        self.sent, self.answers = Counter(), 0
        if start is State.WAIT_CEA:
            self.driven.peer.connect(SETTINGS, 0.0)
        elif start is State.OPEN:
            self.message(Input.CER, 0)
            self.driven.peer.admit(0.0)

    @precondition(lambda self: self.driven.peer.state is State.CLOSED)
    @rule(start=st.sampled_from([State.WAIT_CER, State.OPEN]))
    def again(self, start):
        self.begin(start)

    def application(self, request):
        match request.hop_by_hop % 3:
            case 0:
                return WHITE
            case 1:
                raise DiameterError(5004, "bad_identity")
            case _:
                raise ValueError

    def collect(self):
        for message in self.driven.out():
            self.answers += not message.is_request
            self.last = message

    @rule(what=st.sampled_from(sorted(BASE)), number=st.integers(0, 5))
    def message(self, what, number):
        octets = {
            Input.CER: wire.cer(), Input.CEA: answer(257), Input.DWR: wire.dwr(), Input.DWA: answer(280),
            Input.DPR: wire.dpr(), Input.DPA: answer(282), Input.REQUEST: wire.ecr(ids=(number, 0)),
            Input.ANSWER: answer(324, wire.APP),
        }[what]  # fmt: skip
        waits = self.driven.peer.state is State.WAIT_ADMISSION
        if self.driven.peer.state is not State.CLOSED and not waits:
            self.sent["request" if octets[4] & 0x80 else "answer"] += 1
            self.driven.peer.receive(octets, self.driven.now)

    @rule(octets=st.binary(min_size=1, max_size=64))
    def noise(self, octets):
        # A header of version 1 with a length that never comes: the rest of the stream belongs to it.
        if self.driven.peer.state is State.OPEN and not self.driven.peer._framer.buffered:
            self.driven.peer.receive(struct.pack(">I", 1 << 24 | 2000) + octets, self.driven.now)
            self.driven.peer.end(self.driven.now)

    @rule(what=st.sampled_from([Input.ADMIT, Input.REFUSE, Input.STOP, Input.END, Input.TIMEOUT]))
    def owner(self, what):
        STIMULI[what](self.driven.peer)

    @rule()
    def probe(self):
        self.driven.peer.probe(self.driven.now)

    @rule()
    def answer_ours(self):
        last = self.last
        if last is not None and last.is_request and self.driven.peer.state is State.OPEN and self.driven.peer.pending:
            self.driven.peer.receive(wire.answer_to(last, extra=wire.VSAI), self.driven.now)
            self.sent["answer"] += 1

    @rule(wait=st.sampled_from([0.5, 4.0, 6.0, 11.0, 31.0]))
    def time(self, wait):
        self.driven.at(self.driven.now + wait)

    @invariant()
    def adds_up(self):
        if not hasattr(self, "driven"):
            return
        peer, counts = self.driven.peer, self.driven.counts
        self.collect()
        waiting = peer.state is State.WAIT_ADMISSION
        received = Counter()
        for (_, _, kind, direction), number in counts.messages.items():
            if direction == "in":
                received[kind] += number
        assert received["request"] == self.sent["request"] - waiting
        assert counts.answers.total() == self.answers
        dropped = counts.dropped.total() - counts.dropped["unsolicited_answer"]
        assert self.answers <= received["request"] <= self.answers + dropped
        if peer.state is State.CLOSED:
            assert (peer.pending, peer.deadline(), peer.more) == (0, None, False)
        assert peer.traffic.requests == peer.traffic.answers


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40)
