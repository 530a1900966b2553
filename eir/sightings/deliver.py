"""Events on their way out: in order, again and again until they are taken, and never more waiting than there is room for.

One delivery after the other, so that what happened to a device arrives in the order in which it happened. A receiver that is away
costs memory up to a limit; then the oldest events go, and are counted.
"""

import asyncio
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from eir.errors import EirError, Report, place_of

WAITING_MAX = 10_000
"""Events."""
BATCH_MAX = 100
AGAIN_S, AGAIN_MAX_S = 0.5, 60.0
"""Pause after a delivery that failed; it doubles."""
POST_S = 10.0
"""Longest time of an exchange with a receiver, from the connection to the status."""
TAKES_LATER = frozenset({408, 425, 429})
"""Answers of a receiver that says no for now, beside those from 500 on."""
TIME_HEADER, SIGNATURE_HEADER, ID_HEADER = "X-EIR-Timestamp", "X-EIR-Signature", "X-EIR-Delivery"

Event: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]
"""Delivers events. Raises Undelivered, or NotTaken."""


class Undelivered(EirError):
    """The receiver is away, or says no for now."""


class NotTaken(EirError):
    """The receiver will not take these events, however often they come."""


class Delivery:
    """Events for one receiver. `counted` is told: `sent`, `queue` or `refused`, and how many events.

    `waiting_max`: events that wait at most. `again_s`: the first pause before what was not delivered comes again, and the longest one.
    """

    def __init__(
        self, to: str, send: Send, counted: Callable[[str, int], None], *, report: Report, waiting_max: int = WAITING_MAX,
        again_s: tuple[float, float] = (AGAIN_S, AGAIN_MAX_S),
    ) -> None:  # fmt: skip
        self._waiting_max, self._again_s = waiting_max, again_s
        self._to, self._send, self._counted, self._report = to, send, counted, report
        self._waiting: list[Event] = []
        self._under_way = 0
        """Number of events at the head of those that wait which are being delivered."""
        self._there = asyncio.Event()

    def put(self, events: Sequence[Event]) -> None:
        """Have events delivered."""
        self._waiting += events
        too_many = len(self._waiting) - self._waiting_max
        if too_many > 0:
            del self._waiting[:too_many]
            self._under_way = max(0, self._under_way - too_many)
            self._counted("queue", too_many)
        if self._waiting:
            self._there.set()

    def forget(self, subscribers: Collection[str]) -> None:
        """Take the names of subscribers out of events that wait."""
        for event in self._waiting:
            for name in ("subscriber", "previous"):
                if event.get(name) in subscribers:
                    event[name] = None

    @property
    def is_idle(self) -> bool:
        """Nothing waits."""
        return not self._waiting

    async def run(self) -> None:
        """Deliver, until cancelled."""
        pause_s, again_max_s = self._again_s
        while True:
            await self._there.wait()
            batch = self._waiting[:BATCH_MAX]
            self._under_way = len(batch)
            try:
                await self._send(batch)
                outcome = "sent"
            except NotTaken as e:
                self._report("events_refused", reason=self._to, level="error", detail=str(e))
                outcome = "refused"
            except Exception as e:  # noqa: BLE001 - Undelivered, or a fault: the outermost loop of this task says so, and tries again
                self._report(
                    "events_undelivered",
                    reason=self._to,
                    level="warning",
                    waiting=len(self._waiting),
                    again_in_s=pause_s,
                    detail=str(e) if isinstance(e, Undelivered) else place_of(e),
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, again_max_s)
                continue
            # Fewer than were sent, if the oldest went meanwhile: those are counted as lost.
            self._counted(outcome, self._under_way)
            del self._waiting[: self._under_way]
            pause_s = self._again_s[0]
            if not self._waiting:
                self._there.clear()


def webhook(url: str, key_file: Path, now: Callable[[], float] = time.time, post_s: float = POST_S) -> Send:
    """Posts events to a URL: `{"events": [...]}`, with the time, and an HMAC-SHA256 over time, a dot and the body in headers.

    The key is read for each delivery: it may change, and come back, while the node runs. The receiver has `post_s` for it.
    """

    async def send(events: Sequence[Event]) -> None:
        try:
            key = (await asyncio.to_thread(key_file.read_bytes)).strip()
        except OSError as e:
            raise Undelivered(f"{key_file}: {e.strerror}") from None
        body = json.dumps({"events": list(events)}).encode()
        stamp = str(int(now()))
        headers = {
            "Content-Type": "application/json", TIME_HEADER: stamp, ID_HEADER: events[0]["id"],
            SIGNATURE_HEADER: f"sha256={signature(key, stamp, body)}",
        }  # fmt: skip
        exchange = _Exchange(url, post_s)
        try:
            async with asyncio.timeout(post_s):
                await asyncio.to_thread(exchange.post, body, headers)
        except TimeoutError:
            raise Undelivered(f"{exchange.where}: no answer in {post_s:g} s") from None
        finally:
            exchange.end()

    return send


def signature(key: bytes, stamp: str, body: bytes) -> str:
    """Return the signature, which a receiver computes too and compares: hexadecimal digits."""
    return hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _Exchange:
    """One POST, in a thread, which another thread can end at any time: a receiver may drip its answer byte by byte."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self.where = f"{parts.scheme}://{parts.netloc}"
        self._target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        host, port = parts.hostname or "", parts.port
        self._link = (
            http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=timeout_s)
        )
        self._ended = False

    def post(self, body: bytes, headers: dict[str, str]) -> None:
        """Post it, and see what the receiver says. Raises Undelivered, or NotTaken."""
        try:
            self._link.connect()
            if self._ended:
                return
            self._link.request("POST", self._target, body, headers)
            status = self._link.getresponse().status
        except OSError as e:
            raise Undelivered(f"{self.where}: {str(e) or type(e).__name__}") from None
        except (
            http.client.HTTPException,
            ValueError,
        ) as e:  # without its text, in which the receiver may repeat an event
            raise Undelivered(f"{self.where}: what it sends is no answer: {type(e).__name__}") from None
        finally:
            self._link.close()
        if not 200 <= status < 300:
            later = status < 200 or status >= 500 or status in TAKES_LATER
            raise (Undelivered if later else NotTaken)(f"{self.where} answered {status}")

    def end(self) -> None:
        """Whatever it waits for, it ends."""
        self._ended = True  # before the look at the socket: it may connect in this moment
        if (connected := self._link.sock) is not None:
            with suppress(OSError):
                socket.socket.shutdown(
                    connected, socket.SHUT_RDWR
                )  # below TLS, whose state belongs to the other thread
