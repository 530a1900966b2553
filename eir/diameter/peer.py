"""One connection with a peer, without I/O (RFC 6733 5): bytes in, events out, bytes out; time is an argument.

`states` says what is done when, here stands how. May import all of this package but transport, node and client; knows no
socket, no event loop, no clock and no log format.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, NamedTuple

from eir.diameter.answer import encode_answer, error_answer, is_protocol_error, result_avp, result_label
from eir.diameter.avp import encode_u32, u32
from eir.diameter.capabilities import Capabilities, capability_avps, check_capabilities, read_capabilities
from eir.diameter.counts import OTHER
from eir.diameter.dictionary import (
    BASE,
    CAPABILITIES_EXCHANGE,
    DEVICE_WATCHDOG,
    DISCONNECT_CAUSE,
    DISCONNECT_PEER,
    ME_IDENTITY_CHECK,
    ORIGIN_STATE_ID,
    S13,
)
from eir.diameter.grammar import CER, COMMANDS, DPR, DWR, Command, Grammar
from eir.diameter.message import HEADER_BYTES, P_FLAG, R_FLAG, VERSION, Answer, Request, encode_message
from eir.diameter.rate import Limit
from eir.diameter.serve import Face, Lane, Surroundings, check_header_bits, check_request, face_of, reply_to
from eir.diameter.settings import PeerSettings
from eir.diameter.states import ANSWERS, REQUESTS, TABLE, Input, State, Transition
from eir.diameter.watchdog import OTHER as OTHER_EVENT
from eir.diameter.watchdog import Action as WatchdogAction
from eir.diameter.watchdog import Event as WatchdogEvent
from eir.diameter.watchdog import Status as WatchdogStatus
from eir.diameter.watchdog import Watchdog
from eir.errors import ConnectionFault, DiameterError

SUCCESS = 2001
UNSUPPORTED_VERSION = 5011
UNABLE_TO_COMPLY = 5012
INVALID_MESSAGE_LENGTH = 5015

SETTINGS = {
    "avp_unsupported": "lenient: [unknown_m]",
    "destination": "lenient: [destination], or identity.aliases",
    "realm_not_served": "identity.realms",
    "no_common_application": "lenient: [applications]",
    "unknown_peer": "peers: an entry with this host or realm, and this address in its `from`",
    "too_many_avps": "limits.max_avps",
    "avp_depth": "limits.max_depth",
    "message_too_long": "limits.max_message_bytes",
    "cer_timeout": "limits.cer_timeout_s",
    "partial_message": "limits.partial_message_timeout_s",
    "duplicate": "connections",
    "rate_max": "rate_max",
    "tls_name": "tls_names",
    "no_common_security": "a listener of the form tls://",
}
"""Reason → the setting that would have taken what was refused."""


class DisconnectCause(IntEnum):
    """RFC 6733 5.4.3."""

    REBOOTING = 0
    BUSY = 1
    DO_NOT_WANT_TO_TALK_TO_YOU = 2


@dataclass(frozen=True, slots=True)
class Arrived:
    """A good CER came; the node calls `admit` or `refuse`, now or later."""

    capabilities: Capabilities
    settings: PeerSettings


@dataclass(frozen=True, slots=True)
class Opened:
    """The capabilities are exchanged."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A DPR went one way or the other: the connection still answers, but the peer may open another in its place."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The peer answered a DWR of ours."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request that was sent by `ask`."""

    hop_by_hop: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over: write what is left, then close the transport."""

    reason: str
    detail: str
    reset: bool
    """Do not wait for anything: the peer's bytes make no sense."""


Event = Arrived | Opened | Leaving | Alive | Answered | Closed

Recognise = Callable[[Capabilities], PeerSettings]
"""Says whose a CER is; raises DiameterError 3010 for one that is nobody's."""


class _Happening(NamedTuple):
    """What an action is given: the message, or what the owner said."""

    now: float
    message: bytes = b""
    command: Command | None = None
    reason: str = ""
    fault: DiameterError | None = None
    cause: DisconnectCause = DisconnectCause.REBOOTING
    status: WatchdogStatus = WatchdogStatus.INITIAL


TURN_COST, TURN_BYTES = 4, 64
"""What a message that no lane takes costs of a turn, measured against one that a lane takes: so much, and one for each so
many of its bytes, of which the worst kind are AVPs without data."""

_OPEN, _CLOSED, _WAIT_ADMISSION = State.OPEN, State.CLOSED, State.WAIT_ADMISSION
"""For what is done with every read: before Python 3.12 a member's look-up on its enum counts there."""
_WORD = Struct("!I")
_TWO_WORDS_AND_ID = Struct("!III")
_FIRST_WORD_BYTES = 4
_CER_COMMAND = COMMANDS[BASE, CAPABILITIES_EXCHANGE]
_ECR = COMMANDS[S13, ME_IDENTITY_CHECK].name


class Peer:
    """One connection. `events` is for its owner to take and clear; `deadline` says when `timer` is to be called."""

    __slots__ = (
        "_asked", "_buffered", "_close_at", "_dwr_ids", "_face", "_lane", "_need", "_next_id", "_out", "_partial_at",
        "_pending_cer", "_recognise", "_row", "_surroundings", "_wait_until", "addresses", "answers", "capabilities", "cause", "events", "label", "more", "rates", "requests", "secure", "settings", "state", "watchdog",
    )  # fmt: skip

    rates: Sequence[Limit]
    """Limits on requests a second."""

    def __init__(
        self,
        surroundings: Surroundings,
        recognise: Recognise,
        *,
        addresses: Sequence[str],
        now: float,
        first_id: int,
        secure: bool = False,
    ) -> None:
        self._surroundings = surroundings
        self._recognise = recognise
        self.addresses = tuple(addresses)
        """Of our end, for the CEA or CER."""
        self.secure = secure
        """The connection is inside TLS."""
        self._next_id = first_id & 0xFFFFFFFF
        self.label = OTHER
        """The peer's label in counters, once it is known who it is."""
        self.settings: PeerSettings | None = None
        self.capabilities: Capabilities | None = None
        """What the peer said of itself."""
        self.watchdog: Watchdog | None = None
        self.cause: int | None = None
        """Why the peer left, by its DPR (a DisconnectCause, or what else it wrote)."""
        self.requests = 0
        """Application requests received."""
        self.answers = 0
        """Answers to them sent."""
        self.rates = ()
        self.events: list[Event] = []
        self.more = False
        """Complete messages are left for another turn: call `receive` again, with nothing."""
        self._out: list[bytes] = []
        self._buffered = bytearray()
        self._need = 0
        """No use in looking at the buffer before it holds that many bytes."""
        self._asked: set[int] = set()
        self._dwr_ids: set[int] = set()
        self._lane: Lane | None = None
        self._pending_cer: Request | None = None
        self._partial_at: float | None = None
        self._close_at: float | None = None
        self._wait_until: float | None = now + surroundings.limits.cer_timeout_s
        identity = surroundings.identity
        self._face = face_of(identity, identity.host, identity.realm)
        self.state: State
        self._row: tuple[Transition, ...]
        self._enter(State.WAIT_CER)

    # What the owner calls

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the transport and answer the complete messages in them, one turn's share at most."""
        if self._buffered:
            self._buffered += data
            if len(self._buffered) < self._need:
                return
            data = bytes(self._buffered)
            self._buffered = bytearray()
        elif self.state is _CLOSED:
            return
        self.more = False
        position, messages = self._messages(data, now)
        if messages and self.watchdog is not None:
            self.watchdog.handle(OTHER_EVENT, now)
        if position == len(data):
            self._partial_at = None
        else:
            self._buffered += data[position:]
            if self.more or self.state is _WAIT_ADMISSION:
                self._partial_at = None
            elif messages or self._partial_at is None:
                self._partial_at = now + self._surroundings.limits.partial_message_timeout_s

    def take(self) -> bytes:
        """The bytes to send, once."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return b"".join(out)

    def deadline(self) -> float | None:
        """When `timer` is due; None: never."""
        if self.state is _CLOSED:
            return None
        due = self.watchdog.deadline if self.watchdog is not None and self.state is _OPEN else None
        for at in (self._wait_until, self._partial_at, self._close_at):
            if at is not None and (due is None or at < due):
                due = at
        return due

    def timer(self, now: float) -> None:
        """Do what is due at `now`."""
        if self._wait_until is not None and now >= self._wait_until:
            self._time_out("cea_timeout" if self.state is State.WAIT_CEA else "cer_timeout", now)
        elif self._partial_at is not None and now >= self._partial_at:
            self._time_out("partial_message", now)
        elif self._close_at is not None and now >= self._close_at:
            self._feed(Input.TIMEOUT, _Happening(now, reason="disconnected"))
        elif self.watchdog is not None and self.state is State.OPEN and now >= self.watchdog.deadline:
            self._watch(self.watchdog.timer(now), now)

    def end(self, now: float) -> None:
        """The transport is gone, or the peer will send nothing more and everything else has been received."""
        if self._buffered and self.state not in {State.WAIT_ADMISSION, State.CLOSED}:
            self._surroundings.counts.errors["truncated"] += 1
        self._feed(Input.END, _Happening(now, reason="peer_closed"))

    def connect(self, settings: PeerSettings, now: float) -> None:
        """We made this connection: send our CER. To be called before anything is received."""
        identity = self._surroundings.identity
        self._become(settings)
        self.label = settings.label
        self._enter(State.WAIT_CEA)
        self._wait_until = now + self._surroundings.limits.cer_timeout_s
        avps = capability_avps(identity, self.addresses, self._surroundings.application_id)
        self._asked.add(self._send_request(CAPABILITIES_EXCHANGE, self._face.origin + avps))

    def admit(self, now: float, *, failed_before: bool = False) -> None:
        """Take the connection that `Arrived` told of, and go on with what the peer has sent meanwhile.

        `failed_before`: the peer's last connection was given up by its watchdog, so that it is REOPEN at first.
        """
        status = WatchdogStatus.DOWN if failed_before else WatchdogStatus.INITIAL
        self._feed(Input.ADMIT, _Happening(now, status=status))
        if self.state is State.OPEN and self._buffered:
            self._need = 0
            self.receive(b"", now)

    def refuse(self, fault: DiameterError, now: float) -> None:
        """Answer the CER that `Arrived` told of by an error, and close."""
        self._feed(Input.REFUSE, _Happening(now, fault=fault))

    def stop(self, cause: DisconnectCause, now: float, reason: str = "stopped") -> None:
        """End the connection in order, by a DPR where it is open."""
        self._feed(Input.STOP, _Happening(now, cause=cause, reason=reason))

    def drop(self, reason: str, now: float) -> None:
        """End the connection at once."""
        self._feed(Input.TIMEOUT, _Happening(now, reason=reason))

    def probe(self, now: float) -> None:
        """Send a DWR out of turn; `Alive` tells when its answer is there."""
        if self.state is State.OPEN and self.watchdog is not None:
            self.watchdog.ask(now)
            self._send_dwr()

    def ask(self, command: int, application_id: int, avps: bytes) -> int:
        """Send a request (with the P bit) and return its hop-by-hop id; the connection is to be open."""
        hop_by_hop = self._send_request(command, avps, application_id, P_FLAG)
        self._asked.add(hop_by_hop)
        return hop_by_hop

    def forget(self, hop_by_hop: int) -> None:
        """Nobody waits for this answer any more; should it come, it is dropped."""
        self._asked.discard(hop_by_hop)

    @property
    def face(self) -> Face:
        """The names that the peer knows us by."""
        return self._face

    @property
    def pending(self) -> int:
        """Requests of ours that have no answer yet, watchdogs included."""
        return len(self._asked) + len(self._dwr_ids)

    def configure(self, surroundings: Surroundings, settings: PeerSettings | None, now: float) -> None:
        """Take over new settings; the names that the peer was shown stay what they are."""
        self._surroundings = surroundings
        self._face = face_of(surroundings.identity, self._face.host, self._face.realm)
        if settings is not None:
            self.settings = settings
            self.label = settings.label
            if self.watchdog is not None:
                self.watchdog.retime(settings.watchdog_s, now)
        self._make_lane()

    # From bytes to inputs

    def _messages(self, data: bytes, now: float) -> tuple[int, int]:
        """Handle complete messages; return the offset of what is left, and how many messages there were."""
        position = messages = 0
        size = len(data)
        limits = self._surroundings.limits
        turn = limits.turn_messages
        while self.state is not _WAIT_ADMISSION:
            if self._lane is not None and self.state is _OPEN and turn > 0:
                position, answered = self._express(self._lane, data, position, turn, now)
                messages += answered
                turn -= answered
            left = size - position
            if left < _FIRST_WORD_BYTES:
                self._need = _FIRST_WORD_BYTES
                break
            (word,) = _WORD.unpack_from(data, position)
            length = word & 0xFFFFFF
            if length & 3 or length < HEADER_BYTES or length > limits.max_message_bytes or word >> 24 != VERSION:
                if HEADER_BYTES <= length <= limits.max_message_bytes and left < HEADER_BYTES:
                    self._need = HEADER_BYTES
                    break
                self._bad_frame(data[position : position + length], length)
                return size, messages
            if left < length:
                self._need = length
                break
            if turn <= 0:
                # The rest waits until other connections have had their turn of the loop.
                self.more, self._need = True, 0
                break
            message = data[position : position + length]
            position += length
            messages += 1
            turn -= TURN_COST + length // TURN_BYTES
            self._message(message, now)
            if self.state is State.CLOSED:
                return size, messages
        return position, messages

    def _express(self, lane: Lane, data: bytes, position: int, wanted: int, now: float) -> tuple[int, int]:
        """Let the lane answer what it can, as far as the limits on requests a second allow; count as `_message` does.

        Returns the position behind the last message answered, and how many there were.
        """
        allowed, reached = wanted, ""
        for limit in self.rates:
            room = limit.bucket.room(now)
            if room < allowed:
                allowed, reached = room, limit.reason
        before = len(self._out)
        try:
            position, results = lane.take(data, position, allowed, self._out)
        except Exception as e:  # noqa: BLE001 - as in _serve: the general path answers what the lane could not, by a 5012 if need be
            del self._out[before:]
            results, reached = {}, ""
            self._close_lane(e)
        answered = sum(results.values())
        for limit in self.rates:
            limit.bucket.spend(answered)
        if answered:
            self._count_express(answered, results)
        if reached and answered == allowed:
            # What is left of the turn is past that limit, as long as its priority is the usual one.
            position, shed = lane.shed(data, position, wanted - answered, self._out)
            if shed:
                overload = self._surroundings.overload
                self._surroundings.counts.shed[self.label, reached] += shed
                self._count_express(shed, {result_label(overload.result_code, overload.experimental): shed})
                answered += shed
        return position, answered

    def _count_express(self, answered: int, results: Mapping[str, int]) -> None:
        counts, label = self._surroundings.counts, self.label
        counts.messages[label, _ECR, "request", "in"] += answered
        counts.messages[label, _ECR, "answer", "out"] += answered
        for result, count in results.items():
            counts.answers[label, result] += count
        self.requests += answered
        self.answers += answered

    def _message(self, message: bytes, now: float) -> None:
        _, word, application_id = _TWO_WORDS_AND_ID.unpack_from(message)
        command = word & 0xFFFFFF
        known = COMMANDS.get((application_id, command))
        what = Input.REQUEST if word >> 31 else Input.ANSWER
        if application_id == BASE:
            what = (REQUESTS if what is Input.REQUEST else ANSWERS).get(command, what)
        if what is not Input.CER or self.state is not State.WAIT_CER:
            # That one is counted when it is known who sent it.
            self._count_in(known, "request" if word >> 31 else "answer")
        try:
            self._feed(what, _Happening(now, message, known))
        except Exception as e:  # noqa: BLE001 - the outermost loop of what is no application request: it gets a 5012, too
            self._fail(what, message, known, e)

    def _fail(self, what: Input, message: bytes, known: Command | None, fault: Exception) -> None:
        """A fault of our own has left the connection in a state that nobody has thought of: answer, and close."""
        self._tell_fault(fault)
        if what is Input.CER and self.state is State.WAIT_CER:
            self._count_in(known, "request")
        if message[4] & R_FLAG:
            request = Request(message, self._surroundings.limits.max_avps, self.label)
            avps = self._capability_avps() if known is _CER_COMMAND else b""
            self._send_error(request, DiameterError(UNABLE_TO_COMPLY, "internal"), known, avps)
        else:
            self._surroundings.counts.dropped["internal"] += 1
        self._leave("internal")

    def _tell_fault(self, fault: Exception) -> None:
        self._surroundings.counts.errors["internal"] += 1
        self._note("fault", "internal", level="error", detail=_where(fault))

    def _close_lane(self, fault: Exception) -> None:
        """A fault of the lane: the general path does without it for the rest of the connection."""
        self._lane = None
        self._tell_fault(fault)

    def _feed(self, what: Input, happening: _Happening) -> None:
        action, state = self._row[what]
        state = self._ACTIONS[action](self, happening) or state
        if state is not self.state and self.state is not State.CLOSED:
            self._enter(state)

    def _bad_frame(self, message: bytes, length: int) -> None:
        """A header after which the stream cannot be followed; where it can be answered, it is, and then closed."""
        counts = self._surroundings.counts
        if length < HEADER_BYTES:
            # RFC 6733 3: no message is shorter.
            fault = ConnectionFault(0, "message_length", f"a message of {length} bytes")
        elif length > self._surroundings.limits.max_message_bytes:
            fault = ConnectionFault(0, "message_too_long", f"a message of {length} bytes")
        elif length & 3:
            detail = f"a message of {length} bytes, not a multiple of 4"
            fault = ConnectionFault(INVALID_MESSAGE_LENGTH, "message_length", detail)
        else:
            fault = ConnectionFault(UNSUPPORTED_VERSION, "version", f"a message of version {message[0]}")
        self._note("connection_fault", fault.reason, detail=str(fault))
        if fault.result_code:
            # Answered from as much of it as is there: the peer may never send the rest.
            request = Request(message, self._surroundings.limits.max_avps, self.label)
            known = COMMANDS.get((request.application_id, request.command))
            is_request = bool(request.flags & R_FLAG)
            self._count_in(known, "request" if is_request else "answer")
            if is_request and (known is _CER_COMMAND or self.state is not State.WAIT_CER):
                self._send_error(request, fault, known, self._capability_avps() if known is _CER_COMMAND else b"")
            else:
                counts.dropped[fault.reason] += 1
        counts.errors[fault.reason] += 1
        self._leave(fault.reason, reset=length < HEADER_BYTES)

    def _time_out(self, reason: str, now: float) -> None:
        counts = self._surroundings.counts
        if self.state in {State.WAIT_CER, State.WAIT_ADMISSION, State.WAIT_CEA}:
            counts.peers_refused[reason] += 1
        counts.errors[reason] += 1
        self._note("connection_fault", reason)
        self._feed(Input.TIMEOUT, _Happening(now, reason=reason))

    def _watch(self, action: WatchdogAction, now: float) -> None:
        if action is WatchdogAction.SEND:
            self._send_dwr()
        elif action is WatchdogAction.CLOSE:
            self._surroundings.counts.errors["watchdog"] += 1
            self._note("connection_fault", "watchdog", detail="the peer answers no DWR")
            self._feed(Input.TIMEOUT, _Happening(now, reason="watchdog"))

    # Actions of the table: each returns a state only to end elsewhere than the table says

    def _nothing(self, _: _Happening) -> State | None:
        return None

    def _process_cer(self, happening: _Happening) -> State | None:
        surroundings = self._surroundings
        request = Request(happening.message, surroundings.limits.max_avps, self.label)
        said = read_capabilities(request)
        settings = stranger = None
        try:
            settings = self._recognise(said)
        except DiameterError as e:
            stranger = e
        try:
            check_header_bits(request)
            check_request(request, CER, settings, surroundings.limits)
            if settings is not None:
                check_capabilities(said, settings, surroundings.application_id, secure=self.secure)
        except DiameterError as e:
            return self._refuse_cer(request, e, said)
        if settings is None:
            return self._refuse_cer(request, stranger or DiameterError(UNABLE_TO_COMPLY, "unknown_peer"), said)
        self._become(settings)
        self.capabilities, self._pending_cer = said, request
        self._wait_until = None  # From here on the node lets it wait, and not for ever.
        self.events.append(Arrived(said, settings))
        return None

    def _refuse_cer(self, request: Request, fault: DiameterError, said: Capabilities) -> State:
        surroundings = self._surroundings
        surroundings.counts.peers_refused[fault.reason] += 1
        surroundings.counts.errors[fault.reason] += 1
        self._count_in(_CER_COMMAND, "request")
        # 7.1.3: 3010 follows the answer-message grammar; all others are a CEA with everything that belongs in one.
        self._send_error(request, fault, _CER_COMMAND, self._capability_avps())
        self._note(
            "peer_refused", fault.reason, detail=str(fault), result=fault.result_code, host=said.host, realm=said.realm
        )
        return self._leave(fault.reason, str(fault))

    def _send_cea(self, happening: _Happening) -> State | None:
        request, settings = self._pending_cer, self.settings
        if request is None or settings is None:
            return self._leave("no_cer")
        self._pending_cer = None
        self.label = settings.label
        self._count_in(_CER_COMMAND, "request")
        self._send_success(request, self._capability_avps(), _CER_COMMAND)
        self._open(happening)
        return None

    def _reject(self, happening: _Happening) -> State | None:
        request, fault, said = self._pending_cer, happening.fault, self.capabilities
        if request is None or fault is None or said is None:
            return self._leave("refused")
        self._pending_cer = None
        return self._refuse_cer(request, fault, said)

    def _process_cea(self, happening: _Happening) -> State | None:
        surroundings, settings = self._surroundings, self.settings
        answer = Answer(happening.message, surroundings.limits.max_avps)
        if answer.hop_by_hop not in self._asked or settings is None:
            return self._discard(happening)
        self._asked.discard(answer.hop_by_hop)
        said = read_capabilities(answer)
        try:
            if answer.result_codes != [SUCCESS]:
                detail = f"its CEA has Result-Code {', '.join(map(str, answer.result_codes)) or 'none'}"
                return self._refuse_cea(DiameterError(0, "cea_result", detail))
            if settings.host is not None and said.host.lower() != settings.host.lower():
                # 5.6: Process-CEA; whoever answers there is not the peer that was to be connected to.
                return self._refuse_cea(DiameterError(0, "cea_origin_host", f"its CEA has Origin-Host {said.host}"))
            self._recognise(said)
            check_capabilities(said, settings, surroundings.application_id, secure=self.secure)
        except DiameterError as e:
            return self._refuse_cea(e)
        self.capabilities = said
        self._open(happening)
        return None

    def _refuse_cea(self, fault: DiameterError) -> State:
        self._surroundings.counts.peers_refused[fault.reason] += 1
        self._note("peer_refused", fault.reason, detail=str(fault))
        return self._leave(fault.reason, str(fault))

    def _send_dwa(self, happening: _Happening) -> State | None:
        request = self._base_request(happening, DWR)
        if request is not None:
            self._send_success(request, self._state_id_avp(), happening.command)
        return None

    def _process_dwa(self, happening: _Happening) -> State | None:
        if _hop_by_hop(happening.message) not in self._dwr_ids or self.watchdog is None:
            return self._drop(happening)
        self._dwr_ids.clear()
        self._watch(self.watchdog.handle(WatchdogEvent.DWA, happening.now), happening.now)
        self.events.append(Alive())
        return None

    def _send_dpa(self, happening: _Happening) -> State | None:
        request = self._base_request(happening, DPR)
        if request is None:
            return self.state  # A defective DPR was answered as such, and changes nothing.
        cause = request.first.get(DISCONNECT_CAUSE)
        self.cause = u32(cause) if cause else DisconnectCause.REBOOTING
        self._send_success(request, b"", happening.command)
        if self._close_at is None:  # Further DPRs do not put the end off.
            self._close_at = happening.now + self._surroundings.limits.close_after_dpa_s
        self.events.append(Leaving())
        return None

    def _send_dpr(self, happening: _Happening) -> State | None:
        self._send_request(DISCONNECT_PEER, self._face.origin + encode_u32(DISCONNECT_CAUSE, happening.cause))
        self._close_at = happening.now + self._surroundings.limits.close_after_dpa_s
        self.events.append(Leaving())
        return None

    def _serve(self, happening: _Happening) -> State | None:
        surroundings, command = self._surroundings, happening.command
        self.requests += 1
        request = Request(happening.message, surroundings.limits.max_avps, self.label)
        try:
            reply = reply_to(
                request, command, happening.now, surroundings=surroundings, settings=self.settings, face=self._face,
                rates=self.rates,
            )  # fmt: skip
            code, experimental = reply.result_code, reply.experimental
            result, error = result_avp(code, experimental), is_protocol_error(code)
            self._out.append(encode_answer(request, result, self._face.origin, avps=reply.avps, error=error))
        except DiameterError as e:
            surroundings.counts.errors[e.reason] += 1
            self._send_error(request, e, command)
            self._note("request_refused", e.reason, detail=str(e), result=e.result_code)
        except Exception as e:  # noqa: BLE001 - the outermost loop of a request: whatever is wrong with us, it gets a 5012
            self._tell_fault(e)
            self._send_error(request, DiameterError(UNABLE_TO_COMPLY, "internal"), command)
        else:
            self._count_answer(command, result_label(code, experimental))
            if self._lane is not None and reply is not surroundings.overload:
                try:
                    self._lane.learn(request)
                except Exception as e:  # noqa: BLE001 - the request has its answer already
                    self._close_lane(e)
        self.answers += 1
        return None

    def _take(self, happening: _Happening) -> State | None:
        hop_by_hop = _hop_by_hop(happening.message)
        if hop_by_hop not in self._asked:
            return self._drop(happening)
        self._asked.discard(hop_by_hop)
        answer = Answer(happening.message, self._surroundings.limits.max_avps)
        self.events.append(Answered(hop_by_hop, answer))
        return None

    def _cer_again(self, happening: _Happening) -> State | None:
        # 5.6 has R-Snd-CEA here, which would renegotiate; nobody does that, and an open connection stays as it is.
        request = Request(happening.message, self._surroundings.limits.max_avps, self.label)
        self._surroundings.counts.errors["cer_again"] += 1
        fault = DiameterError(UNABLE_TO_COMPLY, "cer_again", "a CER on an open connection")
        self._send_error(request, fault, happening.command, self._capability_avps())
        self._note("request_refused", "cer_again", detail=str(fault), result=UNABLE_TO_COMPLY)
        return None

    def _drop(self, _: _Happening) -> State | None:
        # 6.2.1: an answer that nobody waits for.
        self._surroundings.counts.dropped["unsolicited_answer"] += 1
        return None

    def _discard(self, _: _Happening) -> State | None:
        counts = self._surroundings.counts
        reason = "not_cea" if self.state is State.WAIT_CEA else "not_cer"
        counts.dropped[reason] += 1
        counts.errors[reason] += 1
        counts.peers_refused[reason] += 1
        self._note("peer_refused", reason)
        return self._leave(reason)

    def _disconnect(self, happening: _Happening) -> State | None:
        if self._pending_cer is not None:
            self._pending_cer = None
            self._count_in(_CER_COMMAND, "request")
            self._surroundings.counts.dropped["closed"] += 1
        return self._leave(happening.reason or "disconnected")

    _ACTIONS: ClassVar[tuple[Callable[["Peer", _Happening], State | None], ...]] = (
        _nothing, _process_cer, _send_cea, _reject, _process_cea, _send_dwa, _process_dwa, _send_dpa, _send_dpr, _serve,
        _take, _cer_again, _drop, _discard, _disconnect,
    )  # fmt: skip
    """What does each states.Action, in the order of its values."""

    # Pieces of the actions

    def _base_request(self, happening: _Happening, grammar: Grammar) -> Request | None:
        """A DWR or DPR that is as it should be; None if it was not and has been answered so."""
        surroundings = self._surroundings
        request = Request(happening.message, surroundings.limits.max_avps, self.label)
        try:
            check_header_bits(request)
            check_request(request, grammar, self.settings, surroundings.limits)
        except DiameterError as e:
            surroundings.counts.errors[e.reason] += 1
            self._send_error(request, e, happening.command)
            self._note("request_refused", e.reason, detail=str(e), result=e.result_code)
            return None
        if self.capabilities is not None and request.origin_host.lower() != self.capabilities.host.lower():
            surroundings.counts.errors["other_origin_host"] += 1
            self._note("origin_host", "other_origin_host", detail=f"{request.origin_host} on its connection")
        return request

    def _send_success(self, request: Request, avps: bytes, command: Command | None) -> None:
        self._out.append(encode_answer(request, result_avp(SUCCESS), self._face.origin, avps=avps))
        self._count_answer(command, result_label(SUCCESS))

    def _send_error(self, request: Request, fault: DiameterError, command: Command | None, avps: bytes = b"") -> None:
        session = command is not None and command.session
        if command is not None:
            avps += command.error_avps
        self._out.append(error_answer(request, fault, self._face.origin, avps, session=session))
        self._count_answer(command, result_label(fault.result_code))

    def _send_request(self, command: int, avps: bytes, application_id: int = BASE, flags: int = 0) -> int:
        self._next_id = self._next_id + 1 & 0xFFFFFFFF
        ids = (self._next_id, self._next_id)
        self._out.append(encode_message(R_FLAG | flags, command, application_id, ids, avps))
        known = COMMANDS.get((application_id, command))
        self._surroundings.counts.messages[self.label, known.name if known else OTHER, "request", "out"] += 1
        return self._next_id

    def _send_dwr(self) -> None:
        self._dwr_ids.add(self._send_request(DEVICE_WATCHDOG, self._face.origin + self._state_id_avp()))

    def _state_id_avp(self) -> bytes:
        return encode_u32(ORIGIN_STATE_ID, self._surroundings.identity.origin_state_id)

    def _capability_avps(self) -> bytes:
        return capability_avps(self._surroundings.identity, self.addresses, self._surroundings.application_id)

    def _count_in(self, command: Command | None, kind: str) -> None:
        self._surroundings.counts.messages[self.label, command.name if command else OTHER, kind, "in"] += 1

    def _count_answer(self, command: Command | None, result: str) -> None:
        counts = self._surroundings.counts
        counts.messages[self.label, command.name if command else OTHER, "answer", "out"] += 1
        counts.answers[self.label, result] += 1

    def _become(self, settings: PeerSettings) -> None:
        """Take these settings for the peer's, and show it the names that are meant for it."""
        identity = self._surroundings.identity
        self.settings = settings
        self._face = face_of(identity, settings.as_host or identity.host, settings.as_realm or identity.realm)

    def _make_lane(self) -> None:
        """A new lane, which knows nothing: what it had learned was checked against other settings."""
        make = self._surroundings.lane
        self._lane = make(self.label, self._face.origin, self._surroundings.overload) if make is not None else None

    def _open(self, happening: _Happening) -> None:
        self._wait_until = None
        self._make_lane()
        tw_s = self.settings.watchdog_s if self.settings else 0.0
        self.watchdog = Watchdog(tw_s, happening.now, self._surroundings.jitter, happening.status)
        self._watch(self.watchdog.handle(WatchdogEvent.CONNECTED, happening.now), happening.now)
        self.events.append(Opened())

    def _leave(self, reason: str, detail: str = "", *, reset: bool = False) -> State:
        self._enter(State.CLOSED)
        self._buffered = bytearray()
        self._asked.clear()
        self._dwr_ids.clear()
        self.more = False
        self.events.append(Closed(reason, detail, reset))
        return State.CLOSED

    def _enter(self, state: State) -> None:
        self.state = state
        self._row = TABLE[state]

    def _note(self, event: str, reason: str, *, level: str = "warning", **fields: object) -> None:
        if reason in SETTINGS:
            fields["setting"] = SETTINGS[reason]
        self._surroundings.report(event, peer=self.label, reason=reason, level=level, **fields)


def _hop_by_hop(message: bytes) -> int:
    return int.from_bytes(message[12:16])


def _where(fault: BaseException) -> str:
    """An exception's type and the line that raised it; never its text, which may hold an identifier."""
    place = fault.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"{type(fault).__name__}{at}"
