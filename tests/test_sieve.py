"""The sieve: no key that was added is ever denied, and few of the others pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.lists.sieve import Sieve

KEYS = st.lists(st.integers(0, 2**57 - 1), max_size=300)


@given(KEYS, KEYS, st.integers(0, 400))
def test_every_key_that_was_added_passes(first, second, capacity):
    sieve = Sieve(capacity)
    for keys in (first, second):
        sieve.add(np.array(keys, np.uint64))
    assert sieve.passes(np.array(first + second, np.uint64)).all()


@pytest.mark.parametrize("step", [1, 17, 1_000_000, 2_500_000])
def test_few_of_the_others_pass_however_regular_the_keys_are(step):
    keys = np.arange(200_000, dtype=np.uint64) * np.uint64(step) + np.uint64(35_000_000_000_000)
    sieve = Sieve(len(keys))
    sieve.add(keys)
    others = keys + np.uint64(len(keys) * step)
    assert 0.002 < sieve.passes(others).mean() < 0.008


def test_an_empty_sieve_lets_nothing_pass():
    assert not Sieve(0).passes(np.arange(1000, dtype=np.uint64)).any()
