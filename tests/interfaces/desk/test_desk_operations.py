"""Operations of the desk on real stores: rows with entity tags, undo of an own change, files, the last changes, and searches."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from eir.checks.settings import PolicySettings, Rule, Status
from eir.errors import IdentifierError, ReleaseRefused, silent
from eir.interfaces.clients import RequestRefused
from eir.interfaces.desk.operations import (
    DeskOperations,
    DeskUser,
    Precondition,
    RowValues,
    tag_of,
    user_text,
)
from eir.interfaces.interface import NodeCalls
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.journal import Journal
from eir.lists.log.node_journal import NodeJournal
from eir.lists.log.reader import ChangeRows, read_rows
from eir.lists.record.settings import PAIRS, SUBSCRIBERS, ListSettings
from eir.lists.stores.open import JOURNAL
from eir.lists.stores.sqlite import SqliteStore

IMEI, OTHER, TAC, IMSI = "001015000000001", "001015000000019", "00101500", "001010000000001"
LISTS = {
    "own": ListSettings(name="own", local=True, change_min=2_000_000),
    "bound": ListSettings(name="bound", local=True, kind=PAIRS),
    "sims": ListSettings(name="sims", local=True, kind=SUBSCRIBERS),
    "stolen": ListSettings(name="stolen"),
}
RULES = PolicySettings(rules=(Rule(list="own", answer=Status.BLACKLISTED),))
ANNA = DeskUser("anna", "change", ("own", "bound", "sims"), user_text("anna", "127.0.0.1", "host"))
BERT = DeskUser("bert", "change", ("own",), user_text("bert", "127.0.0.1", "host"))
VIEWER = DeskUser("vera", "view", ("own",), user_text("vera", "127.0.0.1", "host"))


class Desk:
    """Operations on a store of their own, with a journal that records each change as the follower does."""

    def __init__(self, folder):
        self.store = SqliteStore(folder / "lists.sqlite")
        (folder / JOURNAL).mkdir()
        self.journal = NodeJournal(
            Journal(folder / JOURNAL, keep=timedelta(days=1), max_bytes=1 << 20, feed_max_bytes=1 << 20, report=silent)
        )
        self.events = []
        local = LocalWriter(self.store, LISTS, now=lambda: datetime.now(UTC), is_recorded=self.is_recorded)
        node = NodeCalls(self.is_recorded, self.record_event, self.record_event)
        self.desk = DeskOperations(local, ListReader(self.store), node, {"+15550100": IMSI}.get)
        self.desk.apply(
            SimpleNamespace(lists=LISTS, lists_and_record=LISTS, policy=RULES, state=folder, sightings=None, layouts={})
        )

    async def is_recorded(self, name, digest):
        entries = await self.store.log(name, 0)
        head = (await self.store.heads())[name]
        changes = [
            await read_rows(self.store, name, entry) if entry.rows else ChangeRows(entry.change, None)
            for entry in entries
        ]
        self.journal.record(name, changes, head.reasons)
        return self.journal.has(name, digest)

    async def record_event(self, event):
        self.events.append(event)


@pytest.fixture
async def made(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    await desk.store.close()


@pytest.fixture
def desk(made):
    return made.desk


async def refused(work):
    with pytest.raises(RequestRefused) as caught:
        await work
    return caught.value.status, caught.value.reason


async def test_a_row_is_added_replaced_and_removed(desk):
    added = await desk.write_row(ANNA, "own", IMEI, RowValues("stolen", until="2099-01-01", case="A-17"))
    assert (added.created, added.changed, added.row["reason"], added.row["until"]) == (
        True, True, "stolen", "2099-01-02T00:00:00Z",
    )  # fmt: skip
    assert await desk.row("own", IMEI) == added.row
    again = await desk.write_row(ANNA, "own", IMEI, RowValues("stolen", until="2099-01-01"))
    assert (again.created, again.changed) == (False, False)
    assert (await desk.write_row(ANNA, "own", IMEI, RowValues("lost"))).row["reason"] == "lost"
    (first, second) = await desk.changes()
    assert first["who"] == "anna at 127.0.0.1 by the desk of host"
    assert "case A-17" in first["detail"]
    assert "case" not in second["detail"]
    assert (await desk.remove_row(ANNA, "own", IMEI, RowValues("found"))).changed
    assert not (await desk.remove_row(ANNA, "own", IMEI, RowValues("found"))).changed
    assert await refused(desk.row("own", IMEI)) == (404, "no_entry")


@pytest.mark.parametrize(("name", "identifier"), [("own", TAC), ("bound", f"{IMEI}+{IMSI}"), ("sims", IMSI)])
async def test_each_kind_of_list_has_its_identifiers(desk, name, identifier):
    added = await desk.write_row(ANNA, name, identifier, RowValues("stolen"))
    assert added.row["id"].replace("+", "")[:8] == identifier[:8]
    assert await desk.row(name, identifier) == added.row
    with pytest.raises(IdentifierError):
        await desk.write_row(ANNA, name, "12", RowValues("stolen"))


async def test_a_tag_prevents_a_change_of_a_row_that_another_user_changed(desk):
    first = await desk.write_row(ANNA, "own", IMEI, RowValues("stolen"), expected=Precondition(is_absent=True))
    tag = tag_of(first.row)
    absent = Precondition(is_absent=True)
    assert await refused(desk.write_row(ANNA, "own", IMEI, RowValues("x"), expected=absent)) == (412, "precondition")
    await desk.write_row(BERT, "own", IMEI, RowValues("lost"), expected=Precondition(tag))
    assert await refused(desk.write_row(ANNA, "own", IMEI, RowValues("x"), expected=Precondition(tag))) == (
        412,
        "precondition",
    )
    assert await refused(desk.remove_row(ANNA, "own", IMEI, RowValues("x"), expected=Precondition(tag))) == (
        412,
        "precondition",
    )
    assert (await desk.row("own", IMEI))["reason"] == "lost"


async def test_who_may_not_change_a_list_is_refused(desk):
    for user, name in ((VIEWER, "own"), (BERT, "sims"), (ANNA, "stolen")):
        assert (await refused(desk.write_row(user, name, IMEI, RowValues("x"))))[0] == 403
        assert (await refused(desk.remove_row(user, name, IMEI, RowValues("x"))))[0] == 403
    assert await refused(desk.write_row(ANNA, "none", IMEI, RowValues("x"))) == (404, "no_list")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (RowValues(""), "refused"), (RowValues("x" * 300), "refused"), (RowValues("x", until="2001-01-01"), "refused"), (RowValues("x", until="soon"), "time"),
        (RowValues("x", case="a\nb"), "case"), (RowValues("x", case="a" * 65), "case"), (RowValues("x", begin="2099-02-01", until="2099-01-01"), "refused"),
    ],
)  # fmt: skip
async def test_wrong_values_change_nothing(desk, values, reason):
    assert await refused(desk.write_row(ANNA, "own", IMEI, values)) == (422, reason)
    assert await desk.changes() == []


async def test_the_author_undoes_a_change_while_its_rows_are_as_it_left_them(desk):
    await desk.write_row(ANNA, "own", IMEI, RowValues("stolen", until="2099-01-01"))
    before = await desk.row("own", IMEI)
    await desk.write_row(ANNA, "own", IMEI, RowValues("lost"))
    await desk.write_row(BERT, "own", OTHER, RowValues("stolen"))
    assert await refused(desk.undo(ANNA, "own", 3)) == (403, "author")
    assert await refused(desk.undo(ANNA, "own", 9)) == (404, "no_change")
    assert await refused(desk.undo(ANNA, "own", 1)) == (409, "changed")
    await desk.undo(ANNA, "own", 2)
    assert await desk.row("own", IMEI) == before
    assert (await desk.row("own", OTHER))["reason"] == "stolen"
    await desk.undo(ANNA, "own", 1)
    assert await refused(desk.row("own", IMEI)) == (404, "no_entry")
    assert "undo of change 1" in (await desk.changes())[-1]["detail"]
    await desk.remove_row(BERT, "own", OTHER, RowValues("found"))
    await desk.undo(BERT, "own", 6)
    assert (await desk.row("own", OTHER))["reason"] == "stolen"


async def test_a_file_is_shown_before_it_is_added(desk):
    content = f"imei,reason\n{IMEI},lost\n{OTHER},\nnonsense,\n".encode()
    found = desk.parse_file(ANNA, "own", content, "rows.csv")
    assert any("rows.csv:4" in each for each in found.warnings), found.warnings
    report = await desk.add_file(ANNA, "own", found, RowValues("stolen", case="B-2"), dry_run=True)
    assert (report.come, report.dry_run, await desk.changes()) == (2, True, [])
    await desk.add_file(ANNA, "own", found, RowValues("stolen", case="B-2"), dry_run=False)
    assert [(await desk.row("own", each))["reason"] for each in (IMEI, OTHER)] == ["lost", "stolen"]
    (change,) = await desk.changes()
    assert ("case B-2" in change["detail"], len(change["rows"])) == (True, 2)
    await desk.undo(ANNA, "own", 1)
    assert await refused(desk.row("own", OTHER)) == (404, "no_entry")
    with pytest.raises(ReleaseRefused, match="no row"):
        desk.parse_file(ANNA, "own", b"imei\n", "rows.csv")
    with pytest.raises(RequestRefused):
        desk.parse_file(VIEWER, "own", content, "rows.csv")


async def test_a_search_shows_answer_rows_and_changes_and_is_recorded_if_it_names_a_subscriber(made, desk):
    await desk.write_row(ANNA, "own", IMEI, RowValues("stolen"))
    await desk.write_row(ANNA, "bound", f"{OTHER}+{IMSI}", RowValues("owner"))
    found = await desk.find(VIEWER, IMEI)
    assert (found["answer"]["status"], found["answer"]["reason"], found["checks"]) == ("blacklisted", "stolen", [])
    ((row,), (change,)) = found["rows"], found["changes"]
    assert (row["list"], row["reason"], row["changeable"], change["change"]) == ("own", "stolen", False, 1)
    assert made.events == []
    for text in (IMSI, "+15550100"):
        found = await desk.find(ANNA, "", text)
        ((row,),) = (found["rows"],)
        assert (row["list"], row["id"], row["changeable"], found["answer"]) == (
            "bound",
            f"{OTHER[:14]}+{IMSI}",
            True,
            None,
        )
    assert [(event.what, event.detail.rpartition(" ")[2]) for event in made.events] == [
        ("search", IMSI), ("search", "+15550100"),
    ]  # fmt: skip
    assert await refused(desk.find(ANNA, "", "+15550199")) == (404, "number")
    assert await refused(desk.find(ANNA, "", "12")) == (422, "identifier")
    with pytest.raises(IdentifierError):
        await desk.find(ANNA, "12")
    assert [each["name"] for each in await desk.lists(BERT) if each["changeable"]] == ["own"]


async def test_a_search_for_no_subscriber_is_recorded_in_few_characters(made, desk):
    for text in ("9" * 100_000, "+" + "9" * 100_000, "x" * 100_000):
        with pytest.raises((RequestRefused, IdentifierError)):
            await desk.find(ANNA, "", text)
    assert [len(event.detail) < 100 for event in made.events] == [True] * 3
