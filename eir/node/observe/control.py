"""Control socket of a running node, for commands such as `eir status`, `eir reload` and `eir drain`.

The socket is a Unix socket in the state folder with mode 0660: each user who can open it can control the node. Each connection
carries one request and one answer. Both are a JSON document on one line: `{"command": NAME, ...arguments}` → `{"ok": true,
"result": …}` or `{"ok": false, "error": TEXT}`.

With `control_read` the node has a second socket, in a folder of its own, for users who may only read. `ReadOnlyRunner` runs their
commands in processes of the node's user, so these users need no permission for configuration, store or record. They must not
change the node, so only commands and options in READ_ONLY can run.
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

from eir.device import is_digits
from eir.errors import EirError, Report, place_of

SOCKET_NAME = "control.sock"
REQUEST_MAX_BYTES = 64 * 1024
TIMEOUT_S = 30.0
LINKS_MAX = 128
"""Maximum number of open connections to one socket.

At the limit, a new connection replaces the oldest connection that has sent no request. If all have sent one, the new one is closed.
"""

PING, RUNNING, STOPPING = "ping", "running", "stopping"
"""Command with which a process detects a running node, and the two answers of the node."""

NOBODY = "unknown"
_asker: ContextVar[int | None] = ContextVar("asker", default=None)
"""User id of the sender of the current command."""

Command = Callable[[dict[str, Any]], Any | Awaitable[Any]]
Arguments = Mapping[str, type | UnionType]
"""Type of each argument of a command, by name. An argument whose type includes None is optional."""


class ControlError(EirError):
    """Error: the node does not run, does not answer, or rejects the command."""


class ControlAway(ControlError):
    """Error: no node has the control socket open."""


class ControlDenied(ControlError):
    """Error: the user lacks the permission to open the control socket, so it is unknown whether a node runs."""


class ControlServer:
    """Server on a Unix socket of a node, which runs the commands that it receives.

    `commands`: function of each command, which receives the arguments. `accepts`: permitted arguments of each command that has
    arguments. A request with other arguments is answered with an error and not logged.
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
        """Create a control server. The method `listen` opens its socket later.

        `timeout_s`: limit for the request and its answer together. `links_max`: maximum number of open connections.
        """
        self._folder = folder
        self._name = name
        self._commands = commands
        self._accepts = accepts or {}
        self._report = report
        self._timeout_s = timeout_s
        self._links_max = links_max
        self._links: dict[asyncio.StreamWriter, bool] = {}
        """Connections, the oldest first; the value is true after the request was received."""
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Open the control socket. The socket file of a killed node is replaced.

        No other node uses that file, because each node locks its state folder.
        """
        path = self._folder / self._name
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "the path exists and is not a socket", str(path))
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o117)
        try:
            with _short_path(self._folder, self._name) as short_path:
                listener.bind(short_path)
        finally:
            os.umask(umask)
        if self._name != SOCKET_NAME:
            os.chown(path, -1, self._folder.stat().st_gid)
        path.chmod(0o660)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=REQUEST_MAX_BYTES)

    async def close(self) -> None:
        """Close the control socket, and remove its file."""
        if self._server is not None:
            self._server.close()
            (self._folder / self._name).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._links) >= self._links_max:
            self._close_oldest(writer)
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

    def _close_oldest(self, new: asyncio.StreamWriter) -> None:
        """Close the oldest connection that has sent no request, or the new connection if all have sent one.

        Connections must not use up the file descriptors for peers.
        """
        oldest = next((link for link, has_sent in self._links.items() if not has_sent), new)
        self._links.pop(oldest, None)  # the transport closes later, and many connections may arrive before
        oldest.transport.abort()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            json.dumps(request, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
            name = request.pop("command")
            command = self._commands[name]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return {"ok": False, "error": f"no such command; there are: {', '.join(self._commands)}"}
        fault = _argument_fault(name, request, self._accepts.get(name, {}))
        if fault:
            return {"ok": False, "error": fault}
        try:
            result = command(request)
            if isinstance(result, Awaitable):
                result = await result
        except (EirError, OSError) as e:
            return {"ok": False, "error": str(e)}
        except Exception as e:  # noqa: BLE001 - the client receives the error and the server continues
            self._report("fault", reason=name, level="error", detail=place_of(e))
            return {"ok": False, "error": f"{name} failed ({type(e).__name__}); see event=fault in the log"}
        return {"ok": True, "result": result}


def _argument_fault(command: str, request: Mapping[str, Any], accepted: Arguments) -> str:
    """Return the first error in the arguments of a request, or an empty string."""
    unknown = [name for name in request if name not in accepted]
    if unknown:
        known = ", ".join(accepted) or "no argument"
        return f"{command} takes {known}; found: {', '.join(unknown)}"
    for name, kind in accepted.items():
        value = request.get(name)
        kinds = (kind, *get_args(kind))
        is_unwanted_bool = isinstance(value, bool) and bool not in kinds  # bool is a subclass of int
        if not isinstance(value, kind) or is_unwanted_bool:
            expected = kind.__name__ if isinstance(kind, type) else kind
            return f"{command} needs {name} ({expected})"
    return ""


async def asker() -> str:
    """Return the name of the user who sent the current command, or `uid N` for a user without a name.

    The user id comes from the kernel. A thread looks up the name, because the user database may be remote (LDAP).
    """
    uid = _asker.get()
    return NOBODY if uid is None else await asyncio.to_thread(_user, uid)


def _uid_of(link: socket.socket) -> int:
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _user(uid: int, *, otherwise: str = "uid {}") -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return otherwise.format(uid)


@contextmanager
def _short_path(folder: Path, name: str) -> Iterator[str]:
    """Yield a path of a Unix socket through an open descriptor of its folder, because the full path may exceed the limit of 107 bytes."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def ask(folder: Path, command: str, *, at: str = SOCKET_NAME, timeout_s: float | None = None, **arguments: Any) -> Any:
    """Send a command to the node whose socket is in the folder, and return the result of the command.

    `at`: name of the socket. `timeout_s`: None: TIMEOUT_S.

    Raises:
        ControlAway: if no node has the socket open.
        ControlDenied: if this user must not open the socket.
        ControlError: if the node does not answer in time, or rejects the command.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(TIMEOUT_S if timeout_s is None else timeout_s)
            with _short_path(folder, at) as short_path:
                link.connect(short_path)
            request = json.dumps({"command": command, **arguments})
            link.sendall(request.encode() + b"\n")
            with link.makefile("rb") as answers:
                line = answers.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        if at == SOCKET_NAME:
            raise ControlAway(f"no node runs on the state folder {folder} (start one: eir serve)") from None
        raise ControlAway(f"no node runs with control_read: {folder / at}") from None
    except PermissionError:
        advice = owner_advice(folder) if at == SOCKET_NAME else f"; users in the group of {folder} may"
        raise ControlDenied(f"may not open the control socket in {folder}{advice}") from None
    except OSError as e:
        raise ControlError(f"the node on the state folder {folder} does not answer: {e}") from None
    if not line:
        raise ControlError(f"the node on the state folder {folder} closed the connection")
    answer = json.loads(line)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer["result"]


def owner_advice(folder: Path) -> str:
    """Return the advice to run the command as the owner of the state folder; empty if this user is the owner."""
    advice = "; run the command as the user of the node"
    try:
        owner = folder.stat().st_uid
    except OSError:
        return advice
    if owner == os.geteuid():
        return ""
    return f"{advice}: sudo -u {_user(owner, otherwise='#{}')} eir …"


ENVIRONMENT = "EIR_CONTROL"
"""Environment variable with the path of the read-only socket, through which a command then runs."""
RUN = "run"
"""The only command of the read-only socket."""
RUN_ACCEPTS: Mapping[str, Arguments] = {RUN: {"arguments": list}}

_ALL = {"--json", "--help", "-h"}
READ_ONLY: Mapping[str, set[str]] = {
    "status": _ALL, "peers": _ALL, "lists": _ALL | {"--store"},
    "check": _ALL | {"--imsi", "--software-version", "--origin-host", "--origin-realm", "--protocol", "--store"},
    "show": _ALL | {"-n", "--limit", "--skip", "--store"},
    "history": _ALL | {"-n", "--limit", "--since", "--chain", "--verify"},
    "seen": _ALL | {"--since"},
    "why": _ALL | {"--imsi", "--at"},
}  # fmt: skip
"""Permitted options of each permitted command. They read no other configuration and write no file."""
_CHANGING = {("history", "import")}
"""Permitted commands with a first argument that changes the node."""
_ONLY_OPTIONS = {"lists"}
"""Commands that may only have options, because some of their subcommands change the node."""
AT_ONCE, TIME_S, OUT_BYTES_MAX = 4, 20.0, 8 << 20
"""Limits of read-only commands: number at the same time, duration in seconds, bytes of output."""


def refusal(arguments: Sequence[str]) -> str | None:
    """Return the reason for which a read-only user must not run this command line, or None."""
    command, *rest = arguments or [""]
    if any("\0" in argument for argument in arguments):
        return "an argument holds a NUL character"
    if command not in READ_ONLY:
        return f"{command or 'eir'}: not for read-only users, who may run: {', '.join(READ_ONLY)}"
    if any((command, argument) in _CHANGING for argument in rest):
        return f"{command} {rest[0]}: not for read-only users"
    for argument in rest:
        option, _, _ = argument.partition("=")
        if option in READ_ONLY[command]:
            continue
        if argument.startswith("-") or command in _ONLY_OPTIONS:
            return f"{command} {option}: not for read-only users"
    return None


class ReadOnlyRunner:
    """Runner of commands for read-only users, at most AT_ONCE at the same time."""

    def __init__(self, config: Path, *, time_s: float = TIME_S, out_bytes_max: int = OUT_BYTES_MAX) -> None:
        """Create a runner. It kills a command that takes longer than `time_s` or writes more than `out_bytes_max`."""
        self._config = config
        self._time_s = time_s
        self._out_bytes_max = out_bytes_max
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run the command line in the request's `arguments`, and return its exit status and output.

        Raises:
            EirError: if the command line is forbidden, or exceeds a limit.
        """
        arguments = [str(argument) for argument in request["arguments"]]
        reason = refusal(arguments)
        if reason is not None:
            raise EirError(reason)
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "eir", "-c", str(self._config), *arguments, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                async with asyncio.timeout(self._time_s):
                    out, err = await asyncio.gather(
                        _read_text(process.stdout, self._out_bytes_max), _read_text(process.stderr, self._out_bytes_max)
                    )
                    return {"status": await process.wait(), "out": out, "err": err}
            except TimeoutError:
                raise EirError(f"{arguments[0]}: no answer in {self._time_s:g} s") from None
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def check(self, identifier: str, imsi: str = "") -> str:
        """Run `eir check` for a device, and for a subscriber if `imsi` is given; return the output or an error text.

        If the identifier of the device is empty, return an empty string.
        """
        if not identifier:
            return ""
        if not identifier.isalnum():
            return "not an identifier of a device; expected an IMEI, IMEISV or MEID"
        if imsi and not is_digits(imsi):
            return "not an IMSI; expected 6 to 15 digits"
        try:
            result = await self.run({"arguments": ["check", identifier, f"--imsi={imsi}"]})
        except EirError as e:
            return str(e)
        return str(result["out"] or result["err"]).strip()


async def _read_text(stream: asyncio.StreamReader | None, most: int) -> str:
    """Read a stream to its end, at most `most` bytes."""
    octets = b""
    while stream is not None and (piece := await stream.read(1 << 16)):
        octets += piece
        if len(octets) > most:
            raise EirError(f"more than {most >> 20} MiB; request less, for example with -n")
    return octets.decode("utf-8", "replace")
