"""Messages that come over SCTP in parts (eir/wire/transport/sctp.py)."""

import pytest
from simulated.wire import ecr

from eir.wire.transport.sctp import DIAMETER, PartialMessage

FIRST, SECOND = ecr("35209900176148"), ecr()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 20, 100, len(FIRST) + 2])
def test_two_messages_in_parts_of_any_size_end_where_they_end(step):
    """Also in parts that end within the first 4 bytes, which hold the length."""
    octets, partial = FIRST + SECOND, PartialMessage(DIAMETER)
    for at in range(0, len(octets), step):
        done = min(at + step, len(octets))
        partial.add(octets[at:done], 5)
        assert bool(partial.octets) == (done not in {len(FIRST), len(octets)})
    partial.add(SECOND, 6)
    assert not partial.octets


@pytest.mark.parametrize("cut", [1, 3, 4, 20, len(FIRST) - 1, len(FIRST) + 1])
def test_a_part_on_another_stream_is_a_fault(cut):
    octets, partial = FIRST + SECOND, PartialMessage(DIAMETER)
    partial.add(octets[:cut], 5)
    with pytest.raises(ConnectionAbortedError, match="two streams"):
        partial.add(octets[cut:], 6)
