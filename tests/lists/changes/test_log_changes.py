"""Loads, local rows, rollbacks, resets and restores of lists as logs, and what reads their content, on SQLite and Redis."""

import io
import random
from datetime import UTC, datetime, timedelta

import pytest
from local_edits import edit
from simulated.releases import NAME, NOW

from eir.errors import EntryRefused, GenerationConflict, NothingToRollBack, ReleaseRefused, StoreError
from eir.lists.changes.listings import read_listings, read_reasons
from eir.lists.changes.local_rows import ADD
from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.changes.undo import plan_rollback, restored, serial_reset
from eir.lists.log import writer as writing
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.kept_content import changes_of_rows, read_past
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import ListSettings
from eir.lists.rows.table_export import export_table
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.columns import rows_of

IMEIS = [f"35123456{number:06d}" for number in range(143)]
IMEI, OTHER, TAC = "35123456000001", "35123456000002", "35999999"
DAY = 86_400
NOW_S = int(NOW.timestamp())
LISTS = {
    "own": ListSettings(name="own", local=True, change_min=10**9),
    "limited": ListSettings(name="limited", local=True),
    "sims": ListSettings(name="sims", kind="subscribers", local=True),
    "bound": ListSettings(name="bound", kind="pairs", local=True),
    "signed": ListSettings(name="signed"),
}


@pytest.fixture(params=["sqlite", "redis"])
async def store(request, tmp_path):
    if request.param == "redis":
        server = request.getfixturevalue("server")
        server.flush()
        opened = RedisStore(server.url)
    else:
        opened = SqliteStore(tmp_path / "log.sqlite")
    yield opened
    await opened.close()


def writer(store, settings, now=NOW):
    return ListWriter(store, settings.name, settings.kind, "tester@host", keep=settings.keep, now=lambda: now)


def loader(agency, store, now=NOW, **options):
    return ReleaseLoader(agency.lists, store, "tester@host", now, **options)


async def load(agency, store, manifest, **options):
    return await loader(agency, store, **options).verify_and_load(manifest)


async def refused(agency, store, manifest, **options):
    before = await store.heads()
    with pytest.raises(ReleaseRefused) as caught:
        await load(agency, store, manifest, **options)
    assert await store.heads() == before
    return caught.value


async def read(store, name=NAME, at=None):
    return await read_content(store, name, (await store.heads())[name], at)


async def held(store, name=NAME, at=None):
    """Entry → reason."""
    content = await read(store, name, at)
    return {
        ("TAC " if e.whole_tac else "") + e.text(content.head.kind) + (f"+{e.imsi}" if e.imsi else ""): reason_at(
            content.head.reasons, e.reason
        )
        for e in entries_in(content.table.rows())
    }


def day(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def file(header, *rows):
    return "".join(f"{row}\n" for row in (header, *rows)).encode()


def delta(agency, serial, base, added=b"", removed=b"", **members):
    files = {f"a{serial}.csv": ("added", "eir", added), f"r{serial}.csv": ("removed", "eir", removed)}
    return agency.release(
        {name: entry for name, entry in files.items() if entry[2]}, serial=serial, kind="delta", base=base, **members
    )


class TestUndo:
    async def test_a_rollback_to_each_release_that_is_kept_over_bases_and_rows(self, agency, store, monkeypatch):
        monkeypatch.setattr(writing, "BASE_ROWS", 12)
        agency.settings(keep=3, change_min=1000)
        contents = {}
        for serial in range(1, 7):
            rows = file("imei,reason", *(f"{imei},r{serial}" for imei in IMEIS[serial : 60 + serial]))
            await load(agency, store, agency.release({"f.csv": ("entries", "eir", rows)}, serial=serial))
            contents[serial] = await held(store)
        with pytest.raises(NothingToRollBack, match=f"serial 99 of list {NAME} is not kept; there are: 5, 4, 3"):
            await plan_rollback(store, NAME, to=99)
        for to, number in ((None, 5), (3, 3)):
            planned = await plan_rollback(store, NAME, to=to)
            change = await writer(store, agency.lists[NAME]).write(planned.make)
            assert (change.what, change.serial, change.highest_serial, change.continues) == (
                "rollback",
                number,
                6,
                planned.target.digest,
            )
            assert await held(store) == contents[number]
        assert change.detail == "release 5, 4 undone; 60 entries"
        assert (await refused(agency, store, agency.release(IMEIS, serial=6))).reason == "serial"
        await load(agency, store, delta(agency, 7, 3, added=file("imei", IMEIS[100])))
        assert (await plan_rollback(store, NAME)).target.serial == 3

    async def test_releases_before_a_rollback_stay_for_the_next_one(self, agency, store):
        agency.settings(keep=3, change_min=1000)
        for serial in range(1, 5):
            await load(agency, store, agency.release(IMEIS[: 10 * serial], serial=serial))
        for serial in (3, 2):
            await writer(store, agency.lists[NAME]).write((await plan_rollback(store, NAME)).make)
            assert (await store.heads())[NAME].serial == serial
        await load(agency, store, agency.release(IMEIS[:90], serial=5))
        for serial in (2, 1):
            await writer(store, agency.lists[NAME]).write((await plan_rollback(store, NAME)).make)
            assert set(await held(store)) == set(IMEIS[: 10 * serial])

    async def test_a_rollback_undoes_the_restore_of_another_release(self, agency, store):
        backups = {}
        for serial in (3, 4, 5):
            await load(agency, store, agency.release(IMEIS[:serial], serial=serial))
            backups[serial] = await read(store)
        own = agency.lists[NAME]
        same = ListUpdate(what="heal", table=backups[5].table, reasons=backups[5].head.reasons)
        await writer(store, own).write(lambda _: same)
        await writer(store, own).write(restored(backups[3], made="2026-11-25", mark=(0, 5), force=True))
        for serial in (5, 4):
            change = await writer(store, own).write((await plan_rollback(store, NAME)).make)
            assert (change.serial, set(await held(store))) == (serial, set(IMEIS[:serial]))

    @pytest.mark.parametrize("what", ["heal", "apply-again", "abandon", "restore"])
    async def test_no_rollback_undoes_the_repair_of_a_local_list(self, store, what):
        await edit(store, "own", ADD, IMEI)
        await writer(store, LISTS["own"]).write(lambda _: ListUpdate(what=what, added=rows_of([int(OTHER)])))
        with pytest.raises(NothingToRollBack):
            await plan_rollback(store, "own")

    async def test_nothing_to_roll_back(self, agency, store):
        with pytest.raises(NothingToRollBack, match="it has never been loaded or changed"):
            await plan_rollback(store, NAME)
        await load(agency, store, agency.release(IMEIS))
        with pytest.raises(NothingToRollBack, match="is kept; publish the good data again with a serial above 1"):
            await plan_rollback(store, NAME)

    async def test_a_local_change_is_undone_but_no_row_of_a_feed(self, store):
        await edit(store, "own", ADD, IMEI)
        await edit(store, "own", ADD, OTHER, reason="wrong")
        planned = await plan_rollback(store, "own")
        await writer(store, LISTS["own"]).write(planned.make)
        assert await held(store, "own") == {IMEI: "lost"}
        detail = (await store.log("own", 2))[0].change.detail
        assert detail == f"change 2 undone (add by tester@host, 2026-11-25T12:00:00Z: wrong: {OTHER}); 1 entries"
        await edit(store, "own", ADD, OTHER, feed=True)
        with pytest.raises(NothingToRollBack, match="put the entries right by eir add and eir remove"):
            await plan_rollback(store, "own")

    async def test_a_change_since_the_plan_is_a_conflict(self, store):
        await edit(store, "own", ADD, IMEI)
        await edit(store, "own", ADD, OTHER)
        planned = await plan_rollback(store, "own")
        await edit(store, "own", ADD, IMEIS[9])
        with pytest.raises(GenerationConflict):
            await writer(store, LISTS["own"]).write(planned.make)

    async def test_an_operator_sets_the_highest_serial_back(self, agency, store):
        own = agency.lists[NAME]
        with pytest.raises(EntryRefused, match="has never been loaded"):
            await writer(store, own).write(serial_reset(NAME, to=1, reason="typo"))
        await load(agency, store, agency.release(IMEIS, serial=900))
        with pytest.raises(EntryRefused, match="is 900; expected a lower serial for --to"):
            await writer(store, own).write(serial_reset(NAME, to=900, reason="typo"))
        change = await writer(store, own).write(serial_reset(NAME, to=5, reason="typo"))
        assert (change.mark, change.serial, change.detail) == (
            (1, 5),
            900,
            "typo: the highest serial is 5 again, and was 900",
        )
        await load(agency, store, agency.release(IMEIS[:-1], serial=6))
        assert (await store.heads())[NAME].mark == (1, 6)

    async def test_a_backup_is_restored(self, agency, store, tmp_path):
        own = agency.lists[NAME]
        await load(agency, store, agency.release(IMEIS, serial=3))
        backup = await read(store)
        make = restored(backup, made="2026-11-25", mark=(0, 3))
        assert await writer(store, own).write(make) is None
        empty = SqliteStore(tmp_path / "empty.sqlite")
        change = await writer(empty, own).write(make)
        assert (change.generation, change.continues, change.mark, change.content) == (
            2,
            backup.head.digest,
            (0, 3),
            backup.head.content,
        )
        assert (await read(empty)).head.signers == backup.head.signers
        await empty.close()
        await load(agency, store, agency.release(IMEIS[:99], serial=4))
        with pytest.raises(GenerationConflict, match="serial 4"):  # the release came after the command's check
            await writer(store, own).write(make)
        change = await writer(store, own).write(restored(backup, made="2026-11-25", mark=(0, 7), force=True))
        assert (change.mark, change.serial) == ((1, 3), 3)
        assert set(await held(store)) == set(IMEIS)


class TestPast:
    async def test_the_content_at_a_time_and_the_oldest_time(self, store, monkeypatch):
        monkeypatch.setattr(writing, "BASE_ROWS", 2)
        monkeypatch.setattr(writing, "LOCAL_KEPT", timedelta(hours=1))
        for hour, imei in enumerate(IMEIS[:12]):
            await edit(
                store, "own", ADD, imei, now=NOW + timedelta(hours=hour), begin=NOW_S + 13 * 3600 if hour == 10 else 0
            )
        moment = NOW + timedelta(hours=10, minutes=30)
        past = await read_past(store, "own", moment)
        assert (past.change.generation, [change.generation for change in past.since]) == (11, [12])
        assert [
            len(past.rows_of(int(imei), at))
            for imei, at in (
                (IMEIS[9], moment),
                (IMEIS[10], moment),
                (IMEIS[10], NOW + timedelta(hours=14)),
                (IMEIS[11], moment),
            )
        ] == [1, 0, 1, 0]
        with pytest.raises(
            StoreError,
            match=r"own at 2026-11-25T13:00:00Z is no longer stored; the oldest stored content is of 2026-11-25T\d\d:00:00Z",
        ) as caught:
            await read_past(store, "own", NOW + timedelta(hours=1))
        assert caught.value.cause == "gone"

    async def test_before_its_first_change_a_list_did_not_exist(self, store):
        assert (await read_past(store, "own", NOW)).content is None
        await edit(store, "own", ADD, IMEI)
        past = await read_past(store, "own", NOW - timedelta(days=1))
        assert (past.change, past.content, len(past.since), len(past.rows_of(int(IMEI), NOW))) == (None, None, 1, 0)

    async def test_the_change_that_added_a_row(self, store):
        await edit(store, "own", ADD, *IMEIS[10:60])
        await edit(store, "own", ADD, IMEI)
        await edit(store, "own", ADD, OTHER)
        await edit(store, "own", ADD, IMEI, reason="again", replace=True)
        wanted = rows_of([int(imei) for imei in (IMEI, OTHER, IMEIS[10])])
        added = {key: change.generation for (key, _), change in (await changes_of_rows(store, "own", wanted)).items()}
        assert added == {int(IMEI): 4, int(OTHER): 3, int(IMEIS[10]): 1}
        assert (await changes_of_rows(store, "own", wanted, until=2))[int(IMEI), 0].generation == 2

    async def test_listings_that_are_no_longer_stored_have_no_reason(self, agency, store):
        agency.settings(keep=1)
        for serial in range(1, 6):
            rows = file("imei,reason", *(f"{serial:08d}{number:06d},lost" for number in range(50)))
            await load(agency, store, agency.release({"f.csv": ("entries", "eir", rows)}, serial=serial))
        counts = await read_listings(store, {NAME: "devices"}, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
        assert counts[NAME, True, "lost", 5] == counts[NAME, False, "lost", 4] == 50
        assert counts[NAME, True, None, None] + counts[NAME, False, None, None] > 100
        assert sum(counts.values()) == 50 * 9

    async def test_listings_of_a_month(self, agency, store):
        november, december = "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"
        agency.settings(growth_max=1e9)
        rows = file("imei,reason", *(f"{imei},lost" for imei in IMEIS))
        await load(agency, store, agency.release({"f.csv": ("entries", "eir", rows)}))
        tac = {
            "t.csv": ("added", "eir", file("tac,reason", "35123456,recall")),
            "m.csv": ("removed", "eir", file("imei", *IMEIS[:3])),
        }
        await load(agency, store, agency.release(tac, serial=2, kind="delta", base=1))
        await load(agency, store, agency.release(IMEIS[:9], serial=3), now=NOW + timedelta(days=8), force=True)
        kinds = {NAME: "devices", "none": "devices"}
        counts = await read_listings(store, kinds, november, december)
        assert counts == {(NAME, True, "lost", 35_123_456): 143, (NAME, True, "recall", 35_123_456): 1_000_000 - 143}
        counts = await read_listings(store, kinds, december, "2027-01-01T00:00:00Z")
        assert counts == {(NAME, False, "recall", 35_123_456): 1_000_000 - 9}
        assert await read_reasons(store, NAME, [int(IMEI), 1]) == ["", None]
        assert await read_reasons(store, "none", [1]) == [None]


@pytest.mark.long(short=["sqlite"])
async def test_a_million_random_rows_and_a_delta(agency, store):
    rng = random.Random(3)
    keys = {
        rng.randrange(35_000_000, 35_004_000) * 10**6 + rng.randrange(10**6): rng.randrange(9) for _ in range(1_000_000)
    }
    rows = file(
        "imei,reason,until", *(f"{key},r{reason},{'2027-01-31' * (reason > 6)}" for key, reason in keys.items())
    )
    await load(agency, store, agency.release({"f.csv": ("entries", "eir", rows)}))
    removed = rng.sample([*keys], 5000)
    added = [key + 1 for key in removed if key + 1 not in keys]
    await load(agency, store, delta(agency, 2, 1, file("imei", *added), file("imei", *removed)))
    content = await read(store)
    assert set(content.table.rows().keys.tolist()) == (keys.keys() - set(removed)) | set(added)
    out = io.StringIO()
    export_table(content.head, content.table, "eir", out)
    await load(agency, store, agency.release({"e.csv": ("entries", "eir", out.getvalue().encode())}, serial=3))
    assert (await store.heads())[NAME].content == content.head.content
    assert (await store.log(NAME, 2))[0].change.added == 0
