"""Service checkIMEI for MSCs and SGSNs (TS 29.002 8.7, 25.6, TS 29.305 8.9): parses requests, and encodes answers.

Conversion only; eir.checks decides the verdict. Synchronous from request to answer; no transaction is stored.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Status
from eir.interfaces.map import checkimei as codec
from eir.wire.peers.settings import Requester
from eir.wire.ss7 import tcap
from eir.wire.ss7.ber import BerError
from eir.wire.ss7.tcap import BEGIN, CONTINUE, AbortCause, Invoke, RejectProblem, TcapFault, TcapMessage

PROTOCOL = "map"
"""Name of this protocol in metrics."""
EQUIPMENT_STATUSES = {Status.WHITELISTED: 0, Status.BLACKLISTED: 1, Status.GREYLISTED: 2}
"""Values of EquipmentStatus (TS 29.002 17.7.1)."""
_NOT_SUPPORTED = 2
"""application-context-name-not-supported, and no-common-dialogue-portion of the provider (Q.773 4.2.3)."""
_ACCEPTED = {version: tcap.response(codec.context_of(version), accepted=True) for version in codec.VERSIONS}


class MapReply(NamedTuple):
    """TCAP answer to send, if any, and its result as a label in metrics."""

    octets: bytes | None
    """Octets of the answer; None: no answer is sent."""
    result: str


Instead = Callable[[int], tuple[bytes, str] | None]
"""Function that receives the version of each invocation and returns component and result in place of a check; None: the device is checked."""


class MapService:
    """Service that answers checkIMEI requests (TCAP messages) by the status that the policy (Checker) gives to the device."""

    def __init__(self, checker: Checker, failed: Callable[[Exception], None] = lambda _: None) -> None:
        self._checker = checker
        self.failed = failed
        self._replies: Mapping[str, Mapping[Status, Status]] = {}
        self._fallback: Status | None = Status.WHITELISTED
        self._imsi_tags: Collection[int] = ()

    def configure(
        self, answers: Mapping[str, Mapping[Status, Status]], fallback: Status | None, imsi_tags: Collection[int]
    ) -> None:
        """Apply new settings: statuses to send in place of the policy's statuses, the answer after an internal error, and tags of an IMSI.

        `answers`: replacements by peer label. `fallback`: status for a request after an internal error; None: systemFailure.
        `imsi_tags`: tags that mark an IMSI in a request, in addition to the built-in tags.
        """
        self._replies, self._fallback, self._imsi_tags = answers, fallback, imsi_tags

    @staticmethod
    def turned_away(octets: bytes) -> MapReply:
        """Return the Abort that answers a Begin from a peer out of service, so that the peer does not wait."""
        try:
            message = tcap.read(octets)
        except TcapFault as e:
            return MapReply(e.answer, str(e))
        return MapReply(tcap.abort_dialogue(message.otid) if message.kind == BEGIN else None, "disabled")

    def answer(self, octets: bytes, asks: Requester, instead: Instead | None = None) -> MapReply:
        """Return the answer to a TCAP message. `asks`: its requester. `instead`: function that answers invocations above a limit."""
        try:
            message = tcap.read(octets)
            if message.kind == BEGIN:
                return self._begun(octets, message, asks, instead)
        except TcapFault as e:
            return MapReply(e.answer, str(e))
        if message.kind == CONTINUE:
            return MapReply(tcap.abort(message.otid, AbortCause.UNRECOGNIZED_TRANSACTION), "tcap_transaction")
        return MapReply(None, "tcap_not_asked")

    def _begun(self, octets: bytes, message: TcapMessage, asks: Requester, instead: Instead | None) -> MapReply:
        """Return the answer to a TCAP Begin: an End, or an Abort.

        Raises:
            TcapFault: if the dialogue is refused.
        """
        version, accepted = _opened(octets, message)
        if message.components is None or message.components.start == message.components.stop:
            return MapReply(
                tcap.abort_dialogue(message.otid, tcap.ended(provider=False) if accepted else b""), "tcap_empty"
            )
        parts, result = [], "reject"
        for each in tcap.invocations(octets, message.components):
            if isinstance(each, bytes):
                parts.append(each)
                continue
            part, result = self._invoked(octets, version, each, asks, instead)
            parts.append(part)
        return MapReply(tcap.end(message.otid, accepted, b"".join(parts)), result)

    def _invoked(
        self, octets: bytes, version: int, invoke: Invoke, asks: Requester, instead: Instead | None
    ) -> tuple[bytes, str]:
        given = None if instead is None else instead(version)
        if invoke.operation != codec.CHECK_IMEI:
            return tcap.reject(invoke.id, tcap.UNRECOGNIZED_OPERATION), "reject"
        try:
            asked = codec.asked(octets, version, invoke.parameters, self._imsi_tags)
        except codec.DataMissing:
            return self._error(invoke.id, codec.DATA_MISSING)
        if isinstance(asked, RejectProblem):
            return tcap.reject(invoke.id, asked), "reject"
        if given is not None:
            return _with_id(invoke.id, *given)
        return self._checked(version, invoke.id, asked.imei, asked.imsi, asks, wants_status=asked.wants_status)

    def _checked(
        self, version: int, number: bytes, imei: str | None, imsi: str, asks: Requester, *, wants_status: bool = True
    ) -> tuple[bytes, str]:
        """Check a device by the policy; return the component that answers the invocation, and its result for metrics."""
        try:
            verdict = self._checker.check(Question(
                imei=imei, imsi=imsi, origin_host=asks.host, origin_realm=asks.realm, protocol=PROTOCOL, peer=asks.label,
            ))  # fmt: skip
        except Exception as e:  # noqa: BLE001 - the MSC receives an answer, and the association stays up
            self.failed(e)
            return _with_id(number, *self.component_of(version, self._fallback))
        if isinstance(verdict, NoDevice):
            return self._error(number, codec.DATA_MISSING)
        status = verdict.status
        if asks.label in self._replies:
            status = self._replies[asks.label].get(status, status)
        if not wants_status and status != Status.UNKNOWN:
            return tcap.result(number, codec.CHECK_IMEI, codec.result(version, None)), status.value
        return _with_id(number, *self.component_of(version, status))

    @staticmethod
    def component_of(version: int, status: Status | None) -> tuple[bytes, str]:
        """Return the encoded component that carries this status (with invoke id 0), and the label of its result in metrics.

        `status` None: the error systemFailure.
        """
        return _COMPONENTS[version, status]

    @staticmethod
    def _error(number: bytes, code: int) -> tuple[bytes, str]:
        return tcap.returned_error(number, code), f"error_{code}"


def _opened(octets: bytes, message: TcapMessage) -> tuple[int, bytes]:
    """Parse the opening of a dialogue: return the version of checkIMEI, and the encoded dialogue portion that accepts the dialogue.

    Without a dialogue portion the version is 1, and the portion empty.

    Raises:
        TcapFault: if the dialogue is refused.
    """
    if message.dialogue is None:
        return 1, b""
    try:
        opened = tcap.apdu(octets, message.dialogue)
    except BerError:
        opened = None
    if opened is None or opened.kind != tcap.AARQ:
        raise TcapFault("tcap_dialogue", tcap.abort_dialogue(message.otid, tcap.ended(provider=True)))
    version = codec.version_of(opened.context)
    if not opened.version_1 or version is None:
        refusal = tcap.response(
            _alternative(opened.context), accepted=False, diagnostic=_NOT_SUPPORTED, provider=not opened.version_1
        )
        raise TcapFault(
            "context_not_supported" if opened.version_1 else "tcap_dialogue", tcap.abort_dialogue(message.otid, refusal)
        )
    return version, _ACCEPTED[version]


def _alternative(context: bytes) -> bytes:
    """Return the application context to propose to the sender when the node refuses a dialogue.

    For an unserved version of checkIMEI it is the latest version that the node serves, otherwise the requested context.
    """
    return codec.context_of(codec.VERSIONS[0]) if context[:-1] == codec.CONTEXT else context


def _with_id(number: bytes, component: bytes, result: str) -> tuple[bytes, str]:
    return component[:4] + number + component[5:], result


def _components() -> dict[tuple[int, Status | None], tuple[bytes, str]]:
    components: dict[tuple[int, Status | None], tuple[bytes, str]] = {}
    for version in codec.VERSIONS:
        for status, value in EQUIPMENT_STATUSES.items():
            components[version, status] = (
                tcap.result(b"\0", codec.CHECK_IMEI, codec.result(version, value)),
                status.value,
            )
        components[version, Status.UNKNOWN] = tcap.returned_error(b"\0", codec.UNKNOWN_EQUIPMENT), Status.UNKNOWN.value
        components[version, None] = tcap.returned_error(b"\0", codec.SYSTEM_FAILURE), f"error_{codec.SYSTEM_FAILURE}"
    return components


_COMPONENTS = _components()
"""Components by version and status, encoded once."""
