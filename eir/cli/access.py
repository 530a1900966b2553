"""Access of commands to the configuration and to the store, and the name of the user for the history."""

import asyncio
import getpass
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, TypeVar

import typer

from eir.cli.output import EXIT_USAGE, fail, print_message, warn
from eir.config import Config, Whereabouts, load_config, load_whereabouts
from eir.config.reader import read_file
from eir.device import strip_separators
from eir.errors import ConfigError, EirError, IdentifierError, StoreError
from eir.lists.log.change import Change
from eir.lists.log.journal import Journal, JournalBusy, JournalEvent
from eir.lists.log.store import LogStore
from eir.lists.record.settings import ListSettings
from eir.lists.stores.open import JOURNAL, SQLITE, open_store
from eir.node.observe import control
from eir.node.processes.state_folder import as_owner_of, check_form
from eir.schema import did_you_mean

DEFAULT_CONFIG, SYSTEM_CONFIG = Path("config/eir.yaml"), Path("/etc/eir/eir.yaml")
DENIED = ("cannot_open", "readonly")
"""Causes of a StoreError that missing permissions may explain."""
RECORDED_S, RECORDED_POLL_S = 5.0, 0.05
"""Seconds that a command waits for the journal of this host's node, and seconds between two attempts."""


def is_named(path: Path) -> bool:
    """Return True if the user named the configuration file `path` with -c or $EIR_CONFIG, False if `path` is a default.

    A default is one of the objects DEFAULT_CONFIG and SYSTEM_CONFIG.
    """
    return path is not DEFAULT_CONFIG and path is not SYSTEM_CONFIG


def _configuration_file(context: typer.Context, path: Path) -> Path:
    """Return the configuration file that the user named, or else the first readable default file."""
    source = context.get_parameter_source("config")
    if source is not None and source.name != "DEFAULT":
        return path
    unreadable = []
    for each in (DEFAULT_CONFIG, SYSTEM_CONFIG):
        try:
            each.open("rb").close()
        except FileNotFoundError:
            continue
        except OSError:
            unreadable.append(each)
            continue
        return each
    return unreadable[0] if unreadable else DEFAULT_CONFIG


def optional_config(path: Path) -> Path | None:
    """Return the path of the configuration file; None if no file was named and the default file is unreadable.

    Raises ConfigError if a file that the user named cannot be read.
    """
    try:
        read_file(path)
    except ConfigError:
        if is_named(path):
            raise
        return None
    return path


ConfigFile = Annotated[Path, typer.Option(
    "-c", "--config", envvar="EIR_CONFIG", metavar="FILE", help="The configuration.", readable=False, callback=_configuration_file, show_default=f"{DEFAULT_CONFIG}, or {SYSTEM_CONFIG}",
)]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]

T = TypeVar("T")
C = TypeVar("C", Config, Whereabouts)


def config_with_warnings(path: Path) -> Config:
    """Load the configuration, and print its warnings to standard error."""
    config = load_config(path)
    for warning in config.warnings:
        print_message(f"warning: {warning}")
    if config.inbox is not None and not config.inbox.is_dir():
        print_message(
            f"warning: the inbox {config.inbox} does not exist; create it, owned by the user that the node runs as"
        )
    return config


def whereabouts(path: Path) -> Whereabouts:
    """Load the locations of a node's state, store and lists, and print faults of the configuration file as warnings."""
    found = load_whereabouts(path)
    for problem in found.problems:
        print_message(f"warning: {problem}")
    return found


def other_config(path: Path) -> str:
    """Return a text about the second default file, if no file was named, `path` is the first default file, and both exist."""
    if path is not DEFAULT_CONFIG or not os.access(SYSTEM_CONFIG, os.F_OK):
        return ""
    return f"; {DEFAULT_CONFIG} was read, but {SYSTEM_CONFIG} exists too: -c FILE selects one"


def ask_node(config: Config | Whereabouts, command: str, **arguments: Any) -> Any:
    """Send a command to the node on the state folder of the configuration, and return the result, as eir.node.observe.control.ask.

    If no node runs there, the error names the second default file too, which another node may use.
    """
    try:
        return control.ask(config.state, command, **arguments)
    except control.ControlAway as e:
        raise control.ControlAway(f"{e}{other_config(config.path)}") from None


def opened(config: C) -> C:
    """Check that this program can use the state folder of a configuration, and return the configuration.

    Raises EirError if a newer program has changed the form of the folder.
    """
    check_form(config.state)
    return config


def with_store(
    config: Config | Whereabouts, work: Callable[[LogStore], Awaitable[T]], *, fresh: bool = True, reads: bool = False
) -> T:
    """Open the store, run `work` on it, close it, and return the result of `work`.

    If `fresh` is false, the state folder must exist. If `reads` is true, the store is not upgraded, and a missing SQLite file is not
    created.
    """
    folder = f"the state folder {config.state} (`state` in {config.path})"
    try:
        exists = config.state.is_dir()
    except PermissionError as e:
        raise EirError(f"{folder}: {e.strerror}{control.owner_advice(config.state)}") from None
    if not fresh and config.store == SQLITE and not exists:
        raise EirError(f"{folder} does not exist; eir load creates it")

    async def run() -> T:
        store = open_store(config.store, config.state, report=warn, creates=not reads)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        with acting_in(config.state):
            return asyncio.run(run())
    except StoreError as e:
        is_permitted = os.access(config.state, os.W_OK | os.X_OK)
        if e.cause not in DENIED or not exists or is_permitted:
            raise
        raise EirError(f"{e}{control.owner_advice(config.state)}") from None


@contextmanager
def acting_in(state: Path) -> Iterator[None]:
    """Act with the permissions of the state folder's owner during the `with` block.

    If root has just created the folder, a warning is printed.
    """
    existed = state.is_dir()
    try:
        with as_owner_of(state):
            yield
    finally:
        is_new = not existed and state.is_dir()
        if is_new and os.geteuid() == 0 and state.stat().st_uid == 0:
            print_message(
                f"warning: {state} was created and belongs to root; if the node runs as USER: chown -R USER {quote(str(state))}"
            )


def who() -> str:
    """Return the user who runs the command, for the history: login name, user before sudo, and host."""
    user = getpass.getuser()
    behind = os.environ.get("SUDO_USER")
    name = f"{behind} as {user}" if behind and behind != user else user
    return f"{name}@{socket.gethostname()}"


# Journal of this host's node


def record_event(config: Config, event: JournalEvent) -> bool:
    """Record an event in the journal of this host's node; return False on a host without a state folder, which has no journal.

    A running node appends the event. Without a node this program appends it.

    Raises:
        EirError: if the journal cannot be written.
    """
    if not config.state.is_dir():
        return False
    give_up = time.monotonic() + RECORDED_S
    while True:
        with suppress(control.ControlAway):
            control.ask(config.state, "record", event=asdict(event))
            return True
        try:
            with acting_in(config.state), journal_of(config) as journal:
                journal.append_event(event)
                return True
        except JournalBusy:  # the node starts or stops, or another command writes
            if time.monotonic() > give_up:
                raise
        time.sleep(RECORDED_POLL_S)


async def recorded(config: Config, store: LogStore, name: str, change: Change) -> bool:
    """Wait until the journal of this host's node has a change of a list; without a node, append the change to the journal.

    Returns False on a host without a state folder, whose command says "stored". If the journal fails, or lacks the change after
    RECORDED_S, print a warning and return False, because the change is stored and in force.
    """
    if not config.state.is_dir():
        return False
    give_up = time.monotonic() + RECORDED_S
    try:
        while True:
            try:
                if control.ask(config.state, "recorded", list=name, change=change.digest):
                    return True
            except control.ControlAway:
                with suppress(JournalBusy):
                    await _append_change(config, store, name, change)
                    return True
            if time.monotonic() > give_up:
                break
            await asyncio.sleep(RECORDED_POLL_S)
    except (EirError, OSError) as error:
        print_message(f"warning: the change is stored, but the journal of this host does not have it: {error}")
        return False
    print_message(
        f"warning: the change is stored, but after {RECORDED_S:g} s the node's journal does not have it; see eir status"
    )
    return False


async def _append_change(config: Config, store: LogStore, name: str, change: Change) -> None:
    """Append a stored change to the journal of a stopped node."""
    from eir.lists.log.node_journal import NodeJournal  # noqa: PLC0415 - numpy, only for a command that records
    from eir.lists.log.reader import ChangeRows, has_rows, read_rows  # noqa: PLC0415 - as above

    with acting_in(config.state), journal_of(config) as journal:
        head = (await store.heads()).get(name)
        entries = await store.log(name, change.generation - 1)
        rows = ChangeRows(change, None)
        for entry in entries:
            if entry.change.digest == change.digest and has_rows(entry):
                rows = await read_rows(store, name, entry)
        NodeJournal(journal).record(name, [rows], () if head is None else head.reasons)


@contextmanager
def journal_of(config: Config) -> Iterator[Journal]:
    """Open the journal of this host's node for writing during the `with` block.

    Raises:
        JournalBusy: if the node or another command writes the journal.
        JournalError: if the journal cannot be opened or written.
    """
    history = config.history
    journal = Journal(
        config.state / JOURNAL, keep=timedelta(days=history.keep), max_bytes=history.max_bytes,
        feed_max_bytes=history.feed_max_bytes, report=warn,
    )  # fmt: skip
    try:
        journal.open()
        yield journal
    finally:
        journal.close()


def imsi_named(config: Config, text: str) -> str:
    """Return the digits of an IMSI that a user typed. For a phone number (+NUMBER), return its IMSI in the table `numbers`.

    If the table has no IMSI for the number, the command ends with a usage error.
    """
    if not text.startswith("+"):
        return strip_separators(text)
    number, imsi = number_named(config, text)
    if config.numbers is None:
        raise fail(f"+{number}: {config.path} sets no table `numbers`", EXIT_USAGE)
    if imsi is None:
        raise fail(f"+{number}: {config.numbers} does not contain this number", EXIT_USAGE)
    return imsi


def number_named(config: Config, text: str) -> tuple[str, str | None]:
    """Return the digits of a number and its IMSI; None as IMSI if there is no table `numbers` or it lacks the number.

    Ends the command with a usage error if the text is not a number or the table cannot be read.
    """
    from eir.lists.rows.msisdn import NumbersError, msisdn_digits, read_numbers  # noqa: PLC0415 - numpy, only for a number

    number = f"+{strip_separators(text[1:])}"
    try:
        imsi = None if config.numbers is None else read_numbers(config.numbers).imsi(number)
        return msisdn_digits(number), imsi
    except (IdentifierError, NumbersError) as e:
        raise fail(f"{number}: {e}", EXIT_USAGE) from None


def list_settings(config: Config | Whereabouts, name: str) -> ListSettings:
    """Return the settings of a list; end the command with a usage error for an unknown list."""
    if name not in config.lists:
        raise no_list(name, config.lists, config.path)
    return config.lists[name]


def no_list(name: str, known: Collection[str], path: Path) -> typer.Exit:
    """Print that no list `name` exists in the file `path`, with the known names; return the exception that ends the command."""
    names = ", ".join(known) or "none"
    return fail(f"no list {name} in {path}; there are: {names}{did_you_mean(name, known)}", EXIT_USAGE)
