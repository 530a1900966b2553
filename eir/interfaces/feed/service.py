"""Process of the feed: opens the store, reads the configured files, and returns the counters."""

import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from eir.disk import WatchedFile
from eir.errors import EirError, Report, StoreError, place_of
from eir.interfaces.feed.feed import Feed, no_request
from eir.interfaces.feed.feed_users import Users, read_users
from eir.interfaces.feed.feed_writer import JOURNAL, FeedWriter
from eir.interfaces.feed.settings import FEED_SCOPE, NAME, FeedSettings
from eir.interfaces.interface import IsRecorded, Samples, SharedSettings
from eir.lists.follow.write_back import refuse_lost_here
from eir.lists.log.journal import JournalError
from eir.lists.rows.msisdn import NO_NUMBERS, read_numbers
from eir.lists.stores.open import COPIES, open_store
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer
from eir.wire.web.verifier import keys_of, tokens_of

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

USERS, TOKENS, NUMBERS = "users", "tokens", "numbers"
"""Names of its files in status and metrics."""


class FeedService:
    """HTTP service of the feed, which runs in a process of its own; it implements eir.interfaces.interface.Service."""

    def __init__(self, settings: FeedSettings, shared: SharedSettings, report: Report, is_recorded: IsRecorded) -> None:
        self._report = report
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        self._writer = FeedWriter(
            self._store,
            shared.lists,
            now=lambda: datetime.now(UTC),
            failed=self._failed,
            is_recorded=is_recorded,
            guard=partial(refuse_lost_here, shared.state / COPIES),
        )
        self._feed = Feed(settings, self._writer, host=socket.gethostname(), report=report)
        self._keys: KeyFiles | None = None
        self.faults: Mapping[str, str] = {}
        self.apply(settings, shared)
        self.read_files()()

    def apply(self, settings: FeedSettings, shared: SharedSettings) -> None:
        """Apply new settings to the feed. The next call of `read_files` reads all configured files again."""
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._watched = settings, WatchedFile(settings.users), WatchedFile(shared.numbers)
        self.faults = {}
        self._writer.lists = shared.lists
        self._feed.apply(settings)

    def respond(self, request: HttpRequest) -> Answer:
        """Return the answer to a request, at once or as an awaitable."""
        return self._feed.respond(request)

    def refuse(self, status: int) -> HttpResponse:
        """Return the error response to bytes that are not an HTTP request."""
        return no_request(status)

    async def work(self) -> None:
        """Write queued rows into the lists until cancelled."""
        await self._writer.run()

    def read_files(self) -> Callable[[], None]:
        """Read those configured files that have changed (users, token keys, phone numbers). Return a function that applies their contents.

        A fault of one file does not affect the others. The returned function must run on the event loop.
        """
        settings, users, numbers = watched = self._watched
        contents: dict[str, Any] = {}
        faults: dict[str, str] = {}

        def read(file: str, reading: Callable[[], Any]) -> None:
            try:
                contents[file] = reading()
            except EirError as e:
                faults[file] = str(e)

        read(TOKENS, lambda: keys_of(settings.tokens, self._keys))
        for file, of, reader in ((USERS, users, read_users), (NUMBERS, numbers, read_numbers)):
            if of.path is not None and of.changed():
                read(file, partial(reader, of.path))

        def use() -> None:
            if watched is self._watched:  # the settings are still the same
                self.faults = {file: why for file, why in self.faults.items() if file not in contents} | faults
                self._use(contents)

        return use

    def _use(self, contents: Mapping[str, Any]) -> None:
        """Apply the contents of changed files. `contents`: kind of the file → content."""
        feed, (_, users, numbers) = self._feed, self._watched
        if TOKENS in contents and (keys := contents[TOKENS]) != self._keys:
            self._keys = keys
            feed.apply_tokens(tokens_of(keys, feed.tokens, FEED_SCOPE))
        if users.path is None:
            feed.apply_users(None)
        elif USERS in contents:
            known = feed.users or Users(contents[USERS], ticks=time.monotonic)
            known.apply(contents[USERS])
            feed.apply_users(known)
        table = NO_NUMBERS if numbers.path is None else contents.get(NUMBERS, feed.numbers)
        feed.apply_numbers(table, has_all=NUMBERS not in self.faults)
        if numbers.path is not None and NUMBERS in contents:
            self._report("numbers_in_force", numbers=len(table.numbers), file=numbers.path)

    def counters(self) -> Samples:
        """Return the feed's counters by metric name and label values."""
        return {
            "eir_feed_rows_total": self._feed.answers,
            "eir_feed_transactions_total": {(): self._writer.transactions},
        }

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    def _failed(self, fault: Exception) -> None:
        if isinstance(fault, StoreError):
            self._report("feed_failed", level="error", reason=fault.cause, detail=str(fault))
        elif isinstance(fault, JournalError):
            self._report("feed_failed", level="error", reason=JOURNAL, detail=str(fault))
        else:
            self._report("fault", reason=NAME, level="error", detail=place_of(fault))
