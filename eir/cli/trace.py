"""Command that shows the checks of one subscriber or device on a running node as they happen."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from eir.checks.explain import Explanation
from eir.checks.question import Question
from eir.checks.trace import CHECK, WIRE
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, ask_node, imsi_named
from eir.cli.asking import explained
from eir.cli.in_force import heads_of
from eir.cli.output import EXIT_USAGE, duration, fail, print_message, printable
from eir.config import Config, load_config
from eir.device import device_key, imsi_key, strip_separators
from eir.errors import EirError, IdentifierError
from eir.interfaces.s13.capture import begin_capture, captured
from eir.lists.record.reasons import check_reason
from eir.node.observe import control


def trace(
    imei: Annotated[str, typer.Option(metavar="IMEI", help="Checks of this device.")] = "",
    imsi: Annotated[str, typer.Option(metavar="N", help="Checks with this subscriber's SIM (+NUMBER by the table `numbers`); with --imei, of the two together.")] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, such as the number of a complaint; it goes on record.", show_default=False)] = "",
    lasts: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 20s, 10m, 1h at most.")] = "10m",
    pcap: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what went over Diameter into a new file, for Wireshark.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Show each check of one phone as it happens.

    Each check is shown with its complete explanation, over all protocols. A trace reveals the activity of a person's
    phone. So it needs a reason, is recorded in the history with its user, and ends by itself or by Ctrl-C. Only one
    trace can run at a time. At more than 10 checks per second, not all are shown.
    """
    checked = load_config(config)
    imei, imsi = strip_separators(imei), imsi_named(checked, imsi)
    try:
        if not imei and not imsi:
            raise fail("expected --imei IMEI or --imsi N", EXIT_USAGE)
        for text, key_of in ((imei, device_key), (imsi, imsi_key)):
            if text:
                key_of(text)
        check_reason(reason)
    except IdentifierError as e:
        raise fail(str(e), EXIT_USAGE) from None
    except EirError as e:
        raise fail(f"--reason: {e}", EXIT_USAGE) from None
    lasting = duration(lasts, "--for")
    with ExitStack() as stack:
        out = None if pcap is None else stack.enter_context(_create_file(pcap))
        if out is not None:
            out.write(begin_capture())
        lasts_s = lasting.total_seconds()
        number = ask_node(checked, "trace", imei=imei, imsi=imsi, lasts_s=lasts_s, reason=reason)
        stack.enter_context(_ended(checked, number))
        print_message(f"tracing for {lasts}; Ctrl-C ends it")
        for record in _records(checked, number):
            if record["kind"] == WIRE and out is not None:
                for message in (record["request"], record["answer"]):
                    out.write(captured(record["time"], bytes.fromhex(message)))
            document = _check(checked, record) if record["kind"] == CHECK else record
            text = json.dumps(document) if as_json else _text(record, document)
            print(text, flush=True)


@contextmanager
def _ended(config: Config, number: int) -> Iterator[None]:
    """Stop the node's trace at the end of the `with` block.

    If the command dies, the node detects this and stops the trace by itself.
    """
    try:
        yield
    finally:
        with suppress(EirError):
            control.ask(config.state, "trace_end", number=number)


def _create_file(pcap: Path) -> BinaryIO:
    """Create the capture file, which only its owner can read because it names a subscriber."""
    descriptor = os.open(pcap, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb", buffering=0)


def _records(config: Config, number: int) -> Iterator[dict[str, Any]]:
    """Yield the trace records of the node until the trace ends."""
    over = False
    while not over:
        reply = control.ask(config.state, "trace_read", number=number)
        over = reply["over"]
        yield from reply["records"]


def _check(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a trace record to a JSON document. If a list entry caused the answer, add the reason of this entry."""
    question = Question(**record["question"])
    found = Explanation.of_fields(question, record["answer"])
    if found.list is not None:
        with suppress(EirError):
            states = heads_of(control.ask(config.state, "lists")["lists"])
            found = explained(config, states, found, datetime.now(UTC))
    return {
        "kind": CHECK, "time": record["time"], "protocol": question.protocol, "peer": question.peer, "origin_host": question.origin_host,
        "software_version": question.software_version, **found.as_json(), "text": found.as_text(),
    }  # fmt: skip


def _text(record: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    time = datetime.fromtimestamp(record["time"], UTC)
    at = f"{time:%H:%M:%S.%f}"[:-3] + "Z"
    if record["kind"] == CHECK:
        origin = f"{document['peer']} ({document['origin_host'] or '-'}), SIM {document['imsi'] or '-'}"
        return printable(f"{at} {document['protocol']} from {origin}\n{document['text']}", but="\n")
    if record["kind"] == WIRE:
        sizes = f"{len(record['request']) // 2} bytes asked, {len(record['answer']) // 2} bytes answered"
        return printable(f"{at} over {record['protocol']} from {record['peer']}: result {record['result']}; {sizes}")
    return f"{at} more than {record['told_max']} records a second: not all are shown"
