"""The policy over a real index: every condition, their order, observation, overrides, and lists that never arrived."""

from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import fill, pair_rows

from eir.checks import conditions
from eir.checks.policy import Policy, Verdict, compile_policy
from eir.checks.question import NO_KEY
from eir.checks.settings import NoDevice, Override, PolicySettings, Rule, Status
from eir.device import device_key, imsi_key
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
WHITE, BLACK, GREY, UNKNOWN = Status.WHITELISTED, Status.BLACKLISTED, Status.GREYLISTED, Status.UNKNOWN
STOLEN, TRACKED, FREE = "00101001000001", "00101002000002", "00101003000003"
ANYTHING = {
    "key": device_key(FREE),
    "imsi": "001010000000001",
    "software_version": "01",
    "host": "mme.epc",
    "realm": "epc",
}


def index_of(**lists):
    """An index of device lists: name → identifiers, or None for a list that was never loaded."""
    index = Index(dict.fromkeys(lists, "devices"))
    for name, identifiers in lists.items():
        if identifiers is not None:
            load(index, name, identifiers)
    return index


def load(index, name, identifiers, serial=1):
    fill(index, name, rows_of(map(device_key, identifiers)), serial=serial, generation=serial)


SIM, OTHER_SIM = "001010000000001", "001010000000002"


def index_with(*, devices=None, subscribers=None, pairs=None):
    """An index of lists of each kind by their own kind: list name → identifiers (pairs: device → SIMs), None: never loaded."""
    kinds = {"devices": devices, "subscribers": subscribers, "pairs": pairs}
    index = Index({name: kind for kind, lists in kinds.items() for name in lists or {}})
    for kind, lists in kinds.items():
        for name, content in (lists or {}).items():
            if content is not None:
                put(index, name, kind, content)
    return index


def put(index, name, kind, content):
    if kind == "pairs":
        rows = pair_rows({device_key(device): [imsi_key(imsi) for imsi in imsis] for device, imsis in content.items()})
    else:
        rows = rows_of((device_key if kind == "devices" else imsi_key)(identifier) for identifier in content)
    fill(index, name, rows, generation=1)


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
    ({"imei": (FREE,)}, {}, {"key": device_key(STOLEN)}),
    ({"imei": ("35209900176148", f"{FREE[:14]}9", "3512345678901899")}, {"key": device_key("35123456789018")}, {"key": device_key("35123456789019")}),
    ({"imei": ("A0000000000001",)}, {"key": device_key("a0000000000001")}, {"key": device_key("00000000000001")}),
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
    ({"identifier": ("zero",)}, {"key": 0}, {"key": 1}),
    ({"identifier": ("repeated",)}, {"key": 77777777777777}, {"key": 0}),
    ({"identifier": ("sequence",)}, {"key": 12345678901234}, {"key": 12345678901235}),
    ({"identifier": ("sequence",)}, {"key": device_key("01234567890123")}, {"key": device_key("00123456789012")}),
    ({"identifier": ("sequence",)}, {"key": 98765432109876}, {"key": device_key("A1234567890123")}),
    ({"identifier": ("test",)}, {"key": device_key("00101799000001")}, {"key": device_key("00101899000001")}),
    ({"identifier": ("zero", "test")}, {"key": device_key("00440000000001")}, {"key": device_key("A0440000000001")}),
    ({"list": "some"}, {}, {"key": device_key(STOLEN)}),
    ({"not_list": "some"}, {"key": device_key(STOLEN)}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "holds", "fails"), CONDITIONS)
def test_condition(condition, holds, fails):
    policy = compiled(Rule(answer=BLACK, **condition), index=index_of(some=[FREE]))
    assert ask(policy, **holds).rule == 1
    assert ask(policy, **fails).rule == "default"


def test_what_the_key_does_not_show_has_rules_of_its_own():
    """A malformed identifier is decided by the same rules, in the same order."""
    index = index_of(some=[FREE])
    policy = compiled(
        Rule(list="some", identifier=("zero",), answer=UNKNOWN), Rule(identifier=("malformed", "zero"), imsi=("262",), answer=BLACK),
        Rule(identifier=("malformed",), answer=GREY), index=index,
    )  # fmt: skip
    asked = (device_key(FREE), "", "", "h", "r"), (device_key(STOLEN), "", "", "h", "r"), (0, "26201", "", "h", "r")
    assert [policy.decide(*each).rule for each in asked] == ["default", "default", 2]
    assert [policy.malformed(NO_KEY, imsi, "", "h", "r").rule for imsi in ("26201", "00101")] == [2, 3]
    assert (
        compiled(Rule(identifier=("malformed",), imsi=("262",), answer=BLACK)).malformed(NO_KEY, "00101", "", "h", "r")
        is None
    )
    plain = compiled(Rule(identifier=("zero",), answer=BLACK))
    assert plain.malformed is None


def test_all_conditions_of_a_rule_have_to_hold():
    rule = Rule(
        answer=BLACK, list="some", not_list="other", imei=(FREE,), tac=("0010",), software_version=("01",), imsi=("001",),
        origin_host=("mme.epc",), origin_realm=("epc",),
    )  # fmt: skip
    policy = compiled(rule, index=index_of(some=[FREE], other=[STOLEN]))
    assert ask(policy).rule == 1
    for wrong in (
        {"key": device_key(STOLEN)}, {"key": device_key("00201003000003")}, {"software_version": "02"}, {"imsi": "26201"},
        {"host": "x"}, {"realm": "x"},
    ):  # fmt: skip
        assert ask(policy, **wrong).rule == "default", wrong


@pytest.mark.parametrize(
    "condition", [{"list": "absent"}, {"not_list": "absent"}, {"not_list": "absent", "list": "some"}]
)
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
    policy = compiled(
        *rules,
        index=index_of(trial=[STOLEN, FREE]),
        observed=lambda verdict: seen.append((verdict.rule, verdict.status)),
    )
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
        assert [*policy.unidentified.values()] == [ask(policy, FREE)] * len(
            NoDevice
        )  # everything alike, errors included
        assert policy.program.verdicts == (ask(policy, STOLEN),)
    else:
        assert policy.override_until is None
        assert policy.unidentified[NoDevice.MISSING] is NoDevice.MISSING


def test_override_in_another_zone():
    until = datetime.fromisoformat("2026-11-25T13:30:00+02:00")  # 11:30 UTC
    assert not compiled(override=Override(answer=WHITE, until=until)).overridden


@pytest.mark.parametrize("why", NoDevice)
def test_requests_without_a_usable_identifier(why):
    verdict = compiled(**{why: GREY}).unidentified[why]
    assert (verdict.status, verdict.rule, verdict.label, verdict.list) == (GREY, why, why, None)
    assert compiled().unidentified[why].status is WHITE
    assert compiled(**{why: None}).unidentified[why] is why


def test_verdicts_are_the_ones_made_at_compile_time():
    policy = compiled(
        Rule(list="stolen", answer=BLACK), Rule(tac=("1",), answer=GREY, observe=True), Rule(not_list="stolen", imsi=("9",), answer=GREY),
        index=index_of(stolen=[STOLEN]),
    )  # fmt: skip
    for request, rule in (({"device": STOLEN}, 1), ({"device": FREE}, "default"), ({"device": FREE, "imsi": "9"}, 3)):
        verdict = ask(policy, **request)
        assert verdict is ask(policy, **request)
        assert verdict.rule == rule
        with pytest.raises(FrozenInstanceError):
            verdict.status = WHITE


def test_a_rule_is_shown_by_its_name_or_its_number():
    policy = compiled(Rule(tac=("001",), answer=BLACK), Rule(name="late", tac=("1",), answer=BLACK))
    found = [ask(policy, device) for device in (FREE, "10000000000001", "20000000000001")]
    assert [(verdict.rule, verdict.name, verdict.label) for verdict in found] == [
        (1, None, "1"),
        (2, "late", "late"),
        ("default", None, "default"),
    ]
    assert Verdict(WHITE, "override").label == "override"


def test_every_condition_of_a_rule_has_its_row_and_no_other():
    assert {field.name for field in fields(Rule)} - {"name", "answer", "observe", "authenticated"} == set(
        conditions.CONDITIONS
    )


def test_a_rule_for_authenticated_sims_is_left_out_for_others_and_numbers_stay():
    rules = (Rule(imsi=("00101",), answer=GREY, authenticated=True), Rule(imsi=("00101",), answer=BLACK))
    policy = compiled(*rules)
    assert (ask(policy, imsi=SIM).rule, ask(policy.unproven, imsi=SIM).rule) == (1, 2)
    assert compiled(rules[1]).unproven is None


def test_rule_over_an_unknown_list_is_a_fault_of_the_caller():
    with pytest.raises(KeyError):
        compiled(Rule(list="nowhere", answer=BLACK))


# Lists of subscribers and of pairs


BOUND = {"pairs": {"bound": {FREE: [SIM, OTHER_SIM], TRACKED: [SIM]}}}
TEST_SIMS = {"subscribers": {"sims": [SIM]}}
BY_SUBSCRIBER = [
    # lists, condition, (device, IMSI) that hold, that do not
    (TEST_SIMS, {"list": "sims"}, [(FREE, SIM), (STOLEN, SIM)], [(FREE, OTHER_SIM), (FREE, ""), (FREE, "x"), (FREE, SIM + "0")]),
    (TEST_SIMS, {"not_list": "sims"}, [(FREE, OTHER_SIM)], [(FREE, SIM), (FREE, ""), (FREE, "x")]),
    (BOUND, {"list": "bound"}, [(FREE, SIM), (FREE, OTHER_SIM), (TRACKED, SIM)], [(TRACKED, OTHER_SIM), (STOLEN, SIM), (FREE, "")]),
    (BOUND, {"not_list": "bound"}, [(TRACKED, OTHER_SIM), (STOLEN, SIM)], [(FREE, SIM), (STOLEN, ""), (FREE, "")]),
    (BOUND, {"device_bound_elsewhere": "bound"}, [(TRACKED, OTHER_SIM), (FREE, "26201000000001")], [(FREE, OTHER_SIM), (STOLEN, SIM), (TRACKED, "")]),
    (BOUND, {"subscriber_bound_elsewhere": "bound"}, [(STOLEN, SIM), (TRACKED, OTHER_SIM)], [(TRACKED, SIM), (STOLEN, "26201000000001"), (STOLEN, "")]),
]  # fmt: skip


@pytest.mark.parametrize(("lists", "condition", "holds", "fails"), BY_SUBSCRIBER)
def test_condition_on_device_and_subscriber(lists, condition, holds, fails):
    policy = compiled(Rule(answer=BLACK, **condition), index=index_with(**lists))
    assert [case for case in holds if ask(policy, case[0], imsi=case[1]).rule != 1] == []
    assert [case for case in fails if ask(policy, case[0], imsi=case[1]).rule != "default"] == []
    assert ask(policy, holds[0][0], imsi=holds[0][1]).list in {"sims", "bound"}


@pytest.mark.parametrize(("kind", "condition"), [
    ("subscribers", "list"), ("subscribers", "not_list"), ("pairs", "list"), ("pairs", "not_list"),
    ("pairs", "device_bound_elsewhere"), ("pairs", "subscriber_bound_elsewhere"),
])  # fmt: skip
def test_lists_of_each_kind_wait_for_their_first_load(kind, condition):
    index = index_with(**{kind: {"late": None}})
    policy = compiled(Rule(answer=BLACK, **{condition: "late"}), index=index)
    assert ask(policy, FREE, imsi=SIM).rule == "default"
    put(
        index,
        "late",
        kind,
        {STOLEN: [SIM], FREE: [OTHER_SIM]} if kind == "pairs" else [SIM if condition == "list" else OTHER_SIM],
    )
    device = STOLEN if condition == "list" else FREE
    assert ask(policy, device, imsi=SIM).rule == 1  # the same compiled policy


def test_theft_beats_an_exception_by_the_order_of_rules():
    lists = {
        "devices": {"stolen": [STOLEN], "unpaid": [STOLEN, FREE, TRACKED]},
        "pairs": {"exceptions": {FREE: [SIM], STOLEN: [SIM]}},
        "subscribers": {"test-sims": [OTHER_SIM]},
    }
    policy = compiled(
        Rule(list="test-sims", answer=WHITE),
        Rule(list="stolen", answer=BLACK),
        Rule(list="exceptions", answer=WHITE),
        Rule(list="unpaid", answer=BLACK),
        index=index_with(**lists),
    )
    expected = {
        (STOLEN, OTHER_SIM): (WHITE, "test-sims"),  # a test SIM is always served
        (STOLEN, SIM): (BLACK, "stolen"),  # DIRBS's delta files exempt devices that its full file would not
        (FREE, SIM): (WHITE, "exceptions"),  # this SIM in that device
        (FREE, "001010000000003"): (BLACK, "unpaid"),  # another SIM in it
        (FREE, ""): (BLACK, "unpaid"),
        (TRACKED, SIM): (BLACK, "unpaid"),  # that SIM in another device
    }
    found = {case: ask(policy, case[0], imsi=case[1]) for case in expected}
    assert {case: (verdict.status, verdict.list) for case, verdict in found.items()} == expected


def test_a_rule_names_each_list_once_and_the_first_one_stands_for_it():
    rule = Rule(answer=BLACK, device_bound_elsewhere="iot", not_list="allowed", subscriber_bound_elsewhere="iot")
    assert rule.lists == ("allowed", "iot")
    index = index_with(devices={"allowed": []}, pairs={"iot": {STOLEN: [SIM], FREE: [OTHER_SIM]}})
    assert ask(compiled(rule, index=index), FREE, imsi=SIM).list == "allowed"
    assert Rule(answer=BLACK, tac=("1",)).lists == ()


@pytest.mark.parametrize("condition", ["device_bound_elsewhere", "subscriber_bound_elsewhere"])
def test_conditions_on_bindings_need_a_list_of_pairs(condition):
    with pytest.raises(KeyError, match="expected a list of pairs"):
        compiled(Rule(answer=BLACK, **{condition: "sims"}), index=index_with(**TEST_SIMS))


pair_rules = st.builds(
    Rule,
    answer=st.sampled_from(Status),
    list=st.sampled_from([None, "d", "s", "p"]),
    not_list=st.sampled_from([None, "d", "s", "p"]),
    device_bound_elsewhere=st.sampled_from([None, "p"]),
    subscriber_bound_elsewhere=st.sampled_from([None, "p"]),
)
small = st.sampled_from([STOLEN, TRACKED, FREE])
sims = st.sampled_from([SIM, OTHER_SIM])


def plainly_by_subscriber(rule, lists, device, imsi):
    def within(name):
        (content,) = (kind[name] for kind in lists.values() if name in kind)
        return imsi in content if name == "s" else device in content if name == "d" else imsi in content.get(device, ())

    known = imsi != ""
    pairs = lists["pairs"]["p"]
    return (
        (rule.list is None or within(rule.list))
        and (rule.not_list is None or ((known or rule.not_list == "d") and not within(rule.not_list)))
        and (rule.device_bound_elsewhere is None or (known and device in pairs and imsi not in pairs[device]))
        and (
            rule.subscriber_bound_elsewhere is None
            or (any(imsi in bound for bound in pairs.values()) and imsi not in pairs.get(device, ()))
        )
    )


@given(
    st.lists(pair_rules, max_size=4), st.sets(small), st.sets(sims),
    st.dictionaries(small, st.sets(sims, min_size=1)), small, sims | st.just(""),
)  # fmt: skip
def test_compiled_policy_is_the_plain_reading_over_lists_of_each_kind(
    given_rules, devices, subscribers, pairs, device, imsi
):
    lists = {"devices": {"d": devices}, "subscribers": {"s": subscribers}, "pairs": {"p": pairs}}
    policy = compiled(*given_rules, index=index_with(**lists))
    first = next(
        (n for n, rule in enumerate(given_rules, 1) if plainly_by_subscriber(rule, lists, device, imsi)), "default"
    )
    assert ask(policy, device, imsi=imsi).rule == first


rules = st.builds(
    Rule,
    answer=st.sampled_from(Status),
    observe=st.booleans(),
    list=st.sampled_from([None, "a", "b", "never"]),
    not_list=st.sampled_from([None, "a", "b", "never"]),
    imei=st.sampled_from([(), (STOLEN,), ("111111110000009", "00000000000000", "00000000000F00")]),
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
        and (not rule.imei or device[:14] in [imei[:14] for imei in rule.imei])
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
    observed, seen = [], []
    policy = compiled(
        *given_rules, index=INDEX, observed=lambda verdict: observed.append((verdict.rule, verdict.status))
    )
    verdict = ask(policy, device, imsi=imsi, software_version=software_version, realm=realm)
    for number, rule in enumerate(given_rules, 1):
        if plainly(rule, device, imsi, software_version, realm):
            if not rule.observe:
                assert (verdict.rule, verdict.status) == (number, rule.answer)
                break
            seen.append((number, rule.answer))
    else:
        assert verdict.rule == "default"
    assert observed == seen
