"""Commands of `eir` in processes that are forked from one that has imported the program: a command then costs a tenth.

`commands().run()` is `subprocess.run([sys.executable, "-m", "eir", *arguments])` with output as text; `commands().start()` is
`subprocess.Popen` of the same.
"""

import array
import asyncio
import atexit
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

IMPORTED = ("eir.cli", "eir.interfaces", "eir.lists.stores", "eir.node", "eir.wire")
"""Packages that are imported before the fork."""
THREADED = ("eir.cli.figures", "eir.cli.sightings", "eir.cli.tamper")
"""Modules that are imported after the fork, because their libraries start threads."""
LENGTH_BYTES = 4
CONSTANTS = "EIR_TEST_CONSTANTS"
"""Environment variable with constants of the program that a command is to have, by their full names, as JSON.

The default of a dataclass's field is a constant too, such as `eir.wire.peers.settings.Limits.stalled_write_s`.
"""


@cache
def commands():
    """Return the client of this test process."""
    return Commands()


class Commands:
    """Client of a process that forks commands."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="eir-commands-")
        self._path = f"{self._folder.name}/socket"
        ours, self._life = socket.socketpair()
        with ours:
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
            environment.pop("PYTHONPATH", None)  # a test may have altered the program
            command = [sys.executable, __file__, "serve", self._path, str(ours.fileno())]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[ours.fileno()])
        self._life.recv(1)  # it listens
        atexit.register(self.close)

    @property
    def pid(self):
        """Process that forks."""
        return self._process.pid

    def close(self):
        """End the process."""
        self._life.close()
        self._process.wait()
        self._folder.cleanup()

    def run(self, arguments, *, env, cwd, timeout):
        """Run a command to its end, without input.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            status = self.start(arguments, env=env, cwd=cwd, stdout=out, stderr=err).wait(timeout)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess(arguments, status, *texts)

    def start(self, arguments, *, env, cwd, stdout, stderr):
        """Start a command without input; its output goes to these files."""
        with Path(os.devnull).open("rb") as nothing:
            return Forked(self._path, arguments, env, cwd, [nothing.fileno(), stdout.fileno(), stderr.fileno()])

    def write_program(self, path):
        """Write a program `eir` for shell scripts: it forks each command but `serve`, which gets signals."""
        path.write_text(
            f'#!/bin/sh\ncase " $* " in *" serve "*) exec {sys.executable} -m eir "$@" ;; esac\n'
            f'exec {sys.executable} -S {__file__} run {self._path} "$@"\n'
        )
        path.chmod(0o755)


class Forked:
    """Forked command, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, path, arguments, env, cwd, files):
        self.args, self.returncode = arguments, None
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(path)
        request = json.dumps({"arguments": arguments, "environment": env, "folder": str(cwd)}).encode()
        descriptors = array.array("i", files).tobytes()
        self._link.sendmsg([len(request).to_bytes(LENGTH_BYTES)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        self._link.sendall(request)
        self.pid = self._read()

    def poll(self):
        """Return the exit status, or None while the command runs."""
        if self.returncode is None and select.select([self._link], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end; return the exit status.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._link], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._read()
            self._link.close()
        return self.returncode

    def send_signal(self, number):
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """Send SIGKILL, unless the command has ended."""
        self.send_signal(signal.SIGKILL)

    def _read(self):
        """Return the next number that the forking process sends."""
        octets = self._link.recv(LENGTH_BYTES, socket.MSG_WAITALL)
        return int.from_bytes(octets, signed=True)


def _serve(path, life):
    """Fork a command for each connection until `life` is closed; then end those that still run."""
    for package in IMPORTED:
        for module in walk_packages(import_module(package).__path__, f"{package}."):
            if module.name not in THREADED:
                import_module(module.name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads are not there after a fork"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    waiting = selectors.DefaultSelector()
    waiting.register(life, selectors.EVENT_READ)
    waiting.register(listener, selectors.EVENT_READ)
    gc.freeze()  # a collection in a command copies none of this memory
    os.write(life, b"1")
    try:
        _fork_all(listener, life, waiting)
    finally:  # the tests have ended, or were killed
        for key in waiting.get_map().values():
            if key.data is not None:
                os.kill(key.data[0], signal.SIGKILL)


def _fork_all(listener, life, waiting):
    while True:
        for key, _ in waiting.select():
            if key.fileobj == life:
                return
            if key.fileobj is listener:
                link, _ = listener.accept()
                pid = _fork(link, [listener.fileno(), life])
                link.sendall(pid.to_bytes(LENGTH_BYTES))
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, link))
            else:
                pid, link = key.data
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with link, suppress(BrokenPipeError):
                    link.sendall(status.to_bytes(LENGTH_BYTES, signed=True))


def _fork(link, files):
    """Fork the command that a client sends; return its process id."""
    octets, files, *_ = socket.recv_fds(link, LENGTH_BYTES, 3)
    size = int.from_bytes(octets)
    request = json.loads(link.recv(size, socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        _run(files, **request)
    for file in files:
        os.close(file)
    return pid


def replace_constant(name, value):
    """Replace a constant of the program in this process."""
    owner, _, constant = name.rpartition(".")
    module, _, cls = owner.rpartition(".")
    if cls[0].isupper():
        constants = getattr(import_module(module), cls).__init__.__kwdefaults__
    else:
        constants = vars(import_module(owner))
    constants[constant] = value if isinstance(value, float) else type(constants[constant])(value)


class ForkedProgram:
    """Forked process of a node, with those methods of `asyncio.subprocess.Process` that a node uses."""

    def __init__(self, pid):
        self.pid = pid
        self._status = asyncio.get_running_loop().create_future()
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    async def wait(self):
        """Wait for the end; return the exit status."""
        return await asyncio.shield(self._status)

    def send_signal(self, number):
        """Send a signal, unless the process has ended."""
        if not self._status.done():
            os.kill(self.pid, number)

    def _reap(self):
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._status.set_result(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))


async def fork_program(name, work, *arguments, owned, nice=0, descriptors=()):
    """Fork a process of a node from its supervisor, instead of executing Python: `eir.node.processes.program.spawn` without pipes."""
    pid = os.fork()
    if pid:
        return ForkedProgram(pid)
    asyncio._set_running_loop(None)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    files = {int(entry.name): os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}  # noqa: ASYNC240 - waits for no disk
    both_ends = {file for file, count in Counter(files.values()).items() if "pipe:" in file and count > 1}
    for each, file in files.items():
        if each > 2 and each not in descriptors and file not in both_ends:  # libuv aborts without a pipe of its own
            with suppress(OSError):  # that of the folder
                os.close(each)
    sys.argv[1:] = [name, str(nice), str(owned), work, *arguments]
    return import_module("eir.node.processes.program").main()


def _run(files, arguments, environment, folder):
    """Run the command in this process, and end it."""
    status = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.closerange(3, 1000)
        for name, value in json.loads(environment.pop(CONSTANTS, "{}")).items():
            replace_constant(name, value)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(folder)
        sys.argv = ["eir", *arguments]
        import_module("eir.node.processes.child").spawn = fork_program
        import_module("eir.__main__").main()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(status)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "serve":
        _serve(where, int(rest[0]))
    else:
        sys.exit(Forked(where, rest, dict(os.environ), Path.cwd(), [0, 1, 2]).wait())
