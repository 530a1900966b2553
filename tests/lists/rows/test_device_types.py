"""A table of TACs with their types of device: it comes as a signed release, and rules ask it by the condition device_type."""

import csv
import io

import pytest

from eir.device import device_type_key
from eir.errors import ReleaseRefused
from eir.lists.releases.foreign import guess_layout

GSMA = """TAC|Manufacturer|Marketing Name|Bands|Allocation Date|Device Type
35209900|Maker|A phone|LTE 3|01-Jan-2020|Smartphone
35209901|Maker|A module, for meters|LTE 3|01-Feb-2021|IoT Device
35209902|Maker|A "router"|LTE 3|01-Feb-2021|WLAN Router
35209903|Maker|No type|LTE 3|01-Feb-2021|
"""
PHONE, MODULE, ROUTER, NO_TYPE, NO_TAC = (f"3520990{number}000017" for number in (0, 1, 2, 3, 9))
RULES = [
    {"name": "spared", "device_type": ["iot  device", "WLAN_ROUTER"], "answer": "whitelisted"},
    {"list": "stolen", "answer": "blacklisted"},
    {"name": "phones", "device_type": "Smartphone", "answer": "greylisted"},
]


@pytest.fixture
def types(site):
    """A host with a table of device types and a list of stolen devices."""
    lists = site.settings["lists"] | {"tacs": {"kind": "device_types", "signers": "signers"}}
    site.configure(lists=lists, policy={"rules": RULES})
    (site.folder / "gsma.txt").write_text(GSMA)
    return site


def answers(site, *devices):
    return {device: (made["status"], made["rule"]) for device in devices for made in [site.json("check", device)]}


def test_rules_use_the_device_type_of_the_tac_in_a_signed_table(types):
    types.load([MODULE, PHONE, NO_TAC])
    assert answers(types, MODULE, PHONE) == {MODULE: ("blacklisted", 2), PHONE: ("blacklisted", 2)}  # no table yet
    types.load(types.folder / "gsma.txt", list_name="tacs")
    assert answers(types, MODULE, ROUTER, PHONE, NO_TAC) == {
        MODULE: ("whitelisted", 1), ROUTER: ("whitelisted", 1), PHONE: ("blacklisted", 2), NO_TAC: ("blacklisted", 2),
    }  # fmt: skip
    types.load([MODULE], serial=2)
    assert answers(types, PHONE, NO_TYPE) == {PHONE: ("greylisted", 3), NO_TYPE: ("whitelisted", "default")}
    (shown,) = types.json("show", "tacs", "35209901000000")["entries"]
    assert (shown["reason"], shown["allocation_date"], shown["imsi"]) == ("IoT Device", "2021-02-01", None)
    assert "2021-02-01" in types.eir("show", "tacs", "35209901000000").stdout
    changed = types.folder / "more.csv"
    changed.write_text(f"tac,device_type\n{NO_TAC[:8]},Module\n{PHONE[:8]},Module\n")
    types.load(changed, list_name="tacs", serial=2)
    types.configure(policy={"rules": [{"device_type": ["Module"], "answer": "greylisted"}]})
    assert answers(types, NO_TAC, PHONE, MODULE) == {
        NO_TAC: ("greylisted", 1), PHONE: ("greylisted", 1), MODULE: ("whitelisted", "default"),
    }  # fmt: skip


def test_a_node_follows_the_table_and_its_lane_answers_by_it(types):
    types.load([MODULE])
    types.load(types.folder / "gsma.txt", list_name="tacs")
    node = types.start()
    asked = types.eir(
        "probe", "s13://{}:{}".format(*node.address), MODULE, PHONE, NO_TYPE, "--json", status=None
    ).stdout
    assert [asked.count(f'"{status}"') for status in ("whitelisted", "greylisted", "blacklisted")] == [2, 1, 0], asked
    assert node.status()["lists"]["tacs"]["serial"] == 1


def test_what_is_exported_publishes_the_same_table(types):
    types.load(types.folder / "gsma.txt", list_name="tacs")
    text = types.eir("export", "tacs").stdout
    rows = {row["tac"]: (row["device_type"], row["date"]) for row in csv.DictReader(io.StringIO(text))}
    assert rows == {
        "35209900": ("Smartphone", "2020-01-01"), "35209901": ("IoT Device", "2021-02-01"), "35209902": ("WLAN Router", "2021-02-01"),
        "35209903": ("", "2021-02-01"),
    }  # fmt: skip
    digest = types.json("show", "tacs")["digest"]
    again = types.folder / "again.csv"
    again.write_text(text)
    types.load(again, list_name="tacs", serial=2)
    assert types.json("show", "tacs")["digest"] == digest


def test_a_delta_replaces_the_day_of_allocation(types):
    types.load(types.folder / "gsma.txt", list_name="tacs")
    changes = {
        "d-removed.csv": f"tac,device_type\n{ROUTER[:8]},WLAN Router\n",
        "d-added.csv": f"tac,device_type,allocation_date\n{PHONE[:8]},Smartphone,2019-05-06\n{MODULE[:8]},IoT Device,soon\n",
    }
    for name, text in changes.items():
        (types.folder / name).write_text(text)
    types.load(*(types.folder / name for name in changes), list_name="tacs", serial=2, base=1)
    rows = csv.DictReader(io.StringIO(types.eir("export", "tacs").stdout))
    assert {row["tac"]: row["date"] for row in rows} == {
        PHONE[:8]: "2019-05-06", MODULE[:8]: "2021-02-01", NO_TYPE[:8]: "2021-02-01",
    }  # fmt: skip


def test_a_delta_that_gives_a_tac_another_type_replaces_the_one_before(types):
    types.load(types.folder / "gsma.txt", list_name="tacs")
    (types.folder / "d-added.csv").write_text(f"tac,device_type\n{PHONE[:8]},Module\n")
    types.load(types.folder / "d-added.csv", list_name="tacs", serial=2, base=1)
    shown = types.json("show", "tacs")
    assert [row["reason"] for row in shown["entries"] if row["entry"].startswith(PHONE[:8])] == ["Module"]
    assert shown["total"] == 4


def test_a_row_without_a_tac_is_bad_and_no_command_adds_types(types):
    (types.folder / "bad.csv").write_text("tac,device_type\n352099,Module\n35209905,Module\n")
    with pytest.raises(ReleaseRefused, match=r"bad\.csv:2: a TAC has 8 digits; got 6 characters"):
        types.load(types.folder / "bad.csv", list_name="tacs")
    types.configure(lists={"tacs": {"kind": "device_types", "local": True}}, policy={})
    done = types.eir("add", "tacs", "35209905", "--tac", "--reason", "x", status=None)
    assert done.returncode
    assert "changes only by releases" in done.stderr


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            {"list": "tacs", "answer": "greylisted"},
            "'tacs' is a list of device_types, which the condition device_type asks",
        ),
        (
            {"device_type": ["a|b"], "answer": "greylisted"},
            "found 'a|b' for 'device_type' in entry 1 of policy.rules; expected a device type",
        ),
    ],
)
def test_what_the_configuration_cannot_mean(types, rule, says):
    types.configure(policy={"rules": [rule]})
    assert says in types.eir("config", status=2).stderr


def test_a_rule_needs_a_table(site):
    site.configure(policy={"rules": [RULES[0]]})
    assert "no list of kind device_types is configured" in site.eir("config", status=2).stderr


def test_names_of_types_are_compared_without_case_spaces_and_underscores():
    assert len({device_type_key(text) for text in ("IoT Device", " iot  device", "IOT_DEVICE")}) == 1
    assert device_type_key("Module") != device_type_key("Modem")
    assert all(len(str(device_type_key(text))) == 16 for text in ("", "Module", "x" * 64))


@pytest.mark.parametrize(
    ("header", "layout"),
    [
        (b"TAC|Manufacturer|Device_Type\n", "gsma-tacs"),
        (b"tac|device type\n", "gsma-tacs"),
        (b"tac,device_type\n", "eir"),
        (b"tac,device_type,date,until\n", "eir"),
        (b"TAC,Device Type\n", "tacs"),
        (b"tac,device_type,allocation_date\n", "tacs"),
        (b"TAC,Allocation Date,Device Type,until\n", "tacs"),
    ],
)
def test_layouts_are_guessed_by_the_header(header, layout):
    assert guess_layout(header) == layout
