"""An operator's first hours in a fresh Debian under systemd: installation, upgrade, first day, first peer and demos by the commands of the pages.

Needs root. Each host has its own root folder over one that debootstrap makes, with systemd as its first process and a network of
loopback only. Debian's packages are fetched over this machine's network. A script does the operator's edits (`sudoedit`) and the work of
an agency, which makes a key and signs a list.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TypeVar

from pages import ROOT, Installation

HAS = "systemd,systemd-sysv,dbus,sudo,openssl,ca-certificates"
"""Packages of a usual Debian server that the lines of the pages use."""
REACH = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
"""Files with this machine's settings for Debian's mirror and the package index."""
EDITOR = """#!/bin/sh
# Does what the page's comment behind sudoedit says.
sed -i 's|^#state: .*|state: /var/lib/eir|; s|^#sightings:|sightings:|' "$1"
"""
MACHINE = """
mount -t overlay overlay -o "lowerdir=$1/base,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
pivot_root . .     # a chroot may not have user namespaces, as PrivateUsers= of a unit makes them
umount -l .
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=eir /usr/lib/systemd/systemd --log-target=null
"""
GROUP = 'mkdir -p "$1/cgroup"; mount -t cgroup2 cgroup2 "$1/cgroup"; group="$1/cgroup/eir-newcomer-${1##*/}"\n'
BOOT = f"""{GROUP}
mkdir "$group"
echo 0 >"$group/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child --ipc --uts --net sh -euc "$3" sh "$2" "$1"
"""
FELL = f"""{GROUP}
for try in $(seq 300); do ! grep -q 'populated 1' "$group/cgroup.events" || sleep 0.1; done
find "$group" -depth -type d -exec rmdir {{}} +
"""
LOADS = """
ssh-keygen -q -t ed25519 -N '' -C agency -f "$HOME/key"
printf 'register@agency.example namespaces="eir-release" %s\\n' "$(cut -d' ' -f1,2 "$HOME/key.pub")" | sudo tee /etc/eir/signers/stolen-national /etc/eir/signers/tracked
sudo install -d -o "$USER" /srv/releases
/opt/eir/bin/eir publish --list stolen-national --serial 1 --expires 14d --key "$HOME/key" --out /srv/releases config/lists/stolen-national.csv
/opt/eir/bin/eir publish --list tracked --serial 1 --expires 14d --key "$HOME/key" --out /srv/releases config/lists/tracked.csv
eir load /srv/releases/stolen-national-1.manifest.json /srv/releases/tracked-1.manifest.json
eir reload
for try in $(seq 100); do ! eir status || break; sleep 0.1; done
eir status
eir lists
"""
PROBES = "eir probe s13://127.0.0.1 00101001000001 00101009000009\n"
ANALYSES = """
printf 'time,imei,imsi\\n%s,00101009000009,001010000000001\\n' "$(date -u +%FT%TZ)" >/srv/releases/log.csv
eir sightings import /srv/releases/log.csv
eir seen 00101009000009
eir tamper report
"""
AWAY_S = 5.0
"""Maximum time (s) without the Diameter port; the page states two or three."""
PROBER = """
import socket, sys, time
last = time.monotonic()
while True:
    try:
        socket.create_connection(("127.0.0.1", 3868), 1).close()
    except OSError:
        pass
    else:
        now = time.monotonic()
        print(now - last, flush=True)
        last = now
    time.sleep(0.02)
"""
Found = TypeVar("Found")


class Host:
    """Running fresh Debian with the clone in the home of an operator who may use sudo."""

    def __init__(self, folder: Path, base: Path, name: str) -> None:
        self._folder, self._base = folder / name, base
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(parents=True)

    def __enter__(self) -> Self:
        script = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            BOOT,
            "sh",
            str(self._folder),
            str(self._base.parent),
            MACHINE,
        ]
        self._boot = subprocess.Popen(script, stdin=subprocess.DEVNULL)
        try:
            self._first = _within(30, lambda: self._child(self._boot.pid))
            _within(60, lambda: self.asks("systemctl", "is-system-running")[1].strip() in {"running", "degraded"})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._boot.kill()  # by --kill-child the first process there ends with it, and with that all others
        self._boot.wait()
        _run("unshare", "--mount", "--propagation", "private", "sh", "-euc", FELL, "sh", self._folder)

    @staticmethod
    def _child(pid: int) -> int:
        """Return the process id of the child of the process that makes the namespaces, once the child is systemd; 0 before."""
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n" else 0

    def _enter(self, *command: str, network: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
        spaces = ["--mount", "--pid", "--ipc", "--uts", "--cgroup", *([] if network else ["--net"])]
        inside = ["nsenter", f"--target={self._first}", *spaces, "--root", "--wdns=/", "env", "-i", "LANG=C.UTF-8"]
        inside.append("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        done = subprocess.run(
            [*inside, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise Broken(f"{self._folder.name}: exit status {done.returncode} of:\n{command[-1]}\n{done.stdout}")
        return done

    def does(self, lines: str, *, network: bool = False) -> str:
        """Run the lines as the operator in the clone; return their output."""
        print(f"-- {self._folder.name}{'' if network else ', without network'}\n{lines.strip()}", flush=True)
        began = time.monotonic()
        typed = f"shopt -s expand_aliases\nset -euo pipefail\ncd ~/clone\n{lines}"
        become = (
            "setpriv",
            "--reuid=newcomer",
            "--regid=newcomer",
            "--init-groups",
            "env",
            "HOME=/home/newcomer",
            "USER=newcomer",
        )
        said = self._enter(*become, "SUDO_EDITOR=/usr/local/bin/editing", "bash", "-c", typed, network=network).stdout
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        return said

    def asks(self, *command: str) -> tuple[int, str]:
        """Run a command as root; return exit status and output."""
        done = self._enter(*command, check=False)
        return done.returncode, done.stdout

    def has_an_address(self) -> None:
        """Give the host an address beside loopback, without which freeDiameter does not start."""
        make = "(ip link add eir0 type dummy || ip link add eir0 type veth peer name eir1) && ip addr add 192.0.2.1/24 dev eir0 && ip link set eir0 up"
        _run("nsenter", f"--target={self._first}", "--net", "sh", "-c", make)

    def home(self) -> Path:
        """Return the path of the clone, seen from outside."""
        return Path(f"/proc/{self._first}/root/home/newcomer/clone")

    @contextmanager
    def times_away(self) -> Iterator[list[float]]:
        """Try to connect to the Diameter port meanwhile; append the longest time without a connection to the list."""
        command = ["nsenter", f"--target={self._first}", "--net", sys.executable, "-c", PROBER]
        away: list[float] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as prober:
            reader = threading.Thread(target=lambda: away.extend(float(line) for line in prober.stdout or ()))
            reader.start()
            try:
                _within(30, lambda: away)
                yield away
                seen = len(away)
                _within(30, lambda: len(away) > seen)
            finally:
                prober.kill()
                reader.join()


class Broken(Exception):
    """Error: a line of a page does not do as the page states."""


def _within(seconds: float, condition: Callable[[], Found]) -> Found:
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise Broken(f"not within {seconds:g} s: {condition}")
        time.sleep(0.05)
    return found


def _run(*command: object, given: bytes = b"") -> bytes:
    """Run a command of this machine in the clone; return its output."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, input=given, capture_output=True, check=False)
    if done.returncode:
        raise Broken(f"{command[0]}: {done.stdout[-2000:].decode()}{done.stderr[-2000:].decode()}")
    return done.stdout


def _holds(promise: str, kept: object, said: object = "") -> None:
    if not kept:
        raise Broken(f"{promise}\n{said}")


def _base(folder: Path, release: str, mirror: str) -> Path:
    """Make a fresh Debian with the clone of an operator: the beginning of all hosts."""
    base = folder / "base"
    print(f"-- debootstrap {release}", flush=True)
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child")  # if this ends early, so does all of that
    _run(*alone, "debootstrap", "--variant=minbase", f"--include={HAS}", release, base, mirror)
    for name in REACH:
        if Path(name).exists():
            shutil.copy(name, base / name[1:])
    (base / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    # The operator says yes, and nothing comes along that the lines do not name.
    (base / "etc/apt/apt.conf.d/90newcomer").write_text(
        'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'
    )
    _run("chroot", base, "useradd", "--create-home", "--shell", "/bin/bash", "newcomer")
    (base / "etc/sudoers.d/newcomer").write_text("newcomer ALL=(ALL) NOPASSWD: ALL\n")
    (base / "usr/local/bin/editing").write_text(EDITOR)
    (base / "usr/local/bin/editing").chmod(0o755)
    (base / "etc/hostname").write_text("newcomer\n")
    (base / "etc/hosts").write_text("127.0.0.1 localhost newcomer\n")
    clone = base / "home/newcomer/clone"
    clone.mkdir()
    files = _run("git", "ls-files", "-z")
    _run(
        "tar",
        "--extract",
        "--no-same-owner",
        "--directory",
        clone,
        given=_run("tar", "--create", "--null", "--files-from=-", given=files),
    )
    _run("chroot", base, "chown", "-R", "newcomer:", "/home/newcomer")
    _run("chroot", base, "apt-get", "--quiet", "update")
    return base


def _answers(said: str) -> bool:
    """Return whether `eir probe` printed that the listed phone is blacklisted and the other one is not."""
    return re.findall(r"^\d{14} +\S+ +(\w+)", said, re.MULTILINE) == ["blacklisted", "whitelisted"]


def _needs(host: Host, page: str) -> None:
    """Install Debian's packages that the page names."""
    needs = re.search(r"You need ((?:`[\w-]+`(?: and |, )?)+)", page)
    _holds("the page names the packages that it needs", needs)
    host.does(f"sudo apt-get install {' '.join(re.findall('`([^`]+)`', needs[1]))}", network=True)  # type: ignore[index]


def _first_lines(block: str, upto: str) -> tuple[str, str]:
    """Return the block in two parts: before the line, and from the line on."""
    at = block.index(upto)
    return block[:at], block[at:]


def _works(host: Host, promises: list[str]) -> None:
    """Test the promises of an installation: a service that answers, reloads, refuses a faulty file, restarts, drains."""
    said = host.does(Installation.alias.replace("eir status\n", "") + LOADS + PROBES)
    _holds("a listed phone is blacklisted, and another is not", _answers(said), said)
    _holds(
        "the compiled lane is there",
        "_lane.abi3.so" in host.does("ls /opt/eir/lib/python3*/site-packages/eir/interfaces/s13"),
    )
    said = host.does(Installation.alias + ANALYSES)
    _holds("the analysis judges what was imported", "Traceback" not in said, said)
    code, said = host.asks("systemd-analyze", "verify", "/etc/systemd/system/eir.service")
    _holds("systemd-analyze verify finds nothing", (code, said) == (0, ""), said)
    _, said = host.asks("systemctl", "show", "eir", "--property=User,ActiveState,SubState,Type,NRestarts,UnitFileState")
    _holds(
        "the service runs as its user and starts with the host",
        {"User=eir", "ActiveState=active", "Type=notify", "NRestarts=0", "UnitFileState=enabled"} <= set(said.split()),
        said,
    )
    host.does("sudo systemctl reload eir")
    host.does("sudo cp /etc/eir/eir.yaml /etc/eir/kept && echo 'heal: many' | sudo tee --append /etc/eir/eir.yaml")
    code, _ = host.asks("systemctl", "reload", "eir")
    _holds("a reload of a faulty file fails", code)
    code, _ = host.asks("systemctl", "is-active", "eir")
    _holds("and changes nothing", code == 0)
    code, said = host.asks("systemctl", "restart", "eir")
    _holds("a restart with a faulty file fails", code, said)
    _, said = host.asks("systemctl", "status", "eir")
    _holds("and systemctl status has the reason", "heal" in said, said)
    host.does("sudo mv /etc/eir/kept /etc/eir/eir.yaml && sudo chgrp eir /etc/eir/eir.yaml && sudo systemctl start eir")
    host.does(Installation.alias)  # status 0: it answers as soon as the start has ended
    host.does("sudo systemctl stop eir")
    _, said = host.asks("journalctl", "--unit=eir", "--output=cat", "--lines=40")
    _holds("a stop drains", "event=stopped" in said and "killed" not in said, said)
    host.does("sudo systemctl start eir")
    promises.append("the service starts, answers, reloads, refuses a faulty file with the reason, restarts and drains")


def _upgrades(host: Host, lines: str, network: bool, promises: list[str]) -> None:
    prepared, switched = _first_lines(lines, "sudo ln -sfn eir-2")
    host.does(prepared, network=network)
    with host.times_away() as away:
        host.does(Installation.alias.replace("eir status\n", "") + switched)
    _holds(f"an upgrade takes the node away for less than {AWAY_S:g} s", max(away) < AWAY_S, max(away))
    _, said = host.asks(
        "sh",
        "-c",
        "readlink /proc/$(systemctl show --value --property=MainPID eir)/exe /opt/eir; cat /proc/$(systemctl show --value --property=MainPID eir)/cmdline",
    )
    _holds("what runs is the new one", "eir-2" in said, said)
    promises.append(f"after an upgrade it was away for {max(away):.1f} s")


def _with_network(host: Host, promises: list[str]) -> None:
    host.does(Installation.service, network=True)
    promises.append("the installation with network")
    _works(host, promises)
    _upgrades(host, Installation.upgrade, True, promises)
    _needs(host, Installation.FIRST_DAY)
    code, _ = host.asks("systemctl", "is-active", "redis-server")
    _holds("Debian's redis-server runs, on the usual port", code == 0)
    said = host.does("PATH=/opt/eir/bin:$PATH\n" + "".join(Installation.first_day))
    _holds("a first day ends drained", said.count("draining") == 2, said)
    promises.append("the first day, beside the service and Debian's redis-server")
    _needs(host, Installation.CONNECT)
    host.has_an_address()
    begin, ask, end = Installation.first_hour
    opened = "for try in $(seq 300); do ! eir peers -c first/eir.yaml | grep -qw open || break; sleep 0.1; done\n"
    said = host.does(f"PATH=/opt/eir/bin:$PATH\nmkdir hour && cd hour\n{begin}{opened}{ask}{end}")
    _holds("a listed phone is blacklisted by way of the agent, and another is not", _answers(said), said)
    said = host.does(Installation.alias.replace("eir status\n", "") + PROBES)
    _holds("the installed node answers as before", _answers(said), said)
    promises.append("the first hour with a peer, after the first day on the same host")


def _without_network(fetcher: Host, host: Host, promises: list[str]) -> None:
    fetcher.does(f"sudo apt-get install python3-venv\n{Installation.fetch}", network=True)
    packages, rest = _first_lines(Installation.service, "sudo useradd")
    host.does(packages, network=True)  # Debian's packages: from a mirror of the operator's own
    shutil.copytree(fetcher.home() / "wheels", host.home() / "wheels")
    size = sum(file.stat().st_size for file in (host.home() / "wheels").iterdir())
    _holds("the page's line of pip is there to be replaced", Installation.FROM_THE_INDEX in rest)
    host.does(rest.replace(Installation.FROM_THE_INDEX, Installation.offline))
    promises.append(f"the installation without network, by {size / 1e6:.0f} MB that were fetched elsewhere")
    _works(host, promises)
    made, _, after = Installation.upgrade.partition(" && sudo /opt/eir-2/bin/pip install '.[analysis]'")
    _, _, after = after.partition("\n")
    _upgrades(host, f"{made}\n{Installation.offline.replace('/opt/eir/', '/opt/eir-2/')}{after}", False, promises)


def _locked(host: Host, promises: list[str]) -> None:
    host.does(Installation.service.replace(Installation.FROM_THE_INDEX, Installation.locked), network=True)
    host.does(Installation.alias.replace("eir status\n", "") + LOADS)
    promises.append("the installation of the same versions everywhere")


def _demos(host: Host, promises: list[str]) -> None:
    for demo in ("scripts/demo", "scripts/demo --country"):
        host.does(demo, network=True)  # they install what they need
        promises.append(demo)


def main(arguments: list[str]) -> int:
    """Run the part `newcomer` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak newcomer", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--release", default="stable", help="name of the Debian release")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--only", choices=("network", "demos", "locked", "no-network"), help="only one of these parts")
    options = parser.parse_args(arguments)
    if os.geteuid():
        print("soak newcomer: needs root, for namespaces and mounts", file=sys.stderr)
        return 2
    promises: list[str] = []
    with tempfile.TemporaryDirectory(prefix="eir-newcomer-") as name, ExitStack() as hosts:
        folder = Path(name)
        try:
            _run(ROOT / "scripts" / "setup", "--newcomer")
            base = _base(folder, options.release, options.mirror)
            start = lambda name: hosts.enter_context(Host(folder, base, name))  # noqa: E731
            if options.only in {None, "network"}:
                _with_network(start("day"), promises)
            if options.only in {None, "demos"}:
                _demos(start("demos"), promises)
            if options.only in {None, "locked"}:
                _locked(start("locked"), promises)
            if options.only in {None, "no-network"}:
                _without_network(start("fetcher"), start("core"), promises)
        except Broken as broken:
            print(f"not kept: {broken}", file=sys.stderr)
            return 1
    for promise in promises:
        print(f"kept: {promise}")
    return 0
