"""The watchdog of one transport connection (RFC 3539 3.4.1 and appendix A; RFC 6733 5.5): a table, and what it needs.

Knows no socket, no message and no clock: time is an argument, jitter a callable. It tells its owner to send a DWR, to
close the connection or to connect; what the states mean for answering is the owner's matter (here: nothing, a request
is answered in each of them).
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

WATCHDOG_LEAST_S = 6.0
"""RFC 3539 3.4.1: Tw MUST NOT be set lower than that."""
JITTER_S = 2.0
"""RFC 3539 3.4.1: each interval is Tw plus or minus at most this."""
REOPEN_ANSWERS = 3
"""DWAs in time that a connection needs after it failed before it counts as good again."""


class Status(IntEnum):
    """States of RFC 3539 3.4.1."""

    INITIAL = 0
    OKAY = 1
    SUSPECT = 2
    DOWN = 3
    REOPEN = 4


class Event(IntEnum):
    """An event of the connection. Timer events are told apart by what is pending, as in the table of appendix A."""

    CONNECTED = 0
    DISCONNECTED = 1
    DWA = 2
    """The answer to our DWR."""
    OTHER = 3
    """Any other message."""
    TIMER = 4
    """Tw ran out, no DWR is pending."""
    TIMER_PENDING = 5
    """Tw ran out, and our DWR has no answer."""
    TIMER_AGAIN = 6
    """As TIMER_PENDING, a second time in a row (NumDWA < 0)."""
    DWA_ENOUGH = 7
    """A DWA, the last of those that REOPEN waits for."""


class Action(IntEnum):
    """The action for the owner; the watchdog keeps NumDWA by itself."""

    NONE = 0
    SEND = 1
    """Send a DWR."""
    CLOSE = 2
    """Close the connection: the peer is silent."""
    CONNECT = 3
    """Try to connect, if the peer is one to connect to."""


class Step(NamedTuple):
    """One row of the table."""

    action: Action
    status: Status
    set_timer: bool = True
    """SetWatchdog() of appendix A."""
    num_dwa: int | None = None
    """New value of NumDWA; None: it stays."""


_INITIAL, _OKAY, _SUSPECT, _DOWN, _REOPEN = Status
_NONE, _SEND, _CLOSE, _CONNECT = Action
OTHER = Event.OTHER
"""The event of every read; before Python 3.12 looking a member up on its enum takes longer than all that is done for it."""
_UP, _GONE, _DWA, _, _TIMER, _PENDING, _AGAIN, _ENOUGH = Event

# fmt: off
_ROWS: Sequence[tuple[Status, Sequence[Event], Step]] = (
    # RFC 3539 appendix A. Failover() and Failback() move requests that a node has sent; a node that only answers has
    # none. Throwaway() would drop what comes in a state that is not open: here it is answered, since silence would
    # leave a phone without service for nothing.
    (_INITIAL, [_UP],                      Step(_NONE, _OKAY)),
    (_INITIAL, [_GONE],                    Step(_NONE, _INITIAL)),
    (_INITIAL, [_DWA, _ENOUGH, OTHER],     Step(_NONE, _INITIAL, set_timer=False)),
    (_INITIAL, [_TIMER, _PENDING, _AGAIN], Step(_CONNECT, _INITIAL)),

    (_OKAY, [_UP, _DWA, _ENOUGH, OTHER],   Step(_NONE, _OKAY)),
    (_OKAY, [_GONE],                       Step(_CLOSE, _DOWN)),
    (_OKAY, [_TIMER],                      Step(_SEND, _OKAY)),
    (_OKAY, [_PENDING, _AGAIN],            Step(_NONE, _SUSPECT)),

    (_SUSPECT, [_UP],                             Step(_NONE, _SUSPECT)),
    (_SUSPECT, [_DWA, _ENOUGH, OTHER],            Step(_NONE, _OKAY)),
    (_SUSPECT, [_GONE, _TIMER, _PENDING, _AGAIN], Step(_CLOSE, _DOWN)),

    (_DOWN, [_UP],                      Step(_SEND, _REOPEN, num_dwa=0)),
    (_DOWN, [_GONE],                    Step(_NONE, _DOWN)),
    (_DOWN, [_DWA, _ENOUGH, OTHER],     Step(_NONE, _DOWN, set_timer=False)),
    (_DOWN, [_TIMER, _PENDING, _AGAIN], Step(_CONNECT, _DOWN)),

    (_REOPEN, [_UP],           Step(_NONE, _REOPEN)),
    (_REOPEN, [_DWA, OTHER],   Step(_NONE, _REOPEN, set_timer=False)),
    (_REOPEN, [_ENOUGH],       Step(_NONE, _OKAY, set_timer=False)),
    (_REOPEN, [_TIMER],        Step(_SEND, _REOPEN)),
    (_REOPEN, [_PENDING],      Step(_NONE, _REOPEN, num_dwa=-1)),
    (_REOPEN, [_GONE, _AGAIN], Step(_CLOSE, _DOWN)),
)
# fmt: on
TABLE = {(status, event): step for status, events, step in _ROWS for event in events}


class Watchdog:
    """The watchdog's state: `status`, whether a DWR is pending, and when its timer runs out."""

    __slots__ = ("_interval_s", "_jitter", "_least_s", "_tw_s", "deadline", "num_dwa", "pending", "status")

    def __init__(
        self,
        tw_s: float,
        now: float,
        jitter: Callable[[], float],
        status: Status = Status.INITIAL,
        *,
        least_s: float = WATCHDOG_LEAST_S,
    ) -> None:
        """`jitter` returns a number of seconds between -JITTER_S and +JITTER_S; `least_s`: the lowest Tw."""
        self._least_s = least_s
        self._tw_s = max(tw_s, least_s)
        self._jitter = jitter
        self._interval_s = self._tw_s + jitter()
        self.num_dwa = 0
        self.status = status
        self.pending = False
        """A DWR of ours has no answer yet."""
        self.deadline = now + self._interval_s
        """The time when `timer` is due, on the clock of `now`."""

    def handle(self, event: Event, now: float) -> Action:
        """Take one event (CONNECTED, DISCONNECTED, DWA or OTHER) and say what the owner has to do."""
        if event is OTHER and self.status is _OKAY:
            # The most frequent cell by far; it keeps its interval, and draws a new one when the timer runs out.
            self.deadline = now + self._interval_s
            return _NONE
        if event is Event.DWA:
            self.pending = False
            # Appendix A: NumDWA counts the DWAs in REOPEN; one that came late set it to -1, and starts again.
            self.num_dwa += 1
            if self.num_dwa >= REOPEN_ANSWERS:
                event = Event.DWA_ENOUGH
        elif event in {Event.CONNECTED, Event.DISCONNECTED}:
            self.pending = False
        return self._step(event, now)

    def timer(self, now: float) -> Action:
        """Tw ran out; `now` is at or after `deadline`."""
        if not self.pending:
            return self._step(Event.TIMER, now)
        return self._step(Event.TIMER_AGAIN if self.num_dwa < 0 else Event.TIMER_PENDING, now)

    def ask(self, now: float) -> None:
        """The owner sends a DWR by its own choice: it becomes pending as if the table had asked for it."""
        self.pending = True
        self.deadline = now + self._interval_s

    def retime(self, tw_s: float, now: float) -> None:
        """Take over another Tw; the timer that runs starts over with it."""
        if max(tw_s, self._least_s) != self._tw_s:
            self._tw_s = max(tw_s, self._least_s)
            self._interval_s = self._tw_s + self._jitter()
            self.deadline = now + self._interval_s

    def _step(self, event: Event, now: float) -> Action:
        step = TABLE[self.status, event]
        self.status = step.status
        if step.num_dwa is not None:
            self.num_dwa = step.num_dwa
        if step.action is Action.SEND:
            self.pending = True
        if step.set_timer:
            self._interval_s = self._tw_s + self._jitter()
            self.deadline = now + self._interval_s
        return step.action
