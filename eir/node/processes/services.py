"""The feed, and IMEI Fraud Check, as processes of a node serve them (eir.node.processes.interfaces): store, files, and what they count.

To IMEI Fraud Check a device is what the rules say that need no more than its number, each status by itself: of a policy's order nothing
counts but that. It is read from the store, or while that is away from the node's last good copy, and never from what answers checks.
"""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.config import Config
from eir.errors import EirError, Report, StoreError, place_of
from eir.interfaces.feed.feed import Feed, no_request
from eir.interfaces.feed.feed_users import Users, read_users
from eir.interfaces.feed.feed_writer import FeedWriter
from eir.interfaces.feed.settings import FEED_SCOPE
from eir.interfaces.fraud_check import fraud_check as api
from eir.interfaces.fraud_check.fraud_check import Found, FraudCheck
from eir.interfaces.fraud_check.settings import FRAUD_SCOPE
from eir.lists.record.settings import DEVICES
from eir.lists.rows.msisdn import NO_NUMBERS, read_numbers
from eir.lists.stores.open import open_copy, open_store
from eir.node.observe import metrics
from eir.node.processes.interfaces import Interface, Watched
from eir.node.processes.setup import keys_of, tokens_of
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import in_force_before
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.http1 import Request, Response
from eir.wire.web.http1_server import Answer

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

FEED_PROCESS = "feed"
USERS, TOKENS, NUMBERS = "users", "tokens", "numbers"
"""Files that it goes by, as status and metrics call them."""


class FeedService:
    """Implements eir.node.processes.interfaces.Service."""

    def __init__(self, config: Config, report: Report) -> None:
        self._report = report
        self._store = open_store(config.store, config.state, report=report, check=False)
        self._writer = FeedWriter(
            self._store,
            config.lists,
            now=lambda: datetime.now(UTC),
            failed=self._failed,
            had=partial(in_force_before, config.state),
        )
        self._feed = Feed(config.feed, self._writer, host=socket.gethostname(), report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.configure(config)
        self.look()()

    def configure(self, config: Config) -> None:
        """See Service. Files are looked at again, since others may be named."""
        self.peers = PeerSettings(label=FEED_PROCESS, sources=config.feed.sources)
        self._watched = config.feed, Watched(config.feed.users), Watched(config.numbers)
        self.faults = {}
        self._writer.lists = config.lists
        self._feed.configure(config.feed)

    def respond(self, request: Request) -> Answer:
        """See Service."""
        return self._feed.respond(request)

    def refuse(self, status: int) -> Response:
        """See Service."""
        return no_request(status)

    async def work(self) -> None:
        """See Service: write what comes."""
        await self._writer.run()

    def look(self) -> Callable[[], None]:
        """See Service. A file that cannot be used keeps no other from being used."""
        settings, users, numbers = watched = self._watched
        found: dict[str, Any] = {}
        faults: dict[str, str] = {}

        def read(file: str, reading: Callable[[], Any]) -> None:
            try:
                found[file] = reading()
            except EirError as e:
                faults[file] = str(e)

        read(TOKENS, lambda: keys_of(settings.tokens, self._keys))
        for file, of, reader in ((USERS, users, read_users), (NUMBERS, numbers, read_numbers)):
            if of.path is not None and of.changed():
                read(file, partial(reader, of.path))

        def use() -> None:
            if watched is self._watched:  # no other files are named since
                self.faults = {file: why for file, why in self.faults.items() if file not in found} | faults
                self._use(found)

        return use

    def _use(self, found: Mapping[str, Any]) -> None:
        """Go by what was read of files that have changed."""
        feed, (_, users, numbers) = self._feed, self._watched
        if TOKENS in found and (keys := found[TOKENS]) != self._keys:
            self._keys, feed.tokens = keys, tokens_of(keys, feed.tokens, FEED_SCOPE)
        if users.path is None:
            feed.users = None
        elif USERS in found:
            feed.users = feed.users or Users(found[USERS], ticks=time.monotonic)
            feed.users.renew(found[USERS])
        if numbers.path is None:
            feed.numbers = NO_NUMBERS
        elif NUMBERS in found:
            feed.numbers = found[NUMBERS]
            self._report("numbers_in_force", numbers=len(feed.numbers.numbers), file=numbers.path)
        feed.has_all_numbers = NUMBERS not in self.faults

    def counters(self) -> metrics.Snapshot:
        """See Service."""
        return {
            "eir_feed_rows_total": self._feed.answers,
            "eir_feed_transactions_total": {(): self._writer.transactions},
        }

    async def close(self) -> None:
        """See Service."""
        await self._store.close()

    def _failed(self, fault: Exception) -> None:
        if isinstance(fault, StoreError):
            self._report("feed_failed", level="error", reason=fault.cause, detail=str(fault))
        else:
            self._report("fault", reason=FEED_PROCESS, level="error", detail=place_of(fault))


FRAUD_PROCESS = "fraud-check"
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
    """Implements eir.node.processes.interfaces.Service."""

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
        self.peers = PeerSettings(label=FRAUD_PROCESS, sources=config.fraud_check.sources)
        self._check.configure(config.fraud_check)

    def respond(self, request: Request) -> Answer:
        """See Service."""
        return self._check.respond(request)

    def refuse(self, status: int) -> Response:
        """See Service."""
        return api.no_request(status)

    async def work(self) -> None:
        """See Service: there is nothing beside the answers."""

    def look(self) -> Callable[[], None]:
        """See Service."""
        keys = keys_of(self._config.fraud_check.tokens, self._keys)

        def use() -> None:
            if keys != self._keys:
                self._keys, self._check.tokens = keys, tokens_of(keys, self._check.tokens, FRAUD_SCOPE)

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


def interfaces(start: Start, report: Report) -> Sequence[Interface]:
    """All interfaces that there may be beside the checks."""
    return (
        Interface(FEED_PROCESS, FeedService, lambda config: config.feed.listen, start, report=report),
        Interface(FRAUD_PROCESS, FraudService, lambda config: config.fraud_check.listen, start, report=report),
    )
