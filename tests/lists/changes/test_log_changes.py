"""Loads, local rows, rollbacks, resets and restores of lists as logs, and what reads their content, on SQLite and Redis."""

import asyncio
import io
import random
from datetime import UTC, datetime, timedelta

import pytest
from local_edits import edit
from simulated.releases import NAME, NOW, make_key, public, text

from eir.errors import EntryRefused, GenerationConflict, NothingToRollBack, ReleaseRefused, StoreError
from eir.lists.changes.data_files import STAGES
from eir.lists.changes.listings import read_listings, read_reasons
from eir.lists.changes.local_rows import ADD
from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.changes.undo import plan_rollback, restored, serial_reset
from eir.lists.log import writer as writing
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListWriter
from eir.lists.record.kept_content import changes_of_rows, read_past
from eir.lists.record.listed_entries import entries_in, reason_and_day
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import ListSettings
from eir.lists.rows.table_export import export_table
from eir.lists.stores.log_redis import RedisLogStore
from eir.lists.stores.log_sqlite import SqliteLogStore
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
        opened = RedisLogStore(server.url)
    else:
        opened = SqliteLogStore(tmp_path / "log.sqlite")
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


class TestLoad:
    async def test_a_full_release(self, agency, store):
        marks, seen = {}, []
        manifest = agency.release(IMEIS)
        report = await load(
            agency, store, manifest, save_mark=marks.__setitem__, progress=lambda *call: seen.append(call)
        )
        head = (await store.heads())[NAME]
        assert set(await held(store)) == set(IMEIS)
        assert (head.kind, head.serial, head.highest_serial, head.generation, head.entries, head.devices) == (
            "devices",
            1,
            1,
            1,
            143,
            143,
        )
        assert (head.issued, head.expires, head.loaded_at) == (
            text(NOW - timedelta(days=1)),
            text(NOW + timedelta(days=14)),
            text(NOW),
        )
        assert head.signers[0].startswith("agency SHA256:")
        assert (report.rows, report.entries, report.devices, report.entries_before, report.come, report.gone) == (
            143,
            143,
            143,
            0,
            143,
            0,
        )
        assert report.head == head
        assert set(report.seconds) == set(STAGES)
        assert all(0 <= done <= total for _, done, total in seen)
        assert marks == {NAME: (0, 1)}
        (entry,) = await store.log(NAME, 0)
        assert (entry.change.what, entry.change.who, entry.change.lifted) == ("load", "tester@host", ())
        assert entry.change.detail.startswith("143 entries, before 0; 143 devices come, 0 go; signed by agency SHA256:")
        assert report.as_text().startswith(f"{NAME} full 1: 143 entries, before 0; 143 devices come, 0 go; ")
        assert report.as_json()["entries"] == 143

    async def test_a_dry_run_writes_nothing(self, agency, store):
        report = await load(agency, store, agency.release(["350000000000009", *IMEIS]), dry_run=True)
        assert (report.come, report.wrong_check_digits, report.head) == (144, 1, None)
        assert await store.heads() == {}

    async def test_serials_are_never_used_again(self, agency, store):
        await load(agency, store, agency.release(IMEIS, serial=5))
        for serial in (4, 5):
            why = await refused(agency, store, agency.release(IMEIS[1:], serial=serial))
            assert (why.reason, why.list_name, why.serial) == ("serial", NAME, serial)
            assert why.detail == f"serial {serial} is not above 5, the highest ever accepted for {NAME}"
        assert (await refused(agency, store, agency.release(IMEIS, serial=5_000_000))).reason == "serial_step"
        why = await refused(agency, store, agency.release(IMEIS, serial=6), marks={NAME: (0, 9)})
        assert why.detail == f"serial 6 is not above 9, the highest ever accepted for {NAME}"

    async def test_a_replay_is_refused_before_its_files_are_read(self, agency, store):
        await load(agency, store, agency.release(IMEIS, serial=5))
        manifest = agency.release(IMEIS, serial=5)
        (agency.drop / "data-5.csv").write_bytes(b"")
        assert (await refused(agency, store, manifest)).reason == "serial"

    async def test_times(self, agency, store):
        manifest = agency.release(IMEIS)
        assert (await refused(agency, store, manifest, now=NOW + timedelta(days=20))).reason == "expired"
        assert (await refused(agency, store, manifest, now=NOW - timedelta(days=2))).reason == "issued_in_future"

    @pytest.mark.parametrize(
        ("keep", "add", "reason", "says"),
        [(110, 0, "shrink", "0 devices come, 33 go"), (143, 40, "growth", "40 devices come, 0 go")],
    )
    async def test_limits(self, agency, store, keep, add, reason, says):
        agency.settings(change_min=0)
        await load(agency, store, agency.release(IMEIS))
        rows = IMEIS[:keep] + [f"35000000{number:06d}" for number in range(add)]
        why = await refused(agency, store, agency.release(rows, serial=2))
        assert (why.reason, why.detail[: len(says)]) == (reason, says)
        assert why.detail.endswith("; if this is intended, load it with --force")
        report = await load(agency, store, agency.release(rows, serial=2), force=True)
        assert report.lifted == (reason,)
        change = (await store.log(NAME, 1))[0].change
        assert change.lifted == (reason,)
        assert f"--force lifted the limit on {reason}" in change.detail
        agency.settings(change_min=1000)
        await load(agency, store, agency.release(IMEIS[:5], serial=3))

    async def test_an_empty_list_in_force_has_limits_and_a_first_release_has_none(self, agency, store):
        many = [f"35111111{number:06d}" for number in range(1000)]
        assert (await load(agency, store, agency.release(many), dry_run=True)).come == 1000
        await load(agency, store, agency.release({"none.csv": ("entries", "eir", b"imei\n")}))
        assert (await refused(agency, store, agency.release(many))).reason == "growth"

    async def test_sims_that_devices_get_are_limited(self, agency, store):
        agency.settings(kind="pairs", change_min=0)
        pairs = [file("imei,imsi", *(f"{imei},00101000000000{sim}" for imei in IMEIS)) for sim in (1, 2)]
        await load(agency, store, agency.release({"1.csv": ("entries", "eir", pairs[0])}))
        why = await refused(agency, store, agency.release({"2.csv": ("entries", "eir", pairs[1])}))
        assert "143 devices come, 143 go, and 143 are in force" in why.detail

    async def test_rows_that_have_ended_do_not_count_and_rows_that_have_not_begun_do(self, agency, store):
        agency.settings(change_min=0)
        await load(agency, store, agency.release(IMEIS))
        ended = file("imei,until", *(f"{imei},2020-01-01" for imei in IMEIS))
        why = await refused(agency, store, agency.release({"o.csv": ("entries", "eir", ended)}, serial=2))
        assert "0 devices come, 143 go" in why.detail
        later = file("imei,begin", *(f"35000000{number:06d},2027-01-01" for number in range(40)))
        why = await refused(agency, store, delta(agency, 3, 1, added=later))
        assert "40 devices come, 0 go" in why.detail
        until = file("imei,until", *(f"{imei},2026-11-26" for imei in IMEIS))
        await load(agency, store, agency.release({"u.csv": ("entries", "eir", until)}, serial=4))
        why = await refused(
            agency, store, agency.release(IMEIS, serial=5, expires="2028-01-01T00:00:00Z"), now=NOW + timedelta(days=10)
        )
        assert "143 devices come, 0 go" in why.detail
        none = agency.release({"n.csv": ("entries", "eir", b"imei\n")}, serial=6, expires="2028-01-01T00:00:00Z")
        assert (await load(agency, store, none, now=NOW + timedelta(days=10))).gone == 0

    async def test_the_content_depends_on_the_releases_and_not_on_the_time_of_the_load(self, agency, store):
        agency.settings(name="later")
        rows = file("imei,until", f"{IMEI},2026-11-26", f"{OTHER},")
        added = file("imei,begin,until", f"{IMEI},2027-01-01,2027-02-01")
        for name, now in ((NAME, NOW), ("later", NOW + timedelta(days=5))):
            full = agency.release({"f.csv": ("entries", "eir", rows)}, serial=1, list=name)
            await load(agency, store, full, now=now)
            await load(agency, store, delta(agency, 2, 1, added=added, list=name), now=now)
        heads = await store.heads()
        assert heads[NAME].content == heads["later"].content
        assert set(await held(store)) == {IMEI, OTHER}

    async def test_a_delta_and_its_base(self, agency, store):
        added = file("imei,reason", "35123456000000,lost", "99999999999999,new", "A0000000000001,")
        removed = file("imei", IMEIS[7], IMEIS[8])
        why = await refused(agency, store, delta(agency, 2, 1, added, removed))
        assert (why.reason, "a full release is needed" in why.detail) == ("base", True)
        await load(agency, store, agency.release([imei for imei in IMEIS if imei != IMEIS[8]], serial=1))
        why = await refused(agency, store, delta(agency, 4, 3, added, removed))
        assert (why.reason, "base 1" in why.detail) == ("base", True)
        report = await load(agency, store, delta(agency, 5, 1, added, removed))
        assert (report.come, report.gone) == (2, 1)
        expected = dict.fromkeys(IMEIS, "") | {IMEIS[0]: "lost", "99999999999999": "new", "A0000000000001": ""}
        assert await held(store) == {imei: reason for imei, reason in expected.items() if imei not in IMEIS[7:9]}
        head = (await store.heads())[NAME]
        assert (head.serial, head.reasons) == (5, ("", "lost", "new"))
        agency.settings(kind="subscribers")
        why = await refused(agency, store, delta(agency, 6, 5, added=b"imsi\n001010000000001\n"))
        assert why.detail == "the list in force is a list of devices; publish a full release of subscribers"
        await load(
            agency,
            store,
            agency.release({"s.csv": ("entries", "eir", b"imsi\n001010000000001\n")}, serial=7),
            force=True,
        )
        assert (await read(store)).head.kind == "subscribers"

    async def test_the_earliest_begin_and_the_latest_end_count_in_a_delta(self, agency, store):
        rows = (
            "A0000000000001,2026-12-22,2027-01-31",
            "A0000000000002,,",
            "A0000000000003,,2026-11-26",
            "A0000000000004,,2026-12-31",
        )
        await load(agency, store, agency.release({"f.csv": ("entries", "eir", file("imei,begin,until", *rows))}))
        rows = (
            "A0000000000001,2026-12-01,2026-12-31",
            "A0000000000002,2027-01-01,2027-02-01",
            "A0000000000003,2027-01-01,",
            "A0000000000004,2027-01-01,2027-02-01",
        )
        later = NOW + timedelta(days=3)
        await load(
            agency, store, delta(agency, 2, 1, added=file("imei,begin,until", *rows), issued=text(later)), now=later
        )
        found = {
            entry.text("devices")[-1]: (entry.begin, entry.until)
            for entry in entries_in((await read(store)).table.rows())
        }
        assert found == {
            "1": (day("2026-12-01"), day("2027-02-01")),
            "2": (0, 0),  # a later notice does not free a blocked phone
            "3": (day("2027-01-01"), 0),  # the row before had ended
            "4": (0, day("2027-02-02")),
        }

    async def test_a_tac_has_one_type_at_a_time(self, agency, store):
        agency.settings(kind="device_types")
        files = {
            "t.csv": (
                "entries",
                "tacs",
                file("tac,device_type,allocation_date", "35209900,Smartphone,2020-01-01", "35209901,Module,2021-02-01"),
            )
        }
        await load(agency, store, agency.release(files))
        changed = {"d.csv": ("added", "tacs", file("tac,device_type", "35209900,Module", "35209901,module"))}
        await load(agency, store, agency.release(changed, serial=2, kind="delta", base=1))
        rows = [
            (
                entry.text("device_types")[:8],
                reason_at(("", "Smartphone", "Module", "module"), entry.reason),
                entry.date // DAY,
            )
            for entry in entries_in((await read(store)).table.rows())
        ]
        assert rows == [("35209900", "Module", 0), ("35209901", "module", 18_659)]

    async def test_dates_of_entries(self, agency, store):
        agency.settings(dates=True)
        await load(
            agency,
            store,
            agency.release({"f.csv": ("entries", "eir", file("imei,date", f"{IMEI},2026-10-01", f"{OTHER},"))}),
        )
        await load(agency, store, delta(agency, 2, 1, added=file("imei,date", f"{IMEI},", f"{OTHER},2026-10-02")))
        content = await read(store)
        assert [reason_and_day(content.table, (), int(imei)) for imei in (IMEI, OTHER)] == [
            (None, 20_727),
            (None, 20_728),
        ]

    async def test_a_chain_of_deltas_has_the_digest_of_the_full_list(self, agency, store):
        agency.settings(growth_max=100, shrink_max=1)
        agency.settings(name="whole", growth_max=100, shrink_max=1)
        rng = random.Random(5)
        pool = [f"{35000000 + rng.randrange(4):08d}{rng.randrange(60):06d}" for _ in range(150)]
        truth = dict.fromkeys(rng.sample(pool, 60), "first")
        for serial in range(1, 9):
            removed, added = rng.sample(pool, 20), {imei: f"r{rng.randrange(6)}" for imei in rng.sample(pool, 20)}
            if serial == 1:
                manifest = agency.release(
                    {"f.csv": ("entries", "eir", file("imei,reason", *map(",".join, truth.items())))}
                )
            else:
                truth = {imei: reason for imei, reason in truth.items() if imei not in removed} | added
                manifest = delta(
                    agency,
                    serial,
                    serial - 1,
                    file("imei,reason", *map(",".join, added.items())),
                    file("imei", *removed),
                )
            await load(agency, store, manifest)
            rows = file("imei,reason", *map(",".join, random.Random(serial).sample([*truth.items()], len(truth))))
            await load(agency, store, agency.release({"w.csv": ("entries", "eir", rows)}, serial=serial, list="whole"))
            heads = await store.heads()
            assert heads[NAME].content == heads["whole"].content
            assert await held(store) == await held(store, "whole") == truth

    async def test_bad_rows_and_ranges_are_limited(self, agency, store):
        agency.settings(bad_rows_max=2, range_tacs_max=2)
        bad = ["35000000000001", "x", "1234567", "y"]
        why = await refused(agency, store, agency.release(bad))
        assert why.reason == "bad_rows"
        assert "data-1.csv:3: " in why.detail
        report = await load(agency, store, agency.release(bad[:3]))
        assert (report.bad_rows, report.entries) == (2, 1)
        wide = {"r.csv": ("entries", "eir", file("imei_from,imei_to", "35000000000000,35000003999999"))}
        why = await refused(agency, store, agency.release(wide, serial=3))
        assert (why.reason, "ranges over 2 TACs (range_tacs_max)" in why.detail) == ("range", True)
        assert (await load(agency, store, agency.release(wide, serial=3), force=True)).lifted == ("growth", "range")
        assert (
            await refused(agency, store, agency.release(["x", "y", "z"], serial=4), force=True)
        ).reason == "bad_rows"

    async def test_reasons_keep_their_indexes_and_a_full_table_begins_anew(self, agency, store):
        def rows(first, last):
            return {
                "f.csv": (
                    "entries",
                    "eir",
                    file("imei,reason", *(f"350000000{n:05d},r{n}" for n in range(first, last))),
                )
            }

        await load(agency, store, agency.release(rows(0, 200)))
        await load(agency, store, agency.release(rows(100, 250), serial=2))
        assert (await store.heads())[NAME].reasons == ("", *(f"r{n}" for n in range(250)))
        await load(agency, store, agency.release(rows(200, 400), serial=3))
        assert (await store.heads())[NAME].reasons == ("", *(f"r{n}" for n in range(200, 400)))
        assert await held(store) == {f"350000000{n:05d}": f"r{n}" for n in range(200, 400)}

    async def test_of_two_loaders_one_wins(self, agency, store):
        manifests = [agency.release(IMEIS[:number], serial=number) for number in (50, 51)]
        first = [delta(agency, serial, 50, file("imei", f"350000000000{serial}")) for serial in (60, 61)]
        await load(agency, store, manifests[0])
        results = await asyncio.gather(*(load(agency, store, manifest) for manifest in first), return_exceptions=True)
        assert sorted(getattr(result, "reason", "") for result in results) in (["", "base"], ["", "serial"])
        assert (await store.heads())[NAME].entries == 51

    async def test_a_list_that_never_stands_still_is_a_conflict(self, agency, store, monkeypatch):
        async def commit(*_, **__):
            raise GenerationConflict("changed")

        monkeypatch.setattr(store, "commit", commit)
        why = await refused(agency, store, agency.release(IMEIS))
        assert why.reason == "conflict"
        assert "was changed by another load or command meanwhile" in why.detail

    async def test_two_signatures_for_a_list_that_wants_two(self, agency, store):
        second = make_key(agency.folder, "second")
        agency.settings(threshold=2, signers=agency.trust("two", f"a {public(agency.key)}", f"b {public(second)}"))
        assert (await refused(agency, store, agency.release(IMEIS))).reason == "threshold"


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
        empty = SqliteLogStore(tmp_path / "empty.sqlite")
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
