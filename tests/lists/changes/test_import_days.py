"""Import of first sightings: rows of a file, the earliest day, registered devices, and nodes that run."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from simulated.first_sightings import NAME, TODAY, SightingNode

from eir.device import device_key
from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.import_days import (
    OVER_MIN,
    DaysImport,
    import_days,
    read_days,
    read_merged,
    seen_now,
    undo_import,
    undo_sightings,
)
from eir.lists.log.change import LEARN
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import IMPORT, WAS_LISTED, first_days, sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.stores.open import open_store
from eir.lists.table.columns import WHOLE, rows_of

ONE, TWO, THREE, FOUR = "35209900176148", "35209900176149", "35332811002233", "86123456789012"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path):
    found = open_store("sqlite", tmp_path)
    yield found
    await found.close()


async def take(store, devices, *, registering=(), source="old.csv", **options):
    """Import devices with their first days; return the result."""
    rows = seen_now(keys_of(*devices), np.array([*devices.values()], "<u8"), NOW)
    report, _ = await import_days(
        rows, NAME, store, registering=registering, source=source, who="test@localhost", now=NOW, **options
    )
    return report


async def undo(store, import_id=None):
    report, _ = await undo_import(NAME, store, who="test@localhost", now=NOW, import_id=import_id)
    return report


def keys_of(*devices):
    return np.array([*map(device_key, devices)], "<u8")


def is_over(firsts):
    return firsts < TODAY - 60


async def stored(store):
    """The devices on record, as an export has them."""
    rows = (await read_merged(store, NAME)).rows()
    return {f"{key:014d}": first for key, first in zip(rows.keys.tolist(), first_days(rows).tolist(), strict=True)}


async def newest(store):
    """The newest change of the imported days."""
    return (await store.log(NAME + IMPORT, 0))[-1].change


async def sight(store, devices):
    """Write devices to the record itself."""
    rows = sighted_rows(keys_of(*devices), np.array([*devices.values()], "<u4"), TODAY)
    await ListWriter(store, NAME, FIRST_SEEN, "node").write(lambda _: ListUpdate(what=LEARN, added=rows))


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
    rows = zip(found.rows.keys.tolist(), first_days(found.rows).tolist(), strict=True)
    assert list(rows) == [(int(ONE), 20_483), (int(THREE), WAS_LISTED)]
    assert found.tally.bad == 8
    day = "first_seen is not a day from 2000-01-01 to today (UTC), such as 2026-11-30"
    assert found.tally.complaints[:7] == [f"old.csv:{line}: {day}" for line in range(4, 11)]
    assert found.tally.complaints[7].startswith("old.csv:11: no IMEI (14 to 16 digits)")
    assert (seen[0], seen[-1]) == (("read", 0, file.stat().st_size), ("read", file.stat().st_size, file.stat().st_size))


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
    before = (await store.heads()).digests
    assert await take(store, {ONE: TODAY, THREE: TODAY}) == DaysImport(2, 0, 0, 0)
    assert (await store.heads()).digests == before
    change = await newest(store)
    assert (change.what, change.who, change.generation) == ("import", "test@localhost", 2)
    assert change.detail.startswith("import of old.csv: 3 devices: 1 new on record, 1 with an earlier day")


async def test_a_sighting_counts_as_known(store):
    await sight(store, {ONE: TODAY - 5, TWO: TODAY - 5})
    assert await take(store, {ONE: TODAY - 3, TWO: TODAY - 9}) == DaysImport(2, 0, 1, 0)
    assert await stored(store) == {ONE: TODAY - 5, TWO: TODAY - 9}


async def test_a_device_that_left_a_list_gets_no_second_period(store):
    await sight(store, {ONE: WAS_LISTED})
    await take(store, {ONE: TODAY})
    assert await stored(store) == {ONE: WAS_LISTED}


async def test_registered_devices_are_left_out(store):
    added = rows_of([int(ONE), WHOLE | int(FOUR[:8]), int(THREE)], ends=[0, 0, 1])
    await ListWriter(store, "registered", "devices", "eir").write(lambda _: ListUpdate(what="add", added=added))
    devices = dict.fromkeys([ONE, TWO, THREE, FOUR], TODAY)
    assert await take(store, devices, registering=["registered", "never loaded"]) == DaysImport(4, 2, 0, 2)
    assert await stored(store) == {TWO: TODAY, THREE: TODAY}


async def test_a_list_with_the_name_of_the_record_is_refused(store):
    added = rows_of([int(TWO)])
    await ListWriter(store, NAME, "devices", "eir").write(lambda _: ListUpdate(what="add", added=added))
    with pytest.raises(EirError, match="give one of them another name"):
        await take(store, {ONE: TODAY})


async def test_the_periods_that_an_import_ends_and_begins_are_counted_and_a_dry_run_writes_nothing(store):
    await take(store, {ONE: TODAY - 5, TWO: TODAY - 90})
    before = (await store.heads()).digests
    wrong = {ONE: TODAY - 61, TWO: TODAY - 100, THREE: TODAY - 61, FOUR: TODAY - 60}
    report = await take(store, wrong, is_over=is_over, dry_run=True)
    assert (report.new, report.earlier, report.over, report.begun) == (2, 2, 2, 1), "TWO has no period already"
    assert (await store.heads()).digests == before
    assert await take(store, wrong, is_over=is_over) == report


async def test_only_force_lifts_the_limit_on_periods_that_an_import_ends(store):
    many = {f"{35000000000000 + number}": TODAY - 90 for number in range(OVER_MIN)}
    with pytest.raises(EirError, match=r"would end 1,000 periods of grace, and an import may end 999 .*--force"):
        await take(store, many, is_over=is_over)
    assert not len(await store.heads())
    assert (await take(store, many, is_over=is_over, force=True)).over == OVER_MIN
    assert (await newest(store)).lifted


async def test_an_undo_takes_back_exactly_the_days_of_the_last_import(store):
    await take(store, {ONE: TODAY - 5, THREE: TODAY - 90}, source="first.csv")
    await take(store, {ONE: TODAY - 61, TWO: TODAY - 61, THREE: TODAY - 5, FOUR: TODAY - 61})
    await sight(store, {TWO: WAS_LISTED, f"{int(FOUR) + 1}": TODAY})
    report = await undo(store)
    assert (report.import_id, report.removed, report.later, report.changed) == (2, 1, 1, 1)
    assert await stored(store) == {ONE: TODAY - 5, TWO: WAS_LISTED, THREE: TODAY - 90, f"{int(FOUR) + 1}": TODAY}
    assert (await newest(store)).detail.startswith(
        "undo of the import of old.csv at 2026-11-30T12:00:00Z: 1 devices removed"
    )
    for import_id, what in ((2, "import 2 cannot"), (None, "no import can")):
        with pytest.raises(
            EirError, match=rf"{what} be taken back; the import of old\.csv has been taken back already"
        ):
            await undo(store, import_id)
    assert (await undo(store, 1)).import_id == 1


async def test_an_earlier_import_is_taken_back_by_its_number(store):
    await take(store, {ONE: TODAY - 5, TWO: TODAY - 5}, source="first.csv")
    await take(store, {ONE: TODAY - 9, THREE: TODAY - 9}, source="second.csv")
    report = await undo(store, 1)
    assert (report.removed, report.later, report.changed) == (1, 0, 1)
    assert await stored(store) == {ONE: TODAY - 9, THREE: TODAY - 9}


async def test_an_undo_does_not_restore_the_day_of_an_import_that_was_taken_back(store):
    """The day before the import is that of the newest import which still counts; an import that was taken back earlier is not read."""
    await take(store, {ONE: TODAY - 2}, source="kept.csv")
    await take(store, {ONE: TODAY - 5, TWO: TODAY - 5})
    await undo(store)
    await take(store, {ONE: TODAY - 20, TWO: TODAY - 20, THREE: TODAY - 20})
    await take(store, {ONE: TODAY - 30, TWO: TODAY - 30})
    await take(store, {ONE: TODAY - 50, TWO: TODAY - 50, THREE: TODAY - 50})
    await undo(store, 4)
    await undo(store, 5)
    assert await stored(store) == {ONE: TODAY - 50, TWO: TODAY - 50, THREE: TODAY - 50}
    report = await undo(store, 6)
    assert (report.removed, report.later, report.changed) == (2, 1, 0)
    assert await stored(store) == {ONE: TODAY - 2}


async def test_an_import_after_an_undo_can_be_taken_back_and_one_that_changes_no_day_hides_none(store):
    await take(store, {ONE: TODAY - 5})
    await undo(store)
    await take(store, {ONE: TODAY - 9})
    await take(store, {ONE: TODAY}, source="again.csv")
    assert "old.csv" in (await undo(store)).detail
    assert await stored(store) == {}


async def test_without_an_import_there_is_no_undo(store):
    with pytest.raises(EirError, match="no import can be taken back"):
        await undo(store)


async def test_an_import_beside_another_one_is_repeated(store):
    """Another import is written between the read and the commit."""
    commit = store.commit

    async def beaten(*args, **options):
        store.commit = commit
        await take(store, {TWO: TODAY - 3})
        return await commit(*args, **options)

    store.commit = beaten
    assert await take(store, {ONE: TODAY - 1, TWO: TODAY - 1}) == DaysImport(2, 1, 0, 0)
    assert await stored(store) == {ONE: TODAY - 1, TWO: TODAY - 3}


async def test_nodes_follow_an_import_and_its_undo(store, tmp_path):
    """Also a node that was away for both, and one that restarts."""
    node, away = [await SightingNode(store, tmp_path / name).start() for name in "ab"]
    node.see(ONE, TWO)
    await node.round()
    await away.round()
    await take(store, {ONE: TODAY - 50, THREE: TODAY - 50})
    await node.round()
    assert node.days() == {ONE: TODAY - 50, TWO: TODAY, THREE: TODAY - 50}
    assert node.learned.first_days == {TODAY - 50: 2, TODAY: 1}
    assert node.published[-1].entries == 3
    assert not node.learned.refused
    again = await SightingNode(store, tmp_path / "a").start()
    assert again.days() == node.days()
    await undo(store)
    for each in (node, away, again):
        await each.round()
        assert each.days() == {ONE: TODAY, TWO: TODAY}
        assert not each.faults


async def test_an_undo_of_a_generation_removes_its_devices_from_the_record(store):
    await sight(store, {ONE: TODAY - 90, TWO: TODAY})
    await sight(store, {THREE: TODAY})
    devices, change = await undo_sightings(NAME, store, 1, who="test@localhost", now=NOW)
    assert (devices, change.detail) == (2, "undo of generation 1")
    assert await stored(store) == {THREE: TODAY}
    assert await undo_sightings(NAME, store, 1, who="test@localhost", now=NOW) == (0, None)
    with pytest.raises(EirError, match="no change of generation 9"):
        await undo_sightings(NAME, store, 9, who="test@localhost", now=NOW)
