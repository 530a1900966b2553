"""Help of each command; manual page and completion of the package; and the file that commands read unasked."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from command_docs import bash, command_page, commands_of, is_runnable, man_page
from simulated.node import run_eir
from typer.main import get_command

from eir.cli.app import EXAMPLES, command_line
from eir.cli.asking import CLIENTS

ROOT = get_command(command_line())
LEAVES = [(names, command) for names, command in commands_of(ROOT) if names and is_runnable(command)]


def test_every_command_and_option_is_in_the_manual_page():
    page = man_page(ROOT).replace("\\-", "-")
    for names, command in LEAVES:
        part = re.search(rf'^\.SS "eir {" ".join(names)}[ "].*?(?=^\.S[SH])', page, re.MULTILINE | re.DOTALL)
        assert part, names
        for each in command.params:
            assert each.help, f"{names}: {each.name} says nothing of itself"
            assert (each.opts[0] if each.param_type_name == "option" else each.metavar) in part[0]


def test_the_page_of_commands_is_that_of_the_code():
    shown = (Path(__file__).parents[2] / "deploy" / "COMMANDS.md").read_text()
    assert shown == command_page(ROOT), "run: .venv/bin/python scripts/command_docs.py page >deploy/COMMANDS.md"


def reached(words):
    """The command that the words call; raises for what it does not take."""
    command = ROOT
    while hasattr(command, "commands") and (words[:1] and not words[0].startswith("-")):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words)
    return command


def test_every_command_has_examples_in_its_help_that_it_takes():
    assert {" ".join(names) for names, _ in LEAVES} == {*EXAMPLES}
    for names, command in LEAVES:
        assert max(map(len, command.epilog.splitlines())) <= 78
        text = command.epilog.removeprefix("\b\nExamples:\n").replace("\\\n", "")
        lines = [line.strip() for line in text.splitlines() if not line.startswith("  # ")]
        assert len(lines) == len(EXAMPLES[" ".join(names)]) in {2, 3}
        ours = [shlex.split(part) for line in lines for part in re.split(r" (?:&&|\|) | >+", line) if "eir " in part]
        assert len(ours) >= len(lines)
        assert all(program == "eir" for program, *_ in ours)
        assert command in [reached(words) for _, *words in ours]


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_page_is_one():
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-c"], input=man_page(ROOT), text=True, capture_output=True, check=True
    )
    assert done.stderr == ""
    shown = " ".join(re.sub(r".\x08", "", done.stdout).split())
    assert "eir load MANIFEST ..." in shown
    assert "-c, --config FILE" in shown


def completed(*words):
    script = bash(ROOT) + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _eir; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "--norc", "-uc", script, "bash", *words], text=True, capture_output=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["eir", "lo"], {"load"}),
        (["eir", "-c", "load", "p"], {"peers", "probe", "publish", "pull", "peer"}),
        (["eir", "load", "--"], {"--dry-run", "--force", "--config", "--json", "--help"}),
        (["eir", "load", "--config", "x", "y", "--dr"], {"--dry-run"}),
        (["eir", "publish", "--key", ""], set()),
        (["eir", "peer", "d"], {"disable"}),
        (["eir", "peer", "disable", "--c"], {"--config"}),
        (["eir", "load", "releases/"], set()),
    ],
)
def test_bash_completes(words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize("names", [names for names, _ in LEAVES], ids=" ".join)
def test_help_has_units_and_no_types(names, eir):
    assert not re.search(
        r"<\w+(\[\w+\])?>|\b(INTEGER|FLOAT|TEXT|PATH|BOOLEAN)\b(?! for )",
        shown := eir(*names, "--help").out.replace("--reason TEXT", ""),
    ), shown


def test_the_help_of_probe_has_a_table_of_parameters_for_each_protocol(eir):
    tables = eir("probe", "--help").out.partition("Options:")[0].split("://HOST[:PORT] asks as ")
    assert len(tables) == 1 + len(CLIENTS)
    for each, table in zip(CLIENTS.values(), tables[1:], strict=True):
        assert table.startswith(f"{each.client}:\n")
        rows = re.findall(r"^ +(\w+)  +(\S+ \S+)", table, re.MULTILINE)
        wanted = [(key.path, " ".join(key.says.split()[:2])) for key in each.probe_keys]
        assert [row for row in rows if row in wanted] == wanted


@pytest.mark.parametrize(
    ("there", "arguments", "variable", "read"),
    [
        ((), [], None, "config/eir.yaml"),
        (("system",), [], None, "system"),
        (("config", "system"), [], None, "config/eir.yaml"),
        (("system",), ["-c", "other.yaml"], None, "other.yaml"),
        (("system",), [], "named.yaml", "named.yaml"),
        (("system",), ["-c", "config/eir.yaml"], None, "config/eir.yaml"),
    ],
)
def test_which_configuration_is_read(there, arguments, variable, read, tmp_path, monkeypatch, constants):
    constants({"eir.cli.access.SYSTEM_CONFIG": str(tmp_path / "system")})
    (tmp_path / "config").mkdir()
    for name in there:
        (tmp_path / ("config/eir.yaml" if name == "config" else name)).write_text("nonsense: 1\n")
    monkeypatch.setenv("EIR_CONFIG", variable) if variable else monkeypatch.delenv("EIR_CONFIG", raising=False)
    done = run_eir("config", *arguments, env=dict(os.environ), cwd=tmp_path, status=2)
    assert done.stderr.splitlines()[0].split(":")[0].endswith(read)
