"""The feed as a process of a node serves it: its store, its files, and what it counts. Puts the parts of eir.sources together."""

import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eir.config import Config
from eir.daemon.interfaces import Watched
from eir.daemon.setup import keys_of, tokens_of
from eir.errors import Report, StoreError, place_of
from eir.operate import metrics
from eir.peers.settings import PeerSettings
from eir.sources.feed import Feed, no_request
from eir.sources.feed_settings import SCOPE
from eir.sources.feed_users import Users, read_users
from eir.sources.feed_writer import FeedWriter
from eir.sources.msisdn import NO_NUMBERS, read_numbers
from eir.stores.open import open_store
from eir.web.http1 import Request, Response
from eir.web.http1_server import Answer

if TYPE_CHECKING:
    from eir.web.tokens import KeyFiles

NAME = "feed"


class FeedService:
    """Implements eir.daemon.interfaces.Service."""

    def __init__(self, config: Config, report: Report) -> None:
        self._report = report
        self._store = open_store(config.store, config.state, report=report, check=False)
        self._writer = FeedWriter(self._store, config.lists, now=lambda: datetime.now(UTC), failed=self._failed)
        self._feed = Feed(config.feed, self._writer, host=socket.gethostname(), report=report)
        self._keys: KeyFiles | None = None
        self.configure(config)
        self.look()()

    def configure(self, config: Config) -> None:
        """See Service. Files are looked at again, since others may be named."""
        self._config = config
        self.peers = PeerSettings(label=NAME, sources=config.feed.sources)
        self._users_file, self._numbers_file = Watched(config.feed.users), Watched(config.numbers)
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
        """See Service."""
        settings, path = self._config.feed, self._config.numbers
        keys = keys_of(settings.tokens, self._keys)
        users = read_users(settings.users) if settings.users is not None and self._users_file.changed() else None
        numbers = read_numbers(path) if path is not None and self._numbers_file.changed() else None

        def use() -> None:
            feed = self._feed
            if keys != self._keys:
                self._keys, feed.tokens = keys, tokens_of(keys, feed.tokens, SCOPE)
            if settings.users is None:
                feed.users = None
            elif users is not None:
                feed.users = feed.users or Users(users, ticks=time.monotonic)
                feed.users.renew(users)
            if path is None:
                feed.numbers = NO_NUMBERS
            elif numbers is not None:
                feed.numbers = numbers
                self._report("numbers_in_force", numbers=len(numbers.numbers), file=path)

        return use

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
            self._report("fault", reason=NAME, level="error", detail=place_of(fault))
