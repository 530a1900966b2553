"""Copy of a list: it comes back as it was, mapped; each damage is found, and concerns this list alone."""

import os
import time

import pytest

from eir.errors import StoreError
from eir.lists.follow import list_copy
from eir.lists.follow.list_copy import ListCopy, copied_heads
from eir.lists.log.change import encode
from eir.lists.log.reader import read_rows
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.stores import records
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.codec import arrays_of
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of

LOAD = rows_of([1, 2, 5_000_000], reasons=[1, 0, 2], ends=[0, 2_000_000_000, 0], days=[20_000, 0, 0])
STATE = {"serial": 3, "highest_serial": 3}


class Written:
    """A list in a store, and the changes that its copy gets."""

    def __init__(self, store, state=None):
        self.store, self._state = store, state or {}
        self.writer = ListWriter(store, "own", "devices", "eir@host")

    async def load(self, rows=LOAD):
        await self.writer.write(
            lambda _: ListUpdate(what="load", table=table_of(rows), reasons=("", "a", "b"), state=self._state)
        )
        return self.writer.content

    async def add(self, *keys):
        """Add rows; return the content after it and the change with its rows."""
        before = (await self.writer.catch_up()).head.generation
        await self.writer.write(lambda _: ListUpdate(what="add", added=rows_of(keys)))
        (entry,) = await self.store.log("own", before)
        return self.writer.content, [await read_rows(self.store, "own", entry)]


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "lists.sqlite")
    yield opened
    await opened.close()


@pytest.fixture
def events():
    return []


@pytest.fixture
def opened(tmp_path, events):
    """Open the copy as one more process would."""
    return lambda: ListCopy(tmp_path / "copies", "own", lambda event, **fields: events.append((event, fields)))


def values(content):
    tree = [(numbers.tolist(), digests.tolist()) for numbers, digests in content.tree.levels]
    return encode(content.head), [None if array is None else array.tolist() for array in arrays_of(content.table)], tree


async def test_it_comes_back_as_a_view_of_the_file(store, opened):
    content = await Written(store, STATE).load()
    copy = opened()
    assert copy.read() is None
    saved, read = copy.save(content), opened().read()
    assert values(saved) == values(read) == values(content)
    for each in (saved, read):
        assert not any(
            array.flags.owndata or array.flags.writeable for array in arrays_of(each.table) if array is not None
        )
    assert copy.path.stat().st_mode & 0o777 == 0o600
    assert copied_heads(copy.path.parent) == {"own": content.head}


async def test_an_empty_list(store, opened):
    content = await Written(store).load(rows_of([]))
    opened().save(content)
    assert values(opened().read()) == values(content)


async def test_small_changes_are_appended_and_many_rewrite_it(store, opened, monkeypatch):
    written, copy = Written(store), opened()
    copy.save(await written.load())
    inode = copy.path.stat().st_ino
    for key in range(10, 15):
        content = copy.save(*await written.add(key))
        assert values(opened().read()) == values(content) == values(written.writer.content)
        assert copied_heads(copy.path.parent)["own"].digest == content.head.digest
    assert copy.path.stat().st_ino == inode
    (path,) = copy.path.parent.glob("*.changes")
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(list_copy, "APPENDED_BYTES", 100)
    copy.save(*await written.add(20))
    assert copy.path.stat().st_ino != inode
    assert values(opened().read()) == values(written.writer.content)
    kept = [each.change.generation for each in copy.changes()]
    assert kept == [2, 3, 4, 5, 6, 7], "each local change stays, also the last one"


async def test_it_is_written_again_after_some_time(store, opened, monkeypatch):
    written, copy = Written(store), opened()
    copy.save(await written.load())
    content = copy.save(*await written.add(10))
    inode = copy.path.stat().st_ino
    assert copy.save(content) is content
    monkeypatch.setattr(list_copy, "REWRITE_S", 0.0)
    assert copy.save(content) is not content
    assert copy.path.stat().st_ino != inode


async def test_changes_that_do_not_follow_it_write_it_whole(store, opened):
    written, copy = Written(store), opened()
    copy.save(await written.load())
    await written.add(10)
    copy.save(*await written.add(11))
    assert values(opened().read()) == values(written.writer.content)


async def test_changes_behind_a_gap_stay_and_the_copy_ends_before_it(store, opened, monkeypatch):
    """On a full disk a change cannot be appended, a later and shorter one can, and the whole copy cannot be written."""
    written, copy = Written(store), opened()
    copy.save(await written.load())
    before = copy.save(*await written.add(10))
    await written.add(11)
    monkeypatch.setattr(list_copy, "RESERVE_BYTES", 1 << 62)
    monkeypatch.setattr(records, "SMALL_BYTES", 0)
    with pytest.raises(StoreError, match="make room"):
        copy.save(*await written.add(12))
    assert copied_heads(copy.path.parent)["own"].digest == before.head.digest
    fresh = opened()
    assert values(fresh.read()) == values(before)
    monkeypatch.undo()
    missing = [await read_rows(store, "own", entry) for entry in await store.log("own", before.head.generation)]
    fresh.save(written.writer.content, missing)
    assert values(opened().read()) == values(written.writer.content)
    assert [each.change.generation for each in fresh.changes()] == [2, 4, 3, 4]


@pytest.mark.parametrize(("state", "kept"), [({}, [True, False]), (STATE, [False, False])], ids=["local", "signed"])
async def test_changes_of_local_lists_stay_for_a_week(store, opened, state, kept):
    written, copy = Written(store, state), opened()
    copy.save(await written.load())
    copy.save(*await written.add(10))
    (path,) = copy.path.parent.glob("*.changes")
    os.utime(path, (time.time() - 6 * 86_400,) * 2)
    stays = []
    for age_days in (6, 8):
        if path.exists():
            os.utime(path, (time.time() - age_days * 86_400,) * 2)
        await written.add(age_days)
        copy.save(written.writer.content)
        stays.append(path.exists())
    assert stays == kept


class TestDamage:
    @pytest.fixture
    async def copy(self, store, opened):
        written, copy = Written(store), opened()
        copy.save(await written.load())
        copy.save(*await written.add(10))
        copy.save(*await written.add(11))
        return copy

    def files(self, copy):
        return [copy.path, *copy.path.parent.glob("*.changes")]

    async def test_each_flipped_byte_is_found(self, copy, opened):
        for path in self.files(copy):
            octets = path.read_bytes()
            for at in range(len(octets)):
                path.write_bytes(octets[:at] + bytes((octets[at] ^ 1 << at % 8,)) + octets[at + 1 :])
                with pytest.raises(StoreError, match=r"list own|format") as caught:
                    opened().read()
                assert caught.value.cause in {"corrupt", "schema"}, at
                assert "delete" in str(caught.value)
            path.write_bytes(octets)
        assert opened().read() is not None

    async def test_each_shorter_copy_is_found(self, copy, opened):
        octets = copy.path.read_bytes()
        for length in range(len(octets)):
            copy.path.write_bytes(octets[:length])
            with pytest.raises(StoreError, match="damaged"):
                opened().read()

    async def test_a_change_that_a_crash_cut_short_is_removed(self, copy, opened, events):
        path = self.files(copy)[1]
        octets = path.read_bytes()
        seen = set()
        for length in range(len(octets)):
            path.write_bytes(octets[:length])
            events.clear()
            seen.add(opened().read().head.generation)
            assert [event for event, _ in events] in ([], ["copy_repaired"])
            assert path.stat().st_size <= length
        assert seen == {1, 2}

    @pytest.mark.usefixtures("copy")
    async def test_another_format_is_named_with_the_remedy(self, opened, monkeypatch):
        monkeypatch.setattr(list_copy, "COPY_FORM", 6)
        with pytest.raises(StoreError, match=r"format 5, and this program has format 6; delete the file") as caught:
            opened().read()
        assert caught.value.cause == "schema"

    async def test_a_damaged_one_is_replaced(self, copy, opened, store):
        copy_path, changes_path = self.files(copy)
        for path in (changes_path, copy_path):
            octets = path.read_bytes()
            path.write_bytes(octets[:-40] + b"x" + octets[-39:])
            fresh = opened()
            with pytest.raises(StoreError, match="damaged"):
                fresh.read()
            written = Written(store)
            content = await written.writer.catch_up()
            fresh.save(content)
            assert values(opened().read()) == values(content)

    async def test_without_room_the_earlier_one_stays(self, copy, opened, store, monkeypatch):
        before = values(opened().read())
        monkeypatch.setattr(list_copy, "RESERVE_BYTES", 1 << 62)
        monkeypatch.setattr(records, "SMALL_BYTES", 0)
        written = Written(store)
        await written.add(12)
        with pytest.raises(StoreError, match="make room") as caught:
            copy.save(written.writer.content)
        assert caught.value.cause == "full"
        assert values(opened().read()) == before
