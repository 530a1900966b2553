"""GSUP connection of one client, usually an OsmoMSC: answers checks, and forwards other messages to and from the HLR.

Answers to checks and messages of the HLR are sent as whole frames, each kind in its own order.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from eir.interfaces.gsup import ipa
from eir.interfaces.gsup.hlr import NO_HLR, Hlr, HlrState
from eir.interfaces.gsup.ipa import CCM, GSUP, HEADER_BYTES, OSMO, Ccm, Frames, FrameTooLong, name_in
from eir.interfaces.gsup.message import (
    CHECK_IMEI,
    TYPE_AT,
    elements,
    error,
    result,
)
from eir.interfaces.gsup.stored import StoredChecks
from eir.wire.peers.link import PeerConnection

if TYPE_CHECKING:
    from eir.interfaces.gsup.server import GsupServer

AHEAD_BYTES: Final = 1 << 16
"""Maximum number of bytes that a connection may have ready before its turn; above it nothing is read."""
STRIDE: Final = 8
"""Number of frames between two checks of the time."""
NAMES_MAX: Final = 4
"""Maximum number of names that a client may give on one connection; an OsmoMSC gives one."""


class GsupConnection(PeerConnection["GsupServer"]):
    """GSUP connection from one client."""

    def __init__(self, owner: "GsupServer", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner, loop)
        self.frames = Frames(owner.limits.max_message_bytes)
        """Received bytes that were not handled yet."""
        self._read_at = 0.0
        self._partial_at: float | None = None
        """Time since when the buffer holds an incomplete frame."""
        self._heard_at = loop.time()
        self._pinged_at: float | None = None
        self._doubted = False
        """True if another connection gave the same name, so that the client has only a short time to answer a PING."""
        self._stored = StoredChecks(loop, self._answer, self._drop_hlr)
        self._hlr: Hlr | None = None
        self._spoken = False
        self.identity: bytes | None = None
        self._names = 0
        """Number of names that the client has given, one after the other."""
        self.requests = self.answers = 0

    # link.PeerConnection

    def begin(self) -> bool:
        """Let the server accept or reject this new connection, and request the client's name.

        Returns false if the connection is rejected.
        """
        if not self.owner.admit(self):
            return False
        self.owner.watch()
        self.send(ipa.ID_GET)
        return True

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes, and handle them now or in a later loop iteration."""
        self._read_at = time.perf_counter()
        self._heard_at, self._pinged_at, self._doubted = self.loop.time(), None, False
        self.frames.feed(data)
        self.request_turn()

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer and forward received messages until `enough` returns true; return whether messages remain."""
        if self.transport is None or self.transport.is_closing() or self.stalled is not None:
            return False
        out: list[bytes] = []
        on: list[bytes] = []
        before, frames, more = self.answers, 0, False
        try:
            for frame in self.frames.whole():
                self._handle(frame, out, on)
                frames += 1
                if self.over or (frames % STRIDE == 0 and enough()):
                    more = True
                    break
        except FrameTooLong:
            self._fault("message_too_long")
        if out:
            self.send(b"".join(out))
        if on:
            self._pass_on(on)
        if answered := self.answers - before:
            self.owner.answered(self, answered, time.perf_counter() - self._read_at)
        if not self.frames.unread:
            self._partial_at = None
        elif frames or self._partial_at is None:
            self._partial_at = self._heard_at
        return more and self.stalled is None

    def wants_bytes(self) -> bool:
        """Return true if the node can handle or buffer more bytes from the client."""
        return not (self.frames.unread > AHEAD_BYTES and self.owner.turns.is_waiting(self)) and (
            self._hlr is None or not self._hlr.full
        )

    def leave(self) -> None:
        """Close the connection without notice to the client, because IPA has no message that announces a close.

        Checks that wait for the HLR are answered without it.
        """
        self.over = self.over or "left"
        self._stored.answer_all()
        self.close()

    def ended(self) -> None:
        """Close this client's connection to the HLR, because the client's own connection has ended."""
        self._end_hlr()

    def pause_writing(self) -> None:
        """Stop reading from client and HLR, because the client does not read."""
        super().pause_writing()
        if self._hlr is not None:
            self._hlr.pause_reading(paused=True)

    def resume_writing(self) -> None:
        """Resume reading from client and HLR, because the client reads again."""
        super().resume_writing()
        if self._hlr is not None:
            self._hlr.pause_reading(paused=False)

    @property
    def tally(self) -> tuple[int, int]:
        """Number of checks, and number of answers, on this connection so far."""
        return self.requests, self.answers

    # Calls of the owner

    def tick(self, now: float) -> None:
        """Handle expired timers of the connections to client and HLR."""
        limits, watchdog_s = self.owner.limits, 30.0 if self.settings is None else self.settings.watchdog_s
        if (
            self._partial_at is not None
            and now - self._partial_at > limits.partial_message_timeout_s
            and not self.owner.turns.is_waiting(self)
        ):
            self._fault("partial_message")
        elif self._doubted and self._pinged_at is not None and now - self._pinged_at > limits.duplicate_probe_s:
            self._fault("duplicate_silent")
        elif self._pinged_at is not None and now - self._pinged_at > watchdog_s:
            self._fault("watchdog")
        elif self._pinged_at is None and now - self._heard_at > watchdog_s:
            self._pinged_at = now
            self.send(ipa.PING)
        if self._hlr is not None:
            self._hlr.tick(now)

    @property
    def name(self) -> str:
        """Name of the client, or empty before the client has sent it."""
        return "" if self.identity is None else name_in(self.identity)

    def doubt(self) -> None:
        """Send a PING to this client, because its connection may be dead: a newer connection has given the same client name.

        If the client has sent nothing since an earlier call, no second PING is sent.
        """
        if not self._doubted:
            self._pinged_at, self._doubted = self.loop.time(), True
            self.send(ipa.PING)

    def renew_hlr(self) -> None:
        """Close this client's connection to the HLR, and connect to the HLR in the new settings."""
        self._end_hlr()
        if self.identity is not None:
            self._reach_hlr()

    @property
    def has_hlr(self) -> bool | None:
        """True if the HLR is connected for this client; None if the client has no connection to an HLR yet."""
        return None if self._hlr is None else self._hlr.state is HlrState.READY

    def send(self, octets: bytes) -> None:
        """Send bytes to the client."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(octets)

    # hlr.Client

    def deliver(self, messages: Sequence[bytes]) -> None:
        """Send messages from the HLR to the client, except the HLR's answers to checks that the node has forwarded."""
        messages = self._stored.handle(messages)
        if messages:
            self.owner.passed(self, "in", len(messages))
            self.send(b"".join(messages))

    def went(self, count: int) -> None:
        """Count messages from the client that were sent to the HLR."""
        self.owner.passed(self, "out", count)

    def not_passed(self, messages: Sequence[bytes], reason: str) -> None:
        """Answer messages that could not be sent to the HLR, and count the messages under the label `reason`.

        A check is answered as permitted (ACK); any other request receives an error.
        """
        self.owner.not_passed(self, len(messages), reason)
        for message in messages:
            if message[2] != OSMO or message[HEADER_BYTES:TYPE_AT] != _GSUP or len(message) <= TYPE_AT:
                continue
            if message[TYPE_AT] == CHECK_IMEI:
                self._stored.settle(elements(message)[1], permitted=True)
            elif (refusal := error(message)) is not None:
                self.send(refusal)

    def hlr_is(self, state: HlrState, detail: str) -> None:
        """Handle a change of state of this client's connection to the HLR.

        If the HLR is not connected, waiting checks are answered without it.
        """
        if state is not HlrState.READY:
            self._stored.answer_all()
        self.owner.hlr_is(self, state, detail)

    # inside

    def _handle(self, frame: bytes, out: list[bytes], on: list[bytes]) -> None:
        """Handle a frame from the client: append its answer to `out`, or append the frame to `on` if it is for the HLR."""
        if not self._spoken and frame[2] != CCM:
            self._speak()
        if frame[2] == OSMO and frame[HEADER_BYTES : TYPE_AT + 1] == _CHECK:
            self._check(frame, out, on)
        elif frame[2] == CCM:
            self._ccm(frame, out)
        else:
            on.append(frame)

    def _check(self, frame: bytes, out: list[bytes], on: list[bytes]) -> None:
        self.requests += 1
        decision = self.owner.permits(self, frame)
        if decision is None:
            return
        imsi, permitted = decision
        if permitted and self.owner.store and self._reach_hlr():
            self._stored.add(imsi)
            on.append(frame)
            return
        self.answers += 1
        out.append(result(imsi, permitted=permitted))
        self.owner.decided(self, permitted=permitted)

    def _ccm(self, frame: bytes, out: list[bytes]) -> None:
        kind = frame[HEADER_BYTES] if len(frame) > HEADER_BYTES else None
        if kind == Ccm.PING:
            out.append(ipa.PONG)
        elif kind == Ccm.ID_ACK:
            out.append(ipa.ID_ACK)
        elif kind == Ccm.ID_RESP and frame != self.identity:
            self._names += 1
            if self._names > NAMES_MAX:
                self._fault("names")
                return
            self.identity = frame
            self.settings = None
            if not self.owner.named(self):
                self.leave()
                return
            self._speak()
            if self._reach_hlr() and self._hlr is not None:
                self._hlr.identified()

    def _speak(self) -> None:
        if not self._spoken:
            self._spoken = True
            self.owner.opened(self)

    def _pass_on(self, messages: list[bytes]) -> None:
        if not self._reach_hlr() or self._hlr is None:
            self.not_passed(messages, NO_HLR)
            return
        self._hlr.pass_on(messages)

    def _reach_hlr(self) -> bool:
        """Return true if an HLR is configured, and open the connection to it at the first call."""
        if self._hlr is None and self.owner.hlr is not None and not self.over:
            self._hlr = Hlr(self, self.owner.hlr)
        return self._hlr is not None

    def _drop_hlr(self) -> None:
        if self._hlr is not None:
            self._hlr.drop("it stores no IMEI")

    def _end_hlr(self) -> None:
        if self._hlr is not None:
            self._hlr.close()
            self._hlr = None
        self._stored.answer_all()

    def _answer(self, imsi: bytes, *, permitted: bool, by_hlr: bool = False) -> None:
        self.answers += 1
        self.send(result(imsi, permitted=permitted))
        self.owner.decided(self, permitted=permitted, by_hlr=by_hlr)

    def _fault(self, why: str) -> None:
        self.over = self.over or why
        self.abort()


_CHECK: Final = bytes((GSUP, CHECK_IMEI))
_GSUP: Final = bytes((GSUP,))
