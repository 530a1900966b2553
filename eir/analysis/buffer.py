"""A worker's side of the record: what it has just answered, for some milliseconds, and on its way to the process that writes.

Called on the path of a check, so that nothing here waits: a check costs an entry in a list, checks that were answered by columns
cost one entry together. Bounded: above a rate checks that nobody needs to be told of are left out, and when the other process takes
nothing the oldest go; both are counted. Imports numpy; knows neither socket nor loop: what sends and what calls later is handed in.
"""

import pickle
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

FLUSH_S = 0.01
"""How long checks wait to be handed over together: short, since handing over holds the loop."""
AGAIN_S = 0.05
"""Pause after the other process took no more."""
MESSAGE_BYTES = 48 << 10
"""Of one message, about: the kernel takes a message whole or not at all, and none that is larger than its buffer."""
PART_BYTES = 100
"""What a message takes for a group of checks besides their texts, about."""
TEXTS = 3
"""Of each check."""
WAITING_BYTES_MAX = 16 << 20
"""What waits for the other process."""
PLAIN, EVENTS = b"p", b"e"
"""First byte of a message: whether somebody may want to know of its checks at once."""
HEAD = struct.Struct("!cI")
"""That, and how many checks there are in it."""
OVER_RATE, NOT_TAKEN = "rate", "buffer"
"""Reasons of what is left out."""


class Buffer:
    """See eir.checks.sighting.Sightings. `send` takes a message, or says False; `later` calls after so many seconds."""

    def __init__(
        self, send: Callable[[bytes], bool], later: Callable[[float, Callable[[], None]], object], *, rate_max: float,
        now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._send, self._later, self._now, self._monotonic = send, later, now, monotonic
        self._rate_max = rate_max
        self._room, self._room_at = rate_max, monotonic()
        self._armed = False
        self._began = 0.0
        """When the first of the checks that are not handed over yet was answered."""
        self._each: list[Any] = []
        self._alike: list[tuple[Any, ...]] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.dropped: Counter[str] = Counter()
        """Checks that are not in the record, by reason."""
        self.has_room = True
        """See Sightings: not any more from the first check that is above the rate until the next flush."""

    def each(self, sightings: list[Any]) -> None:
        """Checks that were answered one by one, just now: a list of eir.checks.sighting.Sighting."""
        if not self._armed:
            self._arm(FLUSH_S)
        for part in sightings:
            count = len(part[5]) // TEXTS
            if count > self._room and _is_plain(part):
                self.left_out(count)
            else:
                self._room -= count
                self._each.append(part)

    def alike(self, decision: Any, origin: tuple[str, str, str], digits: Any, widths: tuple[int, int, int], but: list[int]) -> None:
        """Checks of one decision that were answered at once; `but`: rows of `digits` that were handed in by `each`."""
        if not self._armed:
            self._arm(FLUSH_S)
        count = len(digits) - len(but)
        if count > self._room:
            self.left_out(count)
            return
        self._room -= count
        self._alike.append((decision, origin, digits, widths, but))

    def left_out(self, count: int) -> None:
        """Plain checks for which there was no room."""
        if not self._armed:
            self._arm(FLUSH_S)
        self.dropped[OVER_RATE] += count
        self.has_room = False

    def flush(self) -> None:
        """Hand over what there is, as far as the other process takes it."""
        self._armed = False
        self.has_room = True
        now = self._monotonic()
        self._room = min(self._rate_max, self._room + (now - self._room_at) * self._rate_max)
        self._room_at = now
        began_us = round(self._began * 1e6)
        each, self._each = self._each, []
        alike, self._alike = self._alike, []
        for kind, wanted in ((EVENTS, [part for part in each if not _is_plain(part)]), (PLAIN, [part for part in each if _is_plain(part)])):
            self._flush_each(kind, wanted, began_us)
        self._flush_alike(alike, began_us)
        self._drain()

    def _flush_each(self, kind: bytes, each: Sequence[tuple[Any, ...]], began_us: int) -> None:
        parts: list[Any] = []
        size = count = 0
        for *what, texts in each:
            for octets, checks in _joined(texts):
                if size and size + len(octets) > MESSAGE_BYTES:
                    self._put(_message(kind, count, parts))
                    parts, size, count = [], 0, 0
                parts.append((began_us, *what, octets))
                size, count = size + len(octets) + PART_BYTES, count + checks
        if parts:
            self._put(_message(kind, count, parts))

    def _flush_alike(self, alike: Sequence[tuple[Any, ...]], began_us: int) -> None:
        parts: list[Any] = []
        size = count = 0
        for decision, origin, digits, widths, but in alike:
            rows = np.delete(digits, but, axis=0) if but else digits
            step = max(1, MESSAGE_BYTES // max(1, sum(widths)))
            for at in range(0, len(rows), step):
                part = rows[at : at + step]
                if size and size + part.nbytes > MESSAGE_BYTES:
                    self._put(_message(PLAIN, count, parts))
                    parts, size, count = [], 0, 0
                parts.append((began_us, decision, origin, widths, part.tobytes()))
                size, count = size + part.nbytes, count + len(part)
        if parts:
            self._put(_message(PLAIN, count, parts))

    def _arm(self, pause_s: float) -> None:
        self._armed = True
        self._began = self._now()
        self._later(pause_s, self.flush)

    def _put(self, message: bytes) -> None:
        self._waiting.append(message)
        self._waiting_bytes += len(message)

    def _drain(self) -> None:
        waiting = self._waiting
        while waiting and self._send(waiting[0]):
            self._waiting_bytes -= len(waiting.popleft())
        while self._waiting_bytes > WAITING_BYTES_MAX:
            message = waiting.popleft()
            self._waiting_bytes -= len(message)
            self.dropped[NOT_TAKEN] += HEAD.unpack_from(message)[1]
        if waiting and not self._armed:
            self._arm(AGAIN_S)


def _joined(texts: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """The texts of checks with line breaks between them, in pieces that a message has room for, each with how many checks it has."""
    octets = b"\n".join(texts)
    checks = len(texts) // TEXTS
    if len(octets) <= MESSAGE_BYTES or checks == 1:
        yield octets, checks
    else:
        half = TEXTS * (checks // 2)
        yield from _joined(texts[:half])
        yield from _joined(texts[half:])


def _is_plain(part: Sequence[Any]) -> bool:
    return part[0].is_plain and not part[4]


def _message(kind: bytes, count: int, parts: Sequence[Any]) -> bytes:
    return HEAD.pack(kind, count) + pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)
