"""IMEI Fraud Check in a process of its own: stores, keys of tokens and counters.

It evaluates only rules that need nothing but the IMEI, ordered by their status instead of their place in the policy. It reads lists from the
store, or from the node's last good copy while the store is unreachable; it never uses the images of the workers.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.errors import Report, StoreError
from eir.interfaces.fraud_check import fraud_check as api
from eir.interfaces.fraud_check.fraud_check import DeviceStatus, FraudCheck
from eir.interfaces.fraud_check.settings import FRAUD_SCOPE, NAME, FraudSettings
from eir.interfaces.interface import Samples, SharedSettings
from eir.lists.record.settings import DEVICES
from eir.lists.stores.open import open_copy, open_store
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.denials import keys_of, tokens_of
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

OF_DEVICES = frozenset({"list", "not_list", "imei", "tac", "device_type", "identifier"})
"""Conditions that depend only on the IMEI."""
WORDS = {
    Status.BLACKLISTED: api.PROHIBITED,
    Status.WHITELISTED: api.ALLOWED,
    Status.GREYLISTED: api.TRACKED,
    Status.UNKNOWN: api.UNKNOWN,
}
"""Words of the API by status, in order of precedence."""


def rules_of(shared: SharedSettings) -> PolicySettings:
    """Return a policy of the configured rules that depend only on the IMEI, ordered by the precedence of their answer."""

    def is_of_device(rule: Rule) -> bool:
        return rule.conditions.keys() <= OF_DEVICES and all(shared.lists[name].kind == DEVICES for name in rule.lists)

    rules = [
        replace(rule, observe=False)
        for status in WORDS
        for rule in shared.policy.rules
        if rule.answer is status and not rule.observe and is_of_device(rule)
    ]
    return PolicySettings(rules=tuple(rules), default=Status.UNKNOWN)


class FraudService:
    """IMEI Fraud Check as an eir.interfaces.interface.Service."""

    def __init__(self, settings: FraudSettings, shared: SharedSettings, report: Report) -> None:
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        self._copy = open_copy(shared.store, shared.state, report=report, upgrades=False)
        self._check = FraudCheck(settings, self._device_status, ticks=time.monotonic, report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.apply(settings, shared)
        self.read_files()()

    def apply(self, settings: FraudSettings, shared: SharedSettings) -> None:
        """Apply new settings."""
        self._settings, self._policy = settings, rules_of(shared)
        self._lists = {name: shared.lists[name] for rule in self._policy.rules for name in rule.lists}
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._check.apply(settings)

    def respond(self, request: HttpRequest) -> Answer:
        """Return the answer to a request."""
        return self._check.respond(request)

    def refuse(self, status: int) -> HttpResponse:
        """Return the answer to bytes that are not a request."""
        return api.no_request(status)

    async def work(self) -> None:
        """Return at once: this service has no background work."""

    def read_files(self) -> Callable[[], None]:
        """Read the keys of tokens if they have changed. Return a function that applies them."""
        keys = keys_of(self._settings.tokens, self._keys)

        def use() -> None:
            if keys != self._keys:
                self._keys = keys
                self._check.apply_tokens(tokens_of(keys, self._check.tokens, FRAUD_SCOPE))

        return use

    def counters(self) -> Samples:
        """Return the counters."""
        return {"eir_fraud_checks_total": self._check.answers}

    async def close(self) -> None:
        """Close the stores."""
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()

    async def _device_status(self, imei: str) -> DeviceStatus:
        now, question = datetime.now(UTC), Question(imei)
        try:
            explanation = await explain(question, self._policy, self._lists, self._store, now=now)
        except StoreError:
            if self._copy is None:
                raise
            explanation = await explain(question, self._policy, self._lists, self._copy, now=now)
        return DeviceStatus(WORDS[explanation.status or Status.UNKNOWN], explanation.reason)
