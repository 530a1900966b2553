"""What only the embedded store owes: its file, several processes, faults of disks."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from simulated.patience import PATIENCE_S
from simulated.store_content import cause_of, directly, event, page, pages_in, pages_of, state, until

from eir.errors import StoreError
from eir.lists.stores.open import open_store
from eir.lists.stores.sqlite import SqliteStore, file, reading
from eir.lists.stores.sqlite.writing import CHANGES_MAX
from eir.lists.stores.write import one_batch

A = pages_of([1, 2, 5_000_000])
B = pages_of([3])
MANY = [page(n, [n % 1000, 7]) for n in range(4_000)]


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "var" / "lists.sqlite")
    yield opened
    await opened.close()


async def test_open_store_means_the_file_in_the_state_folder(tmp_path):
    store = open_store("sqlite", tmp_path)
    assert isinstance(store, SqliteStore)
    assert store.path.parent == tmp_path
    await store.close()
    with pytest.raises(StoreError, match="sqlite"):
        open_store("mysql://user:secret@host", tmp_path)


async def test_what_is_asked_at_once_is_done_one_after_another(store):
    await asyncio.gather(*(store.record(event(detail=str(number))) for number in range(50)))
    assert [each.detail for each in await store.history()] == list(map(str, range(50)))


async def test_the_log_of_changes_is_bounded(store):
    await store.restore("a", state(A, generation=5000), one_batch(A), seen=0)
    steps = [(number, number + 1) for number in range(3500, 4999)]
    with directly(store) as db:
        db.executemany("INSERT INTO changes VALUES ('a', ?, ?, NULL)", steps)
    await store.amend("a", state([*A, *B], serial=2), B, seen=5000)
    with directly(store) as db:
        assert db.execute("SELECT count(*), max(after) FROM changes").fetchall() == [(CHANGES_MAX, 5001)]


async def test_file_and_folder_are_for_owner_and_group_only(store):
    await store.replace("a", state(A), A, seen=0)
    assert store.path.parent.stat().st_mode & 0o777 == 0o750
    for path in store.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path
    assert len(list(store.path.parent.iterdir())) == 3  # the file, its log, its shared memory


async def test_each_write_is_on_the_disk_before_it_counts(store):
    """After a loss of power, which no test brings about."""
    await store.replace("a", state(A), A, seen=0)
    full = 2
    assert await store.file.call(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (full,)


async def test_a_new_file_is_no_upgrade(tmp_path):
    reported = []
    store = SqliteStore(tmp_path / "lists.sqlite", report=lambda event, **_: reported.append(event))
    assert await store.states() == {}
    await store.close()
    assert reported == []


async def test_a_newer_form_is_read_and_not_changed(store):
    """Also where it has columns that this program does not know."""
    await store.replace("a", state(A), A, seen=0, event=event("a"))
    with directly(store) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("ALTER TABLE lists ADD COLUMN more TEXT")
        db.commit()
    before = store.path.read_bytes()
    newer = SqliteStore(store.path)
    assert "written by a newer eir (form 99, this one knows 3)" in await newer.newer()
    assert (await newer.states())["a"].content_digest == state(A).content_digest
    assert len(await newer.history()) == 1
    for write in (
        lambda: newer.replace("a", state(B), B, seen=1), lambda: newer.amend("a", state(B), B, seen=1), lambda: newer.record(event("a")),
        lambda: newer.rollback("a", seen=1), lambda: newer.restore("a", state(B), one_batch(B), seen=1), lambda: newer.claim("inbox", "me", 5),
        lambda: newer.reset_serial("a", 1, seen=1),
    ):  # fmt: skip
        assert await cause_of(write()) == "schema"
    await newer.close()
    assert store.path.read_bytes() == before


async def test_a_file_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "lists.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.execute("PRAGMA application_id = 77")
        db.commit()
    store = SqliteStore(path)
    assert await cause_of(store.states()) == "schema"
    await store.close()


async def test_rubbish_is_corrupt(tmp_path):
    path = tmp_path / "lists.sqlite"
    path.write_bytes(b"no database at all, " * 500)
    store = SqliteStore(path)
    assert await cause_of(store.states()) == "corrupt"
    await store.close()


async def test_a_damaged_file_is_corrupt(store):
    await store.replace("a", state(MANY), MANY, seen=0)
    with directly(store) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = store.path.stat().st_size
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    again = SqliteStore(store.path)
    assert await cause_of(pages_in(again)) == "corrupt"
    await again.close()


@pytest.mark.parametrize("column", ["generation", "page_set"])
@pytest.mark.parametrize("value", ["'x'", "1.5", "x'00'", "77"])
async def test_a_row_that_another_program_wrote_is_corrupt(store, column, value):
    """SQLite takes a text for a number, and a page_set of any number is somebody's."""
    await store.replace("a", state(A), A, seen=0)
    await store.amend("a", state(B), B, seen=1)
    for table, name in (("kept", "list"), ("lists", "name")):
        with directly(store) as db:
            db.execute(f"UPDATE {table} SET {column} = {value} WHERE {name} = 'a'")
            db.commit()
        if (column, value) == ("page_set", "77"):
            continue
        if table == "lists":
            assert await cause_of(store.state("a")) == "corrupt"
        assert await cause_of(store.releases("a")) == "corrupt"
        assert await cause_of(store.amend("a", state(A), A, seen=2)) == "corrupt"
        assert await cause_of(store.rollback("a", seen=2)) == "corrupt"


async def test_a_step_that_another_program_wrote_is_corrupt(store):
    await store.replace("a", state(A), A, seen=0)
    await store.amend("a", state(B), B, seen=1)
    with directly(store) as db:
        db.execute("UPDATE changes SET before = 'x'")
        db.commit()
    assert await cause_of(store.changes("a", 1)) == "corrupt"


async def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file" / "lists.sqlite")
    assert await cause_of(store.states()) == "cannot_open"
    await store.close()


async def test_a_lock_that_stays_is_busy_and_reading_goes_on(store):
    await store.replace("a", state(A), A, seen=0)
    second = SqliteStore(store.path, busy_s=0.1)
    with directly(store) as db:
        db.execute("BEGIN IMMEDIATE")
        assert await cause_of(second.record(event())) == "busy"
        assert await cause_of(second.replace("a", state(B), B, seen=1)) == "busy"
        assert await pages_in(second) == A
        db.execute("ROLLBACK")
    await second.record(event())
    await second.close()


async def test_a_claim_made_by_a_clock_that_went_back_since_holds_nobody_up(store):
    assert await store.claim("load", "one", 30)
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("UPDATE claims SET until = until + 3500")
        db.commit()
        assert not await store.claim("load", "two", 30)
        db.execute("UPDATE claims SET until = until + 3600")
        db.commit()
    assert await store.claim("load", "two", 30)


async def test_a_claim_is_released_even_if_the_releasing_task_is_cancelled(store):
    assert await store.claim("copy", "one", 60)
    busy = threading.Event()
    store.file.submit(lambda _: busy.wait(PATIENCE_S))
    giving_back = asyncio.create_task(store.claim("copy", "one", 0))
    await asyncio.sleep(0)
    giving_back.cancel()
    await asyncio.gather(giving_back, return_exceptions=True)
    busy.set()
    assert await store.claim("copy", "two", 60)


async def test_a_full_disk_changes_nothing_and_the_next_load_succeeds(store):
    stored = await store.replace("a", state(A), A, seen=0)

    def limit(db, pages):
        db.execute(f"PRAGMA max_page_count = {pages}")

    await store.file.call(limit, 40)
    assert await cause_of(store.replace("a", state(MANY, serial=2), MANY, seen=1)) == "full"
    assert await cause_of(store.amend("a", state(MANY, serial=2), MANY, seen=1)) == "full"
    assert await store.state("a") == stored
    assert await pages_in(store) == A
    await store.file.call(limit, 1 << 30)
    await store.replace("a", state(MANY, serial=2), MANY, seen=1)
    assert await pages_in(store) == MANY


@contextmanager
def full_disk():
    """No file may grow, as far as this process goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_file_that_nobody_has_open_is_read_on_a_full_disk(tmp_path):
    first = SqliteStore(tmp_path / "lists.sqlite")
    stored = await first.replace("a", state(MANY), MANY, seen=0)
    await first.close()
    late = SqliteStore(first.path, immutable_s=0.05)
    with full_disk():
        assert await late.state("a") == stored
        assert await pages_in(late) == MANY
        assert await cause_of(late.record(event())) == "full"
        assert await late.states() == {"a": stored}
    # Once there is room again, it is opened to write by itself, and what others write shows.
    other = SqliteStore(first.path)
    await other.replace("a", state(A, serial=2), A, seen=1)
    await until(lambda: is_at(late, 2))
    await late.record(event())
    for each in (late, other):
        await each.close()


async def is_at(store, generation):
    return (await store.state("a")).generation == generation


async def test_a_file_that_cannot_be_made_on_a_full_disk(tmp_path):
    store = SqliteStore(tmp_path / "lists.sqlite")
    with full_disk():
        assert await cause_of(store.states()) in {"full", "io"}
    assert await store.states() == {}
    await store.close()


async def test_a_file_that_was_taken_away_is_noticed(store):
    await store.replace("a", state(A), A, seen=0)
    for path in list(store.path.parent.iterdir()):
        path.unlink()
    assert await store.states() == {}
    await store.replace("a", state(B), B, seen=0)
    assert await pages_in(store) == B


async def test_sets_that_nobody_points_to_are_collected_by_a_later_load(store):
    def sets():
        with directly(store) as db:
            return db.execute("SELECT count(*) FROM sets").fetchone()[0], db.execute(
                "SELECT count(*) FROM pages"
            ).fetchone()[0]

    for seen in range(4):
        await store.replace("a", state(MANY, serial=seen + 1), MANY, seen=seen, keep=1)
    # In force, kept for a rollback, and one that fell out of use by the last switch.
    assert sets() == (3, 3 * len(MANY))

    async def failing():
        yield MANY
        raise StoreError("gone", "the source went away")

    assert await cause_of(store.restore("a", state(A), failing(), seen=4)) == "gone"
    await store.state("a")  # behind the removal of what was staged
    assert store.path.with_name(f"{store.path.name}-wal").stat().st_size == 0, "the room is free at once"
    for seen in (4, 5, 6):
        await store.replace("a", state(A), A, seen=seen, keep=1)
    assert sets() == (3, 3 * len(A))


async def test_a_load_that_others_left_unfinished_is_not_touched_while_it_is_young(store):
    async def with_another_load(pages, other, *, old=False):
        """What is restored is staged, and before it is put in force another list is loaded, which collects what looks dead."""
        yield pages
        if old:
            with directly(store) as db:
                db.execute("UPDATE sets SET keep_until = 1 WHERE keep_until IS NOT NULL")
        await store.replace("b", state(B), B, seen=other)

    await store.restore("a", state(A, generation=1), with_another_load(A, 0), seen=0)
    assert await pages_in(store) == A

    late = with_another_load(B, 1, old=True)
    assert await cause_of(store.restore("a", state(B, generation=2), late, seen=1)) == "staging_lost"
    assert await pages_in(store) == A


async def test_the_log_is_cut_after_a_load_and_after_a_long_reader(store):
    def log_bytes():
        return Path(f"{store.path}-wal").stat().st_size

    await store.replace("a", state(MANY), MANY, seen=0)
    assert log_bytes() < 50_000
    with directly(store) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM pages").fetchone()
        for seen in range(1, 6):
            await store.replace("a", state(MANY), MANY, seen=seen)
        assert log_bytes() > 500_000
        reader.execute("ROLLBACK")
    await store.replace("a", state(MANY), MANY, seen=6)
    assert log_bytes() < 50_000


async def test_pages_of_any_size_are_read_in_bounded_batches(store):
    pages = [page(n, range(0, 1_000_000, 7)) for n in range(30)] + [page(n, [n]) for n in range(100, 5_000)]
    await store.replace("a", state(pages), pages, seen=0)
    sizes, read = [], []
    async for _, batch in store.pages("a"):
        sizes.append(sum(len(p.keys) + 16 for p in batch))
        read += batch
    assert read == pages
    assert max(sizes) < reading.READ_BYTES + len(pages[0].keys) + 1_000
    assert sum(sizes) > 5 * max(sizes)


WRITER = """
import asyncio, sys
from pathlib import Path
from simulated.store_content import page, state
from eir.lists.stores.sqlite import SqliteStore
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    pages = [page(n, [1, 2, 3]) for n in range(60_000)]
    print("begun", flush=True)
    loads = 0
    while not Path(sys.argv[2]).exists():
        await store.replace("a", state(pages, serial=loads + 1), pages, seen=loads)
        loads += 1
    await store.close()
asyncio.run(main())
"""


@pytest.mark.long
async def test_another_process_loads_while_this_one_records_and_reads(store, tmp_path):
    recorder = SqliteStore(store.path, busy_s=120)  # SQLite's lock is not fair; a load still leaves gaps enough
    await recorder.record(event(detail="before"))
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(store.path), str(tmp_path / "over"), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )  # fmt: skip
    await writer.stdout.readline()
    recorded = loaded = 0
    while recorded < 12 or loaded < 3:
        await recorder.record(event())
        recorded += 1
        states = await recorder.states()
        loaded = states["a"].generation if "a" in states else 0
        await asyncio.sleep(0.01)
    (tmp_path / "over").touch()
    assert await writer.wait() == 0
    assert (await recorder.state("a")).generation >= loaded
    assert len(await recorder.history()) == recorded + 1
    await recorder.close()


async def test_a_slow_disk_does_not_hold_the_loop(store):
    await store.states()
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_db):
        return asyncio.run_coroutine_threadsafe(hold.wait(), loop).result()

    slow_one = asyncio.create_task(store.file.call(slow))
    waiting = asyncio.create_task(store.states())
    await asyncio.sleep(0)
    assert not waiting.done()
    hold.set()
    assert await waiting == {}
    await slow_one


async def test_closing_leaves_no_thread_and_no_descriptor(tmp_path):
    def descriptors():
        with os.scandir("/proc/self/fd") as entries:
            return sum("lists.sqlite" in str(Path(entry).resolve()) for entry in entries)

    before = set(threading.enumerate())
    store = SqliteStore(tmp_path / "lists.sqlite")
    await store.replace("a", state(A), A, seen=0)
    (thread,) = set(threading.enumerate()) - before
    assert descriptors() >= 2
    await store.close()
    assert descriptors() == 0
    await until(lambda: not thread.is_alive())


async def test_another_process_makes_the_file_meanwhile(tmp_path, monkeypatch):
    path, switch = tmp_path / "lists.sqlite", file.use_durable_wal

    def made_meanwhile(db):
        """The store has read that the file is empty, and has no lock on it."""
        monkeypatch.setattr(file, "use_durable_wal", switch)

        async def make():
            other = SqliteStore(path)
            await other.replace("a", state(A), A, seen=0)
            await other.close()

        asyncio.run(make())
        switch(db)

    monkeypatch.setattr(file, "use_durable_wal", made_meanwhile)
    store = SqliteStore(path)
    assert list(await store.states()) == ["a"]
    await store.close()


async def test_a_file_that_is_in_use_is_switched_to_wal_once_it_is_free(tmp_path, monkeypatch):
    """SQLite itself does not wait if two processes switch at once."""
    path, cause, tried = tmp_path / "lists.sqlite", file._cause, []
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_master").fetchall()

        def end_use(error):
            tried.append(cause(error))
            if other.in_transaction:
                other.execute("ROLLBACK")
            return tried[-1]

        monkeypatch.setattr(file, "_cause", end_use)
        store = SqliteStore(path, busy_s=0)
        assert await store.states() == {}
        assert tried == ["busy"]
        await store.close()


async def test_several_that_make_the_file_at_once(tmp_path):
    for n in range(5):
        stores = [SqliteStore(tmp_path / f"{n}.sqlite") for _ in range(4)]
        assert await asyncio.gather(*(one.states() for one in stores)) == [{}] * 4
        for one in stores:
            await one.close()
