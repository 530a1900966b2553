"""Import of first sightings: rows of a file, the earliest day, registered devices, and nodes that run."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from simulated.first_sightings import NAME, TODAY, SightingNode
from simulated.store_content import page, pages_of

from eir.device import device_key
from eir.errors import EirError, GenerationConflict, ReleaseRefused, StoreError
from eir.lists.changes.import_days import OVER_MIN, TRIES_MAX, DaysImport, import_days, read_days, seen_now, undo_import
from eir.lists.pages.first_days import WAS_LISTED, decode_days, encode_days, seen_on
from eir.lists.pages.pages import PAGE_KEYS, Page, content_digest
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.record.store import FORCED, SIGHTED, ListState
from eir.lists.stores.sqlite import SqliteStore

ONE, TWO, THREE, FOUR = "35209900176148", "35209900176149", "35332811002233", "86123456789012"
REGISTERED = "49015420323751"
OTHERS = itertools.count(10**13)
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path):
    found = SqliteStore(tmp_path / "lists.sqlite")
    yield found
    await found.close()


async def take(store, devices, *, registering=(), **options):
    """Import devices with their first days."""
    keys = np.array([*map(device_key, devices)], np.uint64)
    days = np.array([*devices.values()], np.uint64)
    return await import_days(
        seen_now(keys, days, NOW),
        NAME,
        store,
        registering=registering,
        source="old.csv",
        who="test@localhost",
        now=NOW,
        **options,
    )


async def undo(store):
    return await undo_import(NAME, store, who="test@localhost", now=NOW)


def is_over(firsts):
    return firsts < TODAY - 60


async def stored(store):
    state, pages = [(state, pages) async for state, pages in store.pages(NAME)][-1]
    days = decode_days(pages)
    assert (state.kind, state.entries, state.content_digest) == (FIRST_SEEN, len(days.keys), content_digest(pages))
    return {f"{key:014d}": first for key, first in zip(days.keys.tolist(), days.firsts.tolist(), strict=True)}


async def put(store, name, pages, kind="devices"):
    state = ListState(
        kind=kind, serial=1, generation=1, highest_serial=1, release_digest="", content_digest=content_digest(pages), entries=len(pages)
    )  # fmt: skip
    await store.replace(name, state, pages, seen=0)


def test_rows_of_a_file(tmp_path):
    file = tmp_path / "old.csv"
    tomorrow = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    rows = [
        "first_seen,imei,remark", f"2026-01-31,{ONE}8,", f"2026-01-30,{ONE},again", "2026-02-30,35332811002233,", f"{tomorrow},{TWO},",
        f",{TWO},", f"20260130,{TWO},", f"2026-01-30T00:00:00Z,{TWO},", f"1970-01-01,{TWO},", f"1999-12-31,{TWO},", "2026-01-30,3533281100223,", f"left-list,{THREE}",
    ]  # fmt: skip
    file.write_text("\n".join(rows))
    seen = []
    found = read_days(file, NOW, lambda *done: seen.append(done))
    rows = zip(found.days.keys.tolist(), found.days.firsts.tolist(), strict=True)
    assert list(rows) == [(int(ONE), 20_483), (int(THREE), WAS_LISTED)]
    assert found.tally.bad == 8
    day = "first_seen is not a day from 2000-01-01 to today (UTC), such as 2026-11-30"
    assert found.tally.complaints[:7] == [f"old.csv:{line}: {day}" for line in range(4, 11)]
    assert found.tally.complaints[7].startswith("old.csv:11: no IMEI (14 to 16 digits)")
    assert seen == [(file.stat().st_size, file.stat().st_size)]


def test_a_file_without_the_columns_is_refused(tmp_path):
    file = tmp_path / "old.csv"
    for text in ("", "imei\n", "imei,date\n", f"{ONE},2026-11-30\n"):
        file.write_text(text)
        with pytest.raises(ReleaseRefused, match=r"old\.csv"):
            read_days(file, NOW)


async def test_the_earliest_day_counts(store):
    assert await take(store, {ONE: TODAY - 5, TWO: TODAY - 5}) == DaysImport(2, 2, 0, 0)
    assert await take(store, {ONE: TODAY - 9, TWO: TODAY, THREE: TODAY}) == DaysImport(3, 1, 1, 0)
    assert await stored(store) == {ONE: TODAY - 9, TWO: TODAY - 5, THREE: TODAY}
    before = await store.state(NAME)
    assert await take(store, {ONE: TODAY, THREE: TODAY}) == DaysImport(2, 0, 0, 0)
    assert await store.state(NAME) == before
    *_, event = await store.history(NAME)
    assert (event.what, event.who) == (SIGHTED, "test@localhost")
    assert event.detail.startswith("import of old.csv: 3 devices: 1 new on record, 1 with an earlier day")


async def test_a_device_that_left_a_list_gets_no_second_period(store):
    await put(store, NAME, encode_days(seen_on(np.array([int(ONE)], np.uint64), TODAY, WAS_LISTED)), FIRST_SEEN)
    await take(store, {ONE: TODAY})
    assert await stored(store) == {ONE: WAS_LISTED}


async def test_registered_devices_are_left_out(store):
    whole_tac = page(int(FOUR) // PAGE_KEYS, [], tac=(0, 0))
    ended = page(int(THREE) // PAGE_KEYS, [int(THREE) % PAGE_KEYS], until=[1])
    await put(store, "registered", sorted([*pages_of([int(ONE)]), ended, whole_tac]))
    devices = dict.fromkeys([ONE, TWO, THREE, FOUR], TODAY)
    assert await take(store, devices, registering=["registered", "never loaded"]) == DaysImport(4, 2, 0, 2)
    assert await stored(store) == {TWO: TODAY, THREE: TODAY}


async def test_a_list_with_the_name_of_the_record_is_refused(store):
    await put(store, NAME, pages_of([int(TWO)]))
    with pytest.raises(EirError, match="give one of them another name"):
        await take(store, {ONE: TODAY})


async def test_a_damaged_page_is_named(store):
    await put(store, NAME, [Page(int(ONE) // 10**6, b"\0\1", b"")], FIRST_SEEN)
    with pytest.raises(StoreError, match="damaged"):
        await take(store, {ONE: TODAY})


async def test_the_periods_that_an_import_ends_and_begins_are_counted_and_a_dry_run_writes_nothing(store):
    await take(store, {ONE: TODAY - 5, TWO: TODAY - 90})
    before = await store.states()
    wrong = {ONE: TODAY - 61, TWO: TODAY - 100, THREE: TODAY - 61, FOUR: TODAY - 60}
    report = await take(store, wrong, is_over=is_over, dry_run=True)
    assert (report.new, report.earlier, report.over, report.begun) == (2, 2, 2, 1), "TWO has no period already"
    assert await store.states() == before
    assert await take(store, wrong, is_over=is_over) == report


async def test_only_force_lifts_the_limit_on_periods_that_an_import_ends(store):
    many = {f"{35000000000000 + number}": TODAY - 90 for number in range(OVER_MIN)}
    with pytest.raises(EirError, match=r"would end 1,000 periods of grace, and an import may end 999 .*--force"):
        await take(store, many, is_over=is_over)
    assert await store.states() == {}
    assert (await take(store, many, is_over=is_over, force=True)).over == OVER_MIN
    *_, event = await store.history(NAME)
    assert event.outcome == FORCED


async def test_an_undo_takes_back_exactly_the_days_of_the_last_import(store):
    await take(store, {ONE: TODAY - 5, TWO: TODAY - 5, THREE: TODAY - 90})
    await take(store, {ONE: TODAY - 61, TWO: TODAY - 61, THREE: TODAY - 5, FOUR: TODAY - 61})
    node = SightingNode(store)
    await node.keeper.start()
    node.see(f"{int(FOUR) + 1}")
    for registered in ([TWO], [REGISTERED]):  # TWO leaves the list again
        node.register(registered)
        await node.round()
    report = await undo(store)
    assert (report.source, report.removed, report.later, report.changed) == ("old.csv", 1, 1, 1)
    expected = {ONE: TODAY - 5, TWO: WAS_LISTED, THREE: TODAY - 90, f"{int(FOUR) + 1}": TODAY}
    assert await stored(store) == expected
    *_, event = await store.history(NAME)
    assert event.detail.startswith("undo of the import of old.csv at 2026-11-30T12:00:00Z: 1 devices removed")
    await node.round()
    assert node.days() == expected
    with pytest.raises(
        EirError, match=r"no import can be taken back; the import of old\.csv has been taken back already"
    ):
        await undo(store)


async def test_an_import_after_an_undo_can_be_taken_back_and_one_that_writes_no_day_hides_none(store):
    await take(store, {ONE: TODAY - 5})
    await undo(store)
    await take(store, {ONE: TODAY - 9})
    last = await store.some_pages(NAME, [int(ONE) // PAGE_KEYS])
    keys = np.array([int(ONE)], np.uint64)
    later = seen_now(keys, np.array([TODAY], np.uint64), NOW + timedelta(days=40))
    await import_days(later, NAME, store, registering=(), source="again.csv", who="test@localhost", now=NOW)
    assert await store.some_pages(NAME, [int(ONE) // PAGE_KEYS]) != last, "the device was seen again"
    assert (await undo(store)).source == "old.csv"
    assert await stored(store) == {}


async def test_without_an_import_there_is_no_undo(store):
    with pytest.raises(EirError, match="no import can be taken back"):
        await undo(store)


class Busy:
    """A store of which other writers change the record just before each of the first writes."""

    def __init__(self, store, times):
        self.store, self.times = store, times

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def amend(self, name, state, pages, **options):
        if self.times:
            self.times -= 1
            await take(self.store, {f"{next(OTHERS):014d}": TODAY})
        return await self.store.amend(name, state, pages, **options)


async def test_an_import_beside_nodes_that_write_is_repeated(store):
    await take(store, {ONE: TODAY})
    await take(Busy(store, 3), {ONE: TODAY - 1, TWO: TODAY - 1})
    found = await stored(store)
    assert (len(found), found[ONE], found[TWO]) == (5, TODAY - 1, TODAY - 1)
    with pytest.raises(GenerationConflict, match="try again"):
        await take(Busy(store, TRIES_MAX), {ONE: TODAY - 2})


async def test_a_node_takes_an_import_over(store):
    node = SightingNode(store)
    await node.keeper.start()
    node.see(ONE, TWO)
    await node.round()
    await take(store, {ONE: TODAY - 50, THREE: TODAY - 50})
    await node.round()
    assert node.days() == {ONE: TODAY - 50, TWO: TODAY, THREE: TODAY - 50}
    assert node.keeper.first_days == {TODAY - 50: 2, TODAY: 1}
    assert not node.faults
