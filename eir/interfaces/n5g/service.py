"""N5g-eir_EquipmentIdentityCheck (TS 29.511, TS 29.500): parses requests, and encodes responses.

Conversion only; eir.checks decides the verdict. Synchronous from request to response.
"""

import re
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Status
from eir.interfaces.n5g import sbi
from eir.interfaces.n5g.sbi import SbiCause, problem
from eir.wire.peers.settings import Requester
from eir.wire.web.http2_message import HEADERS_TOO_LARGE, Http2Request, Http2Response

PROTOCOL = "n5g"
"""Name of this protocol in metrics."""
RESOURCE = b"/n5g-eir-eic/v1/equipment-status"
URI_BYTES_MAX = 2048
JSON = (b"content-type", b"application/json")

_USUAL = re.compile(
    re.escape(RESOURCE)
    + rb"\?pei=(?:imei-([0-9]{15})|imeisv-([0-9]{16}))(?:&supi=imsi-([0-9]{5,15}))?(?:&gpsi=msisdn-([0-9]{5,15}))?"
)
"""Form of nearly all requests."""
_OF_AN_API = re.compile(rb"/[^/]+/v[0-9]+(?:/|$)")
_OTHER = re.compile(r"mac(-[0-9A-Fa-f]{2}){6}(-untrusted)?|eui(-[0-9A-Fa-f]{2}){8}")
_FORMS = {
    "supi": re.compile(r"imsi-[0-9]{5,15}|(?!imsi-).+"), "gpsi": re.compile(r"msisdn-[0-9]{5,15}|extid-[^@]+@[^@]+|(?!msisdn-|extid-).+"),
    "supported-features": re.compile(r"[0-9A-Fa-f]*"),
}  # fmt: skip
"""Patterns of the other parameters (TS 29.571 5.3.2, 5.2.2). An identifier of an unknown kind must match none of the known formats."""

STATUSES: dict[Status, Http2Response] = {
    status: Http2Response(200, (JSON,), b'{"status":"%s"}' % status.value.upper().encode())
    for status in Status
    if status != Status.UNKNOWN
}
"""Response to each verdict, encoded once (TS 29.511 6.1.6.2.2)."""
STATUSES[Status.UNKNOWN] = problem(sbi.EQUIPMENT_UNKNOWN, "The PEI is not known")
_RESULTS = dict.fromkeys(Status, "200") | {Status.UNKNOWN: sbi.EQUIPMENT_UNKNOWN.result}


class N5gReply(NamedTuple):
    """Response to an AMF, with its label in metrics: `200`, or status and cause."""

    response: Http2Response
    result: str


class Refused(Exception):
    """Error: an N5g request is rejected with `cause`. `param`: name of the invalid parameter."""

    def __init__(self, cause: SbiCause, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.cause = cause
        self.invalid = [(f"query {param}", detail)] if param else []


class N5gService:
    """Service that answers N5g requests by the status that the policy (Checker) gives to the device."""

    def __init__(self, checker: Checker, now: Callable[[], float] = time.time) -> None:
        self._checker, self._now = checker, now
        self._replies: dict[str, dict[Status, Status]] = {}

    def configure(self, answers: dict[str, dict[Status, Status]]) -> None:
        """Apply replacements of the policy's statuses. `answers`: label of the peer → status by the policy → status to send."""
        self._replies = answers

    def answer(self, request: Http2Request, asks: Requester) -> N5gReply:
        """Return the reply to a request of an AMF. `asks`: label and name of the AMF."""
        headers = request.headers
        usual = _USUAL.fullmatch(request.path)
        if usual is not None and request.method == "GET" and request.fault is None and not headers.keys() & SPECIAL:
            imei, imeisv, imsi, msisdn = usual.groups(b"")
            return self._status(Question(
                imei=(imei or imeisv).decode(), imsi=imsi.decode(), msisdn=msisdn.decode(), origin_host=asks.host, origin_realm=asks.realm,
                protocol=PROTOCOL, peer=asks.label,
            ))  # fmt: skip
        try:
            return self._status(question_of(request, asks, self._now()))
        except Refused as e:
            return N5gReply(problem(e.cause, str(e), invalid=e.invalid), e.cause.result)

    def _status(self, question: Question) -> N5gReply:
        verdict = self._checker.check(question)
        if isinstance(verdict, NoDevice):
            raise Refused(sbi.PEI_INCORRECT, "it does not identify a device (policy.bad_identity: error)", "pei")
        status = verdict.status
        if question.peer in self._replies:
            status = self._replies[question.peer].get(status, status)
        return N5gReply(STATUSES[status], _RESULTS[status])


SPECIAL = frozenset({b"accept", sbi.SENDER_TIMESTAMP, sbi.MAX_RSP_TIME})
"""Headers that may change the answer."""


def question_of(request: Http2Request, asks: Requester, now: float | None = None) -> Question:
    """Validate a request by TS 29.500 5.2.7 and TS 29.511 6.1.3.2, and convert it to a check of a device (Question).

    `now`: Unix time; None: the current time.

    Raises:
        Refused: if the request is invalid.
    """
    _check_resource(request)
    values = parameters(request.path.partition(b"?")[2])
    _check_parameters(values)
    if sbi.is_too_late(request.headers, time.time() if now is None else now):
        raise Refused(sbi.TIMED_OUT, "3gpp-Sbi-Max-Rsp-Time is over")
    imsi, msisdn = _digits(values, "supi", "imsi-"), _digits(values, "gpsi", "msisdn-")
    return _question(values["pei"][0], imsi, msisdn, asks)


def _check_resource(request: Http2Request) -> None:
    path = request.path.partition(b"?")[0]
    if len(request.path) > URI_BYTES_MAX:
        raise Refused(sbi.URI_TOO_LONG, f"more than {URI_BYTES_MAX} bytes")
    if request.fault is not None:
        raise Refused(
            sbi.HEADERS_TOO_LARGE if request.fault == HEADERS_TOO_LARGE else sbi.BODY_TOO_LARGE,
            "too large",
        )
    if path != RESOURCE:
        if _OF_AN_API.match(path) and not path.startswith(b"/n5g-eir-eic/v1/"):
            raise Refused(sbi.INVALID_API, "expected /n5g-eir-eic/v1/")
        raise Refused(sbi.NOT_HERE, f"expected {RESOURCE.decode()}")
    if request.method != "GET":
        raise Refused(sbi.NOT_ALLOWED, "GET only")
    if not sbi.accepts_json(request.headers.get(b"accept", b"")):
        raise Refused(sbi.NOT_ACCEPTABLE, "only application/json is available")


def _check_parameters(values: dict[str, list[str]]) -> None:
    if "pei" not in values:
        raise Refused(sbi.PEI_MISSING, "it is missing", "pei")
    for name, form in _FORMS.items():
        for value in values.get(name, ())[:2]:
            if form.fullmatch(value) is None or len(values[name]) > 1:
                raise Refused(sbi.OPTIONAL_INCORRECT, "its form violates TS 29.571", name)
    if len(values["pei"]) > 1:
        raise Refused(sbi.PEI_INCORRECT, "it is repeated", "pei")


def _digits(values: dict[str, list[str]], name: str, kind: str) -> str:
    """Return the digits of an optional identifier, without its prefix `kind`; empty if the identifier is missing or has another prefix."""
    text = values.get(name, [""])[0]
    return text.removeprefix(kind) if text.startswith(kind) else ""


def _question(pei: str, imsi: str, msisdn: str, asks: Requester) -> Question:
    """Build the check (Question) of a PEI of any kind, such as IMEI or MAC address (TS 29.571 5.3.2).

    A PEI of any other form becomes a malformed IMEI: each text is a PEI, so the policy decides about it.
    """
    kind, _, digits = pei.partition("-")
    other = pei if _OTHER.fullmatch(pei) else None
    imei = None if other else digits if kind in {"imei", "imeisv"} else pei
    return Question(
        imei=imei,
        other=other,
        imsi=imsi,
        msisdn=msisdn,
        origin_host=asks.host,
        origin_realm=asks.realm,
        protocol=PROTOCOL,
        peer=asks.label,
    )


def parameters(query: bytes) -> dict[str, list[str]]:
    """Parse a query (RFC 3986 3.4) to a map from parameter names to values. The values of a name stay in the order of the query.

    Octets of a PEI that are not UTF-8 are replaced, as those of an IMEI on S13.

    Raises:
        Refused: if another known parameter is not UTF-8.
    """
    values: dict[str, list[str]] = {}
    for part in filter(None, query.split(b"&")):
        name, _, value = part.partition(b"=")
        try:
            values.setdefault(unquote_to_bytes(name).decode(), []).append(unquote_to_bytes(value).decode())
        except UnicodeDecodeError:
            known = unquote_to_bytes(name).decode("latin-1")
            if known == "pei":
                values.setdefault(known, []).append(unquote_to_bytes(value).decode(errors="replace"))
            elif known in _FORMS:
                raise Refused(sbi.OPTIONAL_INCORRECT, "it is not UTF-8", known) from None
    return values
