"""Framing: the messages in the bytes of one connection (RFC 6733 2.1, 3), and their number in one turn of the loop.

What the application's lane takes is answered by it, everything else goes to the receiver. Knows no command.
"""

from struct import Struct
from typing import TYPE_CHECKING

from eir.wire.diameter.application import Lane, LaneTerms
from eir.wire.diameter.message import HEADER_BYTES, VERSION, result_label
from eir.wire.diameter.states import State
from eir.wire.diameter.traffic import Traffic
from eir.wire.peers.rate import NO_LIMITS, allowed
from eir.wire.peers.settings import PeerSettings

if TYPE_CHECKING:
    from eir.wire.diameter.peer import Peer

TURN_COST, TURN_BYTES = 384, 2
"""The share of a turn that a message without a lane costs: this many of those that a lane answers, and one more for each so
many of its bytes. That is more than it takes: one or two of them are a turn, so that others wait for no more."""
NO_LANE_SHARE = 24
"""Without a lane all messages are of that kind, and cost this part of it: a turn is then half a millisecond."""

_OPEN, _CLOSED, _WAIT_ADMISSION = State.OPEN, State.CLOSED, State.WAIT_ADMISSION
"""Copies for the code that runs on every read: before Python 3.12 the look-up of an enum's member counts there."""
_WORD = Struct("!I")
_FIRST_WORD_BYTES = 4


class Framer:
    """The bytes that have come, as far as they are not handled.

    The receiver is handed each complete message (`handle`), none while it is in WAIT_ADMISSION; in OPEN the lane comes first.
    Its `more` is set when complete messages are left for another turn.
    """

    __slots__ = ("_lane", "_receiver", "_traffic", "buffered", "need", "partial_at", "rates")

    def __init__(self, receiver: "Peer", traffic: Traffic) -> None:
        self._receiver = receiver
        self._traffic = traffic
        self._lane: Lane | None = None
        self.rates = NO_LIMITS
        """Limits on requests a second."""
        self.buffered = bytearray()
        self.need = 0
        """No use in looking at the buffer before it holds that many bytes."""
        self.partial_at: float | None = None
        """The time when the rest of a message has to be there."""

    def receive(self, data: bytes | memoryview, now: float) -> int:
        """Take bytes and hand over the complete messages in them, one turn's share at most; returns how many there were.

        What is left of them is copied.
        """
        receiver = self._receiver
        if self.buffered:
            self.buffered += data
            if len(self.buffered) < self.need:
                return 0
            data = memoryview(self.buffered)
            self.buffered = bytearray()
        elif receiver.state is _CLOSED:
            return 0
        receiver.more = False
        position, messages = self._messages(data, now)
        if position == len(data):
            self.partial_at = None
        else:
            self.buffered += data[position:]
            if receiver.more or receiver.state is _WAIT_ADMISSION:
                self.partial_at = None
            elif messages or self.partial_at is None:
                self.partial_at = now + self._traffic.context.limits.partial_message_timeout_s
        return messages

    def _messages(self, data: bytes | memoryview, now: float) -> tuple[int, int]:
        """Handle complete messages; return the offset of the rest, and the number of messages."""
        position = messages = 0
        size = len(data)
        receiver, limits = self._receiver, self._traffic.context.limits
        turn = limits.turn_messages
        while receiver.state is not _WAIT_ADMISSION:
            if self._lane is not None and receiver.state is _OPEN and turn > 0 and position < size:
                position, answered = self._express(self._lane, data, position, turn, now)
                messages += answered
                turn -= answered
            left = size - position
            if left < _FIRST_WORD_BYTES:
                self.need = _FIRST_WORD_BYTES
                break
            (word,) = _WORD.unpack_from(data, position)
            length = word & 0xFFFFFF
            if length & 3 or length < HEADER_BYTES or length > limits.max_message_bytes or word >> 24 != VERSION:
                if HEADER_BYTES <= length <= limits.max_message_bytes and left < HEADER_BYTES:
                    self.need = HEADER_BYTES
                    break
                receiver.refuse_frame(bytes(data[position : position + length]), word)
                return size, messages
            if left < length:
                self.need = length
                break
            if turn <= 0:
                # The rest waits until other connections have had their turn of the loop.
                receiver.more, self.need = True, 0
                break
            message = bytes(data[position : position + length])
            position += length
            messages += 1
            cost = TURN_COST + length // TURN_BYTES
            turn -= cost if self._lane is not None else cost // NO_LANE_SHARE
            receiver.handle(message, now)
            if receiver.state is _CLOSED:
                return size, messages
        return position, messages

    # The lane

    def open_lane(self, settings: PeerSettings | None) -> None:
        """Make another lane, by the settings now in force for the peer."""
        traffic, context = self._traffic, self._traffic.context
        lenient = settings.lenient if settings is not None else frozenset[str]()
        names, make = traffic.names, context.application.lane
        terms = LaneTerms(
            traffic.label, names.origin, names.hosts, names.realms, lenient, context.limits, context.overload
        )
        self._lane = make(terms) if make is not None else None

    def close_lane(self) -> None:
        """The connection is over."""
        self._lane = None

    def _express(self, lane: Lane, data: bytes | memoryview, position: int, wanted: int, now: float) -> tuple[int, int]:
        """Answer up to `wanted` messages, as far as lane and limits allow; returns the position behind them, and their number."""
        traffic = self._traffic
        granted, reached = allowed(self.rates, now, wanted) if self.rates else (wanted, "")
        before = len(traffic.out)
        try:
            position, results = lane.take(data, position, granted, traffic.out)
        except Exception as e:  # noqa: BLE001 - the general path answers what the lane could not, by a 5012 if need be
            del traffic.out[before:]
            traffic.fault(e)
            return position, 0
        answered = traffic.by_lane(lane.command, results) if results else 0
        for limit in self.rates:
            limit.bucket.spend(answered)
        if reached and answered == granted:
            # What is left of the turn is past that limit, as long as its priority is the usual one.
            position, shed = lane.shed(data, position, wanted - answered, traffic.out)
            if shed:
                overload = traffic.context.overload
                traffic.context.counts.shed[traffic.label, reached] += shed
                answered += traffic.by_lane(
                    lane.command, {result_label(overload.result_code, overload.experimental): shed}
                )
        return position, answered
