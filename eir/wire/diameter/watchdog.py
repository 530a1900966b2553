"""Watchdog of one transport connection (RFC 3539 3.4.1 and appendix A; RFC 6733 5.5): state table and current state.

No socket, no message and no clock: time is an argument, jitter a function. The watchdog returns to its owner whether to send a
DWR, to close the connection or to connect. The owner decides which states affect answers; this node answers requests in every
state.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

WATCHDOG_LEAST_S = 6.0
"""RFC 3539 3.4.1: Tw MUST NOT be set lower than that."""
JITTER_S = 2.0
"""RFC 3539 3.4.1: maximum difference between an interval and Tw."""
REOPEN_ANSWERS = 3
"""Number of timely DWAs after which a connection in REOPEN is OKAY."""


class WatchdogStatus(IntEnum):
    """States of RFC 3539 3.4.1."""

    INITIAL = 0
    OKAY = 1
    SUSPECT = 2
    DOWN = 3
    REOPEN = 4


class WatchdogEvent(IntEnum):
    """Event of the watchdog. TIMER is an expiry of Tw without a pending DWR, TIMER_PENDING with a pending DWR (RFC 3539 appendix A)."""

    CONNECTED = 0
    DISCONNECTED = 1
    DWA = 2
    """The answer to a DWR arrived."""
    OTHER = 3
    """Another message arrived."""
    TIMER = 4
    """Tw expired without a pending DWR."""
    TIMER_PENDING = 5
    """Tw expired with a pending DWR."""
    TIMER_AGAIN = 6
    """TIMER_PENDING for the second time in a row (NumDWA < 0)."""
    DWA_ENOUGH = 7
    """The last DWA that REOPEN needs arrived."""


class WatchdogAction(IntEnum):
    """Action that the watchdog returns to its owner."""

    NONE = 0
    SEND = 1
    """Send a DWR."""
    CLOSE = 2
    """Close the connection: the peer does not answer."""
    CONNECT = 3
    """Try to connect, if the node makes the connections to this peer."""


class Step(NamedTuple):
    """Cell of the watchdog's state table: action, next state, and changes of timer and NumDWA."""

    action: WatchdogAction
    status: WatchdogStatus
    set_timer: bool = True
    """SetWatchdog() of appendix A."""
    num_dwa: int | None = None
    """New value of NumDWA; None: unchanged."""


_INITIAL, _OKAY, _SUSPECT, _DOWN, _REOPEN = WatchdogStatus
_NONE, _SEND, _CLOSE, _CONNECT = WatchdogAction
OTHER = WatchdogEvent.OTHER
"""Event of every read. Before Python 3.12 the lookup of an enum member takes longer than the handling."""
_UP, _GONE, _DWA, _, _TIMER, _PENDING, _AGAIN, _ENOUGH = WatchdogEvent

# fmt: off
_ROWS: Sequence[tuple[WatchdogStatus, Sequence[WatchdogEvent], Step]] = (
    # RFC 3539 appendix A. Failover() and Failback() move requests that a node has sent; a node that only answers has none.
    # Throwaway() would drop a message in a state that is not open: here the message is answered, because a phone would lose
    # service without an answer.
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
    """State of the watchdog: `status`, pending DWR, and time when its timer expires."""

    __slots__ = ("_interval_s", "_jitter", "_least_s", "_tw_s", "deadline", "num_dwa", "pending", "status")

    def __init__(
        self,
        tw_s: float,
        now: float,
        jitter: Callable[[], float],
        status: WatchdogStatus = WatchdogStatus.INITIAL,
        *,
        least_s: float = WATCHDOG_LEAST_S,
    ) -> None:
        """Create a watchdog whose connection is not open yet.

        `jitter` returns seconds between -JITTER_S and +JITTER_S; `least_s`: minimum Tw.
        """
        self._least_s = least_s
        self._tw_s = max(tw_s, least_s)
        self._jitter = jitter
        self._interval_s = self._tw_s + jitter()
        self.num_dwa = 0
        self.status = status
        self.pending = False
        """True if a DWR has no answer yet."""
        self.deadline = now + self._interval_s
        """Time when `timer` is due, on the clock of `now`."""

    def handle(self, event: WatchdogEvent, now: float) -> WatchdogAction:
        """Handle the event CONNECTED, DISCONNECTED, DWA or OTHER; return the action that the owner must execute."""
        if event is OTHER and self.status is _OKAY:
            # The most frequent cell by far: it keeps its interval until the timer expires.
            self.deadline = now + self._interval_s
            return _NONE
        if event is WatchdogEvent.DWA:
            self.pending = False
            # Appendix A: NumDWA counts the DWAs in REOPEN; a late DWA has set it to -1 and restarts the count.
            self.num_dwa += 1
            if self.num_dwa >= REOPEN_ANSWERS:
                event = WatchdogEvent.DWA_ENOUGH
        elif event in {WatchdogEvent.CONNECTED, WatchdogEvent.DISCONNECTED}:
            self.pending = False
        return self._step(event, now)

    def timer(self, now: float) -> WatchdogAction:
        """Handle the expiry of Tw; `now` is at or after `deadline`."""
        if not self.pending:
            return self._step(WatchdogEvent.TIMER, now)
        return self._step(WatchdogEvent.TIMER_AGAIN if self.num_dwa < 0 else WatchdogEvent.TIMER_PENDING, now)

    def ask(self, now: float) -> None:
        """Record that the owner has sent a DWR before the timer expired: mark the DWR as pending, and restart the timer."""
        self.pending = True
        self.deadline = now + self._interval_s

    def retime(self, tw_s: float, now: float) -> None:
        """Set another Tw, and restart the running timer with the new value."""
        if max(tw_s, self._least_s) != self._tw_s:
            self._tw_s = max(tw_s, self._least_s)
            self._interval_s = self._tw_s + self._jitter()
            self.deadline = now + self._interval_s

    def _step(self, event: WatchdogEvent, now: float) -> WatchdogAction:
        step = TABLE[self.status, event]
        self.status = step.status
        if step.num_dwa is not None:
            self.num_dwa = step.num_dwa
        if step.action is WatchdogAction.SEND:
            self.pending = True
        if step.set_timer:
            self._interval_s = self._tw_s + self._jitter()
            self.deadline = now + self._interval_s
        return step.action
