"""Checks that somebody may want to know of at once, as events: folded, limited, and compared with the one before where a list is watched.

An event is a check that was not simply whitelisted (blocked, tracked, unknown, overridden, or a rule under observation held), or that a
device of a watched list came with another SIM, or a SIM of one in another device. Like checks within a second are one event with
their count. No I/O and no clock: the time is an argument.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import count
from typing import Any

from eir.device import device_key, key_text
from eir.errors import IdentifierError
from eir.sightings.buffer import Kind, checks_of
from eir.sightings.schema import HOME_DIGITS, IDENTIFIER_CHARS_MAX
from eir.sightings.subscribers import Subscribers

CHECK, SIM_CHANGED, DEVICE_CHANGED = "check", "sim_changed", "device_changed"
"""Kinds of event."""
WATCHED_MAX = 100_000
"""Devices and SIMs that are remembered; past that the one that was seen longest ago is forgotten."""


class Events:
    """Takes messages of workers, gives events.

    `watched`: kind of change by the name of a watched list. `seen`: what was last seen, as `seen` gave it out before.
    """

    def __init__(
        self, *, per_second_max: float, watched: Mapping[str, str], seen: Mapping[str, str], origin: str
    ) -> None:
        self._max, self._room = per_second_max, per_second_max
        self._watched = watched
        self.seen: dict[str, str] = dict(seen)
        """`KIND IDENTIFIER` → what it was last seen with; the one seen last stands last."""
        self._origin, self._numbers = origin, count(1)
        self._groups: dict[tuple[Kind, str, str, str], list[int]] = {}
        """Kind, identifier, IMSI and software version of similar checks → first time and last time in microseconds, and how many."""
        self._at = 0.0
        self.dropped = 0
        """Events above the rate."""

    def take(self, message: bytes) -> None:
        """Take a message whose checks are events."""
        for time_us, kind, identifier, imsi, version in checks_of(message):
            group = self._groups.setdefault((kind, identifier, imsi, version), [time_us, time_us, 0])
            group[1] = time_us
            group[2] += 1

    def due(self, now: float, subscribers: Subscribers) -> list[dict[str, Any]]:
        """The events since the last call, in the order in which they began; `now` in seconds."""
        self._room = min(max(1.0, self._max), self._room + max(0.0, now - self._at) * self._max)
        self._at = now
        groups, self._groups = self._groups, {}
        made: list[dict[str, Any]] = []
        for (kind, identifier, imsi, version), (first_us, last_us, checks) in groups.items():
            subscriber = subscribers.one(imsi)
            event = {
                "time": first_us / 1e6, "last": last_us / 1e6, "checks": checks, "imei": identifier[:IDENTIFIER_CHARS_MAX] or None,
                "software_version": version or None, "subscriber": subscriber, "home": imsi[:HOME_DIGITS] or None, **kind._asdict(),
            }  # fmt: skip
            made.append({"event": CHECK, **event})
            for change, previous in self._changes(kind, identifier, subscriber):
                made.append({"event": change, **event, "previous": previous})
        sent = made[: int(self._room)]
        self._room -= len(sent)
        self.dropped += len(made) - len(sent)
        return [{"id": f"{self._origin}-{next(self._numbers)}", **event} for event in sent]

    def _changes(self, kind: Kind, identifier: str, subscriber: str | None) -> Iterator[tuple[str, str]]:
        """Give what changed: the kind of event, and the value before; nothing where anybody may have named the SIM."""
        lists = {kind.list, *(rule.partition("@")[2] for rule in (kind.observed or "").split())}
        changes = {change for name, change in self._watched.items() if name in lists}
        if kind.early or subscriber is None or not changes:
            return
        try:
            device = key_text(device_key(identifier))
        except IdentifierError:
            return
        for change in changes:
            who, other = (device, subscriber) if change == SIM_CHANGED else (subscriber, device)
            before = self.seen.pop(f"{change} {who}", None)
            self.seen[f"{change} {who}"] = other
            if len(self.seen) > WATCHED_MAX:
                self.seen.pop(next(iter(self.seen)))
            # Hashes under two keys (their first two digits) say nothing about each other.
            if (
                before is not None
                and before != other
                and (change == DEVICE_CHANGED or len(other) <= 15 or before[:2] == other[:2])
            ):
                yield change, before


def without(seen: Mapping[str, str], subscribers: Collection[str]) -> dict[str, str]:
    """All of it that is not about these subscribers."""
    return {
        who: other
        for who, other in seen.items()
        if (other if who.startswith(SIM_CHANGED) else who.partition(" ")[2]) not in subscribers
    }
