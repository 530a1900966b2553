"""What `eir check` says: the checker's own answer over what the store holds, and its reasons."""

import json
from datetime import UTC, datetime

import pytest
from simulated.store_content import page, pages_of, pair_pages, state

from eir.checks.checker import Checker
from eir.checks.explain import Explanation, explain, option_fault, question_of
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Override, PolicySettings, Rule, Status
from eir.device import SNR_KEYS, device_key, imsi_key
from eir.errors import StoreChanged
from eir.lists.images.index import Index
from eir.lists.record.entries import READ_AGAIN_MAX
from eir.lists.record.settings import ListSettings

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BLACK, GREY, WHITE = Status.BLACKLISTED, Status.GREYLISTED, Status.WHITELISTED
STOLEN, FREE, MEID = "00101001000001", "00101003000003", "A0000012345678"
IMSI = "001010000000001"
KINDS = {"stolen": "devices", "own": "devices", "sims": "subscribers", "pairs": "pairs", "never": "devices"}
LISTS = {name: ListSettings(name=name, kind=kind) for name, kind in KINDS.items()}


class Store:
    """As much of a store as `explain` reads; counts what it was asked for."""

    def __init__(self, changes=0):
        key = device_key(STOLEN)
        self.changes, self.read = changes, []
        self.content = {
            "stolen": [page(key // SNR_KEYS, [key % SNR_KEYS], reasons=b"\1"), *pages_of([device_key(MEID)])],
            "own": pages_of([0]),
            "sims": pages_of([imsi_key("262010000000001")]),
            "pairs": pair_pages({device_key(STOLEN): [imsi_key(IMSI)]}),
        }
        self.states = {
            name: state(pages, kind=KINDS[name], reasons=("", "theft"), generation=3)
            for name, pages in self.content.items()
        }
        self.states["own"] = state(self.content["own"], serial=0, generation=7)

    async def some_pages(self, name, numbers):
        self.read.append((name, tuple(numbers)))
        return self.states.get(name), [page for page in self.content.get(name, ()) if page.number in numbers]

    async def pages(self, name):
        self.read.append((name, "all"))
        for each in self.content[name]:
            yield self.states[name], [each]
        if self.changes:
            self.changes -= 1
            raise StoreChanged(name)


def settings(*rules, **more):
    return PolicySettings(rules=rules, **more)


async def explained(question, policy, store=None):
    return await explain(question, policy, LISTS, store or Store(), now=NOW)


BY_LIST = settings(
    Rule(name="trial", tac=("001",), answer=GREY, observe=True),
    Rule(list="stolen", answer=BLACK),
    Rule(name="ours", list="own", answer=GREY),
    Rule(list="sims", answer=WHITE),
    Rule(not_list="never", answer=BLACK),
)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (Question(f"{STOLEN}7"), (BLACK, 2, None, "stolen", 1, None, "theft")),
        (Question(meid=MEID), (BLACK, 2, None, "stolen", 1, None, None)),
        (Question("0" * 14), (GREY, 3, "ours", "own", 0, 7, None)),  # the device whose key is 0
        (Question(FREE, imsi="262010000000001"), (WHITE, 4, None, "sims", 1, None, None)),
        (Question(FREE, imsi="x"), (WHITE, "default", None, None, None, None, None)),
    ],
)
async def test_the_answer_and_its_reasons(question, expected):
    found = await explained(question, BY_LIST)
    assert (found.status, found.rule, found.name, found.list, found.serial, found.change, found.reason) == expected
    assert found.observed == (() if question.meid or question.imei.startswith("000") else ((1, GREY, "trial"),))
    assert found.not_loaded == ("never",)


async def test_a_list_of_another_kind_than_configured_is_not_in_force():
    store = Store()
    store.states["stolen"] = state(store.content["stolen"], kind="pairs", reasons=("", "theft"), generation=3)
    found = await explain(Question(STOLEN), BY_LIST, LISTS, store, now=NOW)
    assert "stolen" in found.not_loaded
    assert found.list != "stolen"


@pytest.mark.parametrize("question", [Question(STOLEN), Question(FREE, imsi=IMSI), Question("x")])
async def test_an_explanation_that_went_through_json_is_unchanged(question):
    found = await explained(question, settings(*BY_LIST.rules, bad_identity=None))
    fields = json.loads(json.dumps(found.as_fields()))
    assert "question" not in fields
    again = Explanation.of_fields(question, fields)
    assert again == found
    assert type(again.status) is type(found.status)
    assert (found.status is None) is (question.imei == "x")


async def test_only_pages_that_the_device_or_the_sim_is_in_are_read():
    store = Store()
    await explained(Question(FREE, imsi=IMSI), BY_LIST, store)
    number, sims = (device_key(FREE) // SNR_KEYS,), (imsi_key(IMSI) // SNR_KEYS,)
    assert store.read == [("stolen", number), ("own", number), ("sims", sims), ("pairs", number), ("never", number)]
    store = Store()
    await explained(Question(FREE), BY_LIST, store)
    assert ("sims", ()) in store.read


async def test_a_list_of_pairs_is_read_whole_where_a_rule_asks_what_the_sim_is_bound_to():
    policy = settings(Rule(subscriber_bound_elsewhere="pairs", answer=BLACK))
    for changes in (0, READ_AGAIN_MAX - 1):
        store = Store(changes)
        found = await explained(Question(FREE, imsi=IMSI), policy, store)
        assert (found.status, found.list) == (BLACK, "pairs")
        assert store.read.count(("pairs", "all")) == changes + 1
    with pytest.raises(StoreChanged, match="changed 5 times"):
        await explained(Question(FREE, imsi=IMSI), policy, Store(READ_AGAIN_MAX))
    store = Store()
    assert (await explained(Question(FREE), policy, store)).rule == "default"  # without a SIM it cannot hold
    assert ("pairs", "all") not in store.read


@pytest.mark.parametrize(
    "policy",
    [
        settings(no_identity=None, bad_identity=None), settings(no_identity=GREY, bad_identity=BLACK),
        settings(no_identity=None, bad_identity=None, override=Override(answer=GREY)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", [Question(), Question(""), Question("x"), Question(meid="x"), Question("x", "y")])
async def test_a_request_without_a_device_gets_the_answer_of_the_checker(policy, question):
    store = Store()
    found = await explained(question, policy, store)
    verdict = Checker(policy, Index({}), now=NOW).check(question)
    expected = (None, verdict) if isinstance(verdict, NoDevice) else (verdict.status, verdict.rule)
    assert (found.status, found.rule) == expected
    with pytest.raises(Exception, match=r"IMEI|MEID") as raised:
        question.device()
    assert found.reason == str(raised.value)
    assert (store.read == []) == (question.any_device() is None)
    assert found.as_json()["rule"] == found.rule
    assert f"because of the policy's {found.rule}\n" in found.as_text()


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        ("", Question()), (STOLEN, Question(STOLEN)), (f"{STOLEN}12", Question(f"{STOLEN}12")), ("123", Question("123")),
        (MEID, Question(MEID, MEID)), ("x", Question("x", "x")),
    ],
)  # fmt: skip
def test_what_a_person_types(typed, question):
    rest = {"imsi": "1", "software_version": "2", "origin_host": "3", "origin_realm": "4"}
    assert question_of(typed, **rest) == question._replace(**rest)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question("x"), None), (Question(imsi=IMSI, software_version="77"), None),
        (Question(imsi="26201x"), "--imsi 26201x: an IMSI has 6 to 15 digits; got 6 characters"),
        (Question(software_version="7"), "--software-version 7: expected two digits (TS 23.003 6.2.2)"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong(question, said):
    assert option_fault(question) == said


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(list="stolen", answer=BLACK), "rule 1, list stolen (serial 1)"),
        (Rule(list="stolen", tac=("001", "00101001"), answer=BLACK), "rule 1: tac 001*, 00101001, list stolen (serial 1)"),
        (Rule(name="all", imsi=("00101", IMSI), answer=BLACK), f"rule 1 (all): imsi 00101*, {IMSI}"),
        (Rule(software_version=tuple(f"{n:02d}" for n in range(8)), answer=BLACK), "rule 1: software_version 00, 01, 02, 03, 04 and 3 more"),
        (Rule(not_list="own", origin_host=("a.b",), answer=BLACK), "rule 1: not_list own; origin_host a.b, list own (change 7)"),
    ],
)  # fmt: skip
async def test_what_else_the_rule_asks_for(rule, said):
    found = await explained(Question(STOLEN, imsi=IMSI, software_version="03", origin_host="a.b"), settings(rule))
    assert found.as_text().splitlines()[1] == f"  by {said}"
