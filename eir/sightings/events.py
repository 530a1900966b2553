"""Events for immediate reports: unusual checks, new SIMs in watched devices, and new devices of watched SIMs.

An event is a check that was not plainly whitelisted (blocked, tracked, unknown, overridden, or a match of an observed rule). It
is also a device of a watched list with another SIM, or a SIM of a watched list in another device. Similar checks within a second
are one event with their count. Events of devices that were just listed wait for free room under the rate. No I/O and no clock: the time is an argument.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from eir.device import device_key, key_text
from eir.errors import IdentifierError
from eir.sightings.buffer import CheckKind, checks_of
from eir.sightings.schema import HOME_DIGITS, IDENTIFIER_CHARS_MAX
from eir.sightings.subscribers import Subscribers

CHECK, SIM_CHANGED, DEVICE_CHANGED, LISTED = "check", "sim_changed", "device_changed", "listed"
"""Kinds of event."""
WATCHED_MAX = 100_000
"""Maximum number of remembered devices and SIMs; above it, the one seen longest ago is removed."""


class Events:
    """Events for a receiver, such as a webhook, built from the checks in messages of the answering process.

    Args:
        per_second_max: maximum number of events per second.
        watched: kind of change by the name of a watched list.
        seen: saved `seen` of a previous process.
        origin: prefix of event ids.
    """

    def __init__(
        self, *, per_second_max: float, watched: Mapping[str, str], seen: Mapping[str, str], origin: str
    ) -> None:
        self._max, self._room = per_second_max, per_second_max
        self._watched = watched
        self.seen: dict[str, str] = dict(seen)
        """`KIND IDENTIFIER` → the partner with which it was last seen; the most recent entry is last."""
        self._origin, self._numbers = origin, count(1)
        self._groups: dict[tuple[CheckKind, str, str, str, str], list[int]] = {}
        """Kind, identifier, IMSI, software version and MSISDN of similar checks → first and last time in microseconds, and count."""
        self._at = 0.0
        self.dropped = 0
        """Number of events above the rate."""
        self._listed: deque[dict[str, Any]] = deque()
        """Events of newly listed devices."""

    def forget(self, subscribers: Collection[str]) -> None:
        """Remove these subscribers from the memory of watched devices and SIMs, and from queued events about newly listed devices."""
        self.seen = without_subscribers(self.seen, subscribers)
        for event in self._listed:
            if event["subscriber"] in subscribers:
                event["subscriber"] = None

    @property
    def has_listed(self) -> bool:
        """True while events about newly listed devices are queued."""
        return bool(self._listed)

    def add_listed(self, events: Iterable[dict[str, Any]]) -> None:
        """Queue events about newly listed devices. Each event has an id already."""
        self._listed += events

    def clear_dropped(self) -> int:
        """Return the number of dropped events and reset it to 0."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def add(self, message: bytes) -> None:
        """Add the checks of a message to groups of similar checks. Each group becomes one event."""
        for time_us, kind, identifier, imsi, version, msisdn in checks_of(message):
            group = self._groups.setdefault((kind, identifier, imsi, version, msisdn), [time_us, time_us, 0])
            group[1] = time_us
            group[2] += 1

    def due(self, now: float, subscribers: Subscribers, listed_max: int = 0) -> list[dict[str, Any]]:
        """Return the events to send now: first the events of groups of similar checks, then events about newly listed devices.

        `now` in seconds. `listed_max`: maximum number of events of newly listed devices. They wait while there is no room
        under the maximum rate. Other events above the rate are dropped and counted.
        """
        self._room = min(max(1.0, self._max), self._room + max(0.0, now - self._at) * self._max)
        self._at = now
        groups, self._groups = self._groups, {}
        new_events: list[dict[str, Any]] = []
        for (kind, identifier, imsi, version, msisdn), (first_us, last_us, checks) in groups.items():
            subscriber = subscribers.one(imsi)
            event = {
                "time": first_us / 1e6, "last": last_us / 1e6, "checks": checks, "imei": identifier[:IDENTIFIER_CHARS_MAX] or None,
                "software_version": version or None, "subscriber": subscriber, "home": imsi[:HOME_DIGITS] or None, "msisdn": subscribers.one(msisdn),
                **kind._asdict(),
            }  # fmt: skip
            new_events.append({"event": CHECK, **event})
            for change, previous in self._changes(kind, identifier, subscriber):
                new_events.append({"event": change, **event, "previous": previous})
        sent = new_events[: int(self._room)]
        self._room -= len(sent)
        self.dropped += len(new_events) - len(sent)
        listed_count = min(int(self._room), len(self._listed), max(0, listed_max))
        self._room -= listed_count
        listed = [self._listed.popleft() for _ in range(listed_count)]
        return [*({"id": f"{self._origin}-{next(self._numbers)}", **event} for event in sent), *listed]

    def _changes(self, kind: CheckKind, identifier: str, subscriber: str | None) -> Iterator[tuple[str, str]]:
        """Yield the changes of a check: a watched device has another SIM, or a watched SIM is in another device.

        Each result is the kind of change, and the previous SIM or the previous device.
        A check whose SIM was not authenticated yields no change.
        """
        lists = {kind.list, *(rule.partition("@")[2] for rule in (kind.observed or "").split())}
        changes = {change for name, change in self._watched.items() if name in lists}
        if kind.early or subscriber is None or not changes:
            return
        try:
            device = key_text(device_key(identifier))
        except IdentifierError:
            return
        for change in changes:
            who, partner = (device, subscriber) if change == SIM_CHANGED else (subscriber, device)
            before = self.seen.pop(f"{change} {who}", None)
            self.seen[f"{change} {who}"] = partner
            if len(self.seen) > WATCHED_MAX:
                self.seen.pop(next(iter(self.seen)))
            # Hashes with different keys (their first two digits) cannot be compared.
            if (
                before is not None
                and before != partner
                and (change == DEVICE_CHANGED or len(partner) <= 15 or before[:2] == partner[:2])
            ):
                yield change, before


def without_subscribers(seen: Mapping[str, str], subscribers: Collection[str]) -> dict[str, str]:
    """Return a copy of the pairs of device and SIM, without pairs that contain one of these subscribers."""
    return {
        who: partner
        for who, partner in seen.items()
        if (partner if who.startswith(SIM_CHANGED) else who.partition(" ")[2]) not in subscribers
    }
