"""EIR host of an operator: `eir` as real processes, a configuration, a publisher's key.

Nothing here reaches into the product: a node is started by `eir serve`, asked by the other commands, and stopped by a signal.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from eir.__main__ import LARGE_PAGES, TUNABLES
from eir.cli.access import recorded
from eir.config import load_config
from eir.errors import StoreError
from eir.lists.follow.list_copy import copied_heads
from eir.lists.stores.open import COPIES, open_store
from eir.node.observe.control import ControlError, ask
from eir.wire.peers.settings import Limits

from .commands import CONSTANTS, commands
from .patience import FACTOR, PATIENCE_S
from .releases import STARTED, load_release, publish_files, publish_once
from .wire import EIR, REALM

COMMAND = [sys.executable, "-m", "eir"]

PERIODS = {"eir.node.processes.following.JOURNAL_S": 0.5}
"""Periods of a forked node that are shorter than usual, so that tests wait less."""

LISTED = "35209900176148"  # its Luhn digit is 1
TRACKED = "35332811002233"
UNLISTED = "35123456789012"


class PlainDumper(yaml.SafeDumper):
    """Writer of YAML without aliases, which the configuration must not have."""

    def ignore_aliases(self, data):  # noqa: ARG002 - as the library has it
        return True


def settings():
    """A configuration on free ports; its host and realm are those that wire.ecr() asks."""
    return {
        "identity": {"host": EIR, "realm": REALM},
        "listen": ["tcp://127.0.0.1:0"],
        "peers": [{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"]}],
        "lists": {"stolen": {"signers": "signers"}, "tracked": {"signers": "signers"}},
        "policy": {
            "rules": [{"list": "stolen", "answer": "blacklisted"}, {"list": "tracked", "answer": "greylisted"}],
        },
        "http": "127.0.0.1:0",
    }


def fields(line):
    r"""Return a log line as a dictionary; values that hold blanks, quotes or control characters stand in quotes, those as \xNN."""
    pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^ "]*))(?: |$)', line)
    return {
        name: re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), quoted) or plain
        for name, quoted, plain in pairs
    }


def until(condition, *, patience_s=PATIENCE_S):
    """Wait for a condition that another process brings about; returns what it gave."""
    end = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {patience_s} s: {condition}"
        time.sleep(0.01)
    return found


async def until_async(condition, *, patience_s=PATIENCE_S):
    """The same beside a client that goes on; the condition is a coroutine function or a plain one."""
    async with asyncio.timeout(patience_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


def children(pid):
    """The processes of a node by what they call themselves, `answering` and so on."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in map(int, (thread / "children").read_text().split()):
                with suppress(OSError):
                    found[Path(f"/proc/{child}/comm").read_text().strip().removeprefix("eir-")] = child
    return found


def is_gone(pid):
    """True of a process that has ended, whether its parent has asked for its exit status yet or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def run_eir(*arguments, env, cwd, status=0, prefix=(), **options):
    """Run a command to its end in a process of its own, and assert its exit status (None: any).

    The process is forked (scripts/simulated/commands.py). With a `prefix` or with options of `subprocess.run` it is a program of its own.
    """
    words = [str(each) for each in arguments]
    if prefix or options.keys() - {"timeout"} or ("serve" in words and "PYTHONPATH" in env):
        usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": PATIENCE_S}
        usual |= {} if "input" in options else {"stdin": subprocess.DEVNULL}
        done = subprocess.run([*prefix, *COMMAND, *words], env=env, cwd=cwd, check=False, **usual | options)
    else:
        done = commands().run(words, env=env, cwd=cwd, timeout=options.get("timeout", PATIENCE_S))
    assert "Traceback" not in str(done.stderr), done.stderr
    assert status is None or done.returncode == status, f"{shlex.join(words)}: {done}"
    return done


class Publisher:
    """Someone who signs releases."""

    def __init__(self, folder):
        self.folder = folder
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agency", "-f", self.key], check=True)
        kind, key = self.key.with_name("key.pub").read_text().split()[:2]
        self.signers = f'agency@publisher.example namespaces="eir-release" {kind} {key}\n'

    def publish(self, folder, files, *, list_name, serial, base=None, expires_in=timedelta(days=14), issued=None):
        """A signed release of these data files, a delta if it has a base; returns the manifest."""
        members = {"list_name": list_name, "serial": serial, "base": base, "key": self.key}
        are_in_place = all(file.parent == folder for file in files)
        if issued is None and expires_in >= timedelta(days=1) and are_in_place:
            return publish_once(files, issued=STARTED - timedelta(seconds=1), valid=expires_in, **members)
        issued = issued or datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
        return publish_files(files, issued=issued, expires=issued + expires_in, out=folder, **members).manifest


class Site:
    """One host: a folder with configuration, state and releases; `eir` run there, and at most one node at a time."""

    def __init__(self, folder, publisher):
        self.folder = folder
        self.publisher = publisher
        self.path = folder / "eir.yaml"
        self.state = folder / "var"
        self.settings = settings()
        self.tuned = {}
        self.tune(Limits, close_after_dpa_s=0.3 * FACTOR)  # how long a node that ends waits for each client
        self.node = None
        folder.mkdir(parents=True)
        (folder / "signers").write_text(publisher.signers)
        self.configure()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.node is not None:
            self.node.end(check=kind is None)

    def configure(self, **changes):
        """Write the configuration with these sections replaced."""
        self.settings |= changes
        written = self.path.with_suffix(".new")
        written.write_text(yaml.dump(self.settings, Dumper=PlainDumper, sort_keys=False))
        written.replace(self.path)  # a running node polls the file, and must not see half of it

    def tune(self, cls, **defaults):
        """Give nodes that start from now on these defaults of a dataclass, for settings that no key changes."""
        self.tuned |= {f"{cls.__module__}.{cls.__qualname__}.{name}": value for name, value in defaults.items()}

    def environment(self, **changes):
        bare = {
            name: value for name, value in os.environ.items() if name not in {"EIR_CONFIG", "COLUMNS", "FORCE_COLOR"}
        }
        tuned = {TUNABLES: LARGE_PAGES}  # without it `eir serve` executes itself again
        return tuned | bare | {"EIR_CONFIG": str(self.path)} | changes

    def eir(self, *arguments, status=0, prefix=(), **options):
        """Run a command of this host to its end in a process of its own, as `run_eir` does."""
        given = {"env": self.environment(), "cwd": self.folder} | options
        return run_eir(*arguments, status=status, prefix=prefix, **given)

    def popen(self, *arguments, prefix=(), program=COMMAND, **options):
        """Start a command of this host in a process of its own, for a test that sends it input or signals.

        `program`: words that start the program, in place of `python -m eir`.
        """
        given = {"env": self.environment(), "cwd": self.folder, "text": True} | options
        return subprocess.Popen([*prefix, *program, *map(str, arguments)], **given)

    async def eir_beside(self, *arguments, status=0):
        """Run a command beside clients that go on."""
        return await asyncio.to_thread(self.eir, *arguments, status=status)

    def json(self, *arguments, status=0):
        return json.loads(self.eir(*arguments, "--json", status=status).stdout)

    def release(self, *data, list_name="stolen", serial=1, **options):
        """Publish data as a release; returns its manifest. Data: IMEIs, rows under another header, or a Path to a file."""
        folder = self.folder / "releases"
        folder.mkdir(exist_ok=True)
        files = [each for each in data if isinstance(each, Path)]
        for number, rows in enumerate(each for each in data if not isinstance(each, Path)):
            files.append(folder / f"{list_name}-{serial}-{number}.csv")
            header = () if rows and rows[0].startswith(("imei", "tac", "identifier")) else ("imei",)
            files[-1].write_text("".join(f"{row}\n" for row in (*header, *rows)))
        return self.publisher.publish(folder, files, list_name=list_name, serial=serial, **options)

    def load(self, *data, now=None, **options):
        """Publish and load what a test starts from: as `eir load` does, without the cost of a process. `now`: when that was."""
        manifest = self.release(*data, **options)
        config = load_config(self.path)

        async def load():
            store = open_store(config.store, config.state)
            try:
                report = await load_release(
                    manifest, config.lists, store, who="test@localhost", now=now or datetime.now(UTC)
                )
                await recorded(config, store, report.list, report.change)
            finally:
                await store.close()

        with ThreadPoolExecutor(1) as aside:  # the caller may have a loop of its own
            aside.submit(asyncio.run, load()).result()

    def is_copied(self, generations=None):
        """Return True if the node has copied a list; `generations`: these lists, each at least of its generation."""
        try:
            heads = copied_heads(self.state / COPIES)
        except (StoreError, FileNotFoundError):  # a copy is replaced
            return False
        if generations is None:
            return bool(heads)
        return all(name in heads and heads[name].generation >= wanted for name, wanted in generations.items())

    def start(self, *, ready=True, prefix=(), arguments=()):
        """Start `eir serve`; `ready`: wait until it listens (or else only until it can be asked).

        In tests the node is forked (scripts/simulated/commands.py). It is a program of its own with a `prefix`, with code by the fixture
        `altered`, and in `scripts/soak`.
        """
        assert self.node is None or self.node.process.poll() is not None, "one node at a time"
        self.node = Node(self, prefix, arguments)
        self.node.await_start(ready=ready)
        return self.node


class Node:
    """A running `eir serve`."""

    def __init__(self, site, prefix=(), arguments=()):
        self.site = site
        self._prefixed = bool(prefix)
        self.log = site.folder / "serve.log"
        environment = site.environment()
        with self.log.open("a") as log:
            self._skip = log.tell()
            if prefix or "PYTHONPATH" in environment or "PYTEST_VERSION" not in os.environ:
                self.process = subprocess.Popen(
                    [*prefix, *COMMAND, "serve", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | self._tuned(environment.get("PYTHONPATH")),
                    cwd=site.folder,
                )
            else:
                constants = json.dumps(PERIODS | site.tuned | json.loads(environment.get(CONSTANTS, "{}")))
                self.process = commands().start(
                    ["serve", *map(str, arguments)],
                    env=environment | {CONSTANTS: constants},
                    cwd=site.folder,
                    stdout=log,
                    stderr=log,
                )

    def _tuned(self, altered):
        """Environment of a program of its own, in which the constants of the site are replaced. `altered`: its PYTHONPATH, or None."""
        folder = self.site.folder / "tuned"
        folder.mkdir(exist_ok=True)
        code = f"from simulated.commands import replace_constant\nfor each in {self.site.tuned}.items(): replace_constant(*each)\n"
        folders = [str(folder), str(Path(__file__).parents[1])]
        if altered:
            folders.append(altered)
            own = Path(altered) / "sitecustomize.py"
            code += own.read_text() if own.exists() else ""  # Python runs only the first file of this name
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": ":".join(folders)}

    @property
    def pid(self):
        return self.process.pid

    def await_start(self, *, ready):
        def answers():
            assert self.process.poll() is None, f"eir serve ended with {self.process.returncode}: {self.text()}"
            try:
                said = self.status()
            except ControlError:
                return None
            # The control socket opens first, then the pages, then the listeners.
            is_up = said["listening"] if ready else said["http"] or self.site.settings["http"] == "off"
            ours = self._prefixed or said["pid"] == self.pid  # not one that was killed and is ending
            return said if is_up and ours else None

        said = until(answers)
        self.http = said["http"]

    def status(self):
        """The output of `eir status --json`, without the cost of a process."""
        return ask(self.site.state, "status")

    @property
    def address(self):
        """Host and port of the first listener."""
        host, _, port = self.status()["listening"][0].partition("://")[2].rpartition(":")
        return host, int(port)

    def text(self):
        """The log since this node's start."""
        with self.log.open("rb") as log:
            log.seek(self._skip)
            return log.read().decode()

    def lines(self, event=None, **wanted):
        """Log lines as dictionaries, those of an event only, and with these values only."""
        found = [fields(line) for line in self.text().splitlines()]
        wanted = {name: str(value) for name, value in wanted.items()}
        return [
            line for line in found if (event is None or line.get("event") == event) and wanted.items() <= line.items()
        ]

    def get(self, path):
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self):
        """Samples by name, with labels where there are: `eir_list_serial{list=stolen}` → value."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def is_restarted(self, times=1):
        """Return True if the answering process was restarted so many times, and the last one answers."""
        samples = self.metrics()
        return samples["eir_process_restarts_total{process=answering}"] == times and samples["eir_answering_up"] == 1

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        """Wait for the end; returns the exit status."""
        return self.process.wait(PATIENCE_S)

    def end(self, *, check=True):
        """SIGTERM, if it still runs; a node that does not end by it with 0 fails the test."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                status = self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                status = "none within the time"
            assert not check or status == 0, f"exit status {status}: {self.text()}"
        assert not check or "Traceback" not in self.text(), self.text()
