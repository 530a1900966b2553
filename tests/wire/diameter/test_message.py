"""Requests and answers as their receiver sees them, and the answers that we build."""

import pytest
from simulated import wire

from eir.errors import DiameterError
from eir.interfaces.s13.dictionary import (
    DICTIONARY,
    EQUIPMENT_STATUS,
    IMEI,
    MEID,
    SOFTWARE_VERSION,
    TERMINAL_INFORMATION,
)
from eir.wire.diameter.avp import encode_u32, key_of
from eir.wire.diameter.message import (
    Answer,
    Reply,
    Request,
    encode_answer,
    encode_message,
    error_answer,
    result_avp,
    result_label,
)

ORIGIN = wire.avp(264, "eir.localdomain") + wire.avp(296, "localdomain")


def request(octets):
    return Request(octets, 100, "mme")


def test_header():
    octets = wire.message(324, b"", 0xD0, 16777252, (5, 6))
    assert encode_message(0xD0, 324, 16777252, (5, 6), b"") == octets


def test_a_real_request():
    found = request(wire.vector("ecr"))
    assert (found.origin_host, found.origin_realm, found.peer) == ("mme.localdomain", "localdomain", "mme")
    terminal = found.first.get(TERMINAL_INFORMATION)
    assert {avp.key: avp for avp in found.members(terminal)}[IMEI].data == b"35123456789012"
    assert MEID not in {avp.key for avp in found.members(terminal)}
    assert [avp.key for avp in found.members(terminal)] == [IMEI, SOFTWARE_VERSION]
    assert found.first.get(1).data == b"001010123456789"
    assert found.first.get(key_of(1, 10415)) is None
    assert len(found.every(264)) == 1


def test_the_failed_avp_holds_the_way_and_the_bytes():
    found = request(wire.ecr("bad"))
    terminal = found.first.get(TERMINAL_INFORMATION)
    imei = {avp.key: avp for avp in found.members(terminal)}[IMEI]
    assert found.failed(imei, terminal) == wire.avp(1401, wire.avp(1402, "bad", 10415), 10415)
    assert found.failed(imei) == found.raw(imei) == wire.avp(1402, "bad", 10415)


def test_groups_share_the_room_of_their_message():
    octets = wire.ecr(terminal=wire.avp(1401, wire.u32(1, 1) * 50, 10415))
    found = Request(octets, 20, "mme")
    assert found.fault is None
    avps, fault = found.walk(found.first.get(TERMINAL_INFORMATION))
    assert (len(found.avps) + len(avps), fault.reason) == (20, "too_many_avps")
    assert found.walk(found.first.get(TERMINAL_INFORMATION)) == (avps, fault)


def test_a_message_without_names_has_empty_ones():
    found = request(wire.message(324))
    assert (found.origin_host, found.origin_realm) == ("", "")


@pytest.mark.parametrize(
    ("avps", "codes", "experimental"),
    [
        (wire.u32(268, 2001), [2001], []),
        (wire.u32(268, 2001) + wire.u32(268, 5012), [2001, 5012], []),
        (wire.avp(297, wire.u32(266, 10415) + wire.u32(298, 5422)), [], [(10415, 5422)]),
        (wire.avp(297, b""), [], [(0, 0)]),
        (wire.avp(297, b"\xff"), [], [(0, 0)]),
        (wire.avp(268, b"\x07\xd1"), [0], []),
        (b"", [], []),
    ],
)
def test_results_of_an_answer(avps, codes, experimental):
    answer = Answer(wire.message(324, avps, 0x20), 100)
    assert answer.is_error
    assert (answer.result_codes, answer.experimental_results) == (codes, experimental)


def test_answer_to_the_byte():
    proxy = wire.avp(284, b"\xff\xfe\xfd")
    octets = wire.ecr(extra=proxy, ids=(7, 8), flags=0xD0)
    answer = encode_answer(request(octets), result_avp(2001), ORIGIN, avps=encode_u32(277, 1))
    session = wire.avp(263, wire.SESSION)
    wanted = session + wire.u32(268, 2001) + ORIGIN + wire.u32(277, 1) + proxy
    assert answer == wire.message(324, wanted, 0x40, ids=(7, 8))


@pytest.mark.parametrize(
    ("code", "octets", "error"),
    [
        (3002, wire.ecr(), True), (3002, wire.ecr(drop=("session",)), True), (4003, wire.ecr(), False),
        (4003, wire.ecr(drop=("session",)), False), (5005, wire.ecr(), False), (5005, wire.ecr(drop=("session",)), True),
    ],
)  # fmt: skip
def test_the_e_bit_goes_with_the_answer_message_grammar(code, octets, error):
    fault = DiameterError(code, "x", failed_avp=wire.avp(9))
    answer = wire.Message(error_answer(request(octets), fault, ORIGIN, encode_u32(277, 1), session=True))
    assert (answer.error, answer.result, answer.data(279)) == (error, code, wire.avp(9))
    assert answer.number(277) == (None if error else 1)


def test_results():
    assert result_avp(0, (10415, 5422)) == wire.avp(297, wire.u32(266, 10415) + wire.u32(298, 5422))
    assert (result_label(2001), result_label(0, (10415, 5422))) == ("2001", "10415:5422")
    assert Reply(2001) == Reply(result_code=2001, experimental=None, avps=b"")


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (DICTIONARY.example(263), wire.avp(263, b"\0")),
        (DICTIONARY.example(277), wire.u32(277, 0)),
        (DICTIONARY.example(264), wire.avp(264, b"\0")),
        (DICTIONARY.example(257), wire.avp(257, bytes(6))),
        (DICTIONARY.example(IMEI), wire.avp(1402, b"\0", 10415)),
        (DICTIONARY.example(260), wire.avp(260, b"")),  # a group: its members are for its application to choose
        (DICTIONARY.corrected(277, 0x40), wire.u32(277, 0)),
        (DICTIONARY.corrected(IMEI, 0xC0), wire.avp(1402, b"", 10415)),
        (DICTIONARY.corrected(EQUIPMENT_STATUS, 0x80), wire.u32(1445, 0, 10415, 0)),
        (DICTIONARY.corrected(99999, 0), wire.avp(99999, flags=0)),
        (DICTIONARY.corrected(5, 0xC0), b"\0\0\0\5\xc0\0\0\x0c\0\0\0\0"),
    ],
)
def test_examples(made, wanted):
    assert made == wanted
