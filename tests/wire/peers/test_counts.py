"""The node's counters."""

import pytest

from eir.wire.peers.counts import DURATION_BUCKETS_S, Counts


@pytest.mark.parametrize("place", range(len(DURATION_BUCKETS_S)))
def test_a_duration_is_counted_below_the_least_bound_that_it_does_not_exceed(place):
    durations = Counts().durations
    durations.add(DURATION_BUCKETS_S[place], 2)
    durations.add(DURATION_BUCKETS_S[place] * 1.01, 3)
    assert {at: count for at, count in enumerate(durations.buckets) if count} == {place: 2, place + 1: 3}
    assert durations.total_s == pytest.approx(DURATION_BUCKETS_S[place] * (2 + 3 * 1.01))
