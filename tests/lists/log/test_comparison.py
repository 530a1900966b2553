"""Comparison of a node's journal with the store's log and with another node's journal; exports and witness files."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from eir.lists.log import journal as journals
from eir.lists.log.change import Change
from eir.lists.log.comparison import changes_of_journal, changes_of_log, differences, log_faults
from eir.lists.log.journal import (
    FEED,
    MAIN,
    Journal,
    JournalError,
    JournalEvent,
    paths_of,
    read_events,
    witness_paths,
)
from eir.lists.log.journal_export import (
    add_witness,
    export_journal,
    has_line,
    newest_line,
    restore_journal,
    unpack_journal,
)
from eir.lists.log.journal_faults import journal_faults
from eir.lists.log.node_journal import event_of
from eir.lists.log.reader import ChangeRows

NOW = datetime(2026, 12, 2, 8, tzinfo=UTC)


def chain(count, *, who="eir@host", after=None, what="load", fed=()):
    """Changes of a list, each after the one before. `fed`: generations of changes by a feed."""
    changes = [] if after is None else [after]
    for number in range(count):
        generation = changes[-1].generation + 1 if changes else 1
        before = {"before": changes[-1].digest} if changes else {}
        time = (NOW + timedelta(minutes=generation)).strftime("%Y-%m-%dT%H:%M:%SZ")
        changes.append(
            Change(
                generation=generation, time=time, who=who, what="feed" if generation in fed else what, base_id="" if number else "b", **before
            )
        )  # fmt: skip
    return changes if after is None else changes[1:]


def events(changes, name="own"):
    return [event_of(name, ChangeRows(change, None), ()) for change in changes]


@pytest.fixture
def journal_at(tmp_path):
    opened = []

    def open_journal(name, *lines, **limits):
        limits = {"keep": timedelta(days=3650), "max_bytes": 1 << 20, "feed_max_bytes": 1 << 20} | limits
        journal = Journal(tmp_path / name, report=lambda *_, **__: None, **limits)
        journal.open()
        opened.append(journal)
        for event in lines:
            journal.append_event(event)
        return journal

    yield open_journal
    for journal in opened:
        journal.close()


def exported(journal, path):
    with path.open("w+b") as out:
        export_journal(journal.folder, out)
    return path


def compared(journal, changes, name="own"):
    return [*differences(changes_of_journal(journal.folder), {name: changes_of_log(changes)}, "the store")]


class TestStore:
    """The store's log under a journal."""

    def test_a_log_that_the_journal_has_seen_is_equal(self, journal_at):
        changes = chain(9)
        journal = journal_at("journal", *events(changes))
        assert compared(journal, changes) == []
        assert compared(journal, changes[4:]) == []  # the log is shorter
        assert compared(journal, [*changes, *chain(2, after=changes[-1])]) == []  # the node has not read these yet
        assert [*log_faults("own", changes, changes[-1].digest)] == []

    def test_a_change_that_was_written_anew_differs(self, journal_at):
        changes = chain(9)
        journal = journal_at("journal", *events(changes))
        forged = [*changes[:4], *chain(5, after=changes[3], who="thief")]
        assert [*log_faults("own", forged, forged[-1].digest)] == []  # somebody who computes all digests
        assert compared(journal, forged)[0] == "list own: change 5 differs from that of the store"

    @pytest.mark.parametrize("how", ["change", "remove", "head", "all"])
    def test_a_log_that_was_changed_is_no_chain(self, how):
        changes, digest = chain(9), chain(9)[-1].digest
        if how == "change":
            changes[4] = replace(changes[4], who="thief")
        elif how == "remove":
            del changes[4]
        elif how == "head":
            del changes[-1]
        else:
            changes.clear()
        assert len([*log_faults("own", changes, digest)]) == 1

    def test_a_change_that_the_journal_lacks_is_named(self, journal_at):
        changes = chain(9)
        journal = journal_at("journal", *events(changes[:4] + changes[5:]))
        assert compared(journal, changes) == ["list own: change 5 is missing in the journal"]

    def test_lost_changes_of_a_failover_are_no_difference_once_they_are_recorded(self, journal_at):
        changes = chain(9)
        stored = [*changes[:6], *chain(2, after=changes[5], who="other")]
        fork = JournalEvent(time="2026-12-02T09:00:00Z", who="eir", what="fork", list="own")
        journal = journal_at("journal", *events(changes))
        assert "list own: change 7 differs from that of the store" in compared(journal, stored)
        for event in (fork, *events(stored[6:])):
            journal.append_event(event)
        assert compared(journal, stored) == []

    def test_a_flushed_store_that_was_written_back_is_no_difference(self, journal_at):
        changes = chain(9)
        heal = Change(generation=10, time="2026-12-02T09:00:00Z", who="eir", what="heal", continues=changes[-1].digest)
        journal = journal_at("journal", *events([*changes, heal]))
        assert [*log_faults("own", [heal], heal.digest)] == []
        assert compared(journal, [heal]) == []
        restored_before = replace(heal, before=changes[4].digest)
        journal = journal_at("other", *events([*changes, restored_before]))
        assert compared(journal, [*changes[:5], restored_before]) == []

    def test_rows_of_a_feed_that_were_deleted_by_size_are_no_difference(self, journal_at):
        changes = chain(400, fed=range(2, 399))
        journal = journal_at("journal", *events(changes), feed_max_bytes=16_000)
        assert len(read_events(journal.folder, series=[FEED])) < 300
        assert compared(journal, changes) == []
        other = journal_at("other", *events(changes[:398] + changes[399:]), feed_max_bytes=16_000)
        assert compared(other, changes) == ["list own: change 399 is missing in the journal"]


class TestNodes:
    """Journals of two nodes."""

    def test_a_node_that_was_down_for_a_week_has_no_difference(self, journal_at, tmp_path):
        changes = chain(600)
        gap = JournalEvent(time="2026-12-02T09:00:00Z", who="eir", what="gap", list="own")
        ours = journal_at("ours", *events(changes))
        theirs = journal_at("theirs", *events(changes[:100]), gap, *events(changes[500:]))
        caught_up = journal_at("caught-up", *events(changes[:100]), *events(changes[100:]))
        for other in (theirs, caught_up):
            unpack_journal(exported(other, tmp_path / "export"), tmp_path / f"of-{other.folder.name}")
            assert [*journal_faults(tmp_path / f"of-{other.folder.name}")] == []
            seen = changes_of_journal(tmp_path / f"of-{other.folder.name}")
            assert [*differences(changes_of_journal(ours.folder), seen, "theirs")] == []
        without_note = journal_at("silent", *events(changes[:100] + changes[500:]))
        found = [*differences(changes_of_journal(ours.folder), changes_of_journal(without_note.folder), "theirs")]
        assert len(found) == 400
        assert found[0] == "list own: change 101 is missing in theirs"

    def test_an_export_has_the_same_files(self, journal_at, tmp_path, monkeypatch):
        monkeypatch.setattr(journals, "MAIN_FILE_BYTES", 3_000)
        journal = journal_at("journal", *events(chain(40, fed=range(10, 20))))
        unpack_journal(exported(journal, tmp_path / "export"), tmp_path / "unpacked")
        for path in (path for series in journals.SERIES for path in paths_of(journal.folder, series)):
            assert (tmp_path / "unpacked" / path.name).read_bytes() == path.read_bytes()
        assert newest_line(tmp_path / "unpacked") == journal.ends[MAIN].digest

    @pytest.mark.parametrize("content", [b"", b"{}\n", b'{"journal":"../main-000000000001.jsonl"}\n', b"\xff", b'{"journal":7}\n',
                                         b'{"journal":"main-000000000001.jsonl"}\n' * 2])  # fmt: skip
    def test_another_file_is_no_export(self, tmp_path, content):
        (tmp_path / "export").write_bytes(content)
        with pytest.raises(JournalError, match="export"):
            unpack_journal(tmp_path / "export", tmp_path / "unpacked")

    def test_an_altered_export_is_found(self, journal_at, tmp_path):
        path = exported(journal_at("journal", *events(chain(9))), tmp_path / "export")
        lines = path.read_bytes().splitlines(keepends=True)
        at = next(at for at, line in enumerate(lines) if b'"line":4' in line)
        path.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
        unpack_journal(path, tmp_path / "unpacked")
        assert [*journal_faults(tmp_path / "unpacked")]


class TestWitness:
    """An export that is kept beside a journal."""

    def test_its_changes_are_shown_where_the_journal_has_none(self, journal_at, tmp_path):
        changes = chain(9)
        path = exported(
            journal_at("theirs", *events(changes[:7], "own"), *events(chain(2), "other")), tmp_path / "export"
        )
        ours = journal_at("ours", *events(changes[5:]))
        ours.append_event(add_witness(path, ours.folder, who="eir@host", detail="9 changes"))
        shown = read_events(ours.folder)
        assert [event.generation for event in shown if event.list == "own"] == [*range(1, 10)]
        assert {event.list for event in shown} == {"own", "other", None}
        assert [event.generation for event in read_events(ours.folder, name="own", limit=2)] == [8, 9]
        assert len(read_events(ours.folder, witnesses=False)) == 5
        assert [*journal_faults(ours.folder)] == []
        (witness,) = witness_paths(ours.folder)
        content = witness.read_bytes()
        witness.write_bytes(content.replace(b"eir@host", b"eir@hose"))
        assert [*journal_faults(ours.folder)] == [f"{witness.name}: the file was changed"]
        witness.unlink()
        assert [*journal_faults(ours.folder)] == [f"{witness.name}: the file is missing"]

    def test_it_is_deleted_by_age(self, journal_at, tmp_path):
        path = exported(journal_at("theirs", *events(chain(3))), tmp_path / "export")
        ours = journal_at("ours", keep=timedelta(days=8))
        ours.append_event(add_witness(path, ours.folder, who="eir@host", detail=""))
        ours.trim(datetime.now(UTC) + timedelta(days=7))
        assert len(witness_paths(ours.folder)) == 1
        ours.trim(datetime.now(UTC) + timedelta(days=9))
        assert witness_paths(ours.folder) == []
        assert [*journal_faults(ours.folder)] == []

    def test_a_restored_journal_goes_on(self, journal_at, tmp_path):
        theirs = journal_at("theirs", *events(chain(3)))
        path = exported(theirs, tmp_path / "export")
        folder = tmp_path / "ours"
        assert restore_journal(path, folder)
        assert not restore_journal(path, folder)  # it has lines now
        ours = journal_at("ours", *events(chain(2, after=chain(3)[-1])))
        assert [event.generation for event in read_events(folder)] == [1, 2, 3, 4, 5]
        assert [*journal_faults(folder)] == []
        assert has_line(folder, theirs.ends[MAIN].digest)
        assert not has_line(theirs.folder, ours.ends[MAIN].digest)
