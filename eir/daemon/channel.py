"""What passes between a node's dispatcher and its workers: JSON messages one way and the other, and accepted connections.

Two socket pairs for each worker. The stream carries messages, each behind its length; the packets carry descriptors, one a
packet, with a byte that says by which listener it came and the number that it has. Both ends are this program, forked from one process. Knows nothing
of what the messages mean.
"""

import asyncio
import itertools
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

from eir.errors import EirError

LENGTH_BYTES = 4
ANSWER_S = 5.0
"""How long the other end may take for an answer."""
LISTENERS_MAX = 255
_PACKET = struct.Struct("!BI")
"""Listener, and number of the connection."""

Message = dict[str, Any]


class ChannelError(EirError):
    """The other end is gone, or gave no answer."""


class Unanswered(ChannelError):
    """The other end is there, and gave no answer in time."""


class Ends(NamedTuple):
    """One side's end of both pairs."""

    stream: socket.socket
    packets: socket.socket

    def close(self) -> None:
        """Close both."""
        self.stream.close()
        self.packets.close()


def pair() -> tuple[Ends, Ends]:
    """Both pairs, as the two sides have them."""
    stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (*stream, *packets):
        end.setblocking(False)
    return Ends(stream[0], packets[0]), Ends(stream[1], packets[1])


class Channel:
    """One side of the stream. Questions are answered by the `answer` of the other side's reader."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def over(cls, stream: socket.socket) -> "Channel":
        """A channel over a connected stream socket, which it takes over."""
        return cls(*await asyncio.open_connection(sock=stream))

    def send(self, message: Message) -> None:
        """Send a message; one to an end that is gone is lost."""
        data = json.dumps(message).encode()
        with suppress(ConnectionError, RuntimeError):
            self._writer.write(len(data).to_bytes(LENGTH_BYTES) + data)

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Send a question and wait for its answer. Raises ChannelError, with what the other end says if it says no."""
        number = next(self._ids)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send({"ask": what, "id": number, **arguments})
        try:
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            raise Unanswered(f"no answer to {what} in {ANSWER_S:g} s") from None
        finally:
            del self._asked[number]

    def answer(self, question: Message, result: Any = None, *, error: str | None = None) -> None:
        """Answer a question that `messages` gave."""
        self.send({"answer": question["id"], "result": result, "error": error})

    async def messages(self) -> AsyncIterator[Message]:
        """What the other end sends, until it is gone; answers go to whoever asked."""
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                message = json.loads(await self._reader.readexactly(length))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if "answer" not in message:
                yield message
            elif (future := self._asked.get(message["answer"])) is not None and not future.done():
                if message["error"] is None:
                    future.set_result(message["result"])
                else:
                    future.set_exception(ChannelError(message["error"]))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ChannelError("the other end is gone"))

    def close(self) -> None:
        """Close this side."""
        self._writer.close()


def hand_over(packets: socket.socket, listener: int, number: int, connection: socket.socket) -> bool:
    """Pass an accepted connection, by its number (32 bits); False if the other end is gone or has too many waiting."""
    try:
        socket.send_fds(packets, [_PACKET.pack(listener, number)], [connection.fileno()])
    except OSError:
        return False
    return True


class Handed(NamedTuple):
    """A connection that was passed."""

    listener: int
    """The listener that it came by."""
    number: int
    """What the other end calls it."""
    connection: socket.socket | None
    """None if this process had no descriptor left for it; the connection is closed then."""


def take_over(packets: socket.socket) -> Handed | None:
    """What was passed next; None if there is nothing, or the other end is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(packets, _PACKET.size, 1)
    except OSError:
        return None
    if not data:
        return None
    listener, number = _PACKET.unpack(data)
    if not descriptors:
        return Handed(listener, number, None)
    connection = socket.socket(fileno=descriptors[0])
    connection.setblocking(False)
    return Handed(listener, number, connection)
