"""Manual page and bash completion of the package, and deploy/COMMANDS.md, generated from the commands: `command_docs.py man`, `bash` or `page`."""

import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from eir import __version__
from eir.cli.app import EPILOG, command_line

FILES = {
    "config/eir.yaml, /etc/eir/eir.yaml": "The configuration; of those that can be read the first, unless $EIR_CONFIG or -c names another.",
    "/var/lib/eir": "The usual state folder of a service: lists, last good copies, control socket.",
}
STATUSES = {
    "0": "Done.",
    "1": 'Refused, or answered "no"; the reason is on standard error.',
    "2": "Wrong usage or configuration.",
    "3": "Unknown (`eir status`) or undecided (`eir audit`).",
}


def commands_of(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command and all its subcommands, each with the words that call it."""
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, (*names, name))


def _arguments(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "argument"]


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def _usage(names: tuple[str, ...], command: Any) -> str:
    """Return the words of a command with its arguments; optional arguments are in brackets."""
    arguments = []
    for each in _arguments(command):
        metavar = each.metavar if each.nargs == 1 else f"{each.metavar} ..."
        arguments.append(metavar if each.required or "[" in metavar else f"[{metavar}]")
    return " ".join((*names, *arguments))


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
    for title, entries in (("FILES", FILES), ("EXIT STATUS", STATUSES)):
        lines.append(f".SH {title}")
        for name, text in entries.items():
            lines += [".TP", f".B {_roff(name)}", _roff(text)]
    return "\n".join(lines) + "\n"


def _command_section(names: tuple[str, ...], command: Any) -> list[str]:
    lines = [f'.SS "eir {_roff(_usage(names, command))}"']
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
        lines += [".TP", f".B {_roff(name)}", _roff((each.help or "").replace("\b\n", ""))]
    examples = (command.epilog or "").removeprefix("\b\n").splitlines()
    return [*lines, ".PP", ".EX", *map(_roff, examples), ".EE"]


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def bash(root: Any) -> str:
    """Render a completion script for bash. It completes commands and options, else files."""
    cases, group_names, value_options = list[str](), list[str](), set[str]()
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
    groups = "|".join(group_names)
    with_value = "|".join(sorted(value_options))
    return f"""_eir() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="" words="" at
  for ((at = 1; at < COMP_CWORD; at++)); do
    case "${{COMP_WORDS[at]}}" in
      {with_value}) ((at++)) ;;
      -*) ;;
      *) case "$command" in
           "") command="${{COMP_WORDS[at]}}" ;;
           {groups}) command="$command ${{COMP_WORDS[at]}}" ;;
         esac ;;
    esac
  done
  case "$command" in
{chr(10).join(cases)}
  esac
  COMPREPLY=()
  case "${{COMP_WORDS[COMP_CWORD - 1]}}" in {with_value}) return ;; esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _eir eir
"""


def command_page(root: Any) -> str:
    """Render deploy/COMMANDS.md."""
    rows = [
        f"| `eir {_usage(names, command).replace('|', chr(92) + '|')}` | {_first_sentence(command)} |"
        for names, command in commands_of(root)
        if names and is_runnable(command)
    ]
    statuses = [f"| {status} | {text} |" for status, text in STATUSES.items()]
    return "\n".join([
        "# Commands", "", "For users of the command line. `scripts/command_docs.py page` generates this page.", "",
        EPILOG.replace("-c FILE", "`-c FILE`").replace("$EIR_CONFIG", "`$EIR_CONFIG`").replace("'eir COMMAND --help'", "`eir COMMAND --help`"),
        "With `--json` most commands print a document for scripts.", "",
        "| Exit status | Meaning |", "|---|---|", *statuses, "", "| Command | Action |", "|---|---|", *rows, "",
    ])  # fmt: skip


if __name__ == "__main__":
    print({"man": man_page, "bash": bash, "page": command_page}[sys.argv[1]](get_command(command_line())), end="")
