"""The express lane against the general path: the same bytes and the same counts for whatever comes."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import page, pages_of, pair_pages
from test_index import fill

from eir.checks.checker import Checker
from eir.checks.policy import Override, PolicySettings, Rule, Status
from eir.device import imsi_key
from eir.diameter.avp import encode, encode_text, encode_u32, key_of
from eir.diameter.context import TOO_BUSY_REPLY, NodeContext
from eir.diameter.counts import Counts
from eir.diameter.events import Arrived
from eir.diameter.message import encode_message
from eir.diameter.peer import Peer
from eir.diameter.rate import Bucket, Limit
from eir.diameter.settings import Identity, Limits, PeerSettings
from eir.lists.index import Index
from eir.lists.pages import PAGE_KEYS
from eir.s13.application import s13_application
from eir.s13.lane import COLUMNS_MIN, CONTEXTS_MAX, LAYOUTS_MAX, Lane
from eir.s13.service import REPLIES, S13Service

VENDOR = 10415
MSISDN, UNKNOWN = key_of(701, VENDOR), key_of(9999, 99)
IDENTITY = Identity(host="eir.example", realm="example", origin_state_id=7)
MME = PeerSettings(label="mme", realm="example", sources=(ip_network("127.0.0.0/8"),))
POLICY = PolicySettings(
    rules=(
        Rule(answer=Status.BLACKLISTED, tac=("00101001",)),
        Rule(answer=Status.GREYLISTED, imsi=("00102",)),
        Rule(answer=Status.UNKNOWN, software_version=("77",)),
        Rule(answer=Status.BLACKLISTED, origin_host=("mme2.example",)),
    )
)


class Side:
    """A peer connection that is open, with or without a lane."""

    def __init__(self, *, lane: bool, policy=POLICY, rates=(), overload=TOO_BUSY_REPLY, index=None, mme=MME):
        self.notes = []
        self.checker = Checker(policy, index or Index({}), now=datetime.now(UTC), note_check=lambda *note: self.notes.append(note))
        self.application = S13Service(self.checker).answer
        self.counts = Counts()
        service = S13Service(self.checker, (mme,))
        application = s13_application(service, partial(Lane, self.checker, replies=service.replies) if lane else None)
        context = NodeContext(
            identity=IDENTITY, limits=Limits(), application=application, counts=self.counts, report=lambda *_, **__: None,
            jitter=lambda: 0.0, overload=overload,
        )
        self.peer = Peer(context, lambda _: mme, addresses=("127.0.0.1",), now=0.0, first_id=1)
        self.peer.receive(CER, 0.0)
        assert isinstance(self.peer.events.pop(), Arrived)
        self.peer.limit([Limit(f"rate_{rate}", Bucket(rate, 0.0)) for rate in rates])
        self.peer.admit(0.0)
        self.peer.events.clear()
        self.peer.take()

    def feed(self, data: bytes, now=1.0) -> bytes:
        self.peer.receive(data, now)
        while self.peer.more:
            self.peer.receive(b"", now)
        return self.peer.take()

    def state(self):
        counts = self.counts
        return (
            counts.messages, counts.answers, counts.errors, counts.dropped, counts.shed, self.checker.checks(), self.checker.identity_errors,
            self.peer.traffic.requests, self.peer.traffic.answers, self.peer.state, self.notes,
        )


def origin(host="mme.example", realm="example"):
    return encode_text(264, host) + encode_text(296, realm)


CER = encode_message(
    0x80, 257, 0, (1, 1),
    origin() + encode(257, b"\0\x01\x7f\0\0\1") + encode_u32(266, 0) + encode_text(269, "mme") + encode_u32(258, 16777252),
)


def ecr(
    imei="00101009000001", *, session="mme.example;1;1", version="01", imsi="001010123456789", host="mme.example", flags=0xC0,
    ids=(5, 6), extra=b"", inside=b"", terminal=True, order=False,
):  # fmt: skip
    info = b"" if imei is None else encode_text(key_of(1402, VENDOR), imei)
    if version is not None:
        info += encode_text(key_of(1403, VENDOR), version)
    parts = [encode_u32(277, 1), origin(host), encode_text(283, "example")]
    if terminal:
        parts.append(encode(key_of(1401, VENDOR), info + inside))
    if imsi is not None:
        parts.append(encode_text(1, imsi))
    if order:
        parts.reverse()
    return encode_message(flags, 324, 16777252, ids, encode_text(263, session) + b"".join(parts) + extra)


def both(messages):
    """Feed the same to a peer with a lane and to one without, and compare all that there is to see."""
    with_lane, without = Side(lane=True), Side(lane=False)
    for message in messages:
        assert with_lane.feed(message) == without.feed(message), message.hex()
        assert with_lane.state() == without.state()
    return with_lane


def test_a_peer_is_answered_instead_what_its_entry_says():
    mme = replace(MME, answers=(("unknown", "greylisted"), ("blacklisted", "whitelisted")))
    messages = [ecr(version="77", imei="00101008000001"), ecr("00101001000001"), ecr(imsi="001020123456789", imei="00101008000001"), ecr(imei="00101008000001")]
    sides = [Side(lane=lane, mme=mme) for lane in (True, False)]
    for data in (*messages, *messages, b"".join(messages), messages[0] * 2 * COLUMNS_MIN, messages[3] * 2 * COLUMNS_MIN):
        answers = [side.feed(data) for side in sides]
        assert answers[0] == answers[1]
        assert b"\0\0\x15\x2e" not in answers[0], "5422"
    with_lane, without = (side.state() for side in sides)
    assert with_lane == without
    assert set(sides[0].counts.answers) == {("mme", "2001")}
    assert {status for status, *_ in sides[0].checker.checks()} == set(Status), "the policy's own words are counted"
    assert [encode_u32(key_of(1445, VENDOR), value) in side.feed(message) for side in sides for value, message in zip((2, 0, 2, 0), messages, strict=True)] == [True] * 8


class TestFaults:
    """Whatever is wrong with the lane itself, each request has its answer, by the general path (row 32)."""

    def test_a_policy_that_fails_for_one_device(self):
        side = Side(lane=True)
        side.feed(ecr())
        decide = side.checker.policy.decide

        def fail(key, *rest):
            if key == 13:
                raise ZeroDivisionError
            return decide(key, *rest)

        side.checker._policy = replace(side.checker.policy, decide=fail)
        plain, bad = (encode_answer_to(side, message) for message in (ecr(), ecr("00000000000013")))
        before = side.peer.traffic.answers
        assert side.feed(ecr() * 2 + ecr("00000000000013") + ecr()) == plain * 2 + bad + plain
        assert side.peer.traffic.answers - before == 4
        assert side.counts.answers["mme", "5012"] == 2
        assert side.counts.errors == {"internal": 3}, "one of the lane's, and those that were answered"
        assert side.checker.checks().total() == side.counts.answers["mme", "2001"] - 1
        assert side.feed(ecr()) == plain

    def test_a_request_that_nothing_can_be_learned_from(self):
        class Unteachable:
            take = staticmethod(lambda _, position, __, ___: (position, {}))

            def learn(self, _):
                raise KeyError

        side = Side(lane=True)
        plain = encode_answer_to(side, ecr())
        side.peer._framer._lane = Unteachable()
        assert side.feed(ecr() * 3) == plain * 3
        assert side.counts.errors == {"internal": 1}


def encode_answer_to(side, message):
    """What the general path of the same side answers."""
    lane, side.peer._framer._lane = side.peer._framer._lane, None
    answer = side.feed(message)
    side.peer._framer._lane = lane
    return answer


imeis = st.one_of(
    st.from_regex(r"\A[0-9]{14,16}\Z"),
    st.from_regex(r"\A00101001[0-9]{6,8}\Z"),
    st.text("0123456789AaF *\u0663\u00b2", min_size=0, max_size=17),
    st.none(),
)
ecrs = st.builds(
    ecr, imeis,
    session=st.one_of(st.sampled_from(["mme.example;1;1", "mme.example;1;22"]), st.text(max_size=9)),
    version=st.sampled_from([None, "01", "77", "7", "", "a7", "770"]),
    imsi=st.sampled_from([None, "001010123456789", "001020123456789", "", "x01010123456789", "\u0660" * 7, "00102"]),
    host=st.sampled_from(["mme.example", "mme2.example", "MME2.example"]),
    flags=st.sampled_from([0xC0, 0x80, 0xD0, 0xC1, 0xE0, 0x40]),
    ids=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    extra=st.sampled_from([
        b"", encode(MSISDN, b"\x01\x02"), encode(MSISDN, b"\x03\x04"), encode(UNKNOWN, b"abcd", flags=0), encode(UNKNOWN, b"ef", flags=0),
        encode(UNKNOWN, b"abcd"), encode_u32(301, 3), encode(284, encode_text(280, "dra") + encode(33, b"1")),
        encode_text(282, "mme9"), encode_text(282, ""), encode_text(1, "001010123456789"), encode(260, encode_u32(266, VENDOR)),
        encode_text(293, "other.example"), encode_text(293, "eir.example"),
    ]),
    inside=st.sampled_from([b"", encode(key_of(1471, VENDOR), b"\x12\x34\x56\x78\x90\x12\x34"), encode_text(key_of(1402, VENDOR), "1" * 14), encode(7, b"x", flags=0)]),
    terminal=st.booleans(), order=st.booleans(),
)  # fmt: skip


@given(st.lists(ecrs, min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_generated_requests_get_the_same_answer(messages):
    both([message for message in messages for _ in range(2)])  # the second of each is one that the lane has seen


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_requests_get_the_same_answer(data):
    good = data.draw(ecrs)
    messages = [ecr(), good, good]
    for _ in range(data.draw(st.integers(1, 4))):
        message = bytearray(data.draw(st.sampled_from([ecr(), good])))
        for _ in range(data.draw(st.integers(1, 3))):
            message[data.draw(st.integers(4, len(message) - 1))] = data.draw(st.integers(0, 255))
        messages += [bytes(message), good]
    both(messages)


@given(st.lists(ecrs, min_size=1, max_size=20), st.lists(st.integers(1, 700), max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_segmentation_gives_the_same_bytes(messages, cuts):
    stream = b"".join(messages + messages)
    whole, cut = Side(lane=True), Side(lane=True)
    expected = whole.feed(stream)
    got, at = b"", 0
    for size in [*cuts, len(stream)]:
        got += cut.feed(stream[at : at + size])
        at += size
    assert got == expected
    assert cut.state()[:-2] == whole.state()[:-2]


@given(
    st.lists(st.tuples(st.lists(ecrs, min_size=1, max_size=30), st.floats(0, 0.5)), min_size=1, max_size=8),
    st.lists(st.sampled_from([1.0, 4.0, 30.0, 200.0]), max_size=2, unique=True),
    st.sampled_from([TOO_BUSY_REPLY, *map(replace, REPLIES.values())]),
)
@settings(max_examples=150, deadline=None)
def test_limits_are_the_same_for_both(reads, rates, overload):
    sides = [Side(lane=lane, rates=rates, overload=overload) for lane in (True, False)]
    for side in sides:
        side.feed(ecr() + ecr(imsi=None), 0.0)
    now = 0.0
    for messages, pause in reads:
        now += pause
        with_lane, without = (side.feed(b"".join(messages * 2) + ecr() * 20, now) for side in sides)
        assert with_lane == without
        assert sides[0].state() == sides[1].state()


def test_the_lane_turns_away_what_it_would_take():
    side = Side(lane=True, rates=[40.0])
    side.feed(ecr())
    general = []
    context = side.peer._context
    side.peer._context = replace(context, application=replace(context.application, answer=general.append))
    out = side.feed(ecr() * 100)
    assert general == []
    assert out.count(encode_u32(268, 3004)) == side.counts.shed["mme", "rate_40.0"] == 94
    # RFC 7944: 3 is more urgent than the default, and 15 less.
    urgent, patient = ecr(extra=encode_u32(301, 0)), ecr(extra=encode_u32(301, 15))
    side.peer._context = context
    assert side.feed(urgent).count(encode_u32(268, 2001)) == 1
    assert side.feed(patient).count(encode_u32(268, 2001)) == 0


def test_the_lane_takes_what_it_has_seen():
    side = Side(lane=True)
    taken = []
    lane = side.peer._framer._lane
    real = lane.take

    def take(*arguments):
        position, results = real(*arguments)
        taken.append(sum(results.values()))
        return position, results

    lane.take = take
    side.feed(ecr())
    assert sum(taken) == 0
    side.feed(b"".join(ecr(f"{n:014d}", ids=(n, n), imsi=f"00101{n:010d}") for n in range(100)))
    assert sum(taken) == 100


LISTED = PolicySettings(
    rules=(
        Rule(answer=Status.WHITELISTED, list="bound", imsi=("00102",)),
        Rule(answer=Status.BLACKLISTED, list="stolen"),
        Rule(answer=Status.UNKNOWN, list="tacs"),
        Rule(answer=Status.GREYLISTED, device_bound_elsewhere="bound"),
    )
)
BLOCKED, TRACKED_TAC, BOUND = 101009_000007, 101004, 101009_000008


@pytest.fixture(scope="module")
def index():
    index = Index({"stolen": "devices", "tacs": "devices", "bound": "pairs"})
    stolen = pages_of([BLOCKED, *range(101009_500000, 101009_500100)])
    fill(index, "stolen", stolen)
    fill(index, "tacs", [page(TRACKED_TAC, range(PAGE_KEYS))])
    fill(index, "bound", pair_pages({BOUND: [imsi_key("001010123456789")]}))
    assert all(entries.sift(math.inf) for entries in index.lists.values())
    return index


class TestColumns:
    """Many messages in a row, which are answered together."""

    def sides(self, index, policy=LISTED, **given):
        sides = [Side(lane=lane, policy=policy, index=index, **given) for lane in (True, False)]
        for side in sides:
            side.feed(ecr())
        return sides

    devices = st.one_of(st.integers(101009_000000, 101009_000020), st.integers(0, 10**14 - 1), st.sampled_from([
        BLOCKED, BOUND, TRACKED_TAC * PAGE_KEYS + 5, 101009_500050,
    ])).map("{:014d}".format)  # fmt: skip
    usual = st.builds(
        ecr, devices, session=st.sampled_from(["mme.example;1;1", "mme.example;2;9"]), version=st.sampled_from(["01", "77"]),
        imsi=st.sampled_from(["001010123456789", "001020123456789"]), ids=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    )  # fmt: skip

    @given(st.lists(st.tuples(st.lists(usual, min_size=1, max_size=40), st.integers(1, 4)), min_size=1, max_size=4), st.data())
    @settings(max_examples=120, deadline=None)
    def test_gives_the_same_bytes(self, index, parts, data):
        messages = [message for part, again in parts for message in part * again]
        for _ in range(data.draw(st.integers(0, 3))):
            messages.insert(data.draw(st.integers(0, len(messages))), data.draw(ecrs))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(messages) - 1))
            bad = bytearray(messages[at])
            bad[data.draw(st.integers(4, len(bad) - 1))] = data.draw(st.integers(0, 255))
            messages[at] = bytes(bad)
        with_lane, without = self.sides(index)
        stream = b"".join(messages)
        assert with_lane.feed(stream) == without.feed(stream)
        assert [sorted(part) if isinstance(part, list) else part for part in with_lane.state()] == [
            sorted(part) if isinstance(part, list) else part for part in without.state()
        ]

    @pytest.mark.parametrize(
        ("policy", "decided"),
        [
            (LISTED, 2),
            (PolicySettings(), 0),
            (PolicySettings(override=Override(answer=Status.WHITELISTED)), 0),
            (replace(LISTED, default=Status.GREYLISTED), 100),
            (replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("35",)))), 100),
            (replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, not_list="stolen"))), 100),
        ],
    )
    def test_only_what_some_list_may_have_is_decided_one_by_one(self, index, policy, decided):
        with_lane, without = self.sides(index, policy)
        calls = []
        decide = with_lane.checker.policy.decide
        counting = replace(with_lane.checker.policy, decide=lambda *asked: calls.append(asked) or decide(*asked))
        with_lane.checker._policy = counting
        stream = b"".join(ecr(f"{key:014d}") for key in [*range(49), BLOCKED, BOUND, *range(60, 109)])
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.checker.checks() == without.checker.checks()
        assert decided <= len(calls) <= decided + 3

    def test_lists_that_are_not_sifted_yet_are_asked(self):
        index = Index({"stolen": "devices", "tacs": "devices", "bound": "pairs"})
        fill(index, "stolen", pages_of([BLOCKED]))
        with_lane, without = self.sides(index)
        stream = ecr(f"{BLOCKED:014d}") * 100
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.checker.checks() == without.checker.checks()

    def test_a_limit_ends_the_columns_where_it_has_to(self, index):
        with_lane, without = self.sides(index, rates=[COLUMNS_MIN + 20.0])
        stream = ecr() * (2 * COLUMNS_MIN)
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.state() == without.state()


def test_a_new_policy_is_in_force_at_once():
    with_lane, without = Side(lane=True), Side(lane=False)
    for side in (with_lane, without):
        side.feed(ecr("00101001000001") * 2)
        side.checker.reconfigure(PolicySettings(), datetime.now(UTC))
    assert with_lane.feed(ecr("00101001000001") * 3) == without.feed(ecr("00101001000001") * 3)
    assert with_lane.state() == without.state()


@pytest.mark.parametrize(
    "variety",
    [lambda n: ecr(host=f"mme{n}.example"), lambda n: ecr(session="s" * (n % 100)), lambda n: ecr(extra=encode_text(282, f"r{n}"))],
    ids=["hosts", "sessions", "routes"],
)
def test_what_is_learned_is_bounded(variety):
    side = both([variety(n) for n in range(3 * CONTEXTS_MAX)])
    layouts = [layout for candidates in side.peer._framer._lane._layouts.values() for layout in candidates]
    assert len(layouts) <= LAYOUTS_MAX
    assert sum(len(layout.contexts) for layout in layouts) <= CONTEXTS_MAX
