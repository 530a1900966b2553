"""Interface N5g-eir (TS 29.511): answers the HTTP/2 requests of AMFs by the rules of the policy.

service.py converts requests and verdicts with sbi.py (headers and errors of 5G services). server.py and link.py have the
connections, on top of eir.wire.peers. registration.py keeps the node registered with an NRF by the requests of nrf.py. probe.py
is the client. eir.wire.web.denials checks the access token.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from eir.checks.question import Question
from eir.checks.settings import Status
from eir.errors import EirError
from eir.interfaces.interface import LISTEN_HTTP, TLS_KEYS, Interface, SharedSettings, token_keys
from eir.interfaces.n5g.settings import NF_INSTANCE_FILE, NF_TYPE, N5gSettings, NrfSettings
from eir.schema import (
    IDENTITY,
    REQUIRED,
    Document,
    Family,
    Findings,
    Key,
    Kind,
    Section,
    Spot,
    Unexpected,
    address,
    many,
    text,
    whole,
)  # fmt: skip
from eir.wire.peers.settings import Requester
from eir.wire.transport.endpoint import ANY, HTTP_PORTS, listening_at
from eir.wire.web.denials import TokenSettings, token_in

NAME = "n5g"
API_ROOT = text(
    "http://HOST[:PORT][/PATH] or https://…",
    r"(https?)://([^/?#]+)((?:/[A-Za-z0-9._~-]+)*)/?", lambda match: f"{match[1]}://{address(match[2], HTTP_PORTS[match[1]])}{match[3]}",
    example="http://127.0.0.1:7777",
)  # fmt: skip
HOST = text("a host name or an IP address", r"[A-Za-z0-9._-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}\]?")
UUID = text(
    "a UUID",
    r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    lambda match: match[0].lower(),
    example="0b8f1d3e-1111-4222-8333-0000000000e1",
)


def _token(file: str) -> str:
    """Return the access token in this file. Raises Unexpected if the file has none."""
    try:
        return token_in(Path(file))
    except EirError as e:
        raise Unexpected(str(e)) from None


PLMN = text("5 or 6 digits (MCC and MNC)", r"[0-9]{5,6}")
KEYS = (
    Key("n5g.listen", many(LISTEN_HTTP), (), "addresses for AMFs (N5g-eir, TS 29.511, HTTP/2): http, or https with the certificates of `tls`"),
    *token_keys("n5g.tokens", (NF_TYPE,), "the node's NF instance id is always accepted", ": the NRF's instance id"),
    Key("n5g.nrf.uri", many(API_ROOT), REQUIRED, "API roots of the NRFs, the preferred NRF first; the node registers with the next NRF if one is unreachable"),
    Key("n5g.nrf.instance", UUID, None, "NF instance id of the node; if left out, the node creates an id and stores it in its state folder"),
    Key("n5g.nrf.endpoints", many(LISTEN_HTTP, may_be_empty=True), (), "addresses at which AMFs reach the node, if they differ from `listen` (0.0.0.0, a load balancer)"),
    Key("n5g.nrf.fqdn", IDENTITY, None, "host name of the node in its NF profile"),
    Key("n5g.nrf.plmns", many(PLMN), (), "networks that the node serves; default: the NRF's network"),
    Key("n5g.nrf.capacity", whole(0, 65535), 100, "capacity of the node relative to other EIRs"),
    Key("n5g.nrf.priority", whole(0, 65535), 0, "priority of the node; AMFs prefer the lowest number"),
    Key("n5g.nrf.redirects", many(HOST, may_be_empty=True), (), "further hosts to which an NRF may redirect the node; hosts of `uri` are always allowed"),
)  # fmt: skip
PROBE_KEYS = (
    *TLS_KEYS,
    Key("token", Kind("a file with an access token", _token), None, "file with the access token of each request, alone or in the issuer's answer (JSON)"),
)  # fmt: skip
SECTIONS = (
    Section("n5g", N5gSettings),
    Section("n5g.tokens", TokenSettings, optional=True),
    Section("n5g.nrf", NrfSettings, optional=True, gone={"heartbeat_s": "the NRF sets the interval; remove the key"}),
)
FAMILIES = (
    Family("eir_sbi_responses_total", "counter", ("peer", "result"), "Responses to AMFs, by HTTP status, and cause of an error"),
    Family("eir_sbi_errors_total", "counter", ("reason",), "AMF connections closed for a fault"),
)  # fmt: skip
NRF_FAMILIES = (
    Family("eir_nrf_registered", "gauge", ("nrf",), "1 for the NRF at which the node is registered, 0 for the others", "max"),
    Family("eir_nrf_requests_total", "counter", ("nrf", "request", "result"), "Requests to NRFs (register, heartbeat, deregister, token), by HTTP status or no_answer"),
)  # fmt: skip


def _check(settings: N5gSettings, _: SharedSettings, document: Document) -> Findings:
    nrf = settings.nrf
    if nrf is None or document.faulty("n5g"):
        return
    if not settings.listen:
        yield "the node has no listener to register with an NRF; expected n5g.listen", ("n5g", "nrf")
    for url in settings.listen if not nrf.endpoints else ():
        if listening_at(url).hosts[0] in ANY:
            yield (
                f"AMFs cannot connect to {url}; expected n5g.nrf.endpoints with an address of this host",
                ("n5g", "nrf"),
            )
    for at, url in enumerate(nrf.uri):
        if url in nrf.uri[:at]:
            yield f"{url} stands twice in 'n5g.nrf.uri'", ("n5g", "nrf", "uri", at)


def _connects(settings: N5gSettings) -> Mapping[Spot, str]:
    return {("n5g", "nrf", "uri", at): url for at, url in enumerate(settings.nrf.uri if settings.nrf else ())}


def _tokens(settings: N5gSettings, shared: SharedSettings) -> TokenSettings | None:
    """Build the rules for access tokens from the section `n5g`. Return None if the section requires no token.

    The node's own NF instance is accepted as an audience in addition to the configured audiences.
    """
    from eir.interfaces.n5g.registration import instance_of  # noqa: PLC0415 - only a node needs it

    if settings.tokens is None:
        return None
    return replace(settings.tokens, audience=(*settings.tokens.audience, instance_of(settings.nrf, shared.state)))


def _settings_after_reload(old: N5gSettings, new: N5gSettings) -> N5gSettings:
    """Return the settings of `n5g` that apply after a reload.

    If the new settings remove the listeners, the open connections still require tokens.
    """
    return new if new.listen else replace(new, tokens=old.tokens)


def _words(status: Status) -> str:
    return "404 ERROR_EQUIPMENT_UNKNOWN" if status is Status.UNKNOWN else f"200 {status.upper()}"


def _question(imei: str, imsi: str, software_version: str, origin_host: str, origin_realm: str) -> Question:
    from eir.interfaces.n5g import probe  # noqa: PLC0415 - only a command needs it, and the next two
    from eir.interfaces.n5g.service import Refused, question_of  # noqa: PLC0415 - as above
    from eir.wire.web.http2_message import Http2Request  # noqa: PLC0415 - as above

    path = probe.path_of(probe.pei_of(imei, software_version or None), imsi).encode()
    try:
        return question_of(Http2Request("GET", path, {}), Requester("", origin_host, origin_realm))
    except Refused as e:
        raise EirError(f"such a request gets {e.cause.result}: {e}") from None


INTERFACE = Interface(
    name=NAME, section="n5g", keys=KEYS, sections=SECTIONS, check=_check, connects=_connects, families=FAMILIES, state_files=(NF_INSTANCE_FILE,), server="eir.interfaces.n5g.server:N5gServer",
    stays=False, tokens=_tokens, settings_after_reload=_settings_after_reload, attendant="eir.interfaces.n5g.registration:Registrar", attendant_families=NRF_FAMILIES,
    client="an AMF", words=_words, question=_question, probe="eir.interfaces.n5g.probe:connected", probe_keys=PROBE_KEYS,
)  # fmt: skip
