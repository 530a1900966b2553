"""Writing in a state folder, always as its owner, also where root runs the command.

The content of another user's folder is under that user's control: a link that was planted there would have root
truncate, create or remove whatever it points to. So root writes there with no more rights on files than the owner has;
it reads as root does. As each new file then belongs to the owner, the node can write it too.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eir.errors import EirError
from eir.operate.control import as_owner

_LIBC = ctypes.CDLL(None)
_CAPABILITY_VERSION = 0x20080522
"""capget(2): capabilities as two words of 32 bits each."""
_DAC_READ_SEARCH = 1 << 2
"""capabilities(7): reads every file and enters every folder, and writes none. Containers often go without it."""
PROGRAM = Path(os.__file__), Path(__file__)
"""Modules of it are read as they are needed."""


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Have this thread, and threads and processes that it starts meanwhile, use files as the folder's owner, if it is root's.

    What a process executes (execve(2)) is root's again. Nothing changes in root's own folder, or for another user than root.
    Raises EirError if the kernel does not let root do that.
    """
    uid, gid = _owner(folder)
    if os.geteuid() or not uid:
        yield
        return
    groups, advice = os.getgroups(), as_owner(folder)
    before_gid, before_uid = (
        _LIBC.setfsgid(gid),
        _LIBC.setfsuid(uid),
    )  # takes the capabilities on files away: capabilities(7)
    try:
        os.setgroups([])
        _read_everything()
        if _LIBC.setfsuid(-1) != uid or not all(map(_can_be_read, PROGRAM)):
            raise EirError(f"the state folder {folder} is not root's, and what root may do here is limited{advice}")
        yield
    finally:
        os.setgroups(groups)
        _LIBC.setfsgid(before_gid)
        _LIBC.setfsuid(before_uid)


def _owner(folder: Path) -> tuple[int, int]:
    """User and group who decide what a folder is: its owner, else who placed the link there; of one not made yet, its parent's."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    for found in (there.lstat(), there.stat() if there.exists() else there.lstat()):
        if found.st_uid:
            return found.st_uid, found.st_gid
    return 0, 0


def _can_be_read(file: Path) -> bool:
    with suppress(PermissionError), file.open("rb"):
        return True
    return False


def _read_everything() -> None:
    """Have this thread read every file, if root may do so here."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and the same for capabilities above 31
    _LIBC.capget(header, words)
    words[0] |= words[1] & _DAC_READ_SEARCH
    _LIBC.capset(header, words)
