"""GSUP without I/O (eir/interfaces/gsup/): frames, names, CHECK-IMEI and its answers, by the bytes that Debian's osmo-msc and osmo-hlr have sent."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.osmo_wire import (
    ACK,
    CHECK,
    ID_ACK,
    ID_GET,
    ID_RESP,
    IMSI,
    NACK,
    PING,
    PONG,
    check,
    frames,
    gsup,
    tbcd,
    update_location,
)
from simulated.store_content import fill

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key
from eir.interfaces.gsup import ipa, message
from eir.interfaces.gsup.ipa import Frames, FrameTooLong
from eir.interfaces.gsup.server import GsupService
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.peers.settings import Requester

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BLACK, GREY, WHITE, UNKNOWN = Status.BLACKLISTED, Status.GREYLISTED, Status.WHITELISTED, Status.UNKNOWN
LISTED, FREE = "00101001000001", "00101003000003"
MSC = Requester("msc", "MSC-1")


def service(*rules, peers=(), unproven=(), **policy):
    index = Index({"stolen": "devices"})
    fill(index, "stolen", rows_of([device_key(LISTED)]))
    made = GsupService(
        Checker(PolicySettings(rules=rules or (Rule(list="stolen", answer=BLACK),), **policy), index, now=NOW)
    )
    made.configure(peers, unproven)
    return made


def permits(of, frame, asks=MSC):
    return of.permits(message.read_check_imei(frame), asks)


def test_the_bytes_of_osmo_programs():
    asked = message.read_check_imei(CHECK)
    assert (asked.subscriber, asked.imei) == (IMSI, "49015420323751")
    assert message.check_imei(IMSI, "49015420323751") == CHECK == check("49015420323751")
    assert (message.result(asked.imsi, permitted=True), message.result(asked.imsi, permitted=False)) == (ACK, NACK)
    assert (ipa.ID_GET, ipa.ID_ACK, ipa.PING, ipa.PONG) == (ID_GET, ID_ACK, PING, PONG)
    assert ipa.name_in(ID_RESP) == "MSC-1"
    assert ipa.name_in(ipa.id_resp("eir-probe")) == "eir-probe"


@pytest.mark.parametrize("cut", range(len(ID_RESP)))
def test_a_name_that_is_cut_off_is_no_fault(cut):
    assert ipa.name_in(ID_RESP[:cut]) in {"", "MSC", *("MSC-1"[:length] for length in range(6))}


@pytest.mark.parametrize("cut", range(3, len(CHECK)))
def test_a_check_that_is_cut_off_is_answered_to_its_imsi_or_to_nobody(cut):
    """Cut at each octet: what is missing is missing, and what is cut off is no identifier; with its IMSI whole it gets an ACK."""
    asked = message.read_check_imei(CHECK[:cut])
    whole_imsi = cut >= 15
    assert (asked.imsi is None) == (cut < 7)
    assert (asked.subscriber == IMSI) == whole_imsi
    assert asked.imei == ("49015420323751" if cut >= 25 else asked.imei)
    assert permits(service(), CHECK[:cut])
    assert message.result(asked.imsi or b"", permitted=True)[-3:] == b"\x51\x01\x00"


@given(st.binary(max_size=80), st.integers(0, 100))
def test_nothing_that_comes_raises(octets, at):
    for frame in (b"\0\0\xee\x05\x30" + octets, CHECK[:at] + octets if at > 4 else CHECK):
        asked = message.read_check_imei(frame)
        assert isinstance(permits(service(), frame), bool)
        message.is_nack(frame)
        message.error(frame)
        ipa.name_in(frame)
        assert asked.imei is None or isinstance(asked.imei, str)


@pytest.mark.parametrize(
    ("element", "digits"),
    [
        (b"\x07" + tbcd("49015420323751"), "49015420323751"), (b"\x08" + tbcd("490154203237518"), "490154203237518"),
        (b"\x08" + tbcd("4901542032375101"), "4901542032375101"), (tbcd("490154203237518"), "490154203237518"),
        (tbcd("4901542032375101"), "4901542032375101"), (b"", ""), (b"\x00", ""), (b"\x07" + tbcd("4901542032375*"), "4901542032375a"),
    ],
)  # fmt: skip
def test_an_imei_of_any_length(element, digits):
    frame = gsup(0x30, (1, tbcd(IMSI)), (0x50, element))
    assert message.read_check_imei(frame).imei == digits


def test_verdicts():
    by_status = {BLACK: False, GREY: True, UNKNOWN: True, WHITE: True}
    for status, permitted in by_status.items():
        assert permits(service(Rule(imei=(LISTED,), answer=status)), check(LISTED)) is permitted
        assert permits(service(default=status), check(FREE)) is permitted
    strict = SimpleNamespace(
        label="msc", answers=(("greylisted", "blacklisted"), ("unknown", "blacklisted"), ("blacklisted", "whitelisted"))
    )
    for status, permitted in by_status.items():
        of = service(Rule(imei=(LISTED,), answer=status), peers=[strict])
        assert permits(of, check(LISTED)) is (status in {BLACK, WHITE})
        assert permits(of, check(LISTED), Requester("other")) is permitted


@pytest.mark.parametrize(("answer", "permitted"), [(BLACK, False), (GREY, True), (WHITE, True), (None, True)])
def test_a_malformed_identifier_gets_the_answer_of_the_policy_and_never_an_error(answer, permitted):
    for frame in (
        gsup(0x30, (1, tbcd(IMSI))),
        check("1234"),
        check("0010100100000*"),
        gsup(0x30, (1, tbcd(IMSI)), (0x50, b"")),
    ):
        assert permits(service(no_identity=answer, bad_identity=answer), frame) is permitted
    assert service(bad_identity=answer).permits_after_fault() is permitted


def test_a_rule_by_imsi_can_leave_out_who_asks_too_early():
    rules = (Rule(imsi=("00101",), answer=BLACK, authenticated=True),)
    assert not permits(service(*rules), check(FREE))
    assert permits(service(*rules, unproven=["msc"]), check(FREE))
    assert not permits(service(*rules, unproven=["other"]), check(FREE))
    assert not permits(service(Rule(imsi=("00101",), answer=BLACK), unproven=["msc"]), check(FREE))
    assert not permits(service(Rule(origin_host=("msc-1",), answer=BLACK)), check(FREE))


def test_errors_of_requests_and_of_nothing_else():
    refused = message.error(update_location())
    assert refused == gsup(0x05, (1, tbcd(IMSI)), (2, b"\x11"))
    ss = gsup(0x20, (1, tbcd(IMSI)), (0x30, b"\0\0\0\7"), (0x31, b"\1"), (0x35, b"ss"))
    assert message.error(ss) == gsup(0x21, (1, tbcd(IMSI)), (0x30, b"\0\0\0\7"), (2, b"\x11"), (0x31, b"\3"))
    for other in (gsup(0x12, (1, tbcd(IMSI))), gsup(0x05, (1, tbcd(IMSI)), (2, b"\x11")), gsup(0x04, (2, b"\1"))):
        assert message.error(other) is None


def test_answers_of_an_hlr_about_an_imei():
    said = {b"\x51\x01\x00": False, b"\x51\x01\x01": True, b"\x51\x01\x02": True, b"\x51\x00": False, b"": False}
    for end, no in said.items():
        assert message.is_nack(gsup(0x32, (1, tbcd(IMSI))) + end) is no
    assert not message.is_nack(gsup(0x31, (1, tbcd(IMSI)), (2, b"\x60")))


@given(st.lists(st.binary(max_size=40), max_size=8), st.randoms(use_true_random=False))
def test_frames_come_whole_however_they_are_cut(payloads, chance):
    octets = b"".join(len(payload).to_bytes(2) + b"\xee" + payload for payload in payloads)
    cut, found = Frames(1000), []
    while octets:
        size = chance.randint(1, 7)
        cut.feed(octets[:size])
        octets = octets[size:]
        found += cut.whole()
    assert [frame[3:] for frame in found] == payloads
    assert cut.unread == 0


def test_a_frame_longer_than_the_limit_ends_the_reading():
    cut = Frames(100)
    cut.feed(CHECK + b"\xff\xff\xee")
    whole = cut.whole()
    assert next(whole) == CHECK
    with pytest.raises(FrameTooLong):
        next(whole)
    longest = b"\0\x61\xee" + bytes(97)
    cut = Frames(len(longest))
    cut.feed(longest)
    assert list(cut.whole()) == [longest]
    assert frames(CHECK + ACK) == ([CHECK, ACK], b"")
