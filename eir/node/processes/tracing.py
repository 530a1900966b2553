"""Trace of the checks of one subscriber or device, in the manager.

A command begins the trace, and reads the records that the answering process reports. A time limit ends the trace. At most one trace runs.
A trace shows the use of a person's phone. So the history records its user and reason, and its records go only to the command,
never to a log or a file of the node.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from eir.checks.trace import TraceFilter
from eir.device import MCC_MNC_DIGITS, device_key, imsi_key, key_text, shorten
from eir.errors import EirError, Report
from eir.lists.log.change import utc_text
from eir.lists.log.journal import JournalEvent
from eir.lists.record.reasons import check_reason
from eir.node.observe.control import asker

LASTS_MAX_S = 3600.0
IDLE_S = 15.0
"""Seconds without a read after which a trace ends, because the command that reads it has ended."""
READ_S = 1.0
"""Maximum seconds that a read waits for records."""
RECORDS_MAX = 1000
"""Maximum number of unread records. A further record replaces the oldest."""


class Tracing:
    """Running trace, if any, and its unread records."""

    def __init__(
        self,
        seek: Callable[[TraceFilter | None], Awaitable[None]],
        record: Callable[[JournalEvent], None],
        report: Report,
        idle_s: float = IDLE_S,
        read_s: float = READ_S,
    ) -> None:
        """Create the tracing of the manager. No trace is running yet.

        `seek`: function that sets the filter of checks that the answering process reports from now on; None: no checks. `record`: function
        that records an event in the journal. `idle_s`: as IDLE_S. `read_s`: as READ_S.
        """
        self._seek = seek
        self._record = record
        self._report = report
        self._idle_s = idle_s
        self._read_s = read_s
        self.sought: TraceFilter | None = None
        self._number = 0
        """Number of the last trace. A reader names its trace by number, because another trace may run meanwhile."""
        self._changing = asyncio.Lock()
        """Lock during the begin and the end of a trace.

        So a trace begins after the answering process has applied the end of the previous trace, whose last records have arrived then.
        """
        self._who = self._about = ""
        self._until = self._read_at = 0.0
        self._unread: deque[dict[str, Any]] = deque(maxlen=RECORDS_MAX)
        self._count = 0
        self._news = asyncio.Event()
        """Set when there are unread records, or when the trace has ended."""

    async def begin(self, arguments: Mapping[str, Any]) -> int:
        """Begin a trace, and return its number.

        Arguments: `imei`, `imsi` or both; `lasts_s`, its duration; `reason`, which the history records.

        Raises:
            EirError: if a trace runs, or the arguments are invalid.
        """
        await self.end_if_due()
        who = await asker()
        async with self._changing:
            return await self._begin(arguments, who)

    async def _begin(self, arguments: Mapping[str, Any], who: str) -> int:
        if self.sought is not None:
            until = utc_text(datetime.fromtimestamp(self._until, UTC))
            raise EirError(
                f"a trace of {self._about} by {self._who} is on until {until}; a node runs one trace at a time"
            )
        imei = arguments.get("imei")
        imsi = arguments.get("imsi")
        lasts_s = arguments.get("lasts_s")
        reason = arguments.get("reason")
        check_reason(str(reason or ""))
        if not isinstance(lasts_s, int | float) or not 0 < lasts_s <= LASTS_MAX_S:
            raise EirError(f"expected at most {LASTS_MAX_S / 60:g} minutes")
        if not imei and not imsi:
            raise EirError("expected an IMEI or an IMSI")
        if imsi:
            imsi_key(str(imsi))
        device = device_key(str(imei)) if imei else None
        sought = TraceFilter(device, str(imsi or ""))
        names = []
        if device is not None:
            names.append(f"IMEI {shorten(key_text(device))}")
        if imsi:
            names.append(f"IMSI {shorten(sought.imsi, MCC_MNC_DIGITS)}")
        self._about = " with ".join(names)
        self._who = who
        self._until = time.time() + lasts_s
        self._read_at = time.monotonic()
        self._unread.clear()
        self._news = asyncio.Event()
        self._count = 0
        self._number += 1
        self.sought = sought
        detail = f"checks of {self._about} for {lasts_s:g} s: {reason}"
        now = utc_text(datetime.now(UTC))
        user = f"{self._who}@{socket.gethostname()}"
        self._record(JournalEvent(time=now, who=user, what="trace", detail=detail))
        self._report("traced", who=self._who, level="warning", detail=detail)
        await self._seek(sought)
        self._read_at = time.monotonic()
        return self._number

    def add(self, record: dict[str, Any]) -> None:
        """Add a record that the answering process has reported for the trace."""
        if self.sought is not None:
            self._unread.append(record)
            self._count += 1
            self._news.set()

    async def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the trace's records since the last read. In the result, `over` is true if the trace has ended.

        A read waits for records at most `read_s`. Argument `number`: number of the trace; default: the last trace.
        """
        number = arguments.get("number", self._number)
        news = self._news
        if number == self._number:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._read_s):
                    await news.wait()
            await self.end_if_due()
        if number != self._number:
            return {"records": [], "over": True}
        news.clear()
        self._read_at = time.monotonic()
        records = list(self._unread)
        self._unread.clear()
        return {"records": records, "over": self.sought is None}

    async def end(self, arguments: Mapping[str, Any]) -> None:
        """End the running trace. Argument `number`: number of the trace; default: the last trace."""
        number = arguments.get("number", self._number)
        await self._end(lambda: number == self._number)

    async def end_if_due(self) -> None:
        """End the trace if its time is over, or if no command has read it for `idle_s`. The manager calls this each second."""
        await self._end(self._is_due)

    def _is_due(self) -> bool:
        is_over = time.time() >= self._until
        is_unread = time.monotonic() - self._read_at > self._idle_s
        return is_over or is_unread

    async def _end(self, is_due: Callable[[], bool]) -> None:
        if self.sought is None or not is_due():
            return
        async with self._changing:
            if self.sought is not None and is_due():
                self.sought = None
                self._news.set()
                self._report("trace_ended", who=self._who, level="warning", count=self._count)
                await self._seek(None)
