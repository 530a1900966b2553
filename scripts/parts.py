"""Common code of `bench` and `soak`: a part is a module beside this file, and runs in the project's environment."""

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent / ".venv" / "bin" / "python"


def run(script: str, said: str | None, arguments: list[str]) -> int:
    """Run the part that is named first, which is `SCRIPT_PART.py` (with _ for -); without one, list the parts.

    `said` is the script's own docstring. Returns the exit status.
    """
    name = Path(script).name
    try:
        importlib.import_module("eir")
    except ModuleNotFoundError:  # not in the project's environment yet
        subprocess.run([HERE / "setup"], check=True)
        os.execv(PYTHON, [str(PYTHON), script, *arguments])  # noqa: S606  # the same program, in its own environment
    parts = sorted(path.stem.removeprefix(f"{name}_").replace("_", "-") for path in HERE.glob(f"{name}_*.py"))
    if not arguments or arguments[0] not in parts:
        print((said or "").splitlines()[0], "\n\nParts:", file=sys.stderr)
        for part in parts:
            print(f"  {part:<14} {(_module(name, part).__doc__ or '').splitlines()[0]}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that servers end, and folders go
    return int(_module(name, arguments[0]).main(arguments[1:]))


def report(broken: Sequence[str]) -> int:
    """Print the broken promises of a soak; return its exit status."""
    for each in broken[:20]:
        print(f"not kept: {each}", file=sys.stderr)
    print(f"{len(broken)} promises not kept")
    return 1 if broken else 0


def enter_sctp() -> None:
    """Run this program again in a kernel with SCTP (scripts/sctp), unless this kernel has it."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        os.execv(HERE / "sctp", ["sctp", sys.executable, *sys.argv])  # noqa: S606  # the same program


def _module(name: str, part: str) -> ModuleType:
    return importlib.import_module(f"{name}_{part.replace('-', '_')}")
