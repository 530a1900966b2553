"""What would be answered for a device, and why: `eir check`. Reads from the store only the pages that the device is in.

The verdict comes from the very policy and index that answer checks on the wire; the reason is read from the store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eir.device import SNR_KEYS, device_key, imsi_key
from eir.errors import IdentifierError
from eir.lists.index import Index
from eir.lists.load import ListSettings
from eir.lists.store import ListState, ListStore
from eir.policy import PolicySettings, Status, compile_policy, explain
from eir.stores.follow import reason_of


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
        }

    def as_text(self) -> str:
        """The same for a person, and what else is worth knowing."""
        lines = [f"{self.question.imei}: {self.status or 'error'}"]
        rule = f"rule {self.rule}" if isinstance(self.rule, int) else f"policy's {self.rule}"
        where = f", list {self.list} (serial {self.serial})" if self.list else ""
        lines.append(f"  because of the {rule}{where}" if not isinstance(self.rule, int) else f"  by {rule}{where}")
        if self.reason:
            lines.append(f"  reason: {self.reason}")
        lines += [f"  observed only: rule {rule} would answer {status}" for rule, status in self.observed]
        lines += [f"  note: the list {name} has never been loaded, so no rule that needs it can hold" for name in self.not_loaded]
        return "\n".join(lines)


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
    for name, settings in lists.items():
        state, pages = await store.some_pages(name, list(_page_numbers(settings.kind, key, question.imsi)))
        if state is not None:
            states[name] = state
            builder = index.builder(name, state)
            for page in pages:
                builder.add(page)
            index.switch(name, builder)
    found = explain(
        policy, index, key, now=now, imsi=question.imsi, software_version=question.software_version,
        origin_host=question.origin_host, origin_realm=question.origin_realm,
    )  # fmt: skip
    verdict = found.verdict
    reason = serial = None
    if verdict.list in states:
        serial = states[verdict.list].serial
        reason = await reason_of(store, verdict.list, key)
    return Answer(question, verdict.status, verdict.rule, verdict.list, serial, reason, found.observed, found.not_loaded)


def _page_numbers(kind: str, key: int, imsi: str) -> Iterable[int]:
    """The page in which a list of this kind holds the device, or the subscriber."""
    if kind != "subscribers":
        yield key // SNR_KEYS
    elif imsi:
        try:
            yield imsi_key(imsi) // SNR_KEYS
        except IdentifierError:
            return
