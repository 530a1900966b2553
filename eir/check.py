"""What would be answered for a device, and why: `eir check`. Reads from the store only the pages that the device is in.

A list of pairs is kept by device, so the devices that a SIM is bound to are looked for in the whole of it, a batch of pages
at a time, and only for a rule that asks (`subscriber_bound_elsewhere`).

The verdict comes from the very policy and index that answer checks on the wire; the reason is read from the store.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from eir.device import IMSI_LENGTHS, SNR_KEYS, TAC_DIGITS, device_key, imsi_key, is_digits
from eir.errors import IdentifierError, StoreChanged
from eir.lists.index import Index
from eir.lists.pages import Page
from eir.lists.reasons import reason_of
from eir.lists.settings import SUBSCRIBERS, ListSettings
from eir.lists.store import ListState, ListStore
from eir.policy import PolicySettings, Rule, Status, compile_policy, explain

NAMED_MAX = 5
"""Values of a rule's condition that are named."""
READ_AGAIN_MAX = 5
"""Times that a list is read anew because it changed while it was read."""
PREFIXES = {"tac": TAC_DIGITS, "software_version": None, "imsi": IMSI_LENGTHS[-1], "origin_host": None, "origin_realm": None}
"""Conditions of a rule that are texts to compare with; those with a length compare as far as a shorter text goes."""


@dataclass(frozen=True, slots=True)
class Question:
    """What an ECR would carry; texts are empty where it would not."""

    imei: str
    """An IMEI, an IMEISV or a MEID; whatever else is asked as a request with a malformed identifier would."""
    imsi: str = ""
    software_version: str = ""
    origin_host: str = ""
    origin_realm: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What would be answered, and why."""

    question: Question
    status: Status | None
    """None: with a protocol error, see `reason`."""
    rule: int | str | None
    list: str | None = None
    serial: int | None = None
    reason: str | None = None
    """What the list gives as the reason for this device; what is wrong with the identifier if it is none."""
    observed: tuple[tuple[int, Status], ...] = ()
    """Rules under observation that held: number, and what they would have answered."""
    not_loaded: tuple[str, ...] = ()
    """Lists that the policy uses and that have never been loaded."""
    conditions: str = ""
    """What else than its list the rule asks for."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Of the rules that have one, by number."""
    change: int | None = None
    """Of the list, counted from 1, where operators change it and no release does."""

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints; null where nothing applies."""
        return {
            "imei": self.question.imei,
            "imsi": self.question.imsi or None,
            "status": self.status,
            "rule": self.rule,
            "list": self.list,
            "serial": self.serial,
            "reason": self.reason,
            "rule_name": self._name(self.rule),
            "observed": [{"rule": rule, "rule_name": self._name(rule), "status": status} for rule, status in self.observed],
            "not_loaded": list(self.not_loaded),
        }

    def as_text(self) -> str:
        """The same for a person, and what else is worth knowing."""
        lines = [f"{self.question.imei}: {self.status or 'error'}"]
        rule = self._rule(self.rule) if isinstance(self.rule, int) else f"policy's {self.rule}"
        rule += f": {self.conditions}" if self.conditions else ""
        which = f"serial {self.serial}" if self.change is None else f"change {self.change}"
        where = f", list {self.list} ({which})" if self.list else ""
        lines.append(f"  because of the {rule}{where}" if not isinstance(self.rule, int) else f"  by {rule}{where}")
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        lines += [f"  observed only: {self._rule(rule)} would answer {status}" for rule, status in self.observed]
        lines += [f"  note: the list {name} has never been loaded, so no rule that needs it can hold" for name in self.not_loaded]
        return "\n".join(lines)

    def _rule(self, number: int) -> str:
        name = self._name(number)
        return f"rule {number} ({name})" if name else f"rule {number}"

    def _name(self, rule: int | str | None) -> str | None:
        return self.names.get(rule) if isinstance(rule, int) else None


async def explain_answer(
    question: Question, policy: PolicySettings, lists: Mapping[str, ListSettings], store: ListStore, *, now: datetime
) -> Answer:
    """Answer the question from the lists in the store. Raises StoreError."""
    index = Index({name: settings.kind for name, settings in lists.items()})
    try:
        key = device_key(question.imei)
    except IdentifierError as e:
        bad = compile_policy(policy, index, observed=lambda *_: None, now=now).bad_identity
        return Answer(question, bad.status if bad else None, bad.rule if bad else None, reason=str(e))
    states: dict[str, ListState] = {}
    bound = {rule.subscriber_bound_elsewhere for rule in policy.rules}
    for name, settings in lists.items():
        if name in bound and (subscriber := _subscriber(question.imsi)) is not None:
            state, pages = await _pages_of_pair(store, name, key // SNR_KEYS, subscriber)
        else:
            state, pages = await store.some_pages(name, list(_page_numbers(settings.kind, key, question.imsi)))
        if state is not None:
            states[name] = state
            builder = index.builder(name, state)
            for page in pages:
                builder.add(page)
            index.switch(name, builder)
            index.lists[name].expire(now.timestamp(), math.inf)
    found = explain(
        policy, index, key, now=now, imsi=question.imsi, software_version=question.software_version,
        origin_host=question.origin_host, origin_realm=question.origin_realm,
    )  # fmt: skip
    verdict = found.verdict
    reason = serial = change = None
    if verdict.list in states:
        serial = states[verdict.list].serial
        change = None if serial else states[verdict.list].generation
        wanted = key if lists[verdict.list].kind != SUBSCRIBERS else _subscriber(question.imsi)
        reason = None if wanted is None else await reason_of(store, verdict.list, wanted, now=now.timestamp())
    conditions = _conditions(policy.rules[verdict.rule - 1]) if isinstance(verdict.rule, int) else ""
    names = {number: rule.name for number, rule in enumerate(policy.rules, 1) if rule.name}
    return Answer(
        question, verdict.status, verdict.rule, verdict.list, serial, reason, found.observed, found.not_loaded, conditions,
        names=names, change=change,
    )  # fmt: skip


def fault_of(question: Question) -> str | None:
    """What no request would carry, so that there is no answer to it; an identifier that is none gets one."""
    if question.imsi:
        try:
            imsi_key(question.imsi)
        except IdentifierError as e:
            return f"--imsi {question.imsi}: {e}"
    if question.software_version and not (len(question.software_version) == 2 and is_digits(question.software_version)):
        return f"--software-version {question.software_version}: expected two digits (TS 23.003 6.2.2)"
    return None


def _conditions(rule: Rule) -> str:
    """`tac 3512345*; imsi 26201*`: the conditions besides the list that the answer names anyway."""
    said = [
        f"{name} {wanted}"
        for name in ("not_list", "device_bound_elsewhere", "subscriber_bound_elsewhere")
        if (wanted := getattr(rule, name)) is not None
    ]
    for name, whole in PREFIXES.items():
        if wanted := getattr(rule, name):
            shown = [text if whole is None or len(text) == whole else f"{text}*" for text in wanted[:NAMED_MAX]]
            more = f" and {len(wanted) - NAMED_MAX} more" if len(wanted) > NAMED_MAX else ""
            said.append(f"{name} {', '.join(shown)}{more}")
    return "; ".join(said)


def _subscriber(imsi: str) -> int | None:
    """The key of an IMSI; None for a text that is none, which a request might carry all the same."""
    try:
        return imsi_key(imsi) if imsi else None
    except IdentifierError:
        return None


def _page_numbers(kind: str, key: int, imsi: str) -> Iterable[int]:
    """The page in which a list of this kind holds the device, or the subscriber."""
    if kind != SUBSCRIBERS:
        yield key // SNR_KEYS
    elif (subscriber := _subscriber(imsi)) is not None:
        yield subscriber // SNR_KEYS


async def _pages_of_pair(store: ListStore, name: str, number: int, subscriber: int) -> tuple[ListState | None, Sequence[Page]]:
    """The page of the device, and those in which the SIM is bound to some device (or seems to be: the policy looks closer)."""
    sought = subscriber.to_bytes(8, "little")
    for _ in range(READ_AGAIN_MAX):
        state: ListState | None = None
        pages: list[Page] = []
        try:
            async for state, batch in store.pages(name):  # noqa: B007  # the last one is returned
                pages += [page for page in batch if page.number == number or sought in page.extra]
        except StoreChanged:
            continue
        return state, pages
    raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read")
