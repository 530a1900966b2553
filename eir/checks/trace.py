"""Trace of one device or subscriber: records of its checks, each with a complete explanation.

The answering process has one tracer, with at most one trace. The tracer explains a check by the lists that decided it, and sends a limited number
of records per second. Fast paths leave the traced checks to the general path until the limit is reached. The module does no I/O;
clock and callbacks are arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from eir.checks.explain import Explanation
from eir.checks.policy import Verdict
from eir.checks.question import Question
from eir.checks.settings import NoDevice
from eir.errors import IdentifierError

RECORDS_MAX = 20
"""Maximum number of trace records that the answering process sends per second."""
ANY = (1 << 64) - 2
"""Number in TraceFilter.numbers that matches every device, or every IMSI."""
NO_MATCH = ANY + 1, ANY
"""Value of TraceFilter.numbers that matches no check."""
CHECK, WIRE, LIMIT = "check", "wire", "limit"
"""Kinds of trace records."""


class TraceFilter(NamedTuple):
    """Filter that selects the checks of a trace by device and IMSI."""

    device: int | None
    """Key of the device (eir.device); None for any device."""
    imsi: str
    """IMSI; empty for any subscriber."""

    @property
    def numbers(self) -> tuple[int, int]:
        """Device key and IMSI of the filter as numbers for the compiled fast path; ANY if the filter accepts every value."""
        device = ANY if self.device is None else self.device
        imsi = int(self.imsi or ANY)
        return device, imsi

    def matches(self, question: Question) -> bool:
        """Return True if the device and the IMSI of the question match the filter."""
        if self.imsi and question.imsi != self.imsi:
            return False
        try:
            return self.device is None or question.device() == self.device
        except IdentifierError:
            return False


class Tracer:
    """Sender of trace records in the answering process. Each check that matches the filter gets a record."""

    def __init__(
        self, explain: Callable[[Question], Explanation], send: Callable[[dict[str, Any]], None],
        exclude: Callable[[TraceFilter | None], None], now: Callable[[], float],
    ) -> None:  # fmt: skip
        """Create a tracer without a filter.

        Args:
            explain: returns the explanation of a check.
            send: receives each trace record.
            exclude: excludes the checks that match a filter from fast paths; None excludes no check.
            now: returns Unix time.
        """
        self._explain = explain
        self._send = send
        self._exclude = exclude
        self._now = now
        self._left = 0
        """Number of records that may still be sent in the current second."""
        self.filter: TraceFilter | None = None
        """Filter of the trace; None: no trace is active."""

    def apply(self, new_filter: TraceFilter | None) -> None:
        """Start a trace with this filter; None stops the trace."""
        self.filter = new_filter
        self.refill()

    def refill(self) -> None:
        """Permit RECORDS_MAX more trace records: reset the rate limit.

        Called each second.
        """
        self._left = RECORDS_MAX
        self._exclude(self.filter)

    def check(self, question: Question, verdict: Verdict | NoDevice) -> None:
        """Send a trace record of a check that was just decided, if the check matches the filter."""
        if self._admits(question):
            status = None if isinstance(verdict, NoDevice) else verdict.status
            record = {"kind": CHECK, "time": self._now(), "question": question._asdict(), "status": status}
            record["answer"] = self._explain(question).as_fields()
            self._send(record)

    def wire(self, question: Question, request: bytes, answer: bytes, result: str) -> None:
        """Send a trace record with the bytes of a request and of its answer, if the request matches the filter.

        `result` is the result code of the answer as text.
        """
        if self._admits(question):
            self._send({
                "kind": WIRE, "time": self._now(), "protocol": question.protocol, "peer": question.peer, "origin_host": question.origin_host,
                "result": result, "request": request.hex(), "answer": answer.hex(),
            })  # fmt: skip

    def _admits(self, question: Question) -> bool:
        """Return True if the filter and the rate limit permit a trace record about the question.

        With the last permitted record, a record LIMIT is sent.
        """
        if self.filter is None or not self.filter.matches(question):
            return False
        if not self._left:
            return False
        self._left -= 1
        if not self._left:
            self._exclude(None)
            self._send({"kind": LIMIT, "time": self._now(), "told_max": RECORDS_MAX})
        return True
