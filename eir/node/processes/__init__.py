"""The processes of a node: who accepts, who answers, who starts them, and what passes between them.

Here are signals that come before there are handlers: blocked from the first moment of `eir serve`, delivered once the handlers are there.
Otherwise a node that is stopped while it starts would end as if it had failed, and one that is process 1 of a container would not
notice; a reload would end it. Threads and children made meanwhile block them too; a thread from before would take them.
"""

import signal

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
BLOCKED = STOPPING | {signal.SIGHUP}


def block() -> None:
    """Have these signals wait from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def deliver() -> None:
    """The handlers are there: signals that wait are delivered, and none waits any more."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
