"""Process 1 of the kernel that scripts/sctp starts: mounts, loads SCTP, brings up loopback, runs the command, powers off."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
import termios
import traceback
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE = 313
"""Number of the system call on x86-64."""
EEXIST = 17
POWER_OFF = 0x4321FEDC
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
MODULES = Path("/usr/lib/uml/modules")
# SCTP makes its cookies with hmac(md5), and does not name it as what it needs; the others are for networks with several addresses.
WANTED = ("hmac", "md5", "crc32c_generic", "veth", "dummy", "sctp")
FAILED = 125
LEFT_S = 1.0
"""Longest wait (s) for the end of the output, which processes left behind by the command may hold open."""


def mount(kind: str, where: str) -> None:
    """Mount a file system without a device."""
    Path(where).mkdir(parents=True, exist_ok=True)
    if LIBC.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        print(f"sctp: mounting {where}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


def mount_all() -> None:
    """Mount the usual file systems."""
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    if Path("/dev").stat().st_dev == Path("/").stat().st_dev:  # unless the kernel has done it
        mount("devtmpfs", "/dev")
    mount("devpts", "/dev/pts")
    mount("tmpfs", "/dev/shm")  # noqa: S108 - where it always is
    mount("tmpfs", "/run")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists(f"/dev/{name}"):
            Path(f"/dev/{name}").symlink_to(target)


def open_consoles() -> None:
    """Send output and errors to the caller, byte by byte."""
    for descriptor in (1, 2):
        opened = os.open(f"/dev/tty{descriptor}", os.O_WRONLY | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
        mode = termios.tcgetattr(descriptor)
        mode[1] &= ~termios.OPOST
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSANOW, mode)


def load_modules() -> None:
    """Load SCTP and its modules."""
    folder = MODULES / os.uname().release
    files = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, needs = line.split(":")
        files[Path(path).name.partition(".ko")[0]] = [path, *needs.split()]
    for name in WANTED:
        for path in reversed(files.get(name, [])):  # none: it is built in
            with (folder / path).open("rb") as module:
                if LIBC.syscall(FINIT_MODULE, module.fileno(), b"", 0) and ctypes.get_errno() != EEXIST:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def bring_up_loopback() -> None:
    """Bring loopback up, which is down when a kernel starts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        (flags,) = struct.unpack("16xH22x", request)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))


def run(job: Path) -> int:
    """Run the command; return its exit status."""
    command, environment = ((job / name).read_bytes().split(b"\0")[:-1] for name in ("command", "environment"))
    variables = dict(each.split(b"=", 1) for each in environment if b"=" in each)
    # By pipes: a console is a terminal, for which programs write otherwise than the caller wants.
    copies = [subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=descriptor) for descriptor in (1, 2)]
    out, said = (copy.stdin for copy in copies)
    process = subprocess.Popen(
        command,
        env=variables,
        cwd=(job / "folder").read_text(),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=said,
        start_new_session=True,
    )
    for copy in copies:
        copy.stdin.close()
    while True:  # process 1 also buries what others leave behind
        pid, status = os.wait()
        if pid == process.pid:
            break
    for copy in copies:
        with contextlib.suppress(subprocess.TimeoutExpired):
            copy.wait(LEFT_S)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run all steps in turn."""
    job, status = Path(os.environ["sctp_job"]), FAILED  # noqa: SIM112 - the kernel hands on its arguments as they are written
    try:
        mount_all()
        open_consoles()
        load_modules()
        bring_up_loopback()
        status = run(job)
    except BaseException:  # noqa: BLE001 - whatever it is, process 1 must not end
        traceback.print_exc()
    try:
        (job / "status").write_text(str(status))
        for descriptor in (1, 2):
            termios.tcdrain(descriptor)
    except Exception:  # noqa: BLE001 - as above
        traceback.print_exc()
    os.sync()
    LIBC.reboot(POWER_OFF)


main()
