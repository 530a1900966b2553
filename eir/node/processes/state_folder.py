"""The state folder of a node: one node at a time, its form, its Origin-State-Id, and the time of its clock.

Whoever writes in it does so as its owner, also where root runs the command: the content of another user's folder is under that user's
control, and a link that was planted there would have root truncate, create or remove whatever it points to. So root writes there with no
more rights on files than the owner has; it reads as root does. As each new file then belongs to the owner, the node can write it too.
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
from eir.errors import EirError, Report, SetupFault
from eir.lists.record.clock import TrustedClock
from eir.node.observe.control import PING, RUNNING, ControlError, as_owner, ask

LOCK_FILE, CLOCK_FILE, ORIGIN_STATE_ID_FILE = "lock", "clock", "origin-state-id"
FORM_FILE = "form"
FORM = 1
"""The form of the folder as a whole; the files of SQLite in it have forms of their own (eir.lists.stores.records)."""
CHANGES = {1: f"the file `{FORM_FILE}` says from now on which form it has, and which eir wrote it"}
"""The change that each form makes to a folder of the form before it. A folder without the file has form 0."""
FOLDER_MODE, FILE_MODE = 0o750, 0o640
ENDING_S, LOOK_S, PING_S = 20.0, 0.1, 1.0
"""Time for which a start waits for a node that is ending, interval between two looks, and time that this node has to
report its status."""


def prepare(folder: Path) -> None:
    """Make the folder if it is not there. Raises SetupFault if it cannot be made or written."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as e:
        raise SetupFault(f"the state folder {folder} (`state`) cannot be made: {e.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupFault(f"the state folder {folder} (`state`) is not writable for user {os.getuid()}")


def hold(folder: Path, ending_s: float = ENDING_S) -> int:
    """Take the folder for this node, by a lock that lasts as long as any of its processes; returns the descriptor that holds it.

    A node there that is ending, which answers its peers until they close, is waited for, `ending_s` at most. Raises EirError if one runs.
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
            time.sleep(LOOK_S)
        else:
            return descriptor


def known_form(folder: Path) -> tuple[int, str]:
    """The form of the folder, and the version of the program that wrote it.

    Raises EirError for a newer form than this program's, with both forms and programs. What a power cut left of the file, or
    what may not be read, counts as none: a node that does not start would cost phones.
    """
    text = ""
    with suppress(OSError):
        text = (folder / FORM_FILE).read_text(errors="replace")
    form, _, version = text.strip().partition(" ")
    found = int(form) if form.isdecimal() else 0
    if found > FORM:
        raise EirError(
            f"the state folder {folder} has form {found}, written by eir {version or 'of a newer version'}; this is eir"
            f" {__version__}, which knows form {FORM}: start that version again, or put back the backup of before"
        )
    return found, version


def take_form(folder: Path, report: Report) -> None:
    """Bring a folder that is held to this program's form, and say before what that changes. Raises EirError as `known_form` does."""
    found, version = known_form(folder)
    if found < FORM and (folder / ORIGIN_STATE_ID_FILE).exists():
        changes = "; ".join(CHANGES[each] for each in range(found + 1, FORM + 1))
        detail = f"{folder} has form {found}, and is brought to form {FORM} now: {changes}"
        report("state_upgraded", level="warning", reason="older", detail=detail)
    if (found, version) != (FORM, __version__):
        _keep(folder / FORM_FILE, f"{FORM} {__version__}\n")


def _is_running(folder: Path) -> bool:
    """True if the node there says that it runs; one that says nothing may be ending."""
    with suppress(ControlError):
        return bool(ask(folder, PING, timeout_s=PING_S) == RUNNING)
    return False


def next_origin_state_id(folder: Path) -> int:
    """A value for Origin-State-Id that is higher than at any start before (RFC 6733 8.16), kept in the folder.

    On a full disk it is not kept, and is higher all the same: it is the time, unless the clock went back.
    """
    file = folder / ORIGIN_STATE_ID_FILE
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    value = max(int(time.time()), last + 1)
    _keep(file, f"{value}\n")
    return value


def read_clock(folder: Path) -> TrustedClock:
    """The clock by which rows end, set by the last time that a process of this node kept in the folder, and by what it is now."""
    try:
        clock = TrustedClock(int((folder / CLOCK_FILE).read_text()))
    except (OSError, ValueError):
        clock = TrustedClock()
    clock.now(time.time(), time.monotonic())
    return clock


def keep_clock(clock: TrustedClock, folder: Path) -> None:
    """Keep the time for the next start; on a full disk that start is merely more cautious."""
    _keep(folder / CLOCK_FILE, f"{clock.time:.0f}\n")


def _keep(file: Path, text: str) -> None:
    with suppress(OSError):
        write_file(file, text.encode())


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
