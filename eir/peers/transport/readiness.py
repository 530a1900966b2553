"""The readiness of a socket that the loop has no transport for: to be read, to be written, or at its end.

uvloop gives a descriptor up when poll says POLLERR of it, and calls nobody: the end of an SCTP association would go unnoticed. So the
loop watches an epoll instance, which never is in error, and that one watches the socket. Imports nothing of ours.
"""

import asyncio
import select
import socket
from collections.abc import Callable


class Readiness:
    """Calls `ready` while one of the wanted events is possible; an error of the socket counts as any of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, watched: socket.socket, ready: Callable[[], None]) -> None:
        self._loop = loop
        self._watched = watched
        self._wanted = 0
        self._epoll = select.epoll(1)
        loop.add_reader(self._epoll.fileno(), ready)

    def want(self, *, read: bool, write: bool) -> None:
        """Wait for these events from now on; for nothing at all if both are false."""
        wanted = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        if wanted == self._wanted:
            return
        if not wanted:
            self._epoll.unregister(self._watched)
        elif not self._wanted:
            self._epoll.register(self._watched, wanted)
        else:
            self._epoll.modify(self._watched, wanted)
        self._wanted = wanted

    def close(self) -> None:
        """Call nobody any more; to be called before the socket is closed."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
