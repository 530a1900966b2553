"""Builds for the benches, made once: load generator, C echo, an own Python environment, and the peers to compare with.

All builds are in build/bench. scripts/setup installs missing packages before the bench enters a network of its own, from which nothing
can be fetched. A package that could not be installed is not tried again.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from .network import INSIDE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = ROOT / "build" / "bench"
STDIO = "/usr/include/stdio.h"
"""Header that shows that the C library's headers are installed; Debian has compilers without them."""
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


class Missing(Exception):
    """Error: something cannot be built here; its text names it."""


def run(command: Sequence[str | Path], **options: object) -> str:
    """Run a command to its end; return its output. Raises Missing with its error output."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, **options)  # type: ignore[call-overload]  # passed on as given
    except FileNotFoundError as e:
        raise Missing(f"no {e.filename} here") from None
    if done.returncode:
        raise Missing(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return str(done.stdout)


def tools(*commands: str, files: Sequence[str] = (), modules: Sequence[str] = (), part: str = "--bench") -> None:
    """Ensure that these commands, files and Python modules exist; scripts/setup installs missing ones. Raises Missing."""

    def missing() -> list[str]:
        importlib.invalidate_caches()
        absent = [name for name in commands if not shutil.which(name)] + [
            name for name in files if not Path(name).exists()
        ]
        return absent + [name for name in modules if importlib.util.find_spec(name) is None]

    if not missing():
        return
    if INSIDE not in os.environ:
        subprocess.run([ROOT / "scripts" / "setup", part], check=False, stdout=sys.stderr)
    if still := missing():
        raise Missing(f"no {', '.join(still)} here, and scripts/setup {part} could not install it")


def is_older(made: Path, *sources: Path) -> bool:
    """Return true if the file must be made, or made again."""
    return not made.exists() or any(source.stat().st_mtime > made.stat().st_mtime for source in sources)


def program(name: str) -> Path:
    """Return the path of `load` or `echo`, compiled. Ends the program if the compiler fails, since no part works without them."""
    made, source = BUILT / name, HERE / f"{name}.c"
    if is_older(made, source, *HERE.glob("*.h")):
        fresh = made.with_name(f"{name}.{os.getpid()}")
        BUILT.mkdir(parents=True, exist_ok=True)
        try:
            tools("gcc", files=[STDIO])
            run(["gcc", *FLAGS, "-o", fresh, source])
        except Missing as e:
            sys.exit(f"bench: {e}")
        fresh.replace(made)
    return made


def python(*packages: str) -> Path:
    """Return the Python of an environment with these packages, separate from the project's; each set of packages has its own."""
    name = "-".join(("python", *(package.partition("=")[0] for package in packages)))
    folder = BUILT / name
    if not (folder / "made").exists():
        if INSIDE in os.environ:
            raise Missing(f"{', '.join(packages)} could not be installed")
        venv.create(folder, with_pip=True, clear=True)
        run([folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *packages])
        (folder / "made").touch()
    return folder / "bin" / "python"
