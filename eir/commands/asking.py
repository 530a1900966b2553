"""Commands that ask about a device: what this EIR would answer and why, and what any EIR answers over Diameter."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, with_store
from eir.commands.output import EXIT_NO, EXIT_USAGE, fail, say, show, show_one
from eir.config import load_config
from eir.diameter.transport.endpoint import TCP, TLS, endpoint
from eir.errors import EirError

DIAMETER_PORT = 3868
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
    target: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="The EIR; port 3868 if none is given, [::1]:3868 for IPv6, sctp://HOST,HOST:3868 over SCTP.")],
    imeis: Annotated[list[str], typer.Argument(metavar="IMEI", help="What to ask about; sent as it is, valid or not.")],
    imsi: Annotated[str | None, typer.Option(metavar="N", help="User-Name of each request.")] = None,
    software_version: Annotated[str | None, typer.Option(metavar="NN", help="Software-Version of each request.")] = None,
    origin_host: Annotated[str | None, typer.Option(metavar="HOST", help="Our Origin-Host; probe.REALM if not given.")] = None,
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Our Origin-Realm; that of MCC 001, MNC 01 if not given.", show_default=False)] = PROBE_REALM,
    realm: Annotated[str | None, typer.Option(metavar="REALM", help="Destination-Realm; the EIR's own if not given.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for each answer.", min=0.001)] = 5.0,
    as_json: Json = False,
) -> None:
    """Ask an EIR over Diameter S13 as an MME would.

    The exit status is 0 if every question was answered, even by an error; the name of an error goes to standard error.
    """
    from eir.s13 import probe as s13  # noqa: PLC0415 - for this command alone

    host, port, scheme = _where(target)
    asked = s13.Target(host, port, origin_host or f"probe.{origin_realm}", origin_realm, realm, timeout, scheme)
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


def _where(target: str) -> tuple[str, int, str]:
    """Host (over SCTP there may be several, with commas), port, and transport."""
    if "://" not in target:
        return *_host_and_port(target), TCP
    try:
        to = endpoint(target)
    except EirError as e:
        raise fail(str(e), EXIT_USAGE) from None
    if to.scheme == TLS:
        raise fail(f"{target}: the probe has no certificate; expected tcp:// or sctp://", EXIT_USAGE)
    return ",".join(to.hosts), to.port, to.scheme


def _host_and_port(target: str) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")) or port.endswith("]"):
        return target.strip("[]"), DIAMETER_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise fail(f"{target}: expected HOST:PORT with a port from 1 to 65535", EXIT_USAGE)
    return host.strip("[]"), int(port)
