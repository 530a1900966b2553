"""Buffer of the answering process: collects answered checks for 10 ms, then sends them to the recorder.

A check calls it, so it never blocks: checks that were answered together are one list entry. Above a maximum rate, plain checks
(without an event) are dropped, and if the recorder does not receive, the oldest messages are dropped; both are counted. One
peer may use at most half of the remaining room, so a flood of one peer displaces no check of the others. Independent of
sockets and the event loop: the caller passes functions that send and that schedule.
"""

import pickle
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

FLUSH_S = 0.01
"""Seconds for which checks are collected before they are sent; short, because sending blocks the event loop."""
AGAIN_S = 0.05
"""Seconds until the next attempt after the recorder could not receive."""
MESSAGE_BYTES = 48 << 10
"""Approximate size of a message in bytes: the kernel sends a message completely or not at all, and rejects one larger than its buffer."""
PART_BYTES = 100
"""Approximate bytes of a part in a message, without its texts."""
TEXTS, NUMBER = 6, struct.Struct("=H")
"""Number of texts of each check (see eir.checks.policy.Sightings.add), and format of a number."""
PLAIN, EVENTS = b"p", b"e"
"""First byte of a message: whether its checks are events."""
HEAD = struct.Struct("!cI")
"""First byte of a message, and its number of checks."""
PEER_SHARE = 2
"""A peer may use 1/PEER_SHARE of the room at the last flush. A peer alone still reaches the whole rate, because unused room stays for the next flush."""
KINDS_MAX = 1024
"""Maximum number of cached kinds of checks while messages are decoded."""
OVER_RATE, NOT_TAKEN = "rate", "buffer"
"""Reasons for dropped checks."""


class CheckKind(NamedTuple):
    """Values that a group of checks has in common. Each field is a column of the record of checks. A field without a value is None."""

    origin_host: str | None = None
    origin_realm: str | None = None
    peer: str | None = None
    protocol: str | None = None
    status: str | None = None
    rule: str | None = None
    list: str | None = None
    observed: str | None = None
    early: bool | None = None
    access: str | None = None


class Part(NamedTuple):
    """Checks that one call of `Buffer.add` has added to the buffer."""

    kinds: Sequence[Any]
    """Kinds as eir.checks.policy.SightingKind."""
    numbers: bytes
    texts: bytes

    @property
    def checks(self) -> int:
        """Number of checks in this part of the buffer."""
        return len(self.numbers) // NUMBER.size

    def pieces(self) -> Iterator["Part"]:
        """Split this part of the buffer into pieces, each small enough for one message."""
        if len(self.texts) <= MESSAGE_BYTES or self.checks == 1:
            yield self
        else:
            half = self.checks // 2
            at = len(self.texts) - len(self.texts.split(b"\n", TEXTS * half)[-1])
            yield from Part(self.kinds, self.numbers[: NUMBER.size * half], self.texts[:at]).pieces()
            yield from Part(self.kinds, self.numbers[NUMBER.size * half :], self.texts[at:]).pieces()


class Buffer:
    """Buffer of the answering process for checks that must be recorded; it implements eir.checks.policy.Sightings.

    Args:
        send: sends a message, or returns False.
        later: schedules a call after a number of seconds.
        rate_max: maximum number of plain checks per second.
        waiting_bytes_max: maximum number of bytes of messages that wait for the recorder.
        now: wall clock.
        monotonic: monotonic clock.
    """

    def __init__(
        self, send: Callable[[bytes], bool], later: Callable[[float, Callable[[], None]], object], *, rate_max: float, waiting_bytes_max: int,
        now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._later, self._now, self._monotonic = later, now, monotonic
        self._rate_max = rate_max
        self._room = self._room_then = rate_max
        self._room_at = monotonic()
        self._share: Final[Counter[str]] = Counter()
        """Number of plain checks accepted from each peer since the last flush."""
        self._began: float | None = None
        """Time of the first check that is not sent yet; None if no flush is scheduled."""
        self._parts: dict[bytes, list[Part]] = {EVENTS: [], PLAIN: []}
        self.dropped: Counter[str] = Counter()
        """Number of dropped checks, by reason."""
        self._queue = MessageQueue(send, waiting_bytes_max, self.dropped)
        self.full: set[str] = set()
        """Peers without room, from their first dropped check until the next flush (see Sightings)."""

    def add(self, kinds: Sequence[Any], numbers: bytes, texts: bytes) -> None:
        """Add answered checks to the buffer. Above the rate limit, ordinary checks are dropped and counted, unusual checks are added."""
        self._arm(FLUSH_S)
        part = Part(kinds, numbers, texts)
        count, kind = part.checks, kinds[NUMBER.unpack_from(numbers)[0]]
        is_plain = kind.decision.is_plain and not kind.observed
        if is_plain:
            accepted = self._share[kind.peer] + count
            if count > self._room or accepted * PEER_SHARE > self._room_then:
                self.left_out(count, kind.peer)
                return
            self._share[kind.peer] = accepted
        self._room -= count
        self._parts[PLAIN if is_plain else EVENTS].append(part)

    def left_out(self, count: int, peer: str) -> None:
        """Count a peer's checks that were dropped, and drop all further ordinary checks of this peer until the next flush."""
        self._arm(FLUSH_S)
        self.dropped[OVER_RATE] += count
        self.full.add(peer)

    def flush(self) -> None:
        """Send all collected checks to the recorder. Messages that the recorder cannot receive yet stay queued."""
        began_us, self._began = round((self._began or 0.0) * 1e6), None
        self.full.clear()
        self._share.clear()
        now = self._monotonic()
        self._room = self._room_then = min(self._rate_max, self._room + (now - self._room_at) * self._rate_max)
        self._room_at = now
        for kind, parts in self._parts.items():
            for message in _messages(kind, [piece for part in parts for piece in part.pieces()], began_us):
                self._queue.append(message)
            parts.clear()
        if not self._queue.send_all():
            self._arm(AGAIN_S)

    def _arm(self, pause_s: float) -> None:
        if self._began is None:
            self._began = self._now()
            self._later(pause_s, self.flush)


class MessageQueue:
    """Queue of messages from the answering process to the recorder.

    Above `bytes_max` the oldest messages are dropped, and their checks are counted in `dropped`.
    """

    def __init__(self, send: Callable[[bytes], bool], bytes_max: int, dropped: Counter[str]) -> None:
        self._send, self._bytes_max, self._dropped = send, bytes_max, dropped
        self._messages: deque[bytes] = deque()
        self._bytes = 0

    def append(self, message: bytes) -> None:
        """Append a message for the recorder to the queue."""
        self._messages.append(message)
        self._bytes += len(message)

    def send_all(self) -> bool:
        """Send queued messages until the recorder cannot receive more; return True if the queue is then empty.

        The oldest messages above `bytes_max` are dropped.
        """
        while self._messages and self._send(self._messages[0]):
            self._bytes -= len(self._messages.popleft())
        while self._bytes > self._bytes_max:
            message = self._messages.popleft()
            self._bytes -= len(message)
            self._dropped[NOT_TAKEN] += HEAD.unpack_from(message)[1]
        return not self._messages


def _messages(kind: bytes, parts: Sequence[Part], began_us: int) -> Iterator[bytes]:
    """Encode collected checks in as few messages as possible."""
    packed: list[list[Part]] = []
    size = MESSAGE_BYTES
    for part in parts:
        if size + len(part.texts) > MESSAGE_BYTES:
            packed.append([])
            size = 0
        packed[-1].append(part)
        size += len(part.texts) + len(part.numbers) + PART_BYTES
    for each in packed:
        count = sum(part.checks for part in each)
        yield HEAD.pack(kind, count) + pickle.dumps([(began_us, *part) for part in each], pickle.HIGHEST_PROTOCOL)


def checks_of(message: bytes) -> Iterator[tuple[int, CheckKind, str, str, str, str]]:
    """Decode a message; yield the time in µs, kind, identifier, IMSI, software version and MSISDN of each check.

    Absent texts are empty.
    """
    for time_us, kinds, numbers, octets in pickle.loads(memoryview(message)[HEAD.size :]):  # noqa: S301 - from a process of ours
        texts = octets.decode("utf-8", "replace").split("\n")
        for (number,), host, realm, *texts_of_check in zip(
            NUMBER.iter_unpack(numbers), *(texts[at:-1:TEXTS] for at in range(TEXTS)), strict=True
        ):
            yield time_us, _kind_of(kinds[number], host, realm), *texts_of_check


@lru_cache(KINDS_MAX)
def _kind_of(kind: Any, host: str, realm: str) -> CheckKind:
    """Convert a SightingKind (eir.checks.policy) with host and realm to a CheckKind. Results are cached."""
    decision, protocol, peer, observed, early, access = kind
    values = host, realm, peer, protocol, decision.status, decision.rule, decision.list, observed, early, access
    return CheckKind._make(each or None for each in values)
