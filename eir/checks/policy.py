"""Policy: ordered rules that are compiled into one function; and `Sightings`, the interface to the record of checks.

The first rule whose conditions all hold determines the status. If no rule matches, `default` does. The module does not depend on
protocols, the configuration file, clocks and logs: the time is an argument, and a match of an observed rule calls a callback.

A sighting is a decided check in the record of sightings. The checker and the fast paths add sightings through the interface
`Sightings` without waiting. Its implementation is eir.sightings.buffer.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from eir.checks.conditions import CONDITIONS, Holds, OfCheck
from eir.checks.program import Program, encode_policy
from eir.checks.question import MALFORMED
from eir.checks.settings import NoDevice, Override, PolicySettings, Rule, Status
from eir.lists.images.index import Index
from eir.lists.record.settings import SUBSCRIBERS


class Decision(NamedTuple):
    """Answer to a check, as the record of checks stores it. The fields `status` and `rule` are texts."""

    status: str
    """Status as in Verdict; `error` if the answer was the protocol's own error."""
    rule: str
    """Rule as in Verdict, as text."""
    list: str | None
    is_plain: bool
    """True if the status is `whitelisted` and no override is in force. Other checks are events."""


class SightingKind(NamedTuple):
    """Properties that are equal for all checks in one call of `Sightings.add`."""

    decision: Decision
    protocol: str
    peer: str
    """Label of the peer that sent the request. It may be an agent. In contrast to an Origin-Host, the peer is verified."""
    observed: str
    """Observed rules that matched, in the form of eir.sightings.schema.COLUMNS."""
    early: bool = False
    """True if the SIM was not authenticated before the check."""
    access: str | None = None
    """Access network of the peer's phones; None: the configuration does not name it."""


TEXTS = 6
"""Number of texts of each check: Origin-Host, Origin-Realm, identifier as sent, IMSI, software version, MSISDN.

A text is empty if the request lacks it.
"""


class Sightings(Protocol):
    """Interface of the buffer for the record of checks. It receives decided checks without blocking."""

    @property
    def full(self) -> Container[str]:
        """Labels of peers whose ordinary checks are dropped until the next flush of the buffer, because a rate limit was exceeded.

        An ordinary check is `whitelisted` without an override, and matches no observed rule. The buffer still accepts all
        other checks (events). The caller need not add the ordinary checks of these peers, but must then count these checks
        with `left_out`.
        """

    def left_out(self, count: int, peer: str) -> None:
        """Count checks of a peer that the caller dropped because the buffer for the record of checks was full."""

    def add(self, kinds: Sequence[SightingKind], numbers: bytes, texts: bytes) -> None:
        """Add answered checks of one peer to the buffer for the record of checks.

        Args:
            kinds: kinds of the checks.
            numbers: for each check the index of its kind, as a native uint16.
            texts: for each check TEXTS lines; each line ends with a newline.
        """


OVERRIDE = "override"
"""Rule of all verdicts while an override is in force."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Answer to a check, with the rule and the list that caused the answer.

    Verdicts are created only when a policy is compiled, one for each rule. They are compared by identity, so that they
    are fast keys of a dict.
    """

    status: Status
    rule: int | str
    """Number of the rule from 1, or `default`, `override`, `no_identity`, `bad_identity`, `no_imei`."""
    list: str | None = None
    """First list of the rule; None if the rule has no list."""
    name: str | None = None
    """Configured name of the rule."""
    label: str = field(init=False)
    """Rule in metrics and in the log: its name; without a name, `rule`."""
    decision: Decision = field(init=False)
    """Same verdict for the record of sightings."""

    def __post_init__(self) -> None:
        rule = str(self.rule)
        is_plain = self.status is Status.WHITELISTED and self.rule != OVERRIDE
        decision = Decision(self.status.value, rule, self.list, is_plain)
        object.__setattr__(self, "label", self.name or rule)
        object.__setattr__(self, "decision", decision)


Default = TypeVar("Default", Verdict, None)

Decide = OfCheck[Verdict]
"""Function that returns the verdict of a check."""

DecideMalformed = OfCheck[Verdict | None]
"""Function that returns the verdict of a check with a malformed identifier; None if no rule matches."""

Observed = Callable[[Verdict], None]
"""Callback that receives the verdict of an observed rule that matched."""

RuleVerdict = tuple[Rule, Verdict]
"""Rule, and the verdict if the rule matches."""

Step = tuple[Holds, Verdict]
"""Compiled rule: its test, and the verdict if the test holds."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Compiled policy: functions that decide checks, and the same rules encoded for the compiled fast path."""

    decide: Decide
    """Function that decides checks of devices with a valid identifier."""
    unidentified: Mapping[NoDevice, Verdict | NoDevice]
    """Answers to requests without a valid identifier: a verdict, or NoDevice for the protocol's own error."""
    program: Program
    """Same rules as `decide`, for a compiled fast path."""
    override_until: datetime | None = None
    """End of the override in force, at which the policy must be compiled again; None if there is no such end."""
    overridden: bool = False
    """True if an override is in force."""
    malformed: DecideMalformed | None = None
    """Variant of `decide` for an identifier that is neither IMEI nor MEID; None if no rule can match such an identifier.

    The key is the result of `odd_key` (eir.device) for the identifier, or NO_KEY.
    """
    settings: PolicySettings = field(default_factory=PolicySettings)
    """Settings from which the policy was compiled; set by the checker."""
    day: int | None = None
    """Day for conditions on first sightings; None without a record of first sightings; set by the checker."""
    unproven: "Policy | None" = None
    """Policy for a SIM that was not authenticated; None if all rules also apply to such a SIM."""


def compile_policy(settings: PolicySettings, index: Index, *, observed: Observed, now: datetime) -> Policy:
    """Compile the settings to a policy that looks devices up in the lists of `index`.

    An override applies if it has no end or `now` is before it; the caller compiles the policy again at
    `override_until`.

    Raises:
        KeyError: if the index lacks a list of a rule, or if the list has the wrong kind for the condition. A valid
            configuration has all lists of its rules, so the caller passed the wrong index.
    """
    override = settings.override
    if override is not None and (override.until is None or now < override.until):
        return _compile_override(override, index)
    default = Verdict(settings.default, "default")
    rules: list[RuleVerdict] = []
    for number, rule in enumerate(settings.rules, 1):
        first_list = next(iter(rule.lists), None)
        rules.append((rule, Verdict(rule.answer, number, first_list, rule.name)))
    program_rules = [(rule.conditions, verdict, rule.observe) for rule, verdict in rules]
    program = encode_policy(program_rules, default, index)
    unidentified = _answers_without_device(settings)

    def compile_rules(rules: Sequence[RuleVerdict], unproven: Policy | None = None) -> Policy:
        decide = _first_match(_steps(rules, index, observed), default)
        malformed: DecideMalformed | None = None
        # A malformed identifier can match only rules about malformed identifiers, or rules that look devices up in a list.
        malformed_rules = [
            (rule, verdict) for rule, verdict in rules if MALFORMED in rule.identifier or _looks_up_device(rule, index)
        ]
        if malformed_rules:
            malformed = _first_match(_steps(malformed_rules, index, observed, malformed=True), None)
        return Policy(decide, unidentified, program, malformed=malformed, unproven=unproven)

    unproven_rules = [(rule, verdict) for rule, verdict in rules if not rule.authenticated]
    if unproven_rules == rules:
        return compile_rules(rules)
    return compile_rules(rules, unproven=compile_rules(unproven_rules))


def _compile_override(override: Override, index: Index) -> Policy:
    verdict = Verdict(override.answer, OVERRIDE)
    # An override also applies to requests without a valid identifier, so that no phone is rejected.
    unidentified: dict[NoDevice, Verdict | NoDevice] = dict.fromkeys(NoDevice, verdict)
    program = encode_policy((), verdict, index)
    return Policy(lambda *_: verdict, unidentified, program, override_until=override.until, overridden=True)


def _answers_without_device(settings: PolicySettings) -> dict[NoDevice, Verdict | NoDevice]:
    statuses = {
        NoDevice.MISSING: settings.no_identity,
        NoDevice.MALFORMED: settings.bad_identity,
        NoDevice.NO_IMEI: settings.no_imei,
    }
    answers: dict[NoDevice, Verdict | NoDevice] = {}
    for reason, status in statuses.items():
        answers[reason] = reason if status is None else Verdict(status, reason.value)
    return answers


def _steps(
    rules: Iterable[RuleVerdict], index: Index, observed: Observed, *, malformed: bool = False
) -> tuple[Step, ...]:
    """Compile each policy rule to a pair: test and verdict. `malformed`: True for tests of malformed identifiers."""
    steps = []
    for rule, verdict in rules:
        test = _all_of(rule, index, malformed=malformed)
        if rule.observe:
            test = _observe(test, verdict, observed)
        steps.append((test, verdict))
    return tuple(steps)


def _first_match(steps: tuple[Step, ...], default: Default) -> OfCheck[Verdict | Default]:
    def decide(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict | Default:
        for holds, verdict in steps:
            if holds(key, imsi, software_version, host, realm):
                return verdict
        return default

    return decide


def _observe(holds: Holds, verdict: Verdict, observed: Observed) -> Holds:
    """Return a test for a rule with `observe: true`: it reports a match, but returns False, so that the next rules decide."""

    def observe(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        if holds(key, imsi, software_version, host, realm):
            observed(verdict)
        return False

    return observe


def _looks_up_device(rule: Rule, index: Index) -> bool:
    return rule.list is not None and index.lists[rule.list].kind != SUBSCRIBERS


def _all_of(rule: Rule, index: Index, *, malformed: bool) -> Holds:
    """Compile the conditions of a rule to one test.

    `malformed`: True for a test of malformed identifiers, which omits the condition `identifier` if that condition has the
    value `malformed`.

    Lookups in lists are the slowest conditions, so they are evaluated after the others.
    """
    names = sorted(rule.conditions, key=lambda name: (CONDITIONS[name].records, CONDITIONS[name].names_list))
    if malformed and MALFORMED in rule.identifier:
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
