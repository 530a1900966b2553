"""A trace of one subscriber or one device: each of its checks with the whole reasoning, as it is decided.

A worker has one tracer, with at most one trace. It judges by the same lists in the same moment as the check, tells a few checks a
second, and has fast paths leave alone what it is looking for only while it may still tell. Synchronous; clock and callables are
arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from eir.checks.explain import Explanation
from eir.checks.policy import Verdict
from eir.checks.question import Question
from eir.checks.settings import NoDevice
from eir.errors import IdentifierError

TOLD_MAX = 20
"""Checks and messages that a worker tells a second."""
ANY = (1 << 64) - 2
NOBODY = ANY + 1, ANY
"""Any device or SIM, as a number beside those of real ones; and the number of no device, with any SIM."""
CHECK, WIRE, LIMIT = "check", "wire", "limit"
"""Kinds of what is told."""


class Sought(NamedTuple):
    """The checks that a trace tells."""

    device: int | None
    """A key of eir.device; None: any device."""
    imsi: str
    """Empty: any subscriber."""

    @property
    def numbers(self) -> tuple[int, int]:
        """Device and SIM, as a fast path compares them (eir.checks.program.Field): ANY for any."""
        return ANY if self.device is None else self.device, int(self.imsi or ANY)

    def fits(self, question: Question) -> bool:
        """True if the trace is looking for this check."""
        if self.imsi and question.imsi != self.imsi:
            return False
        try:
            return self.device is None or question.device() == self.device
        except IdentifierError:
            return False


class Tracer:
    """Tells the checks of one trace."""

    def __init__(
        self, explain: Callable[[Question], Explanation], tell: Callable[[dict[str, Any]], None], seek: Callable[[Sought | None], None],
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        """`tell` gets each record, `seek` what fast paths are to leave alone, `now` is Unix time."""
        self._explain, self._tell, self._seek, self._now = explain, tell, seek, now
        self._left = 0
        self.sought: Sought | None = None

    def begin(self, sought: Sought | None) -> None:
        """Tell of these checks from now on; None: of none."""
        self.sought = sought
        self.refill()

    def refill(self) -> None:
        """Allow for another second of checks and messages. To be called each second."""
        self._left = TOLD_MAX
        self._seek(self.sought)

    def check(self, question: Question, verdict: Verdict | NoDevice) -> None:
        """A check was decided."""
        if self._is_told(question):
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
        """A request that asks this was answered; both as they went over the wire, and the result in words."""
        if self._is_told(question):
            self._tell({
                "kind": WIRE, "time": self._now(), "protocol": question.protocol, "peer": question.peer, "origin_host": question.origin_host,
                "result": result, "request": request.hex(), "answer": answer.hex(),
            })  # fmt: skip

    def _is_told(self, question: Question) -> bool:
        if self.sought is None or not self.sought.fits(question) or not self._left:
            return False
        self._left -= 1
        if not self._left:
            self._seek(None)
            self._tell({"kind": LIMIT, "time": self._now(), "told_max": TOLD_MAX})
        return True
