"""Trace of one device or subscriber: it sends each matching check with its complete explanation.

A worker has one tracer, with at most one trace. The tracer explains a check with the same lists at the same moment, and sends a
limited number of checks per second. Fast paths skip matching checks only as long as the limit is not reached. Synchronous;
clock and callbacks are arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from eir.checks.explain import Explanation
from eir.checks.policy import Verdict
from eir.checks.question import Question
from eir.checks.settings import NoDevice
from eir.errors import IdentifierError

TOLD_MAX = 20
"""Maximum number of checks and messages that a worker sends per second."""
ANY = (1 << 64) - 2
NOBODY = ANY + 1, ANY
"""ANY: number for any device or SIM, besides the numbers of real ones. NOBODY: the number of no device, with any SIM."""
CHECK, WIRE, LIMIT = "check", "wire", "limit"
"""Kinds of trace records."""


class TraceFilter(NamedTuple):
    """Filter that selects the checks of a trace by device and IMSI."""

    device: int | None
    """Key of eir.device; None for any device."""
    imsi: str
    """IMSI; empty for any subscriber."""

    @property
    def numbers(self) -> tuple[int, int]:
        """Device key and IMSI as numbers for a fast path (eir.checks.program.Field); ANY matches every value."""
        return ANY if self.device is None else self.device, int(self.imsi or ANY)

    def fits(self, question: Question) -> bool:
        """Return True if the device and the IMSI of the question match the filter."""
        if self.imsi and question.imsi != self.imsi:
            return False
        try:
            return self.device is None or question.device() == self.device
        except IdentifierError:
            return False


class Tracer:
    """Tracer of one worker, which sends the checks that match its filter."""

    def __init__(
        self, explain: Callable[[Question], Explanation], tell: Callable[[dict[str, Any]], None], seek: Callable[[TraceFilter | None], None],
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        """Create a tracer without a filter.

        `tell` receives each record, and `seek` the filter for fast paths. `now` returns Unix time.
        """
        self._explain, self._tell, self._seek, self._now = explain, tell, seek, now
        self._left = 0
        self.sought: TraceFilter | None = None

    def begin(self, sought: TraceFilter | None) -> None:
        """Start a trace with this filter; None stops the trace."""
        self.sought = sought
        self.refill()

    def refill(self) -> None:
        """Reset the number of trace records that may be sent in the next second.

        Called each second.
        """
        self._left = TOLD_MAX
        self._seek(self.sought)

    def check(self, question: Question, verdict: Verdict | NoDevice) -> None:
        """Send a trace record of a check that was just decided, if the check matches the filter."""
        if self._admits(question):
            status = None if isinstance(verdict, NoDevice) else verdict.status
            self._tell(
                {
                    "kind": CHECK,
                    "time": self._now(),
                    "question": question._asdict(),
                    "status": status,
                    "answer": self._explain(question).as_fields(),
                }
            )

    def wire(self, question: Question, request: bytes, answer: bytes, result: str) -> None:
        """Send a trace record with a request and its answer as on the wire, if the request matches the filter.

        `result` is the result of the request as text.
        """
        if self._admits(question):
            self._tell({
                "kind": WIRE, "time": self._now(), "protocol": question.protocol, "peer": question.peer, "origin_host": question.origin_host,
                "result": result, "request": request.hex(), "answer": answer.hex(),
            })  # fmt: skip

    def _admits(self, question: Question) -> bool:
        if self.sought is None or not self.sought.fits(question) or not self._left:
            return False
        self._left -= 1
        if not self._left:
            self._seek(None)
            self._tell({"kind": LIMIT, "time": self._now(), "told_max": TOLD_MAX})
        return True
