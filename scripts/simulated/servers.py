"""Real Redis (or Valkey) servers, each on a free port with its own folder, stopped by their process id."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from .patience import PATIENCE_S, PROGRAM_S

PROGRAMS = {"redis": "redis-server", "valkey": "valkey-server"}


PAGE = Path(__file__).parents[2] / "deploy" / "REDIS.md"
USER_FILE = re.findall(r"^user .+$", PAGE.read_text(), re.MULTILINE)
"""The user file of deploy/REDIS.md."""


def programs():
    """Those of the servers that this machine has."""
    return {name: found for name, program in PROGRAMS.items() if (found := shutil.which(program))}


BUS = 10_000
"""A cluster's nodes speak to each other on a port so much higher."""
PORTS = range(10_000, 20_000)
"""These, and those so much higher, are below the ones that Linux gives to connections (ip_local_port_range)."""


def free_port():
    """A port that nobody else is given as long as this process runs; the one on which a cluster's node speaks to others is free too."""
    while True:
        port = random.choice(PORTS)
        with contextlib.ExitStack() as tried:
            try:
                for each in (port, port + BUS):
                    tried.enter_context(socket.socket()).bind(("127.0.0.1", each))
                claim = tried.enter_context(socket.socket(socket.AF_UNIX))
                claim.bind(f"\0eir-test-port-{port}")
            except OSError:
                continue
            claim.detach()  # it ends with the process
            return port


def _said(words):
    """A command as the protocol has it."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Server:
    """One server process; `command` speaks to it without any client library."""

    def __init__(self, program, *options, port=0, folder=None, sentinel=None):
        self.program = program
        self.options = options
        self.port = port or free_port()
        self._may_move = not port and sentinel is None
        """Nobody has been told of the port yet."""
        self.owned = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="eir-redis-"))
        self.sentinel = sentinel
        self.process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def start(self):
        """Start it, and wait until it answers; on another port if this one was taken meanwhile."""
        self.launch()
        try:
            self.await_answer()
        except RuntimeError:
            if not self._may_move or self.process.poll() is None:
                raise
            self.port, self._may_move = free_port(), False
            return self.start()
        self._may_move = False
        return self

    def await_answer(self):
        """Wait until it has started, and loaded what it has on its disk."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.command("PING").startswith((b"+PONG", b"-NOAUTH", b"-NOPERM")):
                    return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.program} did not start on port {self.port}")

    def launch(self):
        """Start the process and do not wait until it answers. `sentinel`: its file, which makes it a sentinel."""
        plain = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        how = [str(self.sentinel), "--sentinel"] if self.sentinel else plain
        self.process = subprocess.Popen(
            [self.program, *how, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def command(self, *words, then=()):
        """The raw reply to one command (its first 64 KiB), or to a second one after it."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), timeout=PROGRAM_S)) as one:
            for said in filter(None, (words, then)):
                one.sendall(_said(said))
                reply = one.recv(1 << 16)
            return reply

    def flush(self):
        self.command("FLUSHALL")

    def end(self):
        """Have it end as a service manager does."""
        self.process.terminate()
        self.process.wait()
        self.process = None

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self):
        self.kill()
        if self.owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class Protected(Server):
    """A server with the user file of the page, and an AOF. `command` is an administrator's."""

    PASSWORD = "secret"

    def __init__(self, program, *options, users=USER_FILE, **more):
        super().__init__(program, "--appendonly", "yes", *options, **more)
        file = self.folder / "users.acl"
        file.write_text(
            "".join(
                f"{user.replace('PASSWORD', self.PASSWORD)}\n"
                for user in (*users, "user admin on >PASSWORD ~* &* +@all")
            )
        )
        self.options += ("--aclfile", str(file))

    @property
    def url(self):
        return self.url_of("loader")

    def url_of(self, user):
        return f"redis://{user}:{self.PASSWORD}@127.0.0.1:{self.port}"

    def command(self, *words, then=()):
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), timeout=PROGRAM_S)) as one:
            for said in filter(None, (("AUTH", "admin", self.PASSWORD), words, then)):
                one.sendall(_said(said))
                reply = one.recv(1 << 16)
            return reply
