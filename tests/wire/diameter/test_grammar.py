"""The grammars against their specifications, and the checker over generated requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import wire

from eir.errors import DiameterError
from eir.interfaces.s13.application import ECR, S13
from eir.interfaces.s13.dictionary import DICTIONARY
from eir.wire.diameter.application import CER, DPR, DWR
from eir.wire.diameter.dictionary import BASE_DICTIONARY, read_avps
from eir.wire.diameter.grammar import check, read_grammar
from eir.wire.diameter.message import Request


def names(keys):
    return [DICTIONARY.avps[key].name for key in keys]


@pytest.mark.parametrize(
    ("grammar", "required"),
    [
        (CER, ["Origin-Host", "Origin-Realm", "Host-IP-Address", "Vendor-Id", "Product-Name"]),  # RFC 6733 5.3.1
        (DWR, ["Origin-Host", "Origin-Realm"]),  # 5.5.1
        (DPR, ["Origin-Host", "Origin-Realm"]),  # 5.4.1, less the cause
        (
            ECR,
            ["Session-Id", "Auth-Session-State", "Origin-Host", "Origin-Realm", "Destination-Realm"],
        ),  # TS 29.272 7.2.19
    ],
)
def test_what_is_required(grammar, required):
    assert names(grammar.required) == required


def test_what_may_be_repeated():
    assert names(key for key, rule in CER.rules.items() if not rule.single) == [
        "Host-IP-Address", "Supported-Vendor-Id", "Auth-Application-Id", "Inband-Security-Id", "Acct-Application-Id",
        "Vendor-Specific-Application-Id",
    ]  # fmt: skip
    assert names(key for key, rule in ECR.rules.items() if not rule.single) == ["Proxy-Info", "Route-Record"]


def test_the_notation():
    grammar = read_grammar(
        "< Session-Id > ; first\n 1* { Origin-Host }\n2*4 [ Class ]\n*[ User-Name ]\n1*1 { Origin-Realm }\n* [ AVP ]\n\n; nothing",
        BASE_DICTIONARY,
    )
    assert names(grammar.required) == ["Session-Id", "Origin-Host", "Origin-Realm"]
    assert [rule.single for rule in grammar.rules.values()] == [True, False, False, False, True]


def test_the_dictionary():
    keys = DICTIONARY.keys
    assert keys["IMEI"] == 10415 << 32 | 1402
    assert keys["Terminal-Information"] in DICTIONARY.groups
    assert len(keys) == len(DICTIONARY.avps), "a name stands twice"
    assert DICTIONARY.avps[keys["Auth-Session-State"]].values == {0, 1}
    assert not {
        key for key, definition in DICTIONARY.avps.items() if definition.values and definition.type.only_bytes != 4
    }
    assert S13.commands[324].session


def test_an_avp_of_a_later_release_is_known():
    assert DICTIONARY.name(10415 << 32 | 1729) == "3GPP-1729"
    assert DICTIONARY.name(10415 << 32 | 1730) == "AVP 1730 of vendor 10415"


def test_rows_of_a_dictionary():
    read = read_avps("7-8,10 Some u32\n8 Own enum optional 0,2-3\n\n", 5)
    assert [(key & 0xFFFFFFFF, *row[:1], *row[2:]) for key, row in read.items()] == [
        (7, "Some-7", 0x40, None), (8, "Own", 0, {0, 2, 3}), (10, "Some-10", 0x40, None),
    ]  # fmt: skip
    assert {key >> 32 for key in read} == {5}


def found(octets, **lenient):
    request = Request(octets, 1000, "mme")
    try:
        check(request, ECR, DICTIONARY, **lenient)
    except DiameterError as e:
        return e.result_code, e.failed_avp
    return None


def test_a_real_mme_is_right():
    for name in ("ecr", "ecr-noimei", "ecr-tbit"):
        assert found(wire.vector(name)) is None
    for name, grammar in (("cer", CER), ("cer-relay", CER), ("dwr", DWR), ("dpr", DPR)):
        check(Request(wire.vector(name), 1000, "mme"), grammar, DICTIONARY)


def test_only_the_first_fault_counts():
    unknown, repeated = wire.avp(9999, b"x"), wire.avp(1, b"0")
    assert found(wire.ecr(drop=("state",), extra=unknown + repeated)) == (5001, unknown)
    assert found(wire.ecr(drop=("state",), extra=repeated + unknown)) == (5009, repeated)
    assert found(wire.ecr(drop=("state",), extra=wire.avp(2, b"", length=1) + unknown)) == (5014, wire.avp(2))
    assert found(wire.ecr(drop=("state", "host"))) == (5005, wire.u32(277, 0))


def test_depth():
    def group(levels):
        octets = b""
        for _ in range(levels):
            octets = wire.avp(628, octets, wire.TGPP)
        return wire.ecr(extra=octets)

    assert found(group(8)) is None
    assert found(group(9)) == (5014, wire.avp(628, b"", wire.TGPP))
    assert found(group(3), depth_max=2) == (5014, wire.avp(628, b"", wire.TGPP))


def test_too_many_avps():
    octets = wire.ecr(terminal=wire.avp(1401, wire.avp(7, flags=0) * 200, wire.TGPP))
    for avps_max, result in ((100, 5012), (300, None)):
        request = Request(octets, avps_max, "mme")
        if result is None:
            check(request, ECR, DICTIONARY)
            continue
        with pytest.raises(DiameterError) as caught:
            check(request, ECR, DICTIONARY)
        assert caught.value.result_code == result


def test_both_application_ids_without_their_group_being_readable():
    broken = wire.avp(260, wire.u32(258, wire.APP) + wire.u32(259, wire.APP) + b"\0\0\0\1")
    assert found(wire.ecr(vsai=broken)) == (5009, wire.u32(258, wire.APP) + wire.u32(259, wire.APP))
    assert found(wire.ecr(vsai=wire.avp(260, b"\0\0\0\1"))) == (5014, wire.avp(260, wire.avp(1, flags=0)))


@st.composite
def mutated(draw):
    """A good ECR with some of its bytes changed, or a piece cut out or repeated."""
    octets = bytearray(wire.vector(draw(st.sampled_from(["ecr", "ecr-noimei", "ecr-tbit"]))))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(20, len(octets) - 1))
        match draw(st.sampled_from(["set", "cut", "repeat"])):
            case "set":
                octets[position] = draw(st.integers(0, 255))
            case "cut":
                if len(octets) > 64:
                    del octets[position : position + 4 * draw(st.integers(1, 4))]
            case "repeat":
                octets[position:position] = octets[position : position + 4 * draw(st.integers(1, 4))]
    return bytes(octets[: len(octets) & ~3])


@given(mutated())
def test_whatever_is_wrong_has_one_of_the_known_codes_and_a_well_formed_failed_avp(octets):
    outcome = found(octets)
    if outcome is not None:
        code, failed = outcome
        assert code in {5001, 5004, 5005, 5009, 5014}
        assert wire.walk(failed)
