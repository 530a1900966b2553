"""What the pages say is so: commands parse and run, tables are those of the code, links and files are there, examples do what they claim."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
import typer
import yaml
from pages import blocks, section
from simulated.certificates import Authority
from simulated.commands import commands
from simulated.issuer import Issuer
from simulated.node import LISTED, TRACKED, until
from simulated.patience import PROGRAM_S
from simulated.register import basic
from simulated.servers import Server, programs
from simulated.wire import EIR, REALM

from eir.cli.app import command_line
from eir.cli.asking import CLIENTS, probe_of
from eir.config import load_config
from eir.node.observe.metrics import FAMILIES
from eir.wire.ss7.sccp import point_code
from eir.wire.web.passwords import user_line

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", "[!.]*/*.md", "eir/**/*.md", "deploy/*/*.md")
    for path in sorted(ROOT.glob(pattern))
}
README, CODE, SCRIPTS, TESTS = (
    PAGES[name] for name in ("README.md", "eir/README.md", "scripts/README.md", "tests/README.md")
)
INSTALL, OPERATION, RUNBOOK = (PAGES[f"deploy/{name}.md"] for name in ("INSTALL", "OPERATION", "RUNBOOK"))
CONFIG = "\n".join(
    page for name, page in PAGES.items() if re.fullmatch(r"config/[A-Z]+\.md|deploy/REGULATOR\.md", name)
)
ALL = "\n".join(PAGES.values())
COMMANDS = typer.main.get_command(command_line())
SEPARATORS = {"&&", "||", ";", "|", "(", ")", "&", ">", "<", "<<"}


def table(text):
    """The rows of the first table in the text, as lists of cells without their heads."""
    lines = takewhile(lambda line: line.startswith("|"), text[text.index("\n|") + 1 :].splitlines())
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][2:]


def code(cell):
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def simple_commands(block):
    """The words of each command in a block, without assignments, redirections and what only says as whom it runs."""
    for line in re.sub(
        r"<<(\w+)\n.*?^\1$", "", block.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL
    ).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            command = list(takewhile(lambda word: word not in SEPARATORS, words))
            words = words[len(command) + 1 :]
            while command and (command[0] in {"!", "sudo", "env", "export"} or "=" in command[0]):
                command = command[3:] if command[:2] == ["sudo", "-u"] else command[1:]
            if command:
                yield command


def resolve(words):
    """A command of ours by its words: (command, words that are left)."""
    command = COMMANDS
    while hasattr(command, "commands") and (words or not command.invoke_without_command):
        assert words[0] in command.commands, f"no such command: eir {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options_of(command):
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")}


# ---- every page ----


BLOCKS = [(name, block) for name, page in PAGES.items() for block in blocks(page)]
OURS = [words for _, block in BLOCKS for words in simple_commands(block)]


def test_the_point_codes_that_commands_name_are_such():
    named = re.findall(r"point_code=([0-9-]+)", ALL)
    assert len({point_code(each) for each in named}) > 1


def test_each_page_is_tested():
    there = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, text=True, capture_output=True, check=False
    ).stdout.split()
    assert set(there) <= set(PAGES)
    assert len(PAGES) > 12


@pytest.mark.parametrize(
    "block", [block for _, block in BLOCKS], ids=[f"{name}-{block.split()[0]}" for name, block in BLOCKS]
)
def test_each_block_is_shell(block):
    done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [w for w in OURS if Path(w[0]).name == "eir" and w[1:] != ["--version"]], ids=" ".join
)
def test_each_command_of_ours_parses(words):
    command, arguments = resolve(["1" if word == "$(date +%s)" else word for word in words[1:]])
    assert command.make_context(command.name, arguments)  # raises a usage error for what the command does not take


def test_each_url_of_an_eir_is_one():
    urls = set(re.findall(rf"\b(?:{'|'.join(CLIENTS)})://[\w.:]+(?:\?[\w=&.-]+)?(?=[\s'`\"])", ALL))
    assert len(urls) > 8
    for url in urls:
        probe_of(url.replace("token=token", ""), 1, {})


def test_each_script_is_there():
    scripts = {words[0] for words in OURS if words[0].startswith("scripts/")} | set(
        re.findall(r"`(scripts/\w+)[` ]", ALL)
    )
    assert scripts >= {"scripts/demo", "scripts/test", "scripts/setup", "scripts/bench", "scripts/soak"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_each_bench_and_soak_that_is_named_is_a_part_and_takes_the_options():
    found = re.findall(r"`scripts/(bench|soak) ([\w-]+)((?: -[^`]*)?)", ALL)
    assert len(found) > 20
    shared = (ROOT / "scripts" / "benchmark" / "measure.py").read_text()
    for script, part, options in found:
        if part == "PART":
            continue
        source = (ROOT / "scripts" / f"{script}_{part.replace('-', '_')}.py").read_text()
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in source + shared, f"scripts/{script} {part} takes no {option}"


def test_each_file_that_is_named_is_there():
    named = set(re.findall(r"(?<![\w/.-])(?:eir|scripts|config|deploy|tests)/[\w./-]*[\w/]", ALL))
    assert len(named) > 100
    assert not [name for name in named if not (ROOT / name).exists()]


def test_no_page_names_a_metric_that_there_is_not():
    parameters = {key.path for client in CLIENTS.values() for key in client.probe_keys}
    assert set(re.findall(r"\beir_[a-z_]+\w", ALL)) - parameters <= {family.name for family in FAMILIES}


# ---- tables of the code ----


def test_each_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = re.compile(r"[\w.-]+")
    extras = project["optional-dependencies"]
    runtime = {name.match(each)[0] for each in (*project["dependencies"], *extras["analysis"], *extras["spark"])}
    assert {cells[0].strip("`") for cells in table(section(CODE, "## Dependencies"))} == runtime
    for_tests = {name.match(each)[0] for each in project["optional-dependencies"]["test"]}
    assert not [each for each in for_tests if f"`{each}`" not in TESTS]


def test_the_users_of_redis_are_those_that_are_tested():
    # tests/faults/test_acl.py takes their rights from here, and holds them to be enough and none of them too much.
    assert re.findall(r"^user (\w+) ", PAGES["deploy/REDIS.md"], re.MULTILINE) == [
        "default",
        "worker",
        "recorder",
        "healer",
        "loader",
    ]


CHANGES = (
    "a new AVP", "a new list layout", "a new metric", "a new key", "a new policy condition", "a new store", "another Diameter application",
    "a new transport", "a new command", "a new protocol", "a new alert",
)  # fmt: skip


def test_each_change_has_its_one_folder():
    """That the files are there is held for all pages; here: which folder is whose."""
    rows = table(section(CODE, "## Where a change goes"))
    assert tuple(row[0] for row in rows) == CHANGES
    for change, where, there, also in rows:
        (folder,) = code(where)
        assert folder.endswith("/"), change
        assert (ROOT / folder).is_dir(), change
        files = [name for name in code(there) if "/" in name]
        assert files, change
        assert also, change
        if not where.startswith("a folder of its own"):
            assert all(name.startswith(folder) for name in files), change
        for name in files + [name for name in code(also) if "." in name]:
            assert (ROOT / name).is_file(), f"{change}: {name}"


def test_the_table_of_folders_is_that_of_the_code():
    rows = table(section(CODE, "## Folders"))
    named = {name for row in rows for name in code(row[0])}
    modules = [path.relative_to(ROOT) for path in (ROOT / "eir").rglob("*.py") if path.name != "__init__.py"]
    folders = {"/".join(module.parts[:-1][:3]) + "/" for module in modules} - {"eir/"}
    assert named == folders | {
        "eir/curl.py",
        "eir/device.py",
        "eir/disk.py",
        "eir/frames.py",
        "eir/schema.py",
        "eir/templates.py",
        "eir/errors.py",
    }


# ---- the runbook ----


def test_each_alert_has_its_advice():
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    rows = table(section(RUNBOOK, "## By alert"))
    advised = [name for cells in rows for name in code(cells[0])]
    assert sorted(advised) == sorted(alerts)
    assert all(what for _, what in rows)
    assert set(re.findall(r"\bEir(?!Error\b)[A-Z]\w+", ALL)) == alerts


def test_each_alert_leads_to_its_advice():
    """By `runbook_url`, whose anchor stands in the row of that alert."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    anchors = {
        name: set(re.findall(r'<a id="(\w+)">', what))
        for cells, what in table(section(RUNBOOK, "## By alert"))
        for name in code(cells)
    }
    for rule in (rule for group in rules for rule in group["rules"]):
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/deploy/RUNBOOK.md")
        assert anchor in anchors[rule["alert"]]


def reported():
    """Events that the code reports: (names that stand there, patterns of names that are put together)."""
    names, patterns = set(), set()
    for path in (ROOT / "eir").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not 1 <= len(call.args) <= 2:
                continue
            function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if function.strip("_") not in {"report", "note"}:
                continue
            event = call.args[0]
            for part in (event.body, event.orelse) if isinstance(event, ast.IfExp) else (event,):
                if isinstance(part, ast.Constant):
                    names.add(part.value)
                elif isinstance(part, ast.JoinedStr):
                    patterns.add(
                        "".join(re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in part.values)
                    )
    folded = re.findall(r'"event": "(\w+)"', (ROOT / "eir" / "node" / "observe" / "log.py").read_text())
    return names | set(folded), patterns


PUT_TOGETHER = (
    {
        "store_failed",
        "copy_failed",
        "journal_failed",
        "serving",
        "ready",
        "degraded",
        "not_ready",
        "m3ua_state",
        "m3ua_notified",
        "m3ua_error",
        "m3ua_destination",
    }
    | {"release_accepted", "release_refused", "release_waiting"}
    | {"source_refused", "source_unreached", "source_waiting"}
)
"""Events whose name is an argument: of what a follower could not do, of the word of /ready, of what became of a release in the drop folder, of a look at a source, or of an association of M3UA."""


def test_each_log_event_has_its_advice():
    names, patterns = reported()
    assert len(names) > 30
    rows = table(section(RUNBOOK, "## By log event"))
    advised = [name for cells in rows for name in code(cells[0])]
    assert all(what for _, what in rows)
    assert sorted(set(advised)) == sorted(advised)
    missing, unknown = (names | PUT_TOGETHER) - set(advised), set(advised) - (names | PUT_TOGETHER)
    assert (sorted(missing), sorted(unknown)) == ([], []), (
        "not in the runbook, and in the runbook but reported by nothing"
    )
    assert all(any(re.fullmatch(pattern, name) for name in PUT_TOGETHER) for pattern in patterns), patterns


def test_log_events_that_are_named_are_ones():
    texts = ALL + (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    events = set(re.findall(r"event=(\w+)", texts))
    advised = {name for cells in table(section(RUNBOOK, "## By log event")) for name in code(cells[0])}
    assert events
    assert events <= advised


# ---- figures ----


def test_the_sizing_rule_is_that_of_the_figures():
    measured = {row[0]: row for row in table(section(SCRIPTS, "### Size of the list"))}
    sizing = section(INSTALL, "## Sizing")
    rule = r"(\d+) MB, (\d+) MB for each million entries up to ten million, and ([\d.]+) MB for each further million"
    base, each, further = map(float, re.search(rule, sizing).groups())
    for entries, millions in (("1 million", 1), ("10 million", 10), ("100 million", 100)):
        memory = int(measured[entries][4].removesuffix(" MB"))
        assert memory <= base + each * min(millions, 10) + further * max(millions - 10, 0) <= 1.2 * memory, entries
    for entries in ("10 million", "100 million"):
        assert measured[entries][2] in sizing
    assert f"{round(int(measured['100 million'][4].removesuffix(' MB')) / 1000, 1)} GB of memory" in README
    (answers,) = set(re.findall(r"One node answers ([\d,]+) ", INSTALL + SCRIPTS))
    assert int(answers.replace(",", "")) > 250_000


def test_the_parts_of_bench_and_soak_are_all_there():
    parts = {path.stem.removeprefix("soak_").replace("_", "-") for path in (ROOT / "scripts").glob("soak_*.py")}
    rows = table(section(SCRIPTS, "## Soak"))
    assert {row[0].strip("`").removeprefix("scripts/soak ").split()[0] for row in rows} == parts
    shown = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench"], capture_output=True, text=True, check=False
    ).stderr
    benches = {path.stem.removeprefix("bench_").replace("_", "-") for path in (ROOT / "scripts").glob("bench_*.py")}
    assert set(re.findall(r"^  (\S+) +\S", shown, re.MULTILINE)) == benches


# ---- configuration: examples ----


def completed(block):
    """A configuration of which the block is a part, as text: YAML would make other numbers of some TACs and IMSIs."""
    rest = {
        "identity": {"host": EIR, "realm": REALM},
        "peers": [{"realm": REALM, "from": ["127.0.0.0/8"]}],
        "lists": {},
    }
    given = yaml.safe_load(block)
    return yaml.safe_dump({name: value for name, value in rest.items() if name not in given}) + block


@pytest.mark.parametrize("block", blocks(CONFIG, "yaml"), ids=lambda block: block.split(":")[0])
def test_each_example_of_a_configuration_is_usable(block, tmp_path):
    text = completed(block)
    values = yaml.safe_load(text)
    for settings in (each for each in values["lists"].values() if not each.get("local")):
        (tmp_path / settings["signers"]).parent.mkdir(exist_ok=True)
        (tmp_path / settings["signers"]).write_text("someone ssh-ed25519 AAAA\n")
    if "tls" in values:
        made = Authority(tmp_path / "made").write(EIR)
        for name, file in values["tls"].items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            shutil.copy(made[name], tmp_path / file)
    for file in (
        file
        for name in ("n5g", "device_authenticity")
        for file in values.get(name, {}).get("tokens", {}).get("keys", ())
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(Issuer().pem)
    if "desk" in values:
        (tmp_path / values["desk"]["users"]).write_text(user_line("anna", "correct horse battery", "view"))
        (tmp_path / values["desk"]["users"]).chmod(0o640)
    if "feed" in values:
        (tmp_path / values["feed"]["users"]).write_text(user_line("register", "correct horse battery"))
        (tmp_path / values["feed"]["users"]).chmod(0o600)
    (tmp_path / "eir.yaml").write_text(text)
    config = load_config(tmp_path / "eir.yaml")
    # The override may be over by now, and this host may have no SCTP.
    assert not [str(warning) for warning in config.warnings if not re.search("override|no SCTP", str(warning))]


POLICIES = [
    (part.partition("\n")[0], *blocks(part, "yaml"), part)
    for part in re.split(r"^## ", PAGES["config/POLICIES.md"], flags=re.MULTILINE)[1:]
    if "```yaml" in part
]
LATER = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("block", "checks"), [policy[1:] for policy in POLICIES], ids=[title for title, _, _ in POLICIES]
)
def test_each_policy_answers_as_in_its_table(block, checks, site):
    text = re.sub(r"(?<=signers: )signers/[\w-]+", "signers", block)
    site.path.write_text(completed(re.sub(r"(?<=until: )[\w:-]+", LATER, text)))
    rows = table(checks)
    listed, bound, typed = {}, {}, {}
    for device, _, _ in rows:
        imei, _, said = device.partition(", ")
        for sim, pairs in re.findall(r"bound to (\d+) in `([\w-]+)`", said):
            bound.setdefault(pairs, []).append(f"{imei},{sim}")
        for of_type, name in re.findall(r"of type ([\w ]+) in `([\w-]+)`", said):
            typed.setdefault(name, []).append(f"{imei[:8]},{of_type}")
        for name in code(re.sub(r"(bound to|of type) [\w ]+ in `[\w-]+`", "", said)):
            listed.setdefault(name, []).append(imei)
    assert {**listed, **bound, **typed}.keys() == yaml.safe_load(block)["lists"].keys()
    for name, rows_of in listed.items():
        site.load(rows_of, list_name=name)
    for name, rows_of in bound.items():
        site.load(["imei,imsi", *rows_of], list_name=name)
    for name, rows_of in typed.items():
        site.load(["tac,device_type", *rows_of], list_name=name)
    for device, sim, answer in rows:
        imsi = ["--imsi", sim] if sim.isdigit() else []
        found = site.json("check", device.partition(",")[0], *imsi)
        assert found["status"] == answer, f"{device}, {sim}: {found}"


def test_the_policies_that_people_ask_for_are_there():
    assert len(POLICIES) == 12
    assert sum(len(table(checks)) for _, _, checks in POLICIES) > 20


@pytest.mark.long(short=[r"\n"])
@pytest.mark.parametrize("end", ["\n", "", "\n\n", "\r\n\r\n"])
def test_a_release_made_with_openssh_alone_loads(site, end):
    (block,) = (block for block in blocks(CONFIG) if "ssh-keygen -Y sign" in block and "eir offer" not in block)
    folder = site.folder / "agency"
    folder.mkdir()
    (folder / "stolen-2.csv").write_text("imei,reason\n35209900176148,stolen\n\n35209900176149,lost" + end, newline="")
    site.configure(
        lists={"stolen-national": {"signers": "signers"}},
        policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
    )
    environment = {**os.environ, "KEY": str(site.publisher.key), "TZ": "Asia/Kolkata"}
    subprocess.run(
        ["sh", "-euc", block], cwd=folder, env=environment, check=True, capture_output=True, timeout=PROGRAM_S
    )
    (report,) = site.json("load", folder / "stolen-national-2.manifest.json")
    assert (report["serial"], report["entries"]) == (2, 2)


def test_a_publishers_commands_make_a_list_and_a_delta(site):
    (block,) = (
        block for block in blocks(CONFIG) if "--base" in block and "--layout" not in block and "--to" not in block
    )
    folder = site.folder / "agency"
    folder.mkdir()
    (folder / "stolen-42.csv").write_text("imei\n35209900176148\n35209900176149\n35209900176150\n")
    (folder / "stolen-43-added.csv").write_text("imei\n35209900176151\n")
    (folder / "stolen-43-removed.csv").write_text("imei\n35209900176148\n")
    site.configure(
        lists={"stolen-national": {"signers": "signers", "shrink_max": "100%", "growth_max": "100%"}},
        policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
    )
    for words in simple_commands(block):
        site.eir(*[str(site.publisher.key) if word == "KEY" else word for word in words[1:]], cwd=folder)
    site.eir("load", folder / "stolen-national-42.manifest.json", folder / "stolen-national-43.manifest.json")
    (shown,) = site.json("lists")
    assert (shown["serial"], shown["entries"]) == (43, 3)


# ---- operation ----


def escaped(path):
    """A path as a word of a shell, whose quotes may be around it."""
    return str(path).replace(" ", "\\ ")


class Operator:
    """Follows the steps of a page on the host of a test: what systemd and an editor do there is done here."""

    def __init__(self, site, folder, **edited):
        self.site = site
        self.edited = edited
        self.variables = {}
        self.bin = folder / "bin"
        self.bin.mkdir()
        commands().write_program(self.bin / "eir")
        for name, text in (
            ("sudo", '[ "$1" != -u ] || shift 2\nexec "$@"'),
            ("python", f'exec {shlex.quote(sys.executable)} "$@"'),
        ):
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)

    def does(self, block):
        """One step after the other; returns what the last command printed."""
        out = ""
        for line in block.replace("\\\n", " ").splitlines():
            match list(*simple_commands(line)) if line.startswith("sudo systemctl") else line.split()[:2]:
                case ["systemctl", "stop", "eir"]:
                    self.site.node.end()
                case ["systemctl", "start", "eir"]:
                    self.site.start()
                case ["sudoedit", _]:
                    self.site.configure(**self.edited)
                case _:
                    out = self._run(line)
        return out

    def _run(self, line):
        for theirs, ours in (("/opt/eir/bin", self.bin), ("/var/lib/eir", self.site.state)):
            line = line.replace(theirs, escaped(ours))
        assert not re.search(
            r"/(opt|var/lib|etc)/", line.replace(escaped(self.site.folder), "").replace(escaped(self.bin), "")
        ), line
        kept = self.bin / "variables"
        environment = self.site.environment(PATH=f"{self.bin}:{os.environ['PATH']}", **self.variables)
        done = subprocess.run(
            ["sh", "-euc", f'{line}\nprintf %s "${{backup-}}" >{escaped(kept)}'], env=environment, cwd=self.site.folder, text=True,
            capture_output=True, check=False, timeout=PROGRAM_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"
        self.variables["backup"] = kept.read_text()
        return done.stdout


@pytest.fixture
def busy(site):
    """A host with a signed list that has a release before it, a local list, and a running node."""
    site.configure(
        lists={"stolen": {"signers": "signers", "shrink_max": "100%", "growth_max": "100%"}, "own": {"local": True}},
        first_seen={},
        policy={
            "rules": [
                {"list": "stolen", "answer": "blacklisted"},
                {"list": "own", "answer": "blacklisted"},
                {"first_seen_within": "60d", "answer": "whitelisted"},
            ]
        },
    )
    site.load([LISTED])
    site.load([LISTED, "35209900176149"], serial=2)
    site.eir("add", "own", TRACKED, "--reason", "reported at the counter")
    site.start()
    return site


def content(site):
    return {row["list"]: (row["serial"], row["entries"], row["digest"]) for row in site.json("lists")}


BACKUP, RESTORE = blocks(section(OPERATION, "## Backup and restore"))


@pytest.mark.long
def test_a_backup_is_restored_as_the_page_describes(busy, tmp_path):
    (busy.folder / "log.csv").write_text(f"time,imei,imsi\n2026-11-20T10:00:00Z,{LISTED},001010000000001\n")
    busy.eir("sightings", "import", "log.csv")
    busy.eir("first-seen", "import", "--from-sightings")
    until(lambda: content(busy).get("first-seen"))
    operator, before, history = Operator(busy, tmp_path), content(busy), busy.json("history")
    operator.does(BACKUP)
    (kept,) = busy.state.glob("backup-*.tar")
    assert kept.stat().st_mode & 0o777 == 0o600
    with tarfile.open(kept) as members:
        assert "sightings.key" in members.getnames()
    busy.node.end()
    for path in busy.state.iterdir():  # the disk was lost
        if path.is_dir():
            shutil.rmtree(path)
        elif path != kept:
            path.unlink()
    busy.start()
    shown = operator.does(RESTORE)
    assert "stolen" in shown
    assert content(busy) == before
    assert busy.json("history")[:-1] == history
    assert busy.json("check", TRACKED)["status"] == "blacklisted"
    assert busy.json("rollback", "stolen")["serial"] == 1


@pytest.mark.long
@pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")
def test_lists_move_from_sqlite_to_redis_as_the_page_describes(busy, tmp_path):
    move, look = blocks(section(PAGES["deploy/REDIS.md"], "## From SQLite to Redis"))
    before = content(busy)
    with Server(programs()["redis"]) as redis:
        operator = Operator(busy, tmp_path, store=f"{redis.url}/0")
        operator.does(BACKUP)
        operator.does(move)
        until(lambda: busy.node.status()["ready"] == "ready")
        assert operator.does(look)
        assert content(busy) == before
        refused = busy.eir("load", busy.release([LISTED], serial=2), status=1)
        assert "serial" in refused.stderr  # what was used stays used
        busy.node.end()


# ---- the tour ----


@pytest.mark.long
def test_the_tour_runs_as_described(tmp_path):
    """In a copy of the repository: `scripts/demo --stay`, and beside it each block of the tour."""
    for name in ("scripts", "config", "deploy", "eir", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    script = tmp_path / "scripts/demo"
    usual = script.read_text()
    assert usual.count('s.bind(("127.0.0.1", wanted))') == 1
    # As if the usual ports were taken: they may be by the time that they are wanted.
    script.write_text(usual.replace('s.bind(("127.0.0.1", wanted))', 's.bind(("127.0.0.1", 0))'))
    # The environment of this test run takes the part of the one that the demo would make.
    environment_folder = tmp_path / ".venv"
    (environment_folder / "bin").mkdir(parents=True)
    (environment_folder / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (environment_folder / "bin/python").chmod(0o755)
    commands().write_program(environment_folder / "bin/eir")
    (environment_folder / "installed[analysis]").touch()
    bare = {name: value for name, value in os.environ.items() if name not in {"EIR_CONFIG", "COLUMNS", "FORCE_COLOR"}}
    shown = tmp_path / "shown"
    with shown.open("w") as out:
        demo = subprocess.Popen(
            ["scripts/demo", "--stay"], cwd=tmp_path, stdout=out, stderr=out, env=bare, start_new_session=True
        )
    try:

        def serving():
            assert demo.poll() is None, shown.read_text()
            return "Serving until" in shown.read_text()

        until(serving, patience_s=PROGRAM_S)
        address = re.search(r"may connect to (\S+)", shown.read_text())[1]
        desk, password = re.search(
            r"^desk +(\S+)/desk +\(user demo; the password of demo: (\S+)\)$", shown.read_text(), re.MULTILINE
        ).groups()
        entry = urllib.request.Request(
            f"{desk}/v1/lists/blocked-here/entries/00101007000008", b'{"reason": "stolen"}', method="PUT"
        )
        entry.add_header("Content-Type", "application/json")
        entry.add_header("Authorization", basic("demo", password))
        with urllib.request.urlopen(entry, timeout=PROGRAM_S) as answer:
            assert answer.status == 201
        tour = blocks(section(PAGES["deploy/TOUR.md"], "## One node"))
        script = "\n".join(["set -eux", *tour]).replace("s13://127.0.0.1 ", f"s13://{address} ")
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=tmp_path,
            env=bare,
            text=True,
            capture_output=True,
            check=False,
            timeout=PROGRAM_S,
        )
        second = subprocess.run(
            ["scripts/demo"], cwd=tmp_path, env=bare, text=True, capture_output=True, check=False, timeout=PROGRAM_S
        )
        assert demo.poll() is None
    finally:
        os.killpg(demo.pid, signal.SIGTERM)
        demo.wait(PROGRAM_S)
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
    assert re.search(r"tracked-2.manifest.json: refused \(file_size\)", done.stderr), done.stderr
    alone = subprocess.run(
        ["scripts/demo"], cwd=tmp_path, env=bare, text=True, capture_output=True, check=False, timeout=PROGRAM_S
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "The node has ended" in alone.stdout.splitlines()[-1]
