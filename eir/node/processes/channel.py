"""Channel between two processes of a node: calls, answers and file descriptors over a pair of sockets.

Each side calls functions of the other side by name, with arguments and file descriptors. Calls are pickled, because both ends are
this program, run by the same user. If one end closes, the other end is notified at once.
"""

import asyncio
import itertools
import os
import pickle
import socket
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from eir.errors import EirError

ANSWER_S = 5.0
"""Seconds that the other end has to answer."""
PART_BYTES = 1 << 16
"""Maximum number of bytes of one packet. A longer message is split, because the kernel sends a packet only as a whole."""
WAITING_MAX = 1 << 14
"""Maximum number of queued messages. At the limit the other end counts as hung, and the channel is closed."""
DESCRIPTORS_MAX = 3
TURN_MESSAGES = 100
"""Maximum number of messages that are read in one turn of the event loop."""
MORE, LAST = b"\1", b"\0"
"""Prefix of each packet: further parts of the message follow, or the packet is the last part."""

Handlers = Mapping[str, Callable[..., Any]]
"""Functions that the other side may call, by name. A handler may be a coroutine function."""


class ChannelError(EirError):
    """Error: the other end of the channel is closed, did not answer, or rejected the call."""


class Unanswered(ChannelError):
    """Error: the other end of the channel is open, but did not answer in time."""


class HasDescriptor(Protocol):
    """Object with an open file descriptor, such as a socket."""

    def fileno(self) -> int:
        """Return the file descriptor."""


class ChannelMessage(NamedTuple):
    """Call or answer over a channel, in the form that is pickled."""

    what: str | None
    """Name of a call; None: an answer."""
    arguments: tuple[Any, ...]
    number: int | None
    """Number of the call, which its answer repeats; None: the caller expects no answer."""
    descriptors: int = 0
    """Number of file descriptors that the message carries."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Create a pair of connected sockets, the two ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def parts_of(message: ChannelMessage) -> list[bytes]:
    """Encode a channel message as packets. The sender attaches the message's file descriptors to the last packet."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    return [*(MORE + part for part in parts[:-1]), LAST + parts[-1]]


class Receiver:
    """Parser of channel messages from the packets of a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = bytearray()

    def next(self) -> tuple[ChannelMessage, list[int | None]] | None:
        """Return the next message, and the file descriptors that came with the message; None if the other end has closed.

        If this process cannot have all descriptors of the message, all are closed, and the result has None for each.

        Raises:
            BlockingIOError: if the socket has no data.
        """
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._end, PART_BYTES + 1, DESCRIPTORS_MAX)
            except BlockingIOError:
                raise
            except ConnectionResetError:
                continue  # the other end closed with unread data; its earlier messages are still readable
            except OSError:
                return None
            if not data:
                return None
            self._received += memoryview(data)[1:]
            if data[:1] == LAST:
                message = ChannelMessage(*pickle.loads(self._received))  # noqa: S301 - see the module's docstring
                self._received = bytearray()
                if len(descriptors) == message.descriptors:
                    return message, list(descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                return message, [None] * message.descriptors


class Channel:
    """One end of a channel on the running event loop. It reads while `serve` runs."""

    def __init__(self, end: socket.socket) -> None:
        """Create a channel from one end of a socket pair, and take ownership of the socket."""
        end.setblocking(False)
        self.answer_s = ANSWER_S
        """Default limit of `ask` in seconds."""
        self._end = end
        self._receiver = Receiver(end)
        self._waiting: OrderedDict[object, tuple[ChannelMessage, Sequence[HasDescriptor]]] = OrderedDict()
        """Queued messages with the objects whose descriptors they carry."""
        self._parts: deque[bytes] = deque()
        """Remaining parts of the message that is being sent."""
        self._carried: Sequence[HasDescriptor] = ()
        self._writing = False
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.gone = asyncio.Event()
        """Set when one of the ends is closed."""

    def notify(
        self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = (), latest: str | None = None
    ) -> None:
        """Send a message that calls the handler `what` in the process at the other end, without waiting for an answer.

        If the other end is closed, the call is lost. `carrying`: objects whose descriptors the handler receives as further
        arguments, or None for each if its process cannot have them. `latest`: the call replaces a queued call with this name.
        """
        self._queue(ChannelMessage(what, arguments, None, len(carrying)), carrying, latest)

    def try_notify(self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = ()) -> bool:
        """Send a message that calls the handler `what` in the process at the other end, only if the kernel accepts it at once.

        Returns True if the kernel has accepted the message.

        The message is never queued, because a peer may cause any number of such calls.
        """
        if self.gone.is_set() or self._waiting or self._parts:
            return False
        (part,) = parts_of(ChannelMessage(what, arguments, None, len(carrying)))
        try:
            socket.send_fds(self._end, [part], [each.fileno() for each in carrying])
        except OSError:  # the end is closed, or its buffer full
            return False
        return True

    async def ask(
        self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = (), patience_s: float | None = 0.0
    ) -> Any:
        """Call the handler `what` in the process at the other end, wait for its result, and return the result.

        `patience_s`: maximum seconds until the answer; 0: `answer_s`; None: no limit.

        Raises:
            ChannelError: if the other end is closed, does not answer, or rejects the call with a text.
        """
        if patience_s == 0:
            patience_s = self.answer_s
        if self.gone.is_set():
            raise ChannelError("the other process has closed the channel")
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._queue(ChannelMessage(what, arguments, number, len(carrying)), carrying, None)
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            raise Unanswered(f"no answer to {what} in {patience_s:g} s") from None
        finally:
            del self._asked[number]

    async def serve(self, handlers: Handlers, *, failed: Callable[[str, Exception], None]) -> None:
        """Handle the calls of the process at the other end in order, until that process closes the channel.

        The answer is the result of the handler, or the text of an EirError or OSError. Any other exception is a fault of this
        program: `failed` receives it, the caller receives an error, and the next call is handled.
        """
        loop = asyncio.get_running_loop()
        if not self.gone.is_set():
            loop.add_reader(self._end, self._read, handlers, failed)
        try:
            await self.gone.wait()
        finally:
            self._leave()

    def close(self) -> None:
        """Close this end of the channel."""
        self._leave()
        self._end.close()

    def _leave(self) -> None:
        """Stop reading and writing, and fail all calls that wait for an answer."""
        if self._end.fileno() >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._end)
            loop.remove_writer(self._end)
        self.gone.set()
        self._waiting.clear()
        self._parts.clear()
        for task in self._answering:
            task.cancel()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ChannelError("the other process has closed the channel"))

    # To the other end

    def _queue(self, message: ChannelMessage, carrying: Sequence[HasDescriptor], latest: str | None) -> None:
        if self.gone.is_set():
            return
        if latest is not None:
            self._waiting.pop(latest, None)  # the new call is appended
        if len(self._waiting) >= WAITING_MAX:
            self._leave()
            return
        key = object() if latest is None else latest
        self._waiting[key] = message, carrying
        self._send()

    def _send(self) -> None:
        """Send queued messages until the kernel's buffer is full."""
        loop = asyncio.get_running_loop()
        while self._waiting or self._parts:
            if not self._parts:
                _, (message, self._carried) = self._waiting.popitem(last=False)
                self._parts.extend(parts_of(message))
            is_last = len(self._parts) == 1
            descriptors = [each.fileno() for each in self._carried] if is_last else []
            try:
                socket.send_fds(self._end, [self._parts[0]], descriptors)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    loop.add_writer(self._end, self._send)
                return
            except OSError:  # the other end is closed, which the reader notices
                self._waiting.clear()
                self._parts.clear()
            else:
                self._parts.popleft()
        self._carried = ()
        if self._writing:
            self._writing = False
            loop.remove_writer(self._end)

    # From the other end

    def _read(self, handlers: Handlers, failed: Callable[[str, Exception], None]) -> None:
        for _ in range(TURN_MESSAGES):
            try:
                received = self._receiver.next()
            except BlockingIOError:
                return
            if received is None:
                asyncio.get_running_loop().remove_reader(self._end)
                self.gone.set()
                return
            (what, arguments, number, _), descriptors = received
            if what is None:
                self._answered(number, *arguments)
                continue
            result, refusal = _result(handlers, what, (*arguments, *descriptors), failed)
            if isinstance(result, Awaitable):
                answering = self._answer_later(what, result, number, failed)
                task = asyncio.get_running_loop().create_task(answering)
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            elif number is not None:
                self._queue(ChannelMessage(None, (result, refusal), number), (), None)
            if self.gone.is_set():
                return  # a handler closed this end

    async def _answer_later(
        self, what: str, result: Awaitable[Any], number: int | None, failed: Callable[[str, Exception], None]
    ) -> None:
        answer: tuple[Any, str | None]
        try:
            answer = await result, None
        except Exception as fault:  # noqa: BLE001 - as in _result
            answer = None, _refusal(what, fault, failed)
        if number is not None:
            self._queue(ChannelMessage(None, answer, number), (), None)

    def _answered(self, number: int | None, result: Any, refusal: str | None) -> None:
        future = None if number is None else self._asked.get(number)
        if future is None or future.done():
            return  # the caller has stopped waiting
        if refusal is None:
            future.set_result(result)
        else:
            future.set_exception(ChannelError(refusal))


def _result(
    handlers: Handlers, what: str, arguments: tuple[Any, ...], failed: Callable[[str, Exception], None]
) -> tuple[Any, str | None]:
    try:
        return handlers[what](*arguments), None
    except Exception as fault:  # noqa: BLE001 - outermost handler of calls from the other side
        return None, _refusal(what, fault, failed)


def _refusal(what: str, fault: Exception, failed: Callable[[str, Exception], None]) -> str:
    if isinstance(fault, EirError | OSError):
        return str(fault)
    failed(what, fault)
    return f"{what} failed ({type(fault).__name__}); see event=fault in the log"
