"""Image of a table: look-ups equal those of a dictionary of rows that begin and end; the table comes back; the compiled lane answers the same."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.lanes import ecr, sides
from simulated.store_content import state

from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import MEID_BASE, SNR_KEYS, any_key, device_type_key, imsi_key
from eir.interfaces.s13.lane import COMPILED
from eir.lists.images.image import Image
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of, table_view
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES
from eir.lists.table.codec import arrays_of
from eir.lists.table.columns import WHOLE, TableRows, rows_of
from eir.lists.table.table import EMPTY, Table, change, table_of

TACS = (35_123_456, 35_123_457, 36_000_000)
SNRS = (0, 1, 65_535, 65_536, 500_000, 999_999)
MODELS = tuple(map(device_type_key, ("Smartphone", "Module", "Tablet")))
IMSIS = tuple(imsi_key(text) for text in ("001010000000001", "001010000000002", "001011000000001", "00101000001"))
ODD = tuple(
    any_key(text) for text in ("0", "123456789012", "A", "nobody's phone 12345", "35123456ABCDEF", "FFFFFFFFFFFFFF")
)
KEYS = {
    DEVICES: (*(tac * SNR_KEYS + snr for tac in TACS for snr in SNRS), *ODD, MEID_BASE - 1, *(WHOLE | tac for tac in (*TACS, 99_999_999, 0))),
    PAIRS: (*(tac * SNR_KEYS + snr for tac in TACS[:2] for snr in SNRS[:4]), *ODD[-2:]),
    SUBSCRIBERS: IMSIS,
    TYPES: tuple(tac * SNR_KEYS for tac in TACS),
}  # fmt: skip
SECONDS = {PAIRS: IMSIS, TYPES: MODELS}
TIMES = (0, 10, 20, 30)
MOMENTS = (0.0, 9.0, 9.9, 10.0, 19.0, 20.0, 29.0, 30.0, 2.0**33)
"""One second before, and exactly at, each begin and end; and long after."""
INSIDE = (*KEYS[DEVICES][:-5], *(tac * SNR_KEYS + 77 for tac in (*TACS, 99_999_999, 0)))


def rows(kind: str, *, with_times: bool = True) -> st.SearchStrategy[TableRows]:
    times = st.sampled_from(TIMES if with_times else TIMES[:1])
    keys = st.tuples(st.sampled_from(KEYS[kind]), st.sampled_from(SECONDS.get(kind, (0,))))
    values = st.tuples(times, times, st.integers(0, 3), st.sampled_from((0, 20_000)))
    return st.dictionaries(keys, values, max_size=14).map(rows_of_model)


def rows_of_model(model) -> TableRows:
    keys, seconds = ([key[index] for key in model] for index in range(2))
    columns = zip(("begins", "ends", "reasons", "days"), zip(*model.values(), strict=True), strict=False)
    return rows_of(keys, seconds=seconds, **{name: list(values) for name, values in columns})


def in_force(table: Table, now: float) -> set[tuple[int, int]]:
    """By the rows themselves: keys and second keys of the rows in force."""
    every = table.rows()
    columns = (every.keys, *(every.column(index) for index in (0, 2, 3)))
    return {
        (key, second)
        for key, second, begin, end in zip(*(column.tolist() for column in columns), strict=True)
        if begin <= now and (not end or now < end)
    }


def is_listed(key: int, held: set[tuple[int, int]]) -> bool:
    return bool({key, WHOLE | key // SNR_KEYS} & {held_key for held_key, _ in held})


def assert_equal_tables(one: Table, other: Table) -> None:
    for this, that in zip(arrays_of(one), arrays_of(other), strict=True):
        assert (this is None) == (that is None)
        if this is not None:
            assert (this.dtype, this.tolist()) == (that.dtype, that.tolist())


def index_of(kind: str, image: Image, clock: list[float]) -> Index:
    index = Index({"list": kind}, lambda: clock[0])
    index.switch("list", state(kind=kind), image)
    return index


def policy_of(kind: str) -> PolicySettings:
    condition = {"device_type": ("Module", "Tablet")} if kind == TYPES else {"list": "list"}
    return PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, **condition),))


def assert_lookups(kind: str, image: Image, table: Table) -> None:
    clock = [0.0]
    index = index_of(kind, image, clock)
    entries = index.lists["list"]
    stream = b"".join(ecr(f"{key:014d}") for key in INSIDE if key < MEID_BASE)
    if kind == SUBSCRIBERS:
        stream = b"".join(ecr(imsi=str(key)[1:]) for key in (*IMSIS, imsi_key("001010000000009")))
    for clock[0] in MOMENTS:
        held = in_force(table, clock[0])
        asked = {*INSIDE, *IMSIS}
        assert {key for key in asked if entries.holds(key)} == {key for key in asked if is_listed(key, held)}
        if not any(key >= WHOLE for key, _ in held):
            assert list(entries) == sorted({key for key, _ in held})
        if kind in SECONDS:
            assert {(key, imsi) for key in asked for imsi in entries.imsis(key)} == held
            assert {imsi for imsi in (*IMSIS, *MODELS, 7) if entries.has_subscriber(imsi)} == {imsi for _, imsi in held}
            bound = {(key, imsi) for key in asked for imsi in IMSIS if entries.subscriber_bound_elsewhere(key, imsi)}
            others = {imsi for _, imsi in held}
            assert bound == {
                (key, imsi) for key in asked for imsi in IMSIS if imsi in others and (key, imsi) not in held
            }
        if kind == TYPES:
            chosen = frozenset(MODELS[1:])
            assert {key for key in INSIDE if entries.is_of_type(key, chosen)} == {
                key for key in INSIDE for tac, model in held if tac == key // SNR_KEYS * SNR_KEYS and model in chosen
            }
        if COMPILED:
            with_lane, without = sides(index, policy_of(kind))
            assert with_lane.feed(stream) == without.feed(stream)
            assert with_lane.state() == without.state()


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("with_times", [False, True], ids=["endless", "timed"])
def test_look_ups_equal_those_of_a_dictionary_and_the_table_comes_back(kind, with_times):
    @given(rows(kind, with_times=with_times), rows(kind, with_times=with_times), rows(kind))
    @settings(max_examples=20)
    def equal(first, added, removed):
        table = table_of(first)
        for _ in range(2):
            image = image_of(table)
            assert_lookups(kind, image, table)
            view = table_view(image, reasons=table.columns[1], days=table.columns[4])
            assert_equal_tables(view, table)
            assert bytes(image_of(view).buffer) == bytes(image.buffer)
            table = change(view, added, removed).table

    equal()


def test_a_row_matches_from_its_begin_until_its_end():
    keys, begins, ends = [5, 6, SNR_KEYS + 7, WHOLE | 2], [10, 0, 0, 10], [20, 20, 0, 20]
    image = image_of(table_of(rows_of(keys, begins=begins, ends=ends)))
    asked = (5, 6, SNR_KEYS + 7, 2 * SNR_KEYS + 8)
    held = {now: [image.holds(key, now) for key in asked] for now in (9.9, 10.0, 19.9, 20.0)}
    assert held == {
        9.9: [False, True, True, False],
        10.0: [True, True, True, True],
        19.9: [True, True, True, True],
        20.0: [False, False, True, False],
    }
    assert [image.has_times, image_of(table_of(rows_of([5]))).has_times] == [True, False]


def test_begins_are_stored_for_the_pages_that_have_them_only():
    plain = rows_of(np.arange(0, 50 * SNR_KEYS, 997, dtype="<u8"))
    timed = change(table_of(plain), rows_of([7, 8], begins=[9, 9]), rows_of([])).table
    image = image_of(timed)
    assert len(image.buffer) - len(image_of(table_of(plain)).buffer) < 8 * SNR_KEYS // 997
    assert (len(image.arrays["ends"]), len(image.arrays["begins"])) == (0, len(range(0, SNR_KEYS, 997)) + 2)


def test_the_clock_is_read_for_a_list_whose_rows_only_begin():
    clock = [9.0]
    index = index_of(DEVICES, image_of(table_of(rows_of([5, WHOLE | 2], begins=10))), clock)
    entries = index.lists["list"]
    assert [entries.holds(5), entries.holds(2 * SNR_KEYS), entries.time] == [False, False, 9.0]
    clock[0] = 10.0
    assert [entries.holds(5), entries.holds(2 * SNR_KEYS), entries.time] == [True, True, 10.0]


def test_a_pair_that_begins_during_a_check_is_not_one_of_another_device():
    clock = iter((9.0, 10.0))
    index = Index({"list": PAIRS}, lambda: next(clock))
    index.switch("list", state(kind=PAIRS), image_of(table_of(rows_of([5], seconds=7, begins=10))))
    assert not index.lists["list"].subscriber_bound_elsewhere(5, 7)


def test_an_imsi_is_not_bound_between_two_periods():
    """A SIM moves to another phone: in between it is free."""
    image = image_of(table_of(rows_of([5, 6, 7], seconds=[9, 9, 9], begins=[0, 20, 25], ends=[10, 30, 40])))
    assert [image.has_subscriber(9, now) for now in (0, 9, 10, 19, 20, 39, 40)] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_device_with_thousands_of_imsis_and_keys_with_one():
    imsis = [imsi_key(f"00101{number:010d}") for number in range(0, 5_000_000, 997)]
    keys = [*[TACS[0] * SNR_KEYS + 5] * len(imsis), TACS[0] * SNR_KEYS + 4, TACS[1] * SNR_KEYS]
    seconds, ends = [*imsis, imsis[0], imsis[1]], [*[0, 20] * (len(imsis) // 2 + 2)][: len(imsis) + 2]
    table = table_of(rows_of(keys, seconds=seconds, ends=ends))
    image = image_of(table)
    assert image.imsis(keys[0], 19) == tuple(imsis)
    assert image.imsis(keys[0], 20) == tuple(imsis[::2])
    assert_equal_tables(table_view(image), table)
    alone = table_of(rows_of(keys[-2:], seconds=seconds[-2:]))
    assert len(image_of(alone).arrays["row_stops"]) == 0
    assert_equal_tables(table_view(image_of(alone)), alone)


def test_a_tac_with_all_its_identifiers_and_a_range_come_back():
    keys = np.concatenate(
        [np.arange(35 * SNR_KEYS, 36 * SNR_KEYS), np.arange(36 * SNR_KEYS + 65_000, 36 * SNR_KEYS + 66_000)]
    )
    table = table_of(rows_of(keys.astype("<u8")))
    image = image_of(table)
    assert_equal_tables(table_view(image), table)
    assert [
        image.holds(key, 0.0)
        for key in (35 * SNR_KEYS, 36 * SNR_KEYS - 1, 36 * SNR_KEYS + 64_999, 36 * SNR_KEYS + 65_999)
    ] == [True, True, False, True]


def test_a_list_of_meids_with_letters_alone():
    keys = [MEID_BASE + number * SNR_KEYS for number in range(20)]
    image = image_of(table_of(rows_of(keys)))
    assert list(image.keys(0.0)) == keys
    assert [image.holds(keys[3], 0.0), image.holds(keys[3] + 1, 0.0)] == [True, False]


def test_large_arrays_of_a_view_are_memory_of_the_image():
    table = table_of(rows_of([*range(0, 9_000, 7)], seconds=[*range(1, 1_287)], begins=5))
    image = image_of(table)
    view = table_view(image)
    for array in (view.starts, view.lows, view.columns[0], view.columns[2]):
        assert np.shares_memory(array, np.frombuffer(image.buffer, np.uint8))
    before = view.rows()
    del image
    assert [len(list(group)) for _, group in groupby(before.keys.tolist())] == [1] * 1_286
    assert view.lows.tolist() == table.lows.tolist()


def test_an_empty_table():
    image = image_of(EMPTY)
    assert (list(image.keys(0.0)), image.holds(0, 0.0), image.has_subscriber(7, 0.0)) == ([], False, False)
    assert_equal_tables(table_view(image), EMPTY)
