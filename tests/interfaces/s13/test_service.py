"""ME-Identity-Check by itself: from the AVPs of an ECR to its answer, over the checker that other protocols ask too."""

from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import fill
from simulated.wire import HOST, TGPP, Message, avp, ecr, message, terminal, u32, walk

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import KEY_DIGITS, device_key, key_text, meid_key, odd_key
from eir.errors import DiameterError, IdentifierError
from eir.interfaces.s13.service import PROTOCOL, REPLIES, S13Service, meid_text, user_name_imsi
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.diameter.message import Request
from eir.wire.peers.settings import PeerSettings

LISTED = "35209900176148"
MEID = "A0000012345678"
DECIMAL_MEID = "99000012345678"
"""One of decimal digits only, which shares its key with an IMEI of these digits."""
RULES = (
    Rule(answer=Status.BLACKLISTED, list="stolen"),
    Rule(answer=Status.GREYLISTED, software_version=("34",)),
    Rule(answer=Status.UNKNOWN, imsi=("26201",)),
    Rule(answer=Status.GREYLISTED, origin_host=("grey.example",)),
    Rule(answer=Status.GREYLISTED, origin_realm=("grey.realm",)),
)


class Checks:
    """A service over one list; `ask` gives what it would answer, and what it noted."""

    def __init__(self, **policy):
        index = Index({"stolen": "devices"})
        fill(index, "stolen", rows_of(map(device_key, (LISTED, MEID, DECIMAL_MEID))))
        settings = PolicySettings(**{"rules": RULES, "no_identity": None, "bad_identity": None} | policy)
        self.notes = []
        self.checker = Checker(
            settings, index, now=datetime.now(UTC), note_check=lambda *note: self.notes.append(note[:-1])
        )
        self.answer = S13Service(self.checker).answer

    def ask(self, octets):
        return self.answer(Request(octets, 1000, "mme"))

    def status(self, octets):
        reply = self.ask(octets)
        return next(status for status, known in REPLIES.items() if known is reply)


@pytest.fixture
def checks():
    return Checks()


def meid(octets):
    """A Terminal-Information with an MEID only."""
    return avp(1401, avp(1471, octets, TGPP), TGPP)


def asked(imei=None, *, version=None, **put):
    return ecr(imei, terminal=terminal(imei, version), **put)


class TestIdentifiers:
    @pytest.mark.parametrize("imei", [LISTED, f"{LISTED}1", f"{LISTED}0", f"{LISTED}9", f"{LISTED}00", f"{LISTED}99"])
    def test_an_imei_of_14_15_or_16_digits_is_the_same_device(self, checks, imei):
        assert checks.status(asked(imei)) is Status.BLACKLISTED
        assert [device for _, _, device, _ in checks.notes] == [LISTED]

    def test_leading_zeros_count(self, checks):
        assert checks.status(asked("00209900176148")) is Status.WHITELISTED
        assert checks.status(asked("35209900176140")) is Status.WHITELISTED

    # The last form is that of 3GPP2 A.S0022: digit 1 and the type 1 in the first octet, the others swapped in pairs, a filler.
    @pytest.mark.parametrize("octets", [MEID, MEID.lower(), bytes.fromhex(MEID), bytes.fromhex("A1000010325476F8")])
    def test_a_meid_as_text_or_as_octets(self, checks, octets):
        assert checks.status(ecr(terminal=meid(octets))) is Status.BLACKLISTED
        assert [device for _, _, device, _ in checks.notes] == [MEID]

    def test_a_meid_of_decimal_digits_is_the_device_with_that_imei(self, checks):
        assert checks.status(ecr(terminal=meid(DECIMAL_MEID))) is Status.BLACKLISTED
        assert checks.status(asked(f"{DECIMAL_MEID}0")) is Status.BLACKLISTED

    def test_a_good_imei_comes_before_a_meid_and_a_bad_one_after(self, checks):
        both = avp(1401, avp(1402, "35123456789012", TGPP) + avp(1471, MEID, TGPP), TGPP)
        assert checks.status(ecr(terminal=both)) is Status.WHITELISTED
        both = avp(1401, avp(1402, "nonsense", TGPP) + avp(1471, MEID, TGPP), TGPP)
        assert checks.status(ecr(terminal=both)) is Status.BLACKLISTED
        both = avp(1401, avp(1402, LISTED, TGPP) + avp(1471, b"x", TGPP), TGPP)
        assert checks.status(ecr(terminal=both)) is Status.BLACKLISTED

    def test_flags_of_avps_make_no_difference(self, checks):
        inside = avp(1402, LISTED, TGPP, flags=0) + avp(1403, "01", TGPP, flags=0) + avp(4711, b"x", 9, flags=0)
        assert checks.status(ecr(terminal=avp(1401, inside, TGPP, flags=0))) is Status.BLACKLISTED


NONE = [b"", "3520990017614", "35209900176148111", "3520990017614A", " 35209900176148", "35209900176148 ", b"\xff" * 14,
        "3520990017614\N{FULLWIDTH DIGIT EIGHT}", "+3520990017614", "3520990017_148", "00000000000000\0"]  # fmt: skip


class TestWithoutAUsableIdentifier:
    @pytest.mark.parametrize("imei", NONE)
    def test_one_that_is_none_is_5004_with_the_avp_inside_its_group(self, checks, imei):
        info = avp(1401, avp(1402, imei, TGPP) + avp(1403, "34", TGPP), TGPP)
        with pytest.raises(DiameterError) as raised:
            checks.ask(ecr(terminal=info))
        assert (raised.value.result_code, raised.value.reason) == (5004, "bad_identity")
        assert raised.value.failed_avp == avp(1401, avp(1402, imei, TGPP), TGPP)
        assert checks.checker.identity_errors == {("bad", "mme"): 1}
        assert checks.checker.checks() == {}

    @pytest.mark.parametrize("octets", [b"", b"x", bytes(6), bytes(9), "G0000012345678", b"\xff" * 8])
    def test_a_meid_that_is_none(self, checks, octets):
        with pytest.raises(DiameterError) as raised:
            checks.ask(ecr(terminal=meid(octets)))
        assert (raised.value.result_code, raised.value.failed_avp) == (5004, meid(octets))

    @pytest.mark.parametrize("octets", [ecr(drop=("terminal",)), asked(None), asked(None, version="34")])
    def test_none_at_all_is_5005_with_an_example(self, checks, octets):
        with pytest.raises(DiameterError) as raised:
            checks.ask(octets)
        assert (raised.value.result_code, raised.value.reason) == (5005, "no_identity")
        assert raised.value.failed_avp == avp(1401, avp(1402, "0" * 14, TGPP), TGPP)
        assert checks.checker.identity_errors == {("none", "mme"): 1}

    @pytest.mark.parametrize("status", list(Status))
    def test_or_the_status_that_the_policy_gives(self, status):
        checks = Checks(no_identity=status, bad_identity=status)
        assert checks.status(ecr(drop=("terminal",))) is status
        assert checks.status(asked("nonsense")) is status
        assert checks.checker.identity_errors == {("none", "mme"): 1, ("bad", "mme"): 1}
        assert checks.checker.checks() == {(status, "", rule, PROTOCOL): 1 for rule in ("no_identity", "bad_identity")}
        kinds = (
            []
            if status is Status.WHITELISTED
            else [(status, "", rule, "mme") for rule in ("no_identity", "bad_identity")]
        )
        devices = "", key_text(odd_key("nonsense"))
        assert checks.notes == [
            (kind, HOST, device, "001010123456789") for kind, device in zip(kinds, devices, strict=False)
        ]


class TestConditions:
    @pytest.mark.parametrize(
        ("imei", "version", "status"),
        [
            ("35123456789012", "34", Status.GREYLISTED), ("35123456789012", "35", Status.WHITELISTED),
            ("35123456789012", None, Status.WHITELISTED), ("3512345678901234", None, Status.GREYLISTED),
            ("3512345678901234", "35", Status.WHITELISTED),  # the AVP counts, where there is one
            ("3512345678901235", "34", Status.GREYLISTED), ("351234567890134", None, Status.WHITELISTED),
            ("35123456789012", "3", Status.WHITELISTED), ("35123456789012", "345", Status.WHITELISTED),
            ("35123456789012", "3\N{FULLWIDTH DIGIT FOUR}", Status.WHITELISTED), ("35123456789012", "xx", Status.WHITELISTED),
        ],
    )  # fmt: skip
    def test_the_software_version(self, checks, imei, version, status):
        assert checks.status(asked(imei, version=version)) is status

    @pytest.mark.parametrize(
        ("user_name", "status"),
        [
            ("262011234567890", Status.UNKNOWN), ("262021234567890", Status.WHITELISTED), ("26201", Status.UNKNOWN), ("", Status.WHITELISTED),
            ("262011234567890@example.org", Status.WHITELISTED), (b"\xff262011234567", Status.WHITELISTED),
            ("0262011234567890", Status.UNKNOWN), ("6262011234567890", Status.UNKNOWN),  # TS 23.003 19.3.2: EAP-AKA and EAP-AKA'
            ("0262011234567890@nai.epc.mnc001.mcc262.3gppnetwork.org", Status.UNKNOWN),
            ("6262011234567890@NAI.EPC.mnc001.MCC262.3gppnetwork.org", Status.UNKNOWN),
            ("062620112345678@nai.epc.mnc001.mcc262.3gppnetwork.org", Status.WHITELISTED),  # 626 is not the MCC of the realm
            ("026201123456789@nai.epc.mnc001.mcc262.3gppnetwork.org", Status.UNKNOWN),  # an IMSI of 14 digits
            ("026201123456789", Status.WHITELISTED), ("1262011234567890", Status.WHITELISTED), ("00262011234567890", Status.WHITELISTED),
            ("262011234567890@ims.mnc001.mcc262.3gppnetwork.org", Status.UNKNOWN),  # TS 23.003 13.3
            ("262011234567890@ims.mnc001.mcc262.3gppnetwork.org.example", Status.WHITELISTED), ("262011234567890@", Status.WHITELISTED),
            ("26201@ims.mnc001.mcc262.3gppnetwork.org", Status.WHITELISTED), ("x262011234567890@ims.mnc001.mcc262.3gppnetwork.org", Status.WHITELISTED),
            ("262011234567890\n", Status.WHITELISTED), ("262011234567890@ims.mnc001.mcc262.3gppnetwork.org\n", Status.WHITELISTED),
        ],
    )  # fmt: skip
    def test_the_imsi(self, checks, user_name, status):
        assert checks.status(asked("35123456789012", user=avp(1, user_name))) is status

    @pytest.mark.parametrize("imsi", ["001010000000001", "00101000000001", "601010000000001"])
    @pytest.mark.parametrize(
        "form",
        ["{}", "0{}", "6{}", "{}@ims.{}", "0{}@nai.epc.{}", "6{}@nai.epc.{}", "{}@nai.epc.{}"],
    )
    def test_an_imsi_that_begins_as_a_root_nai_does(self, imsi, form):
        """The first digit is removed only if 16 digits or the realm's MCC show a root NAI: test IMSIs begin with 001."""
        user_name = form.format(imsi, f"mnc01.mcc{imsi[:3]}.3gppnetwork.org")
        shown = imsi if len(imsi) == 15 or "@" in user_name or form == "{}" else user_name
        assert user_name_imsi(user_name.encode()) == shown

    def test_no_user_name_is_no_error(self, checks):
        assert (
            checks.status(ecr("35123456789012", terminal=terminal("35123456789012", None), drop=("user",)))
            is Status.WHITELISTED
        )
        assert checks.status(ecr(LISTED, drop=("user",))) is Status.BLACKLISTED

    def test_the_origin(self, checks):
        assert checks.status(asked("35123456789012", host=avp(264, "GREY.example"))) is Status.GREYLISTED
        assert checks.status(asked("35123456789012", realm=avp(296, "Grey.Realm"))) is Status.GREYLISTED

    def test_what_is_counted_and_noted(self, checks):
        for imei, times in ((LISTED, 3), ("35123456789012", 2)):
            for _ in range(times):
                checks.ask(asked(imei))
        assert checks.checker.checks() == {
            (Status.BLACKLISTED, "stolen", "1", "s13"): 3, (Status.WHITELISTED, "", "default", "s13"): 2,
        }  # fmt: skip
        assert checks.notes == [((Status.BLACKLISTED, "stolen", "1", "mme"), HOST, LISTED, "001010123456789")] * 3


class TestMeidText:
    @pytest.mark.parametrize(
        "octets",
        [
            b"A0000000000001",  # 14 characters
            bytes.fromhex("A0000000000001"),  # 7 octets of two digits
            bytes.fromhex("A1" + "00" * 6 + "F1"),  # A.S0022: digit 1 and type 001, ..., filler and digit 14
        ],
    )
    def test_the_three_forms(self, octets):
        assert meid_text(octets).upper() == "A0000000000001"

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\xa0" * 6,
            b"\xa0" * 9,
            b"\xff" * 14,
            bytes.fromhex("A200000000000001"),
            bytes.fromhex("A100000000000001"),
            b"\xa0" * 100,
        ],
    )
    def test_what_is_not_a_meid_becomes_a_text_that_is_not_one(self, octets):
        with pytest.raises(IdentifierError):
            meid_key(meid_text(octets))

    @given(st.text("0123456789ABCDEF", min_size=14, max_size=14))
    def test_three_forms_are_one_device(self, text):
        # A.S0022: octet 1 holds digit 1 and type 1, each further octet two digits, low half first, the last one ends with F
        nibbles = ["1", text[0], *text[1:], "F"]
        mobile_identity = bytes(int(high + low, 16) for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
        assert {meid_text(octets).upper() for octets in (text.encode(), bytes.fromhex(text), mobile_identity)} == {text}

    @given(st.binary(max_size=20))
    def test_only_octets_of_these_lengths_have_the_length_of_a_meid(self, octets):
        assert len(meid_text(octets)) != KEY_DIGITS or len(octets) in {7, 8, 14}


class TestReplies:
    @pytest.mark.parametrize(
        ("status", "value"), [(Status.WHITELISTED, 0), (Status.BLACKLISTED, 1), (Status.GREYLISTED, 2)]
    )
    def test_a_status(self, status, value):
        reply = REPLIES[status]
        assert (reply.result_code, reply.experimental) == (2001, None)
        assert Message(message(324, reply.avps, flags=0x40)).avps == walk(u32(277, 1) + u32(1445, value, TGPP))

    def test_unknown_is_an_experimental_result_without_status(self):
        reply = REPLIES[Status.UNKNOWN]
        assert (reply.result_code, reply.experimental, reply.avps) == (0, (TGPP, 5422), u32(277, 1))


def test_a_label_not_a_name_is_counted():
    """Origin-Host comes from the wire; labels come from the configuration."""
    checks = Checks(no_identity=Status.WHITELISTED)
    checks.ask(ecr(drop=("terminal",), host=avp(264, "made.up.example")))
    assert HOST not in str(checks.checker.identity_errors)
    assert checks.checker.identity_errors == {("none", "mme"): 1}


def test_what_a_peer_is_answered_instead_follows_the_settings(checks):
    service = S13Service(
        checks.checker, (PeerSettings(label="mme", answers=(("blacklisted", "unknown"),)), PeerSettings(label="other"))
    )
    ask = partial(service.answer, Request(asked(LISTED), 1000, "mme"))
    assert ask() is REPLIES[Status.UNKNOWN]
    assert service.answer(Request(asked(LISTED), 1000, "other")) is REPLIES[Status.BLACKLISTED]
    service.apply((PeerSettings(label="mme"),))
    assert ask() is REPLIES[Status.BLACKLISTED]
