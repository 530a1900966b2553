"""Faults that are put into the code, one at a time, are noticed by the tests that concern the file.

A seed draws the faults over a folder or a file of eir/ (scripts/faults.py lists their kinds). Each fault is tried in a copy of the tree,
several at a time; the tree itself does not change. A test notices a fault if it fails with it and passes without it. Exit status 1
if fewer faults than --at-least were noticed. A fault that changes no behaviour cannot be noticed: read the diffs.
"""

import argparse
import ast
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue

from faults import SUFFIXES, Fault, changes_nothing, faults_of

ROOT = Path(__file__).resolve().parent.parent
ASIDE = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "figures")
FILES_MAX = 4
"""Maximum number of test files of other rooms that are chosen by their imports."""
TEST_LIMIT_S = 60
FIRST_GUESS_S, NODE_GUESS_S = 5.0, 40.0
"""Assumed seconds of a test file before its first run, and of one that starts nodes; quick files run first."""
OUTSIDE = {
    "eir/sightings": ("test_tamper", "test_sightings"),
    "eir/checks": ("test_policy", "test_checker", "test_explain"),
    "eir/cli": ("test_cli", "test_content", "test_in_force", "test_contracts"),
    "eir/config": ("test_config", "test_reference", "test_interfaces"),
    "eir/node/processes": ("test_answering", "test_serve", "test_following"),
    "eir/wire/diameter": ("test_peer", "test_node", "test_conformance"),
    "eir/lists/changes": ("test_load", "test_local", "test_audit"),
    "eir/lists/follow": ("test_log_follower", "test_list_copy"),
    "eir/interfaces/gsup": ("test_gsup", "test_gsup_rows", "test_gsup_node", "test_interfaces"),
    "eir/interfaces/n5g": ("test_n5g", "test_n5g_node", "test_n5g_access", "test_interfaces"),
    "eir/interfaces/map": ("test_map", "test_map_node", "test_interfaces"),
    "eir/node/observe": ("test_status", "test_metrics", "test_control"),
    "eir/lists/images": ("test_index", "test_image"),
    "eir/lists/pages": ("test_build", "test_index"),
    "eir/wire/peers": ("test_n5g_node", "test_gsup_node"),
    "eir/wire/transport": ("test_node", "test_tls", "test_sctp"),
    "eir/lists/record": ("test_store_contract", "test_history", "test_reasons"),
    "eir/lists/releases": ("test_release", "test_publish"),
    "eir/lists/rows": ("test_layout", "test_build", "test_load"),
    "eir/interfaces/s13": ("test_express", "test_service", "test_lane", "test_conformance", "test_interfaces"),
    "eir/interfaces/feed": ("test_feed", "test_feed_node", "test_interfaces"),
    "eir/interfaces/device_authenticity": ("test_device_authenticity", "test_interfaces"),
    "eir/lists/sources": (
        "test_inbox",
        "test_deliveries",
        "test_publisher_folder",
        "test_folder_writer",
        "test_acknowledgement",
    ),
    "eir/wire/ss7": ("test_ss7", "test_map", "test_map_node"),
    "eir/lists/stores": ("test_store_contract", "test_sqlite", "test_redis"),
    "eir/wire/web": ("test_http", "test_http2", "test_hpack_lane"),
    "eir/cli/access.py": ("test_init", "test_state_folder"),
    "eir/cli/app.py": ("test_help",),
    "eir/cli/asking.py": ("test_pages",),
    "eir/cli/audit.py": ("test_audit", "test_acknowledgement"),
    "eir/cli/figures.py": ("test_figures",),
    "eir/cli/first.py": ("test_init", "test_feed_node"),
    "eir/cli/grace.py": ("test_first_seen_commands", "test_grace"),
    "eir/cli/lists.py": ("test_content", "test_add_file"),
    "eir/cli/node.py": ("test_control", "test_looking"),
    "eir/cli/publisher.py": ("test_folder_writer", "test_publish"),
    "eir/cli/record.py": ("test_history",),
    "eir/cli/releases.py": ("test_cli", "test_publisher_folder", "test_acknowledgement"),
    "eir/cli/sightings.py": ("test_sightings", "test_figures", "test_three_parties"),
    "eir/cli/tamper.py": ("test_tamper", "test_three_parties"),
    "eir/cli/trace.py": ("test_trace",),
    "eir/cli/why.py": ("test_why",),
    "eir/interfaces/feed/service.py": ("test_feed_node", "test_feed_kill"),
    "eir/interfaces/gsup/probe.py": ("test_probe",),
    "eir/interfaces/n5g/probe.py": ("test_n5g_probe",),
    "eir/interfaces/s13/capture.py": ("test_trace",),
    "eir/lists/sources/acknowledgement.py": ("test_acknowledgement", "test_folder_writer"),
    "eir/lists/sources/folder_writer.py": ("test_folder_writer",),
    "eir/lists/sources/source_client.py": ("test_publisher_folder",),
    "eir/lists/stores/redis.py": ("test_redis", "test_store_contract", "test_feed_kill"),
    "eir/lists/stores/redis_link.py": ("test_redis", "test_groups"),
    "eir/lists/stores/redis_url.py": ("test_redis", "test_groups"),
    "eir/lists/stores/sqlite.py": ("test_sqlite", "test_store_contract"),
    "eir/lists/stores/sqlite_file.py": ("test_sqlite", "test_looking", "test_owner"),
    "eir/node/processes/acknowledging.py": ("test_acknowledgement",),
    "eir/node/processes/attendants.py": ("test_recorder", "test_first_seen"),
    "eir/node/processes/commands.py": ("test_control",),
    "eir/node/processes/child.py": ("test_child",),
    "eir/node/processes/listed_search.py": ("test_listed",),
    "eir/node/processes/loading.py": ("test_apart", "test_inbox"),
    "eir/node/processes/others.py": ("test_sightings", "test_feed_node"),
    "eir/node/processes/record_writer.py": ("test_recorder", "test_sightings", "test_record_faults"),
    "eir/node/processes/recorder.py": ("test_recorder", "test_sightings"),
    "eir/node/processes/sources.py": ("test_sources", "test_publisher_folder", "test_inbox"),
    "eir/node/processes/state_folder.py": ("test_owner",),
    "eir/node/processes/history_watch.py": ("test_following", "test_node_journal"),
    "eir/node/processes/tracing.py": ("test_trace", "test_control"),
    "eir/node/processes/web.py": ("test_page", "test_metrics"),
    "eir/node/processes/answering.py": ("test_answering", "test_trace", "test_coming_back"),
    "eir/wire/diameter/dialer.py": ("test_client", "test_sctp"),
    "eir/wire/diameter/traffic.py": ("test_peer", "test_conformance"),
    "eir/wire/peers/gate.py": ("test_link", "test_n5g", "test_n5g_access"),
}
"""Folder or file → tests of other folders that concern it. Tests of a file run first."""


@dataclass(slots=True)
class Tried:
    """One fault, and the test that noticed it."""

    fault: Fault
    diff: str
    tests: list[str]
    """Test files, in the order of their runs."""
    noticed_by: str = ""
    """Name of the test; empty: none."""
    in_time: bool = True
    """True: all these tests ran, or one noticed the fault."""
    seconds: float = 0.0
    unsteady: list[str] = field(default_factory=list)
    """Tests that fail with the fault and without it."""


def main(arguments: list[str]) -> int:
    """Run the part `mutants` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "where", metavar="FOLDER", help="folder or file that gets the faults, from the root of the repository"
    )
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="seed of the draw (default: random)")
    parser.add_argument(
        "--at-once",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="number of copies (default: number of processors)",
    )
    parser.add_argument("--limit", type=float, default=240.0, help="maximum seconds for the tests of one fault")
    parser.add_argument("--at-least", type=float, default=90.0, help="minimum percentage of noticed faults")
    parser.add_argument("--long", action="store_true", help="run also the tests with the mark `long`")
    parser.add_argument("--json", action="store_true", help="print a JSON document")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    possible = draw(root, root / options.where, options.seed)
    if not possible:
        parser.error(f"no fault can be drawn in {options.where}")
    said = f"seed {options.seed}: {options.faults} of {len(possible):,} possible faults in {options.where}"
    print(said, file=sys.stderr, flush=True)
    tell = _tell(min(options.faults, len(possible)))
    tried = try_faults(
        root,
        iter(possible),
        options.faults,
        at_once=options.at_once,
        limit_s=options.limit,
        long=options.long,
        tell=tell,
    )
    noticed = sum(bool(each.noticed_by) for each in tried)
    share = 100 * noticed / len(tried)
    if options.json:
        found = [asdict(each.fault) | asdict(each) | {"fault": None} for each in tried]
        wanted = ("file", "line", "kind", "diff", "noticed_by", "in_time", "seconds", "tests", "unsteady")
        faults = [{name: each[name] for name in wanted} for each in found]
        print(
            json.dumps(
                {
                    "seed": options.seed,
                    "where": options.where,
                    "possible": len(possible),
                    "noticed": noticed,
                    "faults": faults,
                },
                indent=1,
            )
        )
    else:
        for each in tried:
            if not each.noticed_by:
                late = "" if each.in_time else " in the time that was given"
                print(
                    f"\nno test noticed{late}: {each.fault.file}:{each.fault.line} ({each.fault.kind}); asked {', '.join(each.tests)}\n{each.diff}"
                )
        print(f"\n{noticed} of {len(tried)} faults noticed ({share:.0f} %)")
    return 0 if share >= options.at_least else 1


def draw(root: Path, where: Path, seed: int) -> list[Fault]:
    """Return all faults of a folder or file in an order that depends on the seed."""
    files = [where] if where.is_file() else sorted(path for path in where.rglob("*") if path.suffix in SUFFIXES)
    found = [fault for path in files for fault in faults_of(root, path)]
    random.Random(seed).shuffle(found)
    return found


def concerned(root: Path, file: str) -> list[str]:
    """Return the test files that concern a file, the nearest first: its own, of its room, of OUTSIDE, and some of other rooms that import it."""
    near, room = _importers(root).get(file, {}), _room(file)
    found = sorted(near, key=lambda test: (Path(test).name != _named(file), near[test], test))
    folder = file.rpartition("/")[0]
    while folder and folder not in OUTSIDE:
        folder = folder.rpartition("/")[0]
    outside = _paths(root, OUTSIDE.get(folder, ()))
    of_room = [test for test in found if test.startswith(room)]
    others = [test for test in found if not test.startswith((room, "tests/deploy/"))][:FILES_MAX]
    return list(dict.fromkeys([*own_tests(root, file), *of_room, *outside, *others]))


def own_tests(root: Path, file: str) -> list[str]:
    """Return the test files of one file: of its name, and of its row in OUTSIDE."""
    named = f"{_room(file)}{_named(file)}"
    return list(dict.fromkeys([*([named] if (root / named).exists() else ()), *_paths(root, OUTSIDE.get(file, ()))]))


def _paths(root: Path, names: Iterable[str]) -> list[str]:
    """Return the paths of test files, from the root of the repository."""
    found = (path for name in names for path in sorted((root / "tests").rglob(f"{name}.py")))
    return [path.relative_to(root).as_posix() for path in found]


def try_faults(
    root: Path,
    drawn: Iterator[Fault],
    wanted: int,
    *,
    at_once: int,
    limit_s: float,
    long: bool = False,
    tell: Callable[[Tried], None],
) -> list[Tried]:
    """Try the first `wanted` faults that give another program, `at_once` at a time; `tell` is called with each as it ends. `long`: with the tests that have this mark."""
    lock = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="eirm") as name, ThreadPoolExecutor(at_once) as pool:
        took: dict[str, float] = {}
        copies = [_Copy(root, Path(name) / str(number), took, long=long) for number in range(at_once)]
        free: SimpleQueue[_Copy] = SimpleQueue()

        def one() -> Tried | None:
            copy = free.get()
            try:
                while True:
                    with lock:
                        fault = next(drawn, None)
                    if fault is None:
                        return None
                    tried = copy.attempt(fault, limit_s)
                    if tried is not None:
                        return tried
            finally:
                free.put(copy)

        try:
            found = []
            for copy in copies:
                copy.make()
                free.put(copy)
            for done in as_completed([pool.submit(one) for _ in range(wanted)]):
                if (tried := done.result()) is not None:
                    found.append(tried)
                    tell(tried)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
    return sorted(found, key=lambda each: (each.fault.file, each.fault.line))


class _Copy:
    """Copy of the tree, in which one fault at a time is tried."""

    def __init__(self, root: Path, folder: Path, took: dict[str, float], *, long: bool) -> None:
        """`took`: seconds of each complete run of a test file, shared by all copies."""
        self._options = ["--long"] if long else []
        self.root, self.folder, self.tree = root, folder, folder / "t"
        self._took = took
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False
        self._python = str(self.tree / ".venv" / "bin" / "python")
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment["TMPDIR"] = str(folder / "x")

    def make(self) -> None:
        """Copy the tree."""
        shutil.copytree(self.root, self.tree, ignore=ASIDE, symlinks=True)
        make_environment(self.tree)
        (self.folder / "x").mkdir()
        # Compiled files that go by content: by time, a fault and its file without it could be of the same second.
        self._run([self._python, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "eir"], TEST_LIMIT_S)

    def attempt(self, fault: Fault, limit_s: float) -> Tried | None:
        """Apply the fault, run the tests, and remove the fault; return None if the program is invalid or the same."""
        path, began = self.tree / fault.file, time.monotonic()
        text = path.read_text()
        if changes_nothing(fault, text):
            return None
        tests = self._quick_first(fault.file)
        tried = Tried(fault, fault.diff(text), tests)
        try:
            path.write_text(fault.applied(text))
            if path.suffix in {".c", ".h"} and not self._built():
                return None
            while tried.in_time and not self._stopped:
                left = limit_s - (time.monotonic() - began)
                failed = self._failed(tried.tests, left, tried.unsteady)
                tried.in_time = failed is not None
                if not failed:
                    break
                path.write_text(text)
                self._built(path)
                if self._failed([failed], limit_s, []) == "":
                    tried.noticed_by = failed
                    break
                tried.unsteady.append(failed)
                path.write_text(fault.applied(text))
                self._built(path)
        finally:
            path.write_text(text)
            self._built(path)
        tried.seconds = round(time.monotonic() - began, 1)
        return tried

    def _quick_first(self, file: str) -> list[str]:
        """Return the tests of a file in the order of their runs: its own, those of its room, others."""
        tests, own, room = concerned(self.root, file), own_tests(self.root, file), _room(file)
        text = {test: (self.root / test).read_text() for test in tests}
        guess = {test: NODE_GUESS_S if re.search(r"\b[Ss]ite\b", text[test]) else FIRST_GUESS_S for test in tests}
        return sorted(
            tests, key=lambda test: (test not in own, not test.startswith(room), self._took.get(test, guess[test]))
        )

    def stop(self) -> None:
        """End the running processes, and start no more."""
        with self._lock:
            self._stopped = True
            _end(self._running)

    def _failed(self, tests: list[str], limit_s: float, but: list[str]) -> str | None:
        """Return the first test that fails; empty: none; None: not all ran in time."""
        deselected = [part for test in but for part in ("--deselect", test)]
        command = [
            self._python, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "--durations=0", "-p", "no:cacheprovider", "--timeout", str(TEST_LIMIT_S), *self._options, *deselected, *tests,
        ]  # fmt: skip
        status, said = self._run(command, limit_s)
        found = re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.*?)?)(?: - .*)?$", said, re.MULTILINE)
        failed = found[1].partition("::")[0] if found is not None else ""
        whole = tests[: tests.index(failed)] if failed in tests else tests if status == 0 else []
        for test in whole if not but else ():
            self._took[test] = sum(map(float, re.findall(rf"^([0-9.]+)s \w+ +{re.escape(test)}::", said, re.MULTILINE)))
        if found is not None:
            return found[1]
        # 0: all passed; 5: nothing was left to run. Else the run as a whole came to nothing, as when an import ends the process.
        return None if status is None else "" if status in {0, 5} else tests[0]

    def _built(self, path: Path | None = None) -> bool:
        """Compile if `path` is compiled; return true if the result is a program that differs from the earlier one."""
        if path is not None and path.suffix not in {".c", ".h"}:
            return True
        objects = {found: found.read_bytes() for found in self.tree.rglob("*.so")}
        status, _ = self._run([self._python, "setup.py", "-q", "build_ext", "--inplace", "--force"], TEST_LIMIT_S)
        return status == 0 and any(found.read_bytes() != objects.get(found) for found in self.tree.rglob("*.so"))

    def _run(self, command: list[str], limit_s: float) -> tuple[int | None, str]:
        """Return exit status and output; None if the limit was exceeded or the run was stopped."""
        with tempfile.TemporaryFile("w+", dir=self.folder) as out:
            with self._lock:
                if self._stopped:
                    return None, ""
                self._running = running = subprocess.Popen(
                    command, cwd=self.tree, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                    text=True, start_new_session=True,
                )  # fmt: skip
            try:
                status = running.wait(max(limit_s, 1))
            except subprocess.TimeoutExpired:
                status = None
            with self._lock:
                _end(running)
            out.seek(0)
            return (None, "") if self._stopped else (status, out.read())


def make_environment(tree: Path) -> None:
    """Create `.venv` in a copy of the tree: links to the packages of this environment, and the program of the copy.

    PYTHONPATH cannot replace it: tests set PYTHONPATH themselves, and start forked commands without it.
    """
    own, packages, programs = tree / ".venv", Path(sysconfig.get_path("purelib")), Path(sys.executable).parent
    inside = own / packages.relative_to(sys.prefix)
    inside.mkdir(parents=True)
    for path in packages.iterdir():
        if not path.name.startswith("__editable__"):
            (inside / path.name).symlink_to(path)
    (inside / "tree.pth").write_text(f"{tree}\n")
    (own / programs.name).mkdir()
    begins = f"#!{sys.prefix}/".encode()
    for path in filter(Path.is_file, programs.iterdir()):
        program, content = own / programs.name / path.name, path.read_bytes()
        if content.startswith(begins):
            program.write_bytes(content.replace(begins, f"#!{own}/".encode(), 1))
            program.chmod(0o755)
        else:
            program.symlink_to(path)
    for name in ("pyvenv.cfg", "share"):
        if (Path(sys.prefix) / name).exists():
            (own / name).symlink_to(Path(sys.prefix) / name)


def _end(process: subprocess.Popen[str] | None) -> None:
    """End a process and the remaining processes of its group."""
    if process is None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _room(file: str) -> str:
    """Return the folder of the tests for a file's own folder."""
    return f"tests/{file.split('/')[1]}/"


def _named(file: str) -> str:
    return f"test_{Path(file).stem}.py"


_FOUND: dict[Path, dict[str, dict[str, tuple[int, int]]]] = {}


def _importers(root: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the tests that each file reaches by imports, each with (number of imports between, number of its own imports).

    Tests further away than the nearest and one more are left out: nearly every test imports everything in the end.
    """
    if root in _FOUND:
        return _FOUND[root]
    files = {
        _module(root, path): path.relative_to(root).as_posix()
        for part in ("eir", "scripts/simulated", "tests")
        for path in (root / part).rglob("*.py")
    }
    imported_by: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = {}
    for module, file in files.items():
        wanted = {
            files[name] for name in _imports((root / file).read_text(), module) if name in files and name != module
        }
        count[file] = len(wanted)
        for name in wanted:
            imported_by[name].add(file)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for file in files.values():
        seen, edge, distance, tests, last = {file}, {file}, 0, {}, 99
        while edge and distance < last:
            distance += 1
            edge = {each for before in edge for each in imported_by[before]} - seen
            seen |= edge
            new = {test: (distance, count[test]) for test in edge if Path(test).name.startswith("test_")}
            last = min(last, distance + 1) if new else last
            tests |= new
        found[file] = tests
    _FOUND[root] = found
    return found


def _module(root: Path, path: Path) -> str:
    """Return the name of a file in an import; the folders `scripts` and `tests` are on the path."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[1:] if parts[0] == "scripts" else parts
    name = parts[-1:] if parts[0] == "tests" else parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(name)


def _imports(text: str, module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.rpartition(".")[0] if node.level else ""
            source = ".".join(filter(None, (package, node.module)))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _tell(wanted: int) -> Callable[[Tried], None]:
    done = 0

    def tell(tried: Tried) -> None:
        nonlocal done
        done += 1
        by = (
            f"noticed by {tried.noticed_by}"
            if tried.noticed_by
            else "NOT NOTICED"
            if tried.in_time
            else "NOT NOTICED in time"
        )
        where = f"{tried.fault.file}:{tried.fault.line}"
        print(
            f"{done:>3}/{wanted} {where:<44} {tried.fault.kind:<18} {tried.seconds:>5.0f} s  {by}",
            file=sys.stderr,
            flush=True,
        )

    return tell
