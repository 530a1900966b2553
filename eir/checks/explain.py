"""The answer that a device would get, and why: `eir check`. From the lists in a node's memory, or from the store.

The answer is that of a Checker, as on the wire; only those pages of the store are read that the device is in. The
reason is read from a store in any case, as no node holds it in memory. A list of pairs is kept by device, so the
devices that a SIM is bound to are looked for in the whole of it, a batch of pages at a time, and only for a rule that
asks (`subscriber_bound_elsewhere`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from eir.checks.checker import Checker
from eir.checks.conditions import CONDITIONS, NOBODY, subscriber_key
from eir.checks.question import SOFTWARE_VERSION_DIGITS, Question
from eir.checks.settings import NoDevice, PolicySettings, Rule, Status
from eir.device import SNR_KEYS, imsi_key, is_digits
from eir.errors import IdentifierError
from eir.lists.images.imaging import image_of
from eir.lists.images.index import Index
from eir.lists.pages.pages import Page
from eir.lists.record.entries import read_pages
from eir.lists.record.reasons import reason_of
from eir.lists.record.settings import SUBSCRIBERS, ListSettings
from eir.lists.record.store import ListState, ListStore

NAMED_MAX = 5
"""Values of a rule's condition that are named."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer that a device would get, and why."""

    question: Question
    status: Status | None
    """None: the protocol's error for a request that names no device."""
    rule: int | str
    name: str | None = None
    list: str | None = None
    """These three as in Verdict."""
    serial: int | None = None
    change: int | None = None
    """Number of the list's change, counted from 1, where operators change the list and no release does."""
    reason: str | None = None
    """The list's reason for this device; what is wrong with the identifier if it names no device."""
    conditions: str = ""
    """Conditions of the rule besides its list."""
    observed: tuple[tuple[int, str, str | None], ...] = ()
    """Rules under observation that held before: number, what they would have answered, name."""
    not_loaded: tuple[str, ...] = ()
    """Lists that rules look into and that have never been loaded, so that these rules could not hold."""

    def as_fields(self) -> dict[str, Any]:
        """Return everything besides the question, as JSON knows it; `of_fields` reverses this."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "question"}

    @classmethod
    def of_fields(cls, question: Question, found: Mapping[str, Any]) -> "Explanation":
        """Make an explanation of the question that it answers and what `as_fields` gave, perhaps by way of JSON."""
        status = None if found["status"] is None else Status(found["status"])
        observed = tuple((rule, answer, name) for rule, answer, name in found["observed"])
        return cls(
            question, **{**found, "status": status, "observed": observed, "not_loaded": tuple(found["not_loaded"])}
        )

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints; null where nothing applies."""
        return {
            "imei": self.question.imei or self.question.other or "", "imsi": self.question.imsi or None, "status": self.status,
            "rule": self.rule, "list": self.list, "serial": self.serial, "reason": self.reason, "rule_name": self.name,
            "observed": [{"rule": rule, "rule_name": name, "status": status} for rule, status, name in self.observed],
            "not_loaded": list(self.not_loaded),
        }  # fmt: skip

    def as_text(self) -> str:
        """The same for a person, and what else is worth knowing."""
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
        lines += [f"  observed only: {_rule(rule, name)} would answer {status}" for rule, status, name in self.observed]
        lines += [
            f"  note: the list {name} has never been loaded, so no rule that needs it can hold"
            for name in self.not_loaded
        ]
        return "\n".join(lines)


def question_of(device: str, *, imsi: str, software_version: str, origin_host: str, origin_realm: str) -> Question:
    """The question about a device as a person types it: an IMEI, an IMEISV or a MEID; or nothing, as a request without one asks."""
    imei = device or None
    return Question(imei, None if is_digits(device) else imei, imsi, software_version, origin_host, origin_realm)


def wrong_option(question: Question) -> str | None:
    """Return what is wrong with `--imsi` or `--software-version`, in words; None if nothing is.

    A malformed identifier of the device is not wrong here: the policy has an answer to it.
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
    """Answer the question from the lists in the store. Raises StoreError."""
    index = Index({name: settings.kind for name, settings in lists.items()}, now.timestamp)
    if (key := question.any_device()) is not None:
        await _read(question, key, policy, lists, store, index=index)
    found = answer(question, policy, index, now=now)
    return found if found.list is None else await give_reason(found, lists[found.list].kind, store, now=now)


def answer(question: Question, policy: PolicySettings, index: Index, *, now: datetime) -> Explanation:
    """Answer the question from the lists in memory, without the reason that the list gives. Nothing is counted, and nobody told."""
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
    return Explanation(
        question,
        verdict.status,
        verdict.rule,
        verdict.name,
        verdict.list,
        serial,
        change,
        wrong,
        conditions,
        tuple(observed),
        not_loaded,
    )


async def give_reason(found: Explanation, kind: str, store: ListStore, *, now: datetime) -> Explanation:
    """The same with the reason that its list, of this kind, gives in the store. Raises StoreError."""
    key = found.question.any_device()
    wanted = None if key is None else _wanted(kind, key, found.question.imsi)
    if found.list is None or wanted is None:
        return found
    return replace(found, reason=await reason_of(store, found.list, wanted, now=now.timestamp()) or found.reason)


async def _read(
    question: Question,
    key: int,
    policy: PolicySettings,
    lists: Mapping[str, ListSettings],
    store: ListStore,
    *,
    index: Index,
) -> None:
    """Put into the index what the lists hold that may bear on the question."""
    bound = {rule.subscriber_bound_elsewhere for rule in policy.rules}
    subscriber = subscriber_key(question.imsi)
    for name, settings in lists.items():
        if name in bound and subscriber != NOBODY:
            state, pages = await _pages_of_pair(store, name, key // SNR_KEYS, subscriber)
        else:
            wanted = _wanted(settings.kind, key, question.imsi)
            state, pages = await store.some_pages(name, [] if wanted is None else [wanted // SNR_KEYS])
        if state is not None and state.kind == settings.kind:  # else no node has it in force
            index.switch(name, state, image_of(pages))


def _wanted(kind: str, key: int, imsi: str) -> int | None:
    """The key by which a list of this kind is asked: the device's or the subscriber's; None if there is no IMSI to ask by."""
    return key if kind != SUBSCRIBERS else subscriber_key(imsi) or None


async def _pages_of_pair(
    store: ListStore, name: str, number: int, subscriber: int
) -> tuple[ListState | None, Sequence[Page]]:
    """The page of the device, and those in which the SIM is bound to some device (or seems to be: the policy looks closer)."""
    sought = subscriber.to_bytes(8, "little")
    return await read_pages(store, name, lambda page: page.number == number or sought in page.extra)


def _conditions(rule: Rule) -> str:
    """`tac 3512345*; imsi 26201*`: the conditions besides the list that the answer names anyway."""
    said = []
    for name, value in rule.conditions.items():
        values, length = (value,) if CONDITIONS[name].names_list else value, CONDITIONS[name].length
        shown = [text if length in {None, len(text)} else f"{text}*" for text in values[:NAMED_MAX]]
        more = f" and {len(values) - NAMED_MAX} more" if len(values) > NAMED_MAX else ""
        if name != "list":
            said.append(f"{name} {', '.join(shown)}{more}")
    return "; ".join(said)


def _rule(number: int, name: str | None) -> str:
    return f"rule {number} ({name})" if name else f"rule {number}"
