"""A node's journal: events from changes of its lists, and the status that the node shows of it."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from eir.device import device_key, imsi_key
from eir.errors import silent
from eir.lists.log.change import Change, Head, utc_text
from eir.lists.log.journal import (
    FEED,
    MAIN,
    REFUSED,
    REJECTED,
    ROWS_MAX,
    Journal,
    JournalBusy,
    JournalEvent,
    read_events,
)
from eir.lists.log.journal_faults import journal_faults
from eir.lists.log.node_journal import NodeJournal, event_of
from eir.lists.log.reader import ChangeRows
from eir.lists.table.codec import encode_change
from eir.lists.table.columns import NO_ROWS, WHOLE, rows_of

NOW = datetime.now(UTC)
REASONS = ("", "stolen", "IoT Device")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def opened(folder):
    made = []

    def journal():
        made.append(
            NodeJournal(
                Journal(folder, keep=timedelta(days=30), max_bytes=1 << 20, feed_max_bytes=1 << 20, report=silent),
                "node",
            )
        )
        return made[-1]

    yield journal
    for each in made:
        each.journal.close()


def change(generation=1, added=NO_ROWS, removed=NO_ROWS, **fields):
    given = {
        "time": utc_text(NOW),
        "who": "eir@host",
        "what": "load",
        "kind": "devices",
        "serial": generation,
        "added": len(added),
        "removed": len(removed),
    }
    return ChangeRows(Change(generation=generation, **given | fields), list(encode_change(added, removed)))


def test_a_change_is_recorded_once_with_its_rows_also_by_the_next_process(opened, folder):
    key = device_key("00101099000001")
    first = change(1, rows_of([key], reasons=1, ends=1_800_000_000, days=20_000), rows_of([WHOLE | 35209900]))
    journal = opened()
    journal.record("own", [first], REASONS)
    journal.record("own", [first, change(2)], REASONS)
    journal.journal.close()
    after = opened()
    after.record("own", [change(2), change(3)], REASONS)
    events = read_events(folder)
    assert [event.generation for event in events] == [1, 2, 3]
    assert events[0].rows == (
        {"effect": "removed", "tac": "35209900"},
        {"effect": "added", "imei": "00101099000001", "reason": "stolen", "until": "2027-01-15T08:00:00Z", "date": "2024-10-04"},
    )  # fmt: skip
    assert (events[0].change, events[0].list) == (first.change.digest, "own")
    assert after.has("own", first.change.digest)
    assert not after.has("other", first.change.digest)
    assert list(journal_faults(folder)) == []


@pytest.mark.parametrize(
    ("kind", "keys", "columns", "row"),
    [
        ("subscribers", [imsi_key("001010123456789")], {}, {"imsi": "001010123456789"}),
        ("pairs", [device_key("00101099000001")], {"seconds": imsi_key("001010123456789")}, {"imei": "00101099000001", "imsi": "001010123456789"}),
        ("device_types", [35209900 * 1_000_000], {"seconds": 7, "reasons": 2}, {"tac": "35209900", "device_type": "IoT Device"}),
        ("devices", [device_key("A0000012345678")], {"reasons": 9}, {"imei": "A0000012345678", "reason": "other"}),
    ],
)  # fmt: skip
def test_a_row_has_the_columns_of_its_kind_of_list(kind, keys, columns, row):
    each = change(1, rows_of(keys, **columns), kind=kind)
    assert event_of("own", each, REASONS).rows == ({"effect": "added"} | row,)


def test_long_changes_and_those_of_learned_lists_have_no_rows():
    rows = rows_of(range(ROWS_MAX + 1))
    assert event_of("own", change(1, rows), REASONS).rows == ()
    assert event_of("seen", change(1, rows_of([1]), kind="first_seen", what="learn"), REASONS).rows == ()


def test_rows_of_a_feed_and_learned_batches_go_beside_the_main_series(opened, folder):
    opened().record("own", [change(1, what="feed"), change(2, what="learn"), change(3)], REASONS)
    assert [event.what for event in read_events(folder, series=[FEED])] == ["feed", "learn"]
    assert [event.what for event in read_events(folder, series=[MAIN])] == ["load"]


def test_outcomes_are_those_of_releases_and_of_lifted_limits(opened):
    journal = opened()
    forced = change(2, lifted=("growth",), what="add")
    journal.record("own", [change(1, what="add"), forced, change(3, what="reset-serial")], REASONS)
    journal.record("stolen", [change(1), change(2, what="rollback")], REASONS)
    refused = JournalEvent(
        time=utc_text(NOW),
        who="inbox",
        what="refuse",
        outcome=REFUSED,
        list="stolen",
        detail="serial: 1 is not above 2",
    )
    for _ in range(3):
        journal.record_event(refused)
    counted = {("own", "forced"): 2, ("stolen", "accepted"): 1, ("stolen", REFUSED): 3}
    assert journal.status({}).outcomes == counted
    assert journal.status({}).last["stolen", REFUSED] == refused.time
    journal.journal.close()
    again = opened()
    again.open()
    assert again.status({}).outcomes == counted
    assert [event.list for event in again.recent()] == ["own"] * 3 + ["stolen"] * 3  # equal rejections are one


def test_a_list_whose_newest_change_is_missing_is_unrecorded(opened):
    journal, made = opened(), change(1)
    head = Head(digest=made.change.digest)
    assert journal.status({"own": head}).unrecorded == ["own"]
    journal.record("own", [made], REASONS)
    assert journal.status({"own": head}).unrecorded == []


def test_a_fork_is_a_difference_for_a_day(opened):
    journal = opened()
    journal.record_gap("own", "gap", Head(generation=1), Head(generation=9))
    assert not journal.status({}).differs
    old = utc_text(NOW - timedelta(days=2))
    journal.record_event(JournalEvent(time=old, who="node", what="fork", list="own"))
    assert not journal.status({}).differs
    journal.record_gap("own", "fork", Head(generation=1), Head(generation=2))
    assert journal.status({}).differs
    journal.journal.close()
    again = opened()
    again.open()
    assert again.status({}).differs


def test_a_damaged_file_is_a_difference(opened, folder):
    journal = opened()
    journal.record("own", [change(1)], REASONS)
    journal.journal.close()
    (path,) = folder.glob("main-*")
    path.write_bytes(path.read_bytes().replace(b'"load"', b'"loaf"').replace(b'"line":1', b'"line":7'))
    again = opened()
    again.open()
    assert again.status({}).differs


def test_forks_wait_while_another_process_writes_and_events_are_refused(opened, folder):
    other = opened()
    other.open()
    journal = opened()
    for number in range(3):
        with pytest.raises(JournalBusy):
            journal.record_gap(f"list-{number}", "fork", Head(), Head())
    with pytest.raises(JournalBusy):
        journal.record_event(JournalEvent(time=utc_text(NOW), who="ops", what="reload"))
    other.journal.close()
    journal.maintain()
    assert [(event.what, event.list) for event in read_events(folder)] == [
        ("fork", f"list-{number}") for number in range(3)
    ]
    assert journal.status({}).bytes[MAIN] > journal.status({}).bytes[REJECTED]


def test_threads_that_open_it_at_once_write_one_journal(opened, folder):
    journal = opened()
    with ThreadPoolExecutor(8) as threads:
        events = [
            JournalEvent(time=utc_text(NOW), who="ops", what="reload", detail=str(number)) for number in range(40)
        ]
        list(threads.map(journal.record_event, events))
    assert sorted(int(event.detail) for event in read_events(folder)) == list(range(40))
    assert list(journal_faults(folder)) == []
