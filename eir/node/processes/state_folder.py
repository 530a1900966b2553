"""State folder of a node: lock, format version, Origin-State-Id, and last known time.

Commands of root write to the folder with the file permissions of its owner. The owner controls the content: by a link in the folder,
the owner could otherwise make root truncate, create or delete any file. Root reads with its own permissions. Each new file belongs
to the owner, so that the node can write the file too.
"""

import ctypes
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eir import __version__
from eir.disk import write_file
from eir.errors import EirError, SetupFault
from eir.lists.record.clock import TrustedClock
from eir.node.observe.control import PING, RUNNING, ControlError, ask, owner_advice

LOCK_FILE, CLOCK_FILE, ORIGIN_STATE_ID_FILE = "lock", "clock", "origin-state-id"
FORM_FILE = "form"
FORM = 2
"""Form (format version) of the folder. The files of stores, copies and journal have forms of their own."""
OLD_COPY_FILE = "copy.sqlite"
"""File that only folders of a form below 2 have."""
FOLDER_MODE, FILE_MODE = 0o750, 0o640
ENDING_S, POLL_S, PING_S = 20.0, 0.1, 1.0
"""Seconds that a start waits for the end of another node, seconds between two checks, and maximum seconds for the other node's answer."""


def prepare(folder: Path) -> None:
    """Create the state folder if it is missing, and check that it is writable.

    Raises:
        SetupFault: if it cannot be created or written.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as e:
        raise SetupFault(f"the state folder {folder} (`state`) cannot be created: {e.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupFault(f"the state folder {folder} (`state`) is not writable for user {os.getuid()}")


def lock(folder: Path, ending_s: float = ENDING_S) -> int:
    """Lock the state folder for this node, and return the descriptor of the lock.

    The lock lasts until the end of all processes of the node. If another node is ending, wait for its end, at most `ending_s`.

    Raises:
        EirError: if another node runs.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    give_up = time.monotonic() + ending_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _is_running(folder) or time.monotonic() > give_up:
                os.close(descriptor)
                raise EirError(f"a node already runs on the state folder {folder}; stop it first") from None
            time.sleep(POLL_S)
        else:
            return descriptor


def check_form(folder: Path) -> str:
    """Check the format version (form) of the state folder; return the line of the file FORM_FILE.

    An unreadable or truncated file is no reason to refuse the folder, because a node that does not start would leave phones without service.

    Raises:
        EirError: if the form is another one than this program's.
    """
    text = ""
    with suppress(OSError):
        text = (folder / FORM_FILE).read_text(errors="replace")
    form, _, version = text.strip().partition(" ")
    known = int(form) if form.isdecimal() else 0
    writer = f"form {known}, written by eir {version or 'of another version'}; this is eir {__version__}, which knows form {FORM}"
    if known > FORM:
        raise EirError(
            f"the state folder {folder} has {writer}; start that version again, or restore a backup from before the upgrade"
        )
    if 0 < known < FORM or os.access(folder / OLD_COPY_FILE, os.F_OK):
        raise EirError(
            f"the state folder {folder} has {writer}; write each list to a file with that version (eir export), then load the files"
            " into a new folder with this one (eir load, eir add --file)"
        )
    return text


def write_form(folder: Path) -> None:
    """Note in a locked state folder this program's format version (form).

    Raises:
        EirError: as `check_form`.
    """
    text = f"{FORM} {__version__}\n"
    if check_form(folder) != text:
        _save(folder / FORM_FILE, text)


def _is_running(folder: Path) -> bool:
    """Return true if the node that uses the state folder answers a ping with RUNNING.

    Without an answer, the function returns false: the node may be stopping.
    """
    with suppress(ControlError):
        answer = ask(folder, PING, timeout_s=PING_S)
        return bool(answer == RUNNING)
    return False


def next_origin_state_id(folder: Path) -> int:
    """Return an Origin-State-Id above that of each earlier start (RFC 6733 8.16), and store it in the folder.

    If the disk is full, the value is not stored. It is still higher unless the clock has gone back, because it is the time.
    """
    file = folder / ORIGIN_STATE_ID_FILE
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    value = max(int(time.time()), last + 1)
    _save(file, f"{value}\n")
    return value


def read_clock(folder: Path) -> TrustedClock:
    """Create the clock for expiries from the stored time in the state folder and the present time."""
    try:
        saved = int((folder / CLOCK_FILE).read_text())
        clock = TrustedClock(saved)
    except (OSError, ValueError):
        clock = TrustedClock()
    clock.now(time.time(), time.monotonic())
    return clock


def save_clock(clock: TrustedClock, folder: Path) -> None:
    """Store the time of the clock for the next start; a full disk is ignored.

    Without this time the next start is more cautious about expiries.
    """
    _save(folder / CLOCK_FILE, f"{clock.time:.0f}\n")


def _save(file: Path, text: str) -> None:
    with suppress(OSError):
        write_file(file, text.encode())


_LIBC = ctypes.CDLL(None)
_CAPABILITY_VERSION = 0x20080522
"""Version of capget(2) with two words of 32 bits for each set of capabilities."""
_DAC_READ_SEARCH = 1 << 2
"""Capability to read every file and enter every folder, without writing (capabilities(7)). Containers often lack it."""
PROGRAM = Path(os.__file__), Path(__file__)
"""Files of the program that must be readable, because some modules are loaded only when needed."""


@contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Run a `with` block in which root accesses files with the permissions of the folder's owner.

    This applies to the present thread, and to threads and processes that it starts in the block. A program executed by
    execve(2) runs as root again. Nothing changes if the folder belongs to root, or if the user is not root.

    Raises:
        EirError: if the kernel does not permit it.
    """
    uid, gid = _owner(folder)
    if os.geteuid() or not uid:
        yield
        return
    groups = os.getgroups()
    advice = owner_advice(folder)
    before_gid = _LIBC.setfsgid(gid)
    before_uid = _LIBC.setfsuid(uid)  # drops the capabilities on files: capabilities(7)
    try:
        os.setgroups([])
        _read_everything()
        present_uid = _LIBC.setfsuid(-1)
        if present_uid != uid or not all(map(_can_be_read, PROGRAM)):
            raise EirError(
                f"the state folder {folder} belongs to another user, and root's rights are limited here{advice}"
            )
        yield
    finally:
        os.setgroups(groups)
        _LIBC.setfsgid(before_gid)
        _LIBC.setfsuid(before_uid)


def _owner(folder: Path) -> tuple[int, int]:
    """Return user id and group id of a folder's owner; for a missing folder, those of its parent.

    If one of folder and link belongs to root, the owner of the other one is returned.
    """
    path = folder.absolute()
    present = next(each for each in (path, *path.parents) if os.path.lexists(each))
    link = present.lstat()
    target = present.stat() if present.exists() else link
    for status in (link, target):
        if status.st_uid:
            return status.st_uid, status.st_gid
    return 0, 0


def _can_be_read(file: Path) -> bool:
    with suppress(PermissionError), file.open("rb"):
        return True
    return False


def _read_everything() -> None:
    """Give this thread CAP_DAC_READ_SEARCH, so that it can read every file. The call has no effect if the host forbids this."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and the same for capabilities above 31
    _LIBC.capget(header, words)
    words[0] |= words[1] & _DAC_READ_SEARCH
    _LIBC.capset(header, words)
