"""Export of a journal to one file, for another node, an auditor or a backup.

The file has the lines of all series as they are stored. Before the lines of each file of the journal there is a line with its name:
`{"journal": NAME}`. So the export is unpacked to the same files, and verified as they are.
"""

import fcntl
import json
import os
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, NamedTuple

from eir.disk import open_replacement, sync_folder
from eir.lists.log.change import utc_text
from eir.lists.log.journal import (
    IMPORT,
    MAIN,
    MODE,
    SERIES,
    JournalError,
    JournalEvent,
    is_journal_file,
    lines_of,
    paths_of,
    witness_path,
)

READ_AGAIN_MAX = 10
"""Maximum number of times that a journal is read while its files change."""


class JournalExport(NamedTuple):
    """Result of an export."""

    lines: int
    digest: str
    """SHA-256 of the newest line of MAIN; empty without a line."""


def export_journal(folder: Path, out: IO[bytes]) -> JournalExport:
    """Write the lines of a journal to an empty file, which can be read; the journal may be written meanwhile.

    Raises:
        JournalError: if the files of the journal change all the time.
    """
    for _ in range(READ_AGAIN_MAX):
        paths = [path for series in SERIES for path in paths_of(folder, series)]
        out.seek(0)
        out.truncate()
        lines = 0
        try:
            for path in paths:
                out.write(json.dumps({"journal": path.name}).encode() + b"\n")
                for octets in lines_of(path):
                    out.write(octets + b"\n")
                    lines += 1
        except FileNotFoundError:  # it was deleted meanwhile
            continue
        if paths == [path for series in SERIES for path in paths_of(folder, series)]:
            return JournalExport(lines, newest_line(folder))
    raise JournalError(
        f"{folder}: the files of the journal changed {READ_AGAIN_MAX} times while they were read; try again"
    )


def unpack_journal(file: Path, folder: Path) -> None:
    """Write the files of an exported journal to a new folder.

    Raises:
        JournalError: if the file is no export of a journal.
    """
    folder.mkdir(mode=0o750)
    with file.open("rb") as lines, ExitStack() as stack:
        out: IO[bytes] | None = None
        for number, octets in enumerate(lines, 1):
            name = _file_name(octets)
            if name is None and out is None:
                break
            if name is None and out is not None:
                out.write(octets)
                continue
            stack.close()
            try:
                out = stack.enter_context((folder / str(name)).open("xb"))
            except FileExistsError:
                raise JournalError(f"{file}:{number}: {name} is there twice; export the journal again") from None
    if out is None:
        raise JournalError(f"{file} is no export of a journal; expected a file of eir history --export")


def _file_name(octets: bytes) -> str | None:
    """Return the name in a line that begins a file of the journal; None for another line."""
    if not octets.startswith(b'{"journal"'):
        return None
    try:
        document = json.loads(octets)
        name = document["journal"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and is_journal_file(name) else None


def newest_line(folder: Path) -> str:
    """Return the SHA-256 of the newest line of MAIN; an empty text without a line."""
    newest = b""
    for path in reversed(paths_of(folder, MAIN)):
        for octets in lines_of(path):
            newest = octets
        if newest:
            return sha256(newest).hexdigest()
    return ""


def has_line(folder: Path, digest: str) -> bool:
    """Return True if MAIN has a line with this SHA-256."""
    return any(sha256(octets).hexdigest() == digest for path in paths_of(folder, MAIN) for octets in lines_of(path))


def restore_journal(file: Path, folder: Path) -> bool:
    """Put an exported journal in the place of an empty one; return False if the folder has a journal, or a node uses it.

    Raises:
        JournalError: as `unpack_journal`.
    """
    folder.mkdir(mode=0o750, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        paths = [path for series in SERIES for path in paths_of(folder, series)]
        if any(path.stat().st_size for path in paths):
            return False
        for path in paths:
            path.unlink()
        unpacked = folder / ".restored"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpack_journal(file, unpacked)
        for path in unpacked.iterdir():
            path.replace(folder / path.name)
        unpacked.rmdir()
        sync_folder(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def add_witness(file: Path, folder: Path, *, who: str, detail: str) -> JournalEvent:
    """Copy an exported journal to a witness file; return the event that records it.

    Raises:
        OSError: if the file cannot be read or written.
    """
    with file.open("rb") as source:
        digest = file_digest(source, "sha256").hexdigest()
        source.seek(0)
        folder.mkdir(mode=0o750, exist_ok=True)
        with open_replacement(witness_path(folder, digest), mode=MODE, durable=True) as out:
            shutil.copyfileobj(source, out)
    return JournalEvent(time=utc_text(datetime.now(UTC)), who=who, what=IMPORT, digest=digest, detail=detail)
