"""Rules that ask for the first sighting of a device, what is noted of it, and what is not. Conformance row 62."""

from collections import deque
from datetime import UTC, datetime

import numpy as np
import pytest

from eir.checks.checker import Checker
from eir.checks.explain import answer
from eir.checks.new_devices import AGAIN_TURNS, COMPARED_AT_ONCE, COMPARED_PER_TURN, NewDevices
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.log.change import Head
from eir.lists.record.first_days import DAY_S, WAS_LISTED, sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.table.table import EMPTY, table_of

TODAY = 20_787  # 2026-11-30
NEW, OLD, WAITING = "35209900176148", "35332811002233", "86123456789012"
WHITE, BLACK, GREY = Status.WHITELISTED, Status.BLACKLISTED, Status.GREYLISTED
WITHIN = Rule(answer=GREY, first_seen_within=60)


class Node:
    """A checker over a record, on a clock of the test's own."""

    def __init__(self, *rules, per_peer=20_000, probes=frozenset(), default=BLACK):
        self.today = TODAY
        self.index = Index({"first-seen": FIRST_SEEN, "registered": "devices"}, lambda: self.today * DAY_S + 1)
        self.record = self.index.first_seen
        self.new = NewDevices(self.record, per_peer)
        self.policy = PolicySettings(rules=rules, default=default)
        self.checker = Checker(self.policy, self.index, now=datetime.now(UTC), new_devices=self.new, probes=probes)
        self.generation = 0

    def on_record(self, **days):
        """Put another image in force: day → devices that were first seen on it, and last today."""
        firsts = {
            device_key(device): int(first.removeprefix("day")) for first, listed in days.items() for device in listed
        }
        rows = sighted_rows(np.array([*firsts], "<u8"), np.array([*firsts.values()], "<u4"), self.today)
        self.generation += 1
        self.index.switch(
            "first-seen", Head(kind=FIRST_SEEN, generation=self.generation), first_seen_image(table_of(rows))
        )

    def ask(self, device, peer="mme", imsi="262010000000001", protocol="s13"):
        return self.checker.check(Question(device, imsi=imsi, protocol=protocol, peer=peer)).status

    def sent(self):
        """The devices that are to be recorded now, by peer."""
        found = {}
        deque(self.new.remove_recorded(), maxlen=0)
        for each in self.new.pop_sightings():
            found.setdefault(each.peer, []).extend(f"{key:014d}" for key in np.frombuffer(each.keys, "<u8").tolist())
        return found


def test_a_device_that_nobody_saw_is_seen_now():
    node = Node(WITHIN)
    assert node.ask(NEW) is GREY
    assert node.sent() == {"mme": [NEW]}


def test_the_last_day_of_a_period_still_holds():
    node = Node(WITHIN)
    node.on_record(**{f"day{TODAY - 60}": [NEW], f"day{TODAY - 61}": [OLD]})
    assert (node.ask(NEW), node.ask(OLD)) == (GREY, BLACK)
    node.today += 1
    assert node.ask(NEW) is BLACK


def test_an_amnesty_is_for_those_who_were_seen_before_its_day():
    node = Node(Rule(answer=GREY, first_seen_before=TODAY))
    node.on_record(**{f"day{TODAY - 1}": [OLD], f"day{TODAY}": [NEW]})
    assert (node.ask(OLD), node.ask(NEW), node.ask(WAITING)) == (GREY, BLACK, BLACK)
    node.today -= 1
    assert node.ask(WAITING) is GREY


def test_a_device_that_left_a_list_has_neither():
    node = Node(WITHIN, Rule(answer=GREY, first_seen_before=TODAY))
    node.on_record(**{f"day{WAS_LISTED}": [OLD]})
    assert node.ask(OLD) is BLACK


def test_rule_order_decides_and_only_who_is_asked_for_is_noted():
    roamers = Rule(answer=GREY, first_seen_within=120, imsi=("28601",))
    node = Node(Rule(answer=WHITE, tac=(OLD[:8],)), roamers, Rule(answer=WHITE, imsi=("26201",)), WITHIN)
    assert node.ask(OLD) is WHITE
    assert node.ask(NEW) is WHITE
    assert node.sent() == {}
    assert node.ask(NEW, imsi="286010000000001") is GREY
    assert node.sent() == {"mme": [NEW]}


def test_a_day_that_an_image_lacks_holds_until_it_has_it():
    node = Node(WITHIN)
    node.ask(NEW)
    node.today += 61
    assert node.ask(NEW) is BLACK
    node.on_record(**{f"day{TODAY + 30}": [NEW]})
    assert node.ask(NEW) is BLACK
    node.on_record(**{f"day{TODAY}": [NEW]})
    node.sent()
    assert node.record.fresh == {}
    assert node.ask(NEW) is BLACK


def test_a_clock_of_2020_gives_no_first_day_before_the_newest_time_of_the_store():
    """Row 68. The process's own day of a sighting bars no phone after NTP has set the clock."""
    node = Node(WITHIN)
    node.today = 18_300
    node.ask(NEW)
    state = Head(kind="devices", serial=1, generation=1, highest_serial=1, loaded_at="2026-11-30T10:00:00Z")
    node.index.switch("registered", state, image_of(EMPTY))
    assert node.ask(OLD) is GREY
    (sent, *_) = [
        np.frombuffer(each.keys, "<u8").tolist() for each in node.new.pop_sightings() if each.day == TODAY - 1
    ]
    assert device_key(OLD) in sent
    node.today = TODAY
    node.on_record(**{f"day{TODAY - 1}": [NEW, OLD]})
    node.sent()
    assert node.record.fresh == {}
    assert node.ask(NEW) is GREY


def test_a_device_is_sent_again_until_it_is_on_record():
    node = Node(WITHIN)
    node.ask(NEW)
    assert node.sent() == {"mme": [NEW]}
    again = [turn for turn in range(2 * AGAIN_TURNS + 1) if node.sent()]
    assert len(again) == 2
    node.on_record(**{f"day{TODAY}": [NEW]})
    assert not any(node.sent() for _ in range(2 * AGAIN_TURNS))


def test_waiting_devices_have_their_turns():
    """Some that are not on record for long do not keep others, which are, from being forgotten."""
    node = Node(WITHIN)
    waiting = {35 * 10**12 + number for number in range(COMPARED_PER_TURN)}
    for key in (*waiting, device_key(NEW)):
        node.new.add(key, "mme", "")
    node.on_record(**{f"day{TODAY}": [NEW]})
    assert len([*node.new.remove_recorded()]) == COMPARED_PER_TURN // COMPARED_AT_ONCE
    assert device_key(NEW) in node.record.fresh, "its turn comes next"
    node.sent()
    assert set(node.record.fresh) == waiting


def test_waiting_devices_are_compared_once_with_each_image():
    node = Node(WITHIN)
    waiting, new = ([f"35{group:06d}{n:06d}" for n in range(COMPARED_AT_ONCE)] for group in (1, 2))
    compared = []
    for devices in ([OLD], [OLD, *waiting], [OLD, *waiting, *new]):
        node.on_record(**{f"day{TODAY}": sorted(devices)})
        for device in (*waiting, *new):
            node.ask(device)
        compared.append([len([*node.new.remove_recorded()]) for _ in range(3)])
    assert compared == [[0, 0, 0], [2, 0, 0], [1, 0, 0]], "the check of a device compares it with the first image"
    assert not node.record.fresh


def test_a_device_that_is_queued_again_delays_no_other():
    node = Node(WITHIN)
    for device in (NEW, OLD):
        node.ask(device)
    node.on_record(**{f"day{TODAY}": [OLD]})
    node.today -= 1
    node.ask(NEW)
    node.sent()
    assert node.record.fresh == {device_key(NEW): TODAY - 1}


def test_a_device_that_is_rejected_in_a_pause_stays_forgotten():
    node = Node(WITHIN)
    others = {35 * 10**12 + number for number in range(COMPARED_AT_ONCE - 1)}
    for key in (*others, device_key(NEW)):
        node.new.add(key, "mme", "")
    node.on_record(**{f"day{TODAY}": [OLD]})
    pauses = node.new.remove_recorded()
    next(pauses)
    node.new.reject("mme", [device_key(NEW)])
    assert [*pauses] == []
    assert set(node.record.fresh) == others


def test_a_device_that_is_seen_daily_is_noted_once_per_period():
    node = Node(WITHIN)
    node.on_record(**{f"day{TODAY}": [NEW]})
    noted = 0
    for _ in range(64):
        node.today += 1
        node.ask(NEW)
        if node.sent():
            noted += 1
            node.on_record(**{f"day{TODAY}": [NEW]})
            node.sent()
    assert noted == 2


def test_a_day_that_is_ahead_is_put_right_by_the_next_check():
    node = Node(WITHIN)
    node.on_record(**{f"day{TODAY + 1}": [NEW]})
    assert node.ask(NEW) is GREY
    assert node.sent() == {"mme": [NEW]}
    node.today += 60
    assert node.ask(NEW) is GREY
    node.today += 1
    assert node.ask(NEW) is BLACK


def test_neither_a_probe_nor_an_explanation_is_a_sighting():
    node = Node(WITHIN, probes=frozenset({("s13", "probe")}))
    assert node.ask(NEW, peer="probe") is GREY
    found = answer(Question(NEW), node.policy, {}, node.index, now=datetime.now(UTC))
    assert (found.status, found.first_seen, found.until) == (GREY, "never", "2027-01-29")
    assert node.sent() == {}
    assert not node.record.fresh


@pytest.mark.parametrize(
    ("first", "device", "shown"),
    [(TODAY, NEW, ("2026-11-30", "2027-01-29")), (TODAY - 90, OLD, ("2026-09-01", "2026-10-31")), (WAS_LISTED, OLD, ("before it left a list", None))],
)  # fmt: skip
def test_an_explanation_has_first_day_and_end(first, device, shown):
    node = Node(WITHIN)
    node.on_record(**{f"day{first}": [device]})
    found = answer(Question(device), node.policy, {}, node.index, now=datetime.now(UTC))
    assert (found.first_seen, found.until) == shown
    assert "first seen: " + shown[0] in found.as_text()
    assert found.as_json()["until"] == shown[1]


class TestFloods:
    """Above the limit of a peer: answered, counted, and not recorded. Conformance row 64."""

    def test_the_limit_is_per_peer_and_day(self):
        node = Node(WITHIN, per_peer=2)
        devices = [f"{35000000000000 + number}" for number in range(5)]
        assert {node.ask(device) for device in devices} == {GREY}
        assert node.ask(NEW, peer="other") is GREY
        assert node.sent() == {"mme": devices[:2], "other": [NEW]}
        assert node.new.unrecorded == {"mme": 3}
        node.today += 1
        node.ask(devices[4])
        assert node.sent() == {"mme": [devices[4]]}

    def test_a_second_peer_or_a_second_subscriber_confirms_a_device(self):
        node = Node(WITHIN, per_peer=1)
        node.ask(OLD)
        for device in (NEW, WAITING, "35000000000009"):
            node.ask(device)
            node.ask(device)
        assert node.sent() == {"mme": [OLD]}
        node.ask(NEW, imsi="262010000000002")
        node.ask(WAITING, imsi="262010000000002")
        node.ask("35000000000009", peer="other")
        assert node.sent() == {"mme": [NEW], "other": ["35000000000009"]}

    def test_invented_devices_do_not_push_out_the_first_check_of_an_honest_phone(self):
        node = Node(WITHIN, per_peer=100)
        invented = iter(range(35 * 10**12, 36 * 10**12))
        for _ in range(100):
            node.new.add(next(invented), "mme", "")
        node.new.add(device_key(NEW), "mme", "262010000000001")
        for _ in range(100_000):
            node.new.add(next(invented), "mme", "")
        node.new.add(device_key(OLD), "mme", "262010000000001")
        assert len(node.record.fresh) == 100
        for device in (NEW, OLD):
            node.new.add(device_key(device), "mme", "262010000000002")
        assert {device_key(NEW), device_key(OLD)} < node.record.fresh.keys()
        node.today += 1
        node.new.add(next(invented), "mme", "")
        assert len(node.record.fresh) == 103, "the next day has room of its own"

    def test_what_the_node_rejects_is_forgotten_until_the_next_day(self):
        node = Node(WITHIN)
        node.ask(NEW)
        node.sent()
        node.new.reject("mme", [device_key(NEW)])
        assert node.ask(NEW) is GREY
        assert node.sent() == {}
        assert not node.record.fresh
        assert node.new.unrecorded == {"mme": 1}
        node.today += 1
        node.ask(NEW)
        assert node.sent() == {"mme": [NEW]}


def test_a_record_that_is_not_configured_is_a_fault_of_the_caller():
    with pytest.raises(KeyError):
        Checker(PolicySettings(rules=(WITHIN,)), Index({}), now=datetime.now(UTC))
