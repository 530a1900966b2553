"""Commands that show the answer for a device: from this EIR with the reason, or from any EIR over the network."""

import asyncio
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eir.checks.settings import Status
from eir.cli import in_force
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, imsi_named, is_named, opened, optional_config, with_store
from eir.cli.in_force import FromStore
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, print_message, show, show_one
from eir.config import Config, load_config, load_whereabouts
from eir.device import strip_separators
from eir.errors import ConfigError, IdentifierError, UsageError
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Interface
from eir.interfaces.probing import Probe, ProbeFinding
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.change import Head
from eir.lists.log.store import LogStore
from eir.schema import DAY_S, seconds

if TYPE_CHECKING:
    from eir.checks.explain import Explanation

CLIENTS = {each.name: each for each in INTERFACES if each.probe}
"""Interfaces of clients that send checks, by the scheme of their URL."""
TIMEOUT = seconds(0.001, DAY_S)
TIMEOUT_S = 5.0
URL_HELP_COLUMNS = 68
"""Width of the table of a protocol's parameters, which stands beside the name of the argument."""


def _timeout_s(written: str) -> float:
    try:
        return float(TIMEOUT.read(str(written)))
    except ValueError:
        raise typer.BadParameter(f"{written}: expected {TIMEOUT.form_with_example}") from None


# Options of the commands that ask over the wire.
Imsi = Annotated[str | None, typer.Option(metavar="N", help="User-Name of each request.")]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="TIME", help="How long to wait for each answer: 500ms, 5s, or a number of seconds.", parser=_timeout_s
    ),
]


def _clients() -> str:
    *most, last = (f"{each.client} ({name})" for name, each in CLIENTS.items())
    return f"{', '.join(most)} or {last}"


def _url_help() -> str:
    r"""Return the help text of the URL, with a table of the parameters of each protocol. Click keeps the lines of a paragraph after `\b`."""
    tables = ["The EIR, with parameters behind '?', joined by '&':"]
    for each in CLIENTS.values():
        width = max(len(key.path) for key in each.probe_keys)
        lines = [f"{each.name}://HOST[:PORT] asks as {each.client}:"]
        for key in each.probe_keys:
            row = f"  {key.path:{width}}  {key.says}"
            lines += textwrap.wrap(row, URL_HELP_COLUMNS, subsequent_indent=" " * (width + 4))
        tables.append("\b\n" + "\n".join(lines))
    return "\n\n".join(tables)


def probe_of(url: str, timeout_s: float, configured: Mapping[str, Any]) -> Probe:
    """Create the client that sends checks to the EIR with this URL. Raises UsageError for an unknown scheme."""
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in CLIENTS:
        forms = ", ".join(f"{name}://HOST" for name in CLIENTS)
        raise UsageError(f"{url}: expected one of {forms}")
    return CLIENTS[scheme].probe_of(url, timeout_s, configured)


def check(
    imei: Annotated[str, typer.Argument(metavar="IMEI", help="IMEI (14 or 15 digits), IMEISV (16) or MEID; '' asks without one.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber who uses the device; +NUMBER by the table `numbers`.")] = "",
    software_version: Annotated[str, typer.Option(metavar="NN", help="Its software version, two digits.")] = "",
    origin_host: Annotated[str, typer.Option(metavar="HOST", help="Origin-Host of the request.")] = "",
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Origin-Realm of the request.")] = "",
    protocol: Annotated[str | None, typer.Option(metavar=f"{'|'.join(CLIENTS)}|URL", help=f"Print also the answer on the wire, to {_clients()}. With a URL as for eir probe: the answer that this EIR gives there.")] = None,
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
    probed = None if protocol is None or protocol in CLIENTS else probe_of(protocol, TIMEOUT_S, checked.shown)
    interface = None if protocol is None else CLIENTS[protocol.partition("://")[0]]
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

        async def work(store: LogStore) -> explain.Explanation:
            read = ListReader(store).content
            return await explain.explain(question, checked.policy, checked.lists_and_record, read, now=now)

        answer = with_store(checked, work, fresh=False, reads=True)
    else:
        found = explain.Explanation.of_fields(question, node.answer)
        answer = explained(checked, node.states, found, now)
    document, text = answer.as_json(), answer.as_text()
    if interface is not None and answer.status is not None:
        reply = interface.words(answer.status)
        if probed is not None:
            reply = _reply_of(probed, interface, imei, imsi, software_version)
        document |= {"protocol": interface.name, "answer": reply}
        text += f"\n  over {interface.name}: {reply}"
    show_one(document, text, as_json=as_json)
    is_listed = answer.list is not None  # a list may have identifiers that are no IMEI
    if question.other is None and not question.is_anonymous and not is_listed:
        try:
            question.device()
        except IdentifierError as e:
            error = "; such a request gets an error answer" if answer.status is None else ""
            raise fail(f"{imei}: {e}{error}", EXIT_USAGE) from None
    if answer.status is None:
        raise fail(f"such a request gets an error answer: {answer.reason}")


def _reply_of(probed: Probe, interface: Interface, imei: str, imsi: str, software_version: str) -> str:
    """Send one check to an EIR, and return its answer as text. Raises EirError if there is no connection."""
    ask = probed.ask([imei], imsi=imsi or None, software_version=software_version or None)
    (finding,) = asyncio.run(ask)
    if finding.status is None:
        return finding.fault or finding.error or finding.result
    return interface.words(Status(finding.status))


def explained(config: Config, states: Mapping[str, Head], found: "Explanation", now: datetime) -> "Explanation":
    """Add a reason to a node's answer: the reason of the list entry that caused the answer.

    The entry is read from the node's copy of the list, or from the store.
    """
    if found.list is None or found.list not in states:
        return found
    from eir.checks.explain import with_reason  # noqa: PLC0415 - for `eir check` and `eir trace`

    content = in_force.read_as_held(config, found.list, states[found.list])
    if content is not None:
        return with_reason(found, content, config.lists_and_record[found.list].reasons, now=now)
    print_message("note: the reason is not known: neither the store nor the node's copy has what the node answers by")
    return found


def probe(
    target: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help=_url_help(),
        ),
    ],
    imeis: Annotated[list[str], typer.Argument(metavar="IMEI", help="What to ask about; sent as it is, valid or not.")],
    imsi: Imsi = None,
    software_version: Annotated[
        str | None, typer.Option(metavar="NN", help="Software-Version of each request.")
    ] = None,
    timeout: Timeout = TIMEOUT_S,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of checks, of each IMEI in turn; then a summary is printed.", min=1),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="With --count: number of checks per second, answered or not.", min=0.001),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Send checks to an EIR, as an MME, an AMF or an MSC does.

    The scheme of the URL is the protocol, as in `eir check --protocol`.

    All checks use one connection. The exit status is 0 if every check was answered, even with an error. The name of an
    error is printed to standard error. With --count each check follows the previous answer, unless --rate gives the
    number of checks per second.
    """
    if rate is not None and count is None:
        raise fail("--rate needs --count: how many times to ask in all", EXIT_USAGE)
    probed = probe_of(target, timeout, _read_config(config))
    for each in imeis:
        plain = strip_separators(each)
        if plain != each:
            print_message(f"note: '{each}' is sent as typed; without blanks and dashes it would be {plain}")
    if count is not None:
        checks = probed.ask_many(imeis, count=count, rate=rate, imsi=imsi, software_version=software_version)
        summary = asyncio.run(checks)
        show_one(summary.as_json(), summary.as_text(), as_json=as_json)
        if summary.fault:
            print_message(f"eir: {summary.fault}")
        if summary.answered < count:
            raise typer.Exit(EXIT_NO)
        return
    findings = asyncio.run(probed.ask(imeis, imsi=imsi, software_version=software_version))
    _print_findings(findings, as_json=as_json)


def _read_config(config: Path) -> Mapping[str, Any]:
    """Return the settings as `eir config` shows them, even if some are invalid. If no default file is readable, the result is empty.

    Raises ConfigError if a configuration was named and cannot be read.
    """
    file = optional_config(config)
    if file is None:
        return {}
    try:
        return load_whereabouts(file).shown
    except ConfigError:
        if is_named(config):
            raise
        return {}


def _print_findings(findings: Sequence[ProbeFinding], *, as_json: bool) -> None:
    columns = ("imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms")
    show([finding.as_json() for finding in findings], columns, as_json=as_json)
    for finding in findings:
        if finding.fault:
            print_message(f"eir: {finding.imei}: {finding.fault}")
        elif finding.error:
            print_message(f"eir: {finding.imei}: answered by the error {finding.error}")
    if any(finding.round_trip_ms is None for finding in findings):
        raise typer.Exit(EXIT_NO)
