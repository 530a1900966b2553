"""Journal of a node: what happened to its lists, as hash chains of JSON lines in the state folder.

There are three series, each a chain of its own in files of its own, so that no flood can displace loads or rollbacks: MAIN, rows of a
register's feed, and rejections. A line has its number, `before` (SHA-256 of the line before) and an event. A file is named after its first
line. If a file of the feed or of the rejections is full, an event of MAIN records its last line, and the oldest files above the size limit
are deleted. MAIN is deleted by age alone. So MAIN proves each closed file of the other series, and says where the files begin.

Equal rejections of one day are written when the first one happens, and then at most once
per REPEAT_S, with their number.

The folder may also have witness files: exports of other journals (eir.lists.log.journal_export), each named by its SHA-256, which an event of
MAIN records. Readers add the changes of witness files that the journal lacks.
"""

import fcntl
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from hashlib import file_digest, sha256
from heapq import merge
from itertools import takewhile
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from eir.disk import sync_folder
from eir.errors import EirError, Report
from eir.lists.log.change import TIME_FORMAT

MAIN, FEED, REJECTED = "main", "feed", "rejected"
SERIES = (MAIN, FEED, REJECTED)
CLOSED, TRIMMED, DAMAGED = "close", "trim", "damage"
"""Kinds of events about the journal's files: a full file, files deleted by age, and a damaged file that a new one follows."""
IMPORT = "import"
"""Kind of the event that records a witness file; `digest` is the SHA-256 of the file."""
ABOUT_FILES = frozenset({CLOSED, TRIMMED, DAMAGED})
FEED_KINDS = frozenset({FEED, "learn"})
"""Kinds of events that the series FEED has: rows of a register, and batches of a learned list, which is one change per batch."""
ACCEPTED, FORCED, REFUSED = "accepted", "forced", "refused"
CLAIMS = " (claims {} {}, unverified)"
"""End of the detail of a rejection whose manifest is not verified: list and serial that it claims."""
_CLAIMED = re.compile(r" \(claims (\S+) [0-9]+, unverified\)\Z")
MAIN_FILE_BYTES = 4 << 20
"""Size in bytes from which a file of MAIN is full."""
FILES_OF_A_LIMIT = 8
"""A file is closed at this part of `history.keep`, and one of another series than MAIN at this part of its size limit."""
REJECTED_BYTES_MAX = 16 << 20
"""Size limit of the rejections in bytes."""
REPEAT_S = 3600.0
"""Minimum time in seconds between two lines of equal rejections of one day."""
KINDS_MAX = 1_000
"""Maximum number of different rejections whose repetitions are counted in memory."""
LINE_BYTES_MAX = 1 << 20
NEARLY_FULL = 0.8
"""Share of `history.max_bytes` above which MAIN raises an alert."""
BEGIN = "0" * 64
"""Field `before` of the first line of a series."""
_NAME = re.compile(r"(main|feed|rejected)-([0-9]{12})\.jsonl")
_WITNESS, WITNESS_DIGITS = "witness-", 32
"""Begin of the name of a witness file, and number of digits of its SHA-256 in the name."""
MODE = 0o640
"""Mode of the files."""


class JournalError(EirError):
    """Error for a journal that cannot be written, or has a damaged line; the message names the file."""


class JournalBusy(JournalError):
    """Error for a journal that another process writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEvent:
    """Event of a node's journal."""

    time: str
    """Time in UTC, as `2026-12-02T08:00:00Z`."""
    who: str
    """User and host."""
    what: str
    """Kind: that of a change (eir.lists.log.change), or refuse, reload, trace, fork, gap, import, close, trim, damage."""
    outcome: str = ACCEPTED
    list: str | None = None
    serial: int | None = None
    digest: str | None = None
    """SHA-256 of the manifest; for a reload, of the configuration; for a closed file, of its last line."""
    generation: int | None = None
    change: str | None = None
    """Digest of the change."""
    content: str | None = None
    """Content digest of the list after the change."""
    rows: tuple[Mapping[str, str], ...] = ()
    """Added and removed rows of a change of at most ROWS_MAX rows, each with its columns as texts."""
    detail: str = ""
    count: int = 1
    """Number of equal rejections since the line before of their kind."""
    first: str | None = None
    """Time of the first of them, if they are several."""
    series: str | None = None
    """Series of a closed or deleted file."""
    number: int | None = None
    """Number of the last line of a closed or deleted file."""
    oldest: int | None = None
    """Number of the first line that the series still has."""


ROWS_MAX = 1_000
"""Maximum number of rows of a change that its event contains."""


class JournalEnd(NamedTuple):
    """Newest line of a series."""

    number: int = 0
    digest: str = BEGIN
    """SHA-256 of the line."""


class JournalLine(NamedTuple):
    """Line of a series, as read from its file."""

    number: int
    after: int
    """Number of the newest line of MAIN when this one was written; in MAIN that of the line before."""
    event: JournalEvent


def list_of(event: JournalEvent) -> str | None:
    """Return the list of an event; for a rejection of an unverified manifest, the list that the manifest claims."""
    if event.list is not None:
        return event.list
    claim = _CLAIMED.search(event.detail)
    return claim[1] if claim else None


def series_of(event: JournalEvent) -> str:
    """Return the series of an event."""
    return REJECTED if event.outcome == REFUSED else FEED if event.what in FEED_KINDS else MAIN


def key_of(event: JournalEvent) -> tuple[str, ...]:
    """Return the day, list, sender and reason of a rejection: equal ones are counted together."""
    return event.time[:10], event.list or "", event.who, event.detail.partition(":")[0]


class Journal:
    """Journal in a folder. Only one process writes it; others read its files.

    Methods are blocking: call them from a thread.

    Args:
        folder: folder of the journal.
        keep: age at which events are deleted.
        max_bytes: size of MAIN above which `is_nearly_full` raises an alert; no event is deleted.
        feed_max_bytes: size limit of the rows of a feed.
        report: logs events.
    """

    def __init__(self, folder: Path, *, keep: timedelta, max_bytes: int, feed_max_bytes: int, report: Report) -> None:
        self.folder = folder
        self.keep, self.max_bytes, self.feed_max_bytes = keep, max_bytes, feed_max_bytes
        self.ends = dict.fromkeys(SERIES, JournalEnd())
        """Newest line of each series."""
        self._report = report
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        """Descriptor of the open file of each series."""
        self._folder_lock: int | None = None
        self._repeated: dict[tuple[str, ...], JournalEvent] = {}
        """Repetitions since the last line of each kind of rejection; `count` 0 for none."""
        self._written_at = 0.0
        """Time (time.monotonic) at which repetitions were written last."""

    def open(self) -> None:
        """Open the journal for writing; repair a line that a crash has cut short.

        Raises:
            JournalBusy: if another process writes the journal.
            JournalError: if the folder cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o750, exist_ok=True)
            self._folder_lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
            fcntl.flock(self._folder_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalBusy(f"{self.folder}: another process writes the journal; run the command again") from error
        except OSError as error:
            raise JournalError(f"{self.folder}: the journal cannot be opened: {error}") from error
        for series in SERIES:
            self._open_series(series)

    def close(self) -> None:
        """Write pending repetitions of rejections, and close the files."""
        with self._lock:
            if self._files:
                self._write_repeated()
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()
            if self._folder_lock is not None:
                os.close(self._folder_lock)
                self._folder_lock = None

    @property
    def is_open(self) -> bool:
        """True if the journal is open for writing."""
        return self._folder_lock is not None

    @property
    def is_nearly_full(self) -> bool:
        """True if MAIN has more than NEARLY_FULL of its expected size."""
        return sum(path.stat().st_size for path in self._paths(MAIN)) > NEARLY_FULL * self.max_bytes

    def append(self, series: str, *events: JournalEvent) -> JournalEnd:
        """Append events to a series, and flush them to the disk; return the newest line.

        Raises:
            JournalError: if the disk is full or fails; then no line was written, or a part that the next open removes.
        """
        with self._lock:
            self._write(series, events)
            return self.ends[series]

    def append_event(self, event: JournalEvent) -> None:
        """Append an event to its series. Equal rejections are counted, as `reject` does it.

        Raises:
            JournalError: as `append`.
        """
        series = series_of(event)
        if series == REJECTED:
            self.reject(event)
        else:
            self.append(series, event)

    def reject(self, event: JournalEvent) -> None:
        """Append a rejection; if an equal one of this day was written before, only count it. `write_repeated` writes the counts.

        Raises:
            JournalError: as `append`.
        """
        with self._lock:
            key = key_of(event)
            before = self._repeated.get(key)
            if before is not None:
                first = before.first or event.time
                self._repeated[key] = replace(event, count=before.count + 1, first=first)
                return
            if len(self._repeated) >= KINDS_MAX:
                self._write_repeated()
            self._write(REJECTED, [event])
            self._repeated[key] = replace(event, count=0)

    def write_repeated(self) -> None:
        """Append the counts of repeated rejections, if this was not done for REPEAT_S.

        Raises:
            JournalError: as `append`.
        """
        with self._lock:
            if time.monotonic() - self._written_at >= REPEAT_S:
                self._write_repeated()

    def trim(self, now: datetime) -> None:
        """Delete the files of each series whose newest event is older than `history.keep`; an event of MAIN records the deletion.

        A file that is open for an eighth of this time is closed, also if it is not full.

        Raises:
            JournalError: if the disk fails.
        """
        with self._lock:
            for series in SERIES:
                first = next(readable_lines(self._paths(series)[-1]), None)
                if first is not None and first.event.time < (now - self.keep / FILES_OF_A_LIMIT).strftime(TIME_FORMAT):
                    self._close_file(series)
                closed = self._paths(series)[:-1]
                is_old = [_newest_time(path) < (now - self.keep).strftime(TIME_FORMAT) for path in closed]
                if old := [path for path, _ in takewhile(itemgetter(1), zip(closed, is_old, strict=True))]:
                    self._delete(series, old, now)
            for path in witness_paths(self.folder):
                if path.stat().st_mtime < (now - self.keep).timestamp():
                    self._delete_witness(path, now)

    # Files

    def _paths(self, series: str) -> list[Path]:
        return paths_of(self.folder, series)

    def _open_series(self, series: str) -> None:
        paths = self._paths(series)
        if not paths:
            self._open_file(series, JournalEnd())
            return
        path = paths[-1]
        _repair(path, self._report)
        try:
            self.ends[series] = _end_of(path)
        except JournalError as error:
            # The damaged lines stay for the verification, which names them. A new file continues the chain from the file's bytes.
            self._report("journal_damaged", level="error", file=path.name, detail=str(error))
            content = path.read_bytes()
            end = JournalEnd(first_number(path) + max(content.count(b"\n") - 1, 0), sha256(content).hexdigest())
            self._open_file(series, end)
            event = JournalEvent(
                time=datetime.now(UTC).strftime(TIME_FORMAT), who="eir", what=DAMAGED, detail=str(error), series=series, number=end.number
            )  # fmt: skip
            self._write(series, [event])
            return
        self._files[series] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _open_file(self, series: str, end: JournalEnd) -> None:
        """Begin a new file after the line `end`."""
        path = self.folder / f"{series}-{end.number + 1:012d}.jsonl"
        before = self._files.get(series)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._files[series] = os.open(path, flags, MODE)
            sync_folder(self.folder)
        except OSError as error:
            raise JournalError(f"{path}: the journal cannot be written: {error}") from error
        self.ends[series] = end
        if before is not None:
            os.close(before)

    def _write(self, series: str, events: Iterable[JournalEvent]) -> None:
        number, digest = self.ends[series]
        lines = []
        for event in events:
            number += 1
            line = encode_line(number, digest, self.ends[MAIN].number, event)
            digest = sha256(line).hexdigest()
            lines.append(line + b"\n")
        if not lines:
            return
        descriptor = self._files.get(series)
        if descriptor is None:
            raise JournalError(f"{self.folder}: the journal is closed")
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, b"".join(lines))
            os.fdatasync(descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise JournalError(f"{self.folder}: the journal cannot be written: {error}") from error
        self.ends[series] = JournalEnd(number, digest)
        if size + sum(map(len, lines)) >= self._file_bytes(series):
            self._close_file(series)

    def _file_bytes(self, series: str) -> int:
        limit = self._limit(series)
        return MAIN_FILE_BYTES if limit is None else limit // FILES_OF_A_LIMIT

    def _limit(self, series: str) -> int | None:
        return {MAIN: None, FEED: self.feed_max_bytes, REJECTED: REJECTED_BYTES_MAX}[series]

    def _close_file(self, series: str) -> None:
        """Begin a new file. Of another series than MAIN, record the full file, and delete the oldest files above the limit."""
        end, limit = self.ends[series], self._limit(series)
        self._open_file(series, end)
        if limit is None:
            return
        paths = self._paths(series)[:-1]
        sizes = [path.stat().st_size for path in paths]
        surplus = [path for at, path in enumerate(paths) if sum(sizes[at:]) > limit - self._file_bytes(series)]
        oldest = first_number(paths[len(surplus)]) if len(surplus) < len(paths) else end.number + 1
        event = JournalEvent(
            time=datetime.now(UTC).strftime(TIME_FORMAT), who="eir", what=CLOSED, digest=end.digest, series=series, number=end.number, oldest=oldest
        )  # fmt: skip
        self._write(MAIN, [event])  # before the deletion: a file that a crash keeps is deleted with the next ones
        for path in surplus:
            path.unlink()

    def _delete(self, series: str, paths: Sequence[Path], now: datetime) -> None:
        """Delete old files, and record this in MAIN."""
        last = _end_of(paths[-1])
        numbers = f"lines {first_number(paths[0])} to {last.number} of {series}"
        event = JournalEvent(
            time=now.strftime(TIME_FORMAT), who="eir", what=TRIMMED, digest=last.digest, series=series, number=last.number, oldest=last.number + 1,
            detail=f"history.keep: {numbers} are deleted",
        )  # fmt: skip
        self._write(MAIN, [event])
        for path in paths:
            path.unlink()

    def _delete_witness(self, path: Path, now: datetime) -> None:
        """Delete an old witness file, and record this in MAIN."""
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        detail = f"history.keep: {path.name} is deleted"
        self._write(MAIN, [JournalEvent(time=now.strftime(TIME_FORMAT), who="eir", what=TRIMMED, digest=digest, detail=detail)])  # fmt: skip
        path.unlink()

    def _write_repeated(self) -> None:
        self._write(REJECTED, [event for event in self._repeated.values() if event.count])
        self._repeated.clear()
        self._written_at = time.monotonic()


# Lines


def encode_line(number: int, before: str, after: int, event: JournalEvent) -> bytes:
    """Encode a line without its end. Line separators in texts are escaped."""
    given = {
        name: value
        for name, value in asdict(event).items()
        if value not in (None, (), "") and (name, value) != ("count", 1)
    }
    line = json.dumps({"line": number, "before": before, "after": after, **given}, separators=(",", ":")).encode()
    if len(line) > LINE_BYTES_MAX:
        return encode_line(number, before, after, replace(event, rows=(), detail=event.detail[: LINE_BYTES_MAX // 8]))
    return line


_FORMS = {field.name: str(field.type) for field in fields(JournalEvent)}


def decode_line(octets: bytes) -> tuple[JournalLine, str]:
    """Decode a line; return it, and its field `before`.

    Raises:
        ValueError: if it is not a line of a journal.
    """
    loaded: Any = json.loads(octets)
    document = loaded if isinstance(loaded, dict) else {}
    number, before, after = document.pop("line", None), document.pop("before", None), document.pop("after", None)
    if type(number) is not int or not isinstance(before, str) or type(after) is not int:
        raise ValueError("`line`, `before` and `after` must be a number, a digest and a number")
    return JournalLine(number, after, parse_event(document)), before


def parse_event(document: Mapping[str, Any]) -> JournalEvent:
    """Create an event from the JSON object of its fields; a field without a value may be missing or None.

    Raises:
        ValueError: if it is not an event.
    """
    fields_given = {name: value for name, value in document.items() if value is not None}
    for name, value in fields_given.items():
        form = _FORMS.get(name)
        if form is None:
            raise ValueError(f"unknown field {name}")
        is_valid = (
            all(isinstance(row, dict) for row in value) if name == "rows" and isinstance(value, list)
            else type(value) is (int if "int" in form else str) and name != "rows"
        )  # fmt: skip
        if not is_valid:
            raise ValueError(f"field {name} must have the type {form}")
    if not {"time", "who", "what"} <= fields_given.keys():
        raise ValueError("an event must have `time`, `who` and `what`")
    return JournalEvent(**fields_given | {"rows": tuple(fields_given.get("rows", ()))})


def paths_of(folder: Path, series: str) -> list[Path]:
    """Return the files of a series, oldest first."""
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)) and found[1] == series)
    return []


def witness_paths(folder: Path) -> list[Path]:
    """Return the witness files of a journal."""
    return sorted(folder.glob(f"{_WITNESS}*.jsonl"))


def witness_path(folder: Path, digest: str) -> Path:
    """Return the path of the witness file with this SHA-256."""
    return folder / f"{_WITNESS}{digest[:WITNESS_DIGITS]}.jsonl"


def is_journal_file(name: str) -> bool:
    """Return True for the name of a file of a series."""
    return _NAME.fullmatch(name) is not None


def first_line(folder: Path, series: str) -> int:
    """Return the number of the oldest line of a series; 1 for a new series."""
    return first_number(paths[0]) if (paths := paths_of(folder, series)) else 1


def first_number(path: Path) -> int:
    """Return the number of the first line of a file."""
    found = _NAME.fullmatch(path.name)
    return int(found[2]) if found else 0


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file, without their ends; a last line that is being written is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def _tail(path: Path) -> tuple[int, bytes]:
    """Return the number of lines of a file, and the last one."""
    count, last = 0, b""
    for octets in lines_of(path):
        count, last = count + 1, octets
    return count, last


def _end_of(path: Path) -> JournalEnd:
    """Return the newest line of a file; of an empty one, the line before it, which the file before has.

    Raises:
        JournalError: if the line is damaged.
    """
    count, last = _tail(path)
    if not count:
        paths = paths_of(path.parent, path.name.partition("-")[0])
        at = paths.index(path)
        return _end_of(paths[at - 1]) if at else JournalEnd()
    try:
        line, _ = decode_line(last)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"{path.name}:{count}: the line was changed: {error}") from error
    if line.number != (number := first_number(path) + count - 1):
        raise JournalError(f"{path.name}:{count}: line {line.number} is where line {number} was")
    return JournalEnd(line.number, sha256(last).hexdigest())


def _newest_time(path: Path) -> str:
    """Return the time of the newest readable line of a file; an empty text for a file without one."""
    return "".join(line.event.time for line in deque(readable_lines(path), maxlen=1))


def _repair(path: Path, report: Report) -> None:
    """Remove a last line that a crash has cut short."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            report(
                "journal_repaired",
                level="warning",
                file=path.name,
                detail=f"{len(content) - whole} bytes of an incomplete line were removed",
            )
            file.truncate(whole)
            os.fsync(file.fileno())


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


# Reading


def read_events(
    folder: Path,
    *,
    name: str | None = None,
    since: str = "",
    series: Sequence[str] = SERIES,
    limit: int | None = None,
    witnesses: bool = True,
    about_files: bool = False,
) -> Sequence[JournalEvent]:
    """Return the newest events in the order in which they happened.

    Equal rejections of one day are one event. Events about the journal's own files are left out. Between two lines of MAIN the lines of the
    feed come before rejections. Changes that only a witness file has are placed by their time; with `limit`, if the journal has fewer events.

    Args:
        folder: folder of the journal.
        name: only events of this list.
        since: only events from this time on.
        series: series to read.
        limit: maximum number of events; None for all.
        witnesses: also read witness files.
        about_files: True to return also events about the journal's own files.
    """
    found = [_newest_lines(folder, each, name, since, limit, about_files=about_files) for each in series]
    rejected = [_combined(lines) if each == REJECTED else lines for each, lines in zip(series, found, strict=True)]
    keyed = (
        [((line.number, 0) if each == MAIN else (line.after, 1), line.event) for line in lines]
        for each, lines in zip(series, rejected, strict=True)
    )
    events = [event for _, event in merge(*keyed, key=itemgetter(0))]
    if witnesses and (limit is None or len(events) < limit):
        known = {(event.list, event.change) for event in events}
        witnessed = _witnessed(folder, known, name, since, series)
        events = [*merge(witnessed, events, key=attrgetter("time"))]
    return events if limit is None else events[-limit:]


def _witnessed(
    folder: Path, known: set[tuple[str | None, str | None]], name: str | None, since: str, series: Sequence[str]
) -> Iterator[JournalEvent]:
    """Yield the matching changes of the witness files that are not in `known`, each as its list and digest."""
    for path in witness_paths(folder):
        for line in readable_lines(path):
            event = line.event
            is_wanted = name in {None, event.list} and event.time >= since and series_of(event) in series
            if event.change is not None and is_wanted and (event.list, event.change) not in known:
                known.add((event.list, event.change))
                yield event


def _newest_lines(
    folder: Path, series: str, name: str | None, since: str, limit: int | None, *, about_files: bool
) -> Sequence[JournalLine]:
    """Return the newest lines of a series that match, oldest first: at least `limit` if there are so many, from whole files."""
    newest: list[Sequence[JournalLine]] = []
    count = 0
    for path in reversed(paths_of(folder, series)):
        lines = [
            line
            for line in readable_lines(path)
            if (about_files or line.event.what not in ABOUT_FILES)
            and name in {None, list_of(line.event)}
            and line.event.time >= since
        ]
        newest.append(lines)
        count += len(lines)
        if limit is not None and count >= limit:
            break
    return [line for lines in reversed(newest) for line in lines]


def readable_lines(path: Path) -> Iterator[JournalLine]:
    """Yield the lines of a file; a damaged line is left out."""
    for octets in lines_of(path):
        with suppress(ValueError, RecursionError):
            yield decode_line(octets)[0]


def _combined(lines: Sequence[JournalLine]) -> Sequence[JournalLine]:
    """Combine the lines of equal rejections of one day; the place and text of the newest one count."""
    combined: dict[tuple[str, ...], JournalLine] = {}
    for line in lines:
        key, event = key_of(line.event), line.event
        if (before := combined.pop(key, None)) is not None:
            first = before.event.first or before.event.time
            event = replace(event, count=before.event.count + event.count, first=first)
        combined[key] = line._replace(event=event)
    return sorted(combined.values(), key=lambda line: (line.after, line.event.time))
