"""API DeviceAuthenticity of CAMARA (version `wip`): verifies access tokens, and answers requests.

Paths, words and errors are data. `openapi.json` is the served OpenAPI document. The owner provides the function that looks a device up in the
lists.
"""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from eir.checks.conditions import day_text
from eir.checks.question import has_wrong_check_digit
from eir.errors import Report, StoreError, place_of
from eir.interfaces.device_authenticity.settings import (
    ALLOWED,
    AUTHENTICITY_SCOPE,
    ERROR,
    UNKNOWN,
    AuthenticitySettings,
)
from eir.wire.peers.rate import Buckets
from eir.wire.web.denials import TOO_MANY_REQUESTS, denials, token_setting
from eir.wire.web.http1 import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from eir.wire.web.tokens import Tokens

BASE: Final = "/device-authenticity/vwip"
PATH: Final = f"{BASE}/check-status"
DOCUMENT_PATH: Final = f"{BASE}/openapi.json"
CORRELATOR: Final = "x-correlator"
CORRELATOR_FORM: Final = r"^[a-zA-Z0-9-_:;.\/<>{}]{0,256}$"
IMEI_PATTERN: Final = r"^[0-9]{15}$"

BLACKLISTED: Final = "blacklisted"
REASONS: Final = {
    "blocked": "block", BLACKLISTED: "", "lost": "lost", "regulatory": "regulat|customs|tax|type approval|unregistered",
    "non-payment": "non-payment|nonpayment|unpaid|debt", "fraud": "fraud|tamper|clone", "stolen": "stolen|theft|robbery",
}  # fmt: skip
"""Statuses of a blacklisted device, with patterns of words in a list's reason that indicate them. The first match counts, else BLACKLISTED."""
STATUSES: Final = (*REASONS, ALLOWED, UNKNOWN)
"""All statuses, in order of precedence if several rules hold for a device."""


class ApiFault(NamedTuple):
    """Error response of the API: HTTP status, the fields `code` and `message` of the body, and headers."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


FAULTS: Final = {
    "argument": ApiFault(400, "INVALID_ARGUMENT", "Client specified an invalid argument, request body or query param."),
    "unauthenticated": ApiFault(
        401, "UNAUTHENTICATED", "Request not authenticated due to missing, invalid, or expired credentials."
    ),
    "denied": ApiFault(403, "PERMISSION_DENIED", "Client does not have sufficient permissions to perform this action."),
    "unlisted": ApiFault(404, "IDENTIFIER_NOT_FOUND", "Device identifier not found."),
    "path": ApiFault(404, "NOT_FOUND", "The specified resource is not found."),
    "method": ApiFault(
        405, "METHOD_NOT_ALLOWED", "The requested method is not allowed on this resource.", (("Allow", "POST"),)
    ),
    "body": ApiFault(413, "PAYLOAD_TOO_LARGE", "The request is larger than this server takes."),
    "media": ApiFault(415, "UNSUPPORTED_MEDIA_TYPE", "The server takes application/json."),
    "rate": ApiFault(429, "TOO_MANY_REQUESTS", "Rate limit reached.", (("Retry-After", "1"),)),
    "internal": ApiFault(500, "INTERNAL", "Unknown server error."),
    "store": ApiFault(503, "UNAVAILABLE", "Service Unavailable.", (("Retry-After", "5"),)),
}
"""Error responses by their internal name."""


def reason_word(text: str | None) -> str:
    """Convert the reason of a list entry (free text) to a status of REASONS, such as `stolen`."""
    reason = (text or "").casefold()
    return next((word for word, pattern in REASONS.items() if pattern and re.search(pattern, reason)), BLACKLISTED)


JSON: Final = "application/json"
NOBODY: Final = "-"
CLIENTS_MAX: Final = 1000
"""Maximum number of clients with a rate; a further client replaces the oldest."""
LABELS_MAX: Final = 100
"""Maximum number of clients with a label of their own in metrics; further ones are `other`."""
_DOCUMENT: Final = HttpResponse(200, JSON, Path(__file__).with_name("openapi.json").read_bytes())
"""OpenAPI document that the service publishes."""


class DeviceStatus(NamedTuple):
    """Status of one device according to the lists: a word of STATUSES, and the day on which the device was reported."""

    status: str
    """One of STATUSES."""
    day: int = 0
    """Day since 1970-01-01 on which a blacklisted device was reported; 0 if unknown."""


class _RequestRefused(Exception):
    """Exception: a request is rejected with an HTTP error response of the API.

    `what`: key of FAULTS. `detail`: message for the client. `challenge`: value of the WWW-Authenticate header; empty: no such header.
    """

    def __init__(self, what: str, detail: str = "", challenge: str = "") -> None:
        super().__init__(what)
        self.what, self.detail, self.challenge = what, detail, challenge


class DeviceAuthenticity:
    """Handler of the API's requests.

    `lookup`: returns the status of an IMEI, or None if no rule holds for it; raises StoreError. `ticks`: monotonic clock in seconds.
    """

    def __init__(
        self, settings: AuthenticitySettings, lookup: Callable[[str], Awaitable[DeviceStatus | None]], *, ticks: Callable[[], float], report: Report,
    ) -> None:  # fmt: skip
        self.tokens: Tokens | None = None
        self._lookup, self._ticks, self._report = lookup, ticks, report
        self._labels: set[str] = set()
        self.answers: Counter[tuple[str, str]] = Counter()
        """Number of answers by (client, device status or HTTP status)."""
        self.apply(settings)

    def apply_tokens(self, tokens: "Tokens | None") -> None:
        """Replace the verifier of access tokens."""
        self.tokens = tokens

    def apply(self, settings: AuthenticitySettings) -> None:
        """Apply new settings of the section `device_authenticity`."""
        self._not_listed = settings.not_listed
        self._rates = Buckets(settings.rate_max, max(1.0, settings.rate_max), CLIENTS_MAX)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """Return the response to an HTTP request: the OpenAPI document, or the status of a device."""
        if request.path == DOCUMENT_PATH and request.method in {"GET", "HEAD"}:
            return _DOCUMENT
        client = NOBODY
        correlator = request.headers.get(CORRELATOR, "")
        headers = ((CORRELATOR, correlator),) if correlator and re.fullmatch(CORRELATOR_FORM, correlator) else ()
        try:
            client = self._client(request)
            self._check_rate(client)
            if correlator and not headers:
                raise _RequestRefused("argument", f"{CORRELATOR} is not of the form {CORRELATOR_FORM}")  # noqa: TRY301 - like the calls below
            imei = _imei(request)
            device = await self._lookup(imei) or DeviceStatus(self._not_listed)
            if device.status == ERROR:
                raise _RequestRefused("unlisted")  # noqa: TRY301 - like the calls below
        except _RequestRefused as e:
            return self._refused(e, client, headers, request)
        except StoreError as e:
            self._report("device_authenticity_failed", level="error", reason=e.cause, detail=str(e))
            return self._refused(_RequestRefused("store"), client, headers, request)
        except Exception as e:  # noqa: BLE001 - whatever it is: the client gets an answer
            self._report("fault", reason="device-authenticity", level="error", detail=place_of(e))
            return self._refused(_RequestRefused("internal"), client, headers, request)
        self.answers[self._label(client), device.status] += 1
        document = {
            "imei": imei,
            "operationalStatus": device.status,
            "lastChecked": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if device.day:
            document["reportedDate"] = f"{day_text(device.day)}T00:00:00Z"
        return HttpResponse(200, JSON, json.dumps(document).encode(), headers, authenticated=True)

    def _client(self, request: HttpRequest) -> str:
        """Verify the access token of a request, and return the client named in the token. Raises _RequestRefused.

        Tokens are checked for every path, so that other paths are reported only to authenticated clients.
        """
        authorization = request.headers.get("authorization")
        if self.tokens is None:
            raise _RequestRefused("unauthenticated", challenge=denials(AUTHENTICITY_SCOPE)["no_token"].challenge)
        subject = self.tokens.subject(
            None if authorization is None else authorization.encode("latin-1", "replace"), request.address
        )
        if isinstance(subject, str):
            return subject
        self._report(
            "client_token_refused", reason=subject.reason, level="warning", interface="device-authenticity", address=request.address, detail=subject.detail,
            setting=token_setting("device_authenticity.tokens", subject.reason) if subject.reason != "no_token" else None,
        )  # fmt: skip
        if subject.status == TOO_MANY_REQUESTS:
            raise _RequestRefused("rate")
        raise _RequestRefused(
            "denied" if subject.status == 403 else "unauthenticated", subject.detail, subject.challenge
        )

    def _check_rate(self, client: str) -> None:
        """Count a request against the client's rate limit. Raises _RequestRefused.

        The limit bounds how fast a client could copy a list.
        """
        now = self._ticks()
        if not self._rates.of(client, now).try_spend(now):
            raise _RequestRefused("rate")

    def _refused(
        self, why: _RequestRefused, client: str, headers: tuple[tuple[str, str], ...], request: HttpRequest
    ) -> HttpResponse:
        if why.challenge:
            headers = (*headers, ("WWW-Authenticate", why.challenge))
        response = failed(why.what, why.detail, headers)
        self.answers[self._label(client), str(response.status)] += 1
        if why.what == "rate":
            self._report(
                "device_authenticity_rate",
                reason="rate",
                level="warning",
                client=client,
                address=request.address,
                setting="device_authenticity.rate_max",
            )
        return response._replace(authenticated=client != NOBODY)

    def _label(self, client: str) -> str:
        if client == NOBODY or client in self._labels or len(self._labels) < LABELS_MAX:
            self._labels.add(client)
            return client
        return "other"


def failed(what: str, detail: str = "", headers: tuple[tuple[str, str], ...] = ()) -> HttpResponse:
    """Return the error response of the API for `what`, a kind of fault (key of FAULTS)."""
    fault = FAULTS[what]
    document = {"status": fault.status, "code": fault.code, "message": detail or fault.message}
    return HttpResponse(fault.status, JSON, json.dumps(document).encode(), (*headers, *fault.headers))


def _imei(request: HttpRequest) -> str:
    """Return the IMEI in the body of a request. Raises _RequestRefused."""
    if request.path != PATH:
        raise _RequestRefused("path")
    if request.method != "POST":
        raise _RequestRefused("method")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise _RequestRefused("media")
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        raise _RequestRefused("argument", "the body is not JSON") from None
    match document:
        case {"imei": str(imei)} if re.fullmatch(IMEI_PATTERN, imei):
            if has_wrong_check_digit(imei):
                raise _RequestRefused("argument", "the check digit of imei is wrong")
            return imei
    raise _RequestRefused("argument", "expected an object with imei: 15 digits")
