"""The command line as a whole: which commands there are, and how each ends.

A command reads its arguments, has a part do the work, and prints what came of it. Exit status: 0 done; 1 refused or answered "no",
with the reason on standard error; 2 wrong usage or configuration.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from eir import __version__
from eir.commands import asking, content, lists, manual, node, publisher, releases
from eir.commands.output import EXIT_INTERRUPTED, EXIT_NO, EXIT_USAGE, say
from eir.errors import ConfigError, EirError, ReleaseRefused, SetupFault

app = typer.Typer(
    name="eir",
    help="An Equipment Identity Register: answers ME-Identity-Check over Diameter S13 from signed lists.",
    epilog="Each command reads -c FILE, else $EIR_CONFIG, else config/eir.yaml, else /etc/eir/eir.yaml. 'eir COMMAND --help' says more.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
lists_app = typer.Typer(invoke_without_command=True, subcommand_metavar="[COMMAND]", rich_markup_mode=None)
peer_app = typer.Typer(no_args_is_help=True, help="Take a peer out of service (DPR) or put it back.", rich_markup_mode=None)

COMMANDS: dict[str, Callable[..., None]] = {
    "serve": node.serve, "status": node.status, "peers": node.peers, "reload": node.reload, "drain": node.drain, "config": node.show_config,
    "check": asking.check, "load": releases.load, "inbox": releases.inbox, "show": content.show_list, "export": content.export_list,
    "history": lists.history,
    "rollback": lists.rollback, "add": lists.add, "remove": lists.remove, "publish": publisher.publish, "probe": asking.probe,
    "completion": manual.completion, "manual": manual.manual,
}  # fmt: skip
"""In the order in which the help lists them."""


class _Command(TyperCommand):
    """A command whose help calls arguments by what they are, and not by types of Python."""

    def get_params(self, ctx: Any) -> list[Any]:
        found = super().get_params(ctx)
        for parameter in found:
            if parameter.param_type_name == "argument":
                vars(parameter)["display_type_rich"] = lambda **_: None  # some versions of typer ask for it, others do not
        return found


for name, command in COMMANDS.items():
    app.command(name, cls=_Command)(command)
lists_app.callback()(lists.lists)
lists_app.command("reset-serial", cls=_Command)(lists.reset_serial)
app.add_typer(lists_app, name="lists")
peer_app.command("disable", cls=_Command)(node.peer_disable)
peer_app.command("enable", cls=_Command)(node.peer_enable)
app.add_typer(peer_app, name="peer")


@app.callback(invoke_without_command=True)
def _root(
    config: Annotated[Path | None, typer.Option("-c", "--config", metavar="FILE", help="The configuration; may also stand behind COMMAND.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if config is not None:
        os.environ["EIR_CONFIG"] = str(config)  # where each command looks next if it has no -c of its own
    if version:
        print(f"eir {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors become a message on standard error and an exit status."""
    try:
        try:
            app(prog_name="eir")
        finally:
            sys.stdout.flush()
    except EirError as e:
        begin = "" if isinstance(e, ConfigError) else f"refused ({e.reason}): " if isinstance(e, ReleaseRefused) else "eir: "
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
