"""Interface MAP: checkIMEI (TS 29.002 8.7, interfaces F and Gf) for MSCs and SGSNs of 2G and 3G.

The interface builds on eir.wire.ss7. It includes a probe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eir.checks.settings import Status
from eir.interfaces.interface import Interface, SharedSettings
from eir.interfaces.map.settings import PORT, GatewaySettings, Ss7Settings
from eir.schema import (
    PEER_NAME,
    POINT_CODE,
    REQUIRED,
    Document,
    Family,
    Findings,
    Key,
    Section,
    Spot,
    many,
    text,
    url,
    whole,
    word,
)  # fmt: skip
from eir.wire.ss7.sccp import ANSI, BITS, ITU, point_code
from eir.wire.transport.endpoint import SCTP, TCP

PORTS = {TCP: PORT, SCTP: PORT}
LISTEN_M3UA = url(PORTS, "tcp://0.0.0.0:2905")
CONNECT_M3UA = url(PORTS, "sctp://10.20.0.9,10.21.0.9:2905", connects=True)
BER_TAG = text(
    "a tag of BER as hexadecimal octets such as 80 or 9f21",
    r"(?:[0-9A-Fa-f]{2}){1,4}",
    lambda match: int(match[0], 16),
    show=lambda tag: f"{tag:02x}",
)
KEYS = (
    Key("ss7.point_code", POINT_CODE, None, "point code of the node for MSCs and SGSNs (MAP over SIGTRAN)"),
    Key("ss7.variant", word(ITU, ANSI), ITU, "variant of SS7: point codes of 14 bits (3-8-3, `itu`) or of 24 bits (8-8-8, `ansi`), and the form of SCCP addresses"),
    Key("ss7.gateways[].name", PEER_NAME, None, "name of the gateway in metrics, logs and commands; default: its address"),
    Key("ss7.gateways[].connect", CONNECT_M3UA, REQUIRED, "address of a signalling gateway (STP) that has the node as an ASP; default port 2905"),
    Key("ss7.gateways[].routing_context", whole(0, 4294967295), None, "routing context that the gateway assigned to the node; not sent if left out"),
    Key("ss7.gateways[].mode", word("loadshare", "override"), "loadshare", "traffic mode: loadshare (nodes share the traffic), or override (one node has all traffic until another takes over)"),
    Key("ss7.gateways[].asp_identifier", whole(0, 4294967295), None, "ASP identifier, if the gateway requires one"),
    Key("ss7.listen", many(LISTEN_M3UA), (), "addresses on which an MSC connects without a gateway (IPSP); default port 2905"),
    Key("ss7.imsi_tags", many(BER_TAG, may_be_empty=True), (), "BER tags that mark an IMSI in a request, in addition to 00 and 04; in an extension, 04 marks only an IMSI of 15 digits"),
)  # fmt: skip
PROBE_KEYS = (
    Key("gt", text("digits", r"[0-9]+"), None, "global title that the probe calls from; its point code if left out"),
    Key("point_code", POINT_CODE, "0-0-1", "point code of the probe"),
    Key("to_point_code", POINT_CODE, None, "point code of the EIR; ss7.point_code of the configuration if left out"),
    Key("routing_context", whole(0, 4294967295), None, "routing context that the gateway assigned to the probe; not sent if left out"),
)  # fmt: skip
FAMILIES = (
    Family("eir_map_answers_total", "counter", ("peer", "result"), "Answers to MSCs and SGSNs over MAP, by status, error, or fault of the request"),
    Family("eir_sigtran_errors_total", "counter", ("reason",), "Ignored messages of M3UA and SCCP, and associations closed for a fault"),
)  # fmt: skip


def _gateway(*, name: str | None, connect: Any, **more: Any) -> GatewaySettings:
    """Build the settings of a signalling gateway. Its label is `name`; if `name` is missing, its label is the address in `connect`."""
    return GatewaySettings(label=name or (connect or "").partition("://")[2], connect=connect, **more)


def _check(ss7: Ss7Settings, shared: SharedSettings, document: Document) -> Findings:
    if document.faulty("ss7"):
        return
    codes: dict[Spot, str | None] = {("ss7", "point_code"): ss7.point_code}
    codes |= {("peers", at, "point_code"): peer.point_code for at, peer in enumerate(shared.peers)}
    for spot, code in codes.items():
        try:
            point_code(code or "0", ss7.variant)
        except ValueError:
            yield (
                f"{code} is not a point code of the variant {ss7.variant} ({'-'.join(map(str, BITS[ss7.variant]))} bits)",
                spot,
            )
    if ss7.point_code is None and (ss7.gateways or ss7.listen):
        yield "the node has no point code for MSCs; expected ss7.point_code", ("ss7",)
    labels = {peer.label: document.line("peers", at) for at, peer in enumerate(shared.peers)}
    for at, gateway in enumerate(ss7.gateways):
        spot = ("ss7", "gateways", at)
        if gateway.label in labels:
            same = f"this gateway would have the name '{gateway.label}' in metrics and commands, like the entry in line {labels[gateway.label]}"
            yield f"{same}; expected a 'name' of its own", (*spot, "name")
        labels[gateway.label] = document.line(*spot)


def _labels(ss7: Ss7Settings) -> Sequence[str]:
    return [gateway.label for gateway in ss7.gateways]


def _connects(ss7: Ss7Settings) -> Mapping[Spot, str]:
    return {("ss7", "gateways", at, "connect"): gateway.connect for at, gateway in enumerate(ss7.gateways)}


def _words(status: Status) -> str:
    from eir.interfaces.map.service import EQUIPMENT_STATUSES  # noqa: PLC0415 - only a command needs it

    value = EQUIPMENT_STATUSES.get(status)
    return "error 7, unknownEquipment" if value is None else f"equipmentStatus {value}, {status.upper()}"


INTERFACE = Interface(
    name="map", section="ss7", keys=KEYS, sections=(Section("ss7", Ss7Settings), Section("ss7.gateways[]", _gateway, gone={"reconnect_after_s": "the first pause is fixed at 1 s; remove the key"})), check=_check,
    labels=_labels, connects=_connects, families=FAMILIES, server="eir.interfaces.map.server:MapServer", client="any MSC or SGSN", words=_words,
    probe="eir.interfaces.map.probe:connected", probe_keys=PROBE_KEYS,
)  # fmt: skip
