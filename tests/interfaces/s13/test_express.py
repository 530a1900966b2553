"""The express lane against the general path: the same bytes, the same counts and the same record for whatever comes."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.lanes import (
    BLOCKED,
    BOUND,
    ENDED,
    ENDING,
    LISTED,
    MME,
    MSISDN,
    MSISDNS,
    NAIS,
    NAMED,
    TRACKED_TAC,
    UNKNOWN,
    VENDOR,
    Side,
    altered,
    an_ecr,
    any_avp,
    ecr,
    listed,
    sides,
)
from simulated.store_content import fill, joined, pair_rows

from eir.checks.new_devices import NewDevices
from eir.checks.program import VERDICTS_MAX, encode_policy
from eir.checks.settings import Override, PolicySettings, Rule, Status
from eir.device import SNR_KEYS, device_type_key, imsi_key
from eir.interfaces.s13.lane import COMPILED
from eir.interfaces.s13.service import REPLIES
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.index import Index
from eir.lists.log.change import Head
from eir.lists.record.first_days import sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.table import table_of
from eir.wire.diameter.avp import encode, encode_text, encode_u32, key_of
from eir.wire.diameter.serve import TOO_BUSY_REPLY
from eir.wire.peers.settings import Limits

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not COMPILED, reason="no C compiler was there")

IMEI, VERSION, MEID, TERMINAL = (key_of(code, VENDOR) for code in (1402, 1403, 1471, 1401))
SIM = "001020123456789"
STATUS = {
    status: encode_u32(key_of(1445, VENDOR), value)
    for status, value in {Status.WHITELISTED: 0, Status.BLACKLISTED: 1, Status.GREYLISTED: 2}.items()
}


@pytest.fixture(scope="module")
def index():
    return listed()


def both(messages, *given_sides, **given):
    """Feed the same to a connection with a lane and to one without, and compare all that there is to see."""
    with_lane, without = given_sides or sides(Index({}), **({"policy": PolicySettings()} | given))
    for message in messages:
        assert with_lane.feed(message) == without.feed(message), message.hex()
        assert with_lane.state() == without.state()
    return with_lane


@pytest.mark.parametrize(
    "rule",
    [{"imsi": ("00102",)}, {"imsi": ("001020123456789",)}, {"list": "sims"}, {"not_list": "sims"}],
    ids="-".join,
)
def test_a_root_nai_has_the_verdict_of_its_imsi(index, rule):
    """TS 23.003 19.3.2, 13.3. The lane reads the usual forms; the general path reads all others."""
    policy = PolicySettings(rules=(Rule(answer=Status.GREYLISTED, **rule),))
    sim, realm = "001020123456789", "mnc002.mcc001.3gppnetwork.org"
    usual = [
        sim,
        f"0{sim}",
        f"6{sim}",
        f"0{sim}@nai.epc.{realm}",
        f"6{sim}@nai.epc.{realm}",
        f"{sim}@ims.{realm}",
        f"{sim}@ims.{realm}".replace("002", "02"),
    ]
    others = [f"0{sim}@NAI.epc.{realm}", f"{sim}@wlan.{realm}", f"{sim}@ims.{realm}".replace("org", "ORG")]
    with_lane, without = sides(index, policy, sightings=True)
    both([ecr(imsi=each) for each in (*usual, *others)], with_lane, without)
    assert len({with_lane.feed(ecr(imsi=each)) for each in (*usual, *others)}) == 1
    assert with_lane.by_lane == 2 * len(usual)
    assert {row[-3] for row in with_lane.sightings.rows} == {sim}


def test_user_names_that_are_nearly_a_root_nai_get_the_same_by_lane_and_general_path(index):
    """Each octet is changed, each one is left out, and the text is cut at each place."""
    policy = PolicySettings(rules=(Rule(answer=Status.GREYLISTED, imsi=("00102",)),))
    names = {
        name
        for whole in NAIS
        for at in range(len(whole))
        for name in (
            whole[:at],
            whole[:at] + whole[at + 1 :],
            *(whole[:at] + each + whole[at + 1 :] for each in "06@.mX\0"),
        )
    }
    both([ecr(imsi=name) for name in sorted(names)], *sides(index, policy, sightings=True))


class TestLevels:
    """What stands on another level than its own decides nothing (TS 29.272 7.2.19, 7.3.3): the first answer and the thousandth are the same bytes."""

    POLICY = PolicySettings(
        rules=(
            Rule(answer=Status.BLACKLISTED, list="stolen"),
            Rule(answer=Status.GREYLISTED, software_version=("77",)),
            Rule(answer=Status.GREYLISTED, imsi=("00102",)),
        )
    )
    GOOD, BAD = "00101008000001", f"{BLOCKED:014d}"

    def ask(self, index, first, second, wanted):
        """The message with either order of what counts and what does not; many times, alone and in a row."""
        for message in (first, second):
            with_lane, without = sides(index, self.POLICY)
            answer = with_lane.feed(message)
            assert STATUS[wanted] in answer
            assert answer == without.feed(message)
            for times in (1, 1, 64, 300, 1000):
                assert with_lane.feed(message * times) == answer * times
            assert with_lane.by_lane == 1367, "the lane has answered all of them"

    @pytest.mark.parametrize(
        ("inside", "beside", "wanted"), [(BAD, GOOD, Status.BLACKLISTED), (GOOD, BAD, Status.WHITELISTED)]
    )
    def test_an_imei_at_the_top(self, index, inside, beside, wanted):
        stray = encode_text(IMEI, beside)
        self.ask(index, ecr(inside, extra=stray), ecr(inside, before=stray), wanted)

    @pytest.mark.parametrize(
        ("inside", "beside", "wanted"),
        [("77", "01", Status.GREYLISTED), ("01", "77", Status.WHITELISTED), (None, "77", Status.WHITELISTED)],
    )
    def test_a_software_version_at_the_top(self, index, inside, beside, wanted):
        stray = encode_text(VERSION, beside)
        self.ask(
            index, ecr(self.GOOD, version=inside, extra=stray), ecr(self.GOOD, version=inside, before=stray), wanted
        )

    @pytest.mark.parametrize(
        ("top", "beside", "wanted"),
        [
            ("001020123456789", "001010123456789", Status.GREYLISTED),
            ("001010123456789", "001020123456789", Status.WHITELISTED),
            (None, "001020123456789", Status.WHITELISTED),
        ],
    )
    def test_a_user_name_inside(self, index, top, beside, wanted):
        stray = encode_text(1, beside)
        self.ask(index, ecr(self.GOOD, imsi=top, inside=stray), ecr(self.GOOD, imsi=top, inside_first=stray), wanted)

    @pytest.mark.parametrize("size", [1, 15, 40, 600, 5000])
    def test_a_session_id_inside(self, index, size):
        stray = encode_text(263, "x" * size)
        first, second = ecr(self.GOOD, inside=stray), ecr(self.GOOD, inside_first=stray)
        self.ask(index, first, second, Status.WHITELISTED)
        assert b"xxx" not in Side(lane=True).feed(first + second)

    def test_one_odd_request_costs_itself_alone(self, index):
        odd = [
            ecr(self.GOOD, inside=encode_text(IMEI, self.GOOD)),
            ecr("x"),
            ecr(None, version=None, terminal=False),
            ecr(self.GOOD, extra=encode(UNKNOWN, b"abcd")),
            ecr(self.GOOD, flags=0xE0),
        ]
        side = Side(lane=True, index=index, policy=self.POLICY)
        for number, message in enumerate(odd, 1):
            side.feed(message + ecr() * 50)
            assert side.by_lane == 50 * number


def test_every_form_that_real_clients_send_is_taken(index):
    proxies = encode(284, encode_text(280, "dra.example") + encode(33, b"12345")) + encode(
        284, encode_text(280, "dra2") + encode(33, b"")
    )
    features = encode(
        key_of(628, VENDOR),
        encode_u32(266, VENDOR) + encode_u32(key_of(629, VENDOR), 1) + encode_u32(key_of(630, VENDOR), 0),
    )
    forms = [
        ecr(), ecr(order=True), ecr(flags=0x80), ecr(flags=0xD0), ecr("001010090000010"), ecr("0010100900000177"), ecr(version=None), ecr(imsi=None), ecr(session=""),
        ecr(session="s" * 3000), ecr(extra=encode_text(282, "mme9.example") * 3), ecr(extra=proxies), ecr(before=proxies), ecr(extra=features), ecr(extra=encode(MSISDN, b"\x01\x02")),
        ecr(extra=encode(UNKNOWN, b"abcde", flags=0)), ecr(extra=encode_text(293, "EIR.example")), ecr(extra=encode_text(293, "eir2.example")), ecr(inside=encode(MEID, b"\x12" * 7)),
        ecr(extra=encode(260, encode_u32(266, VENDOR) + encode_u32(258, 16777252))), ecr(extra=encode(260, encode_u32(259, 16777252) + encode_u32(266, VENDOR))),
        ecr(extra=encode_u32(258, 16777252)), ecr(imsi="x"), ecr(imsi=""), ecr(imsi="1" * 33), ecr(realm="OTHER"), ecr(extra=encode(623, encode_u32(625, 1) + encode_u32(9999, 1))),
    ]  # fmt: skip
    with_lane, without = sides(index, sightings=True)
    both(forms, with_lane, without)
    assert with_lane.by_lane == len(forms)
    mme = replace(MME, lenient=frozenset({"destination", "unknown_m"}))
    with_lane, without = sides(index, mme=mme)
    both(
        [
            ecr(extra=encode_text(293, "elsewhere.example")),
            ecr(extra=encode(UNKNOWN, b"abcd")),
            ecr(realm="elsewhere", extra=encode_text(293, "x")),
        ],
        with_lane,
        without,
    )
    assert with_lane.by_lane == 3


def test_the_lane_records_the_number_that_the_general_path_records(index):
    """Also of checks that Python decides, and of the first of several."""
    policy = replace(LISTED, rules=(Rule(answer=Status.BLACKLISTED, list="stolen", observe=True), *LISTED.rules))
    with_lane, without = sides(index, policy, sightings=True)
    with_lane.checker.accesses = {"mme": "wlan"}
    numbers = [encode(MSISDN, octets, flags=flags) for octets in MSISDNS for flags in (0x40, 0)]
    devices = ("00101009000001", f"{BLOCKED:014d}", f"{BOUND:014d}")
    both(
        [ecr(device, extra=avps) for device in devices for avps in (b"", *numbers, numbers[2] + numbers[0])],
        with_lane,
        without,
    )
    assert with_lane.by_lane == len(devices) * (len(numbers) + 2)
    recorded = {msisdn for *_, msisdn in with_lane.sightings.rows}
    assert recorded == {"", "491701234567", "49170123456", "491701234567890", "49170"}
    assert with_lane.sightings.accesses == {"wlan"}


def test_octets_of_names_and_digits_at_each_place():
    """Words of eight octets are looked at together: each octet counts at each place, in names of any length, in IMEI and IMSI."""
    odd = [*map(chr, (0x01, 0x20, 0x21, 0x40, 0x5B, 0x7E, 0x7F)), "\u0080", "\u00a1"]
    names = ["m" * size for size in (*range(1, 18), 31, 255, 256)]
    names += [text for name in names for text in _with_each(odd, name)]
    numbers = [_with_each("/:09a\x10\u00b1", digits) for digits in ("00101009000001", "001010123456789")]
    messages = [ecr(host=name) for name in names] + [ecr(origin_realm=name) for name in names]
    side = both(messages + [ecr(text) for text in numbers[0]] + [ecr(imsi=text) for text in numbers[1]])
    good = [name for name in names if re.fullmatch("[!-~]{1,255}", name)]
    assert side.by_lane == 2 * len(good) + sum(text.isdecimal() for text in numbers[0]) + len(numbers[1])


def _with_each(odd, text):
    """The text with another character at each place, one at a time; of a long text at the last places."""
    places = range(max(0, len(text) - 20), len(text))
    return [text[:at] + each + text[at + 1 :] for at in places for each in odd]


def test_the_lane_goes_by_the_limits_of_a_message():
    limits = Limits(max_avps=32, max_message_bytes=4096, max_depth=2)
    deep = encode(279, encode(279, encode(279, b"")))
    for message in (
        ecr(extra=encode(UNKNOWN, b"", flags=0) * 23),
        ecr(extra=encode(UNKNOWN, b"", flags=0) * 24),
        ecr(inside=encode(UNKNOWN, b"", flags=0) * 24),
        ecr(extra=deep),
        ecr(extra=deep[8:]),
    ):
        side = both([message] * 2, limits=limits)
        assert side.by_lane == side.checker.checks().total()
    taken = both([ecr(session="s" * size) for size in range(3800, 4000, 4)], limits=limits)
    assert len(range(3800, 4000, 4)) > taken.by_lane == taken.checker.checks().total() > 10


class TestConditions:
    """Each kind of condition by fixed vectors: who holds it and who does not, alone, negated by another rule, under observation; in windows of 1 and of 70."""

    HELD = (
        (Rule(answer=Status.BLACKLISTED, list="stolen"), ecr(f"{BLOCKED:014d}"), ecr(f"{BLOCKED + 1:014d}")),
        (Rule(answer=Status.BLACKLISTED, list="stolen"), ecr("001010071310710"), ecr("00101007129999")),
        (
            Rule(answer=Status.BLACKLISTED, list="tacs"),
            ecr(f"{TRACKED_TAC * SNR_KEYS + 999_999:014d}"),
            ecr("00101006000008"),
        ),
        (Rule(answer=Status.BLACKLISTED, list="tacs"), ecr("00101003000001"), ecr("00101006000010")),
        (Rule(answer=Status.BLACKLISTED, list="ending"), ecr(f"{ENDING:014d}"), ecr(f"{ENDED:014d}")),
        (
            Rule(answer=Status.BLACKLISTED, list="bound"),
            ecr(f"{BOUND:014d}"),
            ecr(f"{BOUND:014d}", imsi="001010123456780"),
        ),
        (Rule(answer=Status.BLACKLISTED, list="sims"), ecr(imsi="001020123456789"), ecr(imsi="001020123456788")),
        (Rule(answer=Status.BLACKLISTED, list="sims"), ecr(imsi="001021"), ecr(imsi="0010210")),
        (Rule(answer=Status.BLACKLISTED, list="sims"), ecr(imsi="001021"), ecr(imsi=None)),
        (Rule(answer=Status.BLACKLISTED, not_list="stolen"), ecr(f"{BLOCKED + 1:014d}"), ecr(f"{BLOCKED:014d}")),
        (Rule(answer=Status.BLACKLISTED, not_list="bound"), ecr(), ecr(f"{BOUND:014d}")),
        (Rule(answer=Status.BLACKLISTED, not_list="sims"), ecr(), ecr(imsi=None)),
        (
            Rule(answer=Status.BLACKLISTED, device_bound_elsewhere="bound"),
            ecr(f"{BOUND:014d}", imsi="001010123456780"),
            ecr(f"{BOUND:014d}"),
        ),
        (Rule(answer=Status.BLACKLISTED, subscriber_bound_elsewhere="bound"), ecr(), ecr(f"{BOUND:014d}")),
        (Rule(answer=Status.BLACKLISTED, tac=("00101009",)), ecr("00101009999999"), ecr("00101010000000")),
        (Rule(answer=Status.BLACKLISTED, tac=("35", "0010101")), ecr("00101010000000"), ecr("00101009999999")),
        (Rule(answer=Status.BLACKLISTED, software_version=("00", "77")), ecr(version="00"), ecr(version="01")),
        (
            Rule(answer=Status.BLACKLISTED, software_version=("77",)),
            ecr("0010100900000177", version=None),
            ecr("0010100900000177", version="01"),
        ),
        (Rule(answer=Status.BLACKLISTED, software_version=("00",)), ecr(version="00"), ecr(version=None)),
        (Rule(answer=Status.BLACKLISTED, imei=(f"{NAMED:014d}",)), ecr(f"{NAMED:014d}3"), ecr(f"{NAMED + 1:014d}")),
        (
            Rule(answer=Status.BLACKLISTED, imsi=("00102", "9")),
            ecr(imsi="001020000000000"),
            ecr(imsi="001019999999999"),
        ),
        (Rule(answer=Status.BLACKLISTED, imsi=("001010123456789",)), ecr(), ecr(imsi="001010123456788")),
        (Rule(answer=Status.BLACKLISTED, imsi=("0010",)), ecr(imsi="00102"), ecr(imsi="001")),
        (Rule(answer=Status.BLACKLISTED, imsi=("0",)), ecr(imsi="0" * 40), ecr(imsi=None)),
        (Rule(answer=Status.BLACKLISTED, device_type=("Module",)), ecr("00101004999999"), ecr("00101003999999")),
        (
            Rule(answer=Status.BLACKLISTED, device_type=("Module", "Tablet")),
            ecr("001010040000003"),
            ecr("00101009000000"),
        ),
        (Rule(answer=Status.BLACKLISTED, device_type=("smartphone",)), ecr("00101007000001"), ecr("00101006000001")),
        (Rule(answer=Status.BLACKLISTED, device_type=("Smartphone",)), ecr("0010100999999977"), ecr("00101008999999")),
        (Rule(answer=Status.BLACKLISTED, identifier=("zero",)), ecr("00000000000000"), ecr("00000000000001")),
        (Rule(answer=Status.BLACKLISTED, identifier=("repeated",)), ecr("333333333333333"), ecr("33333333333332")),
        (Rule(answer=Status.BLACKLISTED, identifier=("sequence",)), ecr("98765432109876"), ecr("98765432109877")),
        (Rule(answer=Status.BLACKLISTED, identifier=("test",)), ecr("00101799999999"), ecr("00101800000000")),
        (Rule(answer=Status.BLACKLISTED, identifier=("test",)), ecr("00440000000000"), ecr("00450000000000")),
        (
            Rule(answer=Status.BLACKLISTED, origin_host=("other.example", "MME2.example")),
            ecr(host="mme2.EXAMPLE"),
            ecr(host="mme22.example"),
        ),
        (
            Rule(answer=Status.BLACKLISTED, origin_host=("mme2.example",)),
            ecr(host="mme2.example"),
            ecr(host="mme3.example"),
        ),
        (Rule(answer=Status.BLACKLISTED, origin_realm=("Example",)), ecr(), ecr(origin_realm="example2")),
        (
            Rule(answer=Status.BLACKLISTED, list="stolen", imsi=("00102",)),
            ecr(f"{BLOCKED:014d}", imsi="001020123456789"),
            ecr(f"{BLOCKED:014d}"),
        ),
    )

    @pytest.mark.parametrize("window", [1, 70])
    @pytest.mark.parametrize(("rule", "holds", "fails"), HELD)
    def test_alone(self, index, rule, holds, fails, window):
        with_lane, without = sides(index, PolicySettings(rules=(rule,), default=Status.GREYLISTED), sightings=True)
        for message, status in ((holds, rule.answer), (fails, Status.GREYLISTED), (holds, rule.answer)):
            answer = with_lane.feed(message * window)
            assert answer.count(STATUS[status]) == window
            assert answer == without.feed(message * window)
            assert with_lane.state() == without.state()
        assert with_lane.by_lane == 3 * window

    @pytest.mark.parametrize("window", [1, 70])
    @pytest.mark.parametrize(("rule", "holds", "fails"), HELD)
    def test_observed(self, index, rule, holds, fails, window):
        """It answers nothing, is counted, and stands on record at the checks for which it held, and at no other."""
        with_lane, without = sides(
            index, PolicySettings(rules=(replace(rule, observe=True),), default=Status.WHITELISTED), sightings=True
        )
        for message in (holds, fails, holds, fails):
            answer = with_lane.feed(message * window)
            assert answer.count(STATUS[Status.WHITELISTED]) == window
            assert answer == without.feed(message * window)
            assert with_lane.state() == without.state()
        with_lane.feed((holds + fails) * window)
        assert with_lane.checker.observed == {("1", "blacklisted"): 3 * window}
        said = {observed for _, _, _, observed, *_ in with_lane.sightings.rows}
        assert len(said) == 2
        held = [count for (_, _, _, observed, *_), count in with_lane.sightings.rows.items() if observed]
        assert sum(held) == 3 * window
        assert with_lane.by_lane == 6 * window

    def test_device_types_that_come_and_change(self):
        index = Index({"types": "device_types", "more": "device_types"})
        with_lane, without = sides(
            index, PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, device_type=("Module",)),))
        )
        module, phone = device_type_key("Module"), device_type_key("Smartphone")
        stream, blocked = b"".join(ecr(f"{tac:08d}000009") for tac in (101003, 101004, 101005)), []
        for name, types in (
            ("types", {}), ("types", {101003: [module], 101004: [phone]}), ("more", {101004: [phone, module], 101005: [module]}), ("types", {101003: [phone]}),
        ):  # fmt: skip
            both([stream], with_lane, without)
            fill(index, name, pair_rows({tac * SNR_KEYS: said for tac, said in types.items()}))
            answer = with_lane.feed(stream)
            assert answer == without.feed(stream)
            blocked.append(answer.count(STATUS[Status.BLACKLISTED]))
        assert blocked == [0, 1, 3, 2]

    def test_many_conditions_on_origins_lists_and_names(self):
        """More lists than the lane has room for are asked of the general path; of rules on origins there is no such number."""
        rules = [Rule(answer=Status.BLACKLISTED, origin_host=(f"mme{number}.example",)) for number in range(70)]
        names = {f"list{number}": "devices" for number in range(20)}
        many = Index(names)
        for number, name in enumerate(names):
            fill(many, name, rows_of([100 + number]))
        policy = PolicySettings(rules=(*rules, *(Rule(answer=Status.GREYLISTED, list=name) for name in names)))
        messages = [ecr(host=f"mme{number}.example") for number in (0, 31, 32, 33, 69, 70)] + [
            ecr(f"{number:014d}") for number in range(98, 124)
        ]
        with_lane, without = sides(many, policy, sightings=True)
        both(messages, with_lane, without)
        assert with_lane.checker.checks().total() == len(messages) == with_lane.by_lane
        assert sum(count for (status, *_), count in with_lane.checker.checks().items() if status == "blacklisted") == 5
        assert sum(count for (status, *_), count in with_lane.checker.checks().items() if status == "greylisted") == 20

    def test_a_policy_too_large_for_the_lane_is_the_general_path_s(self, index):
        policy = PolicySettings(
            rules=tuple(Rule(answer=Status.BLACKLISTED, imei=(f"{number:014d}",)) for number in range(VERDICTS_MAX))
        )
        with_lane, without = sides(index, policy)
        both([ecr("00000000001023"), ecr("00000000001024")], with_lane, without)
        assert with_lane.by_lane == 0


def test_a_peer_gets_the_replaced_statuses_of_its_entry():
    mme = replace(MME, answers=(("unknown", "greylisted"), ("blacklisted", "whitelisted")))
    messages = [
        ecr(version="77", imei="00101008000001"),
        ecr("00101001000001"),
        ecr(imsi="001020123456789", imei="00101008000001"),
        ecr(imei="00101008000001"),
    ]
    two = [Side(lane=lane, mme=mme) for lane in (True, False)]
    for data in (*messages, *messages, b"".join(messages), messages[0] * 40, messages[3] * 40):
        answers = [side.feed(data) for side in two]
        assert answers[0] == answers[1]
        assert b"\0\0\x15\x2e" not in answers[0], "5422"
    assert two[0].state() == two[1].state()
    assert set(two[0].counts.answers) == {("mme", "2001")}
    assert {status for status, *_ in two[0].checker.checks()} == set(Status), "the policy's own words are counted"
    assert [
        encode_u32(key_of(1445, VENDOR), value) in side.feed(message)
        for side in two
        for value, message in zip((2, 0, 2, 0), messages, strict=True)
    ] == [True] * 8


class TestFaults:
    """Whatever is wrong with us, each request has its answer, by the general path (row 32)."""

    def test_a_policy_that_fails_for_one_device(self):
        side = Side(lane=True)
        policy = side.checker.policy

        def fail(key, *rest):
            if key == 13:
                raise ZeroDivisionError
            return policy.decide(key, *rest)

        asks = encode_policy(
            [({"anything": True}, policy.program.verdicts[0], False)], policy.program.verdicts[-1], Index({})
        )
        plain = Side(lane=False).feed(ecr())
        side.checker._policy = replace(policy, decide=fail, program=asks)
        bad = ecr("00000000000013")
        out = side.feed(ecr() * 2 + bad + ecr() * 40)
        assert out.startswith(plain * 2)
        assert out.endswith(plain * 40)
        assert out.count(encode_u32(268, 5012)) == 1
        assert side.counts.answers["mme", "5012"] == 1
        assert side.counts.errors == {"internal": 1}
        assert side.checker.checks().total() == 42 == side.by_lane, "one message cost itself alone"

    def test_a_lane_that_fails(self):
        side = Side(lane=True)

        class Broken:
            def take(self, *_):
                raise KeyError

        plain = side.feed(ecr())
        side.lanes.lane, side.lanes.renew = Broken(), lambda: None
        assert side.feed(ecr() * 2) == plain * 2
        assert side.counts.errors == {"internal": 2}
        assert side.feed(ecr()) == plain


seeds = st.integers(0, 2**32 - 1).map(random.Random)


@given(seeds, st.integers(1, 30))
@settings(max_examples=30)
def test_generated_requests_get_the_same_answer(rng, count):
    """Any AVP that the grammar knows on any level, once or twice, with the M bit and without, in any order."""
    with_lane, without = sides(listed(), LISTED, sightings=True)
    for _ in range(count):
        message = an_ecr(rng)
        if rng.random() < 0.5:
            message = altered(rng, message)
        both([message], with_lane, without)
        if with_lane.peer.state != Side(lane=False).peer.state:
            return


@given(seeds)
@settings(max_examples=20)
def test_a_request_that_ends_anywhere(rng):
    """Cut at each of its octets: what frames it says how long it is, and the rest may be anything."""
    message, other = an_ecr(rng), any_avp(rng)
    with_lane, without = sides(listed(), LISTED)
    for end in range(20, len(message), 4):
        cut = bytearray(message[:end] + other)
        cut[1:4] = len(cut).to_bytes(3)
        both([bytes(cut)], with_lane, without)


@given(seeds, st.lists(st.integers(1, 700), max_size=60))
@settings(max_examples=10)
def test_any_segmentation_gives_the_same_bytes(rng, cuts):
    stream = b"".join(an_ecr(rng) for _ in range(20))
    whole, cut = (Side(lane=True, index=listed(), policy=LISTED) for _ in range(2))
    expected = whole.feed(stream)
    got, at = b"", 0
    for size in [*cuts, len(stream)]:
        got += cut.feed(stream[at : at + size])
        at += size
    assert got == expected
    assert cut.state()[:-4] == whole.state()[:-4]


@given(
    seeds,
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 0.5)), min_size=1, max_size=8),
    st.lists(st.sampled_from([1.0, 4.0, 30.0, 200.0]), max_size=2, unique=True),
    st.sampled_from([TOO_BUSY_REPLY, *map(replace, REPLIES.values())]),
)
@settings(max_examples=50)
def test_limits_are_the_same_for_both(rng, reads, rates, overload):
    two = [Side(lane=lane, rates=rates, overload=overload) for lane in (True, False)]
    now = 0.0
    for count, pause in reads:
        now += pause
        stream = b"".join(an_ecr(rng) for _ in range(count)) + ecr() * 20
        with_lane, without = (side.feed(stream, now) for side in two)
        assert with_lane == without
        assert two[0].state() == two[1].state()


def test_the_lane_turns_away_what_it_would_take():
    side = Side(lane=True, rates=[40.0])
    side.feed(ecr())
    general = []
    application = replace(side.context.application, answer=general.append)
    side.peer.configure(replace(side.context, application=application), None, 0.0)
    proxy = encode(284, encode_text(280, "dra.example") + encode(33, b"1"))
    out = side.feed(ecr(extra=proxy) * 100)
    assert general == []
    assert out.count(encode_u32(268, 3004)) == side.counts.shed["mme", "rate_40.0"] == side.shed_by_lane == 94
    assert out.count(proxy) == 100
    # RFC 7944: 3 is more urgent than the default, and 15 less.
    urgent, patient = ecr(extra=encode_u32(301, 0)), ecr(extra=encode_u32(301, 15))
    side.peer.configure(side.context, None, 0.0)
    assert side.feed(urgent).count(encode_u32(268, 2001)) == 1
    assert side.feed(patient).count(encode_u32(268, 2001)) == 0


def test_the_first_message_of_a_connection_is_taken_as_the_last():
    side = Side(lane=True)
    side.feed(
        b"".join(ecr(f"{n:014d}", host=f"mme{n}.example", ids=(n, n), imsi=f"00101{n:010d}") for n in range(1000))
    )
    assert side.by_lane == 1000


CONDITIONS = st.fixed_dictionaries({}, optional={
    "list": st.sampled_from(["stolen", "tacs", "bound", "sims", "never", "ending"]), "not_list": st.sampled_from(["stolen", "never", "sims", "bound", "ending"]),
    "tac": st.sampled_from([("00101009",), ("0", "35"), ("00101004", "00101005", "9")]), "software_version": st.sampled_from([("77",), ("01", "99", "00")]),
    "imei": st.sampled_from([(f"{NAMED:014d}", "A0000000000001"), (f"{BLOCKED:014d}7",)]),
    "identifier": st.sampled_from([("zero", "sequence"), ("test",), ("test", "repeated"), ("malformed", "zero")]),
    "imsi": st.sampled_from([("00102",), ("001010123456789", "2"), ("0",)]), "origin_host": st.sampled_from([("mme2.example",), ("MME.example",)]),
    "origin_realm": st.just(("example",)), "device_bound_elsewhere": st.just("bound"), "subscriber_bound_elsewhere": st.just("bound"),
    "device_type": st.sampled_from([("Module",), ("Smartphone", "Tablet")]), "observe": st.booleans(),
})  # fmt: skip
RULES = st.lists(
    st.builds(
        lambda answer, said: Rule(answer=answer, **said),
        st.sampled_from(Status),
        CONDITIONS.filter(lambda said: said.keys() - {"observe"}),
    ),
    max_size=5,
)


class TestManyAtOnce:
    """Many messages in a row, over all that a policy may ask."""

    @given(
        seeds,
        st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=4),
        RULES,
        st.sampled_from(Status),
        st.booleans(),
    )
    @settings(max_examples=80)
    def test_gives_the_same_bytes(self, index, rng, parts, rules, default, sighted):
        stream = b"".join(an_ecr(rng) * again for count, again in parts for _ in range(count))
        with_lane, without = sides(index, PolicySettings(rules=tuple(rules), default=default), sightings=sighted)
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
            assert with_lane.state() == without.state()

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
            (PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, identifier=("test", "zero")),)), 0),
            (PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, device_type=("Module", "Smartphone")),)), 0),
        ],
    )
    def test_only_what_it_cannot_decide_is_asked(self, index, policy, asked):
        with_lane, without = sides(index, policy)
        calls = []
        decide = with_lane.checker.policy.decide
        with_lane.checker._policy = replace(
            with_lane.checker.policy, decide=lambda *about: calls.append(about) or decide(*about)
        )
        stream = b"".join(ecr(f"{key:014d}") for key in [*range(49), BLOCKED, BOUND, NAMED, *range(60, 108)])
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.checker.checks() == without.checker.checks()
        assert len(calls) == asked

    def test_sightings_of_a_full_window(self, index):
        with_lane, without = sides(
            index,
            replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("00101004",), observe=True))),
            sightings=True,
        )
        stream = b"".join(
            ecr(f"{key:014d}0", imsi=f"00101{key:010d}")
            for key in [*range(60), BLOCKED, NAMED, TRACKED_TAC * SNR_KEYS + 9, *range(60, 120)]
        )
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.sightings.rows == without.sightings.rows
        assert sum(with_lane.sightings.rows.values()) == 2 * 123
        assert {peer for _, _, peer, *_ in with_lane.sightings.rows} == {"mme"}

    def test_checks_of_a_probe_are_no_sightings(self, index):
        policy = replace(
            LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("00101004",), observe=True))
        )
        with_lane, without = sides(index, policy, sightings=True)
        with_lane.checker.probes = without.checker.probes = frozenset({("s13", "mme")})
        stream = b"".join(ecr(f"{key:014d}") for key in [*range(60), BLOCKED, NAMED, 101004_000005, *range(60, 120)])
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.checker.checks() == without.checker.checks()
        assert {labels[4:] for labels in with_lane.checker.checks()} == {("yes",)}
        assert with_lane.sightings.rows == without.sightings.rows == {}
        with_lane.checker.probes = without.checker.probes = frozenset()
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.sightings.rows == without.sightings.rows
        assert sum(with_lane.sightings.rows.values()) == 123

    def test_a_user_name_longer_than_a_number_stands_on_record_as_the_general_path_has_it(self, index):
        with_lane, without = sides(index, sightings=True)
        for size in (15, 16, 31, 32, 33, 300):
            both([ecr(imsi="7" * size)], with_lane, without)
        assert {len(row[-3]) for row in with_lane.sightings.rows} == {15, 16, 31, 32}

    def test_without_room_plain_checks_are_counted_and_all_others_recorded(self, index):
        with_lane, without = sides(
            index,
            replace(LISTED, rules=(*LISTED.rules, Rule(answer=Status.BLACKLISTED, tac=("00101004",), observe=True))),
            sightings=True,
        )
        with_lane.sightings.full = {"mme"}
        stream = b"".join(
            ecr(f"{key:014d}")
            for key in [*range(60), BLOCKED, NAMED, TRACKED_TAC * SNR_KEYS + 9, 101004_000005, *range(60, 120)]
        )
        for _ in range(2):
            assert with_lane.feed(stream) == without.feed(stream)
        told, all_of_them = with_lane.sightings.rows, without.sightings.rows
        assert sum(told.values()) + with_lane.sightings.left == sum(all_of_them.values())
        matter = [
            {row: count for row, count in found.items() if not row[0][-1] or row[3]} for found in (told, all_of_them)
        ]
        assert matter[0] == matter[1] != {}
        assert with_lane.sightings.left >= 120

    def test_a_lane_that_nobody_asks_lets_go_of_what_is_no_longer_in_force(self):
        def mapped():
            return Path("/proc/self/maps").read_text().count("/memfd:eir-list")

        index = listed()
        side = sides(index)[0]
        side.feed(ecr() * 3)
        before = mapped()
        fill(index, "stolen", rows_of([BLOCKED + 1]))
        assert mapped() == before + 1
        side.lanes.renew()
        assert mapped() == before

    def test_lists_that_change_between_messages(self):
        index = listed()
        with_lane, without = sides(index)
        messages = [ecr(f"{key:014d}") for key in (BLOCKED, BLOCKED + 1, 101009_500050, TRACKED_TAC * SNR_KEYS + 6)]
        stream = b"".join(messages * 20)
        changes = [
            ("stolen", [BLOCKED + 1]),
            ("tacs", [101005_000007]),
            ("stolen", [BLOCKED, BLOCKED + 1]),
        ]
        said = set()
        for name, keys in changes:
            fill(index, name, rows_of(keys))
            answer = with_lane.feed(stream)
            assert answer == without.feed(stream)
            said.add(answer)
        fill(index, "stolen", rows_of([BLOCKED + 1]))
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.state() == without.state()
        assert len(said) == 3

    @pytest.mark.parametrize(
        ("kind", "row", "imei", "imsi"),
        [
            ("devices", {"keys": [BLOCKED]}, BLOCKED, None), ("devices", {"keys": [WHOLE | TRACKED_TAC]}, TRACKED_TAC * SNR_KEYS + 6, None),
            ("subscribers", {"keys": [imsi_key(SIM)]}, BLOCKED, SIM), ("pairs", {"keys": [BLOCKED], "seconds": [imsi_key(SIM)]}, BLOCKED, SIM),
        ],
    )  # fmt: skip
    def test_a_row_counts_from_the_first_second_of_its_begin_to_the_last_before_its_end(self, kind, row, imei, imsi):
        """Row 69, while other rows of the list have neither begin nor end."""
        now = [0.0]
        index = Index({"stolen": kind}, lambda: now[0])
        others = rows_of([BLOCKED + 1, TRACKED_TAC * SNR_KEYS + 7], seconds=imsi_key(SIM) if kind == "pairs" else 0)
        fill(
            index, "stolen", joined([rows_of(row["keys"], seconds=row.get("seconds", 0), begins=200, ends=300), others])
        )
        rules = (Rule(list="stolen", answer=Status.BLACKLISTED),)
        given_sides = sides(index, PolicySettings(rules=rules))
        message = ecr(f"{imei:014d}", imsi=imsi) if imsi else ecr(f"{imei:014d}")
        for moment, status in (
            (199.999, Status.WHITELISTED), (200.0, Status.BLACKLISTED), (299.999, Status.BLACKLISTED), (300.0, Status.WHITELISTED),
        ):  # fmt: skip
            now[0] = moment
            both([message], *given_sides)
            assert STATUS[status] in given_sides[0].feed(message)
            assert index.lists["stolen"].pending == (moment < 200)
            given_sides[1].feed(message)

    def test_a_limit_ends_it_where_it_has_to(self, index):
        with_lane, without = sides(index, rates=[40.0])
        stream = ecr() * 80
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.state() == without.state()


def test_a_new_policy_is_in_force_at_once():
    with_lane, without = Side(lane=True), Side(lane=False)
    for side in (with_lane, without):
        side.feed(ecr("00101001000001") * 2)
        side.checker.apply(PolicySettings(), datetime.now(UTC))
    assert with_lane.feed(ecr("00101001000001") * 3) == without.feed(ecr("00101001000001") * 3)
    assert with_lane.state() == without.state()


@pytest.mark.long
def test_the_soak_finds_nothing_in_its_short_form_and_a_fault_that_is_put_in():
    run = [sys.executable, ROOT / "scripts" / "soak", "lane", "--messages", "6000", "--processes", "2"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 2 processes found a difference" in done.stdout
    harness = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'scripts')!r}]\n"
        "import soak_lane, eir.checks.conditions as conditions; right = conditions.KEY_TESTS['test']\n"
        "conditions.KEY_TESTS = {**conditions.KEY_TESTS, 'test': lambda key: not right(key)}\n"
        "print(soak_lane._compare('1', 20_000)[2])"
    )
    found = subprocess.run([sys.executable, "-c", harness], capture_output=True, text=True, check=True).stdout.strip()
    assert b"\x00\x00\x05\x7a" in bytes.fromhex(found), "an IMEI is in it"


def test_odd_messages_are_a_smaller_turn_beside_a_lane_than_without_one():
    """Elsewhere a lane answers, and they keep it waiting; without lanes they are what every connection sends."""
    odd = ecr(extra=encode(UNKNOWN, b""))  # its M bit is set and nobody knows it: 5001, by the general path
    turns = []
    for side in sides(listed()):
        side.peer.receive(odd * 64, 1.0)
        turns.append(side.peer.traffic.answers)
        assert side.peer.more
    beside, alone = turns
    assert 0 < beside <= 4
    assert beside * 6 <= alone


class TestFirstSightings:
    """A device on record is decided by the lane; one that belongs on the record by the general path."""

    TODAY = 20_787
    POLICY = PolicySettings(
        rules=(
            Rule(answer=Status.WHITELISTED, imsi=("99999",)),
            Rule(answer=Status.UNKNOWN, first_seen_before=TODAY - 200),
            Rule(answer=Status.GREYLISTED, first_seen_within=60, software_version=("01",)),
            Rule(answer=Status.WHITELISTED, first_seen_within=120),
        ),
        default=Status.BLACKLISTED,
    )

    def index(self, days):
        index = Index({"first-seen": FIRST_SEEN}, lambda: self.TODAY * 86400)
        firsts, lasts = zip(*days.values(), strict=True) if days else ((), ())
        image = first_seen_image(table_of(sighted_rows(np.array([*days], "<u8"), np.array(firsts), np.array(lasts))))
        # The bytes before the days are those of a device on record: a device without a place must not read there.
        image.sightings = memoryview(b"\x01\x00\xff" + bytes(image.sightings))[3:]
        index.switch("first-seen", Head(kind=FIRST_SEEN, generation=1), image)
        return index

    def asked(self, days, requests):
        found = []
        for lane in (True, False):
            index = self.index(days)
            side = Side(lane=lane, policy=self.POLICY, index=index, new_devices=NewDevices(index.first_seen, 10**6))
            found.append((side.feed(b"".join(requests)), side.state(), sorted(index.first_seen.fresh), side))
        assert found[0][:3] == found[1][:3]
        return found[0]

    def test_only_what_belongs_on_the_record_leaves_the_lane(self):
        on_record = {101009_000000 + n: (self.TODAY - 40 * n, self.TODAY) for n in range(8)}
        on_record[101009_000020] = (0, self.TODAY)
        on_record[101009_000021] = (self.TODAY - 10, self.TODAY - 100)
        on_record[101009_000022] = (self.TODAY + 1, self.TODAY)
        asks = []
        index = self.index(on_record)
        side = Side(lane=True, policy=self.POLICY, index=index, new_devices=NewDevices(index.first_seen, 10**6))
        decide = side.checker.policy.decide
        object.__setattr__(side.checker.policy, "decide", lambda key, *about: asks.append(key) or decide(key, *about))
        devices = [*on_record, 101009_000030]
        side.feed(b"".join(ecr(f"{device:014d}") for device in devices))
        assert asks == [101009_000021, 101009_000022, 101009_000030] == sorted(index.first_seen.fresh)
        assert side.by_lane == len(devices)

    @settings(deadline=None, max_examples=60)
    @given(
        st.dictionaries(
            st.integers(0, 12), st.tuples(st.sampled_from([0, 1, *range(TODAY - 220, TODAY + 3, 7)]), st.integers(TODAY - 80, TODAY)), max_size=12
        ),
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["01", "02"]), st.sampled_from(["001010123456789", "999990000000001", "0010"])), min_size=1, max_size=40),
    )  # fmt: skip
    def test_both_ways_give_the_same(self, days, asked):
        keys = {101009_000000 + 70_001 * n: when for n, when in days.items()}
        requests = [ecr(f"{101009_000000 + 70_001 * n:014d}", version=version, imsi=imsi) for n, version, imsi in asked]
        self.asked(keys, requests)
