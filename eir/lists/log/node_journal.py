"""Events of a node's journal from the changes of its lists.

A row of a change has the columns of the layout `eir` (`imei`, `tac`, `imsi`, `identifier`, `device_type`, `reason`, `begin`, `until`, `date`),
and `effect`: ADDED or REMOVED. Columns without a value are left out.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import attrgetter

from eir.device import ODD_BASE, SNR_KEYS, TAC_DIGITS, imsi_text, key_text
from eir.errors import EirError
from eir.lists.log.change import Head, utc_text
from eir.lists.log.journal import (
    ABOUT_FILES,
    ACCEPTED,
    DAMAGED,
    FORCED,
    ROWS_MAX,
    SERIES,
    Journal,
    JournalEnd,
    JournalEvent,
    list_of,
    paths_of,
    read_events,
    series_of,
)
from eir.lists.log.reader import ChangeRows
from eir.lists.log.store import RECORDS_KEPT
from eir.lists.table.columns import BEGINS, DAYS, ENDS, REASONS, SECONDS, WHOLE, TableRows

ADDED, REMOVED = "added", "removed"
OTHER_REASON = "other"
RESET_SERIAL = "reset-serial"
"""Kind of the change by which an operator sets the highest serial back."""
SUBJECTS = ("imei", "identifier", "tac", "imsi")
"""Columns that identify a row."""
SECONDS_PER_DAY = 86_400
RECENT_MAX = 200
"""Maximum number of events per series for the web page."""
DIFFERS_TIME = timedelta(days=1)
"""Time for which a fork or a damaged file is reported."""
DIFFERENCES = frozenset({"fork", DAMAGED})
TRIM_S = 3_600.0
"""Seconds between two deletions of old events."""
PENDING_MAX = 1_000
"""Maximum number of events that wait until the journal can be written; the oldest are left out."""
PAIRS, SUBSCRIBERS, TYPES = "pairs", "subscribers", "device_types"
"""Kinds of list (eir.lists.record.settings) whose rows have another form than those of devices."""
LEARNED = frozenset({"first_seen", "last_device"})
"""Kinds of lists that checks write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatus:
    """Status of a node's journal."""

    fault: str = ""
    """Reason why it cannot be written; empty for none."""
    ends: Mapping[str, JournalEnd] = field(default_factory=dict)
    """Newest line of each series."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of each series."""
    unrecorded: Sequence[str] = ()
    """Lists in force whose newest change the journal lacks."""
    outcomes: Mapping[tuple[str | None, str], int] = field(default_factory=dict)
    """Number of releases by list and outcome (None: an unknown list); of a local list only forced changes and rejections count."""
    last: Mapping[tuple[str | None, str], str] = field(default_factory=dict)
    """Time of the newest of them."""
    differs: bool = False
    """True if the store went on with another chain than this node held, or the journal was damaged, in the last DIFFERS_TIME."""


class NodeJournal:
    """Journal of a node, as its follower writes it. Implements ChangeJournal (eir.lists.follow.log_follower).

    Methods that write are blocking: call them from a thread. If the journal is not open, they open it.

    Args:
        journal: journal, which this object opens when it is first written; it may be open already.
        who: name of this node in events of its own.
    """

    def __init__(self, journal: Journal, who: str = "eir") -> None:
        self.journal = journal
        self._who = who
        self._lock = threading.RLock()
        """Lock of the methods that write, which several threads call."""
        self._recorded: dict[str, dict[str, None]] | None = None
        """Digests of the newest recorded changes of each list; None before the journal was read."""
        self._pending: deque[JournalEvent] = deque(maxlen=PENDING_MAX)
        """Gaps and forks that could not be written."""
        self._outcomes: Counter[tuple[str | None, str]] = Counter()
        self._last: dict[tuple[str | None, str], str] = {}
        self._recent: dict[str, deque[JournalEvent]] = {series: deque(maxlen=RECENT_MAX) for series in SERIES}
        self._differed_at = ""
        self._bytes: Mapping[str, int] = {}
        self._trimmed_at = -TRIM_S

    def has(self, name: str, digest: str) -> bool:
        """Return True if the journal has the change of a list with this digest. It does not read the disk."""
        return self._recorded is not None and digest in self._recorded.get(name, ())

    def status(self, in_force: Mapping[str, Head], fault: str = "") -> JournalStatus:
        """Return the status. `in_force`: head in force of each list; `fault`: reason why the last write failed."""
        ends = {} if self._recorded is None else dict(self.journal.ends)
        unrecorded = [name for name, head in in_force.items() if not self.has(name, head.digest)]
        return JournalStatus(
            fault=fault, ends=ends, bytes=self._bytes, unrecorded=unrecorded, outcomes=dict(self._outcomes), last=dict(self._last),
            differs=self._differed_at > utc_text(datetime.now(UTC) - DIFFERS_TIME),
        )  # fmt: skip

    def record(self, name: str, changes: Sequence[ChangeRows], reasons: Sequence[str]) -> None:
        """Record changes of a list, oldest first, with their rows; a change that is recorded already is skipped.

        Args:
            name: list.
            changes: changes with their rows.
            reasons: texts by their index in the rows; those that a change names itself have priority.

        Raises:
            JournalError: if the journal cannot be written.
        """
        with self._lock:
            self.open()
            for each in changes:
                reasons = each.change.reasons or reasons
                if not self.has(name, each.change.digest):
                    self._append(event_of(name, each, reasons))

    def record_gap(self, name: str, what: str, before: Head, after: Head) -> None:
        """Record that a list continues after a gap (`gap`), or on another chain (`fork`). If this fails, a later call tries again.

        Raises:
            JournalError: if the journal cannot be written.
        """
        states = [f"generation {head.generation} ({head.digest[:16]})" for head in (before, after)]
        detail = f"from {states[0]} to {states[1]}"
        event = JournalEvent(
            time=utc_text(datetime.now(UTC)), who=self._who, what=what, list=name, serial=after.serial, detail=detail
        )
        with self._lock:
            self._pending.append(event)
            self.flush()

    def record_event(self, event: JournalEvent) -> None:
        """Record an event of the node.

        Raises:
            JournalError: if the journal cannot be written; then the event is not recorded.
        """
        with self._lock:
            self.flush()
            self._append(event)

    def flush(self) -> None:
        """Write the gaps and forks that could not be written before.

        Raises:
            JournalError: if the journal cannot be written.
        """
        with self._lock:
            self.open()
            while self._pending:
                self._append(self._pending[0])
                self._pending.popleft()

    def maintain(self) -> None:
        """Write events that could not be written before; each TRIM_S also delete events that are older than `history.keep`.

        Raises:
            JournalError: if the journal cannot be written.
        """
        self.flush()
        self._bytes = {
            series: sum(path.stat().st_size for path in paths_of(self.journal.folder, series)) for series in SERIES
        }
        if time.monotonic() - self._trimmed_at > TRIM_S:
            self._trimmed_at = time.monotonic()
            self.journal.write_repeated()
            self.journal.trim(datetime.now(UTC))

    def open(self) -> None:
        """Open the journal if it is not open, and read which changes it has.

        Raises:
            JournalBusy: if another process writes it.
            JournalError: if it cannot be written.
        """
        with self._lock:
            self._open()

    def _open(self) -> None:
        if not self.journal.is_open:
            try:
                self.journal.open()
            except (EirError, OSError):
                self.journal.close()
                raise
        if self._recorded is None:
            self._recorded = {}
            for series in SERIES:
                for event in read_events(
                    self.journal.folder, series=(series,), limit=RECORDS_KEPT, about_files=True, witnesses=False
                ):
                    self._note(event)

    def recent(self) -> Sequence[JournalEvent]:
        """Return the newest events without their rows, at most RECENT_MAX of each series, in the order of their times."""
        return sorted((event for events in self._recent.values() for event in list(events)), key=attrgetter("time"))

    def _append(self, event: JournalEvent) -> None:
        self.journal.append_event(event)
        self._note(event)

    def _note(self, event: JournalEvent) -> None:
        """Note the effects of a recorded event on the status."""
        if event.what in DIFFERENCES:
            self._differed_at = max(self._differed_at, event.time)
        if event.what in ABOUT_FILES:
            return
        self._recent[series_of(event)].append(replace(event, rows=()))
        name = list_of(event)
        if event.list is not None and event.change is not None and self._recorded is not None:
            digests = self._recorded.setdefault(event.list, {})
            digests[event.change] = None
            if len(digests) > RECORDS_KEPT:
                del digests[next(iter(digests))]
        if event.outcome != ACCEPTED or event.what == "load":
            key = name, event.outcome
            self._outcomes[key] += event.count
            self._last[key] = max(self._last.get(key, ""), event.time)


def event_of(name: str, each: ChangeRows, reasons: Sequence[str]) -> JournalEvent:
    """Return the event of one change of a list.

    The event has the rows of the change, if these are at most ROWS_MAX; that of a learned list has none.

    Args:
        name: list.
        each: the change with its rows.
        reasons: texts by their index in the rows.
    """
    change = each.change
    has_rows = each.parts is not None and change.added + change.removed <= ROWS_MAX and change.kind not in LEARNED
    rows = tuple(row_texts(each, change.kind, name, reasons)) if has_rows else ()
    return JournalEvent(
        time=change.time, who=change.who, what=change.what, list=name, serial=change.serial, digest=change.release or None,
        generation=change.generation, change=change.digest, content=change.content, rows=rows, detail=change.detail,
        outcome=FORCED if change.lifted or change.what == RESET_SERIAL else ACCEPTED,
    )  # fmt: skip


def row_texts(each: ChangeRows, kind: str, name: str, reasons: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Yield the rows of a change as texts, first the removed ones."""
    added, removed = each.decoded(name)
    return chain(_texts(REMOVED, removed, kind, reasons), _texts(ADDED, added, kind, reasons))


def _texts(effect: str, rows: TableRows, kind: str, reasons: Sequence[str]) -> Iterator[Mapping[str, str]]:
    columns = [rows.column(index).tolist() for index in (SECONDS, REASONS, BEGINS, ENDS, DAYS)]
    for key, second, reason, begin, end, day in zip(rows.keys.tolist(), *columns, strict=True):
        text = "" if not reason else reasons[reason] if reason < len(reasons) else OTHER_REASON
        row = {
            "effect": effect, **row_subject(kind, key, second), "device_type" if kind == TYPES else "reason": text,
            "begin": _time(begin), "until": _time(end), "date": _time(day * SECONDS_PER_DAY)[:10],
        }  # fmt: skip
        yield {column: value for column, value in row.items() if value}


def row_subject(kind: str, key: int, second: int) -> Mapping[str, str]:
    """Return the columns that identify a row (SUBJECTS)."""
    if kind == SUBSCRIBERS:
        return {"imsi": imsi_text(key)}
    if key >= WHOLE or kind == TYPES:
        return {"tac": f"{key - WHOLE if key >= WHOLE else key // SNR_KEYS:0{TAC_DIGITS}d}"}
    subject = {"identifier" if key >= ODD_BASE else "imei": key_text(key)}
    return subject | {"imsi": imsi_text(second)} if kind == PAIRS else subject


def _time(seconds: int) -> str:
    return utc_text(datetime.fromtimestamp(seconds, UTC)) if seconds else ""
