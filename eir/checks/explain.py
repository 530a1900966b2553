"""Explanation of the answer that a device would get (`eir check`), from the lists in a node's memory or in the store.

A Checker computes the answer, as for a request. From the store, only the pages of the device are read. The reason is always read
from the store, because nodes do not keep reasons in memory. A list of pairs is sorted by device, so the devices of an IMSI can be
on any page. All pages are searched, in batches, but only if a rule needs these devices (`subscriber_bound_elsewhere`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from eir.checks.checker import Checker
from eir.checks.conditions import CONDITIONS, NO_SUBSCRIBER, day_text, subscriber_key
from eir.checks.periods import NO_END, last_day
from eir.checks.question import SOFTWARE_VERSION_DIGITS, Question
from eir.checks.settings import NoDevice, PolicySettings, Rule, Status
from eir.device import SNR_KEYS, imsi_key, is_digits
from eir.errors import IdentifierError
from eir.lists.images.day_images import image_of_days
from eir.lists.images.imaging import image_of
from eir.lists.images.index import Index
from eir.lists.log.change import Head
from eir.lists.log.store import LogStore
from eir.lists.pages.pages import Page
from eir.lists.record.entries import read_pages
from eir.lists.record.first_days import WAS_LISTED
from eir.lists.record.reasons import reason_and_day
from eir.lists.record.settings import FIRST_SEEN, SUBSCRIBERS, ListSettings

NEVER = "never"
VALUES_MAX = 5
"""Maximum number of values of a condition in the text of an explanation."""

ObservedRule = tuple[int, str, str | None]
"""Number of an observed rule, its status, its name."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Answer that a check of a device would get, with the rule, the list and the reason."""

    question: Question
    status: Status | None
    """Status; None if the answer is the protocol's own error for a request without a valid identifier."""
    rule: int | str
    """Number of the rule that decided, or a word, as in Verdict."""
    name: str | None = None
    """Name of the rule."""
    list: str | None = None
    """First list of the rule."""
    serial: int | None = None
    """Serial of the list's release; 0 for a local list."""
    change: int | None = None
    """Number of changes of the list, if the list is local."""
    reason: str | None = None
    """Reason that the list has for the device; without a valid identifier, the fault of the identifier."""
    date: str | None = None
    """Day on which the entry was reported, if the list has dates."""
    conditions: str = ""
    """Conditions of the rule except `list`."""
    observed: tuple[ObservedRule, ...] = ()
    """Observed rules that matched before the rule that decided."""
    not_loaded: tuple[str, ...] = ()
    """Lists without which rules cannot match: signed lists that were never loaded, and local lists of a `not_list` that were never changed."""
    first_seen: str | None = None
    """First day of the device, or `never`; None if there is no record of first sightings, or if no first day is relevant."""
    until: str | None = None
    """Last day of the period of grace that begins on the first day; None without a period."""

    def as_fields(self) -> dict[str, Any]:
        """Return all fields of the explanation except the question, as a dict of JSON types. `of_fields` is the inverse function."""
        values = asdict(self)
        del values["question"]
        return values

    @classmethod
    def of_fields(cls, question: Question, values: Mapping[str, Any]) -> "Explanation":
        """Build an explanation from its question and from its other fields, which `as_fields` has returned.

        `values` may also be decoded from JSON.
        """
        arguments = dict(values)
        if arguments["status"] is not None:
            arguments["status"] = Status(arguments["status"])
        arguments["observed"] = tuple(map(tuple, arguments["observed"]))
        arguments["not_loaded"] = tuple(arguments["not_loaded"])
        return cls(question, **arguments)

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as the JSON document of `--json`, with null for fields that do not apply."""
        imei = self.question.imei or self.question.other or ""
        observed = [{"rule": rule, "rule_name": name, "status": status} for rule, status, name in self.observed]
        return {
            "imei": imei, "imsi": self.question.imsi or None, "status": self.status,
            "rule": self.rule, "list": self.list, "serial": self.serial, "reason": self.reason, "rule_name": self.name,
            "observed": observed,
            "not_loaded": list(self.not_loaded), "first_seen": self.first_seen, "until": self.until, "date": self.date,
        }  # fmt: skip

    def as_text(self) -> str:
        """Format the explanation as text for a person, with notes about lists that were never loaded."""
        device = self.question.imei or self.question.other or "no identifier"
        lines = [f"{device}: {self.status or 'error'}", f"  {self._cause()}"]
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        if self.date:
            lines.append(f"  reported: {self.date}")
        if self.first_seen is not None:
            end = f"until {self.until}" if self.until else "without a period"
            lines.append(f"  first seen: {self.first_seen}, {end}")
        for rule, status, name in self.observed:
            lines.append(f"  observed only: {_rule_text(rule, name)} would answer {status}")
        note = "  note: the list {} has never been loaded or changed, so no rule that needs it can hold"
        lines += map(note.format, self.not_loaded)
        return "\n".join(lines)

    def _cause(self) -> str:
        """Format the rule that decided the check, with its conditions and its list, as a text for a person."""
        if isinstance(self.rule, int):
            cause = f"by {_rule_text(self.rule, self.name)}"
        else:
            cause = f"because of the policy's {self.rule}"
        if self.conditions:
            cause += f": {self.conditions}"
        if self.list:
            version = f"serial {self.serial}" if self.change is None else f"change {self.change}"
            cause += f", list {self.list} ({version})"
        return cause


def question_of(device: str, *, imsi: str, software_version: str, origin_host: str, origin_realm: str) -> Question:
    """Build the question about an identifier that a person typed: IMEI, IMEISV, MEID, or an empty text."""
    imei = device or None
    meid = None if is_digits(device) else imei
    return Question(imei, meid, imsi, software_version, origin_host, origin_realm)


def option_fault(question: Question) -> str | None:
    """Return the error message for an invalid `--imsi` or `--software-version`; None if both are valid.

    The identifier of the device is not checked, because the policy also answers for malformed identifiers.
    """
    if question.imsi:
        try:
            imsi_key(question.imsi)
        except IdentifierError as e:
            return f"--imsi {question.imsi}: {e}"
    version = question.software_version
    if version and not (len(version) == SOFTWARE_VERSION_DIGITS and is_digits(version)):
        return f"--software-version {version}: expected two digits (TS 23.003 6.2.2)"
    return None


async def explain(
    question: Question, policy: PolicySettings, lists: Mapping[str, ListSettings], store: LogStore, *, now: datetime
) -> Explanation:
    """Decide a question about a device by the lists in the store; return the answer with its reason.

    Raises:
        StoreError: if the store cannot be read.
    """
    kinds = {name: settings.kind for name, settings in lists.items()}
    index = Index(kinds, now.timestamp)
    key = question.any_device()
    if key is not None:
        await _load_index(index, question, key, policy, lists, store=store)
    explanation = answer(question, policy, lists, index, now=now)
    if explanation.list is None:
        return explanation
    return await add_reason(explanation, kinds[explanation.list], store, now=now)


def answer(
    question: Question, policy: PolicySettings, lists: Mapping[str, ListSettings], index: Index, *, now: datetime
) -> Explanation:
    """Decide a question about a device by the lists in memory, and return the answer. No check is counted or recorded.

    The explanation lacks the reason and the date of the list's entry, which `add_reason` adds.
    """
    observed: list[ObservedRule] = []
    checker = Checker(policy, index, now=now, note_observed=lambda *rule: observed.append(rule))
    verdict = checker.check(question)
    key = fault = None
    try:
        key = question.device()
    except IdentifierError as e:
        fault = str(e)
    if isinstance(verdict, NoDevice):
        return Explanation(question, None, verdict.value, reason=fault)
    rule = policy.rules[verdict.rule - 1] if isinstance(verdict.rule, int) else None
    explanation = Explanation(
        question, verdict.status, verdict.rule, verdict.name, verdict.list, reason=fault,
        conditions="" if rule is None else _conditions_text(rule), observed=tuple(observed),
    )  # fmt: skip
    state = None if verdict.list is None else index.lists[verdict.list].state
    if state is not None:
        change = None if state.serial else state.generation
        explanation = replace(explanation, serial=state.serial, change=change)
    if key is None:
        return explanation
    names = dict.fromkeys(name for each in policy.rules for name in each.lists)
    excluded = {each.not_list for each in policy.rules}
    needed = [name for name in names if name in excluded or not lists[name].local]  # another local list is empty
    not_loaded = tuple(name for name in needed if index.lists[name].state is None)
    first_seen, until = _first_seen(key, policy, index, rule)
    return replace(explanation, not_loaded=not_loaded, first_seen=first_seen, until=until)


def _first_seen(key: int, policy: PolicySettings, index: Index, rule: Rule | None) -> tuple[str | None, str | None]:
    """Return two texts: the day when a device was first seen, and the last day of its period of grace.

    The period is that of `rule`, which decided, if it has one, else that of the policy (eir.checks.periods).
    """
    record = index.first_seen
    if record is None:
        return None, None
    first = record.day(key)
    if first == WAS_LISTED:
        return "before it left a list", None
    if rule is not None and rule.has_first_seen:
        policy = PolicySettings(rules=(rule,))
    elif first is None:
        return None, None
    last = last_day(policy, record.today if first is None else first)
    first_text = NEVER if first is None else day_text(first)
    last_text = None if last == NO_END else day_text(last)
    return first_text, last_text


async def add_reason(explanation: Explanation, kind: str, store: LogStore, *, now: datetime) -> Explanation:
    """Return the explanation with the reason and the date of the list entry that caused the answer. `kind`: kind of the list.

    Raises:
        StoreError: if the store cannot be read.
    """
    key = explanation.question.any_device()
    key_in_list = None if key is None else _key_for(kind, key, explanation.question.imsi)
    name = explanation.list
    if name is None or key_in_list is None:
        return explanation
    reason, day = await reason_and_day(store, name, key_in_list, now=now.timestamp())
    date = day_text(day) if day else None
    return replace(explanation, reason=reason or explanation.reason, date=date)


async def _load_index(
    index: Index,
    question: Question,
    key: int,
    policy: PolicySettings,
    lists: Mapping[str, ListSettings],
    *,
    store: LogStore,
) -> None:
    """Load into the index in memory those pages of the store's lists that can affect the answer to the question."""
    bound_lists = {rule.subscriber_bound_elsewhere for rule in policy.rules}
    subscriber = subscriber_key(question.imsi)
    for name, settings in lists.items():
        if name in bound_lists and subscriber != NO_SUBSCRIBER:
            state, pages = await _pages_of_pair(store, name, key // SNR_KEYS, subscriber)
        else:
            key_in_list = _key_for(settings.kind, key, question.imsi)
            numbers = [] if key_in_list is None else [key_in_list // SNR_KEYS]
            state, pages = await store.some_pages(name, numbers)
        if state is not None and state.kind == settings.kind:  # nodes ignore a list of another kind
            image = image_of_days(pages) if state.kind == FIRST_SEEN else image_of(pages)
            index.switch(name, state, image)


def _key_for(kind: str, key: int, imsi: str) -> int | None:
    """Return the key to look up in a list of this kind: the key of the IMSI in a list of subscribers, else the key of the device.

    Without a valid IMSI, the key for a list of subscribers is `None`.
    """
    if kind != SUBSCRIBERS:
        return key
    return subscriber_key(imsi) or None


async def _pages_of_pair(
    store: LogStore, name: str, number: int, subscriber: int
) -> tuple[Head | None, Sequence[Page]]:
    """Read a list of pairs (device and IMSI) from the store: its state, the device's page, and all pages that may contain the IMSI.

    `number`: number of the device's page.

    A page may contain the IMSI if it contains the bytes of the IMSI's key. The policy then evaluates the page exactly.
    """
    key_bytes = subscriber.to_bytes(8, "little")
    return await read_pages(store, name, lambda page: page.number == number or key_bytes in page.extra)


def _conditions_text(rule: Rule) -> str:
    """Format the conditions of a rule except `list`, such as `tac 3512345*; imsi 26201*`."""
    texts = []
    for name, value in rule.conditions.items():
        if name == "list":
            continue
        condition = CONDITIONS[name]
        values = value if isinstance(value, tuple) else (value,)
        value_texts = []
        for text in map(condition.show, values[:VALUES_MAX]):
            is_complete = condition.length is None or len(text) == condition.length
            value_texts.append(text if is_complete else f"{text}*")
        more = f" and {len(values) - VALUES_MAX} more" if len(values) > VALUES_MAX else ""
        texts.append(f"{name} {', '.join(value_texts)}{more}")
    return "; ".join(texts)


def _rule_text(number: int, name: str | None) -> str:
    return f"rule {number} ({name})" if name else f"rule {number}"
