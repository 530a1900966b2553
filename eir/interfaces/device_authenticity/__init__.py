"""Interface DeviceAuthenticity (CAMARA): returns the status of a device to banks and shops, over HTTP."""

from eir.interfaces.device_authenticity.settings import (
    AUTHENTICITY_SCOPE,
    NAME,
    NOT_LISTED,
    RATE_MAX,
    UNKNOWN,
    AuthenticitySettings,
)
from eir.interfaces.interface import LISTEN_HTTP, Interface, SharedSettings, token_keys
from eir.schema import NETWORK, REQUIRED, Document, Family, Findings, Key, Section, many, number, word
from eir.wire.web.denials import TokenSettings

KEYS = (
    Key("device_authenticity.listen", many(LISTEN_HTTP), (), "addresses on which banks and shops ask whether a device is stolen (CAMARA DeviceAuthenticity, HTTP/1.1): https with the certificates of `tls`, or http on a loopback address"),
    Key("device_authenticity.from", many(NETWORK), (), "networks from which clients may connect, such as the operator's gateway; any if left out", field="sources"),
    Key("device_authenticity.rate_max", number(0.01, 1e6, "requests a second"), RATE_MAX, "maximum number of requests of one client (the token's `sub`) answered per second; requests above it get 429"),
    Key("device_authenticity.not_listed", word(*NOT_LISTED), UNKNOWN, "`operationalStatus` of a device if no rule holds; with error the answer is 404 IDENTIFIER_NOT_FOUND"),
    *token_keys("device_authenticity.tokens", REQUIRED, f"the scope must be {AUTHENTICITY_SCOPE}"),
)  # fmt: skip
SECTIONS = (
    Section("device_authenticity", AuthenticitySettings),
    Section("device_authenticity.tokens", TokenSettings, optional=True),
)
FAMILIES = (
    Family("eir_device_authenticity_total", "counter", ("client", "result"), "Requests of DeviceAuthenticity, by client, and by device status or HTTP status of an error"),
)  # fmt: skip


def _warn(settings: AuthenticitySettings, _: SharedSettings, _document: Document) -> Findings:
    if settings.listen and settings.tokens is None:
        yield "nobody has a token that is accepted; 'tokens' would say whose are", ("device_authenticity",)


INTERFACE = Interface(
    name=NAME, section="device_authenticity", keys=KEYS, sections=SECTIONS, warn=_warn, families=FAMILIES, service="eir.interfaces.device_authenticity.service:AuthenticityService",
)  # fmt: skip
