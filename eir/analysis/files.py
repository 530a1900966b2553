"""The files of the record: written whole or not at all, kept within an age and a size, and cleaned of what somebody wants forgotten.

A file gets its name once all of it is on the disk, so that whatever ends a process leaves files that can be read, and perhaps one
with another ending, which the next start removes. Names are by the time of the first row and a random part: a clock that goes back
makes no file take another's place. Imports polars where it writes.
"""

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eir.analysis.schema import FILES, FOLDER
from eir.disk import sync

if TYPE_CHECKING:
    import polars as pl

UNFINISHED = ".tmp"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
FREE_BYTES_MIN = 64 << 20
"""Space left on the disk for what matters more: lists, their history and the log."""
SMALL_DISK_SHARE = 20
"""On a small disk, one part in so many is left instead."""
GROUP_ROWS = 1 << 16
"""Rows that a reader may pass over together."""
PEERS = "eir.peers"
"""Key in a file's footer: how many rows each peer has in it, as a JSON object; a peer that is not known counts as an empty label."""
PRUNED_SHARE = 0.95
"""Pruning brings a record that is too large down to this share of `max_bytes`, so that the next pruning is some time off."""


class File(NamedTuple):
    """One file."""

    path: Path
    bytes: int
    written: float
    """Unix seconds; of what was taken in from elsewhere, when that was: its age counts from there."""


def write(state: Path, rows: "pl.DataFrame") -> list[File]:
    """Write rows (schema.COLUMNS) into files by day and hour; returns these. Raises OSError, and leaves nothing unfinished then."""
    import polars as pl  # noqa: PLC0415 - the caller has it

    made: list[File] = []
    try:
        for (hour,), part in rows.group_by(pl.col("time").dt.strftime("%Y-%m-%d %H"), maintain_order=True):
            day, _, begin = str(hour).partition(" ")
            first_us = part["time"].cast(pl.Int64).to_numpy().min()
            made.append(
                _write(_folder(state / FOLDER / day) / f"{begin}-{first_us}-{secrets.token_hex(4)}.parquet", part)
            )
    except OSError:
        for file in made:  # so that who tries again does not write it twice
            file.path.unlink(missing_ok=True)
        raise
    return made


def _write(path: Path, rows: "pl.DataFrame", *, written: float | None = None) -> File:
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < min(FREE_BYTES_MIN, room.f_blocks * room.f_frsize // SMALL_DISK_SHARE):
        raise OSError(28, "the disk is nearly full; what is left is for lists and their history", str(path))
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - of a descriptor, for its mode
            peers = (
                rows["peer"].fill_null("") if "peer" in rows.columns else rows.clear().to_series(0)
            )  # files from before there were peers
            counts = json.dumps(dict(peers.value_counts().iter_rows()))
            rows.write_parquet(
                stream, compression="zstd", row_group_size=GROUP_ROWS, statistics=True, metadata={PEERS: counts}
            )
            stream.flush()
            os.fsync(descriptor)
            if written is not None:
                os.utime(descriptor, (written, written))
            size = os.fstat(descriptor).st_size
        unfinished.replace(path)
        sync(path.parent)
    except BaseException as e:
        unfinished.unlink(missing_ok=True)
        if isinstance(e, OSError) or not isinstance(e, Exception):
            raise
        raise OSError(5, f"{type(e).__name__}: {e}", str(path)) from None  # polars has errors of its own for a disk's
    return File(path, size, time.time() if written is None else written)


def found(state: Path) -> list[File]:
    """All files, the oldest first by what is in them."""
    there = []
    for path in sorted((state / FOLDER).glob(FILES)):
        with suppress(FileNotFoundError):  # it was too old just now
            status = path.stat()
            there.append(File(path, status.st_size, status.st_mtime))
    return there


def prune(state: Path, *, keep_s: float, max_bytes: int, now: float) -> int:
    """Remove what is too old, and of what is too much the oldest; returns the bytes that are left. Raises OSError.

    While one peer has more than half of all rows, it is its oldest rows that go: a peer that floods the record pushes out its own.
    """
    there = found(state)
    for file in [file for file in there if now - file.written > keep_s]:
        file.path.unlink(missing_ok=True)
        there.remove(file)
    total = sum(file.bytes for file in there)
    if total > max_bytes:
        total = _shrink(there[:-1], total, int(max_bytes * PRUNED_SHARE))  # the newest stays, however large it is
    for day in (state / FOLDER).glob("*/"):
        with suppress(OSError):  # there is something in it
            day.rmdir()
    return total


def _shrink(there: Sequence[File], total: int, wanted: int) -> int:
    """Take from these files, the oldest first, until there are `wanted` bytes of `total`; returns how many there are then."""
    rows = {file.path: _rows_of_peers(file.path) for file in there}
    counts = sum(rows.values(), Counter[str]())
    left: list[File] = []
    for file in there:
        loud, count = max(counts.items(), key=itemgetter(1), default=("", 0))
        smaller: File | None = file
        if total > wanted and count * 2 > counts.total() and loud in rows[file.path]:
            counts[loud] -= rows[file.path].pop(loud)
            smaller = _without(file, loud) if rows[file.path] else None
            if smaller is None:
                file.path.unlink(missing_ok=True)
            total -= file.bytes - (smaller.bytes if smaller else 0)
        if smaller is not None:
            left.append(smaller)
    for file in left:
        if total <= wanted:
            break
        file.path.unlink(missing_ok=True)
        total -= file.bytes
    return total


def _rows_of_peers(path: Path) -> Counter[str]:
    """Return the number of rows of each peer; nothing for a file that does not say so, or cannot be read."""
    import polars as pl  # noqa: PLC0415 - what is too large was written by this process

    with suppress(OSError, ValueError, pl.exceptions.PolarsError):
        return Counter(json.loads(pl.read_parquet_metadata(path).get(PEERS, "{}")))
    return Counter()


def _without(file: File, peer: str) -> File | None:
    """The file written again without a peer's rows; None if that cannot be."""
    import polars as pl  # noqa: PLC0415 - as above

    with suppress(OSError, pl.exceptions.PolarsError):  # a full disk
        rows = pl.read_parquet(file.path, glob=False)
        return _write(file.path, rows.filter(pl.col("peer").fill_null("") != peer), written=file.written)
    return None


def clean(state: Path) -> None:
    """Make the folder, and remove what processes that have ended left unfinished. Raises OSError."""
    for path in folder_of(state).glob(f"*/.*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def folder_of(state: Path) -> Path:
    """The folder of the files, made if it is not there. Raises OSError."""
    return _folder(state / FOLDER)


def forget(state: Path, subscribers: Sequence[str], damaged: Callable[[Path], object] = lambda _: None) -> int:
    """Take every row of these subscribers out of the files; returns how many there were. `damaged` is told of files that cannot be read. Raises OSError."""
    import polars as pl  # noqa: PLC0415 - for this alone

    gone = 0
    for file in found(state):
        try:
            rows = pl.read_parquet(file.path, glob=False)
        except pl.exceptions.PolarsError:
            damaged(file.path)
            continue
        kept = rows.filter(~pl.col("subscriber").is_in(list(subscribers)).fill_null(value=False))
        if len(kept) == len(rows):
            continue
        gone += len(rows) - len(kept)
        if len(kept):
            _write(file.path, kept, written=file.written)
        else:
            file.path.unlink(missing_ok=True)
    return gone


def _folder(path: Path) -> Path:
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return path
