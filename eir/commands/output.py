"""Output of commands: results to standard output; messages, and bars of progress, to standard error.

Knows no command.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer

from eir.commands.forms import printable

EXIT_NO, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def say(message: str) -> None:
    """Print to standard error; names from the wire and from files cannot steer the terminal."""
    print(printable(message, but="\n"), file=sys.stderr)


def warn(event: str, *, reason: str | None = None, level: str = "warning", **fields: object) -> None:
    """Print what a part reports (an eir.errors.Report)."""
    say(f"{level}: {fields.get('detail') or reason or event}")


def fail(message: str, code: int = EXIT_NO) -> typer.Exit:
    """Say what is wrong; returns the exception that ends the command."""
    say(f"eir: {message}")
    return typer.Exit(code)


def print_json(document: object) -> None:
    """Print one document for scripts."""
    print(json.dumps(document, indent=2))


def show_one(document: object, text: str, *, as_json: bool) -> None:
    """Print one result as a JSON document, or as text for people."""
    if as_json:
        print_json(document)
    else:
        put(text)


def put(text: str) -> None:
    """Print text to standard output; reasons of lists and names from the wire and from files cannot steer the terminal."""
    print(printable(text, but="\n\t"))


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as a JSON document, or as a table for people."""
    if as_json:
        print_json(rows)
    else:
        from eir.commands.table import table  # noqa: PLC0415 - rich takes longer to import than many commands take to run

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(rows, columns, width=width), end="")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Draws one bar for each stage of the work; None where standard error is not a terminal.

    Called with the stage, how much of it is done, and how much there is (0: not known).
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - for those who see it
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
    """The file to write to, which comes into its place once it is whole; or standard output. A device or a pipe is written to as it is.

    `private`: only its owner may read it.
    """
    if out is None:
        yield sys.stdout
        return
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    place = out.resolve() if out.is_symlink() else out
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        mode = 0o600 if private else 0o666
        with open(
            unfinished, "x", encoding="utf-8", newline="", opener=lambda path, flags: os.open(path, flags, mode)
        ) as file:
            yield file
        unfinished.replace(place)
    except OSError as e:
        if e.filename == str(unfinished):
            e.filename = str(out)
        raise
    finally:
        unfinished.unlink(missing_ok=True)
