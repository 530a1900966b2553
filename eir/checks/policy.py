"""Policy: an ordered list of rules that is compiled into one function, and the interface for sightings.

The first rule whose conditions all hold determines the status, otherwise `default`. Independent of protocols, the configuration file,
clocks and logs: the time is an argument, and matches of observed rules go to a callback.

Sightings are decided checks for the record. The checker and the fast paths add them without waiting; eir.node.processes connects
them to eir.sightings.buffer.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from eir.checks.conditions import CONDITIONS, Holds
from eir.checks.program import Program, program_of
from eir.checks.question import CHECK_DIGIT, MALFORMED
from eir.checks.settings import NoDevice, PolicySettings, Rule, Status
from eir.lists.images.index import Index
from eir.lists.record.settings import SUBSCRIBERS


class Decision(NamedTuple):
    """Verdict as plain texts, for the record of sightings."""

    status: str
    """Status as in Verdict; `error` for the protocol's own error to a request without a device."""
    rule: str
    """Number of the rule from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None
    is_plain: bool
    """True if the device is whitelisted without an override, so that the check is not an event."""


class SightingKind(NamedTuple):
    """Properties that several checks in one call of `Sightings.add` share, such as verdict, protocol and peer."""

    decision: Decision
    protocol: str
    peer: str
    """Label of the peer that sent the request, which may be an agent: the node knows the peer, but an Origin-Host is only a claim of the request."""
    observed: str
    """Observed rules that matched (eir.sightings.schema.COLUMNS)."""
    early: bool = False
    """True if the SIM was not authenticated before the check."""
    access: str | None = None
    """Access network of the peer's phones; None: not named."""


TEXTS = 6
"""Number of texts of each check: Origin-Host, Origin-Realm, the identifier as sent, IMSI, software version, MSISDN; empty if absent."""


class Sightings(Protocol):
    """Interface of the record of sightings, which receives decided checks without blocking."""

    @property
    def full(self) -> Container[str]:
        """Labels of peers for whose plain checks the buffer has no room now.

        Such checks need not be added, but must be counted with `left_out`.
        """

    def left_out(self, count: int, peer: str) -> None:
        """Count plain checks of a peer that were dropped because the buffer had no room."""

    def add(self, kinds: Sequence[SightingKind], numbers: bytes, texts: bytes) -> None:
        """Add checks of one peer that were just answered. Plain checks and events need separate calls.

        Args:
            kinds: kinds of the checks.
            numbers: for each check the index of its kind, as a native uint16.
            texts: for each check TEXTS lines, each with a newline at its end and none in it.
        """


OVERRIDE = "override"
"""Value in place of a rule while an override is in force."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Answer to a check, with the rule and the list that caused it.

    Verdicts are created only when a policy is compiled. They are compared by identity, so they are fast dict keys.
    """

    status: Status
    rule: int | str
    """Number of the rule from 1, or `default`, `override`, `no_identity`, `bad_identity`, `no_imei`."""
    list: str | None = None
    """First list of the rule; None if it has none."""
    name: str | None = None
    """Name of the rule for people."""
    label: str = field(init=False)
    """Rule in metrics and the log: its name, or else its number."""
    decision: Decision = field(init=False)
    """Verdict for the record of sightings."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.name or str(self.rule))
        is_plain = self.status is Status.WHITELISTED and self.rule != OVERRIDE
        object.__setattr__(self, "decision", Decision(self.status.value, str(self.rule), self.list, is_plain))


Decide = Callable[[int, str, str, str, str], Verdict]
"""(device key, IMSI, Software-Version, Origin-Host, Origin-Realm) → Verdict; texts are empty if absent."""

Observed = Callable[[Verdict], None]
"""Callback for the verdict of an observed rule that matched."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Policy in compiled form: functions that decide checks, and the program for a fast path."""

    decide: Decide
    unidentified: Mapping[NoDevice, Verdict | NoDevice]
    """Answers to requests without a device: a verdict, or the protocol's own error."""
    program: Program
    """Same rules as `decide`, for a compiled fast path."""
    override_until: datetime | None = None
    """Time at which an override in force ends, so that the policy must be compiled again; None if it has no such end."""
    overridden: bool = False
    """True if an override is in force."""
    by_digit: Decide | None = None
    """Variant of `decide` for a device whose IMEI has a wrong check digit; None if no rule depends on it."""
    malformed: Callable[[int, str, str, str, str], Verdict | None] | None = None
    """Variant of `decide` for an identifier that is neither IMEI nor MEID, by its odd key or NO_KEY; None if no rule depends on it."""
    settings: PolicySettings = field(default_factory=PolicySettings)
    """Settings from which it was compiled, as noted by its user."""
    day: int | None = None
    """Day of its conditions; None without a record of first sightings."""
    unproven: "Policy | None" = None
    """Policy for a SIM that was not authenticated; None if it is the same."""


def compile_policy(settings: PolicySettings, index: Index, *, observed: Observed, now: datetime) -> Policy:
    """Compile the settings to a policy that looks up the lists of `index`.

    An override applies if it has no end or `now` is before it; the caller compiles the policy again at
    `override_until`.

    Raises:
        KeyError: if a rule names a list that the index lacks, or that has the wrong kind for the condition. The
            configuration was validated with its own lists, so this is an error of the caller.
    """
    override = settings.override
    if override is not None and (override.until is None or now < override.until):
        verdict = Verdict(override.answer, OVERRIDE)
        # An override also applies to requests without a valid identifier, so that no phone is rejected.
        return Policy(
            lambda *_: verdict,
            dict.fromkeys(NoDevice, verdict),
            program_of((), verdict, index),
            override_until=override.until,
            overridden=True,
        )
    default = Verdict(settings.default, "default")
    statuses = {
        NoDevice.MISSING: settings.no_identity,
        NoDevice.MALFORMED: settings.bad_identity,
        NoDevice.NO_IMEI: settings.no_imei,
    }
    verdicts = [
        Verdict(rule.answer, number, next(iter(rule.lists), None), rule.name)
        for number, rule in enumerate(settings.rules, 1)
    ]

    program_rules = [
        (rule.conditions, verdict, rule.observe) for rule, verdict in zip(settings.rules, verdicts, strict=True)
    ]
    program = program_of(program_rules, default, index)
    unidentified: dict[NoDevice, Verdict | NoDevice] = {
        why: why if status is None else Verdict(status, why.value) for why, status in statuses.items()
    }

    def build_policy(rules: tuple[tuple[Rule, Verdict], ...], unproven: Policy | None = None) -> Policy:
        def steps(
            known: str | None = None, *, only: Container[int | str] | None = None
        ) -> tuple[tuple[Holds, Verdict], ...]:
            """Return the tests of the rules with their verdicts, for identifiers that have the fault `known`.

            `only`: numbers of the rules to return; None: all rules.
            """
            tests = []
            for rule, verdict in rules:
                if only is None or verdict.rule in only:
                    holds = _all_of(rule, index, known)
                    tests.append((_observed(holds, verdict, observed) if rule.observe else holds, verdict))
            return tuple(tests)

        faults = {name for rule, _ in rules for name in rule.identifier}
        # For other identifiers than IMEIs only rules count that name them: by a list of devices, or as malformed.
        odd = {verdict.rule for rule, verdict in rules if MALFORMED in rule.identifier or _names_devices(rule, index)}
        return Policy(
            _first_that_holds(steps(), default), unidentified, program,
            by_digit=_first_that_holds(steps(CHECK_DIGIT), default) if CHECK_DIGIT in faults else None,
            malformed=_of_malformed(steps(MALFORMED, only=odd)) if odd else None,
            unproven=unproven,
        )  # fmt: skip

    every = tuple(zip(settings.rules, verdicts, strict=True))
    others = tuple(each for each in every if not each[0].authenticated)
    return build_policy(every, build_policy(others) if others != every else None)


def _first_that_holds(steps: tuple[tuple[Holds, Verdict], ...], default: Verdict) -> Decide:
    def decide(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict:
        for holds, verdict in steps:
            if holds(key, imsi, software_version, host, realm):
                return verdict
        return default

    return decide


def _of_malformed(steps: tuple[tuple[Holds, Verdict], ...]) -> Callable[[int, str, str, str, str], Verdict | None]:
    def decide(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict | None:
        return next((verdict for holds, verdict in steps if holds(key, imsi, software_version, host, realm)), None)

    return decide


def _observed(holds: Holds, verdict: Verdict, observed: Observed) -> Holds:
    """Wrap the test of an observed rule: report a match but return False, so that evaluation continues."""

    def observe(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        if holds(key, imsi, software_version, host, realm):
            observed(verdict)
        return False

    return observe


def _names_devices(rule: Rule, index: Index) -> bool:
    return rule.list is not None and index.lists[rule.list].kind != SUBSCRIBERS


def _all_of(rule: Rule, index: Index, known: str | None) -> Holds:
    # To look into a list costs most, so that comes late.
    names = sorted(rule.conditions, key=lambda name: (CONDITIONS[name].records, CONDITIONS[name].names_list))
    if known in rule.identifier:
        names.remove("identifier")
    conditions = tuple(CONDITIONS[name].compile(rule.conditions[name], index) for name in names)
    if len(conditions) == 1:
        return conditions[0]

    def all_hold(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        for holds in conditions:  # noqa: SIM110  a generator would take longer than the conditions
            if not holds(key, imsi, software_version, host, realm):
                return False
        return True

    return all_hold
