"""Output of commands: results on standard output; messages and progress bars on standard error.

Values are formatted for people: times in UTC, `-` for an absent value, control characters escaped.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import typer

from eir.disk import open_named, open_replacement
from eir.node.observe.log import with_priority
from eir.schema import parse_duration

NOTHING = "-"


def cell(value: Any, column: str) -> str:
    """Format a value for a column of a table; the values of a list are separated by commas."""
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, list):
        return ", ".join(cell(each, column) for each in value)
    form = FORMS.get(column, str)
    return printable(form(value))


def printable(text: str, *, but: str = "") -> str:
    """Escape the control characters in a text. `but`: characters to keep unescaped.

    Names come from the wire and from files, and must not control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else f"\\x{ord(c):02x}" for c in text)


def minute(value: str | float) -> str:
    """Format a time (ISO 8601 or Unix seconds) in UTC to the minute."""
    if not value:
        return NOTHING
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def second(value: str) -> str:
    """Format a time (ISO 8601) in UTC to the second."""
    return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def principal(signer: str) -> str:
    """Return the name of a signer without the fingerprint of its key."""
    return signer.partition(" SHA256:")[0]


FORMS: dict[str, Callable[[Any], str]] = {
    "time": second, **dict.fromkeys(("issued", "expires", "loaded", "since", "first_seen", "last_seen"), minute), "signers": principal,
}  # fmt: skip
"""Formatting functions of columns, by name."""


EXIT_NO, EXIT_USAGE, EXIT_UNDECIDED, EXIT_INTERRUPTED = 1, 2, 3, 130


def print_message(message: str, level: str = "warning") -> None:
    """Print a message to standard error, with control characters escaped.

    `level`: priority of the lines if standard error is the journal's.
    """
    print(with_priority(level, printable(message, but="\n")), file=sys.stderr)


def print_warning(text: str) -> None:
    """Print a warning to standard error."""
    print_message(f"warning: {text}")


def warn(event: str, *, reason: str | None = None, level: str = "warning", **fields: object) -> None:
    """Print an event to standard error. Commands pass this function as their `Report` callback (eir.errors)."""
    text = fields.get("detail") or reason or event
    print_message(f"{level}: {text}", level)


def fail(message: str, code: int = EXIT_NO) -> typer.Exit:
    """Print an error message; return the exception that ends the command."""
    print_message(f"eir: {message}", "error")
    return typer.Exit(code)


def duration(
    text: str, option: str, *, least: timedelta = timedelta(microseconds=1), most: timedelta = timedelta.max
) -> timedelta:
    """Parse the duration that an option gives; end the command if it is invalid or outside the limits."""
    with suppress(ValueError):
        given = parse_duration(text)
        if least <= given <= most:
            return given
    limit = ""
    if most != timedelta.max:
        limit = f" up to {most.total_seconds() / 3600:g}h"
    raise fail(f"{option} {text}: expected a duration{limit}, a number and a unit: 14d, 36h, 90m or 20s", EXIT_USAGE)


def moment(text: str, option: str = "--since") -> datetime | None:
    """Parse the time that an option gives, in UTC; None if it is empty. An invalid time ends the command."""
    if not text:
        return None
    with suppress(ValueError):
        return datetime.now(UTC) - parse_duration(text)
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        forms = "an age such as 7d, a day such as 2026-11-20, or a time such as 2026-11-20T06:00:00Z"
        raise fail(f"{option} {text}: expected {forms}", EXIT_USAGE) from None


def print_json(document: object) -> None:
    """Print a document as JSON, for scripts."""
    print(json.dumps(document, indent=2))


def show_one(document: object, text: str, *, as_json: bool) -> None:
    """Print one result as a JSON document, or as text for people."""
    if as_json:
        print_json(document)
    else:
        print_text(text)


def print_text(text: str) -> None:
    """Print text to standard output, with control characters escaped."""
    print(printable(text, but="\n\t"))


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, width: int | None, short: Sequence[str] = ()
) -> str:
    """Format rows as a table for people, as `render_table`."""
    from eir.cli.table import render_table  # noqa: PLC0415 - rich takes longer to import than many commands take to run

    return render_table(rows, columns, cell, width=width, short=short)


def show(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, short: Sequence[str] = ()
) -> None:
    """Print rows as a JSON document, or as a table for people.

    `short`: columns of the table if the terminal is too narrow for all columns.
    """
    if as_json:
        print_json(rows)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(rows, columns, width=width, short=short), end="")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function that draws progress bars on the terminal; yield None if standard error is not a terminal.

    The function is called with the stage, the completed amount and the total amount (0: unknown).
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description:<9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield advance


@contextmanager
def written_to(out: Path | None, *, private: bool = False) -> Iterator[TextIO]:
    """Open a temporary file that replaces `out` when it is complete. If `out` is `None`, yield standard output instead.

    A device or a pipe is written directly. If `private` is true, only the owner can read the file.
    """
    if out is None:
        yield sys.stdout
        return
    if out.exists() and not out.is_file():
        opened: AbstractContextManager[BufferedWriter] = open_named(out, out)
    else:
        opened = open_replacement(out.resolve() if out.is_symlink() else out, mode=0o600 if private else None)
    with opened as file, TextIOWrapper(file, encoding="utf-8", newline="") as stream:
        yield stream
