"""Common code of `bench` and `soak`: a part is a module beside this file, and runs in the project's environment."""

import argparse
import importlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

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


def seeded(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Add the option for the seed of all random values, parse the options, and print the seed."""
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of all random values (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    return options


@contextmanager
def site() -> Iterator[Any]:
    """Make a host with a publisher in a temporary folder (simulated.node.Site)."""
    from simulated.node import Publisher, Site  # noqa: PLC0415 - only in the project's environment

    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        (Path(name) / "publisher").mkdir()
        with Site(Path(name) / "site", Publisher(Path(name) / "publisher")) as made:
            yield made


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
