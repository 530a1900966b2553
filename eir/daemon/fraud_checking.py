"""IMEI Fraud Check as a process of a node serves it: the policy's rules about devices, the store, and what is counted.

A device is what the rules say that need no more than its number, each status by itself: of a policy's order nothing counts but that.
It is read from the store, or while that is away from the node's last good copy, and never from what answers checks.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.config import Config
from eir.daemon.setup import keys_of, tokens_of
from eir.errors import Report, StoreError
from eir.operate import metrics
from eir.peers.settings import PeerSettings
from eir.record.settings import DEVICES
from eir.sources import fraud_api as api
from eir.sources.fraud_check import Found, FraudCheck, no_request
from eir.sources.fraud_settings import SCOPE
from eir.stores.open import open_copy, open_store
from eir.web.http1 import Request, Response
from eir.web.http1_server import Answer

if TYPE_CHECKING:
    from eir.web.tokens import KeyFiles

NAME = "fraud-check"
OF_DEVICES = frozenset({"list", "not_list", "imei", "tac", "device_type", "identifier"})
"""Conditions that a device's number decides alone."""
WORDS = {
    Status.BLACKLISTED: api.PROHIBITED,
    Status.WHITELISTED: api.ALLOWED,
    Status.GREYLISTED: api.TRACKED,
    Status.UNKNOWN: api.UNKNOWN,
}
"""Answers in order of precedence."""


def rules_of(config: Config) -> PolicySettings:
    """A policy that says of a device what counts first: the configured rules that are about devices alone, ordered by their answer."""

    def is_of_device(rule: Rule) -> bool:
        return rule.conditions.keys() <= OF_DEVICES and all(config.lists[name].kind == DEVICES for name in rule.lists)

    rules = [
        replace(rule, observe=False)
        for status in WORDS
        for rule in config.policy.rules
        if rule.answer is status and not rule.observe and is_of_device(rule)
    ]
    return PolicySettings(rules=tuple(rules), default=Status.UNKNOWN)


class FraudService:
    """Implements eir.daemon.interfaces.Service."""

    def __init__(self, config: Config, report: Report) -> None:
        self._store = open_store(config.store, config.state, report=report, check=False)
        self._copy = open_copy(config.store, config.state, report=report, upgrades=False)
        self._check = FraudCheck(config.fraud_check, self._found, ticks=time.monotonic, report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.configure(config)
        self.look()()

    def configure(self, config: Config) -> None:
        """See Service."""
        self._config, self._policy = config, rules_of(config)
        self._lists = {name: config.lists[name] for rule in self._policy.rules for name in rule.lists}
        self.peers = PeerSettings(label=NAME, sources=config.fraud_check.sources)
        self._check.configure(config.fraud_check)

    def respond(self, request: Request) -> Answer:
        """See Service."""
        return self._check.respond(request)

    def refuse(self, status: int) -> Response:
        """See Service."""
        return no_request(status)

    async def work(self) -> None:
        """See Service: there is nothing beside the answers."""

    def look(self) -> Callable[[], None]:
        """See Service."""
        keys = keys_of(self._config.fraud_check.tokens, self._keys)

        def use() -> None:
            if keys != self._keys:
                self._keys, self._check.tokens = keys, tokens_of(keys, self._check.tokens, SCOPE)

        return use

    def counters(self) -> metrics.Snapshot:
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
