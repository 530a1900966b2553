"""Structured log: one line of `key=value` pairs for each event, limited in rate.

The other modules log by the function `Log.report`. A peer could fill the disk by invalid messages if each of them was logged, so
the rate of lines is limited per event, peer, reason, list and entry. The next logged line has the number of suppressed lines.
Checks with the status `whitelisted` are not logged. Other checks are counted, with one line per status, list, rule and peer.
This module also logs faults of the event loop, and notifies the service manager of the node's state.
"""

import asyncio
import os
import queue
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
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
            is_abstract = address.startswith("@")  # unix(7)
            link.connect(f"\0{address[1:]}" if is_abstract else address)
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
    """Return a text for standard error. In the systemd journal, each line begins with the prefix of the level's priority."""
    if not is_journal():
        return text
    prefix = PRIORITIES[level]
    return "\n".join(prefix + line for line in text.split("\n"))


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
"""Events that are never suppressed: actions of operators and their effects."""
KINDS_MAX = 4096
"""Maximum number of kinds of lines that are counted for the rate limit; a further kind resets all counts.

A kind has fields from the wire, so peers can cause any number of kinds.
"""
FOLDS_MAX = 1024
"""Maximum number of groups of checks between two calls of `Log.fold`; above it, the peer of a group is `other`."""
VALUE_MAX = 4000
"""Maximum number of characters of one value; a name from the wire may have the length of a message."""
QUEUE_LINES = 10_000
"""Maximum number of queued lines while the reader of standard error is slow; further lines are dropped."""
CLOSE_S = 2.0
"""Maximum seconds for writing the queued lines at the end of the process."""

LEVELS = {level: number for number, level in enumerate(("debug", "info", "warning", "error"))}
"""Rank of each level; `error` has the highest."""


def logfmt(fields: Mapping[str, object]) -> str:
    """Encode fields as `key=value` pairs on one line. Values with blanks, quotes or control characters are quoted."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)


def _value(value: object) -> str:
    text = str(value)
    if len(text) > VALUE_MAX:
        text = f"{text[:VALUE_MAX]}\N{HORIZONTAL ELLIPSIS}"
    needs_quotes = not text.isprintable() or any(character in text for character in ' "=')
    if text and not needs_quotes:
        return text
    escaped = "".join(map(_escape, text))
    return f'"{escaped}"'


def _escape(character: str) -> str:
    if character.isprintable() and character not in '"\\':
        return character
    return f"\\x{ord(character):02x}"


class _Fold(NamedTuple):
    """Group of similar checks for one log line: number of checks, and Origin-Host, IMEI and IMSI of the latest check."""

    checks: int
    host: str = ""
    imei: str = ""
    imsi: str = ""


class Log:
    """Writer of log lines to standard error, with rate limits.

    A thread writes the lines, so that a full pipe delays no answer. `now` returns seconds of a monotonic clock.
    `full_identifiers`: True to log whole IMEIs and IMSIs (privacy.identifiers: full). `in_background`: False to write without a
    thread, in a process that forks.
    """

    def __init__(
        self, now: Callable[[], float], *, level: str = "info", full_identifiers: bool = False, in_background: bool = True,
    ) -> None:  # fmt: skip
        self._now = now
        self._in_journal = is_journal()
        self._buckets = Buckets(1 / INTERVAL_S, BURST, KINDS_MAX)
        """Rate limit of each kind of line, by the hash of its fields, because fields from the wire may be long."""
        self._suppressed: Counter[str] = Counter()
        """Number of lines suppressed since the last logged line of the kind, by the same hash."""
        self._folds: dict[tuple[str, str, str, str], _Fold] = {}
        self._observed: Counter[tuple[int, str, str | None]] = Counter()
        self._writer = _Writer(sys.stderr.fileno()) if in_background else None
        if self._writer is not None:
            self._writer.start()
        self.configure(level=level, full_identifiers=full_identifiers)

    def configure(self, *, level: str, full_identifiers: bool) -> None:
        """Set the minimum level of logged events (a key of LEVELS).

        `full_identifiers`: True to log whole IMEIs and IMSIs.
        """
        self._level = LEVELS[level]
        self._full_identifiers = full_identifiers

    def report(
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None:
        """Write an event to the log, unless the rate limit of its kind is reached."""
        if LEVELS[level] < self._level:
            return
        kind = (event, peer, reason, fields.get("list"), fields.get("entry"))
        suppressed = 0 if event in ALWAYS else self._count_suppressed(str(hash(kind)))
        if suppressed is None:
            return
        line = {"event": event, "peer": peer, "reason": reason, **fields, "suppressed": suppressed or None}
        self._write(level, line)

    def _write(self, level: str, line: Mapping[str, object]) -> None:
        if LEVELS[level] < self._level:
            return
        fields: dict[str, object] = {"level": level, **line}
        prefix = ""
        if self._in_journal:
            prefix = PRIORITIES[level]
        else:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            fields = {"time": now.replace("+00:00", "Z"), **fields}
        text = f"{prefix}{logfmt(fields)}\n"
        if self._writer is None:
            _write(sys.stderr.fileno(), text)
        else:
            self._writer.write(text)

    def _count_suppressed(self, kind: str) -> int | None:
        """Return the number of lines of this kind that were suppressed since the last logged line.

        If this line must be suppressed too, count it and return None.
        """
        now = self._now()
        if self._buckets.of(kind, now).try_spend(now):
            return self._suppressed.pop(kind, 0)
        if len(self._suppressed) >= KINDS_MAX:
            self._suppressed.clear()
        self._suppressed[kind] += 1
        return None

    def note_check(self, kind: tuple[str, str, str, str], host: str, imei: str, imsi: str, count: int = 1) -> None:
        """Count checks that are not `whitelisted`, in the group `kind`; `fold` later logs one line per group.

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
        """Count a check that a rule with `observe: true` matched without effect. The method `fold` later logs the counts."""
        self._observed[rule, status, name] += 1

    def fold(self) -> None:
        """Log one line for each group of checks since the last call, with the latest device of the group."""
        folds = self._folds
        self._folds = {}
        for (status, list_name, rule, peer), fold in folds.items():
            imei = fold.imei
            imsi = fold.imsi
            if imei and not self._full_identifiers:
                imei = shorten(imei)
            if imsi and not self._full_identifiers:
                imsi = shorten(imsi, MCC_MNC_DIGITS)
            line = {
                "event": "checks", "status": status, "list": list_name or None, "rule": rule, "peer": peer,
                "count": fold.checks, "host": fold.host or None, "imei": imei or None, "imsi": imsi or None,
            }  # fmt: skip
            self._write("info", line)
        observed = self._observed
        self._observed = Counter()
        for (number, status, name), count in observed.items():
            line = {"event": "observed", "rule": number, "name": name, "status": status, "count": count}
            self._write("info", line)

    def close(self) -> None:
        """Log the groups of checks, write all queued lines, and stop the thread, within CLOSE_S for each step."""
        self.fold()
        if self._writer is not None:
            self._writer.stop()


class _Writer(threading.Thread):
    """Thread that writes log lines to a descriptor.

    If the descriptor's reader stops, lines are dropped, so that checks and the end of the process do not wait.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="log", daemon=True)
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)

    def write(self, line: str) -> None:
        """Queue a log line, or drop the line if the queue is full."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def run(self) -> None:
        """Write queued log lines until `stop` is called."""
        while (line := self._lines.get()) is not None:
            _write(self._descriptor, line)

    def stop(self) -> None:
        """Write all queued log lines, and end the thread. If the reader is slow, drop the remaining lines after CLOSE_S."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_S)
            self.join(CLOSE_S)


def _write(descriptor: int, line: str) -> None:
    left = line.encode("utf-8", "replace")
    with suppress(OSError):  # the reader has closed the pipe
        while left:
            left = left[os.write(descriptor, left) :]


def call_failed(report: Report, **who: Any) -> Callable[[str, Exception], None]:
    """Return a function that logs internal errors of calls from another process. It is the argument `failed` of `Channel.serve`.

    `who`: fields that name this process in the log.
    """
    return lambda what, fault: report("fault", reason=what, level="error", detail=place_of(fault), **who)


def report_faults(report: Report) -> None:
    """Log unhandled exceptions of the running event loop as event `fault`, with the place in the code.

    An error of a closing connection has the level debug, because TLS connections to a store fail so at the node's end.
    """

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        is_closing = "transport" in context and isinstance(fault, OSError | RuntimeError)
        detail = context["message"] if fault is None else f"{context['message']}: {place_of(fault)}"
        report("fault", reason="loop", level="debug" if is_closing else "error", detail=detail)

    asyncio.get_running_loop().set_exception_handler(handle)
