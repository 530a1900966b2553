"""From a question to a verdict: what is counted and told of it, how policies follow one another, and that no protocol matters."""

from datetime import UTC, datetime, timedelta

import pytest
from simulated.lanes import Kept
from simulated.store_content import fill
from simulated.wire import HOST, TGPP, avp, ecr

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Override, PolicySettings, Rule, Status
from eir.device import device_key
from eir.errors import DiameterError
from eir.interfaces.s13.service import REPLIES, S13Service
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.diameter.message import Request

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
WHITE, BLACK, GREY, UNKNOWN = Status.WHITELISTED, Status.BLACKLISTED, Status.GREYLISTED, Status.UNKNOWN
STOLEN, TRIED, FREE, MEID = "00101001000001", "00101002000002", "00101003000003", "A0000012345678"
IMSI = "001010000000001"
RULES = (
    Rule(name="on-trial", list="tried", answer=BLACK, observe=True),
    Rule(list="stolen", answer=BLACK),
    Rule(name="roamers", imsi=("262",), answer=UNKNOWN),
    Rule(software_version=("77",), answer=GREY),
)
POLICY = PolicySettings(rules=RULES, no_identity=GREY, bad_identity=None)


class Checks:
    """A checker over two lists, and all that it told."""

    def __init__(self, settings=POLICY, now=NOW):
        self.notes, self.observed, self.reports = [], [], []
        index = Index({"stolen": "devices", "tried": "devices"})
        fill(index, "stolen", rows_of(map(device_key, (STOLEN, MEID))))
        fill(index, "tried", rows_of([device_key(TRIED)]))
        self.checker = Checker(
            settings, index, now=now, note_check=lambda *note: self.notes.append(note[:-1]),
            note_observed=lambda *rule: self.observed.append(rule), report=lambda event, **fields: self.reports.append((event, fields)),
        )  # fmt: skip

    def ask(self, imei=FREE, **question):
        return self.checker.check(Question(imei, **{"imsi": IMSI, "protocol": "toy", "peer": "mme"} | question))


SUSPECT = (
    Rule(identifier=("zero",), answer=GREY, observe=True),
    Rule(identifier=("zero", "malformed"), answer=BLACK),
)


@pytest.mark.parametrize(
    ("imei", "status", "observed"),
    [
        ("352099001761481", WHITE, 0),  # its check digit (TS 23.003 annex B)
        ("352099001761480", WHITE, 0),  # the spare digit that phones send
        ("352099001761482", WHITE, 0),  # another digit, which no rule tests
        ("000000000000000", BLACK, 1),
        ("3520990017614", BLACK, 0),
        ("nonsense", BLACK, 0),
        (None, GREY, 0),
    ],
)
def test_an_identifier_that_is_suspect_by_itself(imei, status, observed):
    checks = Checks(PolicySettings(rules=SUSPECT, no_identity=GREY))
    assert checks.ask(imei).status is status
    assert len(checks.observed) == observed


@pytest.fixture
def checks():
    return Checks()


class TestCheck:
    def test_a_verdict_names_its_reason(self, checks):
        found = [checks.ask(STOLEN), checks.ask(imsi="262011234567890"), checks.ask(f"{FREE}77"), checks.ask()]
        assert [(v.status, v.rule, v.name, v.list) for v in found] == [
            (BLACK, 2, None, "stolen"), (UNKNOWN, 3, "roamers", None), (GREY, 4, None, None), (WHITE, "default", None, None),
        ]  # fmt: skip

    def test_what_is_counted_and_noted(self, checks):
        for imei, imsi, times in ((STOLEN, IMSI, 3), (FREE, "262011234567890", 2), (FREE, "not an IMSI", 4)):
            for _ in range(times):
                checks.ask(imei, imsi=imsi, origin_host="mme1.example")
        checks.ask(STOLEN, imsi="x", peer="dra", protocol="other")
        assert checks.checker.checks() == {
            (BLACK, "stolen", "2", "toy"): 3, (UNKNOWN, "", "roamers", "toy"): 2, (WHITE, "", "default", "toy"): 4,
            (BLACK, "stolen", "2", "other"): 1,
        }  # fmt: skip
        assert checks.notes == [
            *[((BLACK, "stolen", "2", "mme"), "mme1.example", STOLEN, IMSI)] * 3,
            *[((UNKNOWN, "", "roamers", "mme"), "mme1.example", FREE, "262011234567890")] * 2,
            ((BLACK, "stolen", "2", "dra"), "", STOLEN, ""),
        ]  # fmt: skip
        assert checks.checker.identity_errors == {}

    def test_checks_of_a_probe_are_counted_apart_and_are_no_sightings(self, checks):
        kept = checks.checker.sightings = Kept()
        checks.checker.probes = frozenset({("toy", "probe"), ("fast", "probe")})
        for peer in ("probe", "mme"):
            checks.ask(TRIED, peer=peer)
            checks.ask(peer=peer, imei="x")
            checks.checker.count("fast", {checks.ask(STOLEN, peer=peer): 2}, peer)
        for more in ((), ("yes",)):
            counted = {labels[:4]: count for labels, count in checks.checker.checks().items() if labels[4:] == more}
            assert counted == {
                (BLACK, "stolen", "2", "toy"): 1,
                (BLACK, "stolen", "2", "fast"): 2,
                (WHITE, "", "default", "toy"): 1,
            }
        assert sorted((peer, observed) for _, _, peer, observed, *_ in kept.rows) == [
            ("mme", ""),
            ("mme", ""),
            ("mme", "1=blacklisted@tried"),
        ]
        checks.checker.probes = frozenset()
        checks.ask(STOLEN, peer="probe")
        assert checks.checker.checks()[BLACK, "stolen", "2", "toy"] == 2
        assert len(kept.rows) == 4

    def test_an_observed_rule_is_counted_noted_and_passed_over(self, checks):
        assert checks.ask(TRIED).rule == "default"
        assert checks.ask(TRIED, imsi="262011234567890").rule == 3
        assert checks.checker.observed == {("on-trial", BLACK): 2}
        assert checks.observed == [(1, BLACK, "on-trial")] * 2

    def test_a_request_that_names_no_device(self, checks):
        assert checks.ask(None).status is GREY
        assert checks.ask("x") is NoDevice.MALFORMED
        assert checks.ask(None, meid="x", peer="dra") is NoDevice.MALFORMED
        assert checks.checker.identity_errors == {("none", "mme"): 1, ("bad", "mme"): 1, ("bad", "dra"): 1}
        assert checks.checker.checks() == {
            (GREY, "", "no_identity", "toy"): 1
        }  # an error is not a check that was answered
        assert checks.notes == [((GREY, "", "no_identity", "mme"), "", "", IMSI)]

    def test_a_fast_path_counts_by_the_batch(self, checks):
        tally = {checks.ask(): 5, checks.ask(STOLEN): 2}
        checks.checker.count("fast", tally)
        checks.checker.count("fast", tally)
        counted = {labels: count for labels, count in checks.checker.checks().items() if labels[-1] == "fast"}
        assert counted == {(WHITE, "", "default", "fast"): 10, (BLACK, "stolen", "2", "fast"): 4}


class TestPolicies:
    def test_another_policy_answers_at_once_and_what_was_counted_stays(self, checks):
        first, verdict = checks.checker.policy, checks.ask(STOLEN)
        checks.checker.apply(PolicySettings(rules=(Rule(name="new", list="stolen", answer=GREY), *RULES)), NOW)
        assert checks.checker.policy is not first
        assert checks.ask(STOLEN).name == "new"
        checks.checker.count("toy", {verdict: 1})  # of a batch that began before
        checks.checker.apply(POLICY, NOW)
        checks.ask(STOLEN)
        assert checks.checker.checks() == {(BLACK, "stolen", "2", "toy"): 3, (GREY, "stolen", "new", "toy"): 1}
        assert checks.reports == []

    def test_one_that_cannot_be_compiled_changes_nothing(self, checks):
        policy = checks.checker.policy
        with pytest.raises(KeyError):
            checks.checker.apply(PolicySettings(rules=(Rule(list="nowhere", answer=GREY),)), NOW)
        assert checks.checker.policy is policy
        assert checks.ask(STOLEN).status is BLACK

    def test_an_override_ends_by_itself(self):
        until = NOW + timedelta(seconds=10)
        checks = Checks(PolicySettings(rules=RULES, bad_identity=None, override=Override(answer=WHITE, until=until)))
        assert checks.reports == [
            ("override", {"level": "warning", "detail": "every check is answered alike", "until": until.isoformat()})
        ]
        assert [checks.ask(STOLEN).rule, checks.ask("x").rule] == ["override"] * 2
        assert not checks.checker.tick(until - timedelta(seconds=1))
        assert checks.ask(STOLEN).status is WHITE
        assert checks.checker.tick(until)
        assert checks.reports[1:] == [("override_ended", {"level": "warning"})]
        assert (checks.ask(STOLEN).status, checks.checker.policy.overridden) == (BLACK, False)
        assert not checks.checker.tick(until + timedelta(days=1))
        assert checks.checker.checks() == {(WHITE, "", "override", "toy"): 3, (BLACK, "stolen", "2", "toy"): 1}
        assert checks.checker.identity_errors == {("bad", "mme"): 1}

    def test_one_without_an_end_stays_until_it_is_taken_out(self):
        checks = Checks(PolicySettings(rules=RULES, override=Override(answer=GREY)))
        assert not checks.checker.tick(NOW + timedelta(days=1000))
        assert checks.ask(STOLEN).status is GREY
        for _ in range(2):
            checks.checker.apply(POLICY, NOW)
            assert checks.ask(STOLEN).status is BLACK
        assert [event for event, _ in checks.reports] == ["override", "override_ended"]


class Toy:
    """Another protocol, of one line: `IMEI;SV;IMSI`. It shares nothing with S13."""

    def __init__(self, checker):
        self._checker = checker

    def answer(self, line):
        imei, version, imsi = line.split(";")
        verdict = self._checker.check(Question(
            imei=imei.removeprefix("imei-") if imei else None, software_version=version, imsi=imsi, origin_host=HOST, protocol="toy", peer="amf",
        ))  # fmt: skip
        return f"error {verdict}" if isinstance(verdict, NoDevice) else f"{verdict.status}"


ASKED = [
    # IMEI, software version, IMSI
    (STOLEN, "01", IMSI), (f"{STOLEN}7", "", ""), (f"{FREE}77", "", IMSI), (f"{FREE}77", "01", IMSI), (FREE, "77", "262011234567890"),
    (FREE, "77", "nonsense"), (TRIED, "01", IMSI), (FREE, "", ""), (None, "77", IMSI), ("", "", ""), ("x", "77", IMSI), (f"{STOLEN}777", "", ""),
]  # fmt: skip


@pytest.mark.parametrize("settings", [POLICY, PolicySettings(rules=RULES, no_identity=None, bad_identity=BLACK)])
def test_another_translator_gets_the_same_verdicts_and_counts_of_its_own(settings):
    for_s13, for_toy = Checks(settings), Checks(settings)
    s13, toy = S13Service(for_s13.checker), Toy(for_toy.checker)
    for imei, version, imsi in ASKED:
        inside = (avp(1402, imei, TGPP) if imei is not None else b"") + (avp(1403, version, TGPP) if version else b"")
        request = Request(ecr(terminal=avp(1401, inside, TGPP), user=avp(1, imsi)), 1000, "amf")
        try:
            reply = s13.answer(request)
            expected = next(str(status) for status, known in REPLIES.items() if known is reply)
        except DiameterError as e:
            expected = f"error {e.reason}"
        line = ";".join(("" if imei is None else f"imei-{imei}", version, imsi))
        assert toy.answer(line) == expected, line
    assert {(*labels[:3], "s13") for labels in for_toy.checker.checks()} == set(for_s13.checker.checks())
    assert {
        (*labels[:3], "toy"): count for labels, count in for_s13.checker.checks().items()
    } == for_toy.checker.checks()
    assert for_toy.checker.identity_errors == for_s13.checker.identity_errors
    assert for_toy.checker.observed == for_s13.checker.observed
    assert for_toy.notes == for_s13.notes
