"""Commands that show the answer for a device: of this EIR with the reason, or of any EIR over the network."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from eir.cli import in_force
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, imsi_named, is_named, opened, optional_config, with_store
from eir.cli.in_force import FromStore
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, print_message, show, show_one
from eir.config import Config, load_config, load_identity, load_whereabouts
from eir.device import strip_separators
from eir.errors import ConfigError, IdentifierError
from eir.interfaces import INTERFACES
from eir.interfaces.probing import Calls, Names, Wanted
from eir.lists.record.store import ListState
from eir.schema import DAY_S, seconds
from eir.wire.transport.endpoint import is_http
from eir.wire.transport.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eir.checks.explain import Explanation
    from eir.interfaces.probing import ProbeFinding

CLIENTS = {each.name: each.client for each in INTERFACES if each.words}
"""Kinds of clients by interface name, for `eir check --protocol`."""
PROBE_REALM = "epc.mnc001.mcc001.3gppnetwork.org"
UNAUTHORIZED = 401
OWN_POINT_CODE = "0-0-1"

TIMEOUT = seconds(0.001, DAY_S)


def _timeout_s(written: str) -> float:
    try:
        return float(TIMEOUT.read(str(written)))
    except ValueError:
        raise typer.BadParameter(f"{written}: expected {TIMEOUT.form_with_example}") from None


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
    float,
    typer.Option(
        metavar="TIME", help="How long to wait for each answer: 500ms, 5s, or a number of seconds.", parser=_timeout_s
    ),
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


def _clients() -> str:
    *most, last = (f"{client} ({name})" for name, client in CLIENTS.items())
    return f"{', '.join(most)} or {last}"


def check(
    imei: Annotated[str, typer.Argument(metavar="IMEI", help="IMEI (14 or 15 digits), IMEISV (16) or MEID; '' asks without one.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber who uses the device; +NUMBER by the table `numbers`.")] = "",
    software_version: Annotated[str, typer.Option(metavar="NN", help="Its software version, two digits.")] = "",
    origin_host: Annotated[str, typer.Option(metavar="HOST", help="Origin-Host of the request.")] = "",
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Origin-Realm of the request.")] = "",
    protocol: Annotated[str | None, typer.Option(metavar="|".join(CLIENTS), click_type=click.Choice([*CLIENTS]), help=f"Say also what goes over the wire, to {_clients()}.")] = None,
    from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the answer to a check of a device, with its reason.

    The output names the rule, the list, its serial, and the reason that the list has for the device. The running node
    answers from memory. If no node runs, or with --store, the answer comes from the configuration file and the store.
    Differences between node, file and store are reported. Blanks and dashes in the identifier are ignored. Exit status
    2 if the text is not an identifier of a device.
    """
    from eir.checks import explain  # noqa: PLC0415 - for this command alone

    checked = opened(load_config(config))
    imei, imsi = strip_separators(imei), imsi_named(checked, imsi)
    interface = next((each for each in INTERFACES if each.name == protocol), None)
    if interface is not None and interface.question is not None:
        question = interface.question(imei, imsi, software_version, origin_host, origin_realm)
    else:
        question = explain.question_of(
            imei, imsi=imsi, software_version=software_version, origin_host=origin_host, origin_realm=origin_realm
        )
    if wrong := explain.option_fault(question):
        raise fail(wrong, EXIT_USAGE)
    now = datetime.now(UTC)
    node = in_force.asked(checked, "check", store_only=from_store, as_json=as_json, **question._asdict())
    if node is None:
        answer = with_store(
            checked,
            lambda store: explain.explain(question, checked.policy, checked.lists_and_record, store, now=now),
            fresh=False,
            reads=True,
        )
    else:
        answer = with_reason(checked, node.states, explain.Explanation.of_fields(question, node.answer), now)
    document, text = answer.as_json(), answer.as_text()
    if interface is not None and interface.words is not None and answer.status is not None:
        said = interface.words(answer.status)
        document |= {"protocol": interface.name, "answer": said}
        text += f"\n  over {interface.name}: {said}"
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
    """Add to a node's answer the reason that the list has for the device, from the store or the node's copy."""
    if found.list is None or found.list not in states:
        return found
    from eir.checks.explain import add_reason  # noqa: PLC0415 - as above

    held = states[found.list]
    read = in_force.read_as_held(config, found.list, held, lambda store: add_reason(found, held.kind, store, now=now))
    if read is None:
        print_message(
            "note: the reason is not known: neither the store nor the node's copy has what the node answers by"
        )
    return found if read is None else read[0]


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
    """Send checks to an EIR, as an MME, an AMF or an MSC does.

    HOST is asked over Diameter S13; http://HOST:PORT or https://HOST:PORT over HTTP/2 (N5g-eir); gsup://HOST:PORT as an
    OsmoMSC asks; map://GATEWAY:PORT as any MSC asks (MAP over SIGTRAN: over SCTP, or over TCP where SCTP is missing).

    All questions go over one connection. The exit status is 0 if every question was answered, even by an error; the name of an error
    goes to standard error. With --count the next question follows when one is answered, unless --rate says how many there are a second.
    """
    if rate is not None and count is None:
        raise fail("--rate needs --count: how many times to ask in all", EXIT_USAGE)
    names = names_of(origin_host, origin_realm, destination_host, destination_realm, config)
    calls = Calls(gt, point_code, eir_point_code, routing_context)
    prober, asked = prober_for(target, tls_of(ca, cert, key), token, names, timeout, calls, config)
    for each in imeis:
        if (plain := strip_separators(each)) != each:
            print_message(f"note: '{each}' is sent as typed; without blanks and dashes it would be {plain}")
    if count is not None:
        summary = asyncio.run(
            prober.ask_many(asked, imeis, count=count, rate=rate, imsi=imsi, software_version=software_version)
        )
        show_one(summary.as_json(), summary.as_text(), as_json=as_json)
        if summary.fault:
            print_message(f"eir: {summary.fault}")
        if summary.answered < count:
            raise typer.Exit(EXIT_NO)
        return
    _print_findings(
        asyncio.run(prober.ask(asked, imeis, imsi=imsi, software_version=software_version)),
        with_token=token is not None,
        as_json=as_json,
    )


def _print_findings(findings: "Sequence[ProbeFinding]", *, with_token: bool, as_json: bool) -> None:
    columns = ("imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms")
    show([finding.as_json() for finding in findings], columns, as_json=as_json)
    for finding in findings:
        if finding.fault:
            print_message(f"eir: {finding.imei}: {finding.fault}")
        elif finding.error:
            print_message(f"eir: {finding.imei}: answered by the error {finding.error}")
    if not with_token and any(finding.result_code == UNAUTHORIZED for finding in findings):
        print_message("eir: an access token is wanted: --token FILE")
    if any(finding.round_trip_ms is None for finding in findings):
        raise typer.Exit(EXIT_NO)


def names_of(
    origin_host: str | None,
    origin_realm: str | None,
    destination_host: str | None,
    destination_realm: str | None,
    config: Path,
) -> Names:
    """Return the Diameter names of a probe: those given, completed by the configuration if there is one.

    Raises ConfigError if the user named a configuration that cannot be read.
    """
    own, file = origin_realm, optional_config(config)
    if own is None and file is not None:
        with suppress(*[ConfigError] * (not is_named(config))):
            own = load_identity(file).realm
    own = own or PROBE_REALM
    return Names(origin_host or f"probe.{own}", own, destination_host, destination_realm, origin_host)


def prober_for(
    target: str, tls: Tls | None, token: Path | None, names: Names, timeout_s: float, calls: Calls, config: Path
) -> tuple[Any, Any]:
    """Return the probing module for the URL scheme of a target, and the parsed target.

    A target without a known scheme belongs to the first interface.
    """
    scheme = target.partition("://")[0]
    interface = next((each for each in INTERFACES if scheme in each.schemes and "://" in target), INTERFACES[0])
    if token is not None and not is_http(target):
        raise fail("--token is for http:// and https://", EXIT_USAGE)
    if interface.probe is None:
        raise fail(f"{target}: nobody can ask over {scheme}://", EXIT_USAGE)

    def configured() -> Mapping[str, Any]:
        with suppress(ConfigError):
            return load_whereabouts(config).shown.get(interface.section) or {}
        return {}

    return interface.probe(Wanted(target, tls, token, names, timeout_s, calls, configured))


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """Load the TLS settings of a probe; return None if none of the three files is given."""
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise fail("TLS is mutual here: --ca, --cert and --key are needed, all three", EXIT_USAGE)
    from eir.wire.transport.settings import TlsSettings  # noqa: PLC0415 - for a probe over TLS alone
    from eir.wire.transport.tls import load_tls, read_tls  # noqa: PLC0415 - as above

    return load_tls(read_tls(TlsSettings(certificate=cert, key=key, ca=ca)))
