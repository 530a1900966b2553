"""Connection to the HLR for one GSUP client. The node sends the client's name to the HLR, and reconnects when the connection ends.

Messages of the client wait for a connection for HOLD_S; after that each request receives an error at once, so that its phone
tries again later. The same applies while the HLR does not read. While too many messages wait, the client is not read either, at
most for HOLD_S: messages for the HLR never delay a check for longer.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from eir.interfaces.gsup import ipa
from eir.interfaces.gsup.ipa import CCM, HEADER_BYTES, Ccm, Frames, FrameTooLong
from eir.wire.transport.endpoint import endpoint
from eir.wire.transport.stream import connect, fault_text

if TYPE_CHECKING:
    from eir.interfaces.gsup.link import GsupConnection

HOLD_S: Final = 1.0
"""Seconds that messages wait for a connection, or for an HLR that does not read; also the pause before the next attempt to connect."""
HOLD_BYTES: Final = 4 << 20
"""Maximum number of waiting bytes; above it the client is not read."""
DIAL_S: Final = 5.0
UNASKED_S: Final = 0.5
"""Seconds within which an HLR requests the client's name, if it wants the name. An HLR that was lost by silence must request it, or answer a PING."""
PING_S: Final = 20.0
"""Seconds between two PINGs, as in Osmocom's programs; an HLR that sends nothing until the next PING is lost."""

NO_HLR, AWAY, SLOW = "no_hlr", "hlr_away", "hlr_slow"
"""Reasons for which messages are not forwarded."""


class HlrState(Enum):
    """State of a client's connection to the HLR."""

    COMING = 0
    """Messages wait for the connection."""
    READY = 1
    AWAY = 2


class HeldMessages:
    """Queue of a client's messages for the HLR until the HLR is connected."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """True if the node must stop reading from the client, because too many queued bytes wait for the HLR."""
        return self._bytes > HOLD_BYTES

    def add(self, messages: Sequence[bytes]) -> None:
        """Append messages for the HLR to the queue."""
        self._messages += messages
        self._bytes += sum(map(len, messages))

    def clear(self) -> list[bytes]:
        """Remove all queued messages, and return them in order."""
        messages, self._messages, self._bytes = self._messages, [], 0
        return messages


class Backlog:
    """Timers for an HLR that does not read: they mark the HLR as slow after HOLD_S, and drop the connection `stalled_write_s` later.

    `drop` is called to drop the connection. `changed` is called when the node must stop reading from the client, or may
    read again.
    """

    def __init__(
        self, stalled_write_s: Callable[[], float], changed: Callable[[], None], drop: Callable[[], None]
    ) -> None:
        self._stalled_write_s, self._changed, self._drop = stalled_write_s, changed, drop
        self._timer: asyncio.TimerHandle | None = None
        self.is_slow = False

    @property
    def is_new(self) -> bool:
        """True if the HLR stopped reading less than HOLD_S ago. During this time the node does not read from the client."""
        return self._timer is not None and not self.is_slow

    def start(self) -> None:
        """Start the timers, because the HLR has stopped reading."""
        self._timer = asyncio.get_running_loop().call_later(HOLD_S, self._become_slow)
        self._changed()

    def cancel(self) -> None:
        """Cancel the running timer."""
        if self._timer is not None:
            self._timer.cancel()

    def stop(self) -> None:
        """Stop the timers, because the HLR reads again or the connection has ended."""
        self.cancel()
        self._timer, self.is_slow = None, False
        self._changed()

    def _become_slow(self) -> None:
        self.is_slow = True
        self._timer = asyncio.get_running_loop().call_later(self._stalled_write_s(), self._drop)
        self._changed()


class Hlr(asyncio.Protocol):
    """Connection to the HLR for one client. When the connection ends, the node opens a new one, until `close` is called."""

    def __init__(self, client: "GsupConnection", url: str) -> None:
        """Start the first attempt to connect."""
        self._client, self._owner, self._to = client, client.owner, endpoint(url)
        self.state = HlrState.COMING
        self._transport: asyncio.Transport | None = None
        self._held = HeldMessages()
        self._backlog = Backlog(
            lambda: self._owner.limits.stalled_write_s,
            client.set_reading,
            partial(self.drop, "it reads nothing", silent=True),
        )
        self._waiting: asyncio.TimerHandle | None = None
        """Timer of the next change without an event."""
        self._asked = False
        """True if the HLR requests the client's name, which is not known yet."""
        self._frames = Frames(0)
        self._heard_at = self._pinged_at = 0.0
        loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[str] = loop.create_future()
        self._why = ""
        self._task = loop.create_task(self._stay())

    def pass_on(self, messages: Sequence[bytes]) -> None:
        """Send a client's messages to the HLR in order; while the HLR is not connected, queue them.

        Messages that cannot be sent are returned to the client's `not_passed`.
        """
        if self.state is HlrState.READY and self._transport is not None:
            if self._backlog.is_slow:
                self._client.not_passed(messages, SLOW)
            else:
                self._send(messages)
        elif self.state is HlrState.AWAY:
            self._client.not_passed(messages, AWAY)
        else:
            self._held.add(messages)

    @property
    def full(self) -> bool:
        """True if the node must stop reading from the client, because too many messages wait for the HLR."""
        return self._backlog.is_new or self._held.is_full

    def identified(self) -> None:
        """Send the client's name to the HLR, if the HLR requested the name before the name was known."""
        if self._asked and self._transport is not None and self._client.identity is not None:
            self._asked = False
            self._transport.write(self._client.identity + ipa.ID_ACK)
            self._ready()

    def pause_reading(self, *, paused: bool) -> None:
        """Pause (`paused` true) or resume reading from the HLR, because the client has stopped or resumed reading."""
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def tick(self, now: float) -> None:
        """Send a PING if the next PING is due. If the last PING has no answer, drop the connection."""
        if self._transport is None or now - self._pinged_at < PING_S:
            return
        if self._heard_at < self._pinged_at:
            self.drop("no answer to a PING", silent=True)
        else:
            self._pinged_at = now
            self._transport.write(ipa.PING)

    def drop(self, why: str, *, silent: bool = False) -> None:
        """Close the present connection to the HLR; a new attempt to connect follows.

        With `silent`, the HLR counts as away until it sends something.
        """
        self._why = self._why or why
        if silent:
            self._owner.silent_hlrs.add(self._to)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection to the HLR for good.

        Buffered messages are still sent, for at most `stalled_write_s`.
        """
        self._task.cancel()
        self._wait(None)
        self._backlog.cancel()
        if self._transport is not None:
            self._wait(self._owner.limits.stalled_write_s, self._transport.abort)
            self._transport.close()
        self._reject_held()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send a PING on the new connection. The HLR may then request the client's name."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HOLD_BYTES)
        self._frames = Frames(self._owner.limits.max_message_bytes)
        self._heard_at = self._pinged_at = asyncio.get_running_loop().time()
        self._transport.write(ipa.PING)
        if self._to not in self._owner.silent_hlrs:
            self._wait(UNASKED_S, self._ready)

    def data_received(self, data: bytes) -> None:
        """Answer the HLR's CCM messages (PING, request for the name), and deliver all other messages to the client."""
        self._heard_at = asyncio.get_running_loop().time()
        self._owner.silent_hlrs.discard(self._to)
        self._frames.feed(data)
        messages: list[bytes] = []
        try:
            for frame in self._frames.whole():
                if frame[2] == CCM:
                    self._ccm(frame[HEADER_BYTES:])
                else:
                    messages.append(frame)
        except FrameTooLong as e:
            self.drop(str(e))
        if messages:
            self._client.deliver(messages)

    def connection_lost(self, exc: Exception | None) -> None:
        """Store the reason for the end of the connection, and plan the next attempt."""
        self._transport = None
        self._wait(None)
        if not self._gone.done():
            self._gone.set_result(
                self._why or (fault_text(exc, secure=False) if exc is not None else "it closed the connection")
            )

    def pause_writing(self) -> None:
        """Start the timers for an HLR that does not read."""
        self._backlog.start()

    def resume_writing(self) -> None:
        """Stop the timers, because the HLR reads again."""
        self._backlog.stop()

    # inside

    async def _stay(self) -> None:
        while True:
            began, self._gone, self._why = (
                asyncio.get_running_loop().time(),
                asyncio.get_running_loop().create_future(),
                "",
            )
            if self.state is not HlrState.AWAY:
                self._wait(HOLD_S, self._away, "there is no connection yet")
            try:
                async with asyncio.timeout(DIAL_S):
                    await connect(self, self._to.hosts[0], self._to.port)
                why = await self._gone
            except TimeoutError:
                why = f"no connection within {DIAL_S:g} s"
            except OSError as e:
                why = fault_text(e, secure=False)
            self._wait(None)
            self.resume_writing()
            self._asked = False
            if (
                self.state is HlrState.READY
                and asyncio.get_running_loop().time() - began > HOLD_S
                and self._to not in self._owner.silent_hlrs
            ):
                self.state = HlrState.COMING
                self._client.hlr_is(HlrState.COMING, why)
            else:
                self._away(why)
                await asyncio.sleep(HOLD_S)

    def _ccm(self, payload: bytes) -> None:
        kind = payload[0] if payload else None
        if kind == Ccm.ID_GET:
            self._asked = True
            if self.state is not HlrState.READY:
                self._wait(HOLD_S, self._away, "it requests the name of the client, which the client does not send")
            self.identified()
        elif kind == Ccm.PING and self._transport is not None:
            self._transport.write(ipa.PONG)
        elif kind == Ccm.PONG and not self._asked:
            self._ready()  # it has answered the first PING, and requests no name

    def _send(self, messages: Sequence[bytes]) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(messages))
            self._client.went(len(messages))

    def _ready(self) -> None:
        self._wait(None)
        if self.state is HlrState.READY or self._transport is None:
            return
        self.state = HlrState.READY
        if held := self._held.clear():
            self._send(held)
        self._client.hlr_is(HlrState.READY, "")
        self._client.set_reading()

    def _away(self, why: str) -> None:
        if self.state is HlrState.AWAY:
            return
        self.state = HlrState.AWAY
        self._reject_held()
        self._client.hlr_is(HlrState.AWAY, why)
        self._client.set_reading()

    def _reject_held(self) -> None:
        if held := self._held.clear():
            self._client.not_passed(held, AWAY)

    def _wait(self, seconds: float | None, then: Callable[..., None] = lambda: None, *arguments: str) -> None:
        """Cancel the scheduled call, then schedule a call of `then` after `seconds`. Without `seconds`, only cancel."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None if seconds is None else asyncio.get_running_loop().call_later(seconds, then, *arguments)
