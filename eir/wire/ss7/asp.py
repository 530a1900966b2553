"""The states of an M3UA association (RFC 4666 4.3).

There is the end that connects, an ASP towards a gateway, and the one that is connected to, an IPSP (single exchange). No I/O and no clock: octets and times go in; octets, transfers and events come out. Where the association is, is what the last
acknowledgement said; where it is to go, is what is asked for until that is acknowledged.
"""

import math
import struct
from collections import Counter
from enum import StrEnum
from typing import Any, NamedTuple

from eir.wire.ss7 import m3ua
from eir.wire.ss7.m3ua import Error, FramingFault, Kind, M3uaFault, Tag, Transfer, parameter

ACK_S = 2.0
"""T(ack) (RFC 4666 4.3.4)."""
TRIES_MAX = 5
"""After so many requests without an acknowledgement the connection is made again."""
BEAT_S = 30.0
"""T(beat) (4.3.4.6): silence after which a BEAT goes out; after as much again the association is lost."""
LEAVE_S = 2.0
"""Time that the other end has to acknowledge that we leave."""


class State(StrEnum):
    """State of an association."""

    DOWN = "down"
    INACTIVE = "inactive"
    STANDBY = "standby"
    """Inactive since another ASP has taken over (traffic mode override)."""
    ACTIVE = "active"


class Happened(NamedTuple):
    """Something that people may want to know of."""

    event: str
    reason: str
    fields: dict[str, Any]


ACKNOWLEDGED = {
    Kind.ASPUP_ACK: State.INACTIVE,
    Kind.ASPAC_ACK: State.ACTIVE,
    Kind.ASPIA_ACK: State.INACTIVE,
    Kind.ASPDN_ACK: State.DOWN,
}
"""State after an acknowledgement, whether it was expected or not (4.3.4.1 to 4.3.4.4)."""
WANTED = {State.DOWN: Kind.ASPUP, State.INACTIVE: Kind.ASPAC}
LEAVING = {State.ACTIVE: Kind.ASPIA, State.INACTIVE: Kind.ASPDN, State.STANDBY: Kind.ASPDN}
"""The next request in each state, on the way in and on the way out."""
_RANKS = {State.DOWN: 0, State.INACTIVE: 1, State.STANDBY: 1, State.ACTIVE: 2}
ALTERNATE_ACTIVE, ASP_FAILURE = (2, 2), (2, 3)
AS_STATES = {(1, 2): "as_inactive", (1, 3): "as_active", (1, 4): "as_pending"}
NOTIFIED = AS_STATES | {
    (2, 1): "insufficient_asps",
    ALTERNATE_ACTIVE: "alternate_asp_active",
    ASP_FAILURE: "asp_failure",
}
"""Status type and information of a NTFY (3.8.2)."""
VACANT = frozenset({(1, 2), (1, 4), ASP_FAILURE})
"""After these one that stands by takes over."""
MANAGED = frozenset({Kind.DUNA, Kind.DAVA, Kind.SCON, Kind.DUPU, Kind.DRST})


class Association:
    """One end of one association. `dials`: we bring it up; else the other end does.

    `routing_context` None: none is sent, and any is taken. `mode`: m3ua.LOADSHARE or m3ua.OVERRIDE.
    """

    def __init__(
        self, now: float, *, dials: bool, routing_context: int | None = None, mode: int | None = None, asp_identifier: int | None = None,
        longest: int = 65_536, up_s: float = 10.0, dropped: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        self.state = State.DOWN
        self.over = ""
        """Reason why the association is to be closed; empty while it is up."""
        self.events: list[Happened] = []
        self.dropped: Counter[str] = Counter() if dropped is None else dropped
        """Messages that nothing was done about, by reason."""
        self.context = None if routing_context is None else struct.pack(">I", routing_context)
        """Routing context, as it stands on the wire; of one that the other end brings up: what it has activated."""
        self._dials = dials
        self._mode = mode
        self._identifier = asp_identifier
        self._longest = longest
        self.leaving = False
        self.tries = 0
        self.asked_at: float | None = None
        """Time at which the request that waits for its acknowledgement went out."""
        self._back_at = -math.inf
        """The last time that we asked at once after an acknowledgement that put us back."""
        self._heard_at = self._beat_at = now
        self.ends_at: float | None = None if dials else now + up_s
        """Until when the other end has to say who it is, or to acknowledge that we leave."""
        self._rest = b""
        self._out: list[bytes] = []
        if dials:
            self._ask(now)

    def take_events(self) -> list[Happened]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    # what comes

    def receive(self, octets: bytes, now: float) -> list[Transfer]:
        """Take what has come; returns what was transferred for the user part."""
        if self.over:
            return []
        self._heard_at = now
        try:
            messages, self._rest = m3ua.cut(self._rest + octets if self._rest else octets, self._longest)
        except FramingFault:
            self._out.append(m3ua.error(Error.PROTOCOL_ERROR, about=octets))
            self._end("framing")
            return []
        found = []
        for each in messages:
            transferred = self._message(each, now)
            if transferred is not None:
                found.append(transferred)
        return found

    def _message(self, octets: bytes, now: float) -> Transfer | None:
        if self.over:
            return None
        try:
            kind = m3ua.kind_of(octets)
            if kind == Kind.DATA:
                return self._data(octets)
            self._control(kind, octets, now)
        except M3uaFault as e:
            self.dropped[str(e)] += 1
            if octets[2:4] != b"\0\0":  # 3.8.1: an ERR is answered by none
                self._out.append(m3ua.error(e.error, about=octets))
        return None

    def _control(self, kind: Kind, octets: bytes, now: float) -> None:
        found = m3ua.parameters(octets)
        if kind == Kind.BEAT:
            self._out.append(m3ua.message(Kind.BEAT_ACK, *_same(found, Tag.HEARTBEAT)))
        elif kind in ACKNOWLEDGED:
            self._acknowledged(ACKNOWLEDGED[kind], now)
        elif kind == Kind.NTFY:
            self._notified(found, now)
        elif kind == Kind.ERR:
            self._happened("m3ua_error", _error_name(found))
        elif kind in MANAGED:
            self._managed(kind, found)
        elif kind != Kind.BEAT_ACK:
            self._requested(kind, found, octets)

    def _data(self, octets: bytes) -> Transfer | None:
        if self.state != State.ACTIVE:
            # 3.8.1: an ASP says nothing; the end that is connected to says that it does not expect it.
            self.dropped["not_active"] += 1
            if not self._dials:
                self._out.append(m3ua.error(Error.UNEXPECTED_MESSAGE, about=octets))
            return None
        found = m3ua.transfer(m3ua.parameters(octets))
        if found.context is not None and self.context is not None and found.context != self.context:
            self.dropped["invalid_routing_context"] += 1
            self._out.append(m3ua.error(Error.INVALID_ROUTING_CONTEXT, context=found.context, about=octets))
            return None
        return found

    def _acknowledged(self, state: State, now: float) -> None:
        if not self._dials and not self.leaving:
            self.dropped["unexpected_message"] += 1
            return
        before, after = _RANKS[self.state], _RANKS[state]
        self._go(state)
        if after < before if self.leaving else after > before:
            self.tries = 0
            self._ask(now)
        elif self.asked_at is None:
            # Asking at once each time would go on without end, as with a gateway that says ASPDN_ACK to each ASPUP while an operator
            # keeps us out (RFC 3332 4.3.4.1): so it is done once, and then at T(ack).
            self.asked_at = now
            if now >= self._back_at + ACK_S:
                self._back_at = now
                self._ask(now)

    def _notified(self, found: dict[int, bytes], now: float) -> None:
        status = found.get(Tag.STATUS, b"")
        if len(status) != 4:
            raise M3uaFault(Error.MISSING_PARAMETER if not status else Error.PARAMETER_FIELD)
        kind, information = struct.unpack(">HH", status)
        self._happened("m3ua_notified", NOTIFIED.get((kind, information), "other"))
        if not self._dials or self.leaving:
            return
        if (kind, information) == ALTERNATE_ACTIVE and self.state == State.ACTIVE:
            self._go(State.STANDBY)  # 4.3.4.3: another one has overridden us
        elif (kind, information) in VACANT and self.state == State.STANDBY:
            self._go(State.INACTIVE)
            self._ask(now)

    def _managed(self, kind: Kind, found: dict[int, bytes]) -> None:
        """SSNM (3.4): told to people; answers go where questions came from, whatever a gateway says of that."""
        about = m3ua.affected(found)
        if not about:
            raise M3uaFault(Error.MISSING_PARAMETER)
        more = {"user_cause": found[Tag.USER_CAUSE].hex()} if Tag.USER_CAUSE in found else {}
        self._happened("m3ua_destination", kind.name.lower(), point_codes=about[:16], **more)

    def _requested(self, kind: Kind, found: dict[int, bytes], octets: bytes) -> None:
        """The other end brings the association up or down (4.3.4), or asks for what a gateway answers (DAUD)."""
        if self._dials or kind == Kind.DAUD or (kind in {Kind.ASPAC, Kind.ASPIA} and self.state == State.DOWN):
            raise M3uaFault(Error.UNEXPECTED_MESSAGE)
        if kind == Kind.ASPUP:
            was_active = self.state == State.ACTIVE
            if not self.leaving:  # who is sent away and comes up again has no longer for that
                self.ends_at = None
            self._go(State.INACTIVE)
            self._out.append(m3ua.message(Kind.ASPUP_ACK))
            if was_active:
                self._out.append(m3ua.error(Error.UNEXPECTED_MESSAGE, about=octets))
        elif kind == Kind.ASPDN:
            self._go(State.DOWN)
            self._out.append(m3ua.message(Kind.ASPDN_ACK))
        elif kind == Kind.ASPIA:
            self._go(State.INACTIVE)
            self._out.append(m3ua.message(Kind.ASPIA_ACK, *_same(found, Tag.ROUTING_CONTEXT)))
        else:
            self._activated(found)

    def _activated(self, found: dict[int, bytes]) -> None:
        mode, context = found.get(Tag.TRAFFIC_MODE), found.get(Tag.ROUTING_CONTEXT)
        if mode is not None and (len(mode) != 4 or mode[3] not in m3ua.MODES.values()):
            raise M3uaFault(Error.UNSUPPORTED_MODE)
        if context is not None and (not context or len(context) % 4):
            raise M3uaFault(Error.PARAMETER_FIELD)
        self.context = (
            context if context is not None and len(context) == 4 else None
        )  # of several any may stand in DATA
        self._go(State.ACTIVE)
        shown = () if mode is None else (parameter(Tag.TRAFFIC_MODE, mode),)
        self._out.append(m3ua.message(Kind.ASPAC_ACK, *shown, *_same(found, Tag.ROUTING_CONTEXT)))

    # what goes

    def take(self) -> list[bytes]:
        """Messages that are to be sent."""
        out, self._out = self._out, []
        return out

    def send(self, transfer: Transfer) -> None:
        """Transfer an answer."""
        self._out.append(m3ua.data(transfer))

    def leave(self, now: float) -> None:
        """Tell the other end that no more comes from us, and close."""
        if self.over or self.leaving:
            return
        self.leaving = True
        self.ends_at = now + LEAVE_S
        self.tries = 0
        self._ask(now)

    def lost(self) -> None:
        """The connection is gone."""
        self._end("peer_closed")

    # time

    def deadline(self) -> float | None:
        """Return when `timer` is due; None: when something has come."""
        if self.over:
            return None
        due = [self._beat_due()]
        if self.asked_at is not None:
            due.append(self.asked_at + ACK_S)
        if self.ends_at is not None:
            due.append(self.ends_at)
        return min(due)

    def timer(self, now: float) -> None:
        """Do what is due at this time."""
        if self.over:
            return
        if self.ends_at is not None and now >= self.ends_at:
            self._end("left" if self.leaving else "cer_timeout")
        elif self.asked_at is not None and now >= self.asked_at + ACK_S:
            self._ask(now)
        elif now >= self._beat_due():
            if self._beat_at > self._heard_at:
                self._end("heartbeat")
            else:
                self._beat_at = now
                self._out.append(m3ua.message(Kind.BEAT, parameter(Tag.HEARTBEAT, b"eir")))

    def _beat_due(self) -> float:
        return max(self._heard_at, self._beat_at) + BEAT_S

    # inside

    def _ask(self, now: float) -> None:
        """Ask for the next state on the way to where we are to be; nothing, where we are there, or where the other end asks."""
        self.asked_at = None
        if self.leaving and self.state == State.DOWN:
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
        said = []
        if kind == Kind.ASPUP and self._identifier is not None:
            said.append(parameter(Tag.ASP_IDENTIFIER, struct.pack(">I", self._identifier)))
        if kind == Kind.ASPAC and self._mode is not None:
            said.append(parameter(Tag.TRAFFIC_MODE, struct.pack(">I", self._mode)))
        if kind in {Kind.ASPAC, Kind.ASPIA} and self.context is not None:
            said.append(parameter(Tag.ROUTING_CONTEXT, self.context))
        self._out.append(m3ua.message(kind, *said))

    def _go(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._happened("m3ua_state", state.value)

    def _end(self, why: str) -> None:
        if not self.over:
            self.over = why
            self.asked_at = self.ends_at = None
            self._go(State.DOWN)

    def _happened(self, event: str, reason: str, **fields: Any) -> None:
        self.events.append(Happened(event, reason, fields))


def _same(found: dict[int, bytes], tag: Tag) -> tuple[bytes, ...]:
    """A parameter as it came, for the answer; none, where there was none."""
    return (parameter(tag, found[tag]),) if tag in found else ()


def _error_name(found: dict[int, bytes]) -> str:
    code = int.from_bytes(found.get(Tag.ERROR_CODE, b""))
    try:
        return Error(code).name.lower()
    except ValueError:
        return "other"
