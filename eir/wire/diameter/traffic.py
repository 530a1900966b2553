"""Encoder of the outgoing messages of one connection. It also counts and logs the connection's events by the label of the peer.

No state of the connection is known here.
"""

from collections.abc import Mapping

from eir.errors import DiameterError, place_of
from eir.wire.diameter.application import BASE_COMMANDS, Command
from eir.wire.diameter.avp import encode_u32
from eir.wire.diameter.capabilities import capability_avps
from eir.wire.diameter.dictionary import BASE, CAPABILITIES_EXCHANGE, ORIGIN_STATE_ID
from eir.wire.diameter.message import (
    R_FLAG,
    Message,
    Reply,
    encode_answer,
    encode_message,
    error_answer,
    is_protocol_error,
    result_avp,
    result_label,
)
from eir.wire.diameter.serve import LocalNames, NodeContext, local_names
from eir.wire.peers.counts import OTHER
from eir.wire.peers.settings import PeerSettings, setting_for

CER_COMMAND = BASE_COMMANDS[CAPABILITIES_EXCHANGE]


class Traffic:
    """Encoder, counters and log events of a connection. `out` holds encoded messages until the owner removes them."""

    __slots__ = ("_addresses", "_next_id", "_remote", "answers", "context", "label", "names", "out", "requests")

    def __init__(self, context: NodeContext, addresses: tuple[str, ...], first_id: int, remote: str = "") -> None:
        """Create the counters of a connection whose peer is not identified yet.

        `addresses`: addresses of this end. `remote`: address of the other end, for the log.
        """
        self.context = context
        self._addresses = addresses
        self._remote = remote
        self._next_id = first_id & 0xFFFFFFFF
        self.label = OTHER
        """Label of the peer; OTHER before it is identified."""
        self.names: LocalNames = local_names(context.identity, context.identity.host, context.identity.realm)
        """Names of the node on this connection."""
        self.requests = 0
        """Number of application requests received."""
        self.answers = 0
        """Number of answers sent to them."""
        self.out: list[bytes] = []

    def configure(self, context: NodeContext, settings: PeerSettings | None) -> None:
        """Apply new settings to the connection's messages; Origin-Host and Origin-Realm of the node stay as they are."""
        self.context = context
        self.names = local_names(context.identity, self.names.host, self.names.realm)
        if settings is not None:
            self.label = settings.label

    def show(self, settings: PeerSettings) -> None:
        """Set the Origin-Host and Origin-Realm that messages to this peer contain."""
        identity = self.context.identity
        self.names = local_names(identity, settings.as_host or identity.host, settings.as_realm or identity.realm)

    def command(self, application_id: int, code: int) -> Command | None:
        """Return the command with this code in this application; None if either is unknown."""
        if application_id == BASE:
            return BASE_COMMANDS.get(code)
        application = self.context.application
        return application.commands.get(code) if application_id == application.id else None

    # Messages out

    def request(self, code: int, avps: bytes, application_id: int = BASE, flags: int = 0) -> int:
        """Append a request to `out`; return its hop-by-hop id, which is its end-to-end id too."""
        self._next_id = self._next_id + 1 & 0xFFFFFFFF
        self.out.append(encode_message(R_FLAG | flags, code, application_id, (self._next_id, self._next_id), avps))
        command = self.command(application_id, code)
        self.context.counts.messages[self.label, command.name if command else OTHER, "request", "out"] += 1
        return self._next_id

    def answer(self, request: Message, command: Command | None, reply: Reply) -> None:
        """Encode the answer to a request, append it to `out`, and count it by result."""
        code, experimental = reply.result_code, reply.experimental
        result, error = result_avp(code, experimental), is_protocol_error(code)
        self.out.append(encode_answer(request, result, self.names.origin, avps=reply.avps, error=error))
        self._count_answer(command, result_label(code, experimental))

    def refuse(self, request: Message, command: Command | None, fault: DiameterError) -> None:
        """Encode an error answer to a request, append it to `out`, and count it.

        An answer without the E bit also contains the AVPs that the grammar of the command's answer requires.
        """
        avps = self.capability_avps() if command is CER_COMMAND else command.error_avps if command else b""
        session = command is not None and command.session
        self.out.append(error_answer(request, fault, self.names.origin, avps, session=session))
        self._count_answer(command, result_label(fault.result_code))

    def capability_avps(self) -> bytes:
        """Return the AVPs that follow Origin-Realm in the node's CER and CEA."""
        return capability_avps(self.context.identity, self._addresses, self.context.application)

    def state_id_avp(self) -> bytes:
        """Encode the node's Origin-State-Id."""
        return encode_u32(ORIGIN_STATE_ID, self.context.identity.origin_state_id)

    # Counters and reports

    def received(self, command: Command | None, kind: str) -> None:
        """Count an incoming message; `kind`: `request` or `answer`."""
        self.context.counts.messages[self.label, command.name if command else OTHER, kind, "in"] += 1

    def by_lane(self, command: str, results: Mapping[str, int]) -> int:
        """Count the requests that the fast path (lane) has answered. `results`: result label → count. Return the sum of the counts."""
        counts, label, answered = self.context.counts, self.label, 0
        for result, count in results.items():
            counts.answers[label, result] += count
            answered += count
        counts.messages[label, command, "request", "in"] += answered
        counts.messages[label, command, "answer", "out"] += answered
        self.requests += answered
        self.answers += answered
        return answered

    def _count_answer(self, command: Command | None, result: str) -> None:
        counts = self.context.counts
        counts.messages[self.label, command.name if command else OTHER, "answer", "out"] += 1
        counts.answers[self.label, result] += 1

    def report(self, event: str, reason: str, *, level: str = "warning", **fields: object) -> None:
        """Log an event, with the peer's address and the configuration key that can prevent the event."""
        context = {"address": self._remote or None, "setting": setting_for(reason)}
        known = {name: value for name, value in (fields | context).items() if value is not None}
        self.context.report(event, peer=self.label, reason=reason, level=level, **known)

    def fault(self, fault: Exception) -> None:
        """Count and log an internal error: an unexpected exception of this program."""
        self.context.counts.errors["internal"] += 1
        self.report("fault", "internal", level="error", detail=place_of(fault))
