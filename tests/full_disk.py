"""A small disk, which a test can fill: a tmpfs in a mount namespace of its own; and files that cannot grow."""

import ctypes
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000


class SmallDisk:
    """The disk that `folder` is for those who enter its namespace."""

    def __init__(self, folder, pid):
        self.folder, self.pid = folder, pid
        self.seen_from_outside = Path(f"/proc/{pid}/root{folder}")
        """Not for SQLite, which follows the link to the folder that is under the disk."""
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-m", f"--wd={folder}", "-t", str(pid))
        """Prefix of a command that is to have the disk."""

    def enter(self):
        """Have the calling thread, and no other one, see the disk. Takes root."""
        libc = ctypes.CDLL(None, use_errno=True)
        space = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.unshare(CLONE_FS) or libc.setns(space, CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(space)

    def fill(self, leave=0):
        """Have someone else take all that is left but for so many bytes."""
        with (self.seen_from_outside / "other").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                file.truncate(max(0, file.tell() - leave))

    def free(self):
        """Give that back."""
        (self.seen_from_outside / "other").unlink()

    def remount(self, how):
        """Make it read-only (`ro`), or writable again (`rw`)."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{how}", self.folder], check=True)


@contextmanager
def small_disk(folder, megabytes):
    """A disk of this size."""
    script = f"mount -t tmpfs -o size={megabytes}m none {quote(str(folder))} && echo ready && exec sleep infinity"
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as holder:
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield SmallDisk(folder, holder.pid)
        finally:
            holder.kill()


def is_possible(folder):
    """True if this user may have one: some containers allow no namespaces, and a thread enters one as root only."""
    script = f"mount -t tmpfs none {quote(str(folder))}"
    made = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, check=False)
    return os.geteuid() == 0 and made.returncode == 0


@contextmanager
def no_file_above(size):
    """As where a disk has so much room: of a longer write a part comes to the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
