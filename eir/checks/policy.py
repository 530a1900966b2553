"""Policy: an ordered list of rules, compiled once into the one function that answers every check.

The first rule whose conditions all hold gives the status, `default` where none does. May import eir.checks.conditions and
eir.lists.index; knows neither the wire nor the configuration file, and neither the clock nor a log: time is an argument, and
what observed rules would have answered goes to a callable that it is handed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from eir.checks.conditions import CONDITIONS, Holds
from eir.lists.index import DeviceList, Index
from eir.lists.settings import SUBSCRIBERS


class Status(StrEnum):
    """What a device is (TS 29.272 7.3.51, and 7.4.3.4 for UNKNOWN), by the wire's words in lower case."""

    WHITELISTED = "whitelisted"
    BLACKLISTED = "blacklisted"
    GREYLISTED = "greylisted"
    UNKNOWN = "unknown"
    """No Equipment-Status: the protocol's own answer for a device that is not known (S13: Experimental-Result 5422)."""


class NoDevice(StrEnum):
    """Why a request names no device. As the answer to a check it stands for the protocol's own error, which the policy wants then."""

    MISSING = "no_identity"
    MALFORMED = "bad_identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: all conditions that it names have to hold (each is a row of CONDITIONS). A tuple holds if any of its values does.

    A condition on something that the request did not carry (no User-Name, no Software-Version) does not hold.
    """

    name: str | None = None
    """What people call the rule."""
    answer: Status
    observe: bool = False
    """Report what the rule would have answered and go on with the next one."""
    list: str | None = None
    """This list has the device, the device with this very SIM (a list of pairs), or the SIM (one of subscribers). Does
    not hold while the list has never been loaded."""
    not_list: str | None = None
    """This list does not have what `list` asks for. Does not hold either while the list has never been loaded."""
    tac: tuple[str, ...] = ()
    """Type Allocation Codes: 8 digits name one, 1 to 7 digits all that begin with them. MEIDs with letters have none."""
    software_version: tuple[str, ...] = ()
    """Software-Version of the device: two digits (TS 23.003 6.2.2)."""
    imsi: tuple[str, ...] = ()
    """First digits of the IMSI: MCC, MCC and MNC, or more."""
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
    """When it ends by itself, with a time zone; None: when it is taken out of the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """The policy as it is configured."""

    rules: tuple[Rule, ...] = ()
    default: Status = Status.WHITELISTED
    no_identity: Status | None = Status.WHITELISTED
    """For a request with neither IMEI nor MEID; None: the protocol's own error (S13: 5005)."""
    bad_identity: Status | None = Status.WHITELISTED
    """For a request whose IMEI or MEID is not valid (letters, 13 digits); None: the protocol's own error (S13: 5004)."""
    override: Override | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a check is answered, and why. Made at compile time only: equal means identical, so it is a cheap dict key."""

    status: Status
    rule: int | str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None = None
    """The first list that the rule looks into; None if it looks into none."""
    name: str | None = None
    """What people call the rule."""
    label: str = field(init=False)
    """The rule as metrics and the log show it: by its name if it has one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.name or str(self.rule))


Decide = Callable[[int, str, str, str, str], Verdict]
"""(device key, IMSI, Software-Version, Origin-Host, Origin-Realm) → Verdict; texts are empty where absent."""

Observed = Callable[[Verdict], None]
"""Told what an observed rule would have answered."""


@dataclass(frozen=True, slots=True)
class Unlisted:
    """What many checks have in common: their device is in none of the lists that any rule needs it to be in."""

    lists: tuple[DeviceList, ...]
    verdict: Verdict
    """Of every check whose device is in none of these lists."""

    def some_list_has(self, key: int) -> bool:
        """False if the verdict on this device (key of eir.device) is this one."""
        for entries in self.lists:  # noqa: SIM110  # as in _all_of
            if entries.holds(key):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy in force."""

    decide: Decide
    unidentified: Mapping[NoDevice, Verdict | NoDevice]
    """What a request that names no device gets: a verdict, or the protocol's own error."""
    unlisted: Unlisted | None = None
    """None if some rule does not need the device to be in a list."""
    override_until: datetime | None = None
    """When an override in force ends, so that the policy has to be compiled again; None if there is no such moment."""
    overridden: bool = False
    """An override is in force."""


def compile_policy(settings: PolicySettings, index: Index, *, observed: Observed, now: datetime) -> Policy:
    """The policy that `settings` describe, over the lists in `index`.

    An override applies if it has no end or `now` is before it; the caller compiles the policy again at `override_until`.
    Raises KeyError if a rule names a list that the index does not have, or has as one of another kind than the condition
    needs: the configuration was checked against its own lists, so that is a fault of the caller.
    """
    override = settings.override
    if override is not None and (override.until is None or now < override.until):
        verdict = Verdict(override.answer, "override")
        # Requests without a usable identifier included: an override is pulled so that no phone is turned away.
        unidentified = dict.fromkeys(NoDevice, verdict)
        return Policy(lambda *_: verdict, unidentified, Unlisted((), verdict), override_until=override.until, overridden=True)
    default = Verdict(settings.default, "default")
    statuses = {NoDevice.MISSING: settings.no_identity, NoDevice.MALFORMED: settings.bad_identity}
    steps = []
    for number, rule in enumerate(settings.rules, 1):
        holds, verdict = _all_of(rule, index), Verdict(rule.answer, number, next(iter(rule.lists), None), rule.name)
        steps.append((_observed(holds, verdict, observed) if rule.observe else holds, verdict))
    needed = dict.fromkeys(_needed_list(rule, index) for rule in settings.rules)
    return Policy(
        _first_that_holds(tuple(steps), default),
        {why: why if status is None else Verdict(status, why.value) for why, status in statuses.items()},
        None if None in needed else Unlisted(tuple(entries for entries in needed if entries is not None), default),
    )


def _needed_list(rule: Rule, index: Index) -> DeviceList | None:
    """A list that has to have the device if the rule is to hold; None if there is none."""
    needed = (index.lists[value] for name, value in rule.conditions.items() if CONDITIONS[name].listed_only)
    return next((entries for entries in needed if entries.kind != SUBSCRIBERS), None)


def _first_that_holds(steps: tuple[tuple[Holds, Verdict], ...], default: Verdict) -> Decide:
    def decide(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict:
        for holds, verdict in steps:
            if holds(key, imsi, software_version, host, realm):
                return verdict
        return default

    return decide


def _observed(holds: Holds, verdict: Verdict, observed: Observed) -> Holds:
    """A rule under observation: it never holds, so that the next one is asked."""

    def observe(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        if holds(key, imsi, software_version, host, realm):
            observed(verdict)
        return False

    return observe


def _all_of(rule: Rule, index: Index) -> Holds:
    # To look into a list costs most, so that comes last.
    names = sorted(rule.conditions, key=lambda name: CONDITIONS[name].names_list)
    conditions = tuple(CONDITIONS[name].compile(rule.conditions[name], index) for name in names)
    if len(conditions) == 1:
        return conditions[0]

    def all_hold(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        for holds in conditions:  # noqa: SIM110  a generator for each check costs more than the conditions do
            if not holds(key, imsi, software_version, host, realm):
                return False
        return True

    return all_hold
