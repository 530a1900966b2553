"""A worker's side of the record: what it has just answered, for some milliseconds, and on its way to the process that writes.

Called on the path of a check, so that nothing here waits: checks that were answered together cost one entry in a list. Bounded: above a
rate checks that nobody needs to be told of are left out, and when the other process takes nothing the oldest go; both are counted. One
peer takes half of the room that is left at most, so that a flood of one leaves out no check of the others. Knows neither socket nor loop:
what sends and what calls later is handed in.
"""

import pickle
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

FLUSH_S = 0.01
"""Time that checks wait to be handed over together: short, since handing over holds the loop."""
AGAIN_S = 0.05
"""Pause after the other process took no more."""
MESSAGE_BYTES = 48 << 10
"""Size of one message, about: the kernel takes a message whole or not at all, and refuses one that is larger than its
buffer."""
PART_BYTES = 100
"""Size in a message of checks that were handed in together, besides their texts, about."""
TEXTS, NUMBER = 5, struct.Struct("=H")
"""Number of texts of each check (see eir.checks.policy.Sightings.add), and form of a number."""
PLAIN, EVENTS = b"p", b"e"
"""First byte of a message: whether somebody may want to know of its checks at once."""
HEAD = struct.Struct("!cI")
"""First byte of a message, and its number of checks."""
PEER_SHARE = 2
"""A peer takes one part in so many of the room at the last flush: alone it comes to the whole rate, since what it leaves is room at the next."""
KINDS_MAX = 1024
"""Kinds of checks that are remembered while messages are read."""
OVER_RATE, NOT_TAKEN = "rate", "buffer"
"""Reasons of what is left out."""


class Kind(NamedTuple):
    """Properties that checks may have in common, by the columns of the record; None where there is nothing."""

    origin_host: str | None = None
    origin_realm: str | None = None
    peer: str | None = None
    protocol: str | None = None
    status: str | None = None
    rule: str | None = None
    list: str | None = None
    observed: str | None = None
    early: bool | None = None


class Part(NamedTuple):
    """Checks that were handed in together."""

    kinds: Sequence[Any]
    """eir.checks.policy.SightingKind"""
    numbers: bytes
    texts: bytes

    @property
    def checks(self) -> int:
        """Return the number of checks."""
        return len(self.numbers) // NUMBER.size

    def pieces(self) -> Iterator["Part"]:
        """The same in pieces that a message has room for."""
        if len(self.texts) <= MESSAGE_BYTES or self.checks == 1:
            yield self
        else:
            half = self.checks // 2
            at = len(self.texts) - len(self.texts.split(b"\n", TEXTS * half)[-1])
            yield from Part(self.kinds, self.numbers[: NUMBER.size * half], self.texts[:at]).pieces()
            yield from Part(self.kinds, self.numbers[NUMBER.size * half :], self.texts[at:]).pieces()


class Buffer:
    """See eir.checks.policy.Sightings. `send` takes a message, or says False; `later` calls after so many seconds.

    `waiting_bytes_max`: most bytes that wait for the other process.
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
        """Peer → plain checks that were taken of it since the last flush."""
        self._began: float | None = None
        """Time at which the first of the checks was answered that are not handed over yet; None: no flush is due."""
        self._parts: dict[bytes, list[Part]] = {EVENTS: [], PLAIN: []}
        self.dropped: Counter[str] = Counter()
        """Checks that are not in the record, by reason."""
        self._queue = MessageQueue(send, waiting_bytes_max, self.dropped)
        self.full: set[str] = set()
        """See Sightings: a peer is in it from its first check for which there is no room until the next flush."""

    def add(self, kinds: Sequence[Any], numbers: bytes, texts: bytes) -> None:
        """Checks that were answered just now; see eir.checks.policy.Sightings."""
        self._arm(FLUSH_S)
        part = Part(kinds, numbers, texts)
        count, kind = part.checks, kinds[NUMBER.unpack_from(numbers)[0]]
        is_plain = kind.decision.is_plain and not kind.observed
        if is_plain:
            taken = self._share[kind.peer] + count
            if count > self._room or taken * PEER_SHARE > self._room_then:
                self.left_out(count, kind.peer)
                return
            self._share[kind.peer] = taken
        self._room -= count
        self._parts[PLAIN if is_plain else EVENTS].append(part)

    def left_out(self, count: int, peer: str) -> None:
        """Plain checks of a peer for which there was no room."""
        self._arm(FLUSH_S)
        self.dropped[OVER_RATE] += count
        self.full.add(peer)

    def flush(self) -> None:
        """Hand over what there is, as far as the other process takes it."""
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
    """Messages on their way to the process that writes the record.

    Above `bytes_max` the oldest messages are dropped, and their checks are counted in `dropped`.
    """

    def __init__(self, send: Callable[[bytes], bool], bytes_max: int, dropped: Counter[str]) -> None:
        self._send, self._bytes_max, self._dropped = send, bytes_max, dropped
        self._messages: deque[bytes] = deque()
        self._bytes = 0

    def append(self, message: bytes) -> None:
        """Queue a message."""
        self._messages.append(message)
        self._bytes += len(message)

    def send_all(self) -> bool:
        """Send messages until the other process takes no more; returns True if none is left."""
        while self._messages and self._send(self._messages[0]):
            self._bytes -= len(self._messages.popleft())
        while self._bytes > self._bytes_max:
            message = self._messages.popleft()
            self._bytes -= len(message)
            self._dropped[NOT_TAKEN] += HEAD.unpack_from(message)[1]
        return not self._messages


def _messages(kind: bytes, parts: Sequence[Part], began_us: int) -> Iterator[bytes]:
    """Parts, each of which a message has room for, in as few messages as they fit into."""
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


def checks_of(message: bytes) -> Iterator[tuple[int, Kind, str, str, str]]:
    """The checks of a message: time in microseconds, kind, and identifier, IMSI and software version, empty where absent."""
    for time_us, kinds, numbers, octets in pickle.loads(memoryview(message)[HEAD.size :]):  # noqa: S301 - from a process of ours
        texts = octets.decode("utf-8", "replace").split("\n")
        for (number,), host, realm, *said in zip(
            NUMBER.iter_unpack(numbers), *(texts[at:-1:TEXTS] for at in range(TEXTS)), strict=True
        ):
            yield time_us, _kind_of(kinds[number], host, realm), *said


@lru_cache(KINDS_MAX)
def _kind_of(kind: Any, host: str, realm: str) -> Kind:
    """The same for equal ones, which are many: `kind` is eir.checks.policy.SightingKind."""
    decision, protocol, peer, observed, early = kind
    said = host, realm, peer, protocol, decision.status, decision.rule, decision.list, observed, early
    return Kind._make(each or None for each in said)
