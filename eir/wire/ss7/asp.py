"""State machine of an M3UA association (RFC 4666 4.3), without I/O and without a clock.

The connecting end is an ASP towards a gateway, the listening end an IPSP (single exchange). The caller passes octets and times; octets,
transfers and events come back. The last acknowledgement determines the state. A request for the next state is repeated until it is
acknowledged.
"""

import math
import struct
from collections import Counter
from enum import StrEnum
from typing import Any, NamedTuple

from eir.wire.ss7 import m3ua
from eir.wire.ss7.m3ua import Error, FramingFault, M3uaFault, MessageKind, ParameterTag, Transfer, parameter

ACK_S = 2.0
"""T(ack) in seconds (RFC 4666 4.3.4)."""
TRIES_MAX = 5
"""Number of requests without an acknowledgement after which the connection is replaced."""
BEAT_S = 30.0
"""T(beat) in seconds (4.3.4.6): silence after which a BEAT is sent; after the same time again the association is lost."""
LEAVE_S = 2.0
"""Seconds within which the peer must acknowledge that the node leaves."""


class AssociationState(StrEnum):
    """State of an M3UA association."""

    DOWN = "down"
    INACTIVE = "inactive"
    STANDBY = "standby"
    """Inactive since another ASP has taken over (traffic mode override)."""
    ACTIVE = "active"


class AssociationEvent(NamedTuple):
    """Event of an M3UA association. The owner of the association logs the event."""

    event: str
    reason: str
    fields: dict[str, Any]


ACKNOWLEDGED = {
    MessageKind.ASPUP_ACK: AssociationState.INACTIVE,
    MessageKind.ASPAC_ACK: AssociationState.ACTIVE,
    MessageKind.ASPIA_ACK: AssociationState.INACTIVE,
    MessageKind.ASPDN_ACK: AssociationState.DOWN,
}
"""State after an acknowledgement, expected or not (4.3.4.1 to 4.3.4.4)."""
WANTED = {AssociationState.DOWN: MessageKind.ASPUP, AssociationState.INACTIVE: MessageKind.ASPAC}
LEAVING = {
    AssociationState.ACTIVE: MessageKind.ASPIA,
    AssociationState.INACTIVE: MessageKind.ASPDN,
    AssociationState.STANDBY: MessageKind.ASPDN,
}
"""Next request in each state, while the association comes up and while it goes down."""
_RANKS = {
    AssociationState.DOWN: 0,
    AssociationState.INACTIVE: 1,
    AssociationState.STANDBY: 1,
    AssociationState.ACTIVE: 2,
}
ALTERNATE_ACTIVE, ASP_FAILURE = (2, 2), (2, 3)
AS_STATES = {(1, 2): "as_inactive", (1, 3): "as_active", (1, 4): "as_pending"}
NOTIFIED = AS_STATES | {
    (2, 1): "insufficient_asps",
    ALTERNATE_ACTIVE: "alternate_asp_active",
    ASP_FAILURE: "asp_failure",
}
"""Reasons by status type and information of a NTFY (3.8.2)."""
VACANT = frozenset({(1, 2), (1, 4), ASP_FAILURE})
"""Notifications after which a standby ASP takes over."""
MANAGED = frozenset({MessageKind.DUNA, MessageKind.DAVA, MessageKind.SCON, MessageKind.DUPU, MessageKind.DRST})


class Association:
    """State of one end of an M3UA association.

    `dials`: True if this end brings the association up. `routing_context` None: not sent, and any is accepted. `mode`:
    m3ua.LOADSHARE or m3ua.OVERRIDE.
    """

    def __init__(
        self, now: float, *, dials: bool, routing_context: int | None = None, mode: int | None = None, asp_identifier: int | None = None,
        longest: int = 65_536, up_s: float = 10.0, dropped: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        self.state = AssociationState.DOWN
        self.over = ""
        """Reason for closing the association; empty while it is up."""
        self.events: list[AssociationEvent] = []
        self.dropped: Counter[str] = Counter() if dropped is None else dropped
        """Number of ignored messages by reason."""
        self.context = None if routing_context is None else struct.pack(">I", routing_context)
        """Routing context in its encoded form; if the peer brings the association up, the one that it has activated."""
        self._dials = dials
        self._mode = mode
        self._identifier = asp_identifier
        self._longest = longest
        self.leaving = False
        self.tries = 0
        self.asked_at: float | None = None
        """Time of the request that waits for its acknowledgement, or None."""
        self._back_at = -math.inf
        """Time of the last immediate request after an acknowledgement of a lower state."""
        self._heard_at = self._beat_at = now
        self.ends_at: float | None = None if dials else now + up_s
        """Deadline for the peer's ASPUP, or for its acknowledgement that the node leaves."""
        self._rest = b""
        self._out: list[bytes] = []
        if dials:
            self._request_next(now)

    def drain_events(self) -> list[AssociationEvent]:
        """Return the events of the association that are not logged yet, and clear the queue of events."""
        events, self.events = self.events, []
        return events

    # received messages

    def receive(self, octets: bytes, now: float) -> list[Transfer]:
        """Process received octets, and return the contents of the DATA messages."""
        if self.over:
            return []
        self._heard_at = now
        try:
            messages, self._rest = m3ua.split(self._rest + octets if self._rest else octets, self._longest)
        except FramingFault:
            self._out.append(m3ua.error(Error.PROTOCOL_ERROR, about=octets))
            self._end("framing")
            return []
        transfers = []
        for each in messages:
            transferred = self._message(each, now)
            if transferred is not None:
                transfers.append(transferred)
        return transfers

    def _message(self, octets: bytes, now: float) -> Transfer | None:
        if self.over:
            return None
        try:
            kind = m3ua.kind_of(octets)
            if kind == MessageKind.DATA:
                return self._data(octets)
            self._control(kind, octets, now)
        except M3uaFault as e:
            self.dropped[str(e)] += 1
            if octets[2:4] != b"\0\0":  # 3.8.1: no ERR in reply to an ERR
                self._out.append(m3ua.error(e.error, about=octets))
        return None

    def _control(self, kind: MessageKind, octets: bytes, now: float) -> None:
        parameters = m3ua.parameters(octets)
        if kind == MessageKind.BEAT:
            self._out.append(m3ua.message(MessageKind.BEAT_ACK, *_copy(parameters, ParameterTag.HEARTBEAT)))
        elif kind in ACKNOWLEDGED:
            self._acknowledged(ACKNOWLEDGED[kind], now)
        elif kind == MessageKind.NTFY:
            self._notified(parameters, now)
        elif kind == MessageKind.ERR:
            self._report("m3ua_error", _error_name(parameters))
        elif kind in MANAGED:
            self._managed(kind, parameters)
        elif kind != MessageKind.BEAT_ACK:
            self._requested(kind, parameters, octets)

    def _data(self, octets: bytes) -> Transfer | None:
        if self.state != AssociationState.ACTIVE:
            # 3.8.1: an ASP discards the message silently; an IPSP replies with an ERR.
            self.dropped["not_active"] += 1
            if not self._dials:
                self._out.append(m3ua.error(Error.UNEXPECTED_MESSAGE, about=octets))
            return None
        transfer = m3ua.transfer(m3ua.parameters(octets))
        if transfer.context is not None and self.context is not None and transfer.context != self.context:
            self.dropped["invalid_routing_context"] += 1
            self._out.append(m3ua.error(Error.INVALID_ROUTING_CONTEXT, context=transfer.context, about=octets))
            return None
        return transfer

    def _acknowledged(self, state: AssociationState, now: float) -> None:
        if not self._dials and not self.leaving:
            self.dropped["unexpected_message"] += 1
            return
        before, after = _RANKS[self.state], _RANKS[state]
        self._set_state(state)
        if after < before if self.leaving else after > before:
            self.tries = 0
            self._request_next(now)
        elif self.asked_at is None:
            # An immediate request each time could loop without end: a gateway in which an operator has blocked the node replies
            # ASPDN_ACK to each ASPUP (RFC 3332 4.3.4.1). So one request is immediate, and the next ones wait for T(ack).
            self.asked_at = now
            if now >= self._back_at + ACK_S:
                self._back_at = now
                self._request_next(now)

    def _notified(self, parameters: dict[int, bytes], now: float) -> None:
        status = parameters.get(ParameterTag.STATUS, b"")
        if len(status) != 4:
            raise M3uaFault(Error.MISSING_PARAMETER if not status else Error.PARAMETER_FIELD)
        kind, information = struct.unpack(">HH", status)
        self._report("m3ua_notified", NOTIFIED.get((kind, information), "other"))
        if not self._dials or self.leaving:
            return
        if (kind, information) == ALTERNATE_ACTIVE and self.state == AssociationState.ACTIVE:
            self._set_state(AssociationState.STANDBY)  # 4.3.4.3: another ASP has overridden this one
        elif (kind, information) in VACANT and self.state == AssociationState.STANDBY:
            self._set_state(AssociationState.INACTIVE)
            self._request_next(now)

    def _managed(self, kind: MessageKind, parameters: dict[int, bytes]) -> None:
        """Pass an SSNM message of the peer to the log, as an event (RFC 4666 3.4).

        The message has no other effect, because an answer always goes to the origin of its request.
        """
        point_codes = m3ua.affected(parameters)
        if not point_codes:
            raise M3uaFault(Error.MISSING_PARAMETER)
        more = (
            {"user_cause": parameters[ParameterTag.USER_CAUSE].hex()} if ParameterTag.USER_CAUSE in parameters else {}
        )
        self._report("m3ua_destination", kind.name.lower(), point_codes=point_codes[:16], **more)

    def _requested(self, kind: MessageKind, parameters: dict[int, bytes], octets: bytes) -> None:
        """Handle a request of the peer for a change of the association's state, such as ASPUP (RFC 4666 4.3.4).

        A DAUD is a fault, because only a gateway answers it.
        """
        if (
            self._dials
            or kind == MessageKind.DAUD
            or (kind in {MessageKind.ASPAC, MessageKind.ASPIA} and self.state == AssociationState.DOWN)
        ):
            raise M3uaFault(Error.UNEXPECTED_MESSAGE)
        if kind == MessageKind.ASPUP:
            was_active = self.state == AssociationState.ACTIVE
            if not self.leaving:  # an ASPUP while the node leaves does not extend the deadline
                self.ends_at = None
            self._set_state(AssociationState.INACTIVE)
            self._out.append(m3ua.message(MessageKind.ASPUP_ACK))
            if was_active:
                self._out.append(m3ua.error(Error.UNEXPECTED_MESSAGE, about=octets))
        elif kind == MessageKind.ASPDN:
            self._set_state(AssociationState.DOWN)
            self._out.append(m3ua.message(MessageKind.ASPDN_ACK))
        elif kind == MessageKind.ASPIA:
            self._set_state(AssociationState.INACTIVE)
            self._out.append(m3ua.message(MessageKind.ASPIA_ACK, *_copy(parameters, ParameterTag.ROUTING_CONTEXT)))
        else:
            self._activated(parameters)

    def _activated(self, parameters: dict[int, bytes]) -> None:
        mode, context = parameters.get(ParameterTag.TRAFFIC_MODE), parameters.get(ParameterTag.ROUTING_CONTEXT)
        if mode is not None and (len(mode) != 4 or mode[3] not in m3ua.MODES.values()):
            raise M3uaFault(Error.UNSUPPORTED_MODE)
        if context is not None and (not context or len(context) % 4):
            raise M3uaFault(Error.PARAMETER_FIELD)
        # If the peer activates several routing contexts, each of them is valid in DATA.
        self.context = context if context is not None and len(context) == 4 else None
        self._set_state(AssociationState.ACTIVE)
        traffic_mode = () if mode is None else (parameter(ParameterTag.TRAFFIC_MODE, mode),)
        self._out.append(
            m3ua.message(MessageKind.ASPAC_ACK, *traffic_mode, *_copy(parameters, ParameterTag.ROUTING_CONTEXT))
        )

    # sent messages

    def messages_to_send(self) -> list[bytes]:
        """Return the encoded messages that must be sent to the peer, and clear the queue of messages."""
        out, self._out = self._out, []
        return out

    def send(self, transfer: Transfer) -> None:
        """Queue a DATA message."""
        self._out.append(m3ua.data(transfer))

    def leave(self, now: float) -> None:
        """Start to end the association by ASPIA and ASPDN. The association ends with the peer's last acknowledgement, or after LEAVE_S."""
        if self.over or self.leaving:
            return
        self.leaving = True
        self.ends_at = now + LEAVE_S
        self.tries = 0
        self._request_next(now)

    def lost(self) -> None:
        """Handle the end of the transport connection."""
        self._end("peer_closed")

    # time

    def deadline(self) -> float | None:
        """Return the time at which the owner must call `timer`, or None after the end of the association."""
        if self.over:
            return None
        due = [self._beat_due()]
        if self.asked_at is not None:
            due.append(self.asked_at + ACK_S)
        if self.ends_at is not None:
            due.append(self.ends_at)
        return min(due)

    def timer(self, now: float) -> None:
        """Handle the timers that are due: end the association, repeat a request, or send a BEAT."""
        if self.over:
            return
        if self.ends_at is not None and now >= self.ends_at:
            self._end("left" if self.leaving else "cer_timeout")
        elif self.asked_at is not None and now >= self.asked_at + ACK_S:
            self._request_next(now)
        elif now >= self._beat_due():
            if self._beat_at > self._heard_at:
                self._end("heartbeat")
            else:
                self._beat_at = now
                self._out.append(m3ua.message(MessageKind.BEAT, parameter(ParameterTag.HEARTBEAT, b"eir")))

    def _beat_due(self) -> float:
        return max(self._heard_at, self._beat_at) + BEAT_S

    # internal

    def _request_next(self, now: float) -> None:
        """Send the next request (such as ASPUP or ASPAC) that the association needs on its way to the wanted state.

        The number of tries is limited. If the peer sends these requests, nothing is sent.
        """
        self.asked_at = None
        if self.leaving and self.state == AssociationState.DOWN:
            self._end("left")
            return
        kind = LEAVING[self.state] if self.leaving else WANTED.get(self.state) if self._dials else None
        if kind is None:
            return
        if self.tries >= TRIES_MAX:
            self._end("no_acknowledgement")
            return
        self.tries += 1
        self.asked_at = now
        parameters = []
        if kind == MessageKind.ASPUP and self._identifier is not None:
            parameters.append(parameter(ParameterTag.ASP_IDENTIFIER, struct.pack(">I", self._identifier)))
        if kind == MessageKind.ASPAC and self._mode is not None:
            parameters.append(parameter(ParameterTag.TRAFFIC_MODE, struct.pack(">I", self._mode)))
        if kind in {MessageKind.ASPAC, MessageKind.ASPIA} and self.context is not None:
            parameters.append(parameter(ParameterTag.ROUTING_CONTEXT, self.context))
        self._out.append(m3ua.message(kind, *parameters))

    def _set_state(self, state: AssociationState) -> None:
        if state != self.state:
            self.state = state
            self._report("m3ua_state", state.value)

    def _end(self, reason: str) -> None:
        if not self.over:
            self.over = reason
            self.asked_at = self.ends_at = None
            self._set_state(AssociationState.DOWN)

    def _report(self, event: str, reason: str, **fields: Any) -> None:
        self.events.append(AssociationEvent(event, reason, fields))


def _copy(parameters: dict[int, bytes], tag: ParameterTag) -> tuple[bytes, ...]:
    """Encode a parameter of a received message for the reply; return an empty tuple if the message lacks the parameter."""
    return (parameter(tag, parameters[tag]),) if tag in parameters else ()


def _error_name(parameters: dict[int, bytes]) -> str:
    code = int.from_bytes(parameters.get(ParameterTag.ERROR_CODE, b""))
    try:
        return Error(code).name.lower()
    except ValueError:
        return "other"
