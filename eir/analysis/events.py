"""Checks that somebody may want to know of at once, as events: folded, limited, and compared with the one before where a list is watched.

An event is a check that was not simply whitelisted (blocked, tracked, unknown, overridden, or a rule under observation held), or that a
device of a watched list came with another SIM, or a SIM of one in another device. Like checks within a second are one event with
their count. No I/O and no clock: the time is an argument.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from eir.analysis.buffer import checks_of
from eir.analysis.schema import IDENTIFIER_CHARS_MAX
from eir.analysis.subscribers import Subscribers
from eir.device import device_key, key_text
from eir.errors import IdentifierError

CHECK, SIM_CHANGED, DEVICE_CHANGED = "check", "sim_changed", "device_changed"
"""Kinds of event."""
WATCHED_MAX = 100_000
"""Devices and SIMs that are remembered; past that the one that was seen longest ago is forgotten."""
HOME_DIGITS = 6


class _Group(NamedTuple):
    """Properties that similar checks have in common.

    All but the decision and the observed rules are texts, empty where absent.
    """

    identifier: str
    software_version: str
    imsi: str
    decision: Any
    origin_host: str
    origin_realm: str
    peer: str
    protocol: str
    observed: str
    early: bool


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
        self._origin, self._number = origin, 0
        self._groups: dict[_Group, list[int]] = {}
        """First time and last time in microseconds, and how many."""
        self._at = 0.0
        self.dropped = 0
        """Events above the rate."""

    def take(self, message: bytes) -> None:
        """Take a message whose checks are events."""
        for time_us, kind, host, realm, identifier, imsi, version in checks_of(message):
            decision, protocol, peer, observed, early = kind
            like = _Group(identifier, version, imsi, decision, host, realm, peer, protocol, observed, early)
            group = self._groups.setdefault(like, [time_us, time_us, 0])
            group[1] = time_us
            group[2] += 1

    def due(self, now: float, subscribers: Subscribers) -> list[dict[str, Any]]:
        """The events since the last call, in the order in which they began; `now` in seconds."""
        self._room = min(max(1.0, self._max), self._room + max(0.0, now - self._at) * self._max)
        self._at = now
        groups, self._groups = self._groups, {}
        made: list[dict[str, Any]] = []
        for group, (first_us, last_us, count) in groups.items():
            event = self._event(group, subscribers)
            changes = self._changes(event, group)
            for kind, previous in [(CHECK, None), *changes]:
                if self._room < 1:
                    self.dropped += 1
                    continue
                self._room -= 1
                self._number += 1
                more = {"previous": previous} if kind != CHECK else {}
                times = {"time": first_us / 1e6, "last": last_us / 1e6, "checks": count}
                made.append({"id": f"{self._origin}-{self._number}", "event": kind, **times, **event, **more})
        return made

    def _event(self, group: _Group, subscribers: Subscribers) -> dict[str, Any]:
        decision = group.decision
        return {
            "imei": group.identifier[:IDENTIFIER_CHARS_MAX] or None, "software_version": group.software_version or None,
            "subscriber": subscribers.one(group.imsi), "home": group.imsi[:HOME_DIGITS] or None,
            "origin_host": group.origin_host or None, "origin_realm": group.origin_realm or None, "peer": group.peer, "protocol": group.protocol,
            "status": decision.status, "rule": decision.rule, "list": decision.list, "observed": group.observed or None,
            "early": group.early or None,
        }  # fmt: skip

    def _changes(self, event: Mapping[str, Any], group: _Group) -> list[tuple[str, str | None]]:
        """Return what changed: the kind, and the value before; nothing where anybody may have named the SIM."""
        if group.early:
            return []
        lists = {group.decision.list, *(rule.partition("@")[2] for rule in group.observed.split())}
        found: list[tuple[str, str | None]] = []
        for kind in {self._watched[name] for name in lists if name in self._watched}:
            device, subscriber = _device(group.identifier), event["subscriber"]
            if device is None or subscriber is None:
                continue
            who, other = (device, subscriber) if kind == SIM_CHANGED else (subscriber, device)
            before = self.seen.pop(f"{kind} {who}", None)
            self.seen[f"{kind} {who}"] = other
            if len(self.seen) > WATCHED_MAX:
                self.seen.pop(next(iter(self.seen)))
            # Hashes under two keys (their first two digits) say nothing about each other.
            if (
                before is not None
                and before != other
                and (kind == DEVICE_CHANGED or len(other) <= 15 or before[:2] == other[:2])
            ):
                found.append((kind, before))
        return found


def without(seen: Mapping[str, str], subscribers: Collection[str]) -> dict[str, str]:
    """All of it that is not about these subscribers."""
    return {
        who: other
        for who, other in seen.items()
        if (other if who.startswith(SIM_CHANGED) else who.partition(" ")[2]) not in subscribers
    }


def _device(identifier: str) -> str | None:
    try:
        return key_text(device_key(identifier))
    except IdentifierError:
        return None
