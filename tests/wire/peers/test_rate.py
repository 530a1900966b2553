"""Limits on requests a second, with a clock of our own; priorities are in test_peer.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.wire.peers.rate import Bucket, Buckets

RATE = 400.0
BURST = 100
"""What a bucket of that rate holds."""


def grant(bucket, now, wanted, priority=10):
    """Answer as many as the limit allows."""
    granted = min(wanted, bucket.room(now, priority))
    bucket.spend(granted)
    return granted


def test_a_priority_past_the_last_is_the_last():
    bucket = Bucket(RATE, 0.0)
    assert bucket.room(0.0, 99) == bucket.room(0.0, 15) < bucket.room(0.0, 14)


@pytest.mark.parametrize("rate_max", [0.5, 1.0, 4.0, 8.0])
def test_a_full_bucket_refuses_no_priority(rate_max):
    assert Bucket(rate_max, 0.0).room(0.0, 15) >= 1


def test_a_refusal_costs_nothing():
    bucket = Bucket(1.0, 0.0, burst=3)
    assert [bucket.try_spend(0.0) for _ in range(1000)] == [True] * 3 + [False] * 997
    assert [bucket.try_spend(1.0), bucket.try_spend(1.0)] == [True, False]
    assert [bucket.try_spend(4.0, 4), bucket.try_spend(4.0, 3)] == [False, True]


def test_what_is_filled_in_is_no_more_than_a_burst():
    bucket = Bucket(0.0, 0.0, burst=3)
    bucket.spend(2)
    bucket.fill(1)
    assert bucket.room(0.0, 0) == 2
    bucket.fill(9)
    assert bucket.room(0.0, 0) == 3


def test_each_key_has_a_bucket_and_the_first_ones_are_forgotten():
    buckets = Buckets(1.0, 1, keys_max=2)
    assert [buckets.of(key, 0.0).try_spend(0.0) for key in "abab"] == [True, True, False, False]
    assert buckets.of("c", 0.0).try_spend(0.0)
    assert [buckets.of(key, 0.0).try_spend(0.0) for key in "bca"] == [False, False, True]


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 300), st.integers(0, 15)), max_size=60))
def test_never_more_than_a_burst_above_the_rate(steps):
    bucket, granted, now = Bucket(RATE, 0.0), 0, 0.0
    for wait, wanted, priority in steps:
        now += wait
        granted += grant(bucket, now, wanted, priority)
    assert granted <= BURST + RATE * now + 1
