"""Service process of the interface DeviceAuthenticity: opens the stores, reads the keys of access tokens, and returns the counters.

It evaluates only rules that need nothing but the IMEI. If several hold, the precedence of their statuses counts, not their place in the
policy; only a rule that asks the record of first sightings excludes the rules after it. It reads lists from the store, and starts with the
node's copies, which count while the store is unreachable or has lost data; it never uses the images of the answering process.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.errors import Report
from eir.interfaces.device_authenticity import device_authenticity as api
from eir.interfaces.device_authenticity.device_authenticity import DeviceAuthenticity, DeviceStatus
from eir.interfaces.device_authenticity.settings import ALLOWED, AUTHENTICITY_SCOPE, NAME, UNKNOWN, AuthenticitySettings
from eir.interfaces.interface import REQUEST_BODY_MAX, NodeCalls, Samples, SharedSettings
from eir.lists.follow.list_reader import ListReader
from eir.lists.record.listed_entries import reason_and_day
from eir.lists.record.settings import DEVICES, FIRST_SEEN, TYPES
from eir.lists.stores.open import COPIES, open_store
from eir.lists.table.columns import DAY_MAX
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer
from eir.wire.web.verifier import keys_of, tokens_of

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

OF_DEVICES = frozenset({
    "list", "not_list", "imei", "tac", "device_type", "identifier", "first_seen_within", "first_seen_before",
})  # fmt: skip
"""Conditions that depend only on the IMEI."""


def rules_of(shared: SharedSettings) -> PolicySettings:
    """Return a policy with those configured rules that need only the IMEI of a device.

    All rules of the policy are observed, so that a check reports each rule that holds.
    """

    def is_of_device(rule: Rule) -> bool:
        return rule.conditions.keys() <= OF_DEVICES and all(shared.lists[name].kind == DEVICES for name in rule.lists)

    rules = [replace(rule, observe=True) for rule in shared.policy.rules if not rule.observe and is_of_device(rule)]
    return PolicySettings(rules=tuple(rules))


class AuthenticityService:
    """HTTP service DeviceAuthenticity in the services process; it implements eir.interfaces.interface.Service."""

    request_body_max, reads_certificates = REQUEST_BODY_MAX, False

    def __init__(self, settings: AuthenticitySettings, shared: SharedSettings, report: Report, _: NodeCalls) -> None:
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        self._reader = ListReader(self._store, shared.state / COPIES)
        self._check = DeviceAuthenticity(settings, self._device_status, ticks=time.monotonic, report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.apply(settings, shared)
        self.read_files()()

    def apply(self, settings: AuthenticitySettings, shared: SharedSettings) -> None:
        """Apply new settings: the section `device_authenticity`, and the policy rules and lists that this service uses."""
        self._settings, self._policy = settings, rules_of(shared)
        rules = self._policy.rules
        names = {name for rule in rules for name in rule.lists}
        kinds = {
            *(TYPES for rule in rules if rule.device_type),
            *(FIRST_SEEN for rule in rules if rule.has_first_seen),
        }
        self._lists = {
            name: each for name, each in shared.lists_and_record.items() if name in names or each.kind in kinds
        }
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._check.apply(settings)

    def respond(self, request: HttpRequest) -> Answer:
        """Return the response to an HTTP request."""
        return self._check.respond(request)

    def refuse(self, status: int) -> HttpResponse:
        """Return the error response to bytes that are not an HTTP request."""
        return api.failed("body" if status == 413 else "argument")

    async def work(self) -> None:
        """Return at once: this service has no background work."""

    def read_files(self) -> Callable[[], None]:
        """Read the key files of access tokens again. Return a function that applies changed keys."""
        keys = keys_of(self._settings.tokens, self._keys)

        def use() -> None:
            if keys != self._keys:
                self._keys = keys
                self._check.apply_tokens(tokens_of(keys, self._check.tokens, AUTHENTICITY_SCOPE))

        return use

    def counters(self) -> Samples:
        """Return the counters of the service by metric name and label values."""
        return {"eir_device_authenticity_total": self._check.answers}

    async def close(self) -> None:
        """Close the list store."""
        await self._store.close()

    async def _device_status(self, imei: str) -> DeviceStatus | None:
        """Return the status of an IMEI; None if no rule matches."""
        now, question = datetime.now(UTC), Question(imei)
        explanation = await explain(question, self._policy, self._lists, self._reader.content, now=now)
        found = []
        for number, *_ in explanation.observed:
            rule = self._policy.rules[number - 1]
            found.append(await self._status_by(rule, question.device(), int(now.timestamp())))
            if rule.has_first_seen:  # a device within its period of grace is not judged by later rules
                break
        return min(found, key=_precedence, default=None)

    async def _status_by(self, rule: Rule, key: int, now: int) -> DeviceStatus:
        """Return the status that a matching rule gives to a device: blacklisted, allowed or unknown."""
        if rule.answer is not Status.BLACKLISTED:
            return DeviceStatus(ALLOWED if rule.answer is Status.WHITELISTED else UNKNOWN)
        content = None if rule.list is None else await self._reader.content(rule.list)
        if content is None:
            return DeviceStatus(api.BLACKLISTED)
        reason, day = reason_and_day(content.table, content.head.reasons, key, now=now)
        return DeviceStatus(api.reason_word(reason), day)


def _precedence(device: DeviceStatus) -> tuple[int, int]:
    """Return the sort key of device statuses: first the position in STATUSES, then the day of the report, the earliest first."""
    return api.STATUSES.index(device.status), device.day or DAY_MAX
