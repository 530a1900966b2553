"""Signals that come before anyone heeds them: held from the first moment of `eir serve`, delivered once the handlers are there.

Else a node that is stopped while it starts would end as if it had failed, and one that is process 1 of a container would not
notice; a reload would end it. Threads and children that are made meanwhile hold them, too; a thread that was there before
does not, and would take them. Imports nothing of ours.
"""

import signal

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
HELD = STOPPING | {signal.SIGHUP}


def hold() -> None:
    """From now on these signals wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def heed() -> None:
    """The handlers are there: what waits is delivered, and no signal waits any more."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def is_told_to_stop() -> bool:
    """Whether a signal waits that is to end the process."""
    return bool(STOPPING & signal.sigpending())
