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
from commits import commit, commit_base, everything, parts_of
from simulated.patience import PATIENCE_S
from simulated.store_content import cause_of, until

from eir.errors import StoreError
from eir.lists.log.change import Head
from eir.lists.stores import sqlite as sqlite_store
from eir.lists.stores import sqlite_file
from eir.lists.stores.open import open_store
from eir.lists.stores.sqlite import SqliteStore

MANY = [bytes(50_000)] * 40


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "var" / "lists.sqlite")
    yield opened
    await opened.close()


def directly(store):
    """The file as another program has it open."""
    return closing(sqlite3.connect(store.path))


async def test_open_store_means_the_file_in_the_state_folder(tmp_path):
    store = open_store("sqlite", tmp_path)
    assert isinstance(store, SqliteStore)
    assert store.path.parent == tmp_path
    await store.close()
    with pytest.raises(StoreError, match="sqlite"):
        open_store("mysql://user:secret@host", tmp_path)


async def test_a_change_whose_old_rows_cannot_be_deleted_is_stored(tmp_path):
    said = []
    store = SqliteStore(tmp_path / "lists.sqlite", report=lambda what, **more: said.append((what, more)))
    head, _ = await commit(store)
    with directly(store) as other:
        other.execute("CREATE TRIGGER fault BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'no deletion'); END")
    head, _ = await commit(store, head, oldest=2)
    assert dict(await store.heads()) == {"stolen": head}
    ((event, more),) = said
    assert (event, more["list"], "no deletion" in more["detail"]) == ("store_not_trimmed", "stolen", True)
    with directly(store) as other:
        other.execute("DROP TRIGGER fault")
    await commit(store, head, oldest=3)
    assert [entry.rows for entry in await store.log("stolen", 0)] == [None, None, b"rows"]
    await store.close()


async def test_file_and_folder_are_for_owner_and_group_only(store):
    await commit(store)
    assert store.path.parent.stat().st_mode & 0o777 == 0o750
    for path in store.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path
    assert len(list(store.path.parent.iterdir())) == 3  # the file, its log, its shared memory


async def test_each_write_is_on_the_disk_before_it_counts(store):
    """After a loss of power, which no test brings about."""
    await commit(store)
    full = 2
    assert await store._file.call(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (full,)


@pytest.mark.parametrize("form", [1, 3, 99])
@pytest.mark.parametrize("creates", [True, False])
async def test_a_file_of_another_format_is_refused_and_not_changed(tmp_path, form, creates):
    first = SqliteStore(tmp_path / "lists.sqlite")
    await commit(first)
    await first.close()
    with directly(first) as db:
        db.execute(f"PRAGMA user_version = {form}")
    before = first.path.read_bytes()
    other = SqliteStore(first.path, creates=creates)
    says = rf"lists.sqlite has format {form}, and this program has format 4: .* `eir export` .* `eir load` or `eir add --file`"
    for call in (other.heads, lambda: commit(other), lambda: other.claim("inbox", "me", 5)):
        with pytest.raises(StoreError, match=says) as caught:
            await call()
        assert caught.value.cause == "schema"
    await other.close()
    assert first.path.read_bytes() == before


async def test_a_missing_file_is_not_made_for_a_reader(tmp_path):
    reader = SqliteStore(tmp_path / "lists.sqlite", creates=False)
    assert await reader.heads() == {}
    assert not reader.path.exists()
    writer = SqliteStore(reader.path)
    head, _ = await commit(writer)
    assert await reader.heads() == {"stolen": head}
    for each in (reader, writer):
        await each.close()


async def test_a_file_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "lists.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.execute("PRAGMA application_id = 77")
        db.commit()
    store = SqliteStore(path)
    assert await cause_of(store.heads()) == "schema"
    await store.close()


async def test_rubbish_is_corrupt(tmp_path):
    path = tmp_path / "lists.sqlite"
    path.write_bytes(b"no database at all, " * 500)
    store = SqliteStore(path)
    assert await cause_of(store.heads()) == "corrupt"
    await store.close()


async def test_a_damaged_file_is_corrupt(store):
    await commit_base(store, parts=MANY)
    size = store.path.stat().st_size
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    again = SqliteStore(store.path)
    assert await cause_of(again.heads()) == "corrupt"
    await again.close()


async def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file" / "lists.sqlite")
    assert await cause_of(store.heads()) == "cannot_open"
    await store.close()


async def test_a_lock_that_stays_is_busy_and_reading_goes_on(store):
    head, _ = await commit(store)
    second = SqliteStore(store.path, busy_s=0.1)
    with directly(store) as db:
        db.execute("BEGIN IMMEDIATE")
        assert await cause_of(commit(second, head)) == "busy"
        assert await cause_of(second.stage("stolen", "a", [b"x"])) == "busy"
        assert await second.heads() == {"stolen": head}
        db.execute("ROLLBACK")
    await commit(second, head)
    await second.close()


async def test_a_claim_made_by_a_clock_that_went_back_since_holds_nobody_up(store):
    assert await store.claim("load", "one", 30)
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("UPDATE leases SET until = until + 3500")
        db.commit()
        assert not await store.claim("load", "two", 30)
        db.execute("UPDATE leases SET until = until + 3600")
        db.commit()
    assert await store.claim("load", "two", 30)


async def test_a_claim_is_released_even_if_the_releasing_task_is_cancelled(store):
    assert await store.claim("copy", "one", 60)
    busy = threading.Event()
    store._file.submit(lambda _: busy.wait(PATIENCE_S))
    giving_back = asyncio.create_task(store.claim("copy", "one", 0))
    await asyncio.sleep(0)
    giving_back.cancel()
    await asyncio.gather(giving_back, return_exceptions=True)
    busy.set()
    assert await store.claim("copy", "two", 60)


async def test_parts_of_a_killed_load_stay_until_they_expire(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_store, "STAGED_S", -1)
        await store.stage("stolen", "old", [b"x"])
    for part_id in "ab":
        await store.stage("stolen", part_id, [b"y"])
    assert [await parts_of(store, part_id) for part_id in ("old", "a", "b")] == [[], [b"y"], [b"y"]]


async def test_a_full_disk_changes_nothing_and_the_next_load_succeeds(store):
    head, _ = await commit(store)
    before = await everything(store)

    def limit(db, pages):
        db.execute(f"PRAGMA max_page_count = {pages}")

    await store._file.call(limit, 40)
    assert await cause_of(commit_base(store, head, MANY)) == "full"
    assert await cause_of(commit(store, head, bytes(1 << 19))) == "full"
    assert await everything(store) == before
    await store._file.call(limit, 1 << 30)
    _, change = await commit_base(store, head, MANY)
    assert await parts_of(store, change.base_id) == MANY


@contextmanager
def full_disk():
    """No file may grow, as far as this process goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_file_that_nobody_has_open_is_opened_when_the_disk_has_room_again(tmp_path):
    first = SqliteStore(tmp_path / "lists.sqlite")
    head, _ = await commit_base(first, parts=MANY)
    before = await everything(first)
    await first.close()
    late = SqliteStore(first.path)
    with full_disk():
        assert await cause_of(late.heads()) in {"full", "io", "cannot_open"}
    assert await everything(late) == before
    await commit(late, head)
    await late.close()


async def test_a_file_that_cannot_be_made_on_a_full_disk(tmp_path):
    store = SqliteStore(tmp_path / "lists.sqlite")
    with full_disk():
        assert await cause_of(store.heads()) in {"full", "io"}
    assert await store.heads() == {}
    await store.close()


async def test_a_file_that_was_taken_away_is_noticed(store):
    await commit(store)
    for path in list(store.path.parent.iterdir()):
        path.unlink()
    assert await store.heads() == {}
    head, _ = await commit(store)
    assert await store.heads() == {"stolen": head}


async def test_the_log_is_cut_after_a_base_after_a_load_that_failed_and_after_a_long_reader(store):
    def log_bytes():
        return Path(f"{store.path}-wal").stat().st_size

    async def failing():
        def source():
            yield from MANY
            raise OSError("the source went away")

        with pytest.raises(OSError, match="went away"):
            await store.stage("stolen", "a", source())

    head, _ = await commit_base(store, parts=MANY)
    assert log_bytes() < 50_000
    await failing()
    await store.heads()  # behind the removal of what was staged
    assert log_bytes() == 0, "the room is free at once"
    with directly(store) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM log").fetchone()
        for _ in range(3):
            head, _ = await commit_base(store, head, MANY)
        assert log_bytes() > 500_000
        reader.execute("ROLLBACK")
    await commit_base(store, head, MANY)
    assert log_bytes() < 50_000


WRITER = """
import asyncio, sys
from pathlib import Path
from commits import commit_base
from eir.lists.stores.sqlite import SqliteStore
async def main():
    store, head = SqliteStore(Path(sys.argv[1])), None
    parts = [bytes(1 << 20)] * 40
    print("begun", flush=True)
    while not Path(sys.argv[2]).exists():
        head, _ = await commit_base(store, head, parts, oldest=head.generation if head else 0)
    await store.close()
asyncio.run(main())
"""


@pytest.mark.long
async def test_another_process_loads_while_this_one_writes_and_reads(store, tmp_path):
    writing = SqliteStore(store.path, busy_s=120)  # SQLite's lock is not fair; a load still leaves gaps enough
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(store.path), str(tmp_path / "over"), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )  # fmt: skip
    assert await writer.stdout.readline()
    head, written, loaded = None, 0, 0
    while written < 12 or loaded < 3:
        head, _ = await commit(writing, head, name="own")
        written += 1
        loaded = (await writing.heads()).get("stolen", Head()).generation
    (tmp_path / "over").touch()
    assert await writer.wait() == 0
    assert len(await writing.log("own", 0)) == written
    await writing.close()


async def test_a_slow_disk_does_not_hold_the_loop(store):
    await store.heads()
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_db):
        return asyncio.run_coroutine_threadsafe(hold.wait(), loop).result()

    slow_one = asyncio.create_task(store._file.call(slow))
    waiting = asyncio.create_task(store.heads())
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
    await commit(store)
    (thread,) = set(threading.enumerate()) - before
    assert descriptors() >= 2
    await store.close()
    assert descriptors() == 0
    await until(lambda: not thread.is_alive())


async def test_another_process_makes_the_file_meanwhile(tmp_path, monkeypatch):
    path, switch = tmp_path / "lists.sqlite", sqlite_file.use_durable_wal

    def made_meanwhile(db):
        """The store has read that the file is empty, and has no lock on it."""
        monkeypatch.setattr(sqlite_file, "use_durable_wal", switch)

        async def make():
            other = SqliteStore(path)
            await commit(other)
            await other.close()

        asyncio.run(make())
        switch(db)

    monkeypatch.setattr(sqlite_file, "use_durable_wal", made_meanwhile)
    store = SqliteStore(path)
    assert [*await store.heads()] == ["stolen"]
    await store.close()


async def test_a_file_that_is_in_use_is_switched_to_wal_once_it_is_free(tmp_path, monkeypatch):
    """SQLite itself does not wait if two processes switch at once."""
    path, cause, tried = tmp_path / "lists.sqlite", sqlite_file._cause, []
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_master").fetchall()

        def end_use(error):
            tried.append(cause(error))
            if other.in_transaction:
                other.execute("ROLLBACK")
            return tried[-1]

        monkeypatch.setattr(sqlite_file, "_cause", end_use)
        store = SqliteStore(path, busy_s=0)
        assert await store.heads() == {}
        assert tried == ["busy"]
        await store.close()


async def test_several_that_make_the_file_at_once(tmp_path):
    for n in range(5):
        stores = [SqliteStore(tmp_path / f"{n}.sqlite") for _ in range(4)]
        assert await asyncio.gather(*(one.heads() for one in stores)) == [{}] * 4
        for one in stores:
            await one.close()
