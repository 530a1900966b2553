"""What `eir check` says: the checker's own answer over what the store holds, and its reasons."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulated.store_content import pair_rows, state

from eir.checks.checker import Checker
from eir.checks.explain import Explanation, explain, option_fault, question_of
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Override, PolicySettings, Rule, Status
from eir.device import device_key, imsi_key
from eir.lists.images.index import Index
from eir.lists.log.reader import LoggedList
from eir.lists.record.settings import ListSettings
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import table_of

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BLACK, GREY, WHITE = Status.BLACKLISTED, Status.GREYLISTED, Status.WHITELISTED
STOLEN, FREE, MEID = "00101001000001", "00101003000003", "A0000012345678"
IMSI = "001010000000001"
KINDS = {"stolen": "devices", "own": "devices", "sims": "subscribers", "pairs": "pairs", "never": "devices"}
LISTS = {name: ListSettings(name=name, kind=kind) for name, kind in KINDS.items()}


class Contents:
    """Content of lists as `explain` reads it; counts what it was asked for."""

    def __init__(self):
        self.read = []
        self.rows = {
            "stolen": rows_of([device_key(STOLEN), device_key(MEID)], reasons=[1, 0]),
            "own": rows_of([0]),
            "sims": rows_of([imsi_key("262010000000001")]),
            "pairs": pair_rows({device_key(STOLEN): [imsi_key(IMSI)]}),
        }
        self.heads = {
            name: state(rows, kind=KINDS[name], reasons=("", "theft"), generation=3) for name, rows in self.rows.items()
        }
        self.heads["own"] = state(self.rows["own"], serial=0, generation=7)

    async def content(self, name):
        self.read.append(name)
        if name not in self.rows:
            return None
        table = table_of(self.rows[name])
        return LoggedList(self.heads[name], table, digest_tree(table, ("", "theft")))


def settings(*rules, **more):
    return PolicySettings(rules=rules, **more)


async def explained(question, policy, contents=None, now=NOW):
    return await explain(question, policy, LISTS, (contents or Contents()).content, now=now)


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
    contents = Contents()
    contents.heads["stolen"] = replace(contents.heads["stolen"], kind="pairs")
    found = await explained(Question(STOLEN), BY_LIST, contents)
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


async def test_a_rule_asks_which_devices_the_sim_is_bound_to():
    policy = settings(Rule(subscriber_bound_elsewhere="pairs", answer=BLACK))
    found = await explained(Question(FREE, imsi=IMSI), policy)
    assert (found.status, found.list) == (BLACK, "pairs")
    for question in (Question(FREE), Question(FREE, imsi="001010000000002"), Question(STOLEN, imsi=IMSI)):
        assert (await explained(question, policy)).rule == "default"


async def test_the_reason_is_that_of_the_pair_and_else_that_of_the_device():
    contents = Contents()
    device, other = device_key(STOLEN), "001010000000002"
    contents.rows["pairs"] = rows_of([device, device], seconds=[imsi_key(IMSI), imsi_key(other)], reasons=[1, 2])
    contents.heads["pairs"] = replace(contents.heads["pairs"], reasons=("", "theft", "clone"))
    by_pair = settings(Rule(list="pairs", answer=BLACK))
    for imsi, reason in ((IMSI, "theft"), (other, "clone")):
        assert (await explained(Question(STOLEN, imsi=imsi), by_pair, contents)).reason == reason
    elsewhere = settings(Rule(device_bound_elsewhere="pairs", answer=BLACK))
    assert (await explained(Question(STOLEN, imsi="262010000000001"), elsewhere, contents)).reason == "theft"


@pytest.mark.parametrize(
    ("name", "key", "question"),
    [
        ("own", device_key(FREE), Question(FREE)), ("own", WHOLE | 101003, Question(FREE)),
        ("sims", imsi_key(IMSI), Question(FREE, imsi=IMSI)),
    ],
)  # fmt: skip
async def test_a_row_that_has_not_begun_is_named_with_its_begin(name, key, question):
    contents, begin = Contents(), int(NOW.timestamp()) + 60
    contents.rows[name] = rows_of([key], begins=begin)
    before = await explained(question, BY_LIST, contents)
    assert (before.rule, before.pending) == ("default", ((name, "2026-11-25T12:01:00Z"),))
    assert f"  from 2026-11-25T12:01:00Z: list {name}" in before.as_text().splitlines()
    assert before.as_json()["pending"] == [{"list": name, "begin": "2026-11-25T12:01:00Z"}]
    assert Explanation.of_fields(question, json.loads(json.dumps(before.as_fields()))) == before
    after = await explained(question, BY_LIST, contents, now=NOW + timedelta(seconds=60))
    assert (after.list, after.pending) == (name, ())


@pytest.mark.parametrize(
    "policy",
    [
        settings(no_identity=None, bad_identity=None), settings(no_identity=GREY, bad_identity=BLACK),
        settings(no_identity=None, bad_identity=None, override=Override(answer=GREY)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", [Question(), Question(""), Question("x"), Question(meid="x"), Question("x", "y")])
async def test_a_request_without_a_device_gets_the_answer_of_the_checker(policy, question):
    contents = Contents()
    found = await explained(question, policy, contents)
    verdict = Checker(policy, Index({}), now=NOW).check(question)
    expected = (None, verdict) if isinstance(verdict, NoDevice) else (verdict.status, verdict.rule)
    assert (found.status, found.rule) == expected
    with pytest.raises(Exception, match=r"IMEI|MEID") as raised:
        question.device()
    assert found.reason == str(raised.value)
    assert (contents.read == []) == (question.any_device() is None)
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
