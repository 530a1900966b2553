"""Talk between two processes of a node: calls, answers and descriptors over one pair of sockets.

Each side tells and asks the other by name, as plain calls with arguments; descriptors may go along. Both ends are this
program, run by one user, so calls are pickled. When one end is gone, the other one knows at once. Knows nothing of what
the calls mean.
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
"""Time that the other end has to answer."""
PART_BYTES = 1 << 16
"""A longer message goes in parts: the kernel takes a packet whole or not at all."""
WAITING_MAX = 1 << 14
"""Maximum number of messages that wait to be sent. If more come, the other end hangs, and the channel is given up."""
DESCRIPTORS_MAX = 3
TURN_MESSAGES = 100
"""Read before others on the loop get their turn."""
MORE, LAST = b"\1", b"\0"
"""Before each part of a message."""

Handlers = Mapping[str, Callable[..., Any]]
"""Functions that the other side may call, by name. A handler may be a coroutine function."""


class ChannelError(EirError):
    """The other end is gone, or gave no answer, or says no."""


class Unanswered(ChannelError):
    """The other end is there, and gave no answer in time."""


class HasDescriptor(Protocol):
    """Something that stands for a descriptor, and keeps it open."""

    def fileno(self) -> int:
        """The descriptor."""


class Message(NamedTuple):
    """One message, as it is pickled."""

    what: str | None
    """The name of a call; None: an answer."""
    arguments: tuple[Any, ...]
    number: int | None
    """Number of the question; None: no answer is wanted."""
    descriptors: int = 0
    """Number of descriptors that come with it."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def parts_of(message: Message) -> list[bytes]:
    """A message as packets; its descriptors go with the last one."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
    return [*(MORE + part for part in parts[:-1]), LAST + parts[-1]]


class Receiver:
    """Puts messages together from the packets that come through a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._heard = bytearray()

    def next(self) -> tuple[Message, list[int | None]] | None:
        """The next message, with its descriptors; None once the other end is gone. Raises BlockingIOError as the socket does.

        Descriptors are None if this process has no room for all of them; what they stand for is closed here then.
        """
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._end, PART_BYTES + 1, DESCRIPTORS_MAX)
            except BlockingIOError:
                raise
            except ConnectionResetError:
                continue  # the other end left something unread; what it said before is still here
            except OSError:
                return None
            if not data:
                return None
            self._heard += memoryview(data)[1:]
            if data[:1] == LAST:
                message, self._heard = Message(*pickle.loads(self._heard)), bytearray()  # noqa: S301 - see above
                if len(descriptors) == message.descriptors:
                    return message, list(descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                return message, [None] * message.descriptors


class Channel:
    """One end of a channel, on the running event loop. It reads what comes while `serve` runs."""

    def __init__(self, end: socket.socket) -> None:
        """`end`: it is the channel's from now on."""
        end.setblocking(False)
        self.answer_s = ANSWER_S
        """Seconds that the other end has to answer, unless a question says otherwise."""
        self._end = end
        self._receiver = Receiver(end)
        self._waiting: OrderedDict[object, tuple[Message, Sequence[HasDescriptor]]] = OrderedDict()
        """Messages still to be sent."""
        self._parts: deque[bytes] = deque()
        """Remaining parts of the message that is being sent."""
        self._carried: Sequence[HasDescriptor] = ()
        self._writing = False
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.gone = asyncio.Event()
        """The other end is gone, or this one is closed."""

    def tell(
        self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = (), latest: str | None = None
    ) -> None:
        """Call a handler of the other side; a call to an end that is gone is lost.

        `carrying`: the handler gets a descriptor for each of these as a further argument, or None where it has no room for them. `latest`:
        a call that waits under the same name gives way to this one.
        """
        self._put(Message(what, arguments, None, len(carrying)), carrying, latest)

    def hand(self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = ()) -> bool:
        """Call a handler of the other side if the kernel takes the call at once; return False otherwise.

        The call never waits in memory: for calls that may be lost, and that a peer can cause at will.
        """
        if self.gone.is_set() or self._waiting or self._parts:
            return False
        (part,) = parts_of(Message(what, arguments, None, len(carrying)))
        try:
            socket.send_fds(self._end, [part], [each.fileno() for each in carrying])
        except OSError:  # it is gone, or takes nothing
            return False
        return True

    async def ask(
        self, what: str, *arguments: Any, carrying: Sequence[HasDescriptor] = (), patience_s: float | None = 0.0
    ) -> Any:
        """Call a handler of the other side and return its result. Raises ChannelError, with what the other end says if it says no.

        `patience_s`: how long the answer may take, instead of `answer_s`; None: as long as the other end is there.
        """
        patience_s = patience_s if patience_s is None else patience_s or self.answer_s
        if self.gone.is_set():
            raise ChannelError("the other end is gone")
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._put(Message(what, arguments, number, len(carrying)), carrying, None)
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            raise Unanswered(f"no answer to {what} in {patience_s:g} s") from None
        finally:
            del self._asked[number]

    async def serve(self, handlers: Handlers, *, failed: Callable[[str, Exception], None]) -> None:
        """Have the other side's calls handled, in order, until it is gone.

        A question is answered by what its handler returns, or by the text of an EirError or OSError that it raises. Any other
        exception is a fault of ours: `failed` is told, the side that asked hears of it, and the next call is handled as always.
        """
        loop = asyncio.get_running_loop()
        if not self.gone.is_set():
            loop.add_reader(self._end, self._read, handlers, failed)
        try:
            await self.gone.wait()
        finally:
            self._leave()

    def close(self) -> None:
        """Close this end."""
        self._leave()
        self._end.close()

    def _leave(self) -> None:
        """Neither read nor write any more."""
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
                future.set_exception(ChannelError("the other end is gone"))

    # ---- to the other end ----

    def _put(self, message: Message, carrying: Sequence[HasDescriptor], latest: str | None) -> None:
        if self.gone.is_set():
            return
        if latest is not None:
            self._waiting.pop(latest, None)  # what comes last stands last
        if len(self._waiting) >= WAITING_MAX:
            self._leave()
            return
        self._waiting[object() if latest is None else latest] = message, carrying
        self._send()

    def _send(self) -> None:
        """Send what waits, as far as the other end takes it."""
        loop = asyncio.get_running_loop()
        while self._waiting or self._parts:
            if not self._parts:
                message, self._carried = self._waiting.popitem(last=False)[1]
                self._parts.extend(parts_of(message))
            last = len(self._parts) == 1
            try:
                socket.send_fds(self._end, [self._parts[0]], [each.fileno() for each in self._carried] if last else [])
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    loop.add_writer(self._end, self._send)
                return
            except OSError:  # the other end is gone, as reading will tell in a moment
                self._waiting.clear()
                self._parts.clear()
            else:
                self._parts.popleft()
        self._carried = ()
        if self._writing:
            self._writing = False
            loop.remove_writer(self._end)

    # ---- from the other end ----

    def _read(self, handlers: Handlers, failed: Callable[[str, Exception], None]) -> None:
        for _ in range(TURN_MESSAGES):
            try:
                heard = self._receiver.next()
            except BlockingIOError:
                return
            if heard is None:
                asyncio.get_running_loop().remove_reader(self._end)
                self.gone.set()
                return
            (what, arguments, number, _), descriptors = heard
            if what is None:
                self._answered(number, *arguments)
                continue
            result = _result(handlers, what, (*arguments, *descriptors), failed)
            if isinstance(result[0], Awaitable):
                task = asyncio.get_running_loop().create_task(self._answer_later(what, result[0], number, failed))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            elif number is not None:
                self._put(Message(None, result, number), (), None)
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
            self._put(Message(None, answer, number), (), None)

    def _answered(self, number: int | None, result: Any, refusal: str | None) -> None:
        future = self._asked.get(-1 if number is None else number)
        if future is None or future.done():
            return  # too late: nobody waits for it any more
        if refusal is None:
            future.set_result(result)
        else:
            future.set_exception(ChannelError(refusal))


def _result(
    handlers: Handlers, what: str, arguments: tuple[Any, ...], failed: Callable[[str, Exception], None]
) -> tuple[Any, str | None]:
    try:
        return handlers[what](*arguments), None
    except Exception as fault:  # noqa: BLE001 - the outermost loop of what the other side says
        return None, _refusal(what, fault, failed)


def _refusal(what: str, fault: Exception, failed: Callable[[str, Exception], None]) -> str:
    if isinstance(fault, EirError | OSError):
        return str(fault)
    failed(what, fault)
    return f"{what} failed ({type(fault).__name__}); the log says more (fault)"
