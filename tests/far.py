"""A second network on this host, with two links to it, for tests of SCTP over two paths. As root, in a kernel that has network namespaces."""

import ctypes
import os
import subprocess
from contextlib import contextmanager

OURS, THEIRS = ("10.1.0.1", "10.2.0.1"), ("10.1.0.2", "10.2.0.2")
LINKS = ("one", "two")


def sh(*commands):
    for command in commands:
        subprocess.run(command.split(), check=True)


@contextmanager
def linked():
    """The network named `far`, a link to it for each pair of addresses."""
    for name in LINKS:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)  # of a test that failed
    sh("ip netns add far")
    try:
        for name, ours, theirs in zip(LINKS, OURS, THEIRS, strict=True):
            sh(
                f"ip link add {name} type veth peer name {name} netns far", f"ip addr add {ours}/24 dev {name}", f"ip link set {name} up",
                f"ip -n far addr add {theirs}/24 dev {name}", f"ip -n far link set {name} up", "ip -n far link set lo up",
            )  # fmt: skip
        yield
    finally:
        sh("ip netns del far")


def switch(name, *, up):
    """Without a word, as by a cable that is cut elsewhere: frames go to a station that is not there."""
    for netns, addresses in (("", THEIRS), ("-n far ", OURS)):
        where = f"{dict(zip(LINKS, addresses, strict=True))[name]} dev {name}"
        sh(
            f"ip {netns}neigh del {where}"
            if up
            else f"ip {netns}neigh replace {where} lladdr 02:00:00:00:00:99 nud permanent"
        )


@contextmanager
def far():
    """Sockets, threads and processes that are made meanwhile are in that network."""
    libc, here = ctypes.CDLL(None, use_errno=True), os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open("/var/run/netns/far", os.O_RDONLY)
    assert libc.setns(there, 0) == 0
    try:
        yield
    finally:
        assert libc.setns(here, 0) == 0
        os.close(here)
        os.close(there)
