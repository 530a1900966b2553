"""Operators' own entries: what the commands take, what they refuse, and that two operators never undo each other's work."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from follower import LogNode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_edits import LISTS, NOW, change, changes, edit, held, read, refused, times, undo, writer
from simulated.store_content import until

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.errors import GenerationConflict, IdentifierError, NothingToRollBack, StoreError
from eir.lists.changes.local_entries import ENTRIES_MAX, parse_entries
from eir.lists.changes.local_rows import ADD, REMOVE, RowsEdit, rows_update, write_edit
from eir.lists.changes.rows_file import parse_file_rows
from eir.lists.follow.list_reader import ListReader
from eir.lists.follow.pauses import Pauses
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import ListSettings
from eir.lists.stores import sqlite as sqlite_store
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.columns import rows_of

NOW_S, DAY = int(NOW.timestamp()), 86_400
IMEI, OTHER, MEID, TAC = "35123456000001", "35123456000002", "A0000000000001", "35999999"
SIM, OTHER_SIM = "001010000000001", "001010000000002"


def file(header, *rows):
    return "".join(f"{row}\n" for row in (header, *rows)).encode()


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "log.sqlite")
    yield opened
    await opened.close()


async def answer(store, name, imei, imsi="", now=NOW):
    rules = (Rule(list=name, answer=Status.BLACKLISTED),)
    return await explain(
        Question(imei, imsi=imsi), PolicySettings(rules=rules), LISTS, ListReader(store).content, now=now
    )


async def reason(store, name, imei, imsi="", now=NOW):
    found = await answer(store, name, imei, imsi, now)
    return found.reason if found.list else None


async def test_entries_are_added_and_removed_and_the_history_names_user_and_reason(store):
    report = await change(store, "own", ADD, IMEI, MEID, reason="stolen in Lomé")
    assert (report.entries, report.come, report.gone, report.generation) == (2, 2, 0, 1)
    assert report.as_text() == "own: 2 devices come, 0 go; entries now: 2"
    report = await change(store, "own", REMOVE, IMEI, reason="found again")
    assert (report.entries, report.come, report.gone, report.generation) == (1, 0, 1, 2)
    assert await held(store, "own") == {MEID: "stolen in Lomé"}
    state = (await store.heads())["own"]
    assert (state.serial, state.highest_serial, state.kind, state.expires, state.signers) == (0, 0, "devices", None, ())
    assert state.loaded_at == "2026-11-25T12:00:00Z"
    assert [(e.time, e.who, e.what, e.lifted, e.detail, e.added, e.removed) for e in await changes(store, "own")] == [
        ("2026-11-25T12:00:00Z", "tester@host", "add", (), f"stolen in Lomé: {IMEI}, {MEID}", 2, 0),
        ("2026-11-25T12:00:00Z", "tester@host", "remove", (), f"found again: {IMEI}", 0, 1),
    ]


@pytest.mark.parametrize("again", [IMEI, f"{IMEI}9", f"{IMEI}77"])
async def test_adding_what_is_there(store, again):
    await change(store, "own", ADD, IMEI)
    said = await refused(store, "own", ADD, OTHER, again, reason="again")
    assert (
        said
        == f"nothing was changed: 1 of 2 are in own already: {again}; --replace gives them the new reason, begin and end"
    )
    report = await change(store, "own", ADD, OTHER, again, reason="again", replace=True)
    assert (report.come, report.entries) == (1, 2)
    assert (await reason(store, "own", IMEI)) == "again"


async def test_replacing_reason_and_end_only(store):
    await change(store, "own", ADD, IMEI)
    report = await change(store, "own", ADD, IMEI, reason="new", until=int(NOW.timestamp()) + 60, replace=True)
    assert report.as_text() == "own: reason and times replaced; entries now: 1"
    again = await change(store, "own", ADD, IMEI, reason="new", until=int(NOW.timestamp()) + 60, replace=True)
    assert again.generation == report.generation + 1  # a change without an effect, which the log has


async def test_removing_what_is_not_there(store):
    assert await refused(store, "own", REMOVE, IMEI) == f"nothing was changed: 1 of 1 are not in own: {IMEI}"
    await change(store, "own", ADD, IMEI)
    assert f"1 of 2 are not in own: {OTHER}" in await refused(store, "own", REMOVE, IMEI, OTHER)
    many = [f"35123456{n:06d}" for n in range(100, 115)]
    said = await refused(store, "own", REMOVE, *many)
    assert said.endswith(", …")
    assert said.count("35123456") == 10


async def test_a_whole_tac(store):
    report = await change(store, "own", ADD, TAC, tacs=True)
    assert (report.entries, report.come) == (1, 1_000_000)
    assert "in own already" in await refused(store, "own", ADD, TAC, tacs=True)
    single = f"{TAC}123456"
    said = await refused(store, "own", REMOVE, single)
    assert (
        said
        == f"nothing was changed: 1 of 1 are not in own: {single} (it is covered by TAC {TAC}; not listed on its own)"
    )
    report = await change(store, "own", REMOVE, TAC, tacs=True)
    assert (report.entries, report.gone) == (0, 1_000_000)
    assert "not in own" in await refused(store, "own", REMOVE, TAC, tacs=True)
    assert (await changes(store, "own"))[0].detail == f"lost: TACs {TAC}"


async def test_a_tac_and_a_device_under_it_are_entries_of_their_own(store):
    """A stolen phone stays blocked, and with its reason, whatever comes and goes for its whole model."""
    stolen, other = f"{TAC}123456", f"{TAC}123457"
    await change(store, "own", ADD, stolen, reason="stolen")
    report = await change(store, "own", ADD, TAC, tacs=True, reason="model recalled")
    assert (report.entries, report.come) == (2, 999_999)
    assert [await reason(store, "own", imei) for imei in (stolen, other)] == ["stolen", "model recalled"]
    assert "in own already" in await refused(store, "own", ADD, stolen)
    report = await change(store, "own", ADD, other, reason="lost")
    assert report.as_text() == "own: +1 entries that listed no further device; entries now: 3"
    assert await reason(store, "own", other) == "lost"
    await change(store, "own", REMOVE, other)
    assert await reason(store, "own", other) == "model recalled"
    report = await change(store, "own", REMOVE, TAC, tacs=True)
    assert (report.entries, report.gone) == (1, 999_999)
    assert [await reason(store, "own", imei) for imei in (stolen, other)] == ["stolen", None]
    assert "not in own" in await refused(store, "own", REMOVE, TAC, tacs=True)  # what is listed under it is no TAC
    end = NOW + timedelta(hours=1)
    await change(store, "own", ADD, TAC, tacs=True, reason="for an hour", until=int(end.timestamp()))
    assert [await reason(store, "own", imei, now=end) for imei in (stolen, other)] == ["stolen", None]
    assert await refused(store, "own", REMOVE, other, now=end) == f"nothing was changed: 1 of 1 are not in own: {other}"
    undone = await undo(store, "own")
    assert (undone.what, undone.serial, undone.release) == ("rollback", 0, ""), "a local list has no releases"
    assert [await reason(store, "own", imei) for imei in (stolen, other)] == ["stolen", None]


async def test_what_a_command_may_change_is_limited(store):
    """A TAC is a million devices, of the first command too; --force lifts that, which the history says."""
    said = await refused(store, "limited", ADD, TAC, tacs=True)
    allowed = "999 may come at most (growth_max 20.0%, change_min 1,000)"
    assert said.startswith(f"nothing was changed: 1,000,000 devices come, 0 go, and 0 are in force: {allowed}; ")
    assert said.endswith("repeat the command with --force")
    await change(store, "limited", ADD, *(f"{TAC}{n:06d}" for n in range(999)))
    assert "999,001 devices come, 0 go, and 999 are in force" in await refused(
        store, "limited", ADD, TAC, tacs=True, dry_run=True
    )
    report = await change(store, "limited", ADD, TAC, tacs=True, force=True)
    assert (report.come, report.lifted) == (999_001, ("growth",))
    assert (
        report.as_text()
        == "limited: 999,001 devices come, 0 go; entries now: 1,000; --force lifted the limit on growth"
    )
    assert "0 devices come, 999,001 go, and 1,000,000 are in force: 200,000" in await refused(
        store, "limited", REMOVE, TAC, tacs=True
    )
    await change(store, "limited", REMOVE, TAC, tacs=True, force=True)
    await change(store, "limited", REMOVE, f"{TAC}000000", force=True)
    events = await changes(store, "limited")
    assert [event.lifted for event in events] == [(), ("growth",), ("shrink",), ()]
    assert [event.detail.partition("; ")[2].rpartition(": ")[0] for event in events[1:]] == [
        "999,001 devices come, 0 go; --force lifted the limit on growth",
        "0 devices come, 999,001 go; --force lifted the limit on shrink",
        "0 devices come, 1 go; --force, which lifted no limit",
    ]
    assert "already" in await refused(store, "limited", ADD, f"{TAC}000001", force=True)  # which lifts nothing else
    assert "a reason is needed" in await refused(store, "limited", ADD, IMEI, force=True, reason="")


async def test_a_dry_run_reports_the_changes_and_changes_nothing(store):
    report = await change(store, "limited", ADD, TAC, tacs=True, dry_run=True, force=True)
    assert (report.come, report.entries, report.generation) == (1_000_000, 1, 0)
    forced = "--force lifted the limit on growth"
    assert report.as_text() == f"limited: 1,000,000 devices come, 0 go; entries then: 1; {forced}; nothing was changed"
    assert await store.heads() == {}
    await change(store, "limited", ADD, IMEI, OTHER)
    before = (await store.heads())["limited"]
    report = await change(store, "limited", REMOVE, IMEI, dry_run=True)
    assert report.as_text() == "limited: 0 devices come, 1 go; entries then: 1; nothing was changed"
    assert "not in limited" in await refused(store, "limited", REMOVE, MEID, dry_run=True)
    assert (await store.heads())["limited"] == before


async def test_a_sim_that_a_device_gets_is_a_change(store):
    await change(store, "bound", ADD, IMEI, imsis=[SIM])
    assert (
        await change(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    ).as_text() == "bound: 1 devices come, 0 go; entries now: 2"
    assert (
        await change(store, "bound", REMOVE, IMEI, imsis=[SIM])
    ).as_text() == "bound: 0 devices come, 1 go; entries now: 1"
    assert (await change(store, "sims", ADD, SIM)).as_text() == "sims: 1 subscribers come, 0 go; entries now: 1"


async def test_an_entry_that_has_ended_comes_again(store):
    end = NOW + timedelta(hours=1)
    await change(store, "own", ADD, IMEI, until=int(end.timestamp()))
    assert (await change(store, "own", ADD, IMEI, now=end)).come == 1


async def test_an_entry_that_has_ended_is_removed(store):
    end = NOW + timedelta(hours=1)
    await change(store, "own", ADD, IMEI, until=int(end.timestamp()))
    report = await change(store, "own", REMOVE, IMEI, now=end)
    assert report.as_text() == "own: -1 entries that listed no further device; entries now: 0"


async def test_subscribers(store):
    await change(store, "sims", ADD, SIM, OTHER_SIM, "26201000000001")
    await change(store, "sims", REMOVE, SIM)
    assert (await held(store, "sims")).keys() == {OTHER_SIM, "26201000000001"}
    assert await reason(store, "sims", IMEI, OTHER_SIM) == "lost"
    assert await reason(store, "sims", IMEI, SIM) is None


async def test_pairs(store):
    await change(store, "bound", ADD, IMEI, OTHER, imsis=[SIM, OTHER_SIM])
    await change(store, "bound", REMOVE, IMEI, imsis=[SIM])
    assert (await held(store, "bound")).keys() == {f"{IMEI}+1{OTHER_SIM}", f"{OTHER}+1{SIM}", f"{OTHER}+1{OTHER_SIM}"}
    assert f"{IMEI}+{OTHER_SIM}" in await refused(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    assert "1 of 2 are not in bound" in await refused(store, "bound", REMOVE, IMEI, imsis=[SIM, OTHER_SIM])
    await change(store, "bound", REMOVE, IMEI, imsis=[OTHER_SIM])
    assert (await held(store, "bound")).keys() == {f"{OTHER}+1{SIM}", f"{OTHER}+1{OTHER_SIM}"}
    assert f"{IMEI}+{SIM}" in (await changes(store, "bound"))[0].detail


@pytest.mark.parametrize(
    ("kind", "identifiers", "details", "says"),
    [
        ("devices", ["3512345600000"], {}, "3512345600000: no IMEI (14 to 16 digits) and no MEID"),
        ("devices", ["35123456"], {}, "35123456: "),
        ("devices", [IMEI], {"tacs": True}, "a TAC has 8 digits; got 14 characters"),
        ("devices", ["٣٥١٢٣٤٥٦"], {"tacs": True}, "a TAC has 8 digits"),
        ("devices", [IMEI], {"imsis": [SIM]}, "--imsi requires a list of pairs"),
        ("subscribers", [IMEI + "00"], {}, "an IMSI has 6 to 15 digits"),
        ("subscribers", [SIM], {"tacs": True}, "a list of subscribers contains no TACs"),
        ("pairs", [IMEI], {}, "requires an IMSI for each device"),
        ("pairs", [IMEI], {"imsis": ["x"]}, "x: an IMSI"),
        ("pairs", [SIM[:5]], {"imsis": [SIM]}, "00101: "),
        (
            "devices",
            [f"{n:014d}" for n in range(ENTRIES_MAX + 1)],
            {},
            "1001 entries; the maximum for one command is 1000",
        ),
    ],
)
def test_entries_that_are_none(kind, identifiers, details, says):
    with pytest.raises(IdentifierError) as caught:
        parse_entries(kind, identifiers, **details)
    assert says in str(caught.value)


def test_each_entry_counts_once():
    assert [entry.text for entry in parse_entries("devices", [IMEI, f"{IMEI}1", OTHER])] == [f"{IMEI}1", OTHER]
    assert len(parse_entries("devices", [f"{n:014d}" for n in range(ENTRIES_MAX)])) == ENTRIES_MAX
    assert len(parse_entries("pairs", [IMEI, OTHER, IMEI], imsis=[SIM, OTHER_SIM])) == 4


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 201])
async def test_a_reason_is_required(store, text):
    assert "a reason is needed" in await refused(store, "own", ADD, IMEI, reason=text)


async def test_only_a_local_list_takes_entries(store):
    assert "expected a list with `local: true`" in await refused(store, "signed", ADD, IMEI)


async def test_a_list_that_became_one_of_another_kind(store):
    await change(store, "own", ADD, IMEI)
    others = {"own": ListSettings(name="own", kind="subscribers", local=True)}
    said = await refused(store, "own", ADD, SIM, lists=others)
    assert "a list of devices in the store and of subscribers in the configuration" in said


async def test_entries_end(store):
    end = NOW + timedelta(hours=1)
    assert "the end has passed" in await refused(store, "own", ADD, IMEI, until=int(NOW.timestamp()))
    await change(store, "own", ADD, IMEI, reason="for an hour", until=int(end.timestamp()))
    assert (await changes(store, "own"))[0].detail == f"for an hour, until 2026-11-25T13:00:00Z: {IMEI}"
    assert await reason(store, "own", IMEI, now=end - timedelta(seconds=1)) == "for an hour"
    assert await reason(store, "own", IMEI, now=end) is None
    assert "already" in await refused(store, "own", ADD, IMEI, now=end - timedelta(seconds=1))
    await change(store, "own", ADD, IMEI, reason="again", now=end)
    assert await reason(store, "own", IMEI, now=end + timedelta(days=1000)) == "again"


async def test_each_sim_of_a_device_has_an_end_of_its_own(store):
    end = NOW + timedelta(seconds=60)
    until = int(end.timestamp())
    await change(store, "bound", ADD, IMEI, imsis=[SIM], until=until)
    await change(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    await change(store, "bound", ADD, OTHER, imsis=[SIM], until=until + 60)
    pairs = [(IMEI, SIM), (IMEI, OTHER_SIM), (OTHER, SIM)]
    assert [await reason(store, "bound", imei, sim, now=end) for imei, sim in pairs] == [None, "lost", "lost"]
    assert await reason(store, "bound", *pairs[0], now=end - timedelta(seconds=1)) == "lost"


async def test_the_last_change_is_undone(store):
    await change(store, "own", ADD, IMEI)
    await change(store, "own", ADD, OTHER, MEID)
    undone = await undo(store, "own")
    assert (await held(store, "own")).keys() == {IMEI}
    assert (
        undone.detail == f"change 2 undone (add by tester@host, 2026-11-25T12:00:00Z: lost: {OTHER}, {MEID}); 1 entries"
    )
    with pytest.raises(NothingToRollBack):
        await undo(store, "own")
    await change(store, "own", ADD, OTHER)
    assert (await store.heads())["own"].generation == 4


async def test_replaced_rows_that_begin_later_count_as_removed(store):
    imeis = [f"35123456{number:06d}" for number in range(1000)]
    await edit(store, "limited", ADD, *imeis, force=True)
    said = await refused(store, "limited", ADD, *imeis, begin=NOW_S + DAY, replace=True)
    assert "0 devices come, 1,000 go, and 1,000 are in force" in said


async def test_replacing_reason_begin_and_end_keeps_the_date(store):
    await edit(store, "own", ADD, IMEI, days=[20_000])
    report = await change(store, "own", ADD, IMEI, begin=NOW_S + 30, until=NOW_S + 60, replace=True)
    assert report.as_text() == "own: 0 devices come, 1 go; entries now: 1"
    assert await times(store) == {IMEI: (NOW_S + 30, NOW_S + 60, 20_000)}


async def test_an_entry_that_has_ended_comes_again_with_its_own_begin(store):
    await edit(store, "own", ADD, IMEI, until=NOW_S + 60)
    later = NOW + timedelta(days=1)
    await edit(store, "own", ADD, IMEI, begin=NOW_S + 9 * DAY, now=later)
    assert await times(store) == {IMEI: (NOW_S + 9 * DAY, 0, 0)}


async def test_a_list_whose_changes_the_store_lost_takes_none(store):
    def guard(stored):
        raise StoreError("lost", f"the store has generation {stored.generation}")

    for feed in (False, True):
        with pytest.raises(StoreError, match="the store has generation 0"):
            await edit(store, "own", ADD, IMEI, guard=guard, feed=feed)
    assert await store.heads() == {}


async def test_an_entry_begins_at_its_time_and_counts_as_added_before(store):
    """Row 69: no match before the begin, a match from its first second to the last before the end, none after."""
    begin, end = NOW_S + 27 * DAY, NOW_S + 30 * DAY
    assert "expected --from before --until" in await refused(store, "own", ADD, IMEI, begin=end, until=end)
    report = await change(store, "own", ADD, IMEI, begin=begin, until=end)
    assert report.as_text() == "own: 1 devices come, 0 go; entries now: 1"
    assert (await changes(store, "own"))[
        0
    ].detail == f"lost, from 2026-12-22T12:00:00Z, until 2026-12-25T12:00:00Z: {IMEI}"
    assert f"1 of 1 are in own already: {IMEI}" in await refused(store, "own", ADD, IMEI)
    pending = (("own", "2026-12-22T12:00:00Z"),)
    for moment, listed in ((begin - 1, None), (begin, "own"), (end - 1, "own"), (end, None)):
        found = await answer(store, "own", IMEI, now=datetime.fromtimestamp(moment, UTC))
        assert (found.list, found.pending) == (listed, pending if moment < begin else ())
    before = await answer(store, "own", IMEI)
    assert before.as_json()["pending"] == [{"list": "own", "begin": "2026-12-22T12:00:00Z"}]
    assert "  from 2026-12-22T12:00:00Z: list own" in before.as_text().splitlines()


async def test_a_whole_tac_and_a_pair_begin_later(store):
    begin = NOW_S + 60
    await change(store, "own", ADD, TAC, tacs=True, begin=begin)
    await change(store, "bound", ADD, IMEI, imsis=[SIM], begin=begin)
    await change(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    for name, imei, sim in (("own", f"{TAC}000001", ""), ("bound", IMEI, SIM)):
        first, second = [await answer(store, name, imei, sim, now=NOW + timedelta(seconds=wait)) for wait in (59, 60)]
        assert (first.list, first.pending) == (None, ((name, "2026-11-25T12:01:00Z"),))
        assert (second.list, second.pending) == (name, ())
    assert (await answer(store, "bound", IMEI, OTHER_SIM)).pending == ()
    assert (await answer(store, "bound", IMEI, "001010000000003")).pending == ()


async def test_a_feed_writes_only_rows_that_have_an_effect(store):
    async def fed(what, *identifiers, **options):
        _, made = await edit(store, "own", what, *identifiers, feed=True, **options)
        return None if made is None else (made.what, made.who, made.detail.rpartition(": ")[2])

    assert await fed(ADD, IMEI, OTHER, begin=NOW_S + 60, until=NOW_S + DAY) == ("feed", "register", f"{IMEI}, {OTHER}")
    assert await fed(ADD, IMEI, OTHER, begin=NOW_S + 70, until=NOW_S + 90) is None
    assert await fed(ADD, IMEI, begin=NOW_S + 50, until=NOW_S + 90) == ("feed", "register", IMEI)
    assert await fed(ADD, IMEI, begin=NOW_S + 70) == ("feed", "register", IMEI)
    assert await times(store) == {IMEI: (NOW_S + 50, 0, 0), OTHER: (NOW_S + 60, NOW_S + DAY, 0)}
    assert await fed(REMOVE, OTHER, "35123456000009") == ("feed", "register", OTHER)
    assert await fed(REMOVE, OTHER) is None


async def test_rows_of_a_file_have_their_own_reasons_and_times(store):
    content = file(
        "imei,reason,begin,until,date",
        f"{IMEI},own reason,2026-12-22,,2026-10-01",
        f"{OTHER},,,,",
        "35000000000001,,,2020-01-01,",
        "x,,,,",
    )
    parsed = parse_file_rows(content, "f.csv", replace(LISTS["own"], dates=True), now_s=NOW_S)
    assert parsed.warnings == [
        "a bad row was left out: f.csv:5: no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 1 characters",
        "1 entries have expired and were left out",
    ]  # fmt: skip
    one = RowsEdit(
        what=ADD,
        rows=parsed.rows,
        texts=parsed.texts,
        reason="lost",
        until=NOW_S + 90 * DAY,
        source=f"{parsed.name} with SHA-256 {parsed.sha256}",
    )
    await write_edit(one, LISTS["own"], writer(store, LISTS["own"]), rows_update(one, LISTS["own"], now=NOW))
    assert await held(store, "own") == {IMEI: "own reason", OTHER: "lost"}
    assert await times(store) == {IMEI: (1_797_897_600, NOW_S + 90 * DAY, 20_727), OTHER: (0, NOW_S + 90 * DAY, 0)}
    assert f"; 2 entries of f.csv with SHA-256 {parsed.sha256}" in (await changes(store, "own"))[0].detail


async def test_reasons_that_no_row_has_any_more_make_room(store):
    old = [f"35000000{number:06d}" for number in range(300)]
    texts = ("", *(f"ticket {number}" for number in range(254)))
    rows = rows_of([int(imei) for imei in old[:254]], reasons=range(1, 255))
    one = RowsEdit(what=ADD, rows=rows, texts=texts, reason="lost")
    await write_edit(one, LISTS["own"], writer(store, LISTS["own"]), rows_update(one, LISTS["own"], now=NOW))
    await edit(store, "own", ADD, old[254], reason="ticket 254")
    await edit(store, "own", REMOVE, old[100], old[7])
    for number in (255, 256):
        await edit(store, "own", ADD, old[number], reason=f"ticket {number}")
    expected = {old[number]: f"ticket {number}" for number in [*range(254), 255, 256] if number not in {7, 100}} | {
        old[254]: "other"
    }
    assert await held(store, "own") == expected


async def test_operators_at_once_do_not_undo_each_other(store, tmp_path):
    others = [SqliteStore(tmp_path / "log.sqlite") for _ in range(4)]
    imeis = [f"35123456{n:06d}" for n in range(24)]
    await asyncio.gather(*(change(others[n % 4], "own", ADD, imei, reason=f"r{n}") for n, imei in enumerate(imeis)))
    assert await held(store, "own") == {imei: f"r{n}" for n, imei in enumerate(imeis)}
    assert (await store.heads())["own"].generation == len(imeis)
    for other in others:
        await other.close()


async def test_a_list_that_never_stands_still_is_given_up(store, monkeypatch):
    async def commit(*_, **__):
        raise GenerationConflict("changed")

    monkeypatch.setattr(store, "commit", commit)
    with pytest.raises(
        GenerationConflict, match="own was changed 20 times while this change was being made: try again"
    ):
        await edit(store, "own", ADD, IMEI)
    assert await store.log("own", 0) == []


async def test_an_entry_reaches_a_node_within_a_tenth_of_a_second(tmp_path, store):
    """The follower's own look is an hour away: the store tells of it, and pauses a tenth of a second at most between two looks."""
    assert sqlite_store.POLL_S <= 0.1
    async with LogNode(store, tmp_path / "state", pauses=Pauses(wait_s=3600.0)) as node:
        other = SqliteStore(tmp_path / "log.sqlite")
        for what, n in ((ADD, 0), (ADD, 1), (REMOVE, 0)):
            imei = f"35123456{n:06d}"
            await change(other, "own", what, imei)
            await until(lambda imei=imei, what=what: (int(imei) in (node.keys() or ())) == (what == ADD))
        await other.close()


STEPS = st.lists(
    st.tuples(st.sampled_from([ADD, ADD, REMOVE, "feed", "rollback"]), st.sets(st.integers(0, 5), min_size=1, max_size=3) | st.sets(st.integers(6, 7), min_size=1), st.booleans(), st.sampled_from([0, 50, 150]), st.sampled_from([0, 0, 60])),
    max_size=10,
)  # fmt: skip


def merged(truth, alive, what, which, row, *, again):
    """Return the dictionary after a change, and the entries for which the change is rejected."""
    if what == REMOVE:
        return {key: value for key, value in truth.items() if key not in which}, which - truth.keys()
    after, (reason, begin, end) = dict(truth), row
    for key in which:
        _, first, last = truth.get(key, row)
        if what == ADD or key not in alive:
            after[key] = row
        elif (last and (not end or end > last)) or begin < first:
            after[key] = (reason, min(first, begin), max(last, end) if last and end else 0)
    return after, which & alive if what == ADD and not again else set()


async def apply_steps(store, steps):
    """Entry → (reason, begin, end), at a clock that goes on by 40 s a step. `past`: dictionaries to which a rollback can return.

    Numbers from 6 on are whole TACs: 6 the one of 0, 2, 4, and 7 that of 1, 3, 5.
    """
    past = []
    for number, (what, which, again, lasts, waits) in enumerate(steps):
        truth = past[-1] if past else {}
        moment, now = NOW + timedelta(seconds=40 * number), NOW_S + 40 * number
        if what == "rollback":
            if len(past) > 1:
                await undo(store, "own", moment)
                past.pop()
            continue
        alive = {key for key, (_, _, end) in truth.items() if not end or end > now}
        row = f"r{number}", now + waits if waits else 0, now + 100 + lasts if lasts else 0
        after, wrong = merged(truth, alive, what, which, row, again=again)
        row_times = {} if what == REMOVE else {"begin": row[1], "until": row[2]}
        options = {
            "reason": row[0],
            "now": moment,
            "replace": again and what == ADD,
            "tacs": min(which) > 5,
        } | row_times
        imeis = [f"3500000{key % 2}00000{key}" if key < 6 else f"3500000{key % 2}" for key in sorted(which)]
        if wrong:
            await refused(store, "own", what, *imeis, **options)
            continue
        _, made = await edit(store, "own", REMOVE if what == REMOVE else ADD, *imeis, feed=what == "feed", **options)
        if made is None:
            assert after == truth
            continue
        past = [after] if what == "feed" else [*past, after]
        content = await read(store, "own")
        rows = {
            (6 + e.key // 10**6 % 2 if e.whole_tac else e.key % 10): (
                reason_at(content.head.reasons, e.reason),
                e.begin,
                e.until,
            )
            for e in entries_in(content.table.rows())
        }
        assert rows == after
        for key in range(6):
            listed = [rows[each] for each in (key, 6 + key % 2) if each in rows]
            expected = next((why for why, begin, end in listed if begin <= now and (not end or end > now)), None)
            assert await reason(store, "own", f"3500000{key % 2}00000{key}", now=moment) == expected


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_history_of_local_changes_equals_a_dictionary(tmp_path_factory, steps):
    async def run():
        store = SqliteStore(tmp_path_factory.mktemp("store") / "log.sqlite")
        try:
            await apply_steps(store, steps)
        finally:
            await store.close()

    asyncio.run(run())
