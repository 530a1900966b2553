"""A protocol that the program does not have comes with a folder of its own and one line: a line with an IMEI in, a line with its status out."""

import shutil
import socket

import pytest
from pages import ROOT
from simulated.node import LISTED, UNLISTED, Site, until
from simulated.servers import free_port

FOLDER = {
    "__init__.py": '''
"""Toy: lines of text over TCP."""

from dataclasses import dataclass

from eir.interfaces.interface import Interface
from eir.schema import FLAG, Family, Key, Section, many, url

PORT = 4444
LISTEN = url({"tcp": PORT}, "tcp://127.0.0.1:4444")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings:
    listen: tuple[str, ...] = ()


def _warn(settings, shared, document):
    for at, listener in enumerate(settings.listen):
        if listener.endswith(f":{PORT}"):
            yield "toys like another port", ("toy", "listen", at)


INTERFACE = Interface(
    name="toy",
    section="toy",
    keys=(Key("toy.listen", many(LISTEN), (), "where toys ask; nowhere if left out", live=False),),
    sections=(Section("toy", ToySettings),),
    warn=_warn,
    families=(Family("eir_toy_lines_total", "counter", ("peer",), "Lines that toys sent"),),
    server="eir.interfaces.toy.server:ToyServer",
    client="a toy",
    words=str,
    probe="eir.interfaces.toy.probe:connected",
    probe_keys=(Key("shout", FLAG, False, "whether the toy asks in capitals"),),
)
''',
    "server.py": '''
"""The server, and its connections."""

from collections import Counter

from eir.checks.question import Question
from eir.wire.peers.link import PeerConnection
from eir.wire.peers.server import Server
from eir.wire.peers.settings import Requester, is_from


class ToyConnection(PeerConnection):
    received, lines = b"", 0

    def begin(self):
        return self.owner.admit(self)

    def data_received(self, data):
        self.received += data
        self.request_turn()

    def work(self, enough):
        *lines, self.received = self.received.split(b"\\n")
        for line in lines:
            self.lines += 1
            self.transport.write(self.owner.answer(self, line.decode()).encode() + b"\\n")
        return False

    def leave(self):
        self.close()

    def wants_bytes(self):
        return True

    @property
    def tally(self):
        return self.lines, self.lines


class ToyServer(Server):
    def __init__(self, settings, context):
        super().__init__("toy", counts=context.counts, rates=context.rates, report=context.report)
        self.checker, self.lines = context.checker, Counter()
        self.apply(settings, context)

    def apply(self, settings, context):
        self.use(context.shared.peers, context.shared.limits)

    def link(self):
        return ToyConnection(self, self.loop)

    def who(self, link):
        found = next((each for each in self.peers if is_from(each, link.source)), None)
        return None if found is None else (found, Requester(found.label))

    def answer(self, link, imei):
        label = link.requester.label
        self.lines[label,] += 1
        return str(self.checker.check(Question(imei=imei, protocol="toy", peer=label)).status)

    def counters(self):
        return {"eir_toy_lines_total": self.lines}
''',
    "probe.py": '''
"""The asking side."""

import asyncio
import time
from functools import partial

from eir.interfaces.probing import ProbeFinding


class Client:
    closed_by = ""

    def __init__(self, probe, reader, writer):
        self.shouts, self.reader, self.writer = probe.parameters["shout"], reader, writer

    async def listen(self):
        await asyncio.Event().wait()

    async def ask(self, imei, imsi, software_version):
        began = time.perf_counter()
        self.writer.write((imei.upper() if self.shouts else imei).encode() + b"\\n")
        status = (await self.reader.readline()).decode().strip()
        return ProbeFinding(imei, imsi, status, round_trip_ms=1000 * (time.perf_counter() - began))


def connected(probe):
    return probe.over_stream(4444, partial(Client, probe))
''',
}


class Extended(Site):
    """A host whose `eir` has one more protocol."""

    def __init__(self, folder, publisher, program):
        self.program = program
        super().__init__(folder, publisher)

    def environment(self, **changes):
        return super().environment(PYTHONPATH=str(self.program), **changes)

    def eir(self, *arguments, **options):
        """Run a command in a process of its own, which imports that program."""
        return super().eir(*arguments, prefix=["env"], **options)


@pytest.fixture
def program(tmp_path):
    """A copy of the program with the toy's folder, and one line that names it."""
    shutil.copytree(ROOT / "eir", tmp_path / "eir", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "eir" / "interfaces" / "toy"
    folder.mkdir()
    for name, text in FOLDER.items():
        (folder / name).write_text(text.lstrip())
    index = tmp_path / "eir" / "interfaces" / "__init__.py"
    index.write_text(
        index.read_text().replace('    "device_authenticity",\n', '    "device_authenticity",\n    "toy",\n')
    )
    return tmp_path


@pytest.mark.long
def test_a_protocol_is_a_folder_and_one_line(program, publisher):
    with Extended(program / "site", publisher, program) as site:
        port = free_port()
        site.configure(toy={"listen": f"tcp://127.0.0.1:{port}"})
        site.eir("load", site.release(["imei,reason", f"{LISTED},stolen in transit"]))
        site.eir("load", site.release([UNLISTED], list_name="tracked"))
        node = site.start()
        until(lambda: node.status()["ready"] == "ready")

        with socket.create_connection(("127.0.0.1", port)) as toy, toy.makefile("rw") as lines:
            for imei, status in ((LISTED, "blacklisted"), (UNLISTED, "greylisted"), ("35123456789099", "whitelisted")):
                lines.write(f"{imei}\n")
                lines.flush()
                assert lines.readline() == f"{status}\n"
            assert f"tcp://127.0.0.1:{port}" in site.json("status")["listening"]
            assert ("toy", 3) in {(each["protocol"], each["requests"]) for each in site.json("peers")}
            samples = node.metrics()
            assert (
                sum(
                    count
                    for name, count in samples.items()
                    if name.startswith("eir_checks_total{") and "protocol=toy" in name
                )
                == 3
            )
            assert samples["eir_toy_lines_total{peer=mme}"] == 3

        eir = f"toy://127.0.0.1:{port}"
        (found,) = site.json("probe", f"{eir}?shout=yes", LISTED)
        assert found["status"] == "blacklisted"
        assert (
            "unknown parameter shuot; expected shout; did you mean 'shout'?"
            in site.eir("probe", f"{eir}?shuot=yes", LISTED, status=2).stderr
        )
        assert (
            "shout: expected true or false, got loud" in site.eir("probe", f"{eir}?shout=loud", LISTED, status=2).stderr
        )
        assert site.json("check", LISTED, "--protocol", eir)["answer"] == "blacklisted"
        assert site.json("check", LISTED, "--protocol", "toy")["answer"] == "blacklisted"


def test_its_keys_are_those_of_the_configuration(program, publisher):
    with Extended(program / "site", publisher, program) as site:
        site.configure(toy={"listen": "tcp://127.0.0.1"})
        assert site.json("config")["toy"] == {"listen": ["tcp://127.0.0.1:4444"]}
        assert "toys like another port" in site.eir("config").stderr
        keys = {key["key"]: key for key in site.json("config", "--reference")}
        assert keys["toy.listen"]["restart"]
        assert "| `toy.listen` | tcp://ADDRESS:PORT, or several |" in site.eir("config", "--reference").stdout
        site.configure(toy={"listen": "udp://127.0.0.1"})
        assert "expected tcp://ADDRESS:PORT" in site.eir("config", status=2).stderr


def test_without_the_line_nothing_knows_it(program, publisher):
    index = program / "eir" / "interfaces" / "__init__.py"
    index.write_text(index.read_text().replace('    "toy",\n', ""))
    with Extended(program / "site", publisher, program) as site:
        site.configure(toy={"listen": f"tcp://127.0.0.1:{free_port()}"})
        assert "unknown key 'toy'" in site.eir("config", status=2).stderr
        known = "expected one of s13://HOST, n5g://HOST, gsup://HOST, map://HOST"
        assert known in site.eir("probe", "toy://127.0.0.1:4444", LISTED, status=2).stderr
