"""Runs commands of `eir` in processes that are forked from one that has imported the program: a command then costs a tenth.

`commands().run()` is `subprocess.run([sys.executable, "-m", "eir", *arguments])` with output as text.
"""

import array
import atexit
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

THREADED = ("figures", "sightings", "tamper")
"""Modules of commands that are imported after the fork, because their libraries start threads."""
LENGTH_BYTES = 4


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
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._path, str(ours.fileno())], env=environment, pass_fds=[ours.fileno()]
            )
        self._life.recv(1)  # it listens
        atexit.register(self.close)

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
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            Path(os.devnull).open("rb") as nothing,
            socket.socket(socket.AF_UNIX) as link,
        ):
            link.connect(self._path)
            request = json.dumps({"arguments": arguments, "environment": env, "folder": str(cwd)}).encode()
            files = array.array("i", [nothing.fileno(), out.fileno(), err.fileno()])
            link.sendmsg(
                [len(request).to_bytes(LENGTH_BYTES)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files.tobytes())]
            )
            link.sendall(request)
            link.settimeout(timeout)
            try:
                status = json.loads(link.recv(100))
            except TimeoutError:
                raise subprocess.TimeoutExpired(arguments, timeout) from None
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess(arguments, status, *texts)


def _serve(path, life):
    """Fork a command for each connection until `life` is closed."""
    for module in iter_modules([str(Path(import_module("eir.cli").__file__).parent)]):
        if module.name not in THREADED:
            import_module(f"eir.cli.{module.name}")
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads are not there after a fork"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    waiting = selectors.DefaultSelector()
    waiting.register(life, selectors.EVENT_READ)
    waiting.register(listener, selectors.EVENT_READ)
    os.write(life, b"1")
    while True:
        for key, _ in waiting.select():
            if key.fileobj == life:
                return
            if key.fileobj is listener:
                link, _ = listener.accept()
                pid = _fork(link, [listener.fileno(), life])
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, link))
            else:
                pid, link = key.data
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with link:
                    link.sendall(json.dumps(status).encode())


def _fork(link, files):
    """Fork the command that a client sends; return its process id."""
    octets, files, *_ = socket.recv_fds(link, LENGTH_BYTES, 3)
    size = int.from_bytes(octets)
    request = b""
    while len(request) < size:
        request += link.recv(size - len(request))
    pid = os.fork()
    if pid == 0:
        _run(files, **json.loads(request))
    for file in files:
        os.close(file)
    return pid


def _run(files, arguments, environment, folder):
    """Run the command in this process, and end it."""
    status = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.closerange(3, 1000)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(folder)
        sys.argv = ["eir", *arguments]
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
    _serve(sys.argv[1], int(sys.argv[2]))
