"""Network namespace of a bench, where permitted: no port of the host is used, no packet leaves, and TCP uses one congestion control.

bbr, a common default, also paces loopback and gives latencies two peaks; reno does not. freeDiameter does not start on a host that has
only loopback, so the namespace has one more address.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "EIR_BENCH_NETWORK"
"""Environment variable that is set inside the network namespace."""
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def enter() -> None:
    """Run this program again in a network namespace; returns at once inside one, and where the kernel does not permit it."""
    if os.environ.get(INSIDE):
        if os.environ[INSIDE] == "own":
            _furnish()
        return
    os.environ[INSIDE] = "shared"
    for unshare in (["unshare", "-n", "--"], ["unshare", "-rn", "--"]):
        if (
            all(map(shutil.which, ("unshare", "ip")))
            and not subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
        ):
            os.environ[INSIDE] = "own"
            os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])  # noqa: S606  # the same program
    print("bench: no network of its own here; on the machine's loopback", file=sys.stderr)


def _furnish() -> None:
    _ip("link set lo up")
    if _ip("link add eir0 type dummy") or _ip(
        "link add eir0 type veth peer name eir1"
    ):  # a small kernel may lack either
        _ip("addr add 192.0.2.1/24 dev eir0")
        _ip("link set eir0 up")
    if CONGESTION.read_text().strip() != "reno":
        CONGESTION.write_text("reno")


def _ip(command: str) -> bool:
    return not subprocess.run(["ip", *command.split()], check=False, capture_output=True).returncode
