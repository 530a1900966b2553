"""Table of a list: against a dictionary, over random changes; codec; content digest."""

import random

import numpy as np
import pytest

from eir.lists.table.codec import decode, decode_change, encode, encode_change
from eir.lists.table.columns import (
    BEGINS,
    COLUMNS,
    DAYS,
    ENDS,
    NO_ROWS,
    REASONS,
    SECONDS,
    WHOLE,
    block_numbers,
    keys_of,
    places_of,
    rows_of,
)
from eir.lists.table.digest import EMPTY_CONTENT, digest_tree, updated_tree
from eir.lists.table.table import (
    EMPTY,
    Table,
    change,
    device_count,
    devices_in_force,
    difference,
    fold,
    replacement,
    table_of,
)

TAC, OTHER_TAC = 35_123_456, 35_123_457
TEXTS = ("", "stolen", "lost", "lost")
Model = dict[tuple[int, int], tuple[int, int, int, int]]
"""Key and second key → reason, begin, end, day."""


def rows(entries):
    keys, seconds, reasons, begins, ends, days = (
        (list(column) for column in zip(*entries, strict=True)) if entries else ([],) * 6
    )
    return rows_of(keys, seconds=seconds, reasons=reasons, begins=begins, ends=ends, days=days)


def model_of(table: Table) -> Model:
    every = table.rows()
    columns = [every.column(index).tolist() for index in range(len(COLUMNS))]
    return {
        (key, second): rest
        for key, second, *rest in zip(every.keys.tolist(), *columns, strict=True)
        for rest in [tuple(rest)]
    }


def add(model: Model, entry) -> None:
    key, second, reason, begin, end, day = entry
    old = model.get((key, second))
    if old is not None:
        endless = 1 << 40
        last = max(old[2] or endless, end or endless)
        reason, begin, end, day = reason or old[0], min(old[1], begin), 0 if last == endless else last, day or old[3]
    model[key, second] = reason, begin, end, day


def begun(model: Model, now: int) -> Model:
    return {keys: row for keys, row in model.items() if row[1] <= now}


def covered(model: Model, now: int = 0) -> set[int]:
    """Devices that rows list which have not ended."""
    model = {keys for keys, (_, _, end, _) in model.items() if not end or end > now}
    singles = {key for key, _ in model if key < WHOLE}
    whole = {key - WHOLE for key, _ in model if key >= WHOLE}
    return singles | {tac * 10**6 + snr for tac in whole for snr in range(10**6)}


def gains(model: Model, before: Model, now: int, with_seconds: bool) -> tuple[int, int]:
    """Numbers of devices that come and go; with second keys, of devices that get and lose one."""
    if not with_seconds:
        come = covered(model, now) - covered(before, now)
        return len(come), len(covered(begun(before, now), now) - covered(begun(model, now), now))
    new, old, new_begun, old_begun = (
        {keys for keys, row in each.items() if not row[2] or row[2] > now}
        for each in (model, before, begun(model, now), begun(before, now))
    )
    return len({key for key, _ in new - old}), len({key for key, _ in old_begun - new_begun})


def drawn(rng: random.Random, count: int, *, with_seconds: bool, with_tacs: bool):
    keys = [tac * 10**6 + snr for tac in (TAC, OTHER_TAC) for snr in (0, 1, 65_535, 65_536, 999_999)]
    keys += [731 * 10**14 + 5, 10**14 + 0xABCDEF12345678] + ([WHOLE | TAC, WHOLE | OTHER_TAC] if with_tacs else [])
    taken = {}
    for _ in range(count):
        key, second = rng.choice(keys), rng.randrange(1, 4) if with_seconds else 0
        taken[key, second] = (
            key,
            second,
            rng.randrange(4),
            rng.choice([0, 0, 5, 9]),
            rng.choice([0, 7, 20]),
            rng.choice([0, 3, 4]),
        )
    return [*taken.values()]


@pytest.mark.parametrize("with_seconds", [False, True])
def test_changes_equal_those_of_a_dictionary(with_seconds, monkeypatch):
    monkeypatch.setattr("eir.lists.table.table._BATCH_ROWS", 2)
    rng = random.Random(with_seconds)
    table, model, tree = EMPTY, {}, digest_tree(EMPTY, TEXTS)
    for step in range(40):
        added = drawn(rng, rng.randrange(6), with_seconds=with_seconds, with_tacs=not with_seconds)
        removed = drawn(rng, rng.randrange(5), with_seconds=with_seconds, with_tacs=not with_seconds)
        before = dict(model)
        for key, second, *_ in removed:
            model.pop((key, second), None)
        for entry in added:
            add(model, entry)
        effect = change(table, rows(added), rows(removed))
        assert model_of(effect.table) == model, step
        assert effect.rows_added == len(model.keys() - before.keys())
        assert effect.rows_removed == len(before.keys() - model.keys())
        whole = replacement(table, effect.table)
        assert whole[4:] == effect[4:]
        for rows_of_whole, rows_of_change in zip(whole[2:4], effect[2:4], strict=True):
            assert model_of(table_of(rows_of_whole)) == model_of(table_of(rows_of_change))
        if step % 8 == 0:
            now = rng.choice([0, 10])
            counted = change(table, rows(added), rows(removed), now), replacement(table, effect.table, now)
            for each in counted:
                assert (each.devices_added, each.devices_removed) == gains(model, before, now, with_seconds), step
                assert model_of(change(table, each.added, each.removed).table) == model
            assert device_count(effect.table) == len(covered(model))
            assert devices_in_force(effect.table, now) == len(covered(begun(model, now), now))
        tree = updated_tree(tree, effect.table, TEXTS, effect.blocks)
        assert tree.root == digest_tree(effect.table, TEXTS).root
        assert model_of(decode([*encode(effect.table)])) == model
        gone, came = difference(effect.table, table)
        assert model_of(change(effect.table, gone, came).table) == before
        table = effect.table


def test_folded_changes_have_the_effect_of_all_in_order():
    rng = random.Random(4)
    for with_seconds in (False, True):
        start = table_of(rows(drawn(rng, 9, with_seconds=with_seconds, with_tacs=False)))
        changes = [
            tuple(rows(drawn(rng, rng.randrange(5), with_seconds=with_seconds, with_tacs=False)) for _ in "ar")
            for _ in range(12)
        ]
        table = start
        for added, removed in changes:
            table = change(table, added, removed).table
        assert model_of(change(start, *fold(changes)).table) == model_of(table)


def test_rows_of_one_key_become_one_row_in_any_order():
    entries = [
        (5, 0, 2, 8, 20, 30),
        (5, 0, 1, 9, 20, 0),
        (5, 0, 3, 0, 10, 31),
        (6, 0, 0, 1, 0, 0),
        (6, 0, 2, 3, 4, 5),
        (7, 0, 1, 0, 0, 9),
        (7, 0, 1, 0, 8, 4),
    ]
    for seed in range(20):
        random.Random(seed).shuffle(entries)
        assert model_of(table_of(rows(entries))) == {(5, 0): (1, 0, 20, 30), (6, 0): (2, 1, 0, 5), (7, 0): (1, 0, 0, 4)}


def test_of_repeated_rows_with_reasons_alone_one_without_reason_counts_last():
    keys, reasons = [5, 5, 5, 6, 6, 7], [0, 3, 2, 255, 0, 0]
    for columns in ({}, {"ends": 9}):
        assert rows_of(keys, reasons=reasons, **columns).column(REASONS).tolist() == [2, 255, 0]


def test_a_repeated_row_changes_nothing_and_a_row_without_day_keeps_the_day():
    table = table_of(rows([(7, 0, 1, 4, 9, 20_000)]))
    assert model_of(change(table, rows([(7, 0, 1, 4, 9, 0)]), NO_ROWS).table) == model_of(table)
    later = change(table, rows([(7, 0, 0, 6, 8, 20_001)]), NO_ROWS).table
    assert model_of(later) == {(7, 0): (1, 4, 9, 20_001)}


def test_keys_of_all_kinds_have_a_place_and_come_back():
    keys = np.array(
        [
            0,
            65_535,
            65_536,
            999_999,
            10**6,
            10**14 - 1,
            2**52 - 1,
            2**52,
            10**14 + 2**56 - 1,
            731 * 10**14 + 2**55 - 1,
            WHOLE,
            WHOLE | 99_999_999,
        ],
        "<u8",
    )
    assert keys_of(*places_of(keys)).tolist() == keys.tolist()
    assert (np.diff(block_numbers(keys).astype(np.int64)) >= 0).all()


def test_find_returns_the_rows_of_a_key_and_of_its_tac():
    table = table_of(rows([(TAC * 10**6 + 4, 0, 1, 0, 0, 0), (WHOLE | TAC, 0, 2, 0, 0, 0), (3, 0, 3, 0, 0, 0)]))
    assert table.find(3).column(REASONS).tolist() == [3]
    assert table.find_device(TAC * 10**6 + 4).column(REASONS).tolist() == [1, 2]
    assert table.find_device(TAC * 10**6 + 5).column(REASONS).tolist() == [2]
    assert len(table.find(4)) == 0


class TestDigest:
    def test_lists_that_are_equal_have_the_same_digest_whatever_their_past(self):
        first = table_of(rows_of([8, 9], reasons=[1, 2], days=[5, 6]))
        second = change(table_of(rows_of([7, 8], reasons=1)), rows_of([9], reasons=[3]), rows_of([7])).table
        assert digest_tree(first, TEXTS).root == digest_tree(second, ("", "stolen", "unused", "lost")).root

    @pytest.mark.parametrize(
        "other",
        [
            rows_of([8], reasons=1, ends=9), rows_of([8, 9], reasons=1), rows_of([8, 10], reasons=[1, 2], ends=9), rows_of([8, 9], reasons=[1, 2]),
            rows_of([8, 9], reasons=[1, 2], begins=9), rows_of([8, 9], reasons=[2, 1], ends=9), rows_of([8, 9], reasons=[1, 2], ends=9, seconds=1),
            rows_of([WHOLE | 8, WHOLE | 9], reasons=[1, 2], ends=9),
        ],
    )  # fmt: skip
    def test_another_key_reason_begin_or_end_gives_another(self, other):
        assert (
            digest_tree(table_of(other), TEXTS).root
            != digest_tree(table_of(rows_of([8, 9], reasons=[1, 2], ends=9)), TEXTS).root
        )

    def test_an_empty_list_has_the_digest_of_nothing(self):
        table = table_of(rows_of([8]))
        emptied = change(table, NO_ROWS, rows_of([8]))
        assert (
            updated_tree(digest_tree(table, ()), emptied.table, (), emptied.blocks).root
            == digest_tree(EMPTY, ()).root
            == EMPTY_CONTENT
        )


class TestCodec:
    TABLE = table_of(rows_of([TAC * 10**6 + snr for snr in range(0, 900_000, 7)], reasons=1, ends=[*range(128_572)]))

    def test_a_change_comes_back(self):
        added, removed = decode_change([*encode_change(self.TABLE.rows(), rows_of([1, 2], seconds=[3, 4]))])
        assert model_of(table_of(added)) == model_of(self.TABLE)
        assert removed.column(SECONDS).tolist() == [3, 4]
        assert removed.columns[BEGINS] is removed.columns[ENDS] is removed.columns[DAYS] is None

    def test_no_damage_is_accepted(self):
        parts = [*encode(self.TABLE)]
        whole = b"".join(parts)
        for position in [0, 1, 7, *range(len(parts[0]), len(whole), 9_973)]:
            damaged, at = [], 0
            for part in parts:
                inside = position - at
                damaged.append(
                    part[:inside] + bytes((part[inside] ^ 0x55,)) + part[inside + 1 :]
                    if 0 <= inside < len(part)
                    else part
                )
                at += len(part)
            try:
                table = decode(damaged)
            except ValueError:
                continue
            assert digest_tree(table, TEXTS).root != digest_tree(self.TABLE, TEXTS).root, position

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (b"[]", "8 lengths"), (b"[1,2,4294967296,null,null,null,null,null]", "below 2\\^32"), (b"[1,1,1,null,null,null,null,null]", "inconsistent"),
            (b"[2,3,1,null,null,null,null,null]", "inconsistent"), (b"[1,2,1,5,null,null,null,null]", "inconsistent"), (b"x" * 2000, "too long"), (b"", "Expecting"),
        ],
    )  # fmt: skip
    def test_a_head_that_cannot_be_is_refused(self, head, message):
        with pytest.raises(ValueError, match=message):
            decode([head, *[*encode(self.TABLE)][1:]])

    def test_parts_that_are_missing_or_too_many_are_refused(self):
        parts = [*encode(self.TABLE)]
        with pytest.raises(ValueError, match=r"damaged|size"):
            decode(parts[:-1])
        with pytest.raises(ValueError, match="more parts"):
            decode_change([*parts, *parts, b"x"])

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (Table(np.array([5, 5], "<u8"), np.array([0, 1, 2], "<u4"), np.array([1, 2], "<u2")), "blocks of a table do not ascend"),
            (Table(np.array([5], "<u8"), np.array([0, 2], "<u4"), np.array([2, 1], "<u2")), "rows of a table do not ascend"),
            (Table(np.array([5], "<u8"), np.array([0, 2], "<u4"), np.array([1, 1], "<u2")), "rows of a table do not ascend"),
            (Table(np.array([5], "<u8"), np.array([1, 2], "<u4"), np.array([1, 2], "<u2")), "do not fit"),
            (Table(np.array([5, 6], "<u8"), np.array([0, 2, 2], "<u4"), np.array([1, 2], "<u2")), "do not fit"),
        ],
    )  # fmt: skip
    def test_arrays_that_contradict_each_other_are_refused(self, table, message):
        with pytest.raises(ValueError, match=message):
            decode([*encode(table)])
