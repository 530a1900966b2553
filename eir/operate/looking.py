"""The socket of `control_read`, which runs the commands that only look, for people and programs who may do no more.

Such a command runs as a process of the node's user, so the caller needs no right on the configuration, the store or the
record. Arguments come from people who are not trusted with the node: nothing that is not in LOOKS gets through. Knows
nothing of what the commands do.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eir.errors import EirError

ENVIRONMENT = "EIR_CONTROL"
"""The environment variable that names the socket to a command."""
RUN = "run"
"""The one command of the socket."""

_ALL = {"--json", "--help", "-h"}
LOOKS: Mapping[str, set[str]] = {
    "status": _ALL, "peers": _ALL,
    "check": _ALL | {"--imsi", "--software-version", "--origin-host", "--origin-realm", "--protocol", "--store"},
    "show": _ALL | {"-n", "--limit", "--skip", "--store"},
    "history": _ALL | {"-n", "--limit", "--since", "--verify"},
    "seen": _ALL | {"--since"},
    "why": _ALL | {"--imsi", "--at"},
}  # fmt: skip
"""Command → the options that may be given: none that reads another configuration, or writes a file."""
AT_ONCE, TIME_S, OUT_BYTES_MAX = 4, 20.0, 8 << 20
"""Limits of such processes: how many run at once, for how long, and how much they may write."""


def refusal(arguments: Sequence[str]) -> str | None:
    """Return why a command line may not run; None if it may."""
    command, *rest = arguments or [""]
    if command not in LOOKS:
        return f"who may only look may say: {', '.join(LOOKS)}"
    for argument in rest:
        option, _, _ = argument.partition("=")
        if argument.startswith("-") and option not in LOOKS[command]:
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
        arguments = [str(argument) for argument in request.get("arguments") or ()]
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
