"""One SIGTRAN connection on the event loop: what comes in goes to the M3UA association, and what that has to say goes out."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from eir.interfaces.map.settings import GatewaySettings
from eir.wire.peers import link
from eir.wire.ss7 import m3ua
from eir.wire.ss7.asp import Association, Happened, State
from eir.wire.ss7.m3ua import Kind, Transfer
from eir.wire.transport.sctp import Carried

if TYPE_CHECKING:
    from eir.interfaces.map.server import MapServer

AHEAD_BYTES = 1 << 16
"""Bytes that may wait for their turn; nothing more is read meanwhile."""
PIECE_BYTES = 1024
"""Bytes that are taken apart between two looks at the clock: the smallest messages are 8, and what is about the association costs no
less than a question."""
_DATA = Kind.DATA.to_bytes(2)


def _stream(octets: memoryview, streams: int) -> int:
    """RFC 4666 1.4.7: DATA goes over a stream of its SLS, and not over 0, which is for everything else where there are others."""
    if octets[2:4] != _DATA or streams < 2:
        return 0
    label = bytes(octets).find(b"\2\x10", m3ua.HEADER_BYTES)
    return 1 + (octets[label + 15] if label >= 0 else 0) % (streams - 1)


CARRIED = Carried(
    m3ua.PPID,
    m3ua.HEADER_BYTES,
    lambda octets, at: int.from_bytes(octets[at + 4 : at + 8]),
    unordered=False,
    stream=_stream,
)
"""The way SCTP carries M3UA."""


class Link(link.Link):
    """The connection."""

    def __init__(
        self, owner: "MapServer", loop: asyncio.AbstractEventLoop, gateway: GatewaySettings | None = None
    ) -> None:
        super().__init__(owner, loop)
        self._owner = owner
        self._waiting: deque[Transfer] = deque()
        self._unread, self._at = b"", 0
        """Bytes that have come, and how far they were handed to the association."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._read_at = 0.0
        self._requests = self._answers = 0
        self.gateway = gateway
        """The one that we connect to; None: the other end connects to us."""
        self.association: Association | None = None
        """None before the owner has accepted the connection."""
        self.served = False
        """The association has been active."""

    @property
    def is_up(self) -> bool:
        """The other end takes part: it is active, or stands by."""
        return self.association is not None and self.association.state in {State.ACTIVE, State.STANDBY}

    def paths(self) -> Mapping[str, bool]:
        """Addresses of the other end, and whether each is reached; none over TCP."""
        found: Mapping[str, bool] | None = (
            self.transport.get_extra_info("paths") if self.transport is not None else None
        )
        return found or {}

    # link.Link

    def begin(self) -> bool:
        """Ask the owner whether the connection is wanted."""
        self.association = self._owner.accept(self)
        if self.association is None:
            return False
        self.flush()
        return True

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self.association is None:
            return
        self._read_at = time.perf_counter()
        self._unread, self._at = self._unread[self._at :] + data, 0
        self.owner.turns.come(self)

    def ended(self) -> None:
        """Nothing more is answered."""
        self._forget()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.association is not None:
            self.association.lost()
            self._tell(self.association)

    def has_work(self) -> bool:
        """True if something waits."""
        association = self.association
        return bool(self._waiting) or (
            self._at < len(self._unread) and association is not None and not association.over
        )

    def wants_bytes(self) -> bool:
        """True if there is room for more."""
        return len(self._unread) - self._at < AHEAD_BYTES

    def leave(self) -> None:
        """ASPIA and ASPDN, in that order."""
        if self.association is not None:
            self.association.leave(self.loop.time())
            self.flush()

    @property
    def tally(self) -> tuple[int, int]:
        """Requests and answers so far."""
        return self._requests, self._answers

    @property
    def end(self) -> str:
        """Return why the connection is over."""
        return "" if self.association is None else self.association.over

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer what has come, until it is enough; whether there is more to do now."""
        association, waiting = self.association, self._waiting
        if association is None or self.stalled is not None:
            return False
        answered = 0
        while self.has_work():
            if not waiting:
                piece = self._unread[self._at : self._at + PIECE_BYTES]
                self._at += len(piece)
                waiting.extend(association.receive(piece, self.loop.time()))
            else:
                answer = self._owner.transferred(self, waiting.popleft())
                self._requests += 1
                if answer is not None:
                    association.send(answer)
                    answered += 1
            if enough():
                break
        if self._at == len(self._unread):
            self._unread, self._at = b"", 0  # an end that is silent now pins no memory
        self._answers += answered
        self.flush()
        if answered:
            self._owner.answered(self, answered, time.perf_counter() - self._read_at)
        return self.has_work() and self.stalled is None

    def flush(self) -> None:
        """Send what the association has to say, tell what happened, close if it is over, and set the timer."""
        association, transport = self.association, self.transport
        if association is None or transport is None:
            return
        if out := association.take():
            transport.write(b"".join(out))
        self._tell(association)
        if association.over:
            self.close()
            return
        self._set_timer(association)
        self.set_reading()

    # sctp.Receiver

    def restarted(self) -> None:
        """The other end has restarted the association: the end that connects brings it up again (RFC 4666 4.2.1)."""
        self._forget()
        if self.gateway is not None or self.association is None:
            self.abort()
            return
        self.association.lost()
        self._tell(self.association)
        again = self._owner.accept(self)
        if again is None:
            self.abort()
            return
        again.dropped = self.association.dropped  # counters only grow
        self.association = again
        self.flush()

    def path_changed(self, address: str, *, up: bool) -> None:
        """A path to the other end was lost, or is back."""
        paths = self.paths()
        self._owner.happened(self, Happened(
            "path_up" if up else "path_down", "answers" if up else "unreachable", {"address": address, "up": sum(paths.values()), "of": len(paths)}
        ))  # fmt: skip

    # inside

    def _forget(self) -> None:
        self._waiting.clear()
        self._unread, self._at = b"", 0

    def _tell(self, association: Association) -> None:
        events, association.events = association.events, []
        for each in events:
            self._owner.happened(self, each)

    def _set_timer(self, association: Association) -> None:
        due = association.deadline()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return  # a timer that comes too early finds nothing to do, and sets the right one
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_at(due, self._timer_ran_out)

    def _timer_ran_out(self) -> None:
        self._timer = None
        if self.association is not None:
            # The loop's clock is that of the iteration's start, which may lie a little before the timer's time.
            self.association.timer(max(self.loop.time(), self._timer_at))
            self.flush()
