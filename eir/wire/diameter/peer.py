"""State machine of one connection with a peer, without I/O (RFC 6733 5).

Inputs are received bytes and the time; outputs are bytes to send and events. `states` has the table; this module has the
actions. The owner of the connection, a node or a client, handles the events. No socket, no event loop, no clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, NamedTuple

from eir.errors import DiameterError
from eir.wire.diameter import watchdog
from eir.wire.diameter.application import DPR, DWR, Command
from eir.wire.diameter.avp import encode_u32
from eir.wire.diameter.capabilities import Capabilities, IdentifyPeer, judge_cea, judge_cer, read_capabilities
from eir.wire.diameter.dictionary import BASE, CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG, DISCONNECT_CAUSE, DISCONNECT_PEER
from eir.wire.diameter.framing import Framer
from eir.wire.diameter.grammar import Grammar
from eir.wire.diameter.message import HEADER_BYTES, P_FLAG, R_FLAG, Answer, Reply, Request, frame_fault
from eir.wire.diameter.result import SUCCESS, UNABLE_TO_COMPLY
from eir.wire.diameter.serve import NodeContext, check_grammar, check_header_bits, reply_to
from eir.wire.diameter.states import ANSWERS, REQUESTS, TABLE, Input, State
from eir.wire.diameter.traffic import CER_COMMAND, Traffic
from eir.wire.diameter.watchdog import Watchdog
from eir.wire.peers.rate import Limit
from eir.wire.peers.settings import PeerSettings


class DisconnectCause(IntEnum):
    """Values of the AVP Disconnect-Cause (RFC 6733 5.4.3)."""

    REBOOTING = 0
    BUSY = 1
    DO_NOT_WANT_TO_TALK_TO_YOU = 2


@dataclass(frozen=True, slots=True)
class Arrived:
    """Event: a valid CER arrived. The owner calls `admit` or `refuse`, at once or later."""

    capabilities: Capabilities
    settings: PeerSettings


@dataclass(frozen=True, slots=True)
class Opened:
    """Event: the capabilities are exchanged."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Event: a DPR was sent or received. The node still answers on this connection, but the peer may open another connection."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Event: the peer answered a DWR."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Event: the answer to a request that `ask` sent has arrived."""

    hop_by_hop: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Closed:
    """Event: the connection has ended. The owner sends the remaining bytes, then closes the transport."""

    reason: str
    detail: str
    reset: bool
    """True: close without waiting for the peer, because its bytes are invalid."""
    entry: str | None = None
    """Label of the peer's entry in the peer table, if either end refused the other; None: no entry matches."""


Event = Arrived | Opened | Leaving | Alive | Answered | Closed


class _Occasion(NamedTuple):
    """Arguments for an action of the state machine: the time, and the received message or the arguments of a call such as `stop`."""

    now: float
    message: bytes = b""
    command: Command | None = None
    reason: str = ""
    fault: DiameterError | None = None
    cause: DisconnectCause = DisconnectCause.REBOOTING
    status: watchdog.WatchdogStatus = watchdog.WatchdogStatus.INITIAL


_CER, _REQUEST, _ANSWER = Input.CER, Input.REQUEST, Input.ANSWER
_OPEN, _CLOSED = State.OPEN, State.CLOSED
"""Copies for code that runs for every message: before Python 3.12 the lookup of an enum member is slow."""
_TWO_WORDS_AND_ID = Struct("!III")


class Peer:
    """State machine of one connection. The owner handles and clears the `events`, and calls `timer` when `deadline` is reached."""

    __slots__ = (
        "_asked", "_close_at", "_context", "_dwr_ids", "_framer", "_identify", "_opening_ids", "_pending_cer", "_row", "_wait_until",
        "capabilities", "events", "more", "secure", "settings", "state", "traffic", "watchdog",
    )  # fmt: skip

    def __init__(
        self, context: NodeContext, identify: IdentifyPeer, *, addresses: Sequence[str], now: float, first_id: int,
        secure: bool = False, remote: str = "",
    ) -> None:  # fmt: skip
        """Create the state machine of a connection. It waits for the peer's CER, unless the owner calls `connect` to send a CER.

        `addresses`: addresses of this end, for the CER or CEA. `secure`: the connection is inside TLS. `remote`: address of the
        other end, for the log.
        """
        self._context = context
        self._identify = identify
        self.traffic = Traffic(context, tuple(addresses), first_id, remote)
        """Messages of the connection: label, names and counters."""
        self._framer = Framer(self, self.traffic)
        self.secure = secure
        self.settings: PeerSettings | None = None
        self.capabilities: Capabilities | None = None
        """Capabilities that the peer announced."""
        self.watchdog: Watchdog | None = None
        self.events: list[Event] = []
        self.more = False
        """True if complete messages remain; the owner calls `receive` again without bytes."""
        self._asked: set[int] = set()
        self._dwr_ids: set[int] = set()
        self._pending_cer: Request | None = None
        self._opening_ids: tuple[int, int] | None = None
        """Hop-by-hop and end-to-end identifier of the CER that opened the connection."""
        self._close_at: float | None = None
        self._wait_until: float | None = now + context.limits.cer_timeout_s
        self._enter(State.WAIT_CER)

    # Calls of the owner

    def receive(self, data: bytes | memoryview, now: float) -> None:
        """Handle received bytes, and answer complete messages up to the limit of one loop iteration."""
        if self._framer.receive(data, now) and self.watchdog is not None:
            self.watchdog.handle(watchdog.OTHER, now)

    def data_to_send(self) -> bytes:
        """Return the bytes to send, and remove them."""
        out, self.traffic.out = self.traffic.out, []
        return b"".join(out)

    def clear_events(self) -> list[Event]:
        """Return the events since the last call, and remove them."""
        events, self.events = self.events, []
        return events

    def deadline(self) -> float | None:
        """Return the time at which the owner calls `timer`, or None if no timer runs."""
        if self.state is _CLOSED:
            return None
        due = self.watchdog.deadline if self.watchdog is not None and self.state is _OPEN else None
        for at in (self._wait_until, self._framer.partial_at, self._close_at):
            if at is not None and (due is None or at < due):
                due = at
        return due

    def timer(self, now: float) -> None:
        """Handle the timers that are due at `now`."""
        if self._wait_until is not None and now >= self._wait_until:
            self._time_out("cea_timeout" if self.state is State.WAIT_CEA else "cer_timeout", now)
        elif self._framer.partial_at is not None and now >= self._framer.partial_at:
            self._time_out("partial_message", now)
        elif self._close_at is not None and now >= self._close_at:
            self._feed(Input.TIMEOUT, _Occasion(now, reason="disconnected"))
        elif self.watchdog is not None and self.state is State.OPEN and now >= self.watchdog.deadline:
            self._watch(self.watchdog.timer(now), now)

    def end(self, now: float) -> None:
        """Handle the end of the received stream: end the connection. The owner no longer passes received bytes."""
        if self._framer.buffered and self.state not in {State.WAIT_ADMISSION, State.CLOSED}:
            self._context.counts.errors["truncated"] += 1
        self._feed(Input.END, _Occasion(now, reason="peer_closed"))

    def connect(self, settings: PeerSettings, now: float) -> None:
        """Send the CER of an outgoing connection. The owner calls this before it passes any received bytes."""
        traffic = self.traffic
        self.settings = settings
        traffic.show(settings)
        traffic.label = settings.label
        self._enter(State.WAIT_CEA)
        self._wait_until = now + self._context.limits.cer_timeout_s
        self._asked.add(traffic.request(CAPABILITIES_EXCHANGE, traffic.names.origin + traffic.capability_avps()))

    def admit(self, now: float, *, failed_before: bool = False) -> None:
        """Accept the connection whose CER caused the event `Arrived`: send the CEA.

        With `failed_before` (the watchdog closed the peer's last connection) the watchdog begins in REOPEN.
        """
        status = watchdog.WatchdogStatus.DOWN if failed_before else watchdog.WatchdogStatus.INITIAL
        self._feed(Input.ADMIT, _Occasion(now, status=status))
        if self.state is State.OPEN and self._framer.buffered:
            self._framer.need = 0
            self.receive(b"", now)

    def refuse(self, fault: DiameterError, now: float) -> None:
        """Answer the CER that caused the event `Arrived` with an error, and close the connection."""
        self._feed(Input.REFUSE, _Occasion(now, fault=fault))

    def stop(self, cause: DisconnectCause, now: float, reason: str = "stopped") -> None:
        """Disconnect: by a DPR if the connection is open, otherwise at once."""
        self._feed(Input.STOP, _Occasion(now, cause=cause, reason=reason))

    def drop(self, reason: str, now: float) -> None:
        """Close the connection at once, without a DPR."""
        self._feed(Input.TIMEOUT, _Occasion(now, reason=reason))

    def probe(self, now: float) -> None:
        """Send a DWR at once, before the watchdog's timer is due; the DWA causes an `Alive` event."""
        if self.state is State.OPEN and self.watchdog is not None:
            self.watchdog.ask(now)
            self._send_dwr()

    def ask(self, command: int, avps: bytes) -> int:
        """Send a request of the application (with the P bit) on an open connection, and return its hop-by-hop id."""
        hop_by_hop = self.traffic.request(command, avps, self._context.application.id, P_FLAG)
        self._asked.add(hop_by_hop)
        return hop_by_hop

    def forget(self, hop_by_hop: int) -> None:
        """Stop waiting for the answer to this request. A later answer is dropped."""
        self._asked.discard(hop_by_hop)

    def configure(self, context: NodeContext, settings: PeerSettings | None, now: float) -> None:
        """Apply new settings to this connection; Origin-Host and Origin-Realm of the node stay as they are."""
        self._context = context
        self.traffic.configure(context, settings)
        if settings is not None:
            self.settings = settings
            if self.watchdog is not None:
                self.watchdog.retime(settings.watchdog_s, now)
        self._framer.open_lane(self.settings)

    def limit(self, rates: Sequence[Limit]) -> None:
        """Replace the limits on application requests per second."""
        self._framer.rates = rates

    @property
    def leaving(self) -> bool:
        """True if a DPR was sent or received."""
        return self._close_at is not None

    @property
    def pending(self) -> int:
        """Number of the node's requests without an answer, including DWRs."""
        return len(self._asked) + len(self._dwr_ids)

    # framing.MessageReceiver

    def handle(self, message: bytes, now: float) -> None:
        """Handle a complete message by the state table."""
        _, word, application_id = _TWO_WORDS_AND_ID.unpack_from(message)
        code = word & 0xFFFFFF
        command = self.traffic.command(application_id, code)
        what = _REQUEST if word >> 31 else _ANSWER
        if application_id == BASE:
            what = (REQUESTS if what is _REQUEST else ANSWERS).get(code, what)
        if what is not _CER or self.state is not State.WAIT_CER:
            # A first CER is counted when its sender is known.
            self.traffic.received(command, "request" if word >> 31 else "answer")
        try:
            self._feed(what, _Occasion(now, message, command))
        except Exception as e:  # noqa: BLE001 - outermost handler, except for application requests, which have their own
            self._fail(what, message, command, e)

    def refuse_frame(self, message: bytes, first_word: int) -> None:
        """Handle a header with an invalid length or version: answer the message if possible, then close.

        After such a header the stream cannot be split into messages.
        """
        counts, fault = self._context.counts, frame_fault(first_word, self._context.limits.max_message_bytes)
        self.traffic.report("connection_fault", fault.reason, detail=str(fault))
        if fault.result_code:
            # Answer from the bytes received so far, because the peer may never send the rest.
            request = self._request(message)
            command = self.traffic.command(request.application_id, request.command)
            is_request = bool(request.flags & R_FLAG)
            self.traffic.received(command, "request" if is_request else "answer")
            if is_request and (command is CER_COMMAND or self.state is not State.WAIT_CER):
                self.traffic.refuse(request, command, fault)
            else:
                counts.dropped[fault.reason] += 1
        counts.errors[fault.reason] += 1
        self._leave(fault.reason, reset=first_word & 0xFFFFFF < HEADER_BYTES)

    # Inputs

    def _fail(self, what: Input, message: bytes, command: Command | None, fault: Exception) -> None:
        """Handle an internal error: answer a request with 5012 and close, because the connection's state is unknown."""
        self.traffic.fault(fault)
        if what is Input.CER and self.state is State.WAIT_CER:
            self.traffic.received(command, "request")
        if message[4] & R_FLAG:
            self.traffic.refuse(self._request(message), command, DiameterError(UNABLE_TO_COMPLY, "internal"))
        else:
            self._context.counts.dropped["internal"] += 1
        self._leave("internal")

    def _feed(self, what: Input, occasion: _Occasion) -> None:
        action, state = self._row[what]
        state = self._ACTIONS[action](self, occasion) or state
        if state is not self.state and self.state is not _CLOSED:
            self._enter(state)

    def _time_out(self, reason: str, now: float) -> None:
        counts = self._context.counts
        if self.state in {State.WAIT_CER, State.WAIT_ADMISSION, State.WAIT_CEA}:
            counts.peers_refused[reason] += 1
        counts.errors[reason] += 1
        self.traffic.report("connection_fault", reason)
        self._feed(Input.TIMEOUT, _Occasion(now, reason=reason))

    def _watch(self, action: watchdog.WatchdogAction, now: float) -> None:
        if action is watchdog.WatchdogAction.SEND:
            self._send_dwr()
        elif action is watchdog.WatchdogAction.CLOSE:
            self._context.counts.errors["watchdog"] += 1
            self.traffic.report("connection_fault", "watchdog", detail="the peer answers no DWR")
            self._feed(Input.TIMEOUT, _Occasion(now, reason="watchdog"))

    # Actions of the table. An action returns a state only if it differs from that of the table.

    def _nothing(self, _: _Occasion) -> None:
        pass

    def _process_cer(self, occasion: _Occasion) -> State | None:
        request = self._request(occasion.message)
        capabilities = read_capabilities(request)
        try:
            settings = judge_cer(request, capabilities, self._identify, self._context, secure=self.secure)
        except DiameterError as e:
            return self._refuse_cer(request, e, capabilities)
        self.settings = settings
        self.traffic.show(settings)
        self.capabilities, self._pending_cer = capabilities, request
        self._wait_until = None  # The node decides how long the connection waits.
        self.events.append(Arrived(capabilities, settings))
        return None

    def _refuse_cer(self, request: Request, fault: DiameterError, capabilities: Capabilities) -> State:
        counts, traffic = self._context.counts, self.traffic
        counts.peers_refused[fault.reason] += 1
        counts.errors[fault.reason] += 1
        traffic.received(CER_COMMAND, "request")
        # 7.1.3: 3010 has the answer-message grammar; all other errors are a complete CEA.
        traffic.refuse(request, CER_COMMAND, fault)
        detail, result = str(fault), fault.result_code
        traffic.report(
            "peer_refused",
            fault.reason,
            detail=detail,
            result=result,
            host=capabilities.host,
            realm=capabilities.realm,
            entry=fault.entry or fault.nearest,
        )
        return self._leave(fault.reason, detail, entry=fault.entry)

    def _send_cea(self, occasion: _Occasion) -> State | None:
        request, settings, traffic = self._pending_cer, self.settings, self.traffic
        if request is None or settings is None:
            return self._leave("no_cer")
        self._pending_cer = None
        self._opening_ids = request.hop_by_hop, request.end_to_end
        traffic.label = settings.label
        traffic.received(CER_COMMAND, "request")
        traffic.answer(request, CER_COMMAND, Reply(SUCCESS, avps=traffic.capability_avps()))
        self._open(occasion)
        return None

    def _reject(self, occasion: _Occasion) -> State | None:
        request, fault, capabilities = self._pending_cer, occasion.fault, self.capabilities
        if request is None or fault is None or capabilities is None:
            return self._leave("refused")
        self._pending_cer = None
        fault.entry = self.settings.label if self.settings is not None else None
        return self._refuse_cer(request, fault, capabilities)

    def _process_cea(self, occasion: _Occasion) -> State | None:
        answer, settings = Answer(occasion.message, self._context.limits.max_avps), self.settings
        if answer.hop_by_hop not in self._asked or settings is None:
            return self._discard(occasion)
        self._asked.discard(answer.hop_by_hop)
        try:
            self.capabilities = judge_cea(answer, settings, self._identify, self._context, secure=self.secure)
        except DiameterError as e:
            self._context.counts.peers_refused[e.reason] += 1
            self.traffic.report("peer_refused", e.reason, detail=str(e), entry=settings.label)
            return self._leave(e.reason, str(e), entry=settings.label)
        self._open(occasion)
        return None

    def _send_dwa(self, occasion: _Occasion) -> None:
        request = self._base_request(occasion, DWR)
        if request is not None:
            self.traffic.answer(request, occasion.command, Reply(SUCCESS, avps=self.traffic.state_id_avp()))

    def _process_dwa(self, occasion: _Occasion) -> None:
        if _hop_by_hop(occasion.message) in self._dwr_ids and self.watchdog is not None:
            self._dwr_ids.clear()
            self._watch(self.watchdog.handle(watchdog.WatchdogEvent.DWA, occasion.now), occasion.now)
            self.events.append(Alive())
        else:
            self._drop(occasion)

    def _send_dpa(self, occasion: _Occasion) -> State | None:
        request = self._base_request(occasion, DPR)
        if request is None:
            return self.state  # a defective DPR was answered with an error, and changes nothing
        self.traffic.answer(request, occasion.command, Reply(SUCCESS))
        if self._close_at is None:  # further DPRs do not extend the time
            self._close_at = occasion.now + self._context.limits.close_after_dpa_s
        self.events.append(Leaving())
        return None

    def _send_dpr(self, occasion: _Occasion) -> None:
        self.traffic.request(DISCONNECT_PEER, self.traffic.names.origin + encode_u32(DISCONNECT_CAUSE, occasion.cause))
        self._close_at = occasion.now + self._context.limits.close_after_dpa_s
        self.events.append(Leaving())

    def _serve(self, occasion: _Occasion) -> None:
        context, traffic, command = self._context, self.traffic, occasion.command
        traffic.requests += 1
        request = self._request(occasion.message)
        try:
            reply = reply_to(
                request, command, occasion.now, context=context, settings=self.settings, names=traffic.names,
                rates=self._framer.rates,
            )  # fmt: skip
            traffic.answer(request, command, reply)
        except DiameterError as e:
            self._refuse_request(request, command, e)
        except Exception as e:  # noqa: BLE001 - outermost handler of a request: any fault of this program becomes a 5012
            traffic.fault(e)
            traffic.refuse(request, command, DiameterError(UNABLE_TO_COMPLY, "internal"))
        traffic.answers += 1
        if context.application.observer is not None:
            context.application.observer(request, traffic.out[-1])

    def _process_answer(self, occasion: _Occasion) -> None:
        answer = Answer(occasion.message, self._context.limits.max_avps)
        if answer.hop_by_hop in self._asked:
            self._asked.discard(answer.hop_by_hop)
            self.events.append(Answered(answer.hop_by_hop, answer))
        else:
            self._drop(occasion)

    def _cer_again(self, occasion: _Occasion) -> None:
        request = self._request(occasion.message)
        if (request.hop_by_hop, request.end_to_end) == self._opening_ids:
            # go-diameter repeats its CER while the first one is being decided, and closes at a second CEA.
            self._context.counts.dropped["cer_repeated"] += 1
            return
        # 5.6 has R-Snd-CEA here, which would renegotiate; no peer does that, so an open connection stays unchanged.
        fault = DiameterError(UNABLE_TO_COMPLY, "cer_again", "a CER on an open connection")
        self._refuse_request(request, occasion.command, fault)

    def _drop(self, _: _Occasion) -> None:
        # 6.2.1: an answer without a pending request.
        self._context.counts.dropped["unsolicited_answer"] += 1

    def _discard(self, _: _Occasion) -> State:
        counts = self._context.counts
        reason = "not_cea" if self.state is State.WAIT_CEA else "not_cer"
        counts.dropped[reason] += 1
        counts.errors[reason] += 1
        counts.peers_refused[reason] += 1
        self.traffic.report("peer_refused", reason)
        return self._leave(reason)

    def _disconnect(self, occasion: _Occasion) -> State:
        if self._pending_cer is not None:
            self._pending_cer = None
            self.traffic.received(CER_COMMAND, "request")
            self._context.counts.dropped["closed"] += 1
        return self._leave(occasion.reason or "disconnected")

    _ACTIONS: ClassVar[tuple[Callable[["Peer", _Occasion], State | None], ...]] = (
        _nothing, _process_cer, _send_cea, _reject, _process_cea, _send_dwa, _process_dwa, _send_dpa, _send_dpr, _serve,
        _process_answer, _cer_again, _drop, _discard, _disconnect,
    )  # fmt: skip
    """Methods by states.Action, in the order of its values."""

    # Pieces of the actions

    def _request(self, message: bytes) -> Request:
        return Request(message, self._context.limits.max_avps, self.traffic.label)

    def _base_request(self, occasion: _Occasion, grammar: Grammar) -> Request | None:
        """Return the received DWR or DPR if it is valid; answer an invalid message with an error and return None."""
        request = self._request(occasion.message)
        try:
            check_header_bits(request)
            check_grammar(request, grammar, self.settings, self._context)
        except DiameterError as e:
            self._refuse_request(request, occasion.command, e)
            return None
        if self.capabilities is not None and request.origin_host.lower() != self.capabilities.host.lower():
            self._context.counts.errors["other_origin_host"] += 1
            self.traffic.report("origin_host", "other_origin_host", detail=f"{request.origin_host} on its connection")
        return request

    def _refuse_request(self, request: Request, command: Command | None, fault: DiameterError) -> None:
        self._context.counts.errors[fault.reason] += 1
        self.traffic.refuse(request, command, fault)
        self.traffic.report(
            "request_refused",
            fault.reason,
            detail=str(fault),
            result=fault.result_code,
            host=request.origin_host or None,
        )

    def _send_dwr(self) -> None:
        self._dwr_ids.add(
            self.traffic.request(DEVICE_WATCHDOG, self.traffic.names.origin + self.traffic.state_id_avp())
        )

    def _open(self, occasion: _Occasion) -> None:
        self._wait_until = None
        self._framer.open_lane(self.settings)
        tw_s = self.settings.watchdog_s if self.settings else 0.0
        self.watchdog = Watchdog(
            tw_s, occasion.now, self._context.jitter, occasion.status, least_s=self._context.watchdog_least_s
        )
        self._watch(self.watchdog.handle(watchdog.WatchdogEvent.CONNECTED, occasion.now), occasion.now)
        self.events.append(Opened())

    def _leave(self, reason: str, detail: str = "", *, reset: bool = False, entry: str | None = None) -> State:
        self._enter(State.CLOSED)
        self._framer.buffered.clear()
        self._framer.close_lane()
        self._asked.clear()
        self._dwr_ids.clear()
        self.more = False
        self.events.append(Closed(reason, detail, reset, entry))
        return State.CLOSED

    def _enter(self, state: State) -> None:
        self.state = state
        self._row = TABLE[state]


def _hop_by_hop(message: bytes) -> int:
    return int.from_bytes(message[12:16])
