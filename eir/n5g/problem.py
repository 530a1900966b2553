"""Errors of a 5G core's services: their causes, and the documents that tell of them (TS 29.500 5.2.7, TS 29.571 ProblemDetails)."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from eir.web.http2_message import Response

PROBLEM = (b"content-type", b"application/problem+json")
RETRY_AFTER_S = 1
"""Time that a client is told to wait when it is turned away for load."""


class Cause(NamedTuple):
    """An error: its HTTP status, its application error (None: the status says it all), and what it is."""

    status: int
    cause: str | None
    title: str
    headers: Sequence[tuple[bytes, bytes]] = ()

    @property
    def result(self) -> str:
        """Return the name of the error in metrics: `404:ERROR_EQUIPMENT_UNKNOWN`."""
        return f"{self.status}:{self.cause}" if self.cause else str(self.status)


_LATER = ((b"retry-after", b"%d" % RETRY_AFTER_S),)

EQUIPMENT_UNKNOWN = Cause(404, "ERROR_EQUIPMENT_UNKNOWN", "Equipment unknown")  # TS 29.511 6.1.7.3
PEI_MISSING = Cause(400, "MANDATORY_QUERY_PARAM_MISSING", "Missing query parameter")
PEI_INCORRECT = Cause(400, "MANDATORY_QUERY_PARAM_INCORRECT", "Incorrect query parameter")
OPTIONAL_INCORRECT = Cause(400, "OPTIONAL_QUERY_PARAM_INCORRECT", "Incorrect query parameter")
INVALID_API = Cause(400, "INVALID_API", "Unsupported API or version")
DENIALS = {401: Cause(401, None, "Unauthorized"), 403: Cause(403, None, "Forbidden")}
"""Causes by status: the WWW-Authenticate header says more (TS 29.500 6.7.3)."""
NOT_HERE = Cause(404, "RESOURCE_URI_STRUCTURE_NOT_FOUND", "Not found")
NOT_ALLOWED = Cause(405, None, "Method not allowed", ((b"allow", b"GET"),))
NOT_ACCEPTABLE = Cause(406, None, "Not acceptable")
BODY_TOO_LARGE = Cause(413, None, "Content too large")
URI_TOO_LONG = Cause(414, None, "URI too long")
HEADERS_TOO_LARGE = Cause(431, None, "Request header fields too large")
PEER_CONGESTION = Cause(429, "NF_CONGESTION", "Too many requests", _LATER)
CONGESTION = Cause(503, "NF_CONGESTION", "Too busy", _LATER)
FAULT = Cause(500, "UNSPECIFIED_NF_FAILURE", "Internal error")
TIMED_OUT = Cause(504, "TIMED_OUT_REQUEST", "The client waits no more")  # TS 29.500 6.11.2


def problem(
    cause: Cause,
    detail: str | None = None,
    *,
    invalid: Sequence[tuple[str, str]] = (),
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Response:
    """The response for an error. `invalid`: parameters (`query pei`) and what is wrong with each."""
    document = {
        "title": cause.title, "status": cause.status, "detail": detail, "cause": cause.cause,
        "invalidParams": [{"param": param, "reason": reason} for param, reason in invalid] or None,
    }  # fmt: skip
    body = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return Response(cause.status, (PROBLEM, *cause.headers, *headers), body)
