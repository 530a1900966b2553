"""Explanation of the answer that a device would get (`eir check`), from the lists in a node's memory or in the store.

A Checker computes the answer, as for a request. For lists in the store, it gets an image of those rows that can affect the answer. The
reason is always read from the store or the node's copy, because nodes do not keep reasons in memory.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
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
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.log.reader import LoggedList
from eir.lists.record.entries import until_text
from eir.lists.record.first_days import IMPORT, WAS_LISTED
from eir.lists.record.listed_entries import reason_and_day, rows_between
from eir.lists.record.matching import matching_rows
from eir.lists.record.settings import FIRST_SEEN, SUBSCRIBERS, TYPES, ListSettings
from eir.lists.table.columns import NO_ROWS, SECONDS, TableRows
from eir.lists.table.table import Table, merge, table_of

NEVER = "never"
VALUES_MAX = 5
"""Maximum number of values of a condition in the text of an explanation."""

ObservedRule = tuple[int, str, str | None]
"""Number of an observed rule, its status, its name."""
PendingList = tuple[str, str]
"""List that has a row for the device which has not begun, and the begin of this row."""
ReadContent = Callable[[str], Awaitable[LoggedList | None]]
"""Function that returns the content of a list by name; None if the list was never loaded or changed."""


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
    pending: tuple[PendingList, ...] = ()
    """Lists of the policy that will list the device, and do not list it yet."""

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
        arguments["pending"] = tuple(map(tuple, arguments["pending"]))
        return cls(question, **arguments)

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as the JSON document of `--json`, with null for fields that do not apply."""
        imei = self.question.imei or self.question.other or ""
        observed = [{"rule": rule, "rule_name": name, "status": status} for rule, status, name in self.observed]
        pending = [{"list": name, "begin": begin} for name, begin in self.pending]
        return {
            "imei": imei, "imsi": self.question.imsi or None, "status": self.status,
            "rule": self.rule, "list": self.list, "serial": self.serial, "reason": self.reason, "rule_name": self.name,
            "observed": observed,
            "not_loaded": list(self.not_loaded), "first_seen": self.first_seen, "until": self.until, "date": self.date,
            "pending": pending,
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
        lines += [f"  from {begin}: list {name}" for name, begin in self.pending]
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
    question: Question, policy: PolicySettings, lists: Mapping[str, ListSettings], read: ReadContent, *, now: datetime
) -> Explanation:
    """Decide a question about a device by the lists that `read` returns; return the answer with its reason.

    Raises:
        StoreError: if a list cannot be read.
    """
    kinds = {name: settings.kind for name, settings in lists.items()}
    index = Index(kinds, now.timestamp)
    key = question.any_device()
    contents: dict[str, LoggedList] = {}
    for name, kind in kinds.items() if key is not None else ():
        content = await read(name)
        imported = await read(name + IMPORT) if kind == FIRST_SEEN else None
        content = content or imported
        if content is not None and content.head.kind == kind:  # nodes ignore a list of another kind
            contents[name] = content
            rows = rows_about(question, kind, content.table)
            rows = matching_rows(rows, content.head.reasons, lists[name].reasons)
            if imported is not None:
                rows = merge(rows, rows_about(question, kind, imported.table))
            build = first_seen_image if kind == FIRST_SEEN else image_of
            index.switch(name, content.head, build(table_of(rows)))
    explanation = answer(question, policy, lists, index, now=now)
    if explanation.list is None or explanation.list not in contents:
        return explanation
    return with_reason(explanation, contents[explanation.list], lists[explanation.list].reasons, now=now)


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
    pending = tuple(_pending(question, key, names, index))
    return replace(explanation, not_loaded=not_loaded, first_seen=first_seen, until=until, pending=pending)


def _pending(question: Question, key: int, names: Iterable[str], index: Index) -> Iterator[PendingList]:
    """Yield each of these lists that will list the device and does not list it yet, with the first begin."""
    for name in names:
        entries = index.lists[name]
        key_in_list = _key_for(entries.kind, key, question.imsi)
        begin = 0 if key_in_list is None else entries.begin(key_in_list, subscriber_key(question.imsi))
        if begin:
            yield name, until_text(begin)


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


def with_reason(
    explanation: Explanation, content: LoggedList, chosen: Sequence[str] = (), *, now: datetime
) -> Explanation:
    """Return the explanation with the reason and the date of the list entry that caused the answer.

    `content`: content of the list. `chosen`: reasons of the rows that match (ListSettings.reasons).
    """
    question = explanation.question
    key = question.any_device()
    key_in_list = _key_for(content.head.kind, key, question.imsi)
    if key_in_list is None:
        return explanation
    reason, day = reason_and_day(
        content.table, content.head.reasons, key_in_list, second=subscriber_key(question.imsi), now=int(now.timestamp()), chosen=chosen
    )  # fmt: skip
    return replace(explanation, reason=reason or explanation.reason, date=day_text(day) if day else None)


def rows_about(question: Question, kind: str, table: Table) -> TableRows:
    """Return the rows of a list about the device or the subscriber of a question, which alone can affect its answer."""
    if kind == TYPES:
        key = question.any_device()
        return NO_ROWS if key is None else table.find(key // SNR_KEYS * SNR_KEYS)
    key, subscriber = _key_for(kind, question.any_device(), question.imsi), subscriber_key(question.imsi)
    rows = NO_ROWS if key is None else rows_between(table, key, key)
    seconds = table.columns[SECONDS]
    if seconds is None or subscriber == NO_SUBSCRIBER:
        return rows
    bound = table.rows().select(seconds == subscriber)  # a rule may ask for the other devices of the IMSI
    return merge(rows, bound)


def _key_for(kind: str, key: int | None, imsi: str) -> int | None:
    """Return the key to look up in a list of this kind: the key of the IMSI in a list of subscribers, else the key of the device.

    Without a valid IMSI, the key for a list of subscribers is `None`.
    """
    if kind != SUBSCRIBERS:
        return key
    return subscriber_key(imsi) or None


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
