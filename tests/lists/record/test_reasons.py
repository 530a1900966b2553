"""Reason and day that a list has for a key: the narrower row's first, as long as it is in force. Rows that match by their reason."""

import numpy as np
from simulated.store_content import as_table, joined, page, pair_rows

from eir.device import SNR_KEYS
from eir.lists.record.listed_entries import reason_and_day
from eir.lists.record.matching import matching_rows, matching_table, other_reasons
from eir.lists.record.reasons import unknown_reasons
from eir.lists.table.columns import ENDS, REASONS, rows_of


def test_a_reason_is_that_of_the_row():
    table = as_table([page(0, [1, 5, 900], reasons=[2, 1, 7]), page(1, [1, 2], reasons=[1, 0]), page(2, [3])])
    expected = {
        1: "lost",
        5: "stolen",
        900: "other",
        2: None,
        SNR_KEYS + 1: "stolen",
        SNR_KEYS + 2: None,
        3 * SNR_KEYS: None,
    }
    texts = ("", "stolen", "lost")
    assert {key: reason_and_day(table, texts, key)[0] for key in expected} == expected


def test_the_narrower_reason_is_shown_as_long_as_it_is_in_force():
    table = as_table([
        page(0, [1, 2, 3], reasons=[1, 1, 0], until=[0, 100, 0], tac=(2, 200)), page(1, [], tac=(2, 0)), page(2, [7], tac=(0, 0)),
    ])  # fmt: skip

    def at(now):
        keys = (1, 2, 3, 4, SNR_KEYS + 9, 2 * SNR_KEYS + 7)
        return [reason_and_day(table, ("", "stolen", "recalled"), key, now=now)[0] for key in keys]

    assert at(99) == ["stolen", "stolen", "recalled", "recalled", "recalled", None]
    assert at(100) == ["stolen", "recalled", "recalled", "recalled", "recalled", None]
    assert at(200) == ["stolen", None, None, None, "recalled", None]


def test_a_row_has_no_reason_and_no_day_before_its_begin():
    table = as_table(rows_of([5], reasons=1, begins=100, days=20_000))
    texts = ("", "stolen")
    assert [reason_and_day(table, texts, 5, now=now) for now in (99, 100)] == [(None, 0), ("stolen", 20_000)]


def test_each_pair_has_its_own_reason():
    table = as_table([pair_rows({1: [1001]}, reasons=1, ends=100), pair_rows({1: [1002]}, reasons=2)])
    texts = ("", "stolen", "clone")
    assert [reason_and_day(table, texts, 1, second=imsi, now=50)[0] for imsi in (1001, 1002)] == ["stolen", "clone"]
    assert reason_and_day(table, texts, 1, now=150)[0] == "clone", "the reason of a device outlives the end of a SIM"


TEXTS = ("", "stolen", "lost", "fraud")
OTHER = 255


def test_only_rows_with_the_chosen_reasons_match():
    """Row 70: another reason and none do not match; `other` of a full reason table may be any reason, so it matches."""
    rows = joined([
        page(0, [1, 2, 3, 4, 5], reasons=[1, 2, 3, 0, OTHER], until=[9, 8, 7, 6, 5]), page(1, [1], reasons=[3]), page(3, [7], tac=(2, 0)),
    ])  # fmt: skip
    for chosen in ([], ["stolen"], ["fraud", "lost"], ["unknown"], [""], ["other"]):
        indexes = {TEXTS.index(reason) for reason in chosen if reason in TEXTS[1:]} | {OTHER}
        expected = rows.select(np.isin(rows.column(REASONS), [*indexes])) if chosen else rows
        for found in (matching_table(as_table(rows), TEXTS, chosen).rows(), matching_rows(rows, TEXTS, chosen)):
            assert found.keys.tolist() == expected.keys.tolist(), chosen
            assert [found.column(index).tolist() for index in (REASONS, ENDS)] == [
                expected.column(index).tolist() for index in (REASONS, ENDS)
            ], chosen
    whole = as_table(page(0, [1, 2], reasons=[1, 2]))
    assert matching_table(whole, TEXTS, TEXTS) is whole, "no copy where all rows match"
    assert len(matching_table(as_table(page(0, [1])), (), ["stolen"])) == 0


def test_the_reason_of_an_answer_is_one_that_matches():
    table = as_table(page(0, [1, 2], reasons=[2, 2], tac=(1, 0)))
    assert reason_and_day(table, TEXTS, 1)[0] == "lost"
    assert reason_and_day(table, TEXTS, 1, chosen=["stolen"])[0] == "stolen"
    assert reason_and_day(table, TEXTS, 1, chosen=["fraud"])[0] is None


def test_reasons_that_a_list_lacks_or_cannot_tell_apart_are_named():
    assert unknown_reasons(TEXTS, ["lost", "stolen"]) == "" == unknown_reasons(TEXTS, [])
    text = "no entry has the reason Stolen, theft; expected reasons of the list: stolen, lost, fraud"
    assert unknown_reasons(TEXTS, ["Stolen", "lost", "theft"]) == text
    assert unknown_reasons((), ["lost"]) == "no entry has the reason lost; none of its entries has a reason"
    table = as_table(page(0, [1, 2, 3], reasons=[1, OTHER, OTHER]))
    assert other_reasons(table, ["stolen"]).startswith("2 entries match with the reason 'other'")
    assert other_reasons(table, []) == "" == other_reasons(as_table(page(0, [1], reasons=[1])), ["stolen"])
