"""Who is counted as a person: names in whatever case, and patterns, against a plain reading of OpenSSH's."""

from fnmatch import fnmatchcase
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.lists.releases.openssh import distinct_signers, may_be_same_person

NAMES = ["".join(letters) for size in range(7) for letters in product("ab", repeat=size)]
"""Two patterns of four characters that have a name in common have one of these: with a star in each, it has six letters at most."""
PATTERN = st.text("ab*?", max_size=4)


@given(PATTERN, PATTERN)
def test_patterns_are_one_person_if_a_name_fits_both(first, second):
    assert may_be_same_person(first, second) is any(
        fnmatchcase(name, first) and fnmatchcase(name, second) for name in NAMES
    )
    assert (
        may_be_same_person(first, second)
        == may_be_same_person(second, first)
        == may_be_same_person(first.upper(), second)
    )


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ((["a@x"], ["b@x"]), 2),
        ((["a@x"], ["A@x"]), 1),
        ((["a@*"], ["a@x"]), 1),
        ((["A@*"], ["?@X"]), 1),
        ((["*"], ["a@x"]), 1),
        ((["*"], ["*"]), 1),
        ((["a@*"], ["b@*"]), 2),
        ((["a@*"], ["*@x"]), 1),
        ((["*@x"], ["a@x"], ["b@x"]), 2),  # one signature more takes nothing away
        ((["a@x"], ["b@x"], ["*@x"]), 2),
        ((["a@x", "*"], ["b@x"]), 2),  # a key that more than one person has counts as the one who is not there yet
        ((["a@x", "b@x"], ["a@x"], ["B@x"]), 2),
        ((["a@x"], []), 1),
        ((["a" * 5000 + "*"], ["*" + "a" * 5000]), 1),
    ],
    ids=range(14),
)
def test_what_counts_as_a_person(keys, count):
    assert len(distinct_signers({str(number): principals for number, principals in enumerate(keys)})) == count


@given(st.lists(st.lists(PATTERN.filter(bool), max_size=3, unique=True), max_size=5))
def test_no_two_that_count_may_be_one_person(keys):
    named = {str(number): principals for number, principals in enumerate(keys)}
    chosen = distinct_signers(named)
    assert all(principal in named[key] for key, principal in chosen.items())
    assert not any(may_be_same_person(one, other) for one, other in combinations(chosen.values(), 2))
    left = [principal for key, principals in named.items() if key not in chosen for principal in principals]
    assert all(any(may_be_same_person(one, other) for other in chosen.values()) for one in left)
