"""Explanation of the answer that a device would get (`eir check`), from the lists in a node's memory or in the store.

A Checker computes the answer, as for a request. Only the store's pages of the device are read. The reason is always read from
the store, because nodes do not keep it in memory. A list of pairs is sorted by device, so the devices of an IMSI are searched in
all pages, in batches, and only if a rule needs them (`subscriber_bound_elsewhere`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from eir.lists.pages.first_days import WAS_LISTED
from eir.lists.pages.pages import Page
from eir.lists.record.dates import day_of
from eir.lists.record.entries import read_pages
from eir.lists.record.reasons import reason_of
from eir.lists.record.settings import FIRST_SEEN, SUBSCRIBERS, ListSettings
from eir.lists.record.store import ListState, ListStore

NEVER = "never"
NAMED_MAX = 5
"""Maximum number of values of a rule's condition that are named."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Answer that a check of a device would get, with the rule, the list and the reason."""

    question: Question
    status: Status | None
    """Status; None for the protocol's error for a request without a device."""
    rule: int | str
    name: str | None = None
    list: str | None = None
    """Rule, its name, and its list, as in Verdict."""
    serial: int | None = None
    change: int | None = None
    """Number of the list's change, from 1, if the list is local."""
    reason: str | None = None
    """Reason in the list for this device; if the request names no device, the fault of the identifier."""
    date: str | None = None
    """Day on which the entry was reported, if the list has dates."""
    conditions: str = ""
    """Conditions of the rule besides its list."""
    observed: tuple[tuple[int, str, str | None], ...] = ()
    """Observed rules that matched before: number, their status, name."""
    not_loaded: tuple[str, ...] = ()
    """Lists of rules that were never loaded, so that these rules cannot match."""
    first_seen: str | None = None
    """First day of the device; `never` for a device that has not been seen, if a rule asks for it; None if no rule does."""
    until: str | None = None
    """Last day of the period that began with it; None without a period."""

    def as_fields(self) -> dict[str, Any]:
        """Return all fields except the question in JSON types; `of_fields` reverses this."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "question"}

    @classmethod
    def of_fields(cls, question: Question, values: Mapping[str, Any]) -> "Explanation":
        """Build an explanation from its question and the result of `as_fields`, which may have passed through JSON."""
        status = None if values["status"] is None else Status(values["status"])
        observed = tuple((rule, answer, name) for rule, answer, name in values["observed"])
        return cls(
            question, **{**values, "status": status, "observed": observed, "not_loaded": tuple(values["not_loaded"])}
        )

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as the JSON document of `--json`, with null for fields that do not apply."""
        return {
            "imei": self.question.imei or self.question.other or "", "imsi": self.question.imsi or None, "status": self.status,
            "rule": self.rule, "list": self.list, "serial": self.serial, "reason": self.reason, "rule_name": self.name,
            "observed": [{"rule": rule, "rule_name": name, "status": status} for rule, status, name in self.observed],
            "not_loaded": list(self.not_loaded), "first_seen": self.first_seen, "until": self.until, "date": self.date,
        }  # fmt: skip

    def as_text(self) -> str:
        """Format the explanation as text for a person, with notes about lists that were never loaded."""
        lines = [f"{self.question.imei or self.question.other or 'no identifier'}: {self.status or 'error'}"]
        rule = (
            f"by {_rule(self.rule, self.name)}"
            if isinstance(self.rule, int)
            else f"because of the policy's {self.rule}"
        )
        conditions = f": {self.conditions}" if self.conditions else ""
        which = f"serial {self.serial}" if self.change is None else f"change {self.change}"
        lines.append(f"  {rule}{conditions}" + (f", list {self.list} ({which})" if self.list else ""))
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        if self.date:
            lines.append(f"  reported: {self.date}")
        if self.first_seen is not None:
            until = f", until {self.until}" if self.until else ", without a period"
            lines.append(f"  first seen: {self.first_seen}{until}")
        lines += [f"  observed only: {_rule(rule, name)} would answer {status}" for rule, status, name in self.observed]
        lines += [
            f"  note: the list {name} has never been loaded, so no rule that needs it can hold"
            for name in self.not_loaded
        ]
        return "\n".join(lines)


def question_of(device: str, *, imsi: str, software_version: str, origin_host: str, origin_realm: str) -> Question:
    """Build the question about an identifier that a person typed: IMEI, IMEISV, MEID, or an empty text."""
    imei = device or None
    return Question(imei, None if is_digits(device) else imei, imsi, software_version, origin_host, origin_realm)


def option_fault(question: Question) -> str | None:
    """Return the error message for an invalid `--imsi` or `--software-version`; None if both are valid.

    A malformed identifier of the device is allowed, because the policy has an answer to it.
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
    question: Question, policy: PolicySettings, lists: Mapping[str, ListSettings], store: ListStore, *, now: datetime
) -> Explanation:
    """Answer the question from the lists in the store.

    Raises:
        StoreError: if the store cannot be read.
    """
    index = Index({name: settings.kind for name, settings in lists.items()}, now.timestamp)
    if (key := question.any_device()) is not None:
        await _read(question, key, policy, lists, store, index=index)
    explanation = answer(question, policy, index, now=now)
    return (
        explanation
        if explanation.list is None
        else await add_reason(explanation, lists[explanation.list].kind, store, now=now)
    )


def answer(question: Question, policy: PolicySettings, index: Index, *, now: datetime) -> Explanation:
    """Answer the question from the lists in memory; the check is neither counted nor reported.

    The explanation lacks the reason that the list has for the device, which `add_reason` adds.
    """
    observed: list[tuple[int, str, str | None]] = []
    verdict = Checker(policy, index, now=now, note_observed=lambda *rule: observed.append(rule)).check(question)
    wrong = None
    try:
        question.device()
    except IdentifierError as e:
        wrong = str(e)
    if isinstance(verdict, NoDevice):
        return Explanation(question, None, verdict.value, reason=wrong)
    state = index.lists[verdict.list].state if verdict.list is not None else None
    serial, change = (state.serial, None if state.serial else state.generation) if state is not None else (None, None)
    conditions = _conditions(policy.rules[verdict.rule - 1]) if isinstance(verdict.rule, int) else ""
    used = dict.fromkeys(name for rule in policy.rules for name in rule.lists)
    not_loaded = tuple(name for name in used if index.lists[name].state is None) if wrong is None else ()
    first_seen, until = (
        (None, None) if wrong is not None else _first_seen(question.device(), policy, index, verdict.rule)
    )
    return Explanation(
        question, verdict.status, verdict.rule, verdict.name, verdict.list, serial, change, wrong, None, conditions, tuple(observed),
        not_loaded, first_seen, until,
    )  # fmt: skip


def _first_seen(key: int, policy: PolicySettings, index: Index, rule: int | str) -> tuple[str | None, str | None]:
    """Return the first day of a device and the last day of its period of grace, as texts for a person.

    The period is that of the rule that answered, or else that of all rules (eir.checks.periods).
    """
    record, by = index.first_seen, policy.rules[rule - 1] if isinstance(rule, int) else None
    if record is None:
        return None, None
    first = record.day(key)
    if first == WAS_LISTED:
        return "before it left a list", None
    if first is None and not (by is not None and by.asks_first_seen):
        return None, None
    rules = policy if by is None or not by.asks_first_seen else PolicySettings(rules=(by,))
    last = last_day(rules, record.today if first is None else first)
    return NEVER if first is None else day_text(first), None if last == NO_END else day_text(last)


async def add_reason(explanation: Explanation, kind: str, store: ListStore, *, now: datetime) -> Explanation:
    """Add to the explanation the reason and the date that the list has for the device; `kind` is the kind of the list.

    Raises:
        StoreError: if the store cannot be read.
    """
    key = explanation.question.any_device()
    key_in_list = None if key is None else _key_for(kind, key, explanation.question.imsi)
    if explanation.list is None or key_in_list is None:
        return explanation
    reason = await reason_of(store, explanation.list, key_in_list, now=now.timestamp())
    day = await day_of(store, explanation.list, key_in_list, now=now.timestamp())
    return replace(explanation, reason=reason or explanation.reason, date=day_text(day) if day else None)


async def _read(
    question: Question,
    key: int,
    policy: PolicySettings,
    lists: Mapping[str, ListSettings],
    store: ListStore,
    *,
    index: Index,
) -> None:
    """Load into the index the pages of the store that can affect the answer."""
    bound = {rule.subscriber_bound_elsewhere for rule in policy.rules}
    subscriber = subscriber_key(question.imsi)
    for name, settings in lists.items():
        if name in bound and subscriber != NO_SUBSCRIBER:
            state, pages = await _pages_of_pair(store, name, key // SNR_KEYS, subscriber)
        else:
            key_in_list = _key_for(settings.kind, key, question.imsi)
            state, pages = await store.some_pages(name, [] if key_in_list is None else [key_in_list // SNR_KEYS])
        if state is not None and state.kind == settings.kind:  # nodes ignore a list of another kind
            index.switch(name, state, image_of_days(pages) if state.kind == FIRST_SEEN else image_of(pages))


def _key_for(kind: str, key: int, imsi: str) -> int | None:
    """Return the key to look up in a list of this kind: that of the IMSI for subscribers, else that of the device.

    Without a valid IMSI, the key for a list of subscribers is `None`.
    """
    return key if kind != SUBSCRIBERS else subscriber_key(imsi) or None


async def _pages_of_pair(
    store: ListStore, name: str, number: int, subscriber: int
) -> tuple[ListState | None, Sequence[Page]]:
    """Return the state of a list of pairs, the page of the device, and all pages that may contain the IMSI.

    The pages are selected by the bytes of the IMSI's key. The policy evaluates them exactly.
    """
    needle = subscriber.to_bytes(8, "little")
    return await read_pages(store, name, lambda page: page.number == number or needle in page.extra)


def _conditions(rule: Rule) -> str:
    """Format the conditions of a rule except its list, such as `tac 3512345*; imsi 26201*`."""
    parts = []
    for name, value in rule.conditions.items():
        values, needs = value if isinstance(value, tuple) else (value,), CONDITIONS[name]
        shown = [needs.show(each) for each in values[:NAMED_MAX]]
        texts = [text if needs.length in {None, len(text)} else f"{text}*" for text in shown]
        more = f" and {len(values) - NAMED_MAX} more" if len(values) > NAMED_MAX else ""
        if name != "list":
            parts.append(f"{name} {', '.join(texts)}{more}")
    return "; ".join(parts)


def _rule(number: int, name: str | None) -> str:
    return f"rule {number} ({name})" if name else f"rule {number}"
