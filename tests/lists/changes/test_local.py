"""Operators' own entries: what the commands take, what they refuse, and that two operators never undo each other's work."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated.store_content import Altered, devices_of, put, tacs_of, until

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key, imsi_key
from eir.errors import EntryRefused, GenerationConflict, IdentifierError, NothingToRollBack
from eir.lists.changes.local import ADD, REMOVE, Edit, edit_list
from eir.lists.changes.local_entries import ENTRIES_MAX, parse_entries
from eir.lists.changes.rollback import roll_back
from eir.lists.follow.follower import Follower
from eir.lists.follow.pauses import Pauses
from eir.lists.images.index import Index
from eir.lists.pages.pages import PAGE_KEYS, content_digest
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.settings import ListSettings
from eir.lists.record.store import ACCEPTED, FORCED, ROLLED_BACK
from eir.lists.stores import sqlite
from eir.lists.stores.sqlite import SqliteStore

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
IMEI, OTHER, MEID, TAC = "35123456000001", "35123456000002", "A0000000000001", "35999999"
SIM, OTHER_SIM = "001010000000001", "001010000000002"
LISTS = {
    "own": ListSettings(name="own", local=True, change_min=10**9),
    "limited": ListSettings(name="limited", local=True),
    "sims": ListSettings(name="sims", kind="subscribers", local=True),
    "bound": ListSettings(name="bound", kind="pairs", local=True),
    "signed": ListSettings(name="signed"),
}


async def change(store, name, what, *identifiers, imsis=(), tacs=False, reason="lost", now=NOW, lists=LISTS, **details):
    entries = parse_entries(lists[name].kind, identifiers, imsis=imsis, tacs=tacs)
    edit = Edit(what=what, entries=entries, reason=reason, **details)
    return await edit_list(edit, lists[name], store, who="tester@host", now=now)


async def held(store, name, now=NOW):
    """The list as a worker would hold it; proves its digest and sums by the way."""
    index = Index({name: LISTS[name].kind}, now.timestamp)
    state = await store.state(name)
    pages = [page async for _, batch in store.pages(name) for page in batch]
    put(index, name, state, pages)
    assert state.content_digest == content_digest(pages)
    found = {page.number * PAGE_KEYS + low for page in pages for low in decode_keys(page.keys)}
    assert (state.entries, state.devices) == (len(found) + len(tacs_of(pages)), devices_of(pages))
    return index.lists[name], found


async def refused(store, name, what, *identifiers, **details):
    before = await store.state(name)
    with pytest.raises(EntryRefused) as caught:
        await change(store, name, what, *identifiers, **details)
    assert await store.state(name) == before
    return str(caught.value)


async def test_entries_are_added_and_removed_and_the_history_names_user_and_reason(store):
    report = await change(store, "own", ADD, IMEI, MEID, reason="stolen in Lomé")
    assert (report.entries, report.come, report.gone, report.generation) == (2, 2, 0, 1)
    assert report.as_text() == "own: 2 devices come, 0 go; entries now: 2"
    report = await change(store, "own", REMOVE, IMEI, reason="found again")
    assert (report.entries, report.come, report.gone, report.generation) == (1, 0, 1, 2)
    _, keys = await held(store, "own")
    assert keys == {device_key(MEID)}
    state = await store.state("own")
    assert (state.serial, state.highest_serial, state.kind, state.expires, state.signers) == (0, 0, "devices", None, ())
    assert state.loaded_at == "2026-11-25T12:00:00Z"
    events = await store.history("own")
    assert [(e.time, e.who, e.what, e.outcome, e.detail) for e in events] == [
        ("2026-11-25T12:00:00Z", "tester@host", "add", ACCEPTED, f"stolen in Lomé: {IMEI}, {MEID}"),
        ("2026-11-25T12:00:00Z", "tester@host", "remove", ACCEPTED, f"found again: {IMEI}"),
    ]
    assert [change.pages for change in await store.changes("own", 1)] == [(35123456,)]


@pytest.mark.parametrize("again", [IMEI, f"{IMEI}9", f"{IMEI}77"])
async def test_adding_what_is_there(store, again):
    await change(store, "own", ADD, IMEI)
    said = await refused(store, "own", ADD, OTHER, again, reason="again")
    assert (
        said == f"nothing was changed: 1 of 2 are in own already: {again}; --replace gives them the new reason and end"
    )
    report = await change(store, "own", ADD, OTHER, again, reason="again", replace=True)
    assert (report.come, report.entries) == (1, 2)
    assert (await reason(store, "own", IMEI)) == "again"


async def test_replacing_reason_and_end_only(store):
    await change(store, "own", ADD, IMEI)
    report = await change(store, "own", ADD, IMEI, reason="new", until=int(NOW.timestamp()) + 60, replace=True)
    assert report.as_text() == "own: reason and end replaced; entries now: 1"
    again = await change(store, "own", ADD, IMEI, reason="new", until=int(NOW.timestamp()) + 60, replace=True)
    assert again.generation == report.generation + 1  # a step that touches no page, and stands in the history


async def reason(store, name, imei, imsi="", now=NOW):
    rules = (Rule(list=name, answer=Status.BLACKLISTED),)
    answer = await explain(Question(imei, imsi=imsi), PolicySettings(rules=rules), LISTS, store, now=now)
    return answer.reason if answer.list else None


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
    single, before = f"{TAC}123456", await store.state("own")
    said = await refused(store, "own", REMOVE, single)
    assert (
        said
        == f"nothing was changed: 1 of 1 are not in own: {single} (it is covered by TAC {TAC}; not listed on its own)"
    )
    assert await store.state("own") == before
    report = await change(store, "own", REMOVE, TAC, tacs=True)
    assert (report.entries, report.gone) == (0, 1_000_000)
    assert "not in own" in await refused(store, "own", REMOVE, TAC, tacs=True)
    assert (await store.history("own"))[0].detail == f"lost: TACs {TAC}"


async def test_a_tac_and_a_device_under_it_are_entries_of_their_own(store):
    """A stolen phone stays blocked, and with its reason, whatever comes and goes for its whole model."""
    stolen, other = f"{TAC}123456", f"{TAC}123457"
    await change(store, "own", ADD, stolen, reason="stolen")
    report = await change(store, "own", ADD, TAC, tacs=True, reason="model recalled")
    assert (report.entries, report.come) == (2, 999_999)
    assert [await reason(store, "own", imei) for imei in (stolen, other)] == ["stolen", "model recalled"]
    assert "in own already" in await refused(store, "own", ADD, stolen)
    report = await change(store, "own", ADD, other, reason="lost")
    assert report.as_text() == "own: +1 entries for devices that are listed by their TAC; entries now: 3"
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
    await roll_back("own", store, who="tester@host", now=NOW)
    undone = (await store.history("own"))[-1]
    assert (undone.what, undone.serial, undone.digest) == ("rollback", None, None), "a local list has no releases"
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
    events = await store.history("limited")
    assert [event.outcome for event in events] == [ACCEPTED, FORCED, FORCED, FORCED]
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
    assert (await store.state("limited"), await store.history()) == (None, [])
    await change(store, "limited", ADD, IMEI, OTHER)
    before = await store.state("limited"), await store.history()
    report = await change(store, "limited", REMOVE, IMEI, dry_run=True)
    assert report.as_text() == "limited: 0 devices come, 1 go; entries then: 1; nothing was changed"
    assert "not in limited" in await refused(store, "limited", REMOVE, MEID, dry_run=True)
    assert (await store.state("limited"), await store.history()) == before


async def test_a_sim_that_a_device_gets_is_a_change(store):
    await change(store, "bound", ADD, IMEI, imsis=[SIM])
    assert (
        await change(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    ).as_text() == "bound: 1 devices come, 0 go; entries now: 1"
    assert (
        await change(store, "bound", REMOVE, IMEI, imsis=[SIM])
    ).as_text() == "bound: 0 devices come, 1 go; entries now: 1"
    assert (await change(store, "sims", ADD, SIM)).as_text() == "sims: 1 subscribers come, 0 go; entries now: 1"


async def test_an_entry_that_has_ended_comes_again(store):
    end = NOW + timedelta(hours=1)
    await change(store, "own", ADD, IMEI, until=int(end.timestamp()))
    assert (await change(store, "own", ADD, IMEI, now=end)).come == 1


async def test_subscribers(store):
    await change(store, "sims", ADD, SIM, OTHER_SIM, "26201000000001")
    await change(store, "sims", REMOVE, SIM)
    _, keys = await held(store, "sims")
    assert keys == {imsi_key(OTHER_SIM), imsi_key("26201000000001")}
    assert await reason(store, "sims", IMEI, OTHER_SIM) == "lost"
    assert await reason(store, "sims", IMEI, SIM) is None


async def test_pairs(store):
    await change(store, "bound", ADD, IMEI, OTHER, imsis=[SIM, OTHER_SIM])
    await change(store, "bound", REMOVE, IMEI, imsis=[SIM])
    entries, _ = await held(store, "bound")
    assert entries.imsis(device_key(IMEI)) == (imsi_key(OTHER_SIM),)
    assert entries.imsis(device_key(OTHER)) == (imsi_key(SIM), imsi_key(OTHER_SIM))
    assert f"{IMEI}+{OTHER_SIM}" in await refused(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    assert "1 of 2 are not in bound" in await refused(store, "bound", REMOVE, IMEI, imsis=[SIM, OTHER_SIM])
    await change(store, "bound", REMOVE, IMEI, imsis=[OTHER_SIM])
    entries, keys = await held(store, "bound")
    assert keys == {device_key(OTHER)}
    assert f"{IMEI}+{SIM}" in (await store.history("bound"))[0].detail


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
    assert (await store.history("own"))[0].detail == f"for an hour, until 2026-11-25T13:00:00Z: {IMEI}"
    assert await reason(store, "own", IMEI, now=end - timedelta(seconds=1)) == "for an hour"
    assert await reason(store, "own", IMEI, now=end) is None
    assert "already" in await refused(store, "own", ADD, IMEI, now=end - timedelta(seconds=1))
    assert "not in own" in await refused(store, "own", REMOVE, IMEI, now=end)  # it is over
    await change(store, "own", ADD, IMEI, reason="again", now=end)
    assert await reason(store, "own", IMEI, now=end + timedelta(days=1000)) == "again"


async def test_each_sim_of_a_device_has_an_end_of_its_own(store):
    end = NOW + timedelta(seconds=60)
    until = int(end.timestamp())
    await change(store, "bound", ADD, IMEI, imsis=[SIM], until=until)
    await change(store, "bound", ADD, IMEI, imsis=[OTHER_SIM])
    await change(store, "bound", ADD, OTHER, imsis=[SIM], until=until + 60)
    entries, _ = await held(store, "bound", end)
    assert (entries.imsis(device_key(IMEI)), entries.imsis(device_key(OTHER))) == (
        (imsi_key(OTHER_SIM),),
        (imsi_key(SIM),),
    )


async def test_the_last_change_is_undone(store):
    await change(store, "own", ADD, IMEI)
    await change(store, "own", ADD, OTHER, MEID)
    await roll_back("own", store, who="tester@host", now=NOW)
    _, keys = await held(store, "own")
    assert keys == {device_key(IMEI)}
    event = (await store.history("own"))[-1]
    assert event.outcome == ROLLED_BACK
    assert (
        event.detail == f"change 2 undone (add by tester@host, 2026-11-25T12:00:00Z: lost: {OTHER}, {MEID}); 1 entries"
    )
    with pytest.raises(NothingToRollBack):
        await roll_back("own", store, who="tester@host", now=NOW)
    await change(store, "own", ADD, OTHER)
    assert (await store.state("own")).generation == 4


async def test_reasons_that_no_entry_has_any_more_make_room(store):
    old = [f"35000000{n:06d}" for n in range(300)]
    await change(store, "own", ADD, TAC, tacs=True, reason="ticket 0")  # the only entry with this reason
    for n, imei in enumerate(old[1:254], 1):
        await change(store, "own", ADD, imei, reason=f"ticket {n}")
    assert len((await store.state("own")).reasons) == 255
    await change(store, "own", ADD, old[254], reason="ticket 254")  # every byte is in use
    assert await reason(store, "own", old[254]) == "other"
    await change(store, "own", REMOVE, old[100], old[7])
    for n in (255, 256):
        await change(store, "own", ADD, old[n], reason=f"ticket {n}")
    await change(store, "own", ADD, old[257], reason="ticket 3")
    expected = {n: f"ticket {n}" for n in range(254) if n not in {7, 100}} | {
        255: "ticket 255",
        256: "ticket 256",
        257: "ticket 3",
    }
    assert await reason(store, "own", f"{TAC}000000") == "ticket 0"
    for n in (6, 8, 99, 101, 253, 255, 256, 257):
        assert await reason(store, "own", old[n]) == expected[n]
    assert await reason(store, "own", old[7]) is None
    assert await reason(store, "own", old[254]) == "other"


async def test_operators_at_once_do_not_undo_each_other(store, tmp_path):
    others = [SqliteStore(tmp_path / "lists.sqlite") for _ in range(4)]
    imeis = [f"35123456{n:06d}" for n in range(24)]
    await asyncio.gather(*(change(others[n % 4], "own", ADD, imei, reason=f"r{n}") for n, imei in enumerate(imeis)))
    _, keys = await held(store, "own")
    assert keys == {device_key(imei) for imei in imeis}
    assert (await store.state("own")).generation == len(imeis)
    assert [await reason(store, "own", imei) for imei in imeis] == [f"r{n}" for n in range(24)]
    for other in others:
        await other.close()


async def test_a_list_that_never_stands_still_is_given_up(store):
    async def overtaken(*_args, **_kwargs):
        raise GenerationConflict("someone was faster")

    with pytest.raises(GenerationConflict, match="try again"):
        await change(Altered(store, amend=overtaken), "own", ADD, IMEI)
    assert await store.history() == []


@asynccontextmanager
async def following(store, kinds):
    """A worker's index that follows the store."""
    index = Index(kinds)
    filling = Follower(
        store, index, report=lambda *_, **__: None, on_switch=lambda *_: None, pauses=Pauses(wait_s=3600.0)
    )
    await filling.start()
    task = asyncio.create_task(filling.run())

    try:
        yield index
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_entry_reaches_a_worker_within_a_tenth_of_a_second(tmp_path, store):
    """The follower's own look is an hour away: the store tells of it, and pauses a tenth of a second at most between two looks."""
    assert sqlite.POLL_S <= 0.1
    writer = SqliteStore(tmp_path / "lists.sqlite")
    await change(writer, "own", ADD, *(f"35000000{n:06d}" for n in range(1000)))
    async with following(store, {"own": "devices"}) as index:
        for n in range(5):
            key = device_key(f"35123456{n:06d}")
            await change(writer, "own", ADD, f"35123456{n:06d}")
            await until(lambda key=key: index.lists["own"].holds(key))
        await change(writer, "own", REMOVE, "35123456000000")
        await until(lambda: not index.lists["own"].holds(device_key("35123456000000")))
    await writer.close()


steps = st.lists(
    st.tuples(
        st.sampled_from([ADD, REMOVE]), st.sets(st.integers(0, 5), min_size=1, max_size=3) | st.sets(st.integers(6, 7), min_size=1), st.booleans(),
        st.sampled_from([0, 50, 150]), st.booleans(),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_any_history_of_edits_is_the_plain_one(tmp_path_factory, history):
    """Against a dict: identifier or TAC → (reason, end), at a clock that goes on by 40 seconds a step.

    Numbers from 6 on are whole TACs: 6 the one of 0, 2, 4, and 7 that of 1, 3, 5.
    """

    async def run():
        store = SqliteStore(tmp_path_factory.mktemp("store") / "lists.sqlite")
        truth, now = {}, 0
        for n, (what, which, replace, lasts, undo) in enumerate(history):
            now += 40
            moment = NOW + timedelta(seconds=now)
            alive = {k for k, (_, end) in truth.items() if not end or end > moment.timestamp()}
            imeis = [f"3500000{k % 2}00000{k}" if k < 6 else f"3500000{k % 2}" for k in sorted(which)]
            end = int(moment.timestamp()) + lasts if lasts else 0
            details = {"reason": f"r{n}", "now": moment, "tacs": min(which) > 5}
            if what == REMOVE:
                wrong, after = which - alive, {k: v for k, v in truth.items() if k not in which}
            else:
                details |= {"until": end, "replace": replace}
                wrong, after = set() if replace else which & alive, truth | dict.fromkeys(which, (f"r{n}", end))
            if wrong:
                with pytest.raises(EntryRefused):
                    await change(store, "own", what, *imeis, **details)
                continue
            await change(store, "own", what, *imeis, **details)
            if undo and n % 2:
                if await store.state("own") and (await store.state("own")).generation > 1:
                    await roll_back("own", store, who="t", now=moment)
                else:
                    truth = after
            else:
                truth = after
            for k in range(6):
                said = [truth[name] for name in (k, 6 + k % 2) if name in truth]
                expected = next((why for why, ends in said if not ends or ends > moment.timestamp()), None)
                assert await reason(store, "own", f"3500000{k % 2}00000{k}", now=moment) == expected
        await store.close()

    asyncio.run(run())
