"""The command line as a whole: which commands there are, and how each ends.

A command reads its arguments, has a part do the work, and prints what came of it. Exit status: 0 done; 1 refused or answered "no",
with the reason on standard error; 2 wrong usage or configuration.
"""

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from eir import __version__
from eir.commands.examples import shown
from eir.commands.output import EXIT_INTERRUPTED, EXIT_NO, EXIT_USAGE, say, show_one
from eir.errors import ConfigError, EirError, ReleaseRefused, SetupFault
from eir.operate import control
from eir.operate.looking import ENVIRONMENT, LOOKS, RUN

HELP = "An Equipment Identity Register: answers ME-Identity-Check over Diameter S13 from signed lists."
EPILOG = "Each command reads -c FILE, else $EIR_CONFIG, else config/eir.yaml, else /etc/eir/eir.yaml. 'eir COMMAND --help' says more."


class Group(NamedTuple):
    """A word that begins several commands."""

    commands: Mapping[str, str]
    """Second word → what runs."""
    alone: str | None = None
    """The command that runs without a second word."""
    help: str | None = None
    """Help text of a group that runs nothing without a second word."""


COMMANDS: dict[str, str | Group] = {
    "init": "first.init", "serve": "node.serve", "status": "node.status", "peers": "node.peers", "reload": "node.reload", "drain": "node.drain",
    "config": "node.show_config", "check": "asking.check", "why": "why.why", "trace": "trace.trace", "load": "releases.load", "inbox": "releases.inbox", "pull": "sources.pull", "acknowledge": "sources.acknowledge", "acknowledged": "sources.show_acknowledged",
    "show": "content.show_list", "export": "content.export_list", "history": "record.history", "rollback": "lists.rollback",
    "add": "lists.add", "remove": "lists.remove", "publish": "publisher.publish", "offer": "publisher.offer", "probe": "asking.probe", "audit": "audit.audit",
    "seen": "sightings.seen", "completion": "manual.completion", "manual": "manual.manual",
    "lists": Group({"reset-serial": "lists.reset_serial"}, alone="lists.lists"),
    "peer": Group({"disable": "node.peer_disable", "enable": "node.peer_enable"}, help="Take a peer out of service (DPR) or put it back."),
    "feed": Group({"user": "feed.user"}, help="Users of the feed, by which a register sends rows."),
    "sightings": Group({"forget": "sightings.forget", "import": "sightings.take_in", "export": "sightings.export"}, alone="sightings.sightings"),
    "tamper": Group({"report": "tamper.report", "show": "tamper.show_one_device", "confirm": "tamper.confirm", "clear": "tamper.clear", "export": "tamper.export"}, help="Find phones with a tampered identity."),
}  # fmt: skip
"""Word → what runs: a module of eir.commands and its function. In the order in which the help lists them, groups last."""
ABOUT_ALL = {"completion", "manual"}
"""Commands that are about all of them."""


class _Command(TyperCommand):
    """A command whose help calls arguments by what they are, and not by types of Python."""

    def get_params(self, ctx: Any) -> list[Any]:
        found = super().get_params(ctx)
        for parameter in found:
            if parameter.param_type_name == "argument":
                vars(parameter)["display_type_rich"] = lambda **_: (
                    None
                )  # some versions of typer ask for it, others do not
        return found


def command_line(word: str | None = None) -> typer.Typer:
    """The command line for what begins with `word`: that command alone, since the modules of all take a while to import.

    All commands where there is no such word (then the help or a hint is wanted), or it is about all.
    """
    app = typer.Typer(
        name="eir", help=HELP, epilog=EPILOG, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(invoke_without_command=True)(_root)
    alone = word in COMMANDS and word not in ABOUT_ALL
    for name, runs in COMMANDS.items():
        if alone and name != word:
            continue
        if isinstance(runs, Group):
            app.add_typer(_group(name, runs), name=name)
        else:
            app.command(name, cls=_Command, epilog=shown(name))(_function(runs))
    return app


def _group(word: str, of: Group) -> typer.Typer:
    if of.alone:
        group = typer.Typer(
            invoke_without_command=True, subcommand_metavar="[COMMAND]", rich_markup_mode=None, epilog=shown(word)
        )
        group.callback()(_function(of.alone))
    else:
        group = typer.Typer(no_args_is_help=True, help=of.help, rich_markup_mode=None)
    for name, runs in of.commands.items():
        group.command(name, cls=_Command, epilog=shown(f"{word} {name}"))(_function(runs))
    return group


def _function(runs: str) -> Callable[..., None]:
    module, _, name = runs.partition(".")
    function: Callable[..., None] = getattr(import_module(f"eir.commands.{module}"), name)
    return function


def _root(
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", metavar="FILE", help="The configuration; may also stand behind COMMAND."),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if config is not None:
        os.environ["EIR_CONFIG"] = str(config)  # where each command looks next if it has no -c of its own
    if version:
        print(f"eir {__version__}")
        raise typer.Exit


def look(socket: Path, arguments: Sequence[str]) -> int:
    """Have the node run a command that only looks (`control_read`), and show what it says; returns the exit status."""
    try:
        said = control.ask(socket.absolute().parent, RUN, at=socket.name, arguments=list(arguments))
    except control.ControlError as e:
        if "status" not in arguments[:1]:
            raise
        unknown = isinstance(e, control.ControlDenied)  # what Nagios expects
        show_one(
            {"state": "UNKNOWN" if unknown else "CRITICAL", "code": 3 if unknown else 2, "summary": str(e)},
            f"EIR {'UNKNOWN' if unknown else 'CRITICAL'} - {e}", as_json="--json" in arguments,
        )  # fmt: skip
        return 3 if unknown else 2
    sys.stderr.write(said["err"])
    sys.stdout.write(said["out"])
    return int(said["status"])


def main(word: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run the command line, where its first word is known with that command alone. `arguments`: instead of this process's own.

    Errors become a message on standard error and an exit status.
    """
    try:
        try:
            if word in LOOKS and (at := os.environ.get(ENVIRONMENT)):
                sys.exit(look(Path(at), sys.argv[1:] if arguments is None else arguments))
            command_line(word)(arguments, prog_name="eir")
        finally:
            sys.stdout.flush()
    except EirError as e:
        begin = (
            ""
            if isinstance(e, ConfigError)
            else f"refused ({e.reason}): "
            if isinstance(e, ReleaseRefused)
            else "eir: "
        )
        say(f"{begin}{e}")
        sys.exit(EXIT_USAGE if isinstance(e, ConfigError | SetupFault) else EXIT_NO)
    except OSError as e:
        if e.errno != errno.EPIPE:  # a reader that went away is not told
            say(f"eir: {e.filename or 'the output'}: {e.strerror}")
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # the interpreter writes what is left when it ends
        sys.exit(EXIT_NO)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
