"""Journal of a node: its lines are on the disk, its files have limits, and the verification names each line that was altered."""

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from simulated.history import faults_of, simulate

from eir.lists.log import journal as journals
from eir.lists.log.journal import (
    FEED,
    MAIN,
    REJECTED,
    Journal,
    JournalError,
    JournalEvent,
    decode_line,
    lines_of,
    paths_of,
    read_events,
)
from eir.lists.log.journal_faults import journal_faults

NOW = datetime(2026, 12, 2, 8, tzinfo=UTC)
LOAD = JournalEvent(time="2026-12-02T08:00:00Z", who="eir@host", what="load", list="stolen", serial=7)
ROW = JournalEvent(
    time="2026-12-02T08:00:00Z", who="agency", what="feed", list="own", rows=({"imei": "00101099000001"},)
)
REFUSED = JournalEvent(
    time="2026-12-02T08:00:00Z", who="eir@host", what="refuse", outcome="refused", detail="serial: 6 is not above 7"
)  # fmt: skip


class Lines(list):
    """Log lines of a journal."""

    def __call__(self, event, level="info", **fields):
        self.append((event, level, fields))


@pytest.fixture
def log():
    return Lines()


def journal_at(folder, log, keep=timedelta(days=3650), feed_max_bytes=1 << 20):
    return Journal(folder / "journal", keep=keep, max_bytes=1 << 20, feed_max_bytes=feed_max_bytes, report=log)


@pytest.fixture
def opened(tmp_path, log):
    """Open the journal of the test, as often as needed; `opened(keep=…)` closes the one before."""
    made = []

    def open_journal(keep=timedelta(days=3650), feed_max_bytes=1 << 20):
        for before in made:
            before.close()
        made.append(journal_at(tmp_path, log, keep, feed_max_bytes))
        made[-1].open()
        return made[-1]

    yield open_journal
    for journal in made:
        journal.close()


@pytest.fixture
def small_files(monkeypatch):
    """Files of a few lines."""
    monkeypatch.setattr(journals, "MAIN_FILE_BYTES", 1_000)
    monkeypatch.setattr(journals, "REJECTED_BYTES_MAX", 8_000)
    return {"feed_max_bytes": 8_000}


def faults(journal):
    return list(journal_faults(journal.folder))


def rewrite(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


class TestWriting:
    def test_events_are_read_as_they_were_written(self, opened):
        events = [replace(LOAD, serial=serial, detail="a\u2028b\nc") for serial in range(3)]
        journal = opened()
        end = journal.append(MAIN, *events)
        assert end.number == 3
        assert list(read_events(journal.folder)) == events
        assert len(paths_of(journal.folder, MAIN)[0].read_text().splitlines()) == 3
        assert faults(journal) == []

    def test_a_journal_goes_on_after_each_end(self, opened, small_files):
        for serial in range(30):
            opened(**small_files).append(MAIN, replace(LOAD, serial=serial))
        journal = opened()
        assert [event.serial for event in read_events(journal.folder)] == [*range(30)]
        assert len(paths_of(journal.folder, MAIN)) > 3
        assert faults(journal) == []

    @pytest.mark.parametrize("kept", range(1, 200, 11))
    def test_a_line_that_a_crash_cut_short_is_removed(self, opened, log, kept):
        journal = opened()
        journal.append(MAIN, LOAD)
        journal.append(MAIN, replace(LOAD, serial=8))
        journal.close()
        path = paths_of(journal.folder, MAIN)[0]
        first, second = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(first + second[: min(kept, len(second) - 1)])
        journal = opened()
        assert log[0][:2] == ("journal_repaired", "warning")
        journal.append(MAIN, replace(LOAD, serial=9))
        assert [event.serial for event in read_events(journal.folder)] == [7, 9]
        assert faults(journal) == []

    def test_a_damaged_last_line_stays_and_the_journal_goes_on_in_a_new_file(self, opened, log):
        journal = opened()
        journal.append(MAIN, LOAD, replace(LOAD, serial=8))
        journal.close()
        path = paths_of(journal.folder, MAIN)[0]
        path.write_bytes(path.read_bytes()[:-3] + b"?}\n")
        journal = opened()
        assert [(event, level) for event, level, _ in log] == [("journal_damaged", "error")]
        journal.append(MAIN, replace(LOAD, serial=9))
        assert [event.serial for event in read_events(journal.folder)] == [7, 9]
        assert f"{path.name}:2" in faults(journal)[0]

    def test_one_process_writes(self, opened, tmp_path, log):
        opened()
        with pytest.raises(JournalError, match="another process writes the journal"):
            journal_at(tmp_path, log).open()

    def test_a_full_disk_leaves_the_journal_as_it_was(self, opened, monkeypatch):
        journal = opened()
        journal.append(MAIN, LOAD)

        def write_half(descriptor, content, write=journals.os.write):
            write(descriptor, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(journals.os, "write", write_half)
            with pytest.raises(JournalError, match="No space left"):
                journal.append(MAIN, replace(LOAD, serial=8))
        journal.append(MAIN, replace(LOAD, serial=9))
        assert [event.serial for event in read_events(journal.folder)] == [7, 9]
        assert faults(journal) == []


class TestLimits:
    def test_a_flood_of_rows_and_rejections_displaces_no_load(self, opened, small_files):
        journal = opened(**small_files)
        for number in range(300):
            if number % 100 == 0:
                journal.append(MAIN, replace(LOAD, serial=number))
            journal.append(FEED, replace(ROW, detail=str(number)))
            journal.reject(replace(REFUSED, who=f"sender {number}"))
        events = read_events(journal.folder)
        assert [event.serial for event in events if event.what == "load"] == [0, 100, 200]
        for series in (FEED, REJECTED):
            assert sum(path.stat().st_size for path in paths_of(journal.folder, series)) <= 9_000
        assert [event.detail for event in read_events(journal.folder, series=[FEED])][-1] == "299"
        assert faults(journal) == []

    def test_equal_rejections_of_a_day_are_one_event(self, opened):
        journal = opened()
        for number in range(50):
            journal.reject(
                replace(REFUSED, detail=f"serial: {number} is not above 99", time=f"2026-12-02T08:00:{number:02d}Z")
            )
        journal.reject(replace(REFUSED, time="2026-12-03T00:00:00Z"))
        journal.close()
        assert sum(len([*lines_of(path)]) for path in paths_of(journal.folder, REJECTED)) == 3
        first, second = read_events(journal.folder)
        assert (first.count, first.first, first.time) == (50, "2026-12-02T08:00:00Z", "2026-12-02T08:00:49Z")
        assert first.detail == "serial: 49 is not above 99"
        assert second.count == 1

    def test_old_files_are_deleted_and_recorded(self, opened):
        journal = opened(keep=timedelta(days=8))
        for day in range(30):
            at = NOW + timedelta(days=day)
            journal.append(MAIN, replace(LOAD, serial=day, time=at.strftime("%Y-%m-%dT%H:%M:%SZ")))
            journal.trim(at)
        serials = [event.serial for event in read_events(journal.folder)]
        assert serials == [*range(serials[0], 30)]
        assert 20 <= serials[0] <= 22
        assert faults(journal) == []
        paths_of(journal.folder, MAIN)[0].unlink()
        assert any("before this file are missing" in fault for fault in faults(journal))


class TestVerification:
    @pytest.fixture
    def journal(self, opened, small_files):
        journal = opened(**small_files)
        for number in range(60):
            journal.append(MAIN, replace(LOAD, serial=number))
            journal.append(FEED, replace(ROW, detail=str(number)))
        journal.close()
        assert faults(journal) == []
        return journal

    @pytest.mark.parametrize("series", [MAIN, FEED])
    @pytest.mark.parametrize("how", ["change", "remove", "insert", "reorder"])
    def test_each_altered_line_is_named_with_its_file(self, journal, series, how):
        chance = random.Random(f"{series} {how}")
        for path in paths_of(journal.folder, series)[:-1]:
            lines = [*lines_of(path)]
            at = chance.randrange(len(lines) - 1)
            altered = lines.copy()
            if how == "change":
                altered[at] = lines[at].replace(b"2026", b"2027")
            elif how == "remove":
                del altered[at]
            elif how == "insert":
                altered.insert(at, lines[at])
            else:
                altered[at : at + 2] = lines[at + 1], lines[at]
            rewrite(path, altered)
            assert any(
                fault.startswith((f"{path.name}:{at + 1}:", f"{path.name}:{at + 2}:")) for fault in faults(journal)
            )
            rewrite(path, lines)

    @pytest.mark.parametrize("series", [MAIN, FEED])
    def test_a_removed_file_is_named(self, journal, series):
        paths = paths_of(journal.folder, series)
        for path in paths[:-1]:
            content = path.read_bytes()
            path.unlink()
            assert any("missing" in fault for fault in faults(journal))
            path.write_bytes(content)
        assert faults(journal) == []

    def test_closed_rows_that_are_written_anew_with_right_digests_are_found(self, journal):
        """Somebody who can compute digests alters a row and all lines after it."""
        before = None
        for path in paths_of(journal.folder, FEED):
            lines = []
            for octets in lines_of(path):
                line, stated = decode_line(octets)
                event = replace(line.event, list="other") if before is None else line.event
                lines.append(journals.encode_line(line.number, before or stated, line.after, event))
                before = journals.sha256(lines[-1]).hexdigest()
            rewrite(path, lines)
        assert any("not the one that the series main records" in fault for fault in faults(journal))

    @pytest.mark.parametrize(
        "octets",
        [b"", b"[]", b"{}", b"[" * 100_000, b'{"line":1}', b'{"line":true,"before":"","after":0}', b"\xff",
         b'{"line":1,"before":"","after":0,"time":"","who":"","what":"","rows":[1]}',
         b'{"line":1,"before":"","after":0,"time":"","who":"","what":"","serial":"7"}',
         b'{"line":1,"before":"","after":0,"time":"","who":"","what":"","other":1}'],
    )  # fmt: skip
    def test_a_line_that_is_no_event_is_named(self, journal, octets):
        path = paths_of(journal.folder, MAIN)[0]
        rewrite(path, [octets, *[*lines_of(path)][1:]])
        assert faults(journal)[0].startswith(f"{path.name}:1: the line was changed")
        assert len(read_events(journal.folder, series=[MAIN])) == 59


class TestReading:
    def test_rows_and_rejections_are_between_the_loads_where_they_happened(self, opened):
        journal = opened()
        journal.append(MAIN, LOAD)
        journal.append(FEED, ROW)
        journal.reject(REFUSED)
        journal.append(MAIN, replace(LOAD, serial=8))
        journal.append(FEED, replace(ROW, list="other"))
        assert [event.what for event in read_events(journal.folder)] == ["load", "feed", "refuse", "load", "feed"]
        assert [event.what for event in read_events(journal.folder, limit=2)] == ["load", "feed"]
        assert [event.list for event in read_events(journal.folder, name="other")] == ["other"]
        assert read_events(journal.folder, since="2026-12-02T08:00:01Z") == []
        assert read_events(journal.folder.parent / "none") == []

    def test_the_newest_of_many_files(self, opened, small_files):
        journal = opened(**small_files)
        for serial in range(100):
            journal.append(MAIN, replace(LOAD, serial=serial))
        assert [event.serial for event in read_events(journal.folder, limit=20)] == [*range(80, 100)]


def test_a_line_is_bounded(opened):
    journal = opened()
    rows = tuple({"imei": "00101099000001", "reason": "x" * 200} for _ in range(10_000))
    journal.append(FEED, replace(ROW, rows=rows))
    (event,) = read_events(journal.folder)
    assert event.rows == ()
    assert json.loads(next(lines_of(paths_of(journal.folder, FEED)[0])))["list"] == "own"


@pytest.mark.long(short=["60"])
@pytest.mark.parametrize("days", [60, 365])
def test_days_of_a_feed_and_of_rejections_keep_each_load_rollback_and_trace(tmp_path, days):
    """The rows are to the size limit of the feed as 1,200 rows/s are in some hours. Each day the journal is opened again."""
    options = {"loads": 4, "rows": 30, "rejections": 5}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(journals, "MAIN_FILE_BYTES", 30_000)
        patched.setattr(journals.os, "fdatasync", lambda _: None)  # 2,000 flushes
        expected = simulate(tmp_path / "journal", days, feed_max_bytes=32_000, **options)
    assert len(expected) == days * 6
    assert faults_of(tmp_path / "journal", expected, feed_max_bytes=32_000) == []
    assert len(paths_of(tmp_path / "journal", MAIN)) > days / 40
