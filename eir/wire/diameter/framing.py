"""Framing: splits a connection's bytes into messages (RFC 6733 2.1, 3), and limits the messages per loop iteration.

The application's lane answers the messages that it accepts; the receiver handles all others. No command is known here.
"""

from struct import Struct
from typing import Protocol

from eir.wire.diameter.application import Lane, LaneTerms
from eir.wire.diameter.message import HEADER_BYTES, VERSION, result_label
from eir.wire.diameter.states import State
from eir.wire.diameter.traffic import Traffic
from eir.wire.peers.rate import NO_LIMITS, allowed
from eir.wire.peers.settings import PeerSettings

TURN_COST, TURN_BYTES = 384, 2
"""Cost of a message on the general path, in units of a message on the lane: a fixed part, and one unit per this number of bytes.

The cost is set above the real one: one or two such messages use up a turn, so that other connections do not wait for more.
"""
NO_LANE_SHARE = 24
"""Divisor of that cost for a connection without a lane, where a turn then takes half a millisecond."""

_OPEN, _CLOSED, _WAIT_ADMISSION = State.OPEN, State.CLOSED, State.WAIT_ADMISSION
"""Copies for code that runs on every read: before Python 3.12 the lookup of an enum member is slow."""
_WORD = Struct("!I")
_FIRST_WORD_BYTES = 4


class MessageReceiver(Protocol):
    """State machine that receives the messages of a connection."""

    @property
    def state(self) -> State:
        """State of the connection."""

    more: bool
    """True if complete messages remain for the next turn."""

    def handle(self, message: bytes, now: float) -> None:
        """Handle one complete message."""

    def refuse_frame(self, start: bytes, word: int) -> None:
        """End the connection, because its next bytes are not a message. `word`: first four of these bytes."""


class Framer:
    """Buffer that splits received bytes into messages for the application's fast path (lane) or for the state machine.

    The receiver's `handle` receives each complete message, except while the receiver is in WAIT_ADMISSION; in OPEN the lane is
    first. `more` of the receiver is true if complete messages remain for the next turn.
    """

    __slots__ = ("_lane", "_receiver", "_traffic", "buffered", "need", "partial_at", "rates")

    def __init__(self, receiver: MessageReceiver, traffic: Traffic) -> None:
        self._receiver = receiver
        self._traffic = traffic
        self._lane: Lane | None = None
        self.rates = NO_LIMITS
        """Limits on requests per second."""
        self.buffered = bytearray()
        self.need = 0
        """Number of buffered bytes below which the buffer cannot hold a complete message."""
        self.partial_at: float | None = None
        """Time by which the rest of a message must arrive."""

    def receive(self, data: bytes | memoryview, now: float) -> int:
        """Handle complete messages, up to the limit of one loop iteration; return the number of handled messages.

        The remaining bytes are copied.
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
        """Handle complete messages; return the offset of the first unhandled byte, and the number of handled messages."""
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
                # The rest waits until other connections have had their turn.
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
        """Create a fast path (lane) for the connection, with the current settings of the peer."""
        traffic, context = self._traffic, self._traffic.context
        lenient = settings.lenient if settings is not None else frozenset[str]()
        names, make = traffic.names, context.application.lane
        terms = LaneTerms(
            traffic.label, names.origin, names.hosts, names.realms, lenient, context.limits, context.overload
        )
        self._lane = make(terms) if make is not None else None

    def close_lane(self) -> None:
        """Remove the lane (fast path) when the connection has ended."""
        self._lane = None

    def _express(self, lane: Lane, data: bytes | memoryview, position: int, wanted: int, now: float) -> tuple[int, int]:
        """Answer at most `wanted` buffered messages on the fast path (lane); return the offset after these messages, and their count."""
        traffic = self._traffic
        granted, reached = allowed(self.rates, now, wanted) if self.rates else (wanted, "")
        before = len(traffic.out)
        try:
            position, results = lane.take(data, position, granted, traffic.out)
        except Exception as e:  # noqa: BLE001 - the general path answers this message, with 5012 if needed
            del traffic.out[before:]
            traffic.fault(e)
            return position, 0
        answered = traffic.by_lane(lane.command, results) if results else 0
        for limit in self.rates:
            limit.bucket.spend(answered)
        if reached and answered == granted:
            # The rest of the turn is above the limit, for messages of the default priority.
            position, shed = lane.shed(data, position, wanted - answered, traffic.out)
            if shed:
                overload = traffic.context.overload
                traffic.context.counts.shed[traffic.label, reached] += shed
                answered += traffic.by_lane(
                    lane.command, {result_label(overload.result_code, overload.experimental): shed}
                )
        return position, answered
