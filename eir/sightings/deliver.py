"""Delivery of events in order, with retries and a bounded queue.

Batches are delivered one after the other, so events about a device arrive in order. If the receiver is unreachable, events are
queued up to a limit; then the oldest are dropped and counted.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from eir import curl
from eir.errors import EirError, Report, place_of

WAITING_MAX = 10_000
"""Maximum number of queued events."""
BATCH_MAX = 100
AGAIN_S, AGAIN_MAX_S = 0.5, 60.0
"""Seconds until a failed delivery is retried, which double up to a maximum."""
POST_S = 10.0
"""Maximum duration of an exchange with a receiver in seconds, from the connection to the status."""
RETRY_STATUSES = frozenset({408, 425, 429})
"""Status codes of a temporary rejection, in addition to those from 500 on."""
TIME_HEADER, SIGNATURE_HEADER, ID_HEADER = "X-EIR-Timestamp", "X-EIR-Signature", "X-EIR-Delivery"

Event: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]
"""Function that delivers events. It raises Undelivered or EventsRejected."""


class Undelivered(EirError):
    """Error for a delivery that is retried, because the receiver is unreachable or rejects it temporarily."""


class EventsRejected(EirError):
    """Error for events that the receiver rejects permanently."""


class EventSender:
    """Queue of events for one receiver, and the loop that delivers the events.

    Args:
        to: name of the receiver for logs.
        send: delivers events.
        counted: receives an outcome (`sent`, `queue` or `refused`) and a number of events.
        report: logs failures.
        waiting_max: maximum number of queued events.
        again_s: first and longest pause before a retry.
    """

    def __init__(
        self, to: str, send: Send, counted: Callable[[str, int], None], *, report: Report, waiting_max: int = WAITING_MAX,
        again_s: tuple[float, float] = (AGAIN_S, AGAIN_MAX_S),
    ) -> None:  # fmt: skip
        self._waiting_max, self._again_s = waiting_max, again_s
        self._to, self._send, self._counted, self._report = to, send, counted, report
        self.waiting: list[Event] = []
        """Queued events, the oldest first."""
        self._under_way = 0
        """Number of events at the head of the queue that are being delivered."""
        self._not_empty = asyncio.Event()

    def add(self, events: Sequence[Event]) -> None:
        """Add events to the queue. If the queue is then too long, its oldest events are dropped and counted."""
        self.waiting += events
        too_many = len(self.waiting) - self._waiting_max
        if too_many > 0:
            del self.waiting[:too_many]
            self._under_way = max(0, self._under_way - too_many)
            self._counted("queue", too_many)
        if self.waiting:
            self._not_empty.set()

    def forget(self, subscribers: Collection[str]) -> None:
        """Remove these subscribers from queued events: their IMSI and MSISDN become null."""
        for event in self.waiting:
            if event.get("previous") in subscribers:
                event["previous"] = None
            own = {name: event[name] for name in ("subscriber", "msisdn") if name in event}
            if not set(subscribers).isdisjoint(own.values()):
                event.update(dict.fromkeys(own))

    @property
    def room(self) -> int:
        """Number of further events about newly listed devices that may be queued now; 0 or negative if the queue is at least half full.

        One change of a list can cause a million such events. Half of the queue is therefore reserved for other events.
        """
        return self._waiting_max // 2 - len(self.waiting)

    @property
    def is_idle(self) -> bool:
        """True if the queue is empty."""
        return not self.waiting

    async def run(self) -> None:
        """Deliver queued events in batches, with retries, until the task is cancelled."""
        pause_s, again_max_s = self._again_s
        while True:
            await self._not_empty.wait()
            batch = self.waiting[:BATCH_MAX]
            self._under_way = len(batch)
            try:
                await self._send(batch)
                outcome = "sent"
            except EventsRejected as e:
                self._report("events_refused", reason=self._to, level="error", detail=str(e))
                outcome = "refused"
            except Exception as e:  # noqa: BLE001 - Undelivered, or a bug: this is the outermost loop of the task, so it logs and retries
                self._report(
                    "events_undelivered",
                    reason=self._to,
                    level="warning",
                    waiting=len(self.waiting),
                    again_in_s=pause_s,
                    detail=str(e) if isinstance(e, Undelivered) else place_of(e),
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, again_max_s)
                continue
            # If the oldest events were dropped meanwhile, they are already counted as lost.
            self._counted(outcome, self._under_way)
            del self.waiting[: self._under_way]
            pause_s = self._again_s[0]
            if not self.waiting:
                self._not_empty.clear()


def webhook(url: str, key_file: Path, now: Callable[[], float] = time.time, post_s: float = POST_S) -> Send:
    """Return a function that posts events to a URL as the JSON document `{"events": [...]}`.

    Headers contain the time, and an HMAC-SHA256 over the time, a dot and the body. The key file is read for each
    delivery, because it may change or be missing for a while. `post_s` is the time limit for the receiver.
    """
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"

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
        try:
            async with curl.request(url, headers=headers, body=body, method="POST", within_s=post_s) as response:
                status = response.status
        except curl.Unreached as e:
            raise Undelivered(f"{where}: {e.fault}") from None
        if not 200 <= status < 300:
            later = status >= 500 or status in RETRY_STATUSES
            raise (Undelivered if later else EventsRejected)(f"{where} answered {status}")

    return send


def signature(key: bytes, stamp: str, body: bytes) -> str:
    """Return the HMAC-SHA256 of a delivery in hexadecimal digits. The receiver computes and compares the same HMAC."""
    return hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
