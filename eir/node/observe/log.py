"""Structured log: one line of `key=value` pairs for each event, limited in rate.

Parts receive `Log.report` and know nothing else of logging. A line per refused message could fill a disk as fast as a peer can
send, so lines are limited per (event, peer, reason, list, entry); the next line has the number of suppressed lines. Checks with
the status `whitelisted` are not logged; other checks are folded into one line per status, list, rule and peer. This module also
logs faults of the event loop, and notifies the service manager of the node's state.
"""

import asyncio
import os
import queue
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from eir.device import MCC_MNC_DIGITS, shorten
from eir.errors import Report, place_of
from eir.wire.peers.rate import Buckets

NOTIFY_SOCKET, JOURNAL_STREAM = "NOTIFY_SOCKET", "JOURNAL_STREAM"
READY, ENDING = "READY=1", "STOPPING=1"


def notify_service(*lines: str) -> None:
    """Send lines such as `READY=1` to the service manager, if the environment names its socket (NOTIFY_SOCKET)."""
    address = os.environ.get(NOTIFY_SOCKET)
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect(f"\0{address[1:]}" if address.startswith("@") else address)  # @: abstract namespace, unix(7)
            link.send("\n".join(lines).encode())


PRIORITIES = {"error": "<3>", "warning": "<4>", "info": "<6>", "debug": "<7>"}
"""Prefix of a journal line with its priority, by level (sd-daemon(3))."""


def is_journal() -> bool:
    """Return true if standard error is the systemd journal.

    The journal adds the time to each line (systemd.exec(5), JOURNAL_STREAM).
    """
    with suppress(OSError, ValueError):
        stderr = os.fstat(sys.stderr.fileno())
        return os.environ.get(JOURNAL_STREAM) == f"{stderr.st_dev}:{stderr.st_ino}"
    return False


def with_priority(level: str, text: str) -> str:
    """Return the text for standard error.

    If standard error is the systemd journal, each line begins with the prefix of its priority.
    """
    return "\n".join(PRIORITIES[level] + line for line in text.split("\n")) if is_journal() else text


BURST = 5
"""Maximum number of lines of one kind in a burst."""
INTERVAL_S = 10.0
"""Seconds between two lines of one kind after a burst."""
ALWAYS = frozenset(
    {
        "reloaded",
        "reload_refused",
        "override",
        "override_ended",
        "lenience_taken",
        "peer_disabled",
        "peer_enabled",
        "traced",
        "trace_ended",
    }
)
"""Events of operators' actions and their effects, which are never suppressed."""
KINDS_MAX = 4096
"""Maximum number of kinds with a limit of their own; beyond it, all limits restart, because peer names come from the wire."""
FOLDS_MAX = 1024
"""Maximum number of groups of blocked checks between two folds; further checks share the group `other`."""
VALUE_MAX = 4000
"""Maximum number of characters of one value; names from the wire may be as long as a message."""
QUEUE_LINES = 10_000
"""Maximum number of lines that wait for the reader of standard error; further lines are dropped."""
CLOSE_S = 2.0
"""Maximum seconds that the end of the process waits for the reader of standard error."""

LEVELS = {level: number for number, level in enumerate(("debug", "info", "warning", "error"))}
"""Levels of lines, the least important first."""


def logfmt(fields: dict[str, object]) -> str:
    """Encode fields as `key=value` pairs on one line. Values with blanks, quotes or control characters are quoted."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)


def _value(value: object) -> str:
    text = str(value)
    if len(text) > VALUE_MAX:
        text = f"{text[:VALUE_MAX]}\N{HORIZONTAL ELLIPSIS}"
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\x{ord(c):02x}" for c in text)
    return f'"{escaped}"'


class _Fold(NamedTuple):
    """Number of checks in one group, and host, IMEI and IMSI of the latest check in the group."""

    checks: int
    host: str = ""
    imei: str = ""
    imsi: str = ""


class Log:
    """Writer of log lines to standard error, with rate limits.

    A thread writes the lines, so that a full pipe delays no answer. `now` returns seconds of a monotonic clock.
    `full_identifiers` logs whole IMEIs and IMSIs (privacy.identifiers: full). Without `in_background` there is no thread, for a
    process that forks. `worker`: number of this worker, added to each line; None if there is only one.
    """

    def __init__(
        self, now: Callable[[], float], *, level: str = "info", full_identifiers: bool = False, in_background: bool = True,
        worker: int | None = None,
    ) -> None:  # fmt: skip
        self._now = now
        self._worker = worker
        self._in_journal = is_journal()
        self._buckets = Buckets(1 / INTERVAL_S, BURST, KINDS_MAX)
        """Buckets by the hash of a kind's fields, because fields from the wire could take megabytes."""
        self._suppressed: Counter[str] = Counter()
        """Number of lines suppressed since the last logged line, by that hash."""
        self._folds: dict[tuple[str, str, str, str], _Fold] = {}
        self._observed: Counter[tuple[int, str, str | None]] = Counter()
        self._writer = _Writer(sys.stderr.fileno()) if in_background else None
        if self._writer is not None:
            self._writer.start()
        self.configure(level=level, full_identifiers=full_identifiers)

    def configure(self, *, level: str, full_identifiers: bool) -> None:
        """Set the minimum level (a key of LEVELS).

        `full_identifiers`: True to log whole IMEIs and IMSIs.
        """
        self._level = LEVELS[level]
        self._full_identifiers = full_identifiers

    def report(
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None:
        """Log an event, unless the rate limit of its kind is reached."""
        if LEVELS[level] < self._level:
            return
        suppressed = (
            0
            if event in ALWAYS
            else self._count_suppressed(str(hash((event, peer, reason, fields.get("list"), fields.get("entry")))))
        )
        if suppressed is None:
            return
        line = {"event": event, "peer": peer, "reason": reason, **fields, "suppressed": suppressed or None}
        self._write(level, line)

    def _write(self, level: str, line: dict[str, object]) -> None:
        if LEVELS[level] < self._level:
            return
        time = None if self._in_journal else datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        worker = {} if self._worker is None else {"worker": line.get("worker", self._worker)}
        priority = PRIORITIES[level] if self._in_journal else ""
        text = f"{priority}{logfmt({'time': time, 'level': level, **line, **worker})}\n"
        if self._writer is None:
            _write(sys.stderr.fileno(), text)
        else:
            self._writer.write(text)

    def _count_suppressed(self, kind: str) -> int | None:
        """Return how many lines of this kind were suppressed since the last logged line.

        None if this line must be suppressed too; it is counted.
        """
        now = self._now()
        if self._buckets.of(kind, now).try_spend(now):
            return self._suppressed.pop(kind, 0)
        if len(self._suppressed) >= KINDS_MAX:
            self._suppressed.clear()
        self._suppressed[kind] += 1
        return None

    def note_check(self, kind: tuple[str, str, str, str], host: str, imei: str, imsi: str, count: int = 1) -> None:
        """Count checks with a status other than `whitelisted` in their group. `fold` logs the counts.

        Args:
            kind: status, list (or empty), rule, peer.
            host: Origin-Host of the last request.
            imei: identifier in the last request.
            imsi: subscriber in the last request.
            count: number of checks.
        """
        if kind not in self._folds and len(self._folds) >= FOLDS_MAX:
            kind = (*kind[:3], "other")
        before = self._folds.get(kind)
        self._folds[kind] = _Fold(count if before is None else before.checks + count, host, imei, imsi)

    def note_observed(self, rule: int, status: str, name: str | None = None) -> None:
        """Count a check that a rule with `observe: true` would have answered. `fold` logs the counts."""
        self._observed[rule, status, name] += 1

    def fold(self) -> None:
        """Log one line for each group of checks since the last call, with the latest device as an example."""
        folds, self._folds = self._folds, {}
        for (status, list_name, rule, peer), fold in folds.items():
            imei, imsi = fold.imei, fold.imsi
            if not self._full_identifiers:
                imei, imsi = shorten(imei) if imei else "", shorten(imsi, MCC_MNC_DIGITS) if imsi else ""
            line = {
                "event": "checks",
                "status": status,
                "list": list_name or None,
                "rule": rule,
                "peer": peer,
                "count": fold.checks,
            }
            self._write("info", {**line, "host": fold.host or None, "imei": imei or None, "imsi": imsi or None})
        observed, self._observed = self._observed, Counter()
        for (number, status, name), count in observed.items():
            self._write("info", {"event": "observed", "rule": number, "name": name, "status": status, "count": count})

    def close(self) -> None:
        """Log the groups of checks, write all queued lines, and stop the thread.

        Each step waits at most CLOSE_S.
        """
        self.fold()
        if self._writer is not None:
            self._writer.stop()


class _Writer(threading.Thread):
    """Thread that writes log lines to a descriptor.

    If the reader stops, lines are lost; checks and the end of the process do not wait.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="log", daemon=True)
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)

    def write(self, line: str) -> None:
        """Queue a line, or drop the line if the queue is full."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def run(self) -> None:
        """Write queued lines until `stop` is called."""
        while (line := self._lines.get()) is not None:
            _write(self._descriptor, line)

    def stop(self) -> None:
        """Write all queued lines, and end the thread.

        Gives up after CLOSE_S if standard error has no reader.
        """
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_S)
            self.join(CLOSE_S)


def _write(descriptor: int, line: str) -> None:
    left = line.encode("utf-8", "replace")
    with suppress(OSError):  # the reader has closed it
        while left:
            left = left[os.write(descriptor, left) :]


def call_failed(report: Report, **who: Any) -> Callable[[str, Exception], None]:
    """Return a handler for `Channel.serve` that logs an internal error in a call from another process.

    `who`: fields that name this process in the log.
    """
    return lambda what, fault: report("fault", reason=what, level="error", detail=place_of(fault), **who)


def report_faults(report: Report) -> None:
    """Log unhandled exceptions of the running event loop as event `fault`, with the place in the code.

    Errors while a connection closes have the level debug: TLS connections to stores fail so when a node ends.
    """

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        is_closing = "transport" in context and isinstance(fault, OSError | RuntimeError)
        detail = context["message"] if fault is None else f"{context['message']}: {place_of(fault)}"
        report("fault", reason="loop", level="debug" if is_closing else "error", detail=detail)

    asyncio.get_running_loop().set_exception_handler(handle)
