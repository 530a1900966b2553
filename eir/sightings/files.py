"""Files of the record of checks: atomic writing, limits on age and size, and removal of subscribers.

A file gets its name after all of it is on the disk. So a killed process leaves only readable files, and at most one unfinished
file, which the next start removes. A name has the time of the first row and a random part, so a clock that goes back cannot
cause an overwrite. polars is imported only in functions that need it.

The file `watched.json` has the partners with which devices and SIMs of watched lists were last seen.
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

from eir.disk import UNFINISHED, errors_name, open_replacement, sync_folder, write_file
from eir.sightings.events import without_subscribers
from eir.sightings.schema import FILES, FOLDER

if TYPE_CHECKING:
    import polars as pl

WATCHED = "watched.json"
FOLDER_MODE, FILE_MODE = 0o700, 0o600
FREE_BYTES_MIN = 64 << 20
"""Bytes that stay free on the disk for lists, their history and the log."""
SMALL_DISK_SHARE = 20
"""On a small disk, 1/20 of it stays free instead."""
GROUP_ROWS = 1 << 16
"""Rows of a row group, which a reader can skip."""
PEERS = "eir.wire.peers"
"""Key in a file's footer: the number of rows of each peer as a JSON object; an unknown peer has an empty label."""
PRUNED_SHARE = 0.95
"""Share of `max_bytes` to which pruning reduces a record that is too large, so that the next pruning is not due at once."""


class RecordFile(NamedTuple):
    """Parquet file of the record of checks."""

    path: Path
    bytes: int
    written: float
    """Unix seconds of writing, from which the age counts; for imported rows, the time of the import."""


def write(state: Path, rows: "pl.DataFrame") -> list[RecordFile]:
    """Write rows (schema.COLUMNS) to one file for each hour, and return the files.

    Raises:
        OSError: if a write fails; files that were already written are removed.
    """
    new_files: list[RecordFile] = []
    try:
        for (hour,), part in rows.group_by(rows["time"].dt.strftime("%Y-%m-%d/%H"), maintain_order=True):
            first_us = part["time"].to_physical().to_numpy().min()
            path = state / FOLDER / f"{hour}-{first_us}-{secrets.token_hex(4)}.parquet"
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            new_files.append(_write(path, part, time.time()))
    except OSError:
        for file in new_files:  # otherwise a retry would write the rows twice
            file.path.unlink(missing_ok=True)
        raise
    return new_files


def _write(path: Path, rows: "pl.DataFrame", written: float) -> RecordFile:
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < min(FREE_BYTES_MIN, room.f_blocks * room.f_frsize // SMALL_DISK_SHARE):
        raise OSError(28, "the disk is nearly full; the rest is reserved for lists and their history", str(path))
    try:
        with open_replacement(path, mode=FILE_MODE, durable=True) as stream, errors_name(path):
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
        sync_folder(path.parent)
    except OSError:
        raise
    except Exception as e:  # noqa: BLE001 - polars has errors of its own for a disk's
        raise OSError(5, f"{type(e).__name__}: {e}", str(path)) from None
    return RecordFile(path, size, written)


def list_files(state: Path) -> list[RecordFile]:
    """Return all files of the record, sorted by the time of their first row."""
    files = []
    for path in sorted((state / FOLDER).glob(FILES)):
        with suppress(FileNotFoundError):  # pruned meanwhile
            status = path.stat()
            files.append(RecordFile(path, status.st_size, status.st_mtime))
    return files


def prune(state: Path, *, keep_s: float, max_bytes: int, now: float) -> int:
    """Delete old files, and the oldest rows of a record that is too large; return the remaining bytes.

    While one peer has more than half of all rows, its oldest rows are deleted, so a peer that floods the record
    displaces only its own rows. The newest file always stays. If it alone exceeds `max_bytes`, the others are limited
    to `max_bytes`.

    Raises:
        OSError: if a file cannot be deleted.
    """
    files = list_files(state)
    for file in [file for file in files if now - file.written > keep_s]:
        file.path.unlink(missing_ok=True)
        files.remove(file)
    newest = files[-1].bytes if files else 0
    counted = newest if newest <= max_bytes else 0
    older = sum(file.bytes for file in files[:-1])
    if older + counted > max_bytes:
        older = _shrink(files[:-1], older, int(max_bytes * PRUNED_SHARE) - counted)
    for day in (state / FOLDER).glob("*/"):
        with suppress(OSError):  # not empty
            day.rmdir()
    return older + newest


def _shrink(files: Sequence[RecordFile], total: int, bytes_max: int) -> int:
    """Delete rows and files of the record until at most `bytes_max` bytes remain; return the remaining bytes.

    `total` is the number of bytes before. A peer that sent more than half of the rows loses its rows first. Then files
    that are larger than `bytes_max` are deleted, then the oldest files.
    """
    rows = {file: _rows_of_peers(file.path) for file in files}
    counts = sum(rows.values(), Counter[str]())
    sizes = {file.path: file.bytes for file in files}
    for file, peers in rows.items():
        loud, count = max(counts.items(), key=itemgetter(1), default=("", 0))
        if total > bytes_max and count * 2 > counts.total() and loud in peers:
            counts[loud] -= peers.pop(loud)
            sizes[file.path] = _bytes_without(file, loud, has_others=bool(peers))
            total -= file.bytes - sizes[file.path]
    for path, size in sorted(sizes.items(), key=lambda each: each[1] <= bytes_max):
        if total <= bytes_max:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total


def _rows_of_peers(path: Path) -> Counter[str]:
    """Read from the metadata of a record file how many rows each peer has; return an empty Counter if the metadata cannot be read."""
    from eir.frames import pl  # noqa: PLC0415 - the process that writes has imported it already

    with suppress(OSError, ValueError, pl.exceptions.PolarsError):
        return Counter(json.loads(pl.read_parquet_metadata(path).get(PEERS, "{}")))
    return Counter()


def _bytes_without(file: RecordFile, peer: str, *, has_others: bool) -> int:
    """Rewrite a file of the record without the rows of one peer, and return the file's new size in bytes.

    If the file has no other rows, or if the rewrite fails, the file is deleted.
    """
    from eir.frames import pl  # noqa: PLC0415 - as above

    with suppress(OSError, pl.exceptions.PolarsError):  # a full disk
        if has_others:
            rows = pl.read_parquet(file.path, glob=False)
            return _write(file.path, rows.filter(pl.col("peer").fill_null("") != peer), file.written).bytes
    file.path.unlink(missing_ok=True)
    return 0


def clean(state: Path) -> None:
    """Create the folder of the record of checks, and remove unfinished files that ended processes have left there.

    Raises:
        OSError: if that fails.
    """
    for path in folder_of(state).glob(f"**/.*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def folder_of(state: Path) -> Path:
    """Return the folder of the record's files; create it if it does not exist.

    Raises:
        OSError: if that fails.
    """
    folder = state / FOLDER
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return folder


def forget(state: Path, subscribers: Sequence[str], damaged: Callable[[Path], object] = lambda _: None) -> int:
    """Delete all rows of these subscribers from the record, and their entries in `watched.json`. Return the number of deleted rows.

    `subscribers`: all names of their IMSIs and numbers in the record. `damaged` receives each unreadable file.

    Raises:
        OSError: if a file cannot be written.
    """
    from eir.frames import pl  # noqa: PLC0415 - only needed here

    gone = 0
    for file in list_files(state):
        try:
            rows = pl.read_parquet(file.path, glob=False)
        except pl.exceptions.PolarsError:
            damaged(file.path)
            continue
        columns = [name for name in ("subscriber", "msisdn") if name in rows.columns]  # older files have no number
        remaining = rows.filter(~pl.any_horizontal(pl.col(columns).is_in(list(subscribers)).fill_null(value=False)))
        gone += len(rows) - len(remaining)
        if remaining.is_empty():
            file.path.unlink(missing_ok=True)
        elif len(remaining) < len(rows):
            _write(file.path, remaining, file.written)
    seen = read_watched(state)
    if len(remaining_watched := without_subscribers(seen, subscribers)) < len(seen):
        write_watched(state, remaining_watched)
    return gone


def read_watched(state: Path) -> dict[str, str]:
    """Read from `watched.json` the last SIM of each watched device and the last device of each watched SIM.

    Empty if the file is missing or damaged.
    """
    try:
        document = json.loads((state / FOLDER / WATCHED).read_text())
    except (OSError, ValueError):
        return {}
    return {str(who): str(partner) for who, partner in document.items()} if isinstance(document, dict) else {}


def write_watched(state: Path, seen: Mapping[str, str]) -> None:
    """Write to `watched.json` the last SIM of each watched device and the last device of each watched SIM.

    Raises:
        OSError: if the file cannot be written.
    """
    write_file(state / FOLDER / WATCHED, json.dumps(seen).encode(), mode=FILE_MODE)
