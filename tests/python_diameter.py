"""Nodes of python-diameter, an independent Diameter stack, with short timers. With its own timers a node takes seconds to stop."""

import logging
from contextlib import contextmanager

from diameter.node import Node
from diameter.node._helpers import StoppableThread

WAKEUP_S = 0.05


@contextmanager
def running(host, realm, *, force=False, **options):
    """Make a node, which the caller starts; stop it at the end. `force`: without a DPR."""
    # Its threads complain at the end about their own closed sockets.
    logging.getLogger("diameter").setLevel(logging.CRITICAL)
    node = Node(host, realm, **options)
    node.wakeup_interval = WAKEUP_S
    node._stat_collect_thread = StoppableThread(target=lambda _thread: None)  # it would sleep for 2 s
    try:
        yield node
    finally:
        node.stop(wait_timeout=2, force=force)
