"""All commands of the command line, the examples in their help, and their exit status.

A command parses its arguments, calls a part and prints the result. Exit status: 0 done; 1 refused or answered "no", with the reason on standard
error; 2 wrong usage or configuration; 3 unknown (`status`) or undecided (`audit`).
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
from eir.cli.output import EXIT_INTERRUPTED, EXIT_NO, EXIT_USAGE, print_message, show_one
from eir.errors import ConfigError, EirError, ReleaseRefused, SetupFault, UsageError
from eir.node.observe import control
from eir.node.observe.control import ENVIRONMENT, READ_ONLY, RUN

PHONE, SIM = "001010010000014", "001010123456789"
BLOCKS, RELEASE = "blocked", "stolen-national-2.manifest.json"

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "init": (
        ("a node whose peer is one MME", "eir init --realm epc.mnc001.mcc001.3gppnetwork.org --peer mme1@192.0.2.10"),
        ("with the key of the agency that publishes the list", "eir init /etc/eir --key agency.pub --list stolen-national"),
    ),
    "serve": (
        ("run a node in this terminal", "eir serve -c config/eir.yaml"),
        ("apply the file whenever it changes", "eir serve --reload-on-change"),
    ),
    "status": (
        ("for people, and for Nagios", "eir status"),
        ("for scripts", "eir status --json"),
    ),
    "peers": (
        ("connected and missing peers", "eir peers"),
        ("for scripts", "eir peers --json"),
    ),
    "reload": (
        ("check the changed file, then apply it", "eir config && eir reload"),
        ("for a node with another configuration file", "eir reload -c /etc/eir/eir.yaml"),
    ),
    "drain": (
        ("end the node without losing a check", "eir drain"),
        ("for a node with another configuration file", "eir drain -c /etc/eir/eir.yaml"),
    ),
    "config": (
        ("check the file, and print its values", "eir config -c /etc/eir/eir.yaml"),
        ("every key, as a page", "eir config --reference"),
    ),
    "check": (
        ("what is this phone answered, and why?", f"eir check {PHONE}"),
        ("in this SIM's hands, asked by this MME", f"eir check {PHONE} --imsi {SIM} --origin-host mme1.example"),
        ("and what goes over the wire", f"eir check {PHONE} --protocol s13"),
    ),
    "why": (
        ("last answer for this phone", f"eir why {PHONE}"),
        ("that morning, with this SIM", f"eir why {PHONE} --imsi {SIM} --at 2026-11-20T06:00:00Z"),
    ),
    "trace": (
        ("a customer's checks, as they happen", f'eir trace --imsi {SIM} --reason "complaint 17"'),
        ("checks of a phone for 1 h, with a capture", f'eir trace --imei {PHONE} --for 1h --pcap phone.pcap --reason "complaint 17"'),
    ),
    "load": (
        ("what would come and go?", f"eir load --dry-run {RELEASE}"),
        ("put it in force", f"eir load {RELEASE}"),
        ("the same where much goes on purpose", f"eir load --force {RELEASE}"),
    ),
    "inbox": (
        ("load delivered releases, and list waiting ones", "eir inbox"),
        ("for scripts", "eir inbox --json"),
    ),
    "pull": (
        ("every list with a source", "eir pull"),
        ("one list, also releases that were refused", "eir pull stolen-national --force"),
    ),
    "acknowledge": (
        ("send acknowledgements to the publishers", "eir acknowledge"),
        ("as files, to be sent by mail", "eir acknowledge stolen-national --out acknowledgements"),
        ("this node's line for the publisher's file of nodes", "eir acknowledge --key"),
    ),
    "acknowledged": (
        ("nodes with the newest release, and late nodes", "eir acknowledged /srv/www/stolen-national"),
        ("where nodes have a day", "eir acknowledged /srv/www/stolen-national --within 24h"),
    ),
    "show": (
        ("the first entries of a list", "eir show stolen-national -n 20"),
        ("does it name this phone?", f"eir show stolen-national {PHONE}"),
        ("entry of a model", "eir show stolen-national 00101001"),
    ),
    "export": (
        ("the list as a data file", "eir export stolen-national -o stolen.csv"),
        ("only whole models", "eir export stolen-national --only tac"),
        ("phones whose period of grace ends in January", "eir export first-seen --ends-from 2027-01-01 --ends-to 2027-01-31"),
    ),
    "history": (
        ("the last month of a list", "eir history stolen-national --since 30d"),
        ("verify the chain of records", "eir history --verify"),
        ("for an auditor", "eir history --export record.jsonl"),
    ),
    "rollback": (
        ("show the list that would be restored", "eir rollback stolen-national --dry-run"),
        ("undo the last release", "eir rollback stolen-national"),
        ("undo all after release 41", "eir rollback stolen-national --to 41"),
    ),
    "backup": (
        ("one file, verified", 'eir backup "/srv/backup/eir-$(date +%F).tar"'),
        ("from a pod", "eir backup - >eir.tar"),
    ),
    "restore": (
        ("would it set anything back?", "eir restore --dry-run /srv/backup/eir.tar"),
        ("onto a new host, before the node starts", "eir restore /srv/backup/eir.tar"),
    ),
    "add": (
        ("block a phone, for two weeks", f'eir add {BLOCKS} {PHONE} --until 14d --reason "stolen, case 17"'),
        ("thousands of them", f'eir add {BLOCKS} --file recalled.csv --reason "recalled by its maker" --dry-run'),
        ("a whole model", f'eir add {BLOCKS} 00101001 --tac --reason "never approved"'),
    ),
    "remove": (
        ("a phone was found again", f'eir remove {BLOCKS} {PHONE} --reason "found"'),
        ("count the devices that would be removed", f'eir remove {BLOCKS} 00101001 --tac --dry-run --reason "approved"'),
    ),
    "publish": (
        ("a whole list", "eir publish --list stolen --serial 1 --expires 14d --key key stolen.csv"),
        ("additions and removals since release 1",
         "eir publish --list stolen --serial 2 --base 1 --expires 14d --key key stolen-added.csv stolen-removed.csv"),
        ("into a folder that nodes pull from", "eir publish --list stolen --serial 3 --expires 14d --key key --to /srv/www/stolen stolen.csv"),
    ),
    "offer": (
        ("a release that two people have signed", f"eir offer {RELEASE} --to /srv/www/stolen-national --key key"),
        ("keep deltas for nodes that were down for a month", f"eir offer {RELEASE} --to /srv/www/stolen-national --key key --keep 30d"),
    ),
    "probe": (
        ("as an MME", f"eir probe s13://192.0.2.1 {PHONE}"),
        ("as an AMF, with an access token", f"eir probe 'n5g://eir.example?token=token' {PHONE}"),
        ("a hundred times, ten a second", f"eir probe s13://192.0.2.1 {PHONE} --count 100 --rate 10"),
    ),
    "audit": (
        ("does an EIR block what the release lists?", f"eir audit {RELEASE} s13://192.0.2.1 --at-least 99.9%"),
        ("by what this node has on record", f"eir audit {RELEASE} --sightings --since 7d"),
    ),
    "seen": (
        ("times and SIMs of this phone", f"eir seen {PHONE}"),
        ("this SIM's last week", f"eir seen {SIM} --since 7d"),
    ),
    "lists": (
        ("what is in force?", "eir lists"),
        ("content of the store instead of the node", "eir lists --store --json"),
    ),
    "lists reset-serial": (
        ("after a release with the mistaken serial 20261129", 'eir lists reset-serial stolen-national --to 41 --reason "typo of the agency"'),
        ("what is next then", "eir load --dry-run stolen-national-42.manifest.json"),
    ),
    "lists abandon": (
        ("after the restore of an older backup", 'eir lists abandon blocked --reason "the backup of 1 December counts"'),
        ("what is in force then", "eir show blocked"),
    ),
    "peer disable": (
        ("before maintenance of an MME", "eir peer disable mme1"),
        ("what it is called", "eir peers"),
    ),
    "peer enable": (
        ("when the work is done", "eir peer enable mme1"),
        ("is it back?", "eir peers"),
    ),
    "feed user": (
        ("a register's user, with a generated password", "eir feed user register1 >>feed.users"),
        ("with a given password", "eir feed user register1 --password-file password >>feed.users"),
    ),
    "desk user": (
        ("a person who may change the list `own`", "eir desk user anna --role change --list own >>desk.users"),
        ("a person who only reads", "eir desk user vera >>desk.users"),
    ),
    "sightings": (
        ("how much is on record?", "eir sightings"),
        ("for scripts", "eir sightings --json"),
    ),
    "sightings forget": (
        ("delete the checks of a subscriber", f"eir sightings forget --imsi {SIM}"),
        ("is nothing left?", f"eir seen {SIM}"),
    ),
    "sightings import": (
        ("the log of the previous EIR", "eir sightings import old-eir.csv"),
        ("for scripts", "eir sightings import old-eir.parquet --json"),
    ),
    "sightings export": (
        ("yesterday's checks, for the register", "eir sightings export --out checks.csv"),
        ("those of another day", "eir sightings export --day 2026-11-27 --operator example --out checks.csv"),
    ),
    "figures": (
        ("the last month, as a page for the public", "eir figures --html figures.html"),
        ("for the regulator", "eir figures --month 2026-11 --json >operator-a.json"),
        ("the regulator's sum", "eir figures --merge operator-a.json operator-b.json --html country.html"),
    ),
    "first-seen import": (
        ("first sightings of the EIR that was here before", "eir first-seen import first-seen.csv"),
        ("the number of periods of grace that would be over, and that would begin", "eir first-seen import first-seen.csv --dry-run"),
        ("those of the checks on record", "eir first-seen import --from-sightings"),
    ),
    "first-seen undo": (
        ("the import of a wrong file", "eir first-seen undo"),
        ("for a script", "eir first-seen undo --json"),
    ),
    "tamper report": (
        ("findings of the last month with a high score", "eir tamper report"),
        ("all of two months, as CSV", "eir tamper report --since 60d --csv report.csv"),
        ("modules with one IMEI", "eir tamper report --batches"),
    ),
    "tamper show": (
        ("evidence of a finding", f"eir tamper show {PHONE}"),
        ("for a script", f"eir tamper show {PHONE} --json"),
    ),
    "tamper confirm": (
        ("after an inspection of the phone", f'eir tamper confirm {PHONE} --reason "seen at the customs office"'),
        ("its owner has two SIMs", f'eir tamper confirm {PHONE} --owner 001010000000017 --owner 001010000000018 --reason "bill and box"'),
        ("what is known of it", f"eir tamper show {PHONE}"),
    ),
    "tamper clear": (
        ("it was an honest one", f'eir tamper clear {PHONE} --reason "a mast at the border"'),
        ("what is known of it", f"eir tamper show {PHONE}"),
    ),
    "tamper forget-decision": (
        ("it was decided by mistake", f'eir tamper forget-decision {PHONE} --reason "the wrong phone"'),
        ("what is known of it", f"eir tamper show {PHONE}"),
    ),
    "tamper export": (
        ("copies of confirmed devices, by IMEI and IMSI", "eir tamper export --rows pairs --out copies.csv"),
        ("sign them as a release",
         "eir publish --list copies --serial 1 --expires 14d --key key copies.csv"),
        ("IMEIs to watch", "eir tamper export --rows tracked --out tracked.csv"),
    ),
}  # fmt: skip
WIDE = 74
"""Width of an example in the help, in columns."""


def format_examples(words: str) -> str:
    """Format the examples of a command for the end of its help."""
    lines = ["Examples:"]
    for what, line in EXAMPLES[words]:
        lines += [f"  # {what}", *_folded(f"  {line}")]
    return "\b\n" + "\n".join(lines)


def _folded(line: str) -> list[str]:
    """Fold an example that is too long into several lines, with a backslash at the end of each for the shell."""
    if len(line) <= WIDE:
        return [line]
    at = line.rindex(" -", 0, WIDE - 2)
    return [f"{line[:at]} \\", *_folded(f"      {line[at + 1 :]}")]


HELP = "An Equipment Identity Register: answers ME-Identity-Check over Diameter S13 from signed lists."
EPILOG = "Each command reads -c FILE, else $EIR_CONFIG, else config/eir.yaml, else /etc/eir/eir.yaml. 'eir COMMAND --help' explains a command."


class Group(NamedTuple):
    """Group of commands with the same first word."""

    commands: Mapping[str, str]
    """Second word → module of eir.cli and function."""
    alone: str | None = None
    """Module and function that run without a second word; None: the help is printed."""
    help: str | None = None
    """Help text of a group without `alone`."""


COMMANDS: dict[str, str | Group] = {
    "init": "first.init", "serve": "node.serve", "status": "node.status", "peers": "node.peers", "reload": "node.reload", "drain": "node.drain",
    "config": "node.show_config", "check": "asking.check", "why": "why.why", "trace": "trace.trace", "load": "releases.load", "inbox": "releases.inbox", "pull": "releases.pull", "acknowledge": "releases.acknowledge", "acknowledged": "releases.show_acknowledged",
    "show": "lists.show_list", "export": "lists.export_list", "history": "record.history", "rollback": "lists.rollback", "backup": "backup.backup", "restore": "backup.restore",
    "add": "lists.add", "remove": "lists.remove", "publish": "publisher.publish", "offer": "publisher.offer", "probe": "asking.probe", "audit": "audit.audit",
    "seen": "sightings.seen", "figures": "figures.figures",
    "lists": Group({"reset-serial": "lists.reset_serial", "abandon": "lists.abandon_list"}, alone="lists.lists"),
    "peer": Group({"disable": "node.peer_disable", "enable": "node.peer_enable"}, help="Take a peer out of service (DPR) or put it back."),
    "feed": Group({"user": "first.user"}, help="Users of the feed, by which a register sends rows."),
    "desk": Group({"user": "first.desk_user"}, help="Users of the desk, where persons change lists."),
    "sightings": Group({"forget": "sightings.forget", "import": "sightings.import_log", "export": "sightings.export"}, alone="sightings.sightings"),
    "first-seen": Group({"import": "grace.import_first_seen", "undo": "grace.undo_first_seen"}, help="Record of first sightings, by which periods of grace run."),
    "tamper": Group({"report": "tamper.report", "show": "tamper.show_one_device", "confirm": "tamper.confirm", "clear": "tamper.clear", "forget-decision": "tamper.forget", "export": "tamper.export"}, help="Find phones with a tampered identity."),
}  # fmt: skip
"""Module of eir.cli and function by command word, in the order of the help, groups last."""


class _Command(TyperCommand):
    """Typer command whose help shows arguments without their Python type."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                vars(parameter)["display_type_rich"] = _no_type  # only some versions of typer call it
        return parameters


def _no_type(**_: Any) -> None:
    """Return None, so that the help shows no type of an argument."""


def command_line(word: str | None = None) -> typer.Typer:
    """Build the command line with only the command or group `word`, because importing all commands would be slow.

    For an unknown word (for the help or a hint) the command line has all commands.
    """
    app = typer.Typer(
        name="eir", help=HELP, epilog=EPILOG, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(invoke_without_command=True)(_root)
    alone = word in COMMANDS
    for name, runs in COMMANDS.items():
        if alone and name != word:
            continue
        if isinstance(runs, Group):
            app.add_typer(_group(name, runs), name=name)
        else:
            app.command(name, cls=_Command, epilog=format_examples(name))(_function(runs))
    return app


def _group(word: str, of: Group) -> typer.Typer:
    if of.alone:
        examples = format_examples(word)
        group = typer.Typer(
            invoke_without_command=True, subcommand_metavar="[COMMAND]", rich_markup_mode=None, epilog=examples
        )
        group.callback()(_function(of.alone))
    else:
        group = typer.Typer(no_args_is_help=True, help=of.help, rich_markup_mode=None)
    for name, runs in of.commands.items():
        examples = format_examples(f"{word} {name}")
        group.command(name, cls=_Command, epilog=examples)(_function(runs))
    return group


def _function(runs: str) -> Callable[..., None]:
    module_name, _, name = runs.partition(".")
    module = import_module(f"eir.cli.{module_name}")
    function: Callable[..., None] = getattr(module, name)
    return function


def _root(
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", metavar="FILE", help="The configuration; may also stand behind COMMAND."),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if config is not None:
        os.environ["EIR_CONFIG"] = str(config)  # default of a command without -c behind it
    if version:
        print(f"eir {__version__}")
        raise typer.Exit


def run_read_only(socket: Path, arguments: Sequence[str]) -> int:
    """Send a read-only command to the node (`control_read`), print its output, and return its exit status."""
    folder = socket.absolute().parent
    try:
        reply = control.ask(folder, RUN, at=socket.name, arguments=list(arguments))
    except control.ControlError as e:
        if "status" not in arguments[:1]:
            raise
        word, status = ("UNKNOWN", 3) if isinstance(e, control.ControlDenied) else ("CRITICAL", 2)  # by Nagios
        document = {"state": word, "code": status, "summary": str(e)}
        show_one(document, f"EIR {word} - {e}", as_json="--json" in arguments)
        return status
    sys.stderr.write(reply["err"])
    sys.stdout.write(reply["out"])
    return int(reply["status"])


def _denied(error: EirError, word: str | None) -> EirError:
    """Return the error of a user with EIR_CONTROL. If the user lacks the permission for a command, it names the commands for read-only users."""
    if isinstance(error, ConfigError | control.ControlDenied) and isinstance(error.__context__, PermissionError):
        return EirError(control.refusal([word or ""]))
    return error


def _print_error(error: EirError) -> int:
    """Print an error to standard error, and return the exit status."""
    prefix = "eir: "
    if isinstance(error, ConfigError):
        prefix = ""
    elif isinstance(error, ReleaseRefused):
        prefix = f"refused ({error.reason}): "
    print_message(f"{prefix}{error}", "error")
    return EXIT_USAGE if isinstance(error, ConfigError | SetupFault | UsageError) else EXIT_NO


def main(word: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run the command line; only the module of the command's first word is imported.

    `arguments` replace those of the process.

    Errors become a message on standard error and an exit status.
    """
    socket = os.environ.get(ENVIRONMENT)
    try:
        try:
            if word in READ_ONLY and socket:
                given = sys.argv[1:] if arguments is None else arguments
                sys.exit(run_read_only(Path(socket), given))
            command_line(word)(arguments, prog_name="eir")
        finally:
            sys.stdout.flush()
    except UnicodeEncodeError as e:  # the text is an argument or the output; texts from files and peers are escaped
        if e.encoding == "utf-8":
            print_message("eir: an argument has octets that are not UTF-8", "error")
            sys.exit(EXIT_USAGE)
        print_message(f"eir: the output is in {e.encoding}, which lacks some characters: set LANG=C.UTF-8", "error")
        sys.exit(EXIT_NO)
    except EirError as e:
        sys.exit(_print_error(e if not socket else _denied(e, word)))
    except OSError as e:
        if e.errno != errno.EPIPE:  # EPIPE: the reader of a pipe, such as `head`, has ended
            print_message(f"eir: {e.filename or 'the output'}: {e.strerror}", "error")
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # the interpreter flushes the buffer again at its end
        sys.exit(EXIT_NO)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
