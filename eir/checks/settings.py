"""Settings of the check: rules, the default answer, and the answer to requests without a device.

May import eir.checks.conditions, which says what a rule's conditions are called; compiles nothing (eir.checks.policy does).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from eir.checks.conditions import CONDITIONS


class Status(StrEnum):
    """Status of a device (TS 29.272 7.3.51, and 7.4.3.4 for UNKNOWN), in the wire's words in lower case."""

    WHITELISTED = "whitelisted"
    BLACKLISTED = "blacklisted"
    GREYLISTED = "greylisted"
    UNKNOWN = "unknown"
    """No Equipment-Status: the protocol's own answer for a device that is not known (S13: Experimental-Result 5422)."""


class NoDevice(StrEnum):
    """Reasons why a request names no device.

    As the answer to a check it stands for the protocol's own error, which the policy wants then.
    """

    MISSING = "no_identity"
    MALFORMED = "bad_identity"
    NO_IMEI = "no_imei"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: all conditions that it names have to hold (each is a row of CONDITIONS). A tuple holds if any of its values does.

    A condition on something that the request did not carry (no User-Name, no Software-Version) does not hold.
    """

    name: str | None = None
    """The rule's name for people."""
    answer: Status
    observe: bool = False
    """Report what the rule would have answered and go on with the next one."""
    authenticated: bool | None = None
    """Leave out requests about a SIM that nobody has authenticated yet (Question.unproven). No condition of its own."""
    list: str | None = None
    """This list has the device, the device with this very SIM (a list of pairs), or the SIM (one of subscribers). Does
    not hold while the list has never been loaded."""
    not_list: str | None = None
    """This list does not have what `list` asks for. Does not hold either while the list has never been loaded."""
    imei: tuple[str, ...] = ()
    """Devices by number: IMEIs (of 14 or 15 digits), IMEISVs or MEIDs; what follows the first 14 digits says nothing."""
    tac: tuple[str, ...] = ()
    """Type Allocation Codes: 8 digits name one, 1 to 7 digits all that begin with them. MEIDs with letters have none."""
    device_type: tuple[str, ...] = ()
    """Device types, as a list of such (kind device_types) has them of the device's TAC. Does not hold where no list has the TAC."""
    software_version: tuple[str, ...] = ()
    """Software-Version of the device: two digits (TS 23.003 6.2.2)."""
    imsi: tuple[str, ...] = ()
    """First digits of the IMSI: MCC, MCC and MNC, or more."""
    identifier: tuple[str, ...] = ()
    """Faults of the identifier (eir.checks.question)."""
    origin_host: tuple[str, ...] = ()
    """Origin-Host of the request, whole, in either case."""
    origin_realm: tuple[str, ...] = ()
    """Origin-Realm of the request, whole, in either case."""
    device_bound_elsewhere: str | None = None
    """This list of pairs has the device, but not with this SIM: a module locked to its SIM is used with another one."""
    subscriber_bound_elsewhere: str | None = None
    """This list of pairs has the SIM, but not with this device: a module's SIM is used in something else."""

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions that it has: name → value, in the order of CONDITIONS."""
        return {name: value for name in CONDITIONS if (value := getattr(self, name))}

    @property
    def lists(self) -> tuple[str, ...]:
        """The names of all lists that it looks into; the first one stands for the rule in metrics and logs."""
        return tuple(dict.fromkeys(value for name, value in self.conditions.items() if CONDITIONS[name].names_list))


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One answer for everything, whatever the lists say: the handle to pull when a list has gone wrong."""

    answer: Status
    until: datetime | None = None
    """Time at which it ends by itself, with a time zone; None: when it is taken out of the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The policy as it is configured."""

    rules: tuple[Rule, ...] = ()
    default: Status = Status.WHITELISTED
    no_identity: Status | None = Status.WHITELISTED
    """Answer to a request with neither IMEI nor MEID; None: the protocol's own error (S13: 5005)."""
    bad_identity: Status | None = Status.WHITELISTED
    """Answer to a request whose IMEI or MEID is not valid (letters, 13 digits); None: the protocol's own error (S13:
    5004)."""
    no_imei: Status = Status.WHITELISTED
    """Answer for a device that has another identifier than an IMEI or MEID (N5g-eir: a MAC address or an EUI-64)."""
    override: Override | None = None


class Asks(Protocol):
    """The part of a peer table entry that changes what the peer is answered."""

    @property
    def label(self) -> str:
        """The peer's label."""

    @property
    def answers(self) -> tuple[tuple[str, str], ...]:
        """Statuses, and beside each the one that is answered instead."""


def answers_of(peers: Iterable[Asks]) -> dict[str, dict[Status, Status]]:
    """Return the statuses that some peers, by label, are answered instead of others."""
    return {
        peer.label: {Status(verdict): Status(answer) for verdict, answer in peer.answers}
        for peer in peers
        if peer.answers
    }
