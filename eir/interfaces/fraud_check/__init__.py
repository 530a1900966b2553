"""IMEI Fraud Check: the status of a device for banks and shops, over HTTP."""

from eir.interfaces.fraud_check.settings import FRAUD_SCOPE, NAME, RATE_MAX, FraudSettings
from eir.interfaces.interface import LISTEN_HTTP, Interface, SharedSettings, token_keys
from eir.schema import NETWORK, REQUIRED, Document, Family, Findings, Key, Section, many, number
from eir.wire.web.denials import TokenSettings

KEYS = (
    Key("fraud_check.listen", many(LISTEN_HTTP), (), "addresses on which banks and shops ask whether a device is stolen (CAMARA IMEI Fraud Check, HTTP/1.1): https with the certificates of `tls`, or http on a loopback address; not served if left out", live=False),
    Key("fraud_check.from", many(NETWORK), (), "networks from which clients may connect, such as the operator's gateway; any if left out", field="sources"),
    Key("fraud_check.rate_max", number(0.01, 1e6, "requests a second"), RATE_MAX, "maximum number of requests of one client (the token's `sub`) answered per second; requests above it get 429"),
    *token_keys("fraud_check.tokens", REQUIRED, f"the scope must be {FRAUD_SCOPE}"),
)  # fmt: skip
SECTIONS = (
    Section("fraud_check", FraudSettings),
    Section("fraud_check.tokens", TokenSettings, optional=True),
)
FAMILIES = (
    Family("eir_fraud_checks_total", "counter", ("client", "result"), "Requests of IMEI Fraud Check, by client, and by device status or HTTP status of an error"),
)  # fmt: skip


def _warn(settings: FraudSettings, _: SharedSettings, _document: Document) -> Findings:
    if settings.listen and settings.tokens is None:
        yield "nobody has a token that is accepted; 'tokens' would say whose are", ("fraud_check",)


INTERFACE = Interface(
    name=NAME, section="fraud_check", keys=KEYS, sections=SECTIONS, warn=_warn, families=FAMILIES, service="eir.interfaces.fraud_check.service:FraudService",
)  # fmt: skip
