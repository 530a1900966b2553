"""Commands that ask about a device: what this EIR would answer and why, and what any EIR answers to those who ask it."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from eir.checks.question import Question
from eir.checks.settings import Status
from eir.cli import in_force
from eir.cli.access import DEFAULT_CONFIG, SYSTEM_CONFIG, ConfigFile, Json, imsi_named, opened, with_store
from eir.cli.in_force import FromStore
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, say, show, show_one
from eir.config import Config, load_config, load_identity, load_whereabouts
from eir.device import is_digits, typed
from eir.errors import ConfigError, EirError, IdentifierError
from eir.lists.record.store import ListState
from eir.wire.transport.endpoint import TCP, TLS, endpoint
from eir.wire.transport.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eir.checks.explain import Explanation
    from eir.interfaces.probing import Finding

DIAMETER_PORT, DIAMETER_TLS_PORT = 3868, 5868


class Protocol(StrEnum):
    """Protocols over which a device may be asked about."""

    S13 = "s13"
    N5G = "n5g"
    GSUP = "gsup"
    MAP = "map"


PROBE_REALM = "epc.mnc001.mcc001.3gppnetwork.org"
UNAUTHORIZED = 401
OWN_POINT_CODE = "0-0-1"

# Options of the commands that ask over the wire.
Imsi = Annotated[str | None, typer.Option(metavar="N", help="User-Name of each request.")]
OriginHost = Annotated[
    str | None,
    typer.Option(metavar="HOST", help="Our Origin-Host, probe.REALM if not given; over gsup:// our ipa-name."),
]
OriginRealm = Annotated[
    str | None,
    typer.Option(
        metavar="REALM",
        help="Our Origin-Realm; identity.realm of the configuration if not given, or else that of MCC 001, MNC 01.",
    ),
]
DestinationRealm = Annotated[
    str | None,
    typer.Option(
        "--destination-realm", "--realm", metavar="REALM", help="Destination-Realm; the EIR's own if not given."
    ),
]
DestinationHost = Annotated[
    str | None, typer.Option(metavar="HOST", help="Destination-Host, for an EIR behind an agent; none if not given.")
]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long to wait for each answer, in seconds.", min=0.001)
]
Ca = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Over TLS: the authorities that the EIR's certificate may come from, in PEM."),
]
Cert = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --ca: our certificate in PEM; it carries our Origin-Host.")
]
PrivateKey = Annotated[Path | None, typer.Option(metavar="FILE", help="With --ca: its private key in PEM.")]
Gt = Annotated[
    str | None,
    typer.Option(
        "--gt", metavar="DIGITS", help="Over map://: the global title that we call from; our point code if not given."
    ),
]
PointCode = Annotated[str, typer.Option(metavar="N-N-N", help="Over map://: our point code.")]
EirPointCode = Annotated[
    str | None,
    typer.Option(
        metavar="N-N-N", help="Over map://: the EIR's point code; ss7.point_code of the configuration if not given."
    ),
]
RoutingContext = Annotated[
    int | None, typer.Option(metavar="N", help="Over map://: the routing context that the gateway knows us by.", min=0)
]
Token = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Over http:// and https://: a file with the access token of each request, alone or in the issuer's answer (JSON).",
    ),
]


def check(
    imei: Annotated[str, typer.Argument(metavar="IMEI", help="IMEI (14 or 15 digits), IMEISV (16) or MEID; '' asks without one.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber who uses the device; +NUMBER by the table `numbers`.")] = "",
    software_version: Annotated[str, typer.Option(metavar="NN", help="Its software version, two digits.")] = "",
    origin_host: Annotated[str, typer.Option(metavar="HOST", help="Origin-Host of the request.")] = "",
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Origin-Realm of the request.")] = "",
    protocol: Annotated[Protocol | None, typer.Option(metavar="s13|n5g|gsup|map", help="Say also what goes over the wire, to an MME (s13), an AMF (n5g), an OsmoMSC (gsup) or any MSC or SGSN (map).")] = None,
    from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Say what would be answered for a device, and why.

    Blanks and dashes, as on a box, do not count. Exit status 2 if it is no identifier of a device, whatever such a request gets.

    Names the rule, the list, its serial and the reason that the list gives. The running node is asked, which answers from memory;
    where none runs, or with --store, the configuration file and the store say it. Where they differ, that is named.
    """
    from eir.checks import explain  # noqa: PLC0415 - for this command alone

    checked = opened(load_config(config))
    imei, imsi = typed(imei), imsi_named(checked, imsi)
    if protocol is Protocol.N5G:
        question = _n5g_question(imei, imsi, software_version, origin_host, origin_realm)
    else:
        question = explain.question_of(
            imei, imsi=imsi, software_version=software_version, origin_host=origin_host, origin_realm=origin_realm
        )
    if wrong := explain.wrong_option(question):
        raise fail(wrong, EXIT_USAGE)
    now = datetime.now(UTC)
    node = in_force.asked(checked, "check", store_only=from_store, as_json=as_json, **question._asdict())
    if node is None:
        answer = with_store(
            checked,
            lambda store: explain.explain(question, checked.policy, checked.lists, store, now=now),
            fresh=False,
            reads=True,
        )
    else:
        answer = with_reason(checked, node.states, explain.Explanation.of_fields(question, node.answer), now)
    document, text = answer.as_json(), answer.as_text()
    if protocol is not None and answer.status is not None:
        said = _on_the_wire(protocol, answer.status)
        document |= {"protocol": protocol.value, "answer": said}
        text += f"\n  over {protocol.value}: {said}"
    show_one(document, text, as_json=as_json)
    if question.other is None and not question.is_anonymous and answer.list is None:  # a list may hold what is no IMEI
        try:
            question.device()
        except IdentifierError as e:
            error = "; such a request gets an error answer" if answer.status is None else ""
            raise fail(f"{imei}: {e}{error}", EXIT_USAGE) from None
    if answer.status is None:
        raise fail(f"such a request gets an error answer: {answer.reason}")


def with_reason(config: Config, states: Mapping[str, ListState], found: "Explanation", now: datetime) -> "Explanation":
    """Return what the node answers by these lists, with the reason from the store or from the node's copy of it."""
    if found.list is None or found.list not in states:
        return found
    from eir.checks.explain import give_reason  # noqa: PLC0415 - as above

    held = states[found.list]
    read = in_force.read_as_held(config, found.list, held, lambda store: give_reason(found, held.kind, store, now=now))
    if read is None:
        say("note: the reason is not known: neither the store nor the node's copy has what the node answers by")
    return found if read is None else read[0]


def _n5g_question(imei: str, imsi: str, software_version: str, origin_host: str, origin_realm: str) -> Question:
    """Return the question that an AMF would ask, checked as its requests are."""
    from eir.interfaces.n5g import probe as n5g  # noqa: PLC0415 - for this protocol alone
    from eir.interfaces.n5g.service import Refused, question_of  # noqa: PLC0415 - as above
    from eir.wire.peers.settings import Requester  # noqa: PLC0415 - as above
    from eir.wire.web.http2_message import Request  # noqa: PLC0415 - as above

    path = n5g.path_of(n5g.pei_of(imei, software_version or None), imsi).encode()
    try:
        return question_of(Request("GET", path, {}), Requester("", origin_host, origin_realm))
    except Refused as e:
        raise fail(f"such a request gets {e.cause.result}: {e}") from None


def _on_the_wire(protocol: Protocol, status: Status) -> str:
    """The answer as it is sent, in a few words."""
    if protocol is Protocol.S13:
        return "Experimental-Result 5422" if status is Status.UNKNOWN else f"2001, Equipment-Status {status.upper()}"
    if protocol is Protocol.GSUP:
        return "NACK" if status is Status.BLACKLISTED else "ACK"
    if protocol is Protocol.MAP:
        from eir.interfaces.map.service import EQUIPMENT_STATUSES  # noqa: PLC0415 - for this protocol alone

        value = EQUIPMENT_STATUSES.get(status)
        return "error 7, unknownEquipment" if value is None else f"equipmentStatus {value}, {status.upper()}"
    return "404 ERROR_EQUIPMENT_UNKNOWN" if status is Status.UNKNOWN else f"200 {status.upper()}"


def probe(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The EIR, as HOST or HOST:PORT: port 3868, or 5868 with --ca, if none is given; [::1]:3868 for IPv6, sctp://HOST,HOST:3868 over SCTP. A 5G EIR as http://HOST:PORT or https://HOST:PORT, one of a 2G or 3G network on Osmocom as gsup://HOST:PORT, by SIGTRAN as map://GATEWAY:PORT.",
        ),
    ],
    imeis: Annotated[list[str], typer.Argument(metavar="IMEI", help="What to ask about; sent as it is, valid or not.")],
    imsi: Imsi = None,
    software_version: Annotated[
        str | None, typer.Option(metavar="NN", help="Software-Version of each request.")
    ] = None,
    origin_host: OriginHost = None,
    origin_realm: OriginRealm = None,
    destination_realm: DestinationRealm = None,
    destination_host: DestinationHost = None,
    timeout: Timeout = 5.0,
    ca: Ca = None,
    cert: Cert = None,
    key: PrivateKey = None,
    token: Token = None,
    gt: Gt = None,
    point_code: PointCode = OWN_POINT_CODE,
    eir_point_code: EirPointCode = None,
    routing_context: RoutingContext = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ask so many times, about each IMEI in turn, and print a summary.", min=1),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Ask so many times a second, answered or not; with --count.", min=0.001),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Ask an EIR, as an MME, an AMF or an MSC would.

    HOST is asked over Diameter S13; http://HOST:PORT or https://HOST:PORT over HTTP/2 (N5g-eir); gsup://HOST:PORT as an
    OsmoMSC asks; map://GATEWAY:PORT as any MSC asks (MAP over SIGTRAN: over SCTP, or over TCP where SCTP is missing).

    All questions go over one connection. The exit status is 0 if every question was answered, even by an error; the name of an error
    goes to standard error. With --count the next question follows when one is answered, unless --rate says how many there are a second.
    """
    if rate is not None and count is None:
        raise fail("--rate needs --count: how many times to ask in all", EXIT_USAGE)
    names = names_of(origin_host, origin_realm, destination_host, destination_realm, config)
    calls = Calls(gt, point_code, eir_point_code, routing_context, config)
    prober = prober_for(target, tls_of(ca, cert, key), token, names, timeout, calls)
    for each in imeis:
        if (plain := typed(each)) != each:
            say(f"note: '{each}' is sent as typed; without blanks and dashes it would be {plain}")
    if count is not None:
        summary = asyncio.run(
            prober.ask_many(imeis, count=count, rate=rate, imsi=imsi, software_version=software_version)
        )
        show_one(summary.as_json(), summary.as_text(), as_json=as_json)
        if summary.fault:
            say(f"eir: {summary.fault}")
        if summary.answered < count:
            raise typer.Exit(EXIT_NO)
        return
    _tell(
        asyncio.run(prober.ask(imeis, imsi=imsi, software_version=software_version)),
        with_token=token is not None,
        as_json=as_json,
    )


def _tell(findings: "Sequence[Finding]", *, with_token: bool, as_json: bool) -> None:
    columns = ("imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms")
    show([finding.as_json() for finding in findings], columns, as_json=as_json)
    for finding in findings:
        if finding.fault:
            say(f"eir: {finding.imei}: {finding.fault}")
        elif finding.error:
            say(f"eir: {finding.imei}: answered by the error {finding.error}")
    if not with_token and any(finding.result_code == UNAUTHORIZED for finding in findings):
        say("eir: an access token is wanted: --token FILE")
    if any(finding.round_trip_ms is None for finding in findings):
        raise typer.Exit(EXIT_NO)


class Names(NamedTuple):
    """Our names over Diameter and those that are asked for; None: the EIR's own realm, and no host."""

    origin_host: str
    origin_realm: str
    destination_host: str | None
    destination_realm: str | None
    given_host: str | None = None
    """Our Origin-Host where it was given."""


def names_of(
    origin_host: str | None,
    origin_realm: str | None,
    destination_host: str | None,
    destination_realm: str | None,
    config: Path,
) -> Names:
    """The names that are given, and those of the configuration where there is one. Raises ConfigError where one is named and unreadable."""
    own = origin_realm
    if own is None:
        with suppress(*[ConfigError] * (config in {DEFAULT_CONFIG, SYSTEM_CONFIG})):
            own = load_identity(config).realm
    own = own or PROBE_REALM
    return Names(origin_host or f"probe.{own}", own, destination_host, destination_realm, origin_host)


class Calls(NamedTuple):
    """Our addresses over SIGTRAN and those that are asked, as the options say."""

    gt: str | None
    point_code: str
    eir_point_code: str | None
    routing_context: int | None
    config: Path
    """Configuration whose `ss7` says the rest."""


class Prober(NamedTuple):
    """Functions that ask one EIR, as in eir.interfaces.s13.probe and eir.interfaces.n5g.probe, where they have the same form."""

    ask: Callable[..., Any]
    ask_many: Callable[..., Any]
    asking: Callable[..., Any]


class Wanted(NamedTuple):
    """The EIR to ask, and how, as the options say."""

    target: str
    tls: Tls | None
    token: Path | None
    names: Names
    timeout_s: float
    calls: Calls


def _s13_prober(wanted: Wanted) -> tuple[Any, Any]:
    from eir.interfaces.s13 import probe  # noqa: PLC0415 - for this protocol alone

    tls, names = wanted.tls, wanted.names
    host, port, scheme = _where(wanted.target, with_tls=tls is not None)
    context = tls.connecting if tls is not None else None
    return probe, probe.Target(
        host,
        port,
        names.origin_host,
        names.origin_realm,
        names.destination_realm,
        wanted.timeout_s,
        scheme,
        context,
        names.destination_host,
    )


def _n5g_prober(wanted: Wanted) -> tuple[Any, Any]:
    from eir.interfaces.n5g import probe  # noqa: PLC0415 - for this protocol alone

    return probe, probe.Target(*_http_target(wanted.target, wanted.tls), wanted.timeout_s, _token_of(wanted.token))


def _gsup_prober(wanted: Wanted) -> tuple[Any, Any]:
    from eir.interfaces.gsup import probe  # noqa: PLC0415 - for this protocol alone
    from eir.interfaces.gsup.settings import PORT  # noqa: PLC0415 - as above

    if wanted.tls is not None:
        raise fail(f"{wanted.target}: GSUP knows no TLS; --ca, --cert and --key are for others", EXIT_USAGE)
    where = _host_and_port(wanted.target.partition("://")[2], PORT)
    return probe, probe.Target(*where, wanted.timeout_s, wanted.names.given_host or probe.NAME)


def _map_prober(wanted: Wanted) -> tuple[Any, Any]:
    from eir.interfaces.map import probe  # noqa: PLC0415 - for this protocol alone
    from eir.interfaces.map.settings import PORT  # noqa: PLC0415 - as above
    from eir.wire.ss7.sccp import ITU, point_code, point_code_text  # noqa: PLC0415 - as above

    if wanted.tls is not None:
        raise fail(f"{wanted.target}: SIGTRAN knows no TLS; --ca, --cert and --key are for others", EXIT_USAGE)
    calls, ss7 = wanted.calls, dict[str, Any]()
    with suppress(ConfigError):
        ss7 = load_whereabouts(calls.config).shown.get("ss7") or {}
    variant, eir = ss7.get("variant") or ITU, calls.eir_point_code or ss7.get("point_code")
    if eir is None:
        raise fail("whom to ask: --eir-point-code N-N-N, or ss7.point_code of the configuration", EXIT_USAGE)
    try:
        codes = point_code(calls.point_code, variant), point_code(str(eir), variant)
    except ValueError as e:
        most = point_code_text(-1, variant)
        raise fail(f"{e} is no point code of the variant {variant}: expected {most} at most", EXIT_USAGE) from None
    if calls.gt is not None and not is_digits(calls.gt):
        raise fail(f"--gt: expected digits, got {calls.gt}", EXIT_USAGE)
    *others, last = wanted.target.partition("://")[2].split(",")
    host, port = _host_and_port(last, PORT)
    return probe, probe.Target((*others, host), port, codes, calls.gt, calls.routing_context, variant, wanted.timeout_s)


PROBERS: dict[str, Callable[[Wanted], tuple[Any, Any]]] = {
    "http": _n5g_prober, "https": _n5g_prober, "gsup": _gsup_prober, "map": _map_prober,
}  # fmt: skip
"""Makers by scheme of the target's URL: each returns the module that asks so, and its target. Diameter without a
scheme, and for any other."""


def prober_for(
    target: str, tls: Tls | None, token: Path | None, names: Names, timeout_s: float, calls: Calls
) -> Prober:
    """Return what asks the target, by the protocol that it names."""
    make = PROBERS.get(target.partition("://")[0] if "://" in target else "", _s13_prober)
    if token is not None and make is not _n5g_prober:
        raise fail("--token is for http:// and https://", EXIT_USAGE)
    probe, asked = make(Wanted(target, tls, token, names, timeout_s, calls))
    return Prober(*(partial(function, asked) for function in (probe.ask, probe.ask_many, probe.asking)))


def _where(target: str, *, with_tls: bool) -> tuple[str, int, str]:
    """Host (over SCTP there may be several, with commas), port, and transport."""
    if "://" not in target:
        return *_host_and_port(target, DIAMETER_TLS_PORT if with_tls else DIAMETER_PORT), TLS if with_tls else TCP
    try:
        to = endpoint(target)
    except EirError as e:
        raise fail(str(e), EXIT_USAGE) from None
    if (to.scheme == TLS) != with_tls:
        raise fail(f"{target}: --ca, --cert and --key are for tls://, and tls:// needs all three", EXIT_USAGE)
    return ",".join(to.hosts), to.port, to.scheme


def _http_target(target: str, tls: Tls | None) -> tuple[str, int, ssl.SSLContext | None]:
    """Host, port, and what a handshake is made with."""
    from eir.wire.transport.endpoint import is_secure, listening_at  # noqa: PLC0415 - as above

    try:
        to = listening_at(target)
    except EirError:
        raise fail(f"{target}: expected http://HOST:PORT or https://HOST:PORT", EXIT_USAGE) from None
    if is_secure(target) != (tls is not None):
        raise fail(f"{target}: --ca, --cert and --key are for https://, and https:// needs all three", EXIT_USAGE)
    context = None
    if tls is not None:
        context = tls.connecting
        context.check_hostname = True  # nothing else says who it is that answers
        context.set_alpn_protocols(["h2"])
    return to.hosts[0], to.port, context


def _token_of(file: Path | None) -> str | None:
    """The access token that is to be sent."""
    from eir.wire.web.denials import token_in  # noqa: PLC0415 - as above

    try:
        return None if file is None else token_in(file)
    except EirError as e:
        raise fail(f"--token: {e}", EXIT_USAGE) from None


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """Return the TLS settings of handshakes; None if no file is given."""
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise fail("TLS is mutual here: --ca, --cert and --key are needed, all three", EXIT_USAGE)
    from eir.wire.transport.settings import TlsSettings  # noqa: PLC0415 - for a probe over TLS alone
    from eir.wire.transport.tls import load_tls, read_tls  # noqa: PLC0415 - as above

    return load_tls(read_tls(TlsSettings(certificate=cert, key=key, ca=ca)))


def _host_and_port(target: str, default: int) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")) or port.endswith("]"):
        return target.strip("[]"), default
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise fail(f"{target}: expected HOST:PORT with a port from 1 to 65535", EXIT_USAGE)
    return host.strip("[]"), int(port)
