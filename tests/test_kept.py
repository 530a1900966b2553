"""The last good images: what a start reads from a file, and what it does not take from one."""

import threading

import numpy as np
import pytest
from made import page, pages_of, state, until
from test_copy import batches, is_level, stores  # noqa: F401  # a fixture
from test_follow import Faulty, Node, quick, store  # noqa: F401  # fixtures

from eir.errors import StoreError
from eir.follow import kept
from eir.lists.pages import PAGE_KEYS

A, B = pages_of([1, 2, 5 * PAGE_KEYS]), pages_of([3, 7 * PAGE_KEYS])
A_KEYS, B_KEYS = [1, 2, 5 * PAGE_KEYS], [3, 7 * PAGE_KEYS]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """However small an image is, it is written at once."""
    for name, value in (("SMALL_BYTES", 0), ("SAVE_AFTER_S", 0.0), ("LOOK_S", 0.01), ("RETRY_S", 0.01)):
        monkeypatch.setattr(kept, name, value)


@pytest.fixture
def faulty(store):  # noqa: F811  # a fixture
    return Faulty(store)


def written(folder, found):
    path = folder / kept.FOLDER / "a"
    return path.exists() and path.read_bytes()[:32].hex() == found.content_digest


async def test_a_start_reads_no_pages(faulty, tmp_path):
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
    faulty.read_whole = 0
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        assert (node.keys(), node.switched, faulty.read_whole) == (A_KEYS, [("a", 1)], 0)
        touched = [page(0, [9])]
        found = await faulty.store.amend("a", state([*touched, A[1]], serial=2), touched, seen=1)
        await node.reaches(2)
        assert (node.keys(), faulty.read_whole) == ([9, 5 * PAGE_KEYS], 0), "and what it proves a delta by is there"
        await until(lambda: written(tmp_path, found))
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        touched = [page(0, [8]), page(3, [1]), page(5, [])]
        await faulty.store.amend("a", state(touched[:2], serial=3), touched, seen=2)
        await node.reaches(3)
        assert (node.keys(), faulty.read_whole) == ([8, 3 * PAGE_KEYS + 1], 0)
        assert not node.follower.errors


async def test_one_in_the_place_of_another_proves_a_delta_by_it(faulty, tmp_path):
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as before:
        await until(lambda: written(tmp_path, found))
        held = before.index.lists["a"]
    faulty.read_whole = 0
    node = Node(faulty, {"a": "devices"}, folder=tmp_path)
    node.index.switch("a", held.state, held.image)
    async with node:
        touched = [page(0, [9])]
        await faulty.store.amend("a", state([*touched, A[1]], serial=2), touched, seen=1)
        await node.reaches(2)
        assert (node.keys(), faulty.read_whole) == ([9, 5 * PAGE_KEYS], 0)


async def test_what_the_store_has_decides(faulty, tmp_path):
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
    await faulty.store.replace("a", state(B, serial=2), B, seen=1)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        assert node.keys() == B_KEYS
        await faulty.store.replace("a", state(A, serial=3), A, seen=2)
        await node.reaches(3)
        assert node.keys() == A_KEYS


async def test_a_list_that_is_again_what_it_was_while_another_content_is_written(faulty, tmp_path, monkeypatch):
    write, may_go, done = kept.ImageFiles._write, threading.Event(), []

    def late(files, name, digest, image, proof):
        if digest == other.content_digest:
            may_go.wait(20)
        write(files, name, digest, image, proof)
        done.append(digest)

    monkeypatch.setattr(kept.ImageFiles, "_write", late)
    other = state(B, serial=2)
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        await until(lambda: written(tmp_path, found))
        other = await faulty.store.replace("a", other, B, seen=1)
        await node.reaches(2)
        found = await faulty.store.replace("a", state(A, serial=3), A, seen=2)
        await node.reaches(3)
        may_go.set()
        await until(lambda: other.content_digest in done and done[-1] == found.content_digest)
        assert written(tmp_path, found)


async def test_without_the_store_it_is_read_for_what_the_copy_has(stores, tmp_path):  # noqa: F811  # a fixture
    store, copy = Faulty(stores("store")), Faulty(stores("copy"))  # noqa: F811  # a fixture
    copy.state = copy.store.state
    found = await store.store.replace("a", state(A), A, seen=0)
    await copy.store.restore("a", found, batches(A), seen=0)
    async with Node(store, {"a": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
    store.fail = StoreError("refused", "nobody there")
    node = Node(store, {"a": "devices"}, copy=copy, folder=tmp_path)
    await node.follower.start()
    assert (node.keys(), node.follower.from_copy, copy.read_whole) == (A_KEYS, {"a"}, 0)


@pytest.mark.parametrize("damage", ["a byte of the image", "a byte of the marks", "cut short", "cut in the marks", "empty"])
async def test_a_file_that_is_damaged_is_not_used(faulty, tmp_path, damage):
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
    path = tmp_path / kept.FOLDER / "a"
    octets = bytearray(path.read_bytes())
    if "byte" in damage:
        octets[-1 if "image" in damage else kept.DIGEST_BYTES + kept.COUNT_BYTES] ^= 1
    else:
        del octets[{"cut short": -1, "cut in the marks": kept.DIGEST_BYTES + kept.COUNT_BYTES + 3, "empty": 0}[damage] :]
    path.write_bytes(octets)
    faulty.read_whole = 0
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        assert (node.keys(), faulty.read_whole) == (A_KEYS, 1)
        assert node.follower.errors["copy_image"] == (damage != "empty")
        await until(lambda: written(tmp_path, found))


async def test_a_disk_that_takes_nothing_costs_no_check(faulty, tmp_path):
    (tmp_path / kept.FOLDER).write_text("in the way")
    await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path) as node:
        await until(lambda: node.follower.errors["copy_image"] > 1)
        assert (node.keys(), node.follower.up) == (A_KEYS, True)


async def test_files_of_lists_that_are_gone_go(faulty, tmp_path):
    found = await faulty.store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
    for left in ("gone", ".a"):
        (tmp_path / kept.FOLDER / left).write_text("left")
    async with Node(faulty, {"a": "devices"}, folder=tmp_path):
        assert [path.name for path in (tmp_path / kept.FOLDER).iterdir()] == ["a"]


async def test_small_lists_have_none(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SMALL_BYTES", 100_000)
    large = [page(number, np.arange(2_000)) for number in range(100)]
    found = await faulty.store.replace("a", state(large), large, seen=0)
    await faulty.store.replace("b", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices", "b": "devices"}, folder=tmp_path):
        await until(lambda: written(tmp_path, found))
        assert [path.name for path in (tmp_path / kept.FOLDER).iterdir()] == ["a"]
