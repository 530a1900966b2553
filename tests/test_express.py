"""The express lane against the general path: the same bytes and the same counts for whatever comes."""

import gc
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from weakref import ref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import page, pages_of, pair_pages
from test_index import fill

from eir.checks.checker import Checker
from eir.checks.program import program_of
from eir.checks.settings import Override, PolicySettings, Rule, Status
from eir.checks.sighting import Decision
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
from eir.s13 import compiled
from eir.s13.application import s13_application
from eir.s13.compiled import CompiledLane
from eir.s13.lane import CONTEXTS_MAX, LAYOUTS_MAX, Lane
from eir.s13.service import REPLIES, S13Service

VENDOR = 10415
MSISDN, UNKNOWN = key_of(701, VENDOR), key_of(9999, 99)
IDENTITY = Identity(host="eir.example", realm="example", origin_state_id=7)
MME = PeerSettings(label="mme", realm="example", sources=(ip_network("127.0.0.0/8"),))
POLICY = PolicySettings(
    rules=(
        Rule(answer=Status.WHITELISTED, imei=("001010010000025",)),
        Rule(answer=Status.BLACKLISTED, tac=("00101001",)),
        Rule(answer=Status.GREYLISTED, imsi=("00102",)),
        Rule(answer=Status.UNKNOWN, software_version=("77",)),
        Rule(answer=Status.BLACKLISTED, origin_host=("mme2.example",)),
    )
)


class Kept:
    """The sightings, as rows: those handed in together are taken apart again."""

    has_room = True

    def __init__(self):
        self.rows = Counter()
        self.left = 0

    def left_out(self, count):
        self.left += count

    def each(self, sightings):
        for decision, host, realm, protocol, observed, texts in sightings:
            for imei, imsi, version in zip(texts[0::3], texts[1::3], texts[2::3], strict=True):
                told = (text.decode() for text in (imei, version, imsi))
                self.rows[decision, host, realm, protocol, *told, observed] += 1

    def alike(self, decision, origin, digits, widths, but):
        assert decision.is_plain
        assert digits.shape[1] == sum(widths)
        for number, row in enumerate(digits.tolist()):
            text, (imei, version, _) = "".join(map(str, row)), widths
            if number not in but:
                own = text[imei : imei + version] or text[14:imei][: 2 * (imei == 16)]
                self.rows[decision, *origin, text[:imei], own, text[imei + version :], ""] += 1


class Side:
    """A peer connection that is open, with or without a lane."""

    lane = Lane
    """Each test runs with the lane in Python, and with the compiled one."""

    def __init__(self, *, lane: bool, policy=POLICY, rates=(), overload=TOO_BUSY_REPLY, index=None, mme=MME, sightings=False):
        self.notes = {}
        self.sightings = Kept() if sightings else None
        self.checker = Checker(policy, index or Index({}), now=datetime.now(UTC), note_check=self.note, sightings=self.sightings)
        self.application = S13Service(self.checker).answer
        self.counts = Counts()
        service = S13Service(self.checker, (mme,))
        application = s13_application(service, partial(self.lane, self.checker, replies=service.replies) if lane else None)
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

    def note(self, kind, *latest):
        *latest, count = latest
        self.notes[kind] = (self.notes.get(kind, [0])[0] + count, *latest)

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


@pytest.fixture(autouse=True, params=[Lane, pytest.param(CompiledLane, marks=pytest.mark.skipif(not compiled.COMPILED, reason="no C compiler was there"))], scope="module")
def _lane(request):
    Side.lane = request.param


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
    for data in (*messages, *messages, b"".join(messages), messages[0] * 40, messages[3] * 40):
        answers = [side.feed(data) for side in sides]
        assert answers[0] == answers[1]
        assert b"\0\0\x15\x2e" not in answers[0], "5422"
    with_lane, without = (side.state() for side in sides)
    assert with_lane == without
    assert set(sides[0].counts.answers) == {("mme", "2001")}
    assert {status for status, *_ in sides[0].checker.checks()} == set(Status), "the policy's own words are counted"
    assert [encode_u32(key_of(1445, VENDOR), value) in side.feed(message) for side in sides for value, message in zip((2, 0, 2, 0), messages, strict=True)] == [True] * 8


def test_what_was_learned_goes_with_the_connection(monkeypatch):
    """Not when the collector comes by: a crowd that comes and goes would hold the memory of all that it ever taught."""
    made = []

    class Watched(Side.lane):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(ref(self))

    monkeypatch.setattr(Side, "lane", Watched)
    side = Side(lane=True)
    side.feed(ecr() * 2)
    assert made[-1]() is not None
    gc.disable()
    try:
        side.peer.end(2.0)
        assert [lane() for lane in made] == [None] * len(made)
    finally:
        gc.enable()


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

        asks = program_of([({"anything": True}, next(iter(side.checker.policy.program.verdicts)), False)], side.checker.policy.program.verdicts[-1], Index({}))
        side.checker._policy = replace(side.checker.policy, decide=fail, program=replace(asks, verdicts=side.checker.policy.program.verdicts))
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
@settings(max_examples=60)
def test_generated_requests_get_the_same_answer(messages):
    both([message for message in messages for _ in range(2)])  # the second of each is one that the lane has seen


@given(st.data())
@settings(max_examples=80)
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
@settings(max_examples=60)
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
@settings(max_examples=50)
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


def test_an_agent_that_brings_a_thousand_mmes_is_soon_known():
    side = Side(lane=True)
    if not isinstance(side.peer._framer._lane, CompiledLane):
        pytest.skip("the lane in Python knows no more than CONTEXTS_MAX of them")
    for turn in range(16):
        for number in range(0, 1000, 50):
            side.feed(b"".join(ecr(f"{turn:014d}", host=f"mme{each:03d}.example", ids=(turn, each)) for each in range(number, number + 50)))
    assert side.peer._framer._lane.learned[0] > 900


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


BLOCKED, TRACKED_TAC, BOUND, ENDED, ENDING, NAMED = 101009_000007, 101004, 101009_000008, 101009_000009, 101009_000010, 101009_000011
LISTED = PolicySettings(
    rules=(
        Rule(answer=Status.BLACKLISTED, imei=(f"{NAMED:014d}", f"{TRACKED_TAC * PAGE_KEYS + 5:014d}0"), software_version=("01",)),
        Rule(answer=Status.WHITELISTED, list="bound", imsi=("00102",)),
        Rule(answer=Status.BLACKLISTED, list="stolen"),
        Rule(answer=Status.UNKNOWN, list="tacs"),
        Rule(answer=Status.GREYLISTED, device_bound_elsewhere="bound"),
    )
)
NOW = 1_000.0
"""By the clock of the lists."""


def listed(*, changed=False):
    """The lists that rules are about; `changed`: their pages said something else at first."""
    index = Index({"stolen": "devices", "tacs": "devices", "bound": "pairs", "sims": "subscribers", "never": "devices", "ending": "devices"}, lambda: NOW)
    lists = {
        "stolen": pages_of([*range(101007_130000, 101007_132000), BLOCKED, *range(101009_500000, 101009_500100)]),
        "tacs": [page(TRACKED_TAC, range(PAGE_KEYS)), page(101005, [7], tac=(0, 0)), page(101006, [9], tac=(0, 900)), page(101003, [], tac=(0, 1100))],
        "sims": pages_of([imsi_key("001020123456789"), imsi_key("001021")]),
        "ending": [page(101009, [9, 10], until=[999, 1001])],
    }
    for name, pages in lists.items():
        before = [page(each.number, range(5, 20)) for each in pages] if changed else pages
        fill(index, name, before)
        if changed:
            fill(index, name, pages, amend=True)
    fill(index, "bound", pair_pages({BOUND: [imsi_key("001010123456789")]}))
    return index


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "amended"])
def index(request):
    return listed(changed=request.param)


CONDITIONS = st.fixed_dictionaries({}, optional={
    "list": st.sampled_from(["stolen", "tacs", "bound", "sims", "never", "ending"]), "not_list": st.sampled_from(["stolen", "never", "sims", "bound", "ending"]),
    "tac": st.sampled_from([("00101009",), ("0", "35"), ("00101004", "00101005", "9")]), "software_version": st.sampled_from([("77",), ("01", "99", "00")]),
    "imei": st.sampled_from([(f"{NAMED:014d}", "A0000000000001"), (f"{BLOCKED:014d}7",)]),
    "identifier": st.sampled_from([("check_digit",), ("zero", "sequence"), ("test",), ("test", "repeated"), ("malformed", "check_digit", "zero")]),
    "imsi": st.sampled_from([("00102",), ("001010123456789", "2"), ("0",)]), "origin_host": st.sampled_from([("mme2.example",), ("MME.example",)]),
    "origin_realm": st.just(("example",)), "device_bound_elsewhere": st.just("bound"), "subscriber_bound_elsewhere": st.just("bound"),
    "observe": st.booleans(),
})  # fmt: skip
RULES = st.lists(st.builds(lambda answer, said: Rule(answer=answer, **said), st.sampled_from(Status), CONDITIONS.filter(lambda said: said.keys() - {"observe"})), max_size=5)


def keyed(sightings):
    """Without the decisions' own identity: each side compiles its policy for itself."""
    return Counter({(tuple(decision), *said): count for (decision, *said), count in sightings.rows.items()})


def sides(index, policy=LISTED, **given):
    both_sides = [Side(lane=lane, policy=policy, index=index, **given) for lane in (True, False)]
    for side in both_sides:
        side.feed(ecr())
    return both_sides


class TestManyAtOnce:
    """Many messages in a row, over all that a policy may ask."""

    devices = st.one_of(st.integers(101009_000000, 101009_000020), st.integers(0, 10**14 - 1), st.sampled_from([
        BLOCKED, BOUND, NAMED, ENDED, ENDING, TRACKED_TAC * PAGE_KEYS + 5, 101009_500050, 101005_000007, 101005_000008, 101006_000009, 101006_000010, 101003_000001,
        101007_129999, 101007_131071, 101007_131072, 101007_131999, 101007_132000,
    ])).map("{:014d}".format)  # fmt: skip
    usual = st.builds(
        ecr, st.builds("".join, st.tuples(devices, st.sampled_from(["", "0", "3", "77"]))), session=st.sampled_from(["mme.example;1;1", "mme.example;2;9", "m;1"]),
        version=st.sampled_from(["01", "77", None]), imsi=st.sampled_from(["001010123456789", "001020123456789", "001021", None]),
        host=st.sampled_from(["mme.example", "mme2.example"]), ids=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    )  # fmt: skip

    @given(st.lists(st.tuples(st.lists(usual, min_size=1, max_size=40), st.integers(1, 4)), min_size=1, max_size=4), RULES, st.sampled_from(Status), st.booleans(), st.data())
    @settings(max_examples=80)
    def test_gives_the_same_bytes(self, index, parts, rules, default, sighted, data):
        messages = [message for part, again in parts for message in part * again]
        for _ in range(data.draw(st.integers(0, 3))):
            messages.insert(data.draw(st.integers(0, len(messages))), data.draw(ecrs))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(messages) - 1))
            bad = bytearray(messages[at])
            bad[data.draw(st.integers(4, len(bad) - 1))] = data.draw(st.integers(0, 255))
            messages[at] = bytes(bad)
        with_lane, without = sides(index, PolicySettings(rules=tuple(rules), default=default), sightings=sighted)
        stream = b"".join(messages)
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
            assert with_lane.state() == without.state()
            assert with_lane.checker.observed == without.checker.observed
            assert not sighted or keyed(with_lane.sightings) == keyed(without.sightings)

    @pytest.mark.parametrize(
        ("policy", "asked"),
        [
            (LISTED, 1),
            (PolicySettings(), 0),
            (PolicySettings(override=Override(answer=Status.WHITELISTED)), 0),
            (replace(LISTED, default=Status.GREYLISTED), 1),
            (replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("35",)))), 1),
            (replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, not_list="stolen"))), 1),
            (replace(LISTED, rules=(Rule(answer=Status.BLACKLISTED, list="stolen", observe=True), *LISTED.rules)), 2),
        ],
    )
    def test_only_what_it_cannot_decide_is_asked(self, index, policy, asked):
        if Side.lane is Lane:
            pytest.skip("the lane in Python asks of each")
        with_lane, without = sides(index, policy)
        calls = []
        decide = with_lane.checker.policy.decide
        counting = replace(with_lane.checker.policy, decide=lambda *about: calls.append(about) or decide(*about))
        with_lane.checker._policy = counting
        stream = b"".join(ecr(f"{key:014d}") for key in [*range(49), BLOCKED, BOUND, NAMED, *range(60, 108)])
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.checker.checks() == without.checker.checks()
        assert len(calls) == asked

    def test_sightings_of_a_full_window(self, index):
        with_lane, without = sides(index, replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("00101004",), observe=True))), sightings=True)
        stream = b"".join(ecr(f"{key:014d}0", imsi=f"00101{key:010d}") for key in [*range(60), BLOCKED, NAMED, TRACKED_TAC * PAGE_KEYS + 9, *range(60, 120)])
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
        assert keyed(with_lane.sightings) == keyed(without.sightings)
        assert sum(keyed(with_lane.sightings).values()) == 1 + 2 * 123

    def test_without_room_plain_checks_are_counted_and_all_others_told(self, index):
        with_lane, without = sides(index, replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("00101004",), observe=True))), sightings=True)
        with_lane.sightings.has_room = False
        stream = b"".join(ecr(f"{key:014d}") for key in [*range(60), BLOCKED, NAMED, TRACKED_TAC * PAGE_KEYS + 9, 101004_000005, *range(60, 120)])
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
        told, all_of_them = keyed(with_lane.sightings), keyed(without.sightings)
        assert sum(told.values()) + with_lane.sightings.left == sum(all_of_them.values())
        matter = [{key: count for key, count in found.items() if not Decision(*key[0]).is_plain or key[-1]} for found in (told, all_of_them)]
        assert matter[0] == matter[1] != {}
        assert with_lane.sightings.left >= 120 or not isinstance(with_lane.peer._framer._lane, CompiledLane)

    def test_a_lane_that_nobody_asks_lets_go_of_what_is_no_longer_in_force(self):
        def mapped():
            return Path("/proc/self/maps").read_text().count("/memfd:eir-list")

        index = listed()
        side = sides(index)[0]
        side.feed(ecr() * 3)
        before, lane = mapped(), side.peer._framer._lane
        fill(index, "stolen", pages_of([BLOCKED + 1]))
        if isinstance(lane, CompiledLane):
            assert mapped() == before + 1
            lane.renew()
        assert mapped() == before

    def test_lists_that_change_between_messages(self):
        index = listed()
        with_lane, without = sides(index)
        messages = [ecr(f"{key:014d}") for key in (BLOCKED, BLOCKED + 1, 101009_500050, TRACKED_TAC * PAGE_KEYS + 6)]
        stream = b"".join(messages * 20)
        changes = [("stolen", [page(101009, [8])]), ("tacs", [page(TRACKED_TAC, [])]), ("stolen", [page(101009, [7, 8])])]
        said = set()
        for name, pages in changes:
            fill(index, name, pages, amend=True)
            answer = with_lane.feed(stream)
            assert answer == without.feed(stream)
            said.add(answer)
        fill(index, "stolen", pages_of([BLOCKED + 1]))
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.state() == without.state()
        assert len(said) == 3

    def test_a_limit_ends_it_where_it_has_to(self, index):
        with_lane, without = sides(index, rates=[40.0])
        stream = ecr() * 80
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
    if Side.lane is CompiledLane:
        contexts, size = side.peer._framer._lane.learned
        assert contexts <= compiled.CONTEXTS_MAX
        assert size <= compiled.LEARNED_BYTES_MAX
        return
    layouts = [layout for candidates in side.peer._framer._lane._layouts.values() for layout in candidates]
    assert len(layouts) <= LAYOUTS_MAX
    assert sum(len(layout.contexts) for layout in layouts) <= CONTEXTS_MAX
