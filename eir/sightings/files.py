"""The files of the record: written whole or not at all, kept within an age and a size, and cleaned of what somebody wants forgotten.

A file gets its name once all of it is on the disk, so that whatever ends a process leaves files that can be read, and perhaps one
with another ending, which the next start removes. Names are by the time of the first row and a random part: a clock that goes back
makes no file take another's place. Imports polars where it needs it.

Beside them is `watched.json`: partners with which devices and SIMs of watched lists were last seen.
"""

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eir.disk import UNFINISHED, put, putting, sync
from eir.sightings.events import without
from eir.sightings.schema import FILES, FOLDER

if TYPE_CHECKING:
    import polars as pl

WATCHED = "watched.json"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
FREE_BYTES_MIN = 64 << 20
"""Space left on the disk for what matters more: lists, their history and the log."""
SMALL_DISK_SHARE = 20
"""On a small disk, one part in so many is left instead."""
GROUP_ROWS = 1 << 16
"""Rows that a reader may pass over together."""
PEERS = "eir.wire.peers"
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
    made: list[File] = []
    try:
        for (hour,), part in rows.group_by(rows["time"].dt.strftime("%Y-%m-%d/%H"), maintain_order=True):
            first_us = part["time"].to_physical().to_numpy().min()
            path = state / FOLDER / f"{hour}-{first_us}-{secrets.token_hex(4)}.parquet"
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            made.append(_write(path, part, time.time()))
    except OSError:
        for file in made:  # so that who tries again does not write it twice
            file.path.unlink(missing_ok=True)
        raise
    return made


def _write(path: Path, rows: "pl.DataFrame", written: float) -> File:
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < min(FREE_BYTES_MIN, room.f_blocks * room.f_frsize // SMALL_DISK_SHARE):
        raise OSError(28, "the disk is nearly full; what is left is for lists and their history", str(path))
    try:
        with putting(path, mode=FILE_MODE, durable=True) as stream:
            peers = (
                rows["peer"].fill_null("") if "peer" in rows.columns else rows.clear().to_series(0)
            )  # files from before there were peers
            counts = json.dumps(dict(peers.value_counts().iter_rows()))
            rows.write_parquet(
                stream, compression="zstd", row_group_size=GROUP_ROWS, statistics=True, metadata={PEERS: counts}
            )
            stream.flush()
            os.utime(stream.fileno(), (written, written))
            size = os.fstat(stream.fileno()).st_size
        sync(path.parent)
    except OSError:
        raise
    except Exception as e:  # noqa: BLE001 - polars has errors of its own for a disk's
        raise OSError(5, f"{type(e).__name__}: {e}", str(path)) from None
    return File(path, size, written)


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
    The newest file stays. If it alone exceeds `max_bytes`, as many of the others stay as fit within `max_bytes`.
    """
    there = found(state)
    for file in [file for file in there if now - file.written > keep_s]:
        file.path.unlink(missing_ok=True)
        there.remove(file)
    newest = there[-1].bytes if there else 0
    counted = newest if newest <= max_bytes else 0
    older = sum(file.bytes for file in there[:-1])
    if older + counted > max_bytes:
        older = _shrink(there[:-1], older, int(max_bytes * PRUNED_SHARE) - counted)
    for day in (state / FOLDER).glob("*/"):
        with suppress(OSError):  # there is something in it
            day.rmdir()
    return older + newest


def _shrink(there: Sequence[File], total: int, wanted: int) -> int:
    """Take from these files until there are `wanted` bytes of `total`; returns how many there are then.

    A file that alone is larger than `wanted` goes first, then the oldest.
    """
    rows = {file: _rows_of_peers(file.path) for file in there}
    counts = sum(rows.values(), Counter[str]())
    left = {file.path: file.bytes for file in there}
    for file, peers in rows.items():
        loud, count = max(counts.items(), key=itemgetter(1), default=("", 0))
        if total > wanted and count * 2 > counts.total() and loud in peers:
            counts[loud] -= peers.pop(loud)
            left[file.path] = _bytes_without(file, loud, others=bool(peers))
            total -= file.bytes - left[file.path]
    for path, size in sorted(left.items(), key=lambda each: each[1] <= wanted):
        if total <= wanted:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def _rows_of_peers(path: Path) -> Counter[str]:
    """Return the number of rows of each peer; nothing for a file that does not say so, or cannot be read."""
    import polars as pl  # noqa: PLC0415 - what is too large was written by this process

    with suppress(OSError, ValueError, pl.exceptions.PolarsError):
        return Counter(json.loads(pl.read_parquet_metadata(path).get(PEERS, "{}")))
    return Counter()


def _bytes_without(file: File, peer: str, *, others: bool) -> int:
    """Write a file again without a peer's rows; returns its size. It goes where there are no others, or that cannot be."""
    import polars as pl  # noqa: PLC0415 - as above

    with suppress(OSError, pl.exceptions.PolarsError):  # a full disk
        if others:
            rows = pl.read_parquet(file.path, glob=False)
            return _write(file.path, rows.filter(pl.col("peer").fill_null("") != peer), file.written).bytes
    file.path.unlink(missing_ok=True)
    return 0


def clean(state: Path) -> None:
    """Make the folder, and remove what processes that have ended left unfinished. Raises OSError."""
    for path in folder_of(state).glob(f"**/.*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def folder_of(state: Path) -> Path:
    """The folder of the files, made if it is not there. Raises OSError."""
    folder = state / FOLDER
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return folder


def forget(state: Path, subscribers: Sequence[str], damaged: Callable[[Path], object] = lambda _: None) -> int:
    """Take every row of these subscribers out of the files, and what a watched list remembers of them; returns how many rows there were.

    `damaged` is told of files that cannot be read. Raises OSError.
    """
    import polars as pl  # noqa: PLC0415 - for this alone

    gone = 0
    for file in found(state):
        try:
            rows = pl.read_parquet(file.path, glob=False)
        except pl.exceptions.PolarsError:
            damaged(file.path)
            continue
        kept = rows.filter(~pl.col("subscriber").is_in(list(subscribers)).fill_null(value=False))
        gone += len(rows) - len(kept)
        if kept.is_empty():
            file.path.unlink(missing_ok=True)
        elif len(kept) < len(rows):
            _write(file.path, kept, file.written)
    seen = read_watched(state)
    if len(left := without(seen, subscribers)) < len(seen):
        write_watched(state, left)
    return gone


def read_watched(state: Path) -> dict[str, str]:
    """Return the partners on file (eir.sightings.events.Events.seen); nothing if the file is missing or damaged."""
    try:
        found = json.loads((state / FOLDER / WATCHED).read_text())
    except (OSError, ValueError):
        return {}
    return {str(who): str(other) for who, other in found.items()} if isinstance(found, dict) else {}


def write_watched(state: Path, seen: Mapping[str, str]) -> None:
    """Put these there instead. Raises OSError."""
    put(state / FOLDER / WATCHED, json.dumps(seen).encode(), mode=FILE_MODE)
