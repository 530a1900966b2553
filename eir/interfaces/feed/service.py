"""Process of the feed: opens the store, reads the configured files, and returns the counters."""

import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from eir.errors import Report, StoreError, place_of
from eir.interfaces.clients import Clients
from eir.interfaces.feed.feed import Feed, no_request
from eir.interfaces.feed.feed_writer import JOURNAL, FeedWriter
from eir.interfaces.feed.settings import FEED_SCOPE, NAME, FeedSettings
from eir.interfaces.interface import REQUEST_BODY_MAX, NodeCalls, Samples, SharedSettings
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.follow.write_back import refuse_lost_here
from eir.lists.log.journal import JournalError
from eir.lists.stores.open import COPIES, open_store
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer


class FeedService:
    """HTTP service of the feed in the services process; it implements eir.interfaces.interface.Service."""

    request_body_max, reads_certificates = REQUEST_BODY_MAX, False

    def __init__(self, settings: FeedSettings, shared: SharedSettings, report: Report, node: NodeCalls) -> None:
        self._report = report
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        self._local = LocalWriter(
            self._store, shared.lists, now=lambda: datetime.now(UTC), is_recorded=node.is_recorded,
            guard=partial(refuse_lost_here, shared.state / COPIES),
        )  # fmt: skip
        self._writer = FeedWriter(self._local, failed=self._failed)
        self._clients = Clients(FEED_SCOPE, report=report)
        self._feed = Feed(settings, self._clients, self._writer, host=socket.gethostname(), report=report)
        self.apply(settings, shared)
        self.read_files()()

    def apply(self, settings: FeedSettings, shared: SharedSettings) -> None:
        """Apply new settings to the feed. The next call of `read_files` reads all configured files again."""
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._clients.apply(settings, shared)
        self._local.lists = shared.lists
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

    @property
    def faults(self) -> Mapping[str, str]:
        """Faults of unusable files, by file; their earlier content stays in use."""
        return self._clients.faults

    def read_files(self) -> Callable[[], None]:
        """Read those configured files that have changed. Return a function that applies their contents."""
        return self._clients.read_files()

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
