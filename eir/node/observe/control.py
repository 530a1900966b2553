"""Control socket of a running node, for commands such as `eir status`, `eir reload` and `eir drain`.

A Unix socket in the state folder, mode 0660: each user who can open it can control the node. Each connection carries one
request, and each line one JSON document: `{"command": NAME, ...arguments}` → `{"ok": true, "result": …}` or `{"ok": false,
"error": TEXT}`.

The socket of `control_read` is a second one, in a folder of its own, for people and programs that may only read: `Looking` runs
their commands. Such a command runs as a process of the node's user, so the caller needs no right on the configuration, the
store or the record. These callers are not trusted with the node: only commands and options in LOOKS can run.
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
"""Maximum number of open connections to one socket.

At the limit, a new connection closes the oldest connection that has sent no request; without such a connection, the new one is closed.
"""

PING, RUNNING, STOPPING = "ping", "running", "stopping"
"""A command that each node has, and its two answers."""

NOBODY = "unknown"
_asker: ContextVar[int | None] = ContextVar("asker", default=None)
"""User id of the person who requested the current command."""

Command = Callable[[dict[str, Any]], Any | Awaitable[Any]]
Arguments = Mapping[str, type | UnionType]
"""Arguments of a command, by name, with their types. An argument whose type includes None is optional."""


class ControlError(EirError):
    """Error: the node does not run, does not answer, or rejects the command."""


class ControlAway(ControlError):
    """Error: no node runs on the state folder."""


class ControlDenied(ControlError):
    """Error: the user has no permission to open the socket, so that it is unknown whether a node runs."""


class ControlServer:
    """Server of commands on a Unix socket in a folder.

    `commands`: function of the request's arguments, by command name. `accepts`: arguments of each command that has any. A
    request with other arguments receives an error and is not logged.
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
        """Create a server whose socket is not open yet.

        `timeout_s`: limit for the request and its answer together. `links_max`: maximum number of open connections.
        """
        self._folder = folder
        self._name = name
        self._commands, self._accepts = commands, accepts or {}
        self._report = report
        self._timeout_s, self._links_max = timeout_s, links_max
        self._links: dict[asyncio.StreamWriter, bool] = {}
        """Connections, the oldest first; the value is true after the request was received."""
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Open the socket, and replace the socket file that a killed node has left.

        The replacement is safe because only one node can lock a state folder.
        """
        path = self._folder / self._name
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "the path exists and is not a socket", str(path))
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
        """Close the socket, and remove its file."""
        if self._server is not None:
            self._server.close()
            (self._folder / self._name).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._links) >= self._links_max:  # open connections must not use up the file descriptors for peers
            oldest = next((each for each, has_asked in self._links.items() if not has_asked), writer)
            self._links.pop(oldest, None)  # it closes later, and many connections may arrive before
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
            pass  # the client has disconnected or sent no line
        finally:
            self._links.pop(writer, None)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            json.dumps(request, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
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
        except Exception as e:  # noqa: BLE001 - the client receives the error and the server continues
            self._report("fault", reason=name, level="error", detail=place_of(e))
            return {"ok": False, "error": f"{name} failed ({type(e).__name__}); see event=fault in the log"}


def _wrong_arguments(command: str, request: Mapping[str, Any], accepted: Arguments) -> str:
    """Return the reason why the arguments of a request are invalid for the command; empty if they are valid."""
    if surplus := [name for name in request if name not in accepted]:
        return f"{command} takes {', '.join(accepted) or 'no argument'}; found: {', '.join(surplus)}"
    for name, kind in accepted.items():
        value = request.get(name)
        is_switch = isinstance(value, bool) and bool not in (
            kind,
            *get_args(kind),
        )  # bool is a subclass of int
        if not isinstance(value, kind) or is_switch:
            return f"{command} needs {name} ({kind.__name__ if isinstance(kind, type) else kind})"
    return ""


async def asker() -> str:
    """Return the name of the user who requested the current command, or `uid N`. The kernel provides the user id.

    The lookup runs in a thread because the user database may be remote (LDAP).
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
    """Yield a short path of the socket, through an open descriptor of its folder.

    The path of a Unix socket has at most 107 bytes.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def ask(folder: Path, command: str, *, at: str = SOCKET_NAME, timeout_s: float | None = None, **arguments: Any) -> Any:
    """Send a command to the node whose socket is in the folder, and return the command's result.

    The default timeout is 30 s.

    Raises:
        ControlAway: if no node runs there.
        ControlDenied: if this user has no right to open the socket.
        ControlError: if the node does not answer in time, or rejects the command.
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
        advice = as_owner(folder) if at == SOCKET_NAME else f"; users in the group of {folder} may"
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
    """Return advice to run the command as the owner of the state folder; empty if this user is the owner."""
    advice = "; run the command as the user of the node"
    try:
        owner = folder.stat().st_uid
    except OSError:
        return advice
    return "" if owner == os.geteuid() else f"{advice}: sudo -u {_user(owner, otherwise='#{}')} eir …"


ENVIRONMENT = "EIR_CONTROL"
"""Environment variable that holds the socket's path for a command."""
RUN = "run"
"""The only command of the read-only socket."""
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
"""Permitted options by command. None of them reads another configuration or writes a file."""
_WITHOUT_ARGUMENTS = {"lists"}
"""Commands whose second word is a subcommand, which could change something."""
AT_ONCE, TIME_S, OUT_BYTES_MAX = 4, 20.0, 8 << 20
"""Limits of these processes: number at the same time, seconds, bytes of output."""


def refusal(arguments: Sequence[str]) -> str | None:
    """Return the reason why a read-only user must not run this command line, or None if the user may run it."""
    command, *rest = arguments or [""]
    if any("\0" in argument for argument in arguments):
        return "an argument holds a NUL character"
    if command not in LOOKS:
        return f"read-only users may run: {', '.join(LOOKS)}"
    for argument in rest:
        option, _, _ = argument.partition("=")
        if option not in LOOKS[command] and (argument.startswith("-") or command in _WITHOUT_ARGUMENTS):
            return f"{command} {option}: not for read-only users"
    return None


class Looking:
    """Runner of commands for read-only users, at most AT_ONCE at the same time."""

    def __init__(self, config: Path, *, time_s: float = TIME_S, out_bytes_max: int = OUT_BYTES_MAX) -> None:
        """Store the limits. A command that runs longer than `time_s` or writes more than `out_bytes_max` is killed."""
        self._config, self._time_s, self._out_bytes_max = config, time_s, out_bytes_max
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run the command line in the request's `arguments`, and return its exit status and output.

        Raises:
            EirError: if the command line is forbidden, or exceeds a limit.
        """
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
        """Return the output of `eir check` for an identifier, or the text of an error.

        Empty for an empty identifier.
        """
        if not identifier.isalnum():
            return "not an identifier of a device; expected an IMEI, IMEISV or MEID" if identifier else ""
        try:
            result = await self.run({"arguments": ["check", identifier]})
        except EirError as e:
            return str(e)
        return str(result["out"] or result["err"]).strip()


async def _bounded(stream: asyncio.StreamReader | None, most: int) -> str:
    octets = b""
    while stream is not None and (piece := await stream.read(1 << 16)):
        octets += piece
        if len(octets) > most:
            raise EirError(f"more than {most >> 20} MiB; request less, for example with -n")
    return octets.decode("utf-8", "replace")
