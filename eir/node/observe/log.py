"""Structured logs: one line an event, `key=value` pairs, limited in rate.

Parts are handed `Log.report` and know nothing else of logging. A line for each refused message could fill a disk as fast as
a peer can send, so lines are limited for each (event, peer, reason, list, entry); what was left out is counted on the next line. Checks
that end in `whitelisted` leave no line; the others are folded into one line for each status, list, rule and peer. Faults of the event
loop become such lines, and the service manager that started a node is told how it is.
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


def tell_service(*lines: str) -> None:
    """Send lines such as `READY=1` to the service manager, if there is one that waits for them."""
    address = os.environ.get(NOTIFY_SOCKET)
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect(
                f"\0{address[1:]}" if address.startswith("@") else address
            )  # @: in the abstract namespace, unix(7)
            link.send("\n".join(lines).encode())


PRIORITIES = {"error": "<3>", "warning": "<4>", "info": "<6>", "debug": "<7>"}
"""Prefix by which the journal gives a line its priority, by level (sd-daemon(3))."""


def is_journal() -> bool:
    """True if standard error is the journal's, which gives each line a time (systemd.exec(5), JOURNAL_STREAM)."""
    with suppress(OSError, ValueError):
        found = os.fstat(sys.stderr.fileno())
        return os.environ.get(JOURNAL_STREAM) == f"{found.st_dev}:{found.st_ino}"
    return False


def with_priority(level: str, text: str) -> str:
    """Return the text, each line with the priority of its level if standard error is the journal's."""
    return "\n".join(PRIORITIES[level] + line for line in text.split("\n")) if is_journal() else text


BURST = 5
"""Lines of one kind that go out at once."""
INTERVAL_S = 10.0
"""After a burst, one line of a kind in this time."""
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
"""Events of what people do, and what comes of it: each of these has its line."""
KINDS_MAX = 4096
"""Kinds of lines that are told apart; past that, the limits start afresh (peers' names come from the wire)."""
FOLDS_MAX = 1024
"""Groups of blocked checks that are kept apart until the next fold; further ones share the group `other`."""
VALUE_MAX = 4000
"""Characters of one value; names that come from the wire may be as long as a message."""
QUEUE_LINES = 10_000
"""Lines that wait for the reader of standard error; past that they are dropped."""
CLOSE_S = 2.0
"""Time for which the end of the process waits for the reader of standard error."""

LEVELS = {level: number for number, level in enumerate(("debug", "info", "warning", "error"))}
"""Levels of lines, the least important first."""


def logfmt(fields: dict[str, object]) -> str:
    """`key=value` pairs; values with blanks, quotes or control characters are quoted so that a line stays a line."""
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
    """Number of checks of one kind; the other fields are those of the latest check."""

    checks: int
    host: str = ""
    imei: str = ""
    imsi: str = ""


class Log:
    """Turns reports into lines on standard error, which a thread writes: a full pipe must not hold an answer back.

    `now` gives seconds of a monotonic clock; `full_identifiers` shows whole IMEIs and IMSIs (privacy.identifiers: full);
    without `in_background` there is no thread, for a process that forks. `worker` stands in each line of one of several.
    """

    def __init__(
        self, now: Callable[[], float], *, level: str = "info", full_identifiers: bool = False, in_background: bool = True,
        worker: int | None = None,
    ) -> None:  # fmt: skip
        self._now = now
        self._worker = worker
        self._in_journal = is_journal()
        self._buckets = Buckets(1 / INTERVAL_S, BURST, KINDS_MAX)
        """Buckets by the hash of a kind's fields: the fields come from the wire, and would take megabytes."""
        self._suppressed: Counter[str] = Counter()
        """Lines that were left out since the last one, by such a hash."""
        self._folds: dict[tuple[str, str, str, str], _Fold] = {}
        self._observed: Counter[tuple[int, str, str | None]] = Counter()
        self._writer = _Writer(sys.stderr.fileno()) if in_background else None
        if self._writer is not None:
            self._writer.start()
        self.configure(level=level, full_identifiers=full_identifiers)

    def configure(self, *, level: str, full_identifiers: bool) -> None:
        """Show lines from this level (a key of LEVELS) upward, and identifiers whole or short."""
        self._level = LEVELS[level]
        self._full_identifiers = full_identifiers

    def report(
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None:
        """Write one line for the event, unless its kind had too many of late."""
        if LEVELS[level] < self._level:
            return
        suppressed = (
            0
            if event in ALWAYS
            else self._take(str(hash((event, peer, reason, fields.get("list"), fields.get("entry")))))
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
            self._writer.put(text)

    def _take(self, kind: str) -> int | None:
        """Return how many lines of this kind were left out since the last one; None if this one is left out too."""
        now = self._now()
        if self._buckets.of(kind, now).take(now):
            return self._suppressed.pop(kind, 0)
        if len(self._suppressed) >= KINDS_MAX:
            self._suppressed.clear()
        self._suppressed[kind] += 1
        return None

    def note_check(self, kind: tuple[str, str, str, str], host: str, imei: str, imsi: str, count: int = 1) -> None:
        """Take note of checks that did not end in `whitelisted`; `fold` writes what has come together.

        `kind`: status, list (or empty), rule, peer. `host`: Origin-Host of the last request, as `imei` and `imsi` are its.
        """
        if kind not in self._folds and len(self._folds) >= FOLDS_MAX:
            kind = (*kind[:3], "other")
        before = self._folds.get(kind)
        self._folds[kind] = _Fold(count if before is None else before.checks + count, host, imei, imsi)

    def note_observed(self, rule: int, status: str, name: str | None = None) -> None:
        """Take note of a check that an observed rule would have answered; `fold` writes how many there were."""
        self._observed[rule, status, name] += 1

    def fold(self) -> None:
        """One line for each group of checks noted since the last fold, with the latest device as an example."""
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
        """Write what is still queued and stop the writing thread, if someone reads what it writes."""
        self.fold()
        if self._writer is not None:
            self._writer.stop()


class _Writer(threading.Thread):
    """Writes lines to a descriptor. When nobody reads them any more, lines are lost, and neither checks nor the end wait for it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="log", daemon=True)
        self._descriptor = descriptor
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)

    def put(self, line: str) -> None:
        """Have a line written; a full queue drops it."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def run(self) -> None:
        """Write what comes, until `stop`."""
        while (line := self._lines.get()) is not None:
            _write(self._descriptor, line)

    def stop(self) -> None:
        """Write what is queued, if someone reads it, and end."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_S)
            self.join(CLOSE_S)


def _write(descriptor: int, line: str) -> None:
    left = line.encode("utf-8", "replace")
    with suppress(OSError):  # nobody can read it any more
        while left:
            left = left[os.write(descriptor, left) :]


def call_failed(report: Report, **who: Any) -> Callable[[str, Exception], None]:
    """Return what reports a fault of ours in a call of another process (Channel.serve). `who`: as the log names it."""
    return lambda what, fault: report("fault", reason=what, level="error", detail=place_of(fault), **who)


def report_faults(report: Report) -> None:
    """Have the running loop report faults by `report`: event `fault`, with the place in the code.

    Errors while a connection is closing are reported at debug level: the stores' TLS connections fail so when a node
    ends.
    """

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        going = "transport" in context and isinstance(fault, OSError | RuntimeError)
        detail = context["message"] if fault is None else f"{context['message']}: {place_of(fault)}"
        report("fault", reason="loop", level="debug" if going else "error", detail=detail)

    asyncio.get_running_loop().set_exception_handler(handle)
