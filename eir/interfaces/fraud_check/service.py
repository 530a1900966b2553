"""IMEI Fraud Check as a process of a node serves it: stores, keys of tokens, and what it counts.

To IMEI Fraud Check a device is what the rules say that need no more than its number, each status by itself: of a policy's order nothing
counts but that. It is read from the store, or while that is away from the node's last good copy, and never from what answers checks.
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
from eir.interfaces.fraud_check.fraud_check import Found, FraudCheck
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
"""Conditions that a device's number decides alone."""
WORDS = {
    Status.BLACKLISTED: api.PROHIBITED,
    Status.WHITELISTED: api.ALLOWED,
    Status.GREYLISTED: api.TRACKED,
    Status.UNKNOWN: api.UNKNOWN,
}
"""Answers in order of precedence."""


def rules_of(shared: SharedSettings) -> PolicySettings:
    """A policy that says of a device what counts first: the configured rules that are about devices alone, ordered by their answer."""

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
    """Implements eir.interfaces.interface.Service."""

    def __init__(self, settings: FraudSettings, shared: SharedSettings, report: Report) -> None:
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        self._copy = open_copy(shared.store, shared.state, report=report, upgrades=False)
        self._check = FraudCheck(settings, self._found, ticks=time.monotonic, report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.apply(settings, shared)
        self.look()()

    def apply(self, settings: FraudSettings, shared: SharedSettings) -> None:
        """See Service."""
        self._settings, self._policy = settings, rules_of(shared)
        self._lists = {name: shared.lists[name] for rule in self._policy.rules for name in rule.lists}
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._check.configure(settings)

    def respond(self, request: HttpRequest) -> Answer:
        """See Service."""
        return self._check.respond(request)

    def refuse(self, status: int) -> HttpResponse:
        """See Service."""
        return api.no_request(status)

    async def work(self) -> None:
        """See Service: there is nothing beside the answers."""

    def look(self) -> Callable[[], None]:
        """See Service."""
        keys = keys_of(self._settings.tokens, self._keys)

        def use() -> None:
            if keys != self._keys:
                self._keys = keys
                self._check.apply_tokens(tokens_of(keys, self._check.tokens, FRAUD_SCOPE))

        return use

    def counters(self) -> Samples:
        """See Service."""
        return {"eir_fraud_checks_total": self._check.answers}

    async def close(self) -> None:
        """See Service."""
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()

    async def _found(self, imei: str) -> Found:
        now, question = datetime.now(UTC), Question(imei)
        try:
            said = await explain(question, self._policy, self._lists, self._store, now=now)
        except StoreError:
            if self._copy is None:
                raise
            said = await explain(question, self._policy, self._lists, self._copy, now=now)
        return Found(WORDS[said.status or Status.UNKNOWN], said.reason)
