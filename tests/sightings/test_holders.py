"""Subscribers whom an export blocks: holders of copies, and never the owner."""

from datetime import timedelta

import pytest
from tampered import DAY, FAR, IMEI, NEAR, START, UNTIL, files, people, phones, write

from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import duck
from eir.sightings.holders import SubscriberPeriod, find_copies
from eir.sightings.judge import judge

MODEL = IMEI[:8]


def ordinary(count, *, version="05", places=(NEAR, FAR), first=0, from_day=0):
    """Phones of the model, each with one SIM, which are seen once a day."""
    return [
        (
            day * DAY + 9,
            f"{MODEL}{first + number:06d}",
            f"o{first + number}",
            places[(number + (day > 15)) % len(places)],
            version,
        )
        for number in range(count)
        for day in range(from_day, 30)
    ]


@pytest.fixture
def copies_in(tmp_path):
    """Judges a few sightings, and returns the holders of copies of the one device with several phones."""

    def found(rows):
        write(tmp_path, rows)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            judged = judge(engine, TamperSettings(), since=START, until=UNTIL, keep_users=True)
        (finding,) = [each for each in judged.findings if each.imei == IMEI]
        return finding.users

    return found


def late_owner(*, copy="05", owner="05"):
    """A copy from the first day on, and an owner whose MME starts to report on day 12."""
    rows = phones(["copy", "owner"], places={"copy": NEAR, "owner": FAR}, versions={"copy": copy, "owner": owner})
    return [row for row in rows if row[2] == "copy" or row[0] >= 12 * DAY]


def test_an_owner_whose_mme_starts_to_report_is_not_blocked(copies_in):
    rows = [*late_owner(), *ordinary(20, places=[NEAR]), *ordinary(20, places=[FAR], first=20, from_day=12)]
    assert copies_in(rows) == ()


def test_a_late_subscriber_is_a_copy_if_the_record_has_no_gaps(copies_in):
    assert copies_in([*late_owner(), *ordinary(20)]) == ("owner",)


@pytest.mark.parametrize(
    ("copy", "owner", "phones_of_model"),
    [
        ("77", "05", 20),  # a rival from the first day on, while the owner was absent
        ("77", "55", 20),  # the owner's version is unusual
        (None, "05", 20),
        (None, None, 20),
        ("05", "05", 2),  # too few phones show the versions of the model
    ],
)
def test_a_late_owner_is_not_blocked_because_of_an_early_rival(copies_in, copy, owner, phones_of_model):
    others = [(day * DAY + 8, f"3520995{number:07d}", f"x{number}", (NEAR, FAR)[number % 2], "05") for number in range(40) for day in range(30)]  # fmt: skip
    assert "owner" not in copies_in([*late_owner(copy=copy, owner=owner), *ordinary(phones_of_model), *others])


@pytest.mark.parametrize(
    ("version", "copies"), [("77", ("a", "b")), ("08", ("a", "b")), ("07", ()), ("03", ()), (None, ()), ("xx", ())]
)
def test_versions_far_from_those_of_the_model_show_copies(copies_in, version, copies):
    """All are there from the first day on; the phones of the model have version 05."""
    rows = phones(["a", "b", "owner"], places={"a": NEAR, "b": FAR, "owner": FAR}, versions={"a": version, "b": version, "owner": "05"})  # fmt: skip
    assert copies_in([*rows, *ordinary(20)]) == copies


def test_a_few_foreign_phones_do_not_change_the_versions_of_a_model(copies_in):
    rows = phones(["a", "owner"], places={"a": NEAR, "owner": FAR}, versions={"a": "77", "owner": "05"})
    assert copies_in([*rows, *ordinary(97), *ordinary(2, version="77", first=97)]) == ("a",)
    assert copies_in([*rows, *ordinary(97), *ordinary(4, version="77", first=97)]) == ()


def test_the_numbers_of_a_sim_box_do_not_show_the_versions_of_a_model(copies_in):
    rows = phones(["a", "owner"], places={"a": NEAR, "owner": FAR}, versions={"a": "08", "owner": "55"})
    box = [(number * 50 + late, f"{MODEL}9{number:05d}", "card", NEAR, "07") for number in range(9) for late in (0, 30)]
    assert copies_in([*rows, *box, *people(NEAR, FAR)]) == ()


def held(who, first, last, days, is_of_model=True, versions=()):
    begin, end = START + timedelta(days=first), START + timedelta(days=last)
    return SubscriberPeriod(who, begin, end, days, is_of_model, versions)


def lot(who, days, version):
    """A phone that was there from the first day on, with a foreign version."""
    return held(who, days / 100, 29, days, is_of_model=False, versions=(version,))


@pytest.mark.parametrize(
    ("subscribers", "copies"),
    [
        ([held("a", 0, 29, 25), held("b", 10, 29, 15)], ("b",)),
        ([held("a", 0, 29, 25, None), held("b", 10, 29, 15)], ()),  # the first may be a rival
        ([held("a", 0, 29, 25), held("b", 7, 29, 15)], ()),  # both may have been there before
        ([held("a", 0, 29, 25), held("b", 8, 29, 25)], ()),  # the first is not the longest
        ([held("a", 0, 12, 12), held("b", 13, 29, 10)], ()),  # a sale
        ([held("a", 0, 29, 25), held("b", 1, 29, 25), held("c", 9, 29, 11), held("d", 20, 29, 5)], ("c", "d")),
        ([held("a", 0, 29, 25), held("b", 10, 29, 9)], ()),  # seldom there: an owner from where no MME reports
        ([held("a", 8, 29, 20), held("b", 18, 29, 10)], ()),  # the owner may not be in this record
        ([held("a", 0, 29, 25, False), held("b", 0, 29, 25)], ("a",)),
        ([held("a", 0, 29, 25, False), held("b", 1, 29, 25)], ()),  # the first by a day
        ([held("a", 0, 29, 25, False), held("b", 0, 29, 18)], ()),  # the longest by a week
        ([lot("a", 25, 77), lot("b", 26, 77), lot("c", 24, 77)], ("a",)),  # the owner is first or longest
        ([lot("a", 25, 77), lot("b", 26, 77), lot("c", 24, 71)], ()),  # none is a lot
        ([held("rival", 20, 29, 10, None), held("owner", 24, 29, 5, False, (5,))], ()),  # the rival's version is near
        ([], ()),
    ],
)  # fmt: skip
def test_the_owner_is_never_among_the_copies(subscribers, copies):
    assert find_copies(subscribers, START, UNTIL, has_gaps=False) == copies
