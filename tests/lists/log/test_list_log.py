"""Lists as logs: chain, relation, reader and writer on a store, against a dictionary, with faults between any two calls."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from eir.errors import GenerationConflict, StoreError
from eir.lists.log import writer as writing
from eir.lists.log.change import NO_CHANGE, Change, Head, decode, digests_of, encode, first_break, following
from eir.lists.log.reader import advance, empty_content, read_content
from eir.lists.log.relation import LogRelation, relation
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.columns import NO_ROWS, REASONS, rows_of
from eir.lists.table.table import EMPTY, table_of

TEXTS = ("", "stolen", "lost")
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
async def store(tmp_path):
    opened = SqliteStore(tmp_path / "lists.sqlite")
    yield opened
    await opened.close()


def load(keys, serial, **fields):
    """Update of a full release."""
    table = table_of(rows_of(keys, reasons=1))
    return lambda _: ListUpdate(
        what="load", table=table, state={"serial": serial, "highest_serial": serial}, reasons=TEXTS, **fields
    )


def local(added=(), removed=(), what="add", **fields):
    """Update of rows."""
    return lambda _: ListUpdate(what=what, added=rows_of(added), removed=rows_of(removed), **fields)


def keys_in(content):
    return content.table.rows().keys.tolist()


async def read(store, name="stolen", at=None):
    return await read_content(store, name, (await store.heads())[name], at)


def writer(store, name="stolen", **options):
    return ListWriter(store, name, "devices", "eir@host", **options)


class TestRecords:
    CHANGE = Change(
        generation=3,
        before=A,
        time="2026-12-02T08:00:00Z",
        who="ä@b",
        what="load",
        signers=("a SHA256:x",),
        reasons=("", "stolen"),
        detail="\u2028",
    )

    def test_they_come_back_with_their_digest(self):
        for record in (self.CHANGE, Head(kind="pairs", expires="2027-01-01T00:00:00Z", releases=("x",))):
            assert decode(type(record), encode(record)) == record
        assert (
            decode(Change, encode(self.CHANGE)).digest == self.CHANGE.digest != replace(self.CHANGE, detail="").digest
        )

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("generation", -1),
            ("generation", "3"),
            ("generation", True),
            ("before", None),
            ("signers", "a"),
            ("signers", [1]),
            ("who", 5),
            ("issued", 5),
            ("extra", 1),
        ],
    )
    def test_a_field_of_another_type_is_refused(self, field, value):
        import json

        document = json.loads(encode(self.CHANGE)) | {field: value}
        with pytest.raises(ValueError, match=r"field|fields"):
            decode(Change, json.dumps(document))

    @pytest.mark.parametrize(
        ("what", "is_release"), [("load", True), ("rollback", True), ("restore", True), ("reset-serial", False)]
    )
    def test_the_time_of_a_release_is_that_of_the_change_that_put_it_in_force(self, what, is_release):
        head = Head(kind="devices", loaded_at="2026-12-01T08:00:00Z")
        made = Change(generation=2, time="2026-12-02T08:00:00Z", who="ops", what=what, highest_serial=1)
        assert (following(head, made, entries=0, devices=0).loaded_at == made.time) is is_release

    def test_the_chain_shows_its_first_break(self):
        one = replace(self.CHANGE, before=NO_CHANGE)
        two = replace(self.CHANGE, before=one.digest)
        assert first_break([one, two], NO_CHANGE) is None
        assert first_break([replace(one, detail="changed"), two], NO_CHANGE) is two
        assert first_break([two], NO_CHANGE) is two
        assert {one.digest, two.digest, NO_CHANGE} <= digests_of([one, two])


HELD = Head(kind="devices", generation=5, digest=A, serial=3, highest_serial=3)
LOCAL = Head(kind="devices", generation=5, digest=A)


@pytest.mark.parametrize(
    ("held", "stored", "facts", "expected"),
    [
        (None, None, {}, "SAME"),
        (None, HELD, {}, "NEWER"),
        (HELD, None, {}, "LOST"),
        (HELD, HELD, {}, "SAME"),
        (HELD, replace(HELD, digest=B, generation=6), {"stored_past": {A}}, "NEWER"),
        (HELD, replace(HELD, digest=B, generation=9), {"stored_past": {A}, "oldest": 8}, "NEWER"),
        (HELD, replace(HELD, digest=B, generation=4), {"held_past": {B}}, "LOST"),
        (LOCAL, replace(LOCAL, digest=B, generation=4), {"held_past": {B}}, "LOST"),
        # A lower mark is lost for signed lists, whatever the chain says; serial resets count first.
        (HELD, replace(HELD, digest=B, generation=9, highest_serial=2), {"stored_past": {A}}, "LOST"),
        (HELD, replace(HELD, digest=B, generation=6, highest_serial=1, serial_resets=1), {"stored_past": {A}}, "NEWER"),
        # A failover that lost a write: another digest at the same, a lower or a higher generation.
        (HELD, replace(HELD, digest=B), {"stored_past": {C}}, "FORKED"),
        (LOCAL, replace(LOCAL, digest=B, generation=4), {"stored_past": {C}}, "FORKED"),
        (LOCAL, replace(LOCAL, digest=B, generation=9), {"stored_past": {C}, "oldest": 3}, "FORKED"),
        (HELD, replace(HELD, digest=B, generation=9, highest_serial=4), {"stored_past": {C}, "oldest": 3}, "FORKED"),
        # The log no longer reaches back.
        (HELD, replace(HELD, digest=B, generation=90, highest_serial=4), {"oldest": 50}, "BEHIND"),
        (HELD, replace(HELD, digest=B, generation=90), {"oldest": 50}, "FORKED"),
        (LOCAL, replace(LOCAL, digest=B, generation=90), {"oldest": 50}, "FORKED"),
        (LOCAL, replace(LOCAL, digest=B, generation=90), {"oldest": 50, "has_seen_base": True}, "BEHIND"),
    ],
)
def test_relation(held, stored, facts, expected):
    assert relation(held, stored, **facts) is LogRelation[expected]


class TestWriter:
    async def test_a_release_a_delta_and_rows_are_read_back(self, store):
        one = writer(store)
        await one.write(load(range(100), 1))
        await one.write(
            lambda _: ListUpdate(
                what="load", added=rows_of([200]), removed=rows_of([3]), state={"serial": 2, "highest_serial": 2}
            )
        )
        assert await one.write(lambda _: None) is None
        content = await read(store)
        assert keys_in(content) == sorted({*range(100), 200} - {3})
        assert (content.head.serial, content.head.entries, content.head.devices, content.head.reasons) == (
            2,
            100,
            100,
            TEXTS,
        )
        assert content.head == one.content.head
        first, second = (entry.change for entry in await store.log("stolen", 0))
        assert (first.rows, second.added, second.removed, second.base) == ("", 1, 1, "")
        assert [first.content, second.content][1] == content.head.content

    async def test_a_full_release_is_rows_unless_a_tenth_differs(self, store):
        one = writer(store)
        await one.write(load(range(1000), 1))
        await one.write(load(range(50, 1000), 2))
        await one.write(load(range(500, 1500), 3))
        changes = [entry.change for entry in await store.log("stolen", 0)]
        assert [bool(change.rows) for change in changes] == [False, True, False]
        assert keys_in(await read(store)) == [*range(500, 1500)]

    async def test_a_reason_that_changed_its_index_needs_a_base(self, store):
        one = writer(store)
        await one.write(load(range(100), 1))
        table = table_of(rows_of(range(100), reasons=2))
        await one.write(lambda _: ListUpdate(what="load", table=table, reasons=("", "lost", "stolen")))
        content = await read(store)
        assert content.head.content == (await read(store, at=1)).head.content
        assert content.table.find(5).column(REASONS).tolist() == [2]

    async def test_a_slower_writer_computes_again(self, store):
        fast, slow = writer(store), writer(store)
        await fast.write(local([1]))
        computed = []

        def make(content):
            computed.append(keys_in(content))
            return ListUpdate(what="add", added=rows_of([3]))

        async def overtake(content, head, *, real=store.commit, **options):
            store.commit = real
            await fast.write(local([2]))
            await real(content, head, **options)

        async def commit(name, head, entry, **options):
            store.commit = real
            await fast.write(local([2]))
            await real(name, head, entry, **options)

        real, store.commit = store.commit, commit
        await slow.write(make)
        assert computed == [[1], [1, 2]]
        assert keys_in(await read(store)) == [1, 2, 3]

    async def test_a_base_that_was_staged_before_a_conflict_is_used(self, store):
        fast, slow = writer(store), writer(store)
        await fast.write(load(range(10), 1))
        staged, real_stage, real_commit = [], store.stage, store.commit

        async def stage(name, part_id, parts):
            staged.append(part_id)
            return await real_stage(name, part_id, parts)

        async def commit(name, head, entry, **options):
            store.commit, store.stage = real_commit, real_stage
            await fast.write(local([200]))
            store.stage = stage
            await real_commit(name, head, entry, **options)

        store.stage, store.commit = stage, commit
        await slow.write(load(range(100, 150), 2))
        assert len(staged) == 1
        assert keys_in(await read(store)) == [*range(100, 150)]

    async def test_after_ten_conflicts_it_gives_up(self, store):
        async def commit(*_, **__):
            raise GenerationConflict("changed")

        store.commit = commit
        with pytest.raises(GenerationConflict):
            await writer(store).write(local([1]))

    async def test_a_check_rejects_the_effect(self, store):
        one = writer(store)
        await one.write(load(range(10), 1))

        def check(computed):
            assert (computed.effect.devices_added, computed.effect.devices_removed) == (90, 0)
            raise ValueError("growth")

        with pytest.raises(ValueError, match="growth"):
            await one.write(load(range(100), 2), check)
        assert (await store.heads())["stolen"].serial == 1

    async def test_long_rows_are_staged_in_parts(self, store, monkeypatch):
        monkeypatch.setattr(writing, "INLINE_BYTES_MAX", 100)
        one, behind = writer(store), writer(store)
        await one.write(load(range(100_000), 1))
        await behind.catch_up()
        await one.write(local(range(200_000, 203_000)))
        (entry,) = await store.log("stolen", 1)
        assert entry.rows is None
        assert entry.change.rows_parts > 2
        assert (
            keys_in(await behind.catch_up())
            == keys_in(await read(store))
            == [*range(100_000), *range(200_000, 203_000)]
        )

    @pytest.mark.parametrize(("name", "value"), [("BASE_ROWS", 30), ("BASE_BYTES", 1500), ("BASE_ENTRIES", 5)])
    async def test_a_base_comes_when_the_log_is_long(self, store, monkeypatch, name, value):
        for limit, most in {"BASE_ROWS": 10**6, "BASE_BYTES": 10**6, "BASE_ENTRIES": 10**6, name: value}.items():
            monkeypatch.setattr(writing, limit, most)
        one = writer(store, keep=1)
        await one.write(load(range(100), 1))
        for number in range(30):
            await one.write(local(range(1000 + 3 * number, 1003 + 3 * number), what="feed"))
        entries = await store.log("stolen", 0)
        bases = [entry.change.generation for entry in entries if entry.change.base_id]
        assert 2 < len(bases) < 12
        assert len([entry for entry in entries if entry.rows is not None]) < 31
        assert keys_in(await read(store)) == [*range(100), *range(1000, 1090)]

    async def test_earlier_releases_can_be_read_as_long_as_they_are_kept(self, store):
        one = writer(store, keep=2)
        for serial in range(1, 7):
            await one.write(load(range(100 * serial, 100 * serial + 50), serial))
        for serial in (4, 5, 6):
            assert keys_in(await read(store, at=serial)) == [*range(100 * serial, 100 * serial + 50)]
        with pytest.raises(StoreError, match="generation 3 is no longer stored") as caught:
            await read(store, at=3)
        assert caught.value.cause == "gone"

    async def test_local_changes_of_a_day_stay(self, store, monkeypatch):
        monkeypatch.setattr(writing, "BASE_ROWS", 2)
        hour, times = datetime(2026, 12, 1, tzinfo=UTC), iter(range(1000))
        one = writer(store, keep=2, now=lambda: hour + timedelta(hours=one_hour[0]))
        one_hour = [0]
        for number in range(40):
            one_hour[0] = next(times)
            await one.write(local([number]))
        for generation in range(16, 41):
            assert keys_in(await read(store, at=generation)) == [*range(generation)]
        with pytest.raises(StoreError, match="no longer stored"):
            await read(store, at=9)


class TestDamage:
    @pytest.fixture
    async def loaded(self, store):
        one = writer(store)
        await one.write(load(range(1000), 1))
        held = await one.catch_up()
        await one.write(local([5000]))
        await one.write(local([5001], [7]))
        return held

    @pytest.mark.parametrize(
        ("statement", "message", "from_base"),
        [
            ("UPDATE parts SET octets = x'00' WHERE number = 1", "base of generation 1", True),
            ("DELETE FROM parts", "base of generation 1", True),
            ("UPDATE log SET rows = x'00' WHERE generation = 2", "rows of generation 2", False),
            (
                "UPDATE log SET rows = (SELECT rows FROM log WHERE generation = 2) WHERE generation = 3",
                "rows of generation 3",
                False,
            ),
            (
                "UPDATE log SET change = replace(change, 'eir@host', 'mallory') WHERE generation = 2",
                "generation 3 does not continue",
                False,
            ),
            (
                "UPDATE log SET change = replace(change, 'eir@host', 'mallory') WHERE generation = 3",
                "does not lead to its head",
                False,
            ),
            ("DELETE FROM log WHERE generation = 2", "does not continue", False),
            ("DELETE FROM log WHERE generation = 3", "does not lead to its head", False),
            ("UPDATE heads SET head = replace(head, '\"serial\":1', '\"serial\":2')", "serial differs", False),
            ("UPDATE heads SET head = replace(head, '\"entries\":1001', '\"entries\":9')", "entries differs", False),
        ],
    )
    async def test_it_is_found(self, store, loaded, statement, message, from_base):
        await store._file.call(lambda db: db.execute(statement).rowcount)
        head = (await store.heads())["stolen"]
        with pytest.raises(StoreError, match=message) as caught:
            await (read_content(store, "stolen", head) if from_base else advance(store, "stolen", loaded, head))
        assert caught.value.cause == "corrupt"
        if not from_base:
            with pytest.raises(StoreError, match=r"damaged|no longer stored"):
                await read_content(store, "stolen", head)

    async def test_a_content_that_its_change_does_not_have_is_found(self, store, loaded):
        one = writer(store)
        real, store.commit = store.commit, None

        async def commit(name, head, entry, **options):
            change = replace(entry.change, content=A)
            await real(name, replace(head, digest=change.digest, content=A), entry._replace(change=change), **options)

        store.commit = commit
        await one.write(local([9]))
        with pytest.raises(StoreError, match="another content digest"):
            await advance(store, "stolen", loaded, (await store.heads())["stolen"])

    async def test_rows_that_are_gone_are_no_damage(self, store, loaded):
        await store._file.call(lambda db: db.execute("UPDATE log SET rows = NULL WHERE generation = 2").rowcount)
        with pytest.raises(StoreError, match="generation 2 is no longer stored"):
            await advance(store, "stolen", loaded, (await store.heads())["stolen"])


class FaultyStore:
    """Store whose calls fail with a given probability, before or after they took effect."""

    def __init__(self, store, rng):
        self.sound, self._rng, self.probability = store, rng, 0.0

    def _fail(self, moment, name):
        if self._rng.random() < self.probability:
            raise StoreError("refused", f"{moment} {name}")

    def __getattr__(self, name):
        async def call(*args, **options):
            self._fail("before", name)
            result = await getattr(self.sound, name)(*args, **options)
            self._fail("after", name)
            return result

        return getattr(self.sound, name) if name == "base" else call


def drawn_update(rng, model, past, serial):
    """Draw an update; return it with the keys after it."""
    keys = {rng.randrange(300) for _ in range(rng.randrange(1, 4))}
    match rng.choice(["add", "add", "remove", "load", "rollback"]):
        case "remove":
            return local((), keys, what="remove"), model - keys
        case "load":
            after = {rng.randrange(300) for _ in range(60)} if rng.random() < 0.3 else model ^ keys
            return load(sorted(after), serial), after
        case "rollback" if past:
            after = rng.choice([*past.values()][-3:])
            return load(sorted(after), serial), after
    return local(keys), model | keys


@pytest.mark.parametrize("changes", [60, pytest.param(250, marks=pytest.mark.long)])
async def test_random_changes_of_two_writers_equal_a_dictionary(store, monkeypatch, changes):
    """A follower is often behind, bases are frequent, and calls of the store fail before or after they took effect."""
    monkeypatch.setattr(writing, "BASE_ROWS", 25)
    monkeypatch.setattr(writing, "PAUSE_S_MAX", 0)
    rng = random.Random(11)
    faulty = FaultyStore(store, rng)
    writers = [writer(faulty, keep=2) for _ in range(2)]
    follower, model, past, failures = empty_content("devices"), set(), {}, 0
    for serial in range(1, changes):
        make, after = drawn_update(rng, model, past, serial)
        before = await store.heads()
        faulty.probability = rng.choice([0, 0, 0.2])
        try:
            await rng.choice(writers).write(make)
        except StoreError:
            failures += 1
        heads = await store.heads()
        if heads == before:
            continue
        model, head = after, heads["stolen"]
        past[head.generation] = model
        assert keys_in(await read(store)) == sorted(model)
        if rng.random() < 0.4:
            follower = await advance(store, "stolen", follower, head)
            assert keys_in(follower) == sorted(model)
        for generation in [*past][-2:]:
            assert keys_in(await read(store, at=generation)) == sorted(past[generation])
    assert len(past) > changes / 2.5
    assert failures > changes / 25


def test_an_empty_list_has_no_rows():
    content = empty_content("devices")
    assert content.table is EMPTY
    assert (content.rows_since_base, content.head.digest) == (0, NO_CHANGE)
    assert not len(NO_ROWS)
    assert np.array_equal(content.table.rows().keys, [])
