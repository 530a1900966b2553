"""Two nodes behind freeDiameter are upgraded from an earlier commit and downgraded, again and again under load: no request is unanswered, no answer wrong.

Both follow one Redis. One node after the other ends as by `systemctl restart`, starts with the other program, and the next step waits until the
agent is connected again. If the earlier program cannot read data of the later one, its start fails.
"""

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from simulated import agent
from simulated.node import LISTED, TRACKED, UNLISTED, Publisher, until
from simulated.node import Site as PlainSite
from simulated.servers import Server, free_port, programs
from simulated.wire import HOST, REALM

from eir.interfaces.s13 import INTERFACE as S13

ROOT = Path(__file__).resolve().parent.parent
LANE = "eir/interfaces/s13"
EIRS = ("eir1.eir.test", "eir2.eir.test")
ANSWERS = {LISTED: "blacklisted", TRACKED: "greylisted", UNLISTED: "whitelisted"}
AT_ONCE = 32


class Site(PlainSite):
    """Host on which one of two programs is installed."""

    program = ROOT

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment with that program before any other."""
        return dict(super().environment(**changes)) | {"PYTHONPATH": str(self.program)}


def main(arguments: list[str]) -> int:
    """Run the part `upgrade` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak upgrade", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--from",
        dest="earlier",
        metavar="COMMIT",
        help="commit of the earlier program, or a folder with it (default: the newest tag before this commit)",
    )
    parser.add_argument("--turns", type=int, default=10, help="number of upgrades and downgrades")
    parser.add_argument("--rate", type=float, default=5000, help="requests per second")
    options = parser.parse_args(arguments)
    if (earlier := options.earlier or newest_tag()) is None:
        parser.error("this clone has no tag before its commit: name the earlier program with --from COMMIT")
    with tempfile.TemporaryDirectory(prefix="eir-upgrade-") as name:
        folder = Path(name)
        program = exported(earlier, folder / "earlier")
        if not agent.has_an_address() and agent.IN_ITS_OWN_NETWORK not in os.environ:
            return _in_own_network(arguments, program)
        found = soak(folder, program, options)
    print(f"asked {found.total():,}; {', '.join(f'{what}: {count:,}' for what, count in sorted(found.items()))}")
    bad = {what: count for what, count in found.items() if what != "right"}
    return 1 if bad or not found["right"] else 0


def _in_own_network(arguments: list[str], program: Path) -> int:
    """Run this part again in a network of its own, with the exported program, and return its exit status."""
    make = "ip link set lo up && (ip link add eir0 type dummy || ip link add eir0 type veth peer name eir1) && ip addr add 192.0.2.1/24 dev eir0 && ip link set eir0 up"
    again = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import soak_upgrade; sys.exit(soak_upgrade.main(sys.argv[1:]))",
        *arguments,
        f"--from={program}",
    ]
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{make} && exec "$@"', "sh", *again],
        env=os.environ | {agent.IN_ITS_OWN_NETWORK: "1"},
        check=False,
    ).returncode


def newest_tag() -> str | None:
    """Return the newest tag before this commit, or None."""
    command = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "HEAD^"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def git(*arguments: str) -> str:
    """Return the output of git in this clone."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def exported(commit: str, to: Path) -> Path:
    """Return the folder with the program of a commit, its compiled lane, and the packages that this environment lacks.

    Network: pip fetches these packages. A folder in place of a commit is returned as it is.
    """
    if (Path(commit) / "eir").is_dir():
        return Path(commit)
    to.mkdir()
    git("archive", "--output", f"{to}.tar", commit)
    subprocess.run(["tar", "-x", "-C", str(to), "-f", f"{to}.tar"], check=True)
    lane = next((ROOT / LANE).glob("_lane.*.so"), None)
    same = ["git", "-C", str(ROOT), "diff", "--quiet", commit, "--", "setup.py", f"{LANE}/*.c", f"{LANE}/*.h"]
    if lane is not None and not subprocess.run(same, check=False).returncode:
        shutil.copy(lane, to / LANE)
    else:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=to, check=True, capture_output=True)
    if missing := _missing(to / "pyproject.toml"):
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(to), *missing]
        subprocess.run(install, check=True)
    runs = subprocess.run(
        [sys.executable, "-c", "import eir; print(eir.__file__)"],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(to)},
        capture_output=True,
        text=True,
        check=True,
    )
    if not runs.stdout.startswith(str(to)):
        raise RuntimeError(f"this environment runs {runs.stdout.strip()} instead of what is in {to}")
    return to


def _missing(project: Path) -> list[str]:
    """Return the requirements of a pyproject.toml whose package is not installed in this environment."""
    requirements = tomllib.loads(project.read_text())["project"]["dependencies"]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return [one for one in requirements if re.split(r"[^\w.-]", one)[0].lower() not in installed]


def soak(folder: Path, earlier: Path, options: argparse.Namespace) -> Counter[str]:
    """Upgrade and downgrade; return the results of the requests."""
    (folder / "publisher").mkdir()
    publisher = Publisher(folder / "publisher")
    with ExitStack() as stack:
        redis = stack.enter_context(Server(next(iter(programs().values()))))
        sites = {}
        for name in EIRS:
            site = sites[name] = stack.enter_context(Site(folder / name, publisher))
            site.program = earlier
            site.configure(
                identity={"host": name, "realm": agent.EIR_REALM}, peers=[{"name": "dra", "host": agent.DRA, "realm": agent.DRA_REALM}],
                listen=[f"tcp://127.0.0.1:{free_port()}"], store=redis.url,
            )  # fmt: skip
            if name == EIRS[0]:
                site.eir("load", site.release([LISTED]), site.release([TRACKED], list_name="tracked"))
            site.start()
        port = stack.enter_context(agent.relay(folder, {name: site.node for name, site in sites.items()}, tc_s=1))
        return asyncio.run(_turns(port, sites, earlier, options))


async def _turns(port: int, sites: dict[str, Any], earlier: Path, options: argparse.Namespace) -> Counter[str]:
    found: Counter[str] = Counter()
    end = asyncio.Event()
    names = f"origin_host={HOST}&origin_realm={REALM}&destination_realm={agent.EIR_REALM}"
    async with S13.probe_of(f"s13://127.0.0.1:{port}?{names}", timeout_s=10.0).asking() as ask:
        asking = asyncio.create_task(_ask(ask, found, end, options.rate))
        for turn in range(options.turns):
            for program in (ROOT, earlier):
                for site in sites.values():
                    await asyncio.to_thread(_replaced, site, program)
            print(f"turn {turn + 1}: {dict(found)}", flush=True)
        end.set()
        await asking
    return found


def _replaced(site: Any, program: Path) -> None:
    """Stop a node, start it with another program, and wait for the agent."""
    site.node.end()
    site.program = program
    site.start()
    until(lambda: site.node.status()["peers"]["dra"] == 1)


async def _ask(ask: Callable[[str], Awaitable[str]], found: Counter[str], end: asyncio.Event, rate: float) -> None:
    """Ask at a rate until the end, with at most AT_ONCE unanswered requests."""
    turns, begun, sent = asyncio.Semaphore(AT_ONCE), time.monotonic(), 0

    async def one(imei: str) -> None:
        try:
            answer = await ask(imei)
        finally:
            turns.release()
        found["right" if answer == ANSWERS[imei] else f"wrong ({answer})"] += 1

    async with asyncio.TaskGroup() as group:
        while not end.is_set():
            await turns.acquire()
            group.create_task(one([*ANSWERS][sent % len(ANSWERS)]))
            sent += 1
            await asyncio.sleep(max(begun + sent / rate - time.monotonic(), 0))
