"""What passes between a node's processes: calls one way and the other, accepted connections, and the memory of lists.

Two socket pairs for each process. Over the stream each side tells and asks the other by name, as plain calls with arguments;
the packets carry descriptors, two a packet at most, with what is to be said of it. Both ends are this program, forked from one
process and run by one user, so that both are pickled. Knows nothing of what they mean.
"""

import asyncio
import itertools
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from eir.errors import EirError

LENGTH_BYTES = 4
ANSWER_S = 5.0
"""How long the other end may take for an answer."""
PACKET_BYTES_MAX = 1 << 18
"""The kernel lets no longer one pass: a list's state with 255 reasons is shorter."""
DESCRIPTORS_MAX = 2

Handlers = Mapping[str, Callable[..., Any]]
"""What one side may be told or asked, by name."""


class RpcError(EirError):
    """The other end is gone, or gave no answer, or says no."""


class Unanswered(RpcError):
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


class RpcLink:
    """One side of the stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def over(cls, stream: socket.socket) -> "RpcLink":
        """A link over a connected stream socket, which it takes over."""
        return cls(*await asyncio.open_connection(sock=stream))

    def tell(self, what: str, *arguments: Any) -> None:
        """Call a handler of the other side; a call to an end that is gone is lost."""
        self._send((what, arguments, None))

    async def ask(self, what: str, *arguments: Any) -> Any:
        """Call a handler of the other side and return its result. Raises RpcError, with what the other end says if it says no."""
        number = next(self._ids)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send((what, arguments, number))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            raise Unanswered(f"no answer to {what} in {ANSWER_S:g} s") from None
        finally:
            del self._asked[number]

    async def serve(self, handlers: Handlers, *, failed: Callable[[str, Exception], None]) -> None:
        """Have the other side's calls handled, in order, until it is gone.

        A question is answered by what its handler returns, or by the text of an EirError or OSError that it raises. Any other
        exception is a fault of ours: `failed` is told, the side that asked hears of it, and the next call is handled as always.
        """
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                what, arguments, number = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - see above
                if what is None:
                    self._answered(number, *arguments)
                else:
                    result, refusal = self._handle(handlers, what, arguments, failed)
                    if number is not None:
                        self._send((None, (result, refusal), number))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(RpcError("the other end is gone"))

    def close(self) -> None:
        """Close this side."""
        self._writer.close()

    def _send(self, call: tuple[str | None, tuple[Any, ...], int | None]) -> None:
        data = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        with suppress(ConnectionError, RuntimeError):
            self._writer.write(len(data).to_bytes(LENGTH_BYTES) + data)

    def _answered(self, number: int, result: Any, refusal: str | None) -> None:
        future = self._asked.get(number)
        if future is None or future.done():
            return  # too late: nobody waits for it any more
        if refusal is None:
            future.set_result(result)
        else:
            future.set_exception(RpcError(refusal))

    @staticmethod
    def _handle(
        handlers: Handlers, what: str, arguments: tuple[Any, ...], failed: Callable[[str, Exception], None]
    ) -> tuple[Any, str | None]:
        try:
            return handlers[what](*arguments), None
        except (EirError, OSError) as e:
            return None, str(e)
        except Exception as e:  # noqa: BLE001 - the outermost loop of what the other side says
            failed(what, e)
            return None, f"{what} failed ({type(e).__name__}); the log says more (fault)"


def pass_on(packets: socket.socket, what: Any, *descriptors: int) -> None:
    """Pass something on, with descriptors. Raises BlockingIOError if too much waits for the other end, OSError if it is gone."""
    socket.send_fds(packets, [pickle.dumps(what, pickle.HIGHEST_PROTOCOL)], descriptors)


def take_over(packets: socket.socket) -> tuple[Any, list[int]] | None:
    """What was passed on next, with its descriptors; None if there is nothing, or the other end is gone.

    None of them comes if this process has not one left for each; what they stand for is closed here then.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(packets, PACKET_BYTES_MAX, DESCRIPTORS_MAX)
    except OSError:
        return None
    if not data:
        return None
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        descriptors = []
    return pickle.loads(data), descriptors  # noqa: S301 - see above
