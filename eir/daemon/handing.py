"""What passes between processes with a descriptor: connections, and lists on their way from the follower to whoever answers.

A list passes as its state, with the descriptors of its image's memory. Knows nothing of who has which.
"""

import asyncio
import socket
from typing import NamedTuple

from eir.daemon.rpc import pass_on
from eir.lists.amended import ListImage
from eir.lists.store import ListState


class Connection(NamedTuple):
    """A connection that was accepted."""

    listener: int
    """By which it came."""
    number: int
    """Its own."""


class Listed(NamedTuple):
    """A list as it is to be in force."""

    name: str
    kind: str
    """What the configuration says that it is."""
    state: ListState


class Complete(NamedTuple):
    """All lists have passed that there are as yet."""


class Handing:
    """One side's way of passing lists on, as fast as the other end takes them: of several versions of one list the last."""

    def __init__(self, packets: socket.socket) -> None:
        self._packets = packets
        self._waiting: dict[str, tuple[Listed | Complete, ListImage | None]] = {}

    def put(self, what: Listed | Complete, image: ListImage | None = None) -> None:
        """Pass this on."""
        name = what.name if isinstance(what, Listed) else ""
        self._waiting.pop(name, None)  # what comes last stands last
        self._waiting[name] = what, image
        self._pass()

    def close(self) -> None:
        """Pass nothing on any more."""
        self._waiting.clear()
        self._pass()

    def _pass(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            name, (what, image) = next(iter(self._waiting.items()))
            try:
                pass_on(self._packets, what, *(layer.descriptor for layer in (image.layers if image else ())))
            except BlockingIOError:
                loop.add_writer(self._packets, self._pass)
                return
            except OSError:  # the other end is gone, as the link will tell in a moment
                self._waiting.clear()
            else:
                del self._waiting[name]
        loop.remove_writer(self._packets)
