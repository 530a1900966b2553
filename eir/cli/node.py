"""Commands for the operator of a node: run it, show its status, control it, check its configuration."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, ask_node, config_with_warnings, whereabouts, with_store
from eir.cli.output import print_message, show, show_one
from eir.config import Config, line_of, load_config, load_whereabouts, render
from eir.errors import ConfigError, EirError, Problem
from eir.lists.record.reasons import unknown_reasons
from eir.node.observe import control

if TYPE_CHECKING:
    from eir.lists.log.store import LogStore

PeerName = Annotated[str, typer.Argument(metavar="NAME", help="The peer, as `eir peers` calls it.")]

ReloadOnChange = Annotated[
    bool, typer.Option("--reload-on-change", help="Reload whenever the configuration file is replaced or written.")
]
Reference = Annotated[
    bool, typer.Option("--reference", help="Print every key with its default and what it is for, and read no file.")
]
Connect = Annotated[
    bool, typer.Option("--connect", help="Open the store too, and warn of settings of Redis that endanger lists.")
]


PEER_COLUMNS = (
    "label", "protocol", "host", "realm", "direction", "address", "state", "watchdog", "since", "last_seen", "connections", "requests",
    "answers", "last_error",
)  # fmt: skip
PEER_COLUMNS_SHORT = ("label", "state", "address", "last_seen", "requests", "last_error")


def serve(config: ConfigFile = DEFAULT_CONFIG, reload_on_change: ReloadOnChange = False) -> None:
    """Run the node in the foreground until SIGTERM.

    SIGHUP applies a changed configuration; with --reload-on-change, a change of the file does so too. Logs go to
    standard error. Metrics and health are at the configured `http` address: /metrics, /live, /ready.
    """
    from eir.node.processes import manager  # noqa: PLC0415 - the other commands need neither uvloop nor the node

    checked = load_config(config)  # the node logs the warnings
    raise typer.Exit(manager.run(checked, reload_on_change=reload_on_change))


def status(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the status of the running node in one line.

    The exit status is what Nagios expects: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    try:
        report = _ask_node(config, "status")
    except control.ControlDenied as e:
        report = {"state": "UNKNOWN", "code": 3, "summary": str(e)}
    except control.ControlError as e:
        report = {"state": "CRITICAL", "code": 2, "summary": str(e)}
    except ConfigError as e:
        problems = "; ".join(map(str, e.problems))
        report = {"state": "UNKNOWN", "code": 3, "summary": f"cannot tell where to ask: {problems}"}
    show_one(report, f"EIR {report['state']} - {report['summary']}", as_json=as_json)
    raise typer.Exit(report["code"])


def peers(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the peers that are connected or expected.

    On a terminal that is too narrow for all columns, some columns are left out; --json has all.
    """
    rows = _ask_node(config, "peers")
    show(rows, PEER_COLUMNS, as_json=as_json, short=PEER_COLUMNS_SHORT)


def _ask_node(config: Path, command: str, **arguments: Any) -> Any:
    """Send a command to the node on the state folder of the configuration, and return its answer."""
    return ask_node(whereabouts(config), command, **arguments)


def peer_disable(name: PeerName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Take a peer out of service.

    The node sends a DPR to the peer, and opens and accepts no connection with it until `eir peer enable` or a restart
    of the node.
    """
    print(_ask_node(config, "peer_disable", name=name))


def peer_enable(name: PeerName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Put a peer back in service."""
    print(_ask_node(config, "peer_enable", name=name))


def reload(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Apply the changed configuration to the running node.

    SIGHUP does the same. If the file has a fault, nothing changes.
    """
    try:
        checked = config_with_warnings(config)
    except ConfigError:
        with suppress(EirError):  # the node rejects the file too, logs the fault and raises its alert
            control.ask(load_whereabouts(config).state, "reload")
        raise
    print(ask_node(checked, "reload"))


def drain(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Disconnect the peers of the running node and stop it.

    The node sends a DPR, so that peers use another EIR, and answers pending requests before it stops.
    """
    print(_ask_node(config, "drain"))


async def _warn_reasons(config: Config, store: "LogStore") -> None:
    """Read the heads of all lists, and print a warning about chosen reasons that a list lacks."""
    heads = await store.heads()
    for name, settings in config.lists.items():
        head = heads.get(name) if settings.reasons else None
        fault = unknown_reasons(head.reasons, settings.reasons) if head is not None else ""
        if fault:
            line = line_of(config.path, "lists", name, "reasons")
            print_message(f"warning: {Problem(str(config.path), line, f'list {name}: {fault}')}")


def show_config(
    config: ConfigFile = DEFAULT_CONFIG, reference: Reference = False, connect: Connect = False, as_json: Json = False
) -> None:
    """Check the configuration and print it with all defaults.

    Passwords are hidden.
    """
    if reference:
        from eir.config.keys import reference as rows  # noqa: PLC0415 - only for --reference
        from eir.config.keys import reference_page  # noqa: PLC0415 - only for --reference

        show_one(rows(), reference_page().rstrip(), as_json=as_json)
        return
    checked = config_with_warnings(config)
    if checked.numbers is not None:
        from eir.lists.rows.msisdn import NumbersError, read_numbers  # noqa: PLC0415 - numpy, only for a table of numbers

        try:
            read_numbers(checked.numbers)
        except NumbersError as e:
            print_message(f"warning: numbers: {e}")
    if connect:
        with_store(checked, partial(_warn_reasons, checked), reads=True)
    show_one(checked.shown, render(checked).rstrip(), as_json=as_json)
