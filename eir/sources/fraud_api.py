"""The interface IMEI Fraud Check (CAMARA) as data: its path, its words, its errors, and the OpenAPI document that is served of it."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from eir.sources.fraud_settings import SCOPE

BASE: Final = "/imei-fraud-check/vwip"
PATH: Final = f"{BASE}/check-status"
DOCUMENT_PATH: Final = f"{BASE}/openapi.json"
CORRELATOR: Final = "x-correlator"
CORRELATOR_FORM: Final = r"^[a-zA-Z0-9-_:;.\/<>{}]{0,256}$"
IMEI_FORM: Final = r"^[0-9]{15}$"

PROHIBITED, ALLOWED, TRACKED, UNKNOWN = "prohibited", "allowed", "tracked", "unknown"
"""The states of a device; of several lists that have it, the word that stands first here counts."""
BLACKLISTED: Final = "blacklisted"
REASONS: Final[Mapping[str, tuple[str, ...]]] = {
    "stolen": ("stolen", "theft", "robbery"), "lost": ("lost",), "non-payment": ("non-payment", "nonpayment", "unpaid", "debt"),
    "fraud": ("fraud", "tamper", "clone"), "regulatory": ("regulat", "customs", "tax", "type approval", "unregistered"), "blocked": ("block",),
    BLACKLISTED: (),
}  # fmt: skip
"""Reasons for a prohibition, and the words in a list's reason that mean them. The first that fits counts, else
BLACKLISTED."""


class Fault(NamedTuple):
    """An error."""

    status: int
    code: str
    message: str


FAULTS: Final = {
    "argument": Fault(400, "INVALID_ARGUMENT", "Client specified an invalid argument, request body or query param."),
    "unauthenticated": Fault(
        401, "UNAUTHENTICATED", "Request not authenticated due to missing, invalid, or expired credentials."
    ),
    "denied": Fault(403, "PERMISSION_DENIED", "Client does not have sufficient permissions to perform this action."),
    "path": Fault(404, "NOT_FOUND", "The specified resource is not found."),
    "method": Fault(405, "METHOD_NOT_ALLOWED", "The requested method is not allowed on this resource."),
    "body": Fault(413, "PAYLOAD_TOO_LARGE", "The request is larger than this server takes."),
    "media": Fault(415, "UNSUPPORTED_MEDIA_TYPE", "The server takes application/json."),
    "rate": Fault(429, "TOO_MANY_REQUESTS", "Rate limit reached."),
    "internal": Fault(500, "INTERNAL", "Unknown server error."),
    "store": Fault(503, "UNAVAILABLE", "Service Unavailable."),
}
"""The faults, by our words for them."""


def reason_word(text: str | None) -> str:
    """The word for the reason that a list gives."""
    said = (text or "").casefold()
    return next((word for word, parts in REASONS.items() if any(part in said for part in parts)), BLACKLISTED)


def _error(*names: str) -> dict[str, Any]:
    faults = [FAULTS[name] for name in names]
    schema = {
        "type": "object", "required": ["status", "code", "message"],
        "properties": {
            "status": {"type": "integer", "enum": [fault.status for fault in faults]}, "code": {"type": "string", "enum": [fault.code for fault in faults]},
            "message": {"type": "string"},
        },
    }  # fmt: skip
    headers = {CORRELATOR: {"schema": {"type": "string", "pattern": CORRELATOR_FORM}}}
    return {"description": faults[0].message, "headers": headers, "content": {"application/json": {"schema": schema}}}


_ANSWER: Final = {
    "type": "object", "required": ["imei", "operationalStatus", "lastChecked"],
    "properties": {
        "imei": {"type": "string", "pattern": IMEI_FORM},
        "operationalStatus": {"type": "string", "enum": [ALLOWED, PROHIBITED, TRACKED, UNKNOWN]},
        "lastChecked": {"type": "string", "format": "date-time", "description": "When the lists were looked into."},
        "prohibitedReason": {"type": "string", "enum": list(REASONS), "description": "Where operationalStatus is prohibited."},
    },
}  # fmt: skip

DOCUMENT: Final[Mapping[str, Any]] = {
    "openapi": "3.0.3",
    "info": {
        "title": "IMEI Fraud Check", "version": "wip",
        "description": "Whether a device is in a list of this network's equipment identity register. A device that is in several lists is prohibited before it is allowed, and allowed before it is tracked.",
    },
    "servers": [{"url": BASE}],
    "paths": {
        "/check-status": {
            "post": {
                "operationId": "checkStatus", "summary": "What a device is",
                "security": [{"openId": [SCOPE]}],
                "parameters": [{"name": CORRELATOR, "in": "header", "required": False, "schema": {"type": "string", "pattern": CORRELATOR_FORM}}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {
                        "type": "object", "required": ["imei"], "properties": {"imei": {"type": "string", "pattern": IMEI_FORM}},
                    }}},
                },
                "responses": {
                    "200": {
                        "description": "What the lists say.",
                        "headers": {CORRELATOR: {"schema": {"type": "string", "pattern": CORRELATOR_FORM}}},
                        "content": {"application/json": {"schema": _ANSWER}},
                    },
                    **{str(FAULTS[name].status): _error(name) for name in ("argument", "unauthenticated", "denied", "path", "body", "media", "rate", "internal", "store")},
                },
            },
        },
    },
    "components": {"securitySchemes": {"openId": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}},
}  # fmt: skip
"""The document that is served."""
