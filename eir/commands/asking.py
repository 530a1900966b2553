"""Commands that ask about a device: what this EIR would answer and why, and what any EIR answers over Diameter."""

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, with_store
from eir.commands.output import EXIT_NO, EXIT_USAGE, fail, say, show, show_one
from eir.config import load_config
from eir.diameter.transport.endpoint import TCP, TLS, endpoint
from eir.errors import EirError

DIAMETER_PORT, DIAMETER_TLS_PORT = 3868, 5868
PROBE_REALM = "epc.mnc001.mcc001.3gppnetwork.org"


def check(
    imei: Annotated[str, typer.Argument(metavar="IMEI", help="IMEI (14 or 15 digits), IMEISV (16) or MEID; '' asks without one.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber who uses the device.")] = "",
    software_version: Annotated[str, typer.Option(metavar="NN", help="Its software version, two digits.")] = "",
    origin_host: Annotated[str, typer.Option(metavar="HOST", help="Origin-Host of the request.")] = "",
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Origin-Realm of the request.")] = "",
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Say what would be answered for a device, and why.

    Names the rule, the list, its serial and the reason that the list gives.
    """
    from eir.checks import explain  # noqa: PLC0415 - for this command alone

    question = explain.question_of(imei, imsi=imsi, software_version=software_version, origin_host=origin_host, origin_realm=origin_realm)
    if wrong := explain.wrong_option(question):
        raise fail(wrong, EXIT_USAGE)
    checked = load_config(config)
    now = datetime.now(UTC)
    answer = with_store(checked, lambda store: explain.explain(question, checked.policy, checked.lists, store, now=now), fresh=False)
    show_one(answer.as_json(), answer.as_text(), as_json=as_json)
    if answer.status is None:
        raise fail(f"such a request gets an error answer: {answer.reason}")


def probe(
    target: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="The EIR; port 3868, or 5868 with --ca, if none is given; [::1]:3868 for IPv6, sctp://HOST,HOST:3868 over SCTP.")],
    imeis: Annotated[list[str], typer.Argument(metavar="IMEI", help="What to ask about; sent as it is, valid or not.")],
    imsi: Annotated[str | None, typer.Option(metavar="N", help="User-Name of each request.")] = None,
    software_version: Annotated[str | None, typer.Option(metavar="NN", help="Software-Version of each request.")] = None,
    origin_host: Annotated[str | None, typer.Option(metavar="HOST", help="Our Origin-Host; probe.REALM if not given.")] = None,
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Our Origin-Realm; that of MCC 001, MNC 01 if not given.", show_default=False)] = PROBE_REALM,
    realm: Annotated[str | None, typer.Option(metavar="REALM", help="Destination-Realm; the EIR's own if not given.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for each answer, in seconds.", min=0.001)] = 5.0,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Over TLS: the authorities that the EIR's certificate may come from, in PEM.")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="With --ca: our certificate in PEM; it carries our Origin-Host.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="With --ca: its private key in PEM.")] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="Ask so many times, about each IMEI in turn, and print a summary.", min=1)] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Ask so many times a second, answered or not; with --count.", min=0.001)] = None,
    as_json: Json = False,
) -> None:
    """Ask an EIR over Diameter S13 as an MME would.

    All questions go over one connection. The exit status is 0 if every question was answered, even by an error; the name of an error
    goes to standard error. With --count the next question follows when one is answered, unless --rate says how many there are a second.
    """
    from eir.s13 import probe as s13  # noqa: PLC0415 - for this command alone

    if rate is not None and count is None:
        raise fail("--rate needs --count: how many times to ask in all", EXIT_USAGE)
    tls = _tls(ca, cert, key)
    host, port, scheme = _where(target, with_tls=tls is not None)
    asked = s13.Target(host, port, origin_host or f"probe.{origin_realm}", origin_realm, realm, timeout, scheme, tls)
    if count is not None:
        summary = asyncio.run(s13.ask_many(asked, imeis, count=count, rate=rate, imsi=imsi, software_version=software_version))
        show_one(summary.as_json(), summary.as_text(), as_json=as_json)
        if summary.fault:
            say(f"eir: {summary.fault}")
        if summary.answered < count:
            raise typer.Exit(EXIT_NO)
        return
    findings = asyncio.run(s13.ask(asked, imeis, imsi=imsi, software_version=software_version))
    columns = ("imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms")
    show([finding.as_json() for finding in findings], columns, as_json=as_json)
    for finding in findings:
        if finding.fault:
            say(f"eir: {finding.imei}: {finding.fault}")
        elif finding.error:
            say(f"eir: {finding.imei}: answered by the error {finding.error}")
    if any(finding.round_trip_ms is None for finding in findings):
        raise typer.Exit(EXIT_NO)


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


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What a handshake is made with; None if nothing of it is given."""
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise fail("TLS between Diameter nodes is mutual: --ca, --cert and --key are needed, all three", EXIT_USAGE)
    from eir.diameter.settings import TlsSettings  # noqa: PLC0415 - for a probe over TLS alone
    from eir.diameter.transport.tls import load_tls, read_tls  # noqa: PLC0415 - as above

    return load_tls(read_tls(TlsSettings(certificate=cert, key=key, ca=ca))).connecting


def _host_and_port(target: str, default: int) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")) or port.endswith("]"):
        return target.strip("[]"), default
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise fail(f"{target}: expected HOST:PORT with a port from 1 to 65535", EXIT_USAGE)
    return host.strip("[]"), int(port)
