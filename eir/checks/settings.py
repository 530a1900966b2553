"""Settings of the policy: rules, the default answer, and the answers to requests without a valid identifier.

eir.checks.policy compiles these settings.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from eir.checks.conditions import CONDITIONS


class Status(StrEnum):
    """Equipment status of a device in lower case (TS 29.272 7.3.51, and 7.4.3.4 for UNKNOWN)."""

    WHITELISTED = "whitelisted"
    BLACKLISTED = "blacklisted"
    GREYLISTED = "greylisted"
    UNKNOWN = "unknown"
    """No Equipment-Status: the protocol's own answer for an unknown device (S13: Experimental-Result 5422)."""


class NoDevice(StrEnum):
    """Reason why a request contains no valid IMEI or MEID.

    If a check returns the reason in place of a verdict, the answer is the protocol's own error.
    """

    MISSING = "no_identity"
    MALFORMED = "bad_identity"
    NO_IMEI = "no_imei"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Policy rule, which matches if all its conditions hold.

    Each condition is a row of CONDITIONS. A condition with several values holds if one of the values does. A condition
    on a field that the request lacks (no User-Name, no Software-Version) does not hold. If the record of first
    sightings lacks the device, its first sighting is today.
    """

    name: str | None = None
    """Name of the rule for reports and metrics."""
    answer: Status
    observe: bool = False
    """True if a match is only counted and logged, and the next rules decide the answer."""
    authenticated: bool | None = None
    """True if the rule is skipped for a SIM that was not authenticated (Question.unproven). The field is no condition."""
    list: str | None = None
    """List that must contain the device, its pair with the IMSI (list of pairs), or the IMSI (list of subscribers).

    The condition does not hold before the list is loaded.
    """
    not_list: str | None = None
    """List that must not contain the device, pair or IMSI. The condition does not hold before the list is loaded."""
    imei: tuple[str, ...] = ()
    """Devices: IMEIs (of 14 or 15 digits), IMEISVs or MEIDs; only the first 14 digits count."""
    tac: tuple[str, ...] = ()
    """Type Allocation Codes: 8 digits, or 1 to 7 digits as a prefix. MEIDs with letters have no TAC."""
    device_type: tuple[str, ...] = ()
    """Device types that a list of kind device_types gives for the TAC. If no list has the TAC, the condition does not hold."""
    software_version: tuple[str, ...] = ()
    """Software-Version of the device: two digits (TS 23.003 6.2.2)."""
    imsi: tuple[str, ...] = ()
    """First digits of the IMSI: MCC, MCC and MNC, or more."""
    identifier: tuple[str, ...] = ()
    """Faults of the identifier (eir.checks.question.FAULTS)."""
    origin_host: tuple[str, ...] = ()
    """Origin-Host of the request: the complete name, compared without regard to case."""
    origin_realm: tuple[str, ...] = ()
    """Origin-Realm of the request: the complete name, compared without regard to case."""
    device_bound_elsewhere: str | None = None
    """List of pairs that binds the device only to other IMSIs: the device has a wrong SIM."""
    subscriber_bound_elsewhere: str | None = None
    """List of pairs that binds the IMSI only to other devices: the SIM is in a wrong device."""
    first_seen_within: int | None = None
    """Maximum number of days since the first sighting of the device."""
    first_seen_before: int | None = None
    """Day before which the first sighting of the device must be, as the number of days since 1970-01-01."""

    @property
    def conditions(self) -> dict[str, Any]:
        """Conditions of the rule: a map from name to value, in the order of CONDITIONS."""
        return {name: value for name in CONDITIONS if (value := getattr(self, name))}

    @property
    def has_first_seen(self) -> bool:
        """True if the rule has a condition on the first sighting of the device."""
        return bool(self.first_seen_within or self.first_seen_before)

    @property
    def tests_only_first_seen(self) -> bool:
        """True if each condition of the rule tests the first sighting of a device, or is `not_list` (device not in a list)."""
        return all(name == "not_list" or CONDITIONS[name].records for name in self.conditions)

    @property
    def registered(self) -> str | None:
        """Name of the list that the rule whitelists, or excludes from a period of grace by `not_list`; None if there is no such list."""
        if self.has_first_seen and self.not_list:
            return self.not_list
        return self.list if self.answer is Status.WHITELISTED else None

    @property
    def registers(self) -> bool:
        """True if the devices of the list `registered` need no period of grace, because the rule has no further condition."""
        return self.tests_only_first_seen if self.has_first_seen else [*self.conditions] == ["list"]

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of all lists in the conditions of the rule. Metrics and log lines show only the first list."""
        names = dict.fromkeys(value for name, value in self.conditions.items() if CONDITIONS[name].names_list)
        return tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One fixed answer to all checks. Lists and rules then have no effect. Operators set it when a list is wrong."""

    answer: Status
    until: datetime | None = None
    """End of the override, with a time zone; None: it ends when it is removed from the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Settings of the policy: rules, default answer, and override."""

    rules: tuple[Rule, ...] = ()
    default: Status = Status.WHITELISTED
    no_identity: Status | None = Status.WHITELISTED
    """Answer to a request with neither IMEI nor MEID; None: the protocol's own error (S13: 5005)."""
    bad_identity: Status | None = Status.WHITELISTED
    """Answer to a request whose IMEI or MEID is not valid (letters, 13 digits); None: the protocol's own error (S13: 5004)."""
    no_imei: Status = Status.WHITELISTED
    """Answer to a request with an identifier that is neither IMEI nor MEID (N5g-eir: a MAC address or an EUI-64)."""
    override: Override | None = None

    @property
    def only_allowing(self) -> frozenset[str]:
        """Names of lists that only allow devices: rules use these lists in `not_list`, or in `list` with the answer `whitelisted`."""
        allowing: set[str | None] = {rule.not_list for rule in self.rules}
        refusing: set[str | None] = {None}
        for rule in self.rules:
            names = allowing if rule.answer is Status.WHITELISTED else refusing
            names.add(rule.list)
        return frozenset(name for name in allowing if name is not None and name not in refusing)

    @property
    def registering(self) -> set[str]:
        """Names of lists of registered devices, which need no period of grace."""
        rules = [rule for rule in self.rules if not rule.observe]
        return {rule.registered for rule in rules if rule.registered is not None and rule.registers}


class PeerAnswers(Protocol):
    """Interface of a peer table entry. The entry can replace statuses in the answers to its peer."""

    @property
    def label(self) -> str:
        """Label of the peer."""

    @property
    def answers(self) -> tuple[tuple[str, str], ...]:
        """Pairs of statuses: the status by the policy, and the status that the peer receives instead."""


def answers_by_peer(peers: Iterable[PeerAnswers]) -> dict[str, dict[Status, Status]]:
    """Return, for each peer label, a map from a status of the policy to the status that the peer receives instead."""
    by_label = {}
    for peer in peers:
        if peer.answers:
            by_label[peer.label] = {Status(status): Status(answer) for status, answer in peer.answers}
    return by_label
