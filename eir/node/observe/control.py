"""The control socket of a running node: how `eir status`, `eir peers`, `eir reload` and `eir drain` reach it.

A Unix socket in the state folder, mode 0660: who may open it is who may steer the node. One JSON document a line, one request
a connection: `{"command": NAME, ...arguments}` → `{"ok": true, "result": …}` or `{"ok": false, "error": TEXT}`.

The socket of `control_read` is another one of the kind, in a folder of its own, for people and programs who may do no more than look:
`Looking` runs their commands. Such a command runs as a process of the node's user, so the caller needs no right on the configuration,
the store or the record. Arguments come from people who are not trusted with the node: nothing that is not in LOOKS gets through.
"""

import asyncio
import errno
import json
import os
import pwd
import socket
import stat
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from eir.errors import EirError, Report, place_of

SOCKET_NAME = "control.sock"
REQUEST_MAX_BYTES = 64 * 1024
TIMEOUT_S = 30.0
LINKS_MAX = 128
"""Connections to a socket at once; for a further one the oldest that has not asked yet is closed, or else that one."""

PING, RUNNING, STOPPING = "ping", "running", "stopping"
"""A command that each node has, and its two answers."""

NOBODY = "unknown"
_asker: ContextVar[int | None] = ContextVar("asker", default=None)
"""The user id of the person who asked for the command that is being carried out."""

Command = Callable[[dict[str, Any]], Any | Awaitable[Any]]
Arguments = Mapping[str, type | UnionType]
"""Arguments of a command, by name, with their types. An argument whose type includes None may be left out."""


class ControlError(EirError):
    """The node does not run, does not answer, or says no."""


class ControlAway(ControlError):
    """No node runs on the state folder."""


class ControlDenied(ControlError):
    """The user may not open the socket, so whether a node runs there is not known."""


class ControlServer:
    """Answers commands (name → callable of the request's arguments) on a socket in the folder.

    `accepts`: arguments of those commands that have any. A request with others is answered with an error and not logged.
    """

    def __init__(
        self,
        folder: Path,
        commands: Mapping[str, Command],
        *,
        accepts: Mapping[str, Arguments] | None = None,
        name: str = SOCKET_NAME,
        report: Report,
        timeout_s: float = TIMEOUT_S,
        links_max: int = LINKS_MAX,
    ) -> None:
        """`timeout_s`: the time for a request and its answer; `links_max`: connections at once."""
        self._folder = folder
        self._name = name
        self._commands, self._accepts = commands, accepts or {}
        self._report = report
        self._timeout_s, self._links_max = timeout_s, links_max
        self._links: dict[asyncio.StreamWriter, bool] = {}
        """Connections, the oldest first, and whether each has asked."""
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Open the socket, in the place of one that a killed node left: who holds the state folder has no other node beside it."""
        path = self._folder / self._name
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "there is something else than a socket", str(path))
            path.unlink()
        listener, mask = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), os.umask(0o117)
        try:
            with _reached(self._folder, self._name) as reached:
                listener.bind(reached)
        finally:
            os.umask(mask)
        if self._name != SOCKET_NAME:
            os.chown(path, -1, self._folder.stat().st_gid)
        path.chmod(0o660)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=REQUEST_MAX_BYTES)

    async def close(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            self._server.close()
            (self._folder / self._name).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._links) >= self._links_max:  # who holds connections open takes no files from peers
            oldest = next((each for each, has_asked in self._links.items() if not has_asked), writer)
            self._links.pop(oldest, None)  # it is closed in a moment, and many may come in this one
            oldest.transport.abort()
        self._links[writer] = False
        try:
            async with asyncio.timeout(self._timeout_s):
                _asker.set(_uid_of(writer.get_extra_info("socket")))
                line = await reader.readline()
                self._links[writer] = True
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # the client is gone or sends no line
        finally:
            self._links.pop(writer, None)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            json.dumps(request, ensure_ascii=False).encode()  # a lone surrogate is no text
            name = request.pop("command")
            command = self._commands[name]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return {"ok": False, "error": f"no such command; there are: {', '.join(self._commands)}"}
        if wrong := _wrong_arguments(name, request, self._accepts.get(name, {})):
            return {"ok": False, "error": wrong}
        try:
            result = command(request)
            return {"ok": True, "result": await result if isinstance(result, Awaitable) else result}
        except (EirError, OSError) as e:
            return {"ok": False, "error": str(e)}
        except Exception as e:  # noqa: BLE001 - whatever it is: the client hears of it, and the socket goes on
            self._report("fault", reason=name, level="error", detail=place_of(e))
            return {"ok": False, "error": f"{name} failed ({type(e).__name__}); the log says more (fault)"}


def _wrong_arguments(command: str, request: Mapping[str, Any], accepted: Arguments) -> str:
    """Return why the command does not accept the arguments of a request; empty if it does."""
    if surplus := [name for name in request if name not in accepted]:
        return f"{command} takes {', '.join(accepted) or 'no argument'}; found: {', '.join(surplus)}"
    for name, kind in accepted.items():
        value = request.get(name)
        is_switch = isinstance(value, bool) and bool not in (
            kind,
            *get_args(kind),
        )  # which Python counts among the numbers
        if not isinstance(value, kind) or is_switch:
            return f"{command} needs {name} ({kind.__name__ if isinstance(kind, type) else kind})"
    return ""


async def asker() -> str:
    """Return who asked for the command that is being carried out, by the kernel's word: a user's name or `uid N`.

    The user database may be remote (LDAP), so a thread asks.
    """
    uid = _asker.get()
    return NOBODY if uid is None else await asyncio.to_thread(_user, uid)


def _uid_of(link: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _user(uid: int, *, otherwise: str = "uid {}") -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return otherwise.format(uid)


@contextmanager
def _reached(folder: Path, name: str) -> Iterator[str]:
    """The socket's path through a descriptor of the folder: a Unix socket's path may have 107 bytes only."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def ask(folder: Path, command: str, *, at: str = SOCKET_NAME, timeout_s: float | None = None, **arguments: Any) -> Any:
    """Have the node whose socket is in the folder (its state folder) carry out a command; returns its result.

    Raises ControlError when no node runs there, when it does not answer in time (30 s unless given), or when it says no;
    ControlDenied when this user may not ask.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(TIMEOUT_S if timeout_s is None else timeout_s)
            with _reached(folder, at) as reached:
                link.connect(reached)
            link.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with link.makefile("rb") as answers:
                line = answers.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        where = (
            f"on the state folder {folder} (start one: eir serve)"
            if at == SOCKET_NAME
            else f"with control_read: {folder / at}"
        )
        raise ControlAway(f"no node runs {where}") from None
    except PermissionError:
        advice = as_owner(folder) if at == SOCKET_NAME else f"; who is in the group of {folder} may"
        raise ControlDenied(f"may not open the control socket in {folder}{advice}") from None
    except OSError as e:
        raise ControlError(f"the node on the state folder {folder} does not answer: {e}") from None
    if not line:
        raise ControlError(f"the node on the state folder {folder} closed the connection")
    answer = json.loads(line)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer["result"]


def as_owner(folder: Path) -> str:
    """Return advice for a state folder that this user may not use; nothing where it is this user's own."""
    advice = "; run it as the user that the node runs as"
    try:
        owner = folder.stat().st_uid
    except OSError:
        return advice
    return "" if owner == os.geteuid() else f"{advice}: sudo -u {_user(owner, otherwise='#{}')} eir …"


ENVIRONMENT = "EIR_CONTROL"
"""The environment variable that names the socket to a command."""
RUN = "run"
"""The one command of the socket."""
RUN_ACCEPTS: Mapping[str, Arguments] = {RUN: {"arguments": list}}

_ALL = {"--json", "--help", "-h"}
LOOKS: Mapping[str, set[str]] = {
    "status": _ALL, "peers": _ALL, "lists": _ALL | {"--store"},
    "check": _ALL | {"--imsi", "--software-version", "--origin-host", "--origin-realm", "--protocol", "--store"},
    "show": _ALL | {"-n", "--limit", "--skip", "--store"},
    "history": _ALL | {"-n", "--limit", "--since", "--chain", "--verify"},
    "seen": _ALL | {"--since"},
    "why": _ALL | {"--imsi", "--at"},
}  # fmt: skip
"""Command → the options that may be given: none that reads another configuration, or writes a file."""
_WITHOUT_ARGUMENTS = {"lists"}
"""Commands whose second word is another command, which may change something."""
AT_ONCE, TIME_S, OUT_BYTES_MAX = 4, 20.0, 8 << 20
"""Limits of such processes: how many run at once, for how long, and how much they may write."""


def refusal(arguments: Sequence[str]) -> str | None:
    """Return why a command line may not run; None if it may."""
    command, *rest = arguments or [""]
    if any("\0" in argument for argument in arguments):
        return "an argument holds a NUL character"
    if command not in LOOKS:
        return f"who may only look may say: {', '.join(LOOKS)}"
    for argument in rest:
        option, _, _ = argument.partition("=")
        if option not in LOOKS[command] and (argument.startswith("-") or command in _WITHOUT_ARGUMENTS):
            return f"{command} {option}: not for who may only look"
    return None


class Looking:
    """Runs such commands, a few at a time."""

    def __init__(self, config: Path, *, time_s: float = TIME_S, out_bytes_max: int = OUT_BYTES_MAX) -> None:
        """`time_s`, `out_bytes_max`: a command that takes longer, or writes more, is ended."""
        self._config, self._time_s, self._out_bytes_max = config, time_s, out_bytes_max
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run the command line `arguments`; returns its exit status and what it wrote. Raises EirError for one that may not run."""
        arguments = [str(argument) for argument in request["arguments"]]
        if reason := refusal(arguments):
            raise EirError(reason)
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "eir", "-c", str(self._config), *arguments, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(self._time_s):
                    both = (process.stdout, process.stderr)
                    out, err = await asyncio.gather(*(_bounded(stream, self._out_bytes_max) for stream in both))
                    return {"status": await process.wait(), "out": out, "err": err}
            except TimeoutError:
                raise EirError(f"{arguments[0]}: no answer in {self._time_s:g} s") from None
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def answer(self, identifier: str) -> str:
        """Return the words of `eir check` for an identifier, or why it says nothing; nothing for an empty one."""
        if not identifier.isalnum():
            return "that is no identifier of a device" if identifier else ""
        try:
            said = await self.run({"arguments": ["check", identifier]})
        except EirError as e:
            return str(e)
        return str(said["out"] or said["err"]).strip()


async def _bounded(stream: asyncio.StreamReader | None, most: int) -> str:
    octets = b""
    while stream is not None and (piece := await stream.read(1 << 16)):
        octets += piece
        if len(octets) > most:
            raise EirError(f"more than {most >> 20} MiB: ask for less, such as with -n")
    return octets.decode("utf-8", "replace")
