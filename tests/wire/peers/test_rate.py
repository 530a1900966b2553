"""Limits on requests a second that several workers fill together, with a clock of our own; priorities are in test_peer.py."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.wire.peers.rate import LIMITS_MAX, Bucket, Buckets, Grants, memory_file, shared_memory

RATE = 400.0
BURST = 100
"""What a bucket of that rate holds."""


def shared(workers):
    with memory_file(workers) as memory:
        return shared_memory(memory.fileno())


def workers(number, *, rate_max=RATE, limit=1):
    memory = shared(number)
    return [Bucket(rate_max, 0.0, grants=Grants(memory, worker), limit=limit) for worker in range(number)]


def grant(bucket, now, wanted, priority=10):
    """Answer as many as the limit allows."""
    granted = min(wanted, bucket.room(now, priority))
    bucket.spend(granted)
    return granted


@pytest.mark.parametrize("shares", [(1, 0, 0), (1, 1, 1), (10, 1, 0)], ids=["all in one", "alike", "unlike"])
def test_together_they_grant_what_one_would(shares):
    buckets, granted, now = workers(3), [0, 0, 0], 0.0
    for _ in range(1000):  # 10 s, ten times the limit
        now += 0.01
        for worker, share in enumerate(shares):
            granted[worker] += grant(buckets[worker], now, round(40 * share / sum(shares)))
    assert 10 * RATE <= sum(granted) <= 10 * RATE + BURST + 1
    assert all(number for number, share in zip(granted, shares, strict=True) if share)


def test_what_one_spends_others_have_not():
    first, second = workers(2)
    assert (first.room(0.0, 0), second.room(0.0, 0)) == (BURST, BURST)
    first.spend(70)
    assert (first.room(0.0, 0), second.room(0.0, 0)) == (BURST - 70, BURST - 70)


def test_a_priority_past_the_last_is_the_last():
    bucket = Bucket(RATE, 0.0)
    assert bucket.room(0.0, 99) == bucket.room(0.0, 15) < bucket.room(0.0, 14)


@pytest.mark.parametrize("rate_max", [0.5, 1.0, 4.0, 8.0])
def test_a_full_bucket_refuses_no_priority(rate_max):
    assert Bucket(rate_max, 0.0).room(0.0, 15) >= 1


def test_limits_are_apart():
    memory = shared(2)
    buckets = [
        Bucket(RATE, 0.0, grants=Grants(memory, worker), limit=limit)
        for worker, limit in ((0, 1), (1, 2), (1, 1 + LIMITS_MAX))
    ]
    assert [grant(bucket, 0.0, 1000, 0) for bucket in buckets] == [
        BURST,
        BURST,
        0,
    ]  # the last has the first one's place


def test_a_number_that_jumps_is_felt_for_a_burst_and_no_longer():
    memory = shared(2)
    bucket, other = Bucket(RATE, 0.0, grants=Grants(memory, 0), limit=1), Grants(memory, 1)
    for jump in (10**9, -(10**9)):
        other.add(1, jump)
        bucket.room(1.0)
    assert grant(bucket, 1.0, 1000, 0) <= BURST
    other.add(1, 10**9)
    assert grant(bucket, 1.0, 1000, 0) == 0
    assert grant(bucket, 1.6, 1000, 0) > 0


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


def test_processes_see_each_others_grants():
    memory = shared(2)
    bucket = Bucket(RATE, 0.0, grants=Grants(memory, 0), limit=7)
    child = os.fork()
    if not child:
        Bucket(RATE, 0.0, grants=Grants(memory, 1), limit=7).spend(60)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert grant(bucket, 0.0, 1000, 0) == BURST - 60


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 0.5), st.integers(0, 300), st.integers(0, 15)), max_size=60))
def test_never_more_than_a_burst_above_the_rate_between_two_looks(steps):
    buckets, granted, now = workers(3), 0, 0.0
    for worker, wait, wanted, priority in steps:
        now += wait
        for each in buckets:  # each is looked into now and then: by every read of its worker
            each.room(now)
        granted += grant(buckets[worker], now, wanted, priority)
    assert granted <= BURST + RATE * now + 1
