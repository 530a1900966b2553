"""The policy over a real index: every condition, their order, observation, overrides, and lists that never arrived."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from eir.device import SNR_KEYS, device_key
from eir.lists.index import Index
from eir.lists.pages import Page, encode_keys
from eir.lists.store import ListState
from eir.policy import Override, Policy, PolicySettings, Rule, Status, compile_policy, explain

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
WHITE, BLACK, GREY, UNKNOWN = Status.WHITELISTED, Status.BLACKLISTED, Status.GREYLISTED, Status.UNKNOWN
STOLEN, TRACKED, FREE = "00101001000001", "00101002000002", "00101003000003"
ANYTHING = {"key": device_key(FREE), "imsi": "001010000000001", "software_version": "01", "host": "mme.epc", "realm": "epc"}


def index_of(**lists):
    """An index of device lists: name → identifiers, or None for a list that was never loaded."""
    index = Index(dict.fromkeys(lists, "devices"))
    for name, identifiers in lists.items():
        if identifiers is not None:
            load(index, name, identifiers)
    return index


def load(index, name, identifiers, serial=1):
    pages = {}
    for key in map(device_key, identifiers):
        pages.setdefault(key // SNR_KEYS, []).append(key % SNR_KEYS)
    state = ListState(kind="devices", serial=serial, generation=serial, highest_serial=serial, release_digest="")
    builder = index.builder(name, state)
    for number, keys in pages.items():
        builder.add(Page(number, encode_keys(BitMap(keys))))
    index.switch(name, builder)


def compiled(*rules, index=None, observed=None, now=NOW, **settings) -> Policy:
    def unexpected(*seen):
        raise AssertionError(f"observed {seen}")

    settings = PolicySettings(rules=rules, **settings)
    return compile_policy(settings, index or index_of(), observed=observed or unexpected, now=now)


def ask(policy, device=None, **request):
    asked = ANYTHING | ({"key": device_key(device)} if device else {}) | request
    return policy.decide(asked["key"], asked["imsi"], asked["software_version"], asked["host"], asked["realm"])


def test_without_rules_everything_gets_the_default():
    verdict = ask(compiled())
    assert (verdict.status, verdict.rule, verdict.list) == (WHITE, "default", None)
    assert ask(compiled(default=UNKNOWN)).status is UNKNOWN


def test_first_rule_that_holds_answers():
    index = index_of(stolen=[STOLEN], tracked=[STOLEN, TRACKED])
    policy = compiled(Rule(list="stolen", answer=BLACK), Rule(list="tracked", answer=GREY), index=index)
    found = {device: ask(policy, device) for device in (STOLEN, TRACKED, FREE)}
    assert [(v.status, v.rule, v.list) for v in found.values()] == [
        (BLACK, 1, "stolen"),
        (GREY, 2, "tracked"),
        (WHITE, "default", None),
    ]
    backwards = compiled(Rule(list="tracked", answer=GREY), Rule(list="stolen", answer=BLACK), index=index)
    assert ask(backwards, STOLEN).status is GREY


CONDITIONS = [
    # condition, what holds, what does not
    ({"tac": ("00101003",)}, {}, {"key": device_key("00101004000003")}),
    ({"tac": ("00101001", "00101003")}, {}, {"key": device_key(TRACKED)}),
    ({"tac": ("0",)}, {}, {"key": device_key("10101003000003")}),
    ({"tac": ("0010",)}, {}, {"key": device_key("00110003000003")}),
    ({"tac": ("00101003", "35", "0020")}, {"key": device_key("35209900176148")}, {"key": device_key("53209900176148")}),
    ({"tac": ("1", "00000000")}, {"key": 0}, {"key": device_key("A0000000000001")}),  # MEIDs with letters have no TAC
    ({"tac": ("1", "10", "100")}, {"key": device_key("10000000000001")}, {"key": device_key("00000000000A00")}),
    ({"software_version": ("01",)}, {}, {"software_version": "1"}),
    ({"software_version": ("01", "77")}, {"software_version": "77"}, {"software_version": ""}),
    ({"imsi": ("00101",)}, {}, {"imsi": "001020000000001"}),
    ({"imsi": ("26201", "0010100000000011")}, {"imsi": "262010000000001"}, {"imsi": ""}),  # no User-Name
    ({"origin_host": ("MME.epc",)}, {"host": "mme.EPC"}, {"host": "mme2.epc"}),
    ({"origin_realm": ("epc", "EPC2")}, {"realm": "epc2"}, {"realm": "sub.epc"}),
    ({"list": "some"}, {}, {"key": device_key(STOLEN)}),
    ({"not_list": "some"}, {"key": device_key(STOLEN)}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "holds", "fails"), CONDITIONS)
def test_condition(condition, holds, fails):
    policy = compiled(Rule(answer=BLACK, **condition), index=index_of(some=[FREE]))
    assert ask(policy, **holds).rule == 1
    assert ask(policy, **fails).rule == "default"


def test_all_conditions_of_a_rule_have_to_hold():
    rule = Rule(
        answer=BLACK, list="some", not_list="other", tac=("0010",), software_version=("01",), imsi=("001",),
        origin_host=("mme.epc",), origin_realm=("epc",),
    )  # fmt: skip
    policy = compiled(rule, index=index_of(some=[FREE], other=[STOLEN]))
    assert ask(policy).rule == 1
    for wrong in (
        {"key": device_key(STOLEN)}, {"key": device_key("00201003000003")}, {"software_version": "02"}, {"imsi": "26201"},
        {"host": "x"}, {"realm": "x"},
    ):  # fmt: skip
        assert ask(policy, **wrong).rule == "default", wrong


@pytest.mark.parametrize("condition", [{"list": "absent"}, {"not_list": "absent"}, {"not_list": "absent", "list": "some"}])
def test_rule_over_a_list_that_never_arrived_does_not_hold(condition):
    # conformance 52: an allow-list that was never loaded must not block everyone
    index = index_of(absent=None, some=[FREE])
    policy = compiled(Rule(answer=BLACK, **condition), index=index)
    assert ask(policy).rule == "default"
    load(index, "absent", [FREE] if "list" in condition and "not_list" not in condition else [])
    assert ask(policy).rule == 1  # the same compiled policy, once the list has arrived


def test_loaded_and_empty_allow_list_holds_for_everyone():
    assert ask(compiled(Rule(not_list="allowed", answer=BLACK), index=index_of(allowed=[]))).status is BLACK


def test_switch_of_a_list_is_seen_by_the_compiled_policy():
    index = index_of(stolen=[STOLEN])
    policy = compiled(Rule(list="stolen", answer=BLACK), index=index)
    load(index, "stolen", [FREE], serial=2)
    assert (ask(policy, STOLEN).status, ask(policy, FREE).status) == (WHITE, BLACK)


def test_observed_rule_is_reported_and_passed_over():
    seen = []
    rules = [
        Rule(list="trial", answer=BLACK, observe=True),
        Rule(tac=("00101001",), answer=GREY),
        Rule(tac=("0010",), answer=UNKNOWN, observe=True),
    ]
    policy = compiled(*rules, index=index_of(trial=[STOLEN, FREE]), observed=lambda *what: seen.append(what))
    assert ask(policy, STOLEN).rule == 2
    assert seen == [(1, BLACK)]  # rule 3 comes after the verdict
    seen.clear()
    assert ask(policy, FREE).rule == "default"
    assert seen == [(1, BLACK), (3, UNKNOWN)]
    seen.clear()
    assert ask(policy, TRACKED).rule == "default"
    assert seen == [(3, UNKNOWN)]


@pytest.mark.parametrize(
    ("until", "in_force"),
    [(None, True), (NOW + timedelta(seconds=1), True), (NOW, False), (NOW - timedelta(days=1), False)],
)
def test_override(until, in_force):
    policy = compiled(
        Rule(list="stolen", answer=BLACK),
        index=index_of(stolen=[STOLEN]),
        override=Override(answer=WHITE, until=until),
        no_identity=None,
        bad_identity=BLACK,
    )
    assert policy.overridden is in_force
    assert ask(policy, STOLEN).rule == ("override" if in_force else 1)
    if in_force:
        assert policy.override_until == until
        assert policy.verdicts == (ask(policy, STOLEN),)
        assert policy.no_identity is policy.bad_identity is ask(policy, FREE)  # everything alike, errors included
    else:
        assert policy.override_until is None
        assert policy.no_identity is None


def test_override_in_another_zone():
    until = datetime.fromisoformat("2026-11-25T13:30:00+02:00")  # 11:30 UTC
    assert not compiled(override=Override(answer=WHITE, until=until)).overridden


@pytest.mark.parametrize("name", ["no_identity", "bad_identity"])
def test_requests_without_a_usable_identifier(name):
    verdict = getattr(compiled(**{name: GREY}), name)
    assert (verdict.status, verdict.rule, verdict.list) == (GREY, name, None)
    assert getattr(compiled(), name).status is WHITE
    assert getattr(compiled(**{name: None}), name) is None


def test_verdicts_are_the_ones_made_at_compile_time():
    policy = compiled(
        Rule(list="stolen", answer=BLACK), Rule(tac=("1",), answer=GREY, observe=True), Rule(not_list="stolen", imsi=("9",), answer=GREY),
        index=index_of(stolen=[STOLEN]), bad_identity=None,
    )  # fmt: skip
    assert [(v.rule, v.list) for v in policy.verdicts] == [(1, "stolen"), (3, "stolen"), ("default", None), ("no_identity", None)]
    for request in ({"device": STOLEN}, {"device": FREE}, {"imsi": "9"}):
        assert ask(policy, **request) is ask(policy, **request)
        assert ask(policy, **request) in policy.verdicts
    with pytest.raises(AttributeError):
        policy.verdicts[0].status = WHITE


def test_rule_over_an_unknown_list_is_a_fault_of_the_caller():
    with pytest.raises(KeyError):
        compiled(Rule(list="nowhere", answer=BLACK))


rules = st.builds(
    Rule,
    answer=st.sampled_from(Status),
    observe=st.booleans(),
    list=st.sampled_from([None, "a", "b", "never"]),
    not_list=st.sampled_from([None, "a", "b", "never"]),
    tac=st.lists(st.text("01", min_size=1, max_size=8), max_size=3).map(tuple),
    software_version=st.sampled_from([(), ("01",)]),
    imsi=st.sampled_from([(), ("00101",), ("00102", "001010000000001")]),
    origin_realm=st.sampled_from([(), ("EPC",), ("other",)]),
)
LISTS = {"a": {STOLEN, "11111111000000"}, "b": {FREE, "11111111000000"}, "never": None}
INDEX = index_of(**LISTS)


def plainly(rule, device, imsi, software_version, realm):
    """The rule's conditions as the documentation says them, one by one and slowly."""
    digits_only = device.isdigit()
    return (
        (rule.list is None or (LISTS[rule.list] is not None and device in LISTS[rule.list]))
        and (rule.not_list is None or (LISTS[rule.not_list] is not None and device not in LISTS[rule.not_list]))
        and (not rule.tac or (digits_only and any(device[:8].startswith(tac) for tac in rule.tac)))
        and (not rule.software_version or software_version in rule.software_version)
        and (not rule.imsi or any(imsi.startswith(prefix) for prefix in rule.imsi))
        and (not rule.origin_realm or realm.lower() in [name.lower() for name in rule.origin_realm])
    )


@given(
    st.lists(rules, max_size=6),
    st.sampled_from([STOLEN, FREE, "11111111000000", "00000000000000", "A0000000000001", "00000000000F00"]),
    st.sampled_from(["", "001010000000001", "001020000000001"]),
    st.sampled_from(["", "01", "02"]),
    st.sampled_from(["", "epc", "Other"]),
)
def test_compiled_policy_is_the_plain_reading_of_its_rules(given_rules, device, imsi, software_version, realm):
    settings = PolicySettings(rules=tuple(given_rules))
    found = explain(
        settings, INDEX, device_key(device), now=NOW, imsi=imsi, software_version=software_version, origin_realm=realm
    )
    seen = []
    for number, rule in enumerate(given_rules, 1):
        if plainly(rule, device, imsi, software_version, realm):
            if not rule.observe:
                assert (found.verdict.rule, found.verdict.status) == (number, rule.answer)
                break
            seen.append((number, rule.answer))
    else:
        assert found.verdict.rule == "default"
    assert found.observed == tuple(seen)


def test_explain_names_observed_rules_and_lists_that_never_arrived():
    settings = PolicySettings(
        rules=(
            Rule(not_list="allowed", answer=BLACK),
            Rule(list="trial", answer=GREY, observe=True),
            Rule(list="stolen", answer=BLACK),
            Rule(list="later", answer=BLACK),
            Rule(list="allowed", answer=WHITE),
        )
    )
    found = explain(settings, index_of(allowed=None, trial=[STOLEN], stolen=[STOLEN], later=None), device_key(STOLEN), now=NOW)
    assert (found.verdict.status, found.verdict.rule, found.verdict.list) == (BLACK, 3, "stolen")
    assert found.observed == ((2, GREY),)
    assert found.not_loaded == ("allowed", "later")
