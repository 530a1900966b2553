"""Conventions of the service-based interfaces of a 5G core: request headers and their effect, errors and problem documents.

TS 29.500 5.2.3, 5.2.7, 6.8, 6.11, 6.13; TS 29.571 ProblemDetails.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from eir.wire.web.http2_message import Http2Response

MESSAGE_PRIORITY = b"3gpp-sbi-message-priority"
SENDER_TIMESTAMP = b"3gpp-sbi-sender-timestamp"
MAX_RSP_TIME = b"3gpp-sbi-max-rsp-time"
CORRELATION_INFO = b"3gpp-sbi-correlation-info"
ACCEPT_BYTES_MAX = 512
"""Maximum number of bytes of an Accept header that are parsed: parsing takes time per comma, and a client can repeat an indexed header (RFC 7541) for one octet."""
PRIORITY_DEFAULT = 24
"""Priority of a request without one; 0 is the highest, 31 the lowest (TS 29.500 6.8.4)."""
DRMP_DEFAULT = 10
PRIORITIES = tuple(
    round(priority * DRMP_DEFAULT / PRIORITY_DEFAULT)
    if priority <= PRIORITY_DEFAULT
    else DRMP_DEFAULT + round((priority - PRIORITY_DEFAULT) * 5 / 7)
    for priority in range(32)
)
"""Priority of RFC 7944 by message priority, of the same rank, so that the requests of all protocols share one limit fairly."""
CLOCKS_DIFFER_S = 60.0
"""Seconds of age from which a sender's clock is assumed to be wrong, so that the age is ignored; also for a time in the future."""
MONTHS = {name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}


def priority_of(headers: Mapping[bytes, bytes]) -> int:
    """Return the priority of a request for rate limits: 0 (highest) to 15."""
    text = headers.get(MESSAGE_PRIORITY, b"")
    return PRIORITIES[int(text)] if text.isdigit() and len(text) <= 2 and int(text) < len(PRIORITIES) else DRMP_DEFAULT


def is_too_late(headers: Mapping[bytes, bytes], now: float) -> bool:
    """Return true if the client no longer waits for the answer, by the times in the headers of its request (TS 29.500 6.11.2).

    `now`: Unix time.
    """
    most = headers.get(MAX_RSP_TIME, b"")
    sent = moment(headers.get(SENDER_TIMESTAMP, b""))
    if sent is None or not most.isdigit() or len(most) > 9:
        return False
    return int(most) / 1000 < now - sent < CLOCKS_DIFFER_S


def carried_back(headers: Mapping[bytes, bytes], response: Http2Response) -> Http2Response:
    """Copy the correlation header of a request to its response (TS 29.500 6.13)."""
    if (info := headers.get(CORRELATION_INFO)) is None:
        return response
    return Http2Response(response.status, (*response.headers, (CORRELATION_INFO, info)), response.body)


def moment(text: bytes) -> float | None:
    """Parse a date of a header, such as `Sun, 04 Aug 2019 08:49:37.845 GMT`, to Unix time (TS 29.500 5.2.3.2.2).

    Returns None for another form.
    """
    parts = text.replace(b":", b" ").split()
    if len(parts) != 8 or parts[7] != b"GMT":
        return None
    try:
        second = float(parts[6])
        at = datetime(
            int(parts[3]), MONTHS[parts[2]], int(parts[1]), int(parts[4]), int(parts[5]), int(second), tzinfo=UTC
        )
    except (ValueError, KeyError, OverflowError):
        return None
    return at.timestamp() + second % 1


def accepts_json(accept: bytes) -> bool:
    """Return true if the Accept header of a request permits JSON, or is empty (RFC 9110 12.5.1).

    Bytes above the limit are ignored.
    """
    if len(accept) > ACCEPT_BYTES_MAX:
        accept = accept[:ACCEPT_BYTES_MAX].rpartition(b",")[0]
    if not accept.strip():
        return True
    best: tuple[int, float] = (-1, 0.0)
    for entry in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in entry.split(b";"))
        rank = {b"*/*": 0, b"application/*": 1, b"application/json": 2}.get(kind, -1)
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith(b"q=")), b"1")
        try:
            best = max(best, (rank, float(quality))) if rank >= 0 else best
        except ValueError:
            continue
    return best[0] >= 0 and best[1] > 0


PROBLEM = (b"content-type", b"application/problem+json")
RETRY_AFTER_S = 1
"""Seconds in Retry-After when a request is rejected for load."""


class SbiCause(NamedTuple):
    """Kind of error response: HTTP status, application error (None: no application error), and title."""

    status: int
    cause: str | None
    title: str
    headers: Sequence[tuple[bytes, bytes]] = ()

    @property
    def result(self) -> str:
        """Label of the error in metrics, such as `404:ERROR_EQUIPMENT_UNKNOWN`."""
        return f"{self.status}:{self.cause}" if self.cause else str(self.status)


_LATER = ((b"retry-after", b"%d" % RETRY_AFTER_S),)

EQUIPMENT_UNKNOWN = SbiCause(404, "ERROR_EQUIPMENT_UNKNOWN", "Equipment unknown")  # TS 29.511 6.1.7.3
PEI_MISSING = SbiCause(400, "MANDATORY_QUERY_PARAM_MISSING", "Missing query parameter")
PEI_INCORRECT = SbiCause(400, "MANDATORY_QUERY_PARAM_INCORRECT", "Incorrect query parameter")
OPTIONAL_INCORRECT = SbiCause(400, "OPTIONAL_QUERY_PARAM_INCORRECT", "Incorrect query parameter")
INVALID_API = SbiCause(400, "INVALID_API", "Unsupported API or version")
DENIALS = {401: SbiCause(401, None, "Unauthorized"), 403: SbiCause(403, None, "Forbidden")}
"""Causes by status; the WWW-Authenticate header has the details (TS 29.500 6.7.3)."""
NOT_HERE = SbiCause(404, "RESOURCE_URI_STRUCTURE_NOT_FOUND", "Not found")
NOT_ALLOWED = SbiCause(405, None, "Method not allowed", ((b"allow", b"GET"),))
NOT_ACCEPTABLE = SbiCause(406, None, "Not acceptable")
BODY_TOO_LARGE = SbiCause(413, None, "Content too large")
URI_TOO_LONG = SbiCause(414, None, "URI too long")
HEADERS_TOO_LARGE = SbiCause(431, None, "Request header fields too large")
PEER_CONGESTION = SbiCause(429, "NF_CONGESTION", "Too many requests", _LATER)
CONGESTION = SbiCause(503, "NF_CONGESTION", "Too busy", _LATER)
FAULT = SbiCause(500, "UNSPECIFIED_NF_FAILURE", "Internal error")
TIMED_OUT = SbiCause(504, "TIMED_OUT_REQUEST", "The client waits no more")  # TS 29.500 6.11.2


def problem(
    cause: SbiCause,
    detail: str | None = None,
    *,
    invalid: Sequence[tuple[str, str]] = (),
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Http2Response:
    """Build the error response for a cause, with a problem document as body.

    `invalid`: name (`query pei`) and fault of each invalid parameter.
    """
    document = {
        "title": cause.title, "status": cause.status, "detail": detail, "cause": cause.cause,
        "invalidParams": [{"param": param, "reason": reason} for param, reason in invalid] or None,
    }  # fmt: skip
    body = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return Http2Response(cause.status, (PROBLEM, *cause.headers, *headers), body)
