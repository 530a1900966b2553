"""Processes of a node: manager, answering process and others, and the channels between them.

This module blocks signals that arrive before there are handlers: from the first moment of `eir serve` until the handlers are
installed. Without this, a node that is stopped during its start would end with a failure, and as process 1 of a container it
would ignore the signal; a reload would end it. Threads and children inherit the blocked signals, so threads must start later.
"""

import signal

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
BLOCKED = STOPPING | {signal.SIGHUP}


def block() -> None:
    """Block the signals for stop and reload until their handlers are installed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def deliver() -> None:
    """Unblock all signals, after their handlers are installed; pending signals are delivered now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
