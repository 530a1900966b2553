"""Queue of devices that the answering process sees for the first time, with a daily limit for each peer.

A device is queued from its check until the image of the record contains it. Meanwhile the answering process sends the device to the
process that writes the record, and sends it again if the image still lacks it after AGAIN_TURNS s. Above the limit of a peer,
a device is recorded only if it is confirmed: a second peer or a second subscriber uses it. Confirmed devices have a second limit
of the same size. The module does no I/O.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from eir.lists.images.index import FirstSeenList
from eir.lists.record.first_days import Sighted, period

if TYPE_CHECKING:
    from eir.lists.log.change import Head

FRESH_MAX = 1 << 20
"""Maximum number of queued devices."""
ONCE_SLOTS = 1 << 20
"""Number of slots for devices that exceeded a limit and are not confirmed. The slot of a device depends on its key. The first device of
a day keeps its slot, so invented devices do not displace a phone's first check."""
COMPARED_PER_TURN = 2000
"""Maximum number of queued devices that are compared with a new image each second (one turn)."""
COMPARED_AT_ONCE = 25
"""Number of queued devices that are compared with the image between two pauses, in which the answering process answers checks."""
AGAIN_TURNS = 120
"""Turns (seconds) after which a device is sent again."""


class _Queued(NamedTuple):
    """A queued device."""

    peer: str
    is_confirmed: bool
    sent: int
    """Turn in which the device was sent last."""
    compared: "Head | None"
    """State of the record with which the device was compared last."""


class NewDevices:
    """Queue in the answering process: devices that must be added to the record of first sightings."""

    def __init__(self, record: FirstSeenList, per_peer_max: int) -> None:
        self._record = record
        self._per_peer_max = per_peer_max
        self._turn = 0
        self._today = record.today
        self._new_today: Counter[tuple[str, bool]] = Counter()
        """(peer, True if confirmed) → number of new devices today."""
        self._full: set[str] = set()
        """Peers at their limit of new devices on this day."""
        self._once_keys, self._once_users = array("Q"), array("q")
        """For each slot (ONCE_SLOTS): key + 1 of the device above a limit, 0 for an empty slot; hash of peer and IMSI of the device's first
        check today. Both arrays are empty until a peer exceeds its limit."""
        self._queued: dict[int, _Queued] = {}
        """Queued devices. The device that has waited longest for its next comparison is first."""
        self._to_send: dict[tuple[str, int, bool], array[int]] = {}
        """(peer, day, True if confirmed) → devices for the next call of `pop_sightings`."""
        self.unrecorded: Counter[str] = Counter()
        """Peer → number of its checks whose new device was not recorded, because `new_per_peer` or FRESH_MAX was reached."""

    def add(self, key: int, peer: str, imsi: str) -> None:
        """Queue a device that was just checked, unless it is already queued or its peer is above the limit."""
        fresh, today = self._record.fresh, self._record.today
        if today != self._today:
            self._begin_day(today)
        day = max(today, self._record.first_day_min)
        if key in fresh and fresh[key] <= day:
            return
        confirmed = False
        if self._record.on_record(key) is None:
            confirmed = self._is_full(peer)
            if len(fresh) >= FRESH_MAX or (confirmed and not self._is_confirmed(key, peer, imsi)):
                self.unrecorded[peer] += 1
                return
            self._new_today[peer, confirmed] += 1
        fresh[key] = day
        self._send(key, peer, day, confirmed)

    def _begin_day(self, today: int) -> None:
        self._today = today
        self._new_today.clear()
        self._full.clear()
        self._once_keys, self._once_users = array("Q"), array("q")

    def remove_recorded(self) -> Iterator[None]:
        """Remove from the queue all devices that the record of first sightings in memory already contains.

        The generator yields after each COMPARED_AT_ONCE devices, so that the caller can handle checks before it continues.

        Called each second. Each device is compared once with each image. A device that the image still lacks after AGAIN_TURNS calls
        is sent again.
        """
        self._turn += 1
        record = self._record
        keys = list(islice(takewhile(self._must_compare, self._queued), COMPARED_PER_TURN))
        for number, key in enumerate(keys, 1):
            if number % COMPARED_AT_ONCE == 0:
                yield
            if key not in self._queued:
                continue  # rejected in a pause
            queued = self._queued.pop(key)
            day = max(record.fresh[key], record.first_day_min)
            recorded = record.on_record(key)
            if recorded is not None and recorded[0] <= day and recorded[1] >= period(day, key):
                del record.fresh[key]
            elif self._turn - queued.sent >= AGAIN_TURNS:
                self._send(key, queued.peer, day, queued.is_confirmed)
            else:
                self._queued[key] = queued._replace(compared=record.state)

    def _must_compare(self, key: int) -> bool:
        """Return True if a queued device must be sent again, or if the record of first sightings in memory has changed."""
        queued = self._queued[key]
        return queued.compared is not self._record.state or self._turn - queued.sent >= AGAIN_TURNS

    def pop_sightings(self) -> list[Sighted]:
        """Remove and return the queued sightings that must now be sent to the process that writes the record of first sightings."""
        sightings = [Sighted(*group, keys.tobytes()) for group, keys in self._to_send.items()]
        self._to_send = {}
        return sightings

    def reject(self, peer: str, keys: Iterable[int]) -> None:
        """Remove the devices `keys` from the queue, because their peer has reached its daily limit.

        For the rest of the day, only confirmed devices of this peer can be queued.
        """
        self._full.add(peer)
        for key in keys:
            if key in self._queued:
                del self._queued[key]
                self._record.fresh.pop(key, None)

    def _send(self, key: int, peer: str, day: int, confirmed: bool) -> None:
        self._queued.pop(key, None)  # a device that is queued again moves to the end
        self._queued[key] = _Queued(peer, confirmed, self._turn, self._record.state)
        keys = self._to_send.setdefault((peer, day, confirmed), array("Q"))
        keys.append(key)

    def _is_full(self, peer: str) -> bool:
        return peer in self._full or self._new_today[peer, False] >= self._per_peer_max

    def _is_confirmed(self, key: int, peer: str, imsi: str) -> bool:
        """Return True if the device is confirmed as a real phone: its first check of the day came from another peer or IMSI.

        The first check of a device is stored for later calls, if the device's slot is empty.
        """
        if not self._once_keys:
            self._once_keys, self._once_users = (array(code, bytes(8 * ONCE_SLOTS)) for code in "Qq")
        slot, user = key % ONCE_SLOTS, hash((peer, imsi))
        if not self._once_keys[slot]:
            self._once_keys[slot], self._once_users[slot] = key + 1, user
        is_first = self._once_keys[slot] != key + 1 or self._once_users[slot] == user
        return not is_first and self._new_today[peer, True] < self._per_peer_max
