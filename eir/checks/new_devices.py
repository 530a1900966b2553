"""Queue of devices that a worker sees for the first time, with a daily limit for each peer.

A device waits here from its check until the image of the record contains it. Meanwhile the worker sends the device to
the process that writes the record, and repeats this if it takes long. Above the limit of a peer, a device is recorded
only if a second peer or a second subscriber shows it; the same limit applies to such devices. Synchronous, without I/O.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from eir.lists.images.index import FirstSeenList
from eir.lists.pages.first_days import Sighted, period

FRESH_MAX = 1 << 20
"""Devices that wait for the record at most."""
ONCE_MAX = 1 << 16
"""Devices above a limit that are remembered until somebody else shows them too; the oldest goes."""
SETTLED_PER_TURN = 2000
"""Waiting devices that are compared with the image each second."""
SETTLED_AT_ONCE = 25
"""Waiting devices that are compared with the image between two pauses, in which the worker answers checks."""
AGAIN_TURNS = 120
"""Turns after which a device is sent again."""


class NewDevices:
    """Queue in a worker: devices that must be added to the record of first sightings."""

    def __init__(self, record: FirstSeenList, per_peer_max: int) -> None:
        self._record, self._per_peer_max = record, per_peer_max
        self._turn = 0
        self._today = record.today
        self._taken: Counter[tuple[str, bool]] = Counter()
        """New devices of today by peer, those that were confirmed apart."""
        self._full: set[str] = set()
        """Peers of which all workers together have brought as many as they may today."""
        self._once: dict[int, tuple[str, str]] = {}
        """Device above a limit → peer and IMSI that showed it."""
        self._sent: dict[int, tuple[str, bool, int]] = {}
        """Device that waits → peer, whether it was confirmed, and the turn in which it was sent last."""
        self._rows: dict[tuple[str, int, bool], array[int]] = {}
        self.unrecorded: Counter[str] = Counter()
        """Checks by peer whose device should have been recorded and was not."""

    def note(self, key: int, peer: str, imsi: str) -> None:
        """Queue a device that was just checked, unless it is already queued or its peer is above the limit."""
        fresh, today = self._record.fresh, self._record.today
        if today != self._today:
            self._today = today
            for each in (self._taken, self._full, self._once):
                each.clear()
        if fresh.get(key, today + 1) <= today:
            return
        confirmed = False
        if self._record.on_record(key) is None:
            confirmed = self._is_full(peer)
            if len(fresh) >= FRESH_MAX or (confirmed and not self._is_confirmed(key, peer, imsi)):
                self.unrecorded[peer] += 1
                return
            self._taken[peer, confirmed] += 1
        fresh[key] = today
        self._send(key, peer, today, confirmed)

    def settle(self) -> Iterator[None]:
        """Remove queued devices that the record already contains; yield for a pause after SETTLED_AT_ONCE devices.

        Called each second. A device that the record still lacks is queued for `take` again after AGAIN_TURNS calls.
        """
        self._turn += 1
        record = self._record
        for number, key in enumerate(list(islice(self._sent, SETTLED_PER_TURN)), 1):
            if number % SETTLED_AT_ONCE == 0:
                yield
            if key not in self._sent:
                continue  # rejected in a pause
            peer, confirmed, sent = self._sent.pop(key)
            day, recorded = record.fresh[key], record.on_record(key)
            if recorded is not None and recorded[0] <= day and recorded[1] >= period(day, key):
                del record.fresh[key]
            elif self._turn - sent >= AGAIN_TURNS:
                self._send(key, peer, day, confirmed)
            else:
                self._sent[key] = peer, confirmed, sent  # behind the others, so that each has its turn

    def take(self) -> list[Sighted]:
        """Remove and return the sightings that must be sent now to the node's record of first sightings."""
        rows, self._rows = self._rows, {}
        return [Sighted(*of, keys.tobytes()) for of, keys in rows.items()]

    def reject(self, peer: str, keys: Iterable[int]) -> None:
        """Remove queued devices that exceed the peer's limit over all workers, and mark the peer as full for today."""
        self._full.add(peer)
        for key in keys:
            if self._sent.pop(key, None) is not None:
                self._record.fresh.pop(key, None)

    def _send(self, key: int, peer: str, day: int, confirmed: bool) -> None:
        self._sent[key] = peer, confirmed, self._turn
        self._rows.setdefault((peer, day, confirmed), array("Q")).append(key)

    def _is_full(self, peer: str) -> bool:
        return peer in self._full or self._taken[peer, False] >= self._per_peer_max

    def _is_confirmed(self, key: int, peer: str, imsi: str) -> bool:
        """Return True if an earlier check with another peer or IMSI showed the device and the limit is not reached."""
        before = self._once.setdefault(key, (peer, imsi))
        if len(self._once) > ONCE_MAX:
            del self._once[next(iter(self._once))]
        return before != (peer, imsi) and self._taken[peer, True] < self._per_peer_max
