"""Manual page and shell completion, generated from the commands."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from eir import __version__
from eir.cli.access import DEFAULT_CONFIG, ConfigFile
from eir.cli.output import EXIT_USAGE, fail
from eir.config import load_config, load_whereabouts
from eir.node.observe import control

SHELLS = ("bash", "zsh", "fish")

_FILES = {
    "config/eir.yaml, /etc/eir/eir.yaml": "The configuration; of those that can be read the first, unless $EIR_CONFIG or -c names another.",
    "/var/lib/eir": "The usual state folder of a service: lists, last good copies, control socket.",
}
_STATUSES = {
    "0": "Done.",
    "1": 'Refused, or answered "no"; the reason is on standard error.',
    "2": "Wrong usage or configuration.",
    "3": "Unknown (`eir status`) or undecided (`eir audit`).",
}


def manual(context: typer.Context) -> None:
    """Print the manual page.

    The page is made from the help of all commands. To install it: eir manual >/usr/local/share/man/man1/eir.1
    """
    print(man_page(context.find_root().command), end="")


def _list_names(config: Path) -> Iterable[str]:
    found = load_whereabouts(config)
    names = [*found.lists]
    record = found.shown.get("first_seen")
    if record:
        names.append(record["list"])
    return names


def _peer_names(config: Path) -> Iterable[str]:
    """Return the names of the peers, from the running node or else from the configuration."""
    state = load_whereabouts(config).state
    try:
        rows = control.ask(state, "peers")
        return dict.fromkeys(row["label"] for row in rows)
    except control.ControlError:
        return [peer.label for peer in load_config(config).peers]


NAMES: dict[str, Callable[[Path], Iterable[str]]] = {"lists": _list_names, "peers": _peer_names}
"""Functions that return the names for completion, by kind."""


def _named_by(names: tuple[str, ...], command: Any) -> str:
    """Return `lists` if a command's first argument is the name of a list, `peers` for the name of a peer, else an empty text."""
    metavars = [each.metavar for each in _arguments(command)]
    if metavars[:1] in (["LIST"], ["[LIST]"]):
        return "lists"
    if names[:1] == ("peer",) and metavars[:1] == ["NAME"]:
        return "peers"
    return ""


def completion(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="SHELL", help=f"{', '.join(SHELLS)}; or {' or '.join(NAMES)}: the names that such a script offers.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Print the completion script for a shell.

    For bash, in ~/.bashrc: eval "$(eir completion bash)"; for zsh the same in ~/.zshrc; for fish: eir completion fish | source
    """
    if shell in NAMES:
        print("\n".join(NAMES[shell](config)))
        return
    if shell not in SHELLS:
        raise fail(f"{shell}: expected {', '.join((*SHELLS, *NAMES))}", EXIT_USAGE)
    command = context.find_root().command
    script = fish(command) if shell == "fish" else bash(command, zsh=shell == "zsh")
    print(script, end="")


def commands_of(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command and all its subcommands, each with the words that call it."""
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, (*names, name))


def _arguments(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "argument"]


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def is_runnable(command: Any) -> bool:
    """Return True if the command runs by itself, and does not only group subcommands."""
    return not hasattr(command, "commands") or bool(command.invoke_without_command)


def _first_sentence(command: Any) -> str:
    first = (command.help or "").split("\n\n")[0]
    return " ".join(first.split())


def man_page(root: Any) -> str:
    """Render the manual page (section 1) in roff with the man macros."""
    lines = [
        f'.TH EIR 1 "" "eir {__version__}" "Equipment Identity Register"', ".SH NAME", f"eir \\- {_roff(_first_sentence(root))}", ".SH SYNOPSIS",
        ".B eir", "COMMAND [OPTIONS] [ARGUMENTS]", ".SH COMMANDS",
    ]  # fmt: skip
    for names, command in commands_of(root):
        if names and is_runnable(command):
            lines += _command_section(names, command)
    for title, entries in (("FILES", _FILES), ("EXIT STATUS", _STATUSES)):
        lines.append(f".SH {title}")
        for name, text in entries.items():
            lines += [".TP", f".B {_roff(name)}", _roff(text)]
    return "\n".join(lines) + "\n"


def _command_section(names: tuple[str, ...], command: Any) -> list[str]:
    arguments = [each.metavar if each.nargs == 1 else f"{each.metavar} ..." for each in _arguments(command)]
    heading = _roff(" ".join((*names, *arguments)))
    lines = [f'.SS "eir {heading}"']
    paragraphs = (command.help or "").replace("\b\n", "").split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if number:
            lines.append(".PP")
        lines.append(_roff(" ".join(paragraph.split())))
    for each in command.params:
        name = each.metavar
        if each.param_type_name == "option":
            options = ", ".join(each.opts)
            name = f"{options} {each.metavar}" if each.metavar else options
        lines += [".TP", f".B {_roff(name)}", _roff(each.help or "")]
    examples = (command.epilog or "").removeprefix("\b\n").splitlines()
    return [*lines, ".PP", ".EX", *map(_roff, examples), ".EE"]


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def bash(root: Any, *, zsh: bool = False) -> str:
    """Render a completion script for bash, or for zsh with its bash compatibility.

    It completes commands, options, and names of lists and peers, else files.
    """
    cases, group_names, value_options = list[str](), list[str](), set[str]()
    offers: dict[str, list[str]] = {kind: [] for kind in NAMES}
    for names, command in commands_of(root):
        line = " ".join(names)
        subcommands = getattr(command, "commands", {})
        options = [option for each in _options(command) for option in each.opts]
        words = " ".join([*subcommands, *options, "-h", "--help"])
        cases.append(f'    "{line}") words="{words}" ;;')
        if names and subcommands:
            group_names.append(line)
        for each in _options(command):
            if not each.is_flag:
                value_options.update(each.opts)
        kind = _named_by(names, command)
        if kind:
            offers[kind].append(f'"0 {line}"')
    groups = "|".join(group_names)
    with_value = "|".join(sorted(value_options))
    dynamic = "\n".join(
        f'    {"|".join(commands)}) words="$words $(EIR_CONFIG="${{config:-${{EIR_CONFIG-}}}}" "${{COMP_WORDS[0]}}" completion {kind} 2>/dev/null)" ;;'
        for kind, commands in offers.items()
    )
    begin = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{begin}_eir() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="" words="" config="" places=0 at
  for ((at = 1; at < COMP_CWORD; at++)); do
    case "${{COMP_WORDS[at]}}" in
      -c|--config) ((at++)); config="${{COMP_WORDS[at]}}" ;;
      {with_value}) ((at++)) ;;
      -*) ;;
      *) case "$command" in
           "") command="${{COMP_WORDS[at]}}" ;;
           {groups}) command="$command ${{COMP_WORDS[at]}}" ;;
           *) ((places += 1)) ;;
         esac ;;
    esac
  done
  case "$command" in
{chr(10).join(cases)}
  esac
  COMPREPLY=()
  case "${{COMP_WORDS[COMP_CWORD - 1]}}" in {with_value}) return ;; esac
  case "$places $command" in
{dynamic}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _eir eir
"""


def fish(root: Any) -> str:
    """Render a completion script for fish."""
    lines = []
    for names, command in commands_of(root):
        tests = [f"__fish_seen_subcommand_from {name}" for name in names] or ["__fish_use_subcommand"]
        complete = f"complete -c eir -n {_quoted('; and '.join(tests))}"
        for name, inner in getattr(command, "commands", {}).items():
            lines.append(f"{complete} -f -a {name} -d {_quoted(_first_sentence(inner))}")
        kind = _named_by(names, command)
        if kind:
            lines.append(f"{complete} -f -a '(eir completion {kind} 2>/dev/null)'")
        for each in _options(command):
            flags = [f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}" for option in each.opts]
            if not each.is_flag:
                flags.append("-r")
            lines.append(f"{complete} {' '.join(flags)} -d {_quoted(each.help or '')}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = re.sub(r"(['\\])", r"\\\1", text)
    return f"'{escaped}'"
