"""Accepting connections before anything is known of them, for listeners whose connections begin with a TLS handshake.

A handshake costs more than a message does, so whoever accepts is asked first, and chooses what it is made with. Knows no
TLS and no peer.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

BACKLOG = 1024
ACCEPTS_MAX = 64
"""Connections accepted in one turn of the loop."""
PAUSE_S = 1.0
"""The pause in accepting while there are too many open files."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """One listening socket; each connection goes to `accepted`, whose it is from then on."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: socket.socket, accepted: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._accepted = accepted
        self._pause: asyncio.TimerHandle | None = None
        loop.add_reader(listening, self._accept)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listening.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Accept nothing any more."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    async def wait_closed(self) -> None:
        """As that of asyncio.Server; there is nothing to wait for."""

    def _accept(self) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in OUT_OF_RESOURCES:
                    # The queue stays readable: without a pause the loop would do nothing else.
                    self._loop.remove_reader(self._listening)
                    self._pause = self._loop.call_later(PAUSE_S, self._go_on)
                    return
                continue  # whoever connected is gone again
            connection.setblocking(False)
            self._accepted(connection)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)


async def open_listener(host: str, port: int, accepted: Callable[[socket.socket], None]) -> Listener:
    """A listener at an address or at the first address of a name. Raises OSError if it cannot be had."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return Listener(loop, listening, accepted)
