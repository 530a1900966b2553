"""Policy: an ordered list of rules, compiled once into the one function that answers every check; and sightings.

The first rule whose conditions all hold gives the status, `default` where none does. Knows neither the wire nor the
configuration file, and neither the clock nor a log: time is an argument, and
what observed rules would have answered goes to a callable that it is handed.

Sightings are what decided checks leave for the record, and nobody waits for what becomes of them: the checker and a protocol's fast path
hand them over, eir.node.processes connects them to something (eir.sightings.buffer).
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
    """A verdict in plain words."""

    status: str
    """As in Verdict; `error`: the protocol's own error for a request that names no device."""
    rule: str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None
    is_plain: bool
    """Whitelisted, and not by an override: nobody needs to be told."""


class SightingKind(NamedTuple):
    """Properties that checks which are handed in together have in common."""

    decision: Decision
    protocol: str
    peer: str
    """Label of the peer that sent the request, which may be an agent: it is what the node knows, an Origin-Host is what a request claims."""
    observed: str
    """The rules under observation that held (eir.sightings.schema.COLUMNS)."""
    early: bool = False
    """The SIM was not authenticated before the check."""


TEXTS = 5
"""Number of texts of each check: Origin-Host, Origin-Realm, the identifier as it was sent, IMSI, software version;
empty where absent."""


class Sightings(Protocol):
    """Takes what was answered; synchronous, and never in the way."""

    @property
    def full(self) -> Container[str]:
        """Labels of peers whose plain checks are not taken now: they need not be handed in, but counted (`left_out`)."""

    def left_out(self, count: int, peer: str) -> None:
        """So many plain checks of a peer were answered for which there was no room."""

    def add(self, kinds: Sequence[SightingKind], numbers: bytes, texts: bytes) -> None:
        """Take checks of one peer that were answered just now; all of them are plain, or none.

        `numbers`: for each check the place of its kind, as the machine has a uint16. `texts`: TEXTS lines for each check, each with a line
        break behind it and none in it.
        """


OVERRIDE = "override"
"""Stands for the rule while an override is in force."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The answer to a check, and why. Made at compile time only: equal means identical, so it is a cheap dict key."""

    status: Status
    rule: int | str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`, `no_imei`."""
    list: str | None = None
    """The first list that the rule looks into; None if it looks into none."""
    name: str | None = None
    """The rule's name for people."""
    label: str = field(init=False)
    """The rule as metrics and the log show it: by its name if it has one."""
    decision: Decision = field(init=False)
    """The same for the record of sightings."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.name or str(self.rule))
        is_plain = self.status is Status.WHITELISTED and self.rule != OVERRIDE
        object.__setattr__(self, "decision", Decision(self.status.value, str(self.rule), self.list, is_plain))


Decide = Callable[[int, str, str, str, str], Verdict]
"""(device key, IMSI, Software-Version, Origin-Host, Origin-Realm) → Verdict; texts are empty where absent."""

Observed = Callable[[Verdict], None]
"""Called with what an observed rule would have answered."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy in force."""

    decide: Decide
    unidentified: Mapping[NoDevice, Verdict | NoDevice]
    """The answer to a request that names no device: a verdict, or the protocol's own error."""
    program: Program
    """The same as `decide`, for a fast path that is compiled."""
    override_until: datetime | None = None
    """Time at which an override in force ends, so that the policy has to be compiled again; None if it has no such
    end."""
    overridden: bool = False
    """An override is in force."""
    by_digit: Decide | None = None
    """`decide` for a device whose IMEI has a wrong check digit; None: to no rule that matters."""
    malformed: Callable[[int, str, str, str, str], Verdict | None] | None = None
    """As `decide` → what a rule says of an identifier that is neither IMEI nor MEID, by its odd key or NO_KEY; None: no rule says anything."""
    unproven: "Policy | None" = None
    """The function that decides about a SIM that nobody has authenticated yet; None: `decide` does."""


def compile_policy(settings: PolicySettings, index: Index, *, observed: Observed, now: datetime) -> Policy:
    """The policy that `settings` describe, over the lists in `index`.

    An override applies if it has no end or `now` is before it; the caller compiles the policy again at `override_until`.
    Raises KeyError if a rule names a list that the index does not have, or has as one of another kind than the condition
    needs: the configuration was checked against its own lists, so that is a fault of the caller.
    """
    override = settings.override
    if override is not None and (override.until is None or now < override.until):
        verdict = Verdict(override.answer, OVERRIDE)
        # Requests without a usable identifier included: an override is pulled so that no phone is turned away.
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

    said = [(rule.conditions, verdict, rule.observe) for rule, verdict in zip(settings.rules, verdicts, strict=True)]
    program = program_of(said, default, index)
    unidentified: dict[NoDevice, Verdict | NoDevice] = {
        why: why if status is None else Verdict(status, why.value) for why, status in statuses.items()
    }

    def build_policy(rules: tuple[tuple[Rule, Verdict], ...], unproven: Policy | None = None) -> Policy:
        def steps(
            known: str | None = None, *, only: Container[int | str] | None = None
        ) -> tuple[tuple[Holds, Verdict], ...]:
            """The rules for identifiers of which `known` is what is wrong; `only` those with these numbers."""
            found = []
            for rule, verdict in rules:
                if only is None or verdict.rule in only:
                    holds = _all_of(rule, index, known)
                    found.append((_observed(holds, verdict, observed) if rule.observe else holds, verdict))
            return tuple(found)

        asked = {name for rule, _ in rules for name in rule.identifier}
        # What is no IMEI is for those rules alone that name it: by a list that holds it, or as malformed.
        odd = {verdict.rule for rule, verdict in rules if MALFORMED in rule.identifier or _names_devices(rule, index)}
        return Policy(
            _first_that_holds(steps(), default), unidentified, program,
            by_digit=_first_that_holds(steps(CHECK_DIGIT), default) if CHECK_DIGIT in asked else None,
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
    """A rule under observation: it never holds, so that the next one is asked."""

    def observe(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        if holds(key, imsi, software_version, host, realm):
            observed(verdict)
        return False

    return observe


def _names_devices(rule: Rule, index: Index) -> bool:
    return rule.list is not None and index.lists[rule.list].kind != SUBSCRIBERS


def _all_of(rule: Rule, index: Index, known: str | None) -> Holds:
    # To look into a list costs most, so that comes last.
    names = sorted(rule.conditions, key=lambda name: CONDITIONS[name].names_list)
    if known in rule.identifier:
        names.remove("identifier")
    conditions = tuple(CONDITIONS[name].compile(rule.conditions[name], index) for name in names)
    if len(conditions) == 1:
        return conditions[0]

    def all_hold(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        for holds in conditions:  # noqa: SIM110  a generator for each check costs more than the conditions do
            if not holds(key, imsi, software_version, host, realm):
                return False
        return True

    return all_hold
