"""What the README says is so: its commands parse and run, its tables are those of the code, the files that it names are there."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest
import typer
import yaml
from node import until

from eir.commands.app import app
from eir.operate.metrics import FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = typer.main.get_command(app)
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SEPARATORS = {"&&", "||", ";", "|", "(", ")", "&", ">", "<", "<<"}
PATIENCE_S = 60


def section(heading):
    """The text below a heading, up to the next of its level."""
    level = heading.partition(" ")[0]
    return re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def table(text):
    """The rows of the first table in the text, as lists of cells without their heads."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def simple_commands(block):
    """The words of each command in a block, without assignments, redirections and what only says as whom it runs."""
    for line in re.sub(r"<<(\w+)\n.*?^\1$", "", block.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            command = list(takewhile(lambda word: word not in SEPARATORS, words))
            words = words[len(command) + 1 :]
            while command and (command[0] in {"!", "sudo", "env", "-u", "eir", "export"} or "=" in command[0]):
                if command[0] == "eir" and command[1:] and command[1] != "env":
                    break
                command = command[1:]
            if command:
                yield command


def resolve(words):
    """A command of ours by its words: (command, words that are left)."""
    command = COMMANDS
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no such command: eir {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options_of(command):
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: shlex.split(block, comments=True)[0])
def test_each_block_is_shell(block):
    done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


OURS = [words for block in BLOCKS for words in simple_commands(block)]


@pytest.mark.parametrize("words", [w for w in OURS if Path(w[0]).name == "eir"], ids=" ".join)
def test_each_command_of_ours_parses(words):
    command, arguments = resolve(words[1:])
    assert command.make_context(command.name, arguments)  # raises a usage error for what the command does not take


def test_each_script_is_there():
    scripts = {words[0] for words in OURS if words[0].startswith("scripts/")} | set(re.findall(r"`(scripts/\w+)", README))
    assert scripts >= {"scripts/demo", "scripts/test"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_table_of_commands_is_that_of_the_program():
    said = {}
    for name, what in table(section("## Commands")):
        command, left = resolve(re.match(r"`eir ([^`]*)`", name)[1].split())
        said[id(command)] = command
        named = {word for word in left if word.startswith("-")} | set(re.findall(r"`(--[\w-]+)`", what))
        assert named <= options_of(command), f"{name}: {named - options_of(command)}"
    assert "eir peer enable NAME" in README
    missing = [name for name, command in COMMANDS.commands.items() if name != "peer" and id(command) not in said]
    assert not missing, f"not in the README's table: {missing}"


def test_each_file_that_is_named_is_there():
    named = set(re.findall(r"(?<![\w/.-])(?:eir|scripts|config|deploy|tests)/[\w./-]*[\w/]", README))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]


def test_each_link_within_the_page_leads_somewhere():
    headings = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]*)\)", README))
    assert links
    assert links <= headings, links - headings


def test_the_table_of_metrics_is_that_of_the_code():
    expected = [
        [f"`{family.name}`", family.kind, ", ".join(f"`{label}`" for label in family.labels) or "-", family.help] for family in FAMILIES
    ]
    assert table(section("## Metrics")) == expected


def test_other_text_names_no_metric_that_is_none():
    names = {family.name for family in FAMILIES}
    assert set(re.findall(r"\beir_[a-z_]+\w", README)) <= names


def test_each_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = re.compile(r"[\w.-]+")
    runtime = {name.match(each)[0] for each in project["dependencies"]}
    text = section("## Dependencies")
    assert {cells[0].strip("`") for cells in table(text)} == runtime
    for_tests = {name.match(each)[0] for each in project["optional-dependencies"]["test"]}
    assert not [each for each in for_tests if f"`{each}`" not in text]


def test_each_alert_has_its_advice():
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    advised = [name for cells in table(section("### What to do when…")) for name in re.findall(r"`(Eir\w+)`", cells[0])]
    assert sorted(advised) == sorted(alerts)
    assert set(re.findall(r"\bEir[A-Z]\w+", README)) == alerts


def test_the_users_of_redis_are_those_that_are_tested():
    # tests/faults/test_acl.py takes their rights from here, and holds them to be enough and none of them too much.
    assert re.findall(r"^user (\w+) ", README, re.MULTILINE) == ["worker", "loader"]


def test_log_events_that_are_named_are_ones():
    source = "".join(path.read_text() for path in (ROOT / "eir").rglob("*.py"))
    texts = README + (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    events = set(re.findall(r"event=(\w+)", texts))
    assert events
    assert not [event for event in events if f'"{event}"' not in source]


def test_it_can_be_read_in_one_go():
    assert len(README.splitlines()) < 500


def test_a_release_made_with_openssh_alone_loads(site):
    (block,) = (block for block in BLOCKS if "ssh-keygen -Y sign" in block)
    folder = site.folder / "agency"
    folder.mkdir()
    (folder / "stolen-2.csv").write_text("imei,reason\n35209900176148,stolen\n35209900176149,lost\n")
    site.configure(lists={"stolen-national": {"signers": "signers"}}, policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]})
    environment = {**os.environ, "KEY": str(site.publisher.key), "TZ": "Asia/Kolkata"}
    subprocess.run(["sh", "-euc", block], cwd=folder, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
    (report,) = site.json("load", folder / "stolen-national-2.manifest.json")
    assert (report["serial"], report["entries"]) == (2, 2)


def test_the_tour_goes_as_it_says(tmp_path):
    """In a copy of the repository: `scripts/demo --stay`, and beside it each block of the tour."""
    for name in ("scripts", "config", "eir", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    # The environment of this test run takes the part of the one that the demo would make.
    environment_folder = tmp_path / ".venv"
    (environment_folder / "bin").mkdir(parents=True)
    for name in ("python", "eir"):
        (environment_folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {"-m eir " if name == "eir" else ""}"$@"\n')
        (environment_folder / "bin" / name).chmod(0o755)
    (environment_folder / "installed").touch()
    bare = {name: value for name, value in os.environ.items() if name not in {"EIR_CONFIG", "COLUMNS", "FORCE_COLOR"}}
    shown = tmp_path / "shown"
    with shown.open("w") as out:
        demo = subprocess.Popen(["scripts/demo", "--stay"], cwd=tmp_path, stdout=out, stderr=out, env=bare, start_new_session=True)
    try:
        def serving():
            assert demo.poll() is None, shown.read_text()
            return "Serving until" in shown.read_text()

        until(serving, patience_s=PATIENCE_S)
        address = re.search(r"may connect to (\S+)", shown.read_text())[1]
        tour = re.findall(r"^```sh\n(.*?)^```", section("## A five-minute tour"), re.MULTILINE | re.DOTALL)
        script = "\n".join(["set -eux", *tour]).replace("eir probe 127.0.0.1 ", f"eir probe {address} ")
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=bare, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
        second = subprocess.run(["scripts/demo"], cwd=tmp_path, env=bare, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
        assert demo.poll() is None
    finally:
        os.killpg(demo.pid, signal.SIGTERM)
        demo.wait(PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    # The folder of the one that served is still there, its store included.
    assert (second.returncode, "end it first" in second.stderr) == (1, True), second
    assert (tmp_path / "var/demo/config/var").is_dir()
    answers = re.findall(r"^(\d+): (\w+)$", done.stdout, re.MULTILINE)
    stolen, mistaken = "001010010000014", "00101007000009"
    assert answers == [(stolen, "blacklisted"), (mistaken, "blacklisted"), (mistaken, "whitelisted")]
    assert done.stdout.startswith("EIR OK")
    assert re.search(rf"{mistaken} +- +whitelisted +2001", done.stdout)
    assert "would load" in done.stderr
    assert "rollback" in done.stdout
    assert re.search(r"tracked-2.manifest.json: refused \(digest\)", done.stderr), done.stderr
    alone = subprocess.run(["scripts/demo"], cwd=tmp_path, env=bare, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "The node has ended" in alone.stdout.splitlines()[-1]
