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

    As the result of a check, it stands for the protocol's own error.
    """

    MISSING = "no_identity"
    MALFORMED = "bad_identity"
    NO_IMEI = "no_imei"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Policy rule, which matches if all its conditions hold.

    Each condition is a row of CONDITIONS. A tuple of values holds if one of its values does. A condition on a value
    that the request lacks (no User-Name, no Software-Version) does not hold.
    """

    name: str | None = None
    """Name of the rule for reports and metrics."""
    answer: Status
    observe: bool = False
    """Report the answer of the rule and continue with the next rule."""
    authenticated: bool | None = None
    """Skip the rule if the SIM was not authenticated (Question.unproven); this is not a condition of its own."""
    list: str | None = None
    """List that has the device, the device with this IMSI (list of pairs), or the IMSI (list of subscribers). The condition does not hold before the list is loaded."""
    not_list: str | None = None
    """List that does not have the entry, as for `list`. The condition does not hold before the list is loaded."""
    imei: tuple[str, ...] = ()
    """Devices: IMEIs (of 14 or 15 digits), IMEISVs or MEIDs; only the first 14 digits count."""
    tac: tuple[str, ...] = ()
    """Type Allocation Codes: 8 digits, or 1 to 7 digits as a prefix. MEIDs with letters have none."""
    device_type: tuple[str, ...] = ()
    """Device types of the device's TAC in a list of kind device_types. The condition does not hold if no list has the TAC."""
    software_version: tuple[str, ...] = ()
    """Software-Version of the device: two digits (TS 23.003 6.2.2)."""
    imsi: tuple[str, ...] = ()
    """First digits of the IMSI: MCC, MCC and MNC, or more."""
    identifier: tuple[str, ...] = ()
    """Faults of the identifier (eir.checks.question)."""
    origin_host: tuple[str, ...] = ()
    """Origin-Host of the request, complete, without regard to case."""
    origin_realm: tuple[str, ...] = ()
    """Origin-Realm of the request, complete, without regard to case."""
    device_bound_elsewhere: str | None = None
    """List of pairs that has the device, but not with this IMSI: a module locked to its SIM is used with another one."""
    subscriber_bound_elsewhere: str | None = None
    """List of pairs that has the IMSI, but not with this device: a module's SIM is used in another device."""
    first_seen_within: int | None = None
    """Maximum number of days since the first sighting of the device. A device without one is seen now."""
    first_seen_before: int | None = None
    """Day (since 1970) before which the first sighting of the device was. A device without one is seen now."""

    @property
    def conditions(self) -> dict[str, Any]:
        """Conditions of the rule: a map from name to value, in the order of CONDITIONS."""
        return {name: value for name in CONDITIONS if (value := getattr(self, name))}

    @property
    def asks_first_seen(self) -> bool:
        """True if the rule has a condition on the first sighting of the device."""
        return bool(self.first_seen_within or self.first_seen_before)

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of all lists of the rule. In metrics and logs the first name stands for the rule."""
        return tuple(dict.fromkeys(value for name, value in self.conditions.items() if CONDITIONS[name].names_list))


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Override: the same answer to every check, regardless of lists and rules, for use when a list is wrong."""

    answer: Status
    until: datetime | None = None
    """Time with a zone at which it ends; None: when it is removed from the configuration."""


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
    """Answer for a device with another identifier than an IMEI or MEID (N5g-eir: a MAC address or an EUI-64)."""
    override: Override | None = None

    @property
    def only_allowing(self) -> frozenset[str]:
        """Names of the lists that the rules use only to allow devices."""
        allowing = {name for rule in self.rules for name in (rule.not_list, *_listed_if(rule, allows=True)) if name}
        return frozenset(allowing.difference(*(_listed_if(rule, allows=False) for rule in self.rules)))

    @property
    def registering(self) -> set[str]:
        """Names of lists whose devices need no period of grace.

        A rule whitelists these lists, or a rule with a period excludes them.
        """
        rules = [rule for rule in self.rules if not rule.observe]
        excluded = {rule.not_list for rule in rules if rule.asks_first_seen}
        names = excluded | {rule.list for rule in rules if rule.answer is Status.WHITELISTED}
        return {name for name in names if name is not None}


def _listed_if(rule: Rule, *, allows: bool) -> set[str]:
    """Return the list of a rule if the rule's answer allows the listed devices (or, for `allows` False, does not)."""
    return {rule.list} if rule.list and (rule.answer is Status.WHITELISTED) is allows else set()


class Asks(Protocol):
    """Interface of a peer table entry that replaces statuses in the answers to its peer."""

    @property
    def label(self) -> str:
        """Label of the peer."""

    @property
    def answers(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a status of the policy and the status that the peer receives instead."""


def answers_of(peers: Iterable[Asks]) -> dict[str, dict[Status, Status]]:
    """Return, for each peer label, a map from a status of the policy to the status that the peer receives instead."""
    return {
        peer.label: {Status(verdict): Status(answer) for verdict, answer in peer.answers}
        for peer in peers
        if peer.answers
    }
