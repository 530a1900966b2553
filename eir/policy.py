"""Policy: an ordered list of rules, compiled once into the one function that answers every check.

The first rule whose conditions all hold gives the status, `default` where none does. May import eir.lists.index,
eir.device and eir.errors; knows neither the wire nor the configuration file, and neither the clock nor a log: time is an argument, and
what observed rules would have answered goes to a callable that it is handed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from eir.device import SNR_KEYS, TAC_DIGITS, imsi_key
from eir.errors import IdentifierError
from eir.lists.index import DeviceList, Index, PairList
from eir.lists.settings import DEVICES, SUBSCRIBERS


class Status(StrEnum):
    """What a device is (TS 29.272 7.3.51, and 7.4.3.4 for UNKNOWN), by the wire's words in lower case."""

    WHITELISTED = "whitelisted"
    BLACKLISTED = "blacklisted"
    GREYLISTED = "greylisted"
    UNKNOWN = "unknown"
    """Experimental-Result 5422 instead of an Equipment-Status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: all conditions that it names have to hold. A tuple holds if any of its values does; empty: not asked.

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
    """This list has not what `list` asks for. Does not hold either while the list has never been loaded."""
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
    def lists(self) -> tuple[str, ...]:
        """The names of all lists that it looks into; the first one stands for the rule in metrics and logs."""
        named = (self.list, self.not_list, self.device_bound_elsewhere, self.subscriber_bound_elsewhere)
        return tuple(dict.fromkeys(name for name in named if name is not None))


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
    """For an ECR with neither IMEI nor MEID; None: the error 5005."""
    bad_identity: Status | None = Status.WHITELISTED
    """For an ECR whose identifier is none (letters, 13 digits); None: the error 5004."""
    override: Override | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a check is answered, and why. Made at compile time only: equal means identical, so it is a cheap dict key."""

    status: Status
    rule: int | str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None = None
    """The first list that the rule looks into; None if it looks into none."""


Decide = Callable[[int, str, str, str, str], Verdict]
"""(device key, IMSI, Software-Version, Origin-Host, Origin-Realm) → Verdict; texts are empty where absent."""

Observed = Callable[[int, Status], None]
"""(number of the observed rule, what it would have answered)."""

_Condition = Callable[[int, str, str, str, str], bool]

NOBODY = 0
"""The key of no IMSI (eir.device.imsi_key gives each a leading 1), so no list has it."""


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
    no_identity: Verdict | None
    """None: answer with the error 5005."""
    bad_identity: Verdict | None
    """None: answer with the error 5004."""
    verdicts: tuple[Verdict, ...]
    """Every verdict that this policy can give."""
    unlisted: Unlisted | None = None
    """None if some rule does not need the device to be in a list."""
    override_until: datetime | None = None
    """When an override in force ends, so that the policy is to be compiled anew; None if there is no such moment."""
    overridden: bool = False
    """An override is in force."""


def compile_policy(settings: PolicySettings, index: Index, *, observed: Observed, now: datetime) -> Policy:
    """The policy that `settings` describe, over the lists in `index`.

    An override applies if it has no end or `now` is before it; whoever holds the policy compiles it anew at
    `override_until`. Raises KeyError if a rule names a list that the index does not have, or has as one of another
    kind than the condition needs: the configuration was checked against its own lists, so that is a fault of the caller.
    """
    override = settings.override
    if override is not None and (override.until is None or now < override.until):
        verdict = Verdict(override.answer, "override")
        # Requests without a usable identifier included: an override is pulled so that no phone is turned away.
        return Policy(
            lambda *_: verdict, verdict, verdict, (verdict,), Unlisted((), verdict), override_until=override.until, overridden=True
        )
    default = Verdict(settings.default, "default")
    no_identity = None if settings.no_identity is None else Verdict(settings.no_identity, "no_identity")
    bad_identity = None if settings.bad_identity is None else Verdict(settings.bad_identity, "bad_identity")
    steps = [
        (_all_of(_conditions(rule, index)), Verdict(rule.answer, number, next(iter(rule.lists), None)), rule.observe)
        for number, rule in enumerate(settings.rules, 1)
    ]
    given = [verdict for _, verdict, observe in steps if not observe]
    verdicts = (*given, default, *(verdict for verdict in (no_identity, bad_identity) if verdict is not None))
    needed = dict.fromkeys(_needed_list(rule, index) for rule in settings.rules)
    unlisted = None if None in needed else Unlisted(tuple(entries for entries in needed if entries is not None), default)
    return Policy(_first_that_holds(steps, default, observed), no_identity, bad_identity, verdicts, unlisted)


def _needed_list(rule: Rule, index: Index) -> DeviceList | None:
    """A list that has to have the device if the rule is to hold; None if there is none."""
    for name in (rule.list, rule.device_bound_elsewhere):
        if name is not None and index.lists[name].kind != SUBSCRIBERS:
            return index.lists[name]
    return None


def _first_that_holds(
    steps: Sequence[tuple[_Condition, Verdict, bool]], default: Verdict, observed: Observed
) -> Decide:
    if not any(observe for _, _, observe in steps):
        # The usual case has its own loop: this is what each check pays for.
        pairs = tuple((holds, verdict) for holds, verdict, _ in steps)

        def decide(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict:
            for holds, verdict in pairs:
                if holds(key, imsi, software_version, host, realm):
                    return verdict
            return default

        return decide

    def decide_and_observe(key: int, imsi: str, software_version: str, host: str, realm: str) -> Verdict:
        for holds, verdict, observe in steps:
            if holds(key, imsi, software_version, host, realm):
                if not observe:
                    return verdict
                observed(int(verdict.rule), verdict.status)
        return default

    return decide_and_observe


def _all_of(conditions: Sequence[_Condition]) -> _Condition:
    if len(conditions) == 1:
        return conditions[0]

    def all_hold(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        for holds in conditions:  # noqa: SIM110  a generator for each check costs more than the conditions do
            if not holds(key, imsi, software_version, host, realm):
                return False
        return True

    return all_hold


def _conditions(rule: Rule, index: Index) -> list[_Condition]:
    """The rule's conditions, cheapest first."""
    conditions: list[_Condition] = []
    if rule.software_version:
        conditions.append(_software_version(rule.software_version))
    if rule.imsi:
        conditions.append(_imsi(rule.imsi))
    if rule.origin_host:
        conditions.append(_origin_host(rule.origin_host))
    if rule.origin_realm:
        conditions.append(_origin_realm(rule.origin_realm))
    if rule.tac:
        conditions.append(_tac(rule.tac))
    if rule.list is not None:
        conditions.append(_in_list(index.lists[rule.list]))
    if rule.not_list is not None:
        conditions.append(_not_in_list(index.lists[rule.not_list]))
    if rule.device_bound_elsewhere is not None:
        conditions.append(_bound_elsewhere(_pairs(index, rule.device_bound_elsewhere).device_bound_elsewhere))
    if rule.subscriber_bound_elsewhere is not None:
        conditions.append(_bound_elsewhere(_pairs(index, rule.subscriber_bound_elsewhere).subscriber_bound_elsewhere))
    return conditions


def _software_version(versions: tuple[str, ...]) -> _Condition:
    wanted = frozenset(versions)
    return lambda _key, _imsi, software_version, _host, _realm: software_version in wanted


def _imsi(prefixes: tuple[str, ...]) -> _Condition:
    return lambda _key, imsi, _software_version, _host, _realm: imsi.startswith(prefixes)


def _origin_host(hosts: tuple[str, ...]) -> _Condition:
    wanted = frozenset(host.lower() for host in hosts)
    return lambda _key, _imsi, _software_version, host, _realm: host.lower() in wanted


def _origin_realm(realms: tuple[str, ...]) -> _Condition:
    wanted = frozenset(realm.lower() for realm in realms)
    return lambda _key, _imsi, _software_version, _host, realm: realm.lower() in wanted


def _tac(prefixes: tuple[str, ...]) -> _Condition:
    # key // divisor leaves as many leading digits as the prefix has. The key of a MEID with letters has 15 digits or
    # more, so what is left of it is longer than any prefix and equals none.
    by_divisor: dict[int, set[int]] = {}
    for prefix in prefixes:
        by_divisor.setdefault(SNR_KEYS * 10 ** (TAC_DIGITS - len(prefix)), set()).add(int(prefix))
    if len(by_divisor) == 1:
        ((divisor, wanted),) = by_divisor.items()
        return lambda key, _imsi, _software_version, _host, _realm: key // divisor in wanted
    lengths = tuple(by_divisor.items())
    return lambda key, _imsi, _software_version, _host, _realm: any(key // d in wanted for d, wanted in lengths)


def _in_list(entries: DeviceList) -> _Condition:
    # The bound method is taken once: a switch replaces what the list holds, never the list.
    holds = entries.holds
    if entries.kind == SUBSCRIBERS:
        return lambda _key, imsi, _software_version, _host, _realm: holds(_subscriber(imsi))
    if isinstance(entries, PairList):
        binds = entries.binds
        return lambda key, imsi, _software_version, _host, _realm: holds(key) and binds(key, _subscriber(imsi))
    return lambda key, _imsi, _software_version, _host, _realm: holds(key)


def _not_in_list(entries: DeviceList) -> _Condition:
    in_list = _in_list(entries)
    needs_subscriber = entries.kind != DEVICES

    def not_in_list(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        # An allow-list that never arrived holds nobody. Taken at its word it would block everyone, so the rule waits
        # for the first load (and /ready says 503); an allow-list that was loaded and is empty does mean everyone.
        if entries.state is None or (needs_subscriber and not _subscriber(imsi)):
            return False
        return not in_list(key, imsi, software_version, host, realm)

    return not_in_list


def _pairs(index: Index, name: str) -> PairList:
    entries = index.lists[name]
    if not isinstance(entries, PairList):
        raise KeyError(f"{name} is a list of {entries.kind}; one of pairs says what is bound to what")
    return entries


def _bound_elsewhere(elsewhere: Callable[[int, int], bool]) -> _Condition:
    def holds(key: int, imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
        subscriber = _subscriber(imsi)
        return subscriber != NOBODY and elsewhere(key, subscriber)

    return holds


def _subscriber(imsi: str) -> int:
    """The key of an IMSI; NOBODY where the request carried none, or a User-Name that is none."""
    if not imsi:
        return NOBODY
    try:
        return imsi_key(imsi)
    except IdentifierError:
        return NOBODY


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a device is answered as it is: what `eir check` prints."""

    verdict: Verdict
    observed: tuple[tuple[int, Status], ...]
    """Observed rules that held before the verdict: their number and what they would have answered."""
    not_loaded: tuple[str, ...]
    """Lists that rules look into and that have never been loaded, so that these rules could not hold."""


def explain(
    settings: PolicySettings,
    index: Index,
    key: int,
    *,
    now: datetime,
    imsi: str = "",
    software_version: str = "",
    origin_host: str = "",
    origin_realm: str = "",
) -> Explanation:
    """The verdict on one device with its reasons, by the very function that answers checks. Raises as compile_policy."""
    seen: list[tuple[int, Status]] = []
    policy = compile_policy(settings, index, observed=lambda rule, status: seen.append((rule, status)), now=now)
    verdict = policy.decide(key, imsi, software_version, origin_host, origin_realm)
    named = dict.fromkeys(name for rule in settings.rules for name in rule.lists)
    not_loaded = tuple(name for name in named if index.lists[name].state is None)
    return Explanation(verdict, tuple(seen), not_loaded)
