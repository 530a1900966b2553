"""Poll of the store by the supervisor: outcomes of releases, history, and format version of the data.

The supervisor has no permanent connection to the store.
"""

import socket
from collections.abc import Callable, Sequence

from eir.config import Config
from eir.errors import Report, StoreError, silent
from eir.lists.follow.history import HistoryKeeper
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.record.store import CHAINS, FEED, FORCED, MAIN, REFUSED, Event, OutcomeCount
from eir.lists.stores.open import SQLITE, open_copy, open_store
from eir.node.observe import metrics
from eir.node.observe.lately import ReleaseTimes
from eir.node.observe.status_texts import StatusText
from eir.node.processes import state_folder

EVENTS_MAX = 200
"""Maximum number of events of the history that the page searches."""
UNKNOWN_LIST = "unknown"
"""Label of releases that were refused before a verified manifest named a list."""


class StoreWatch:
    """Result of the supervisor's last poll of the store."""

    def __init__(self, config: Callable[[], Config], *, report: Report) -> None:
        """Create a watch that has not polled yet. `config`: function that returns the settings in force."""
        self._config = config
        self._report = report
        settings = config()
        copy = open_copy(settings.store, settings.state)
        self.history = HistoryKeeper(
            copy, writes=settings.heal or copy is None, who=f"node on {socket.gethostname()}", report=report,
            clock=state_folder.read_clock(settings.state),
        )  # fmt: skip
        self._release_times = ReleaseTimes()
        self._outcomes: tuple[OutcomeCount, ...] = ()
        self.events: Sequence[Event] = ()
        """Newest events of the history, the oldest first."""
        self._newer: str | None = None
        """Reason for which the store is not written, if its data have the form of a newer eir."""

    async def poll(self) -> None:
        """Read the store, and synchronize its history with this node's copy of the history."""
        config = self._config()
        report = self._report if config.store == SQLITE else silent  # the follower reports on Redis
        store = open_store(config.store, config.state, report=report, check=False)
        try:
            self._newer = await await_store(store.newer())
            await self.history.maintain(store, config.history, [*config.lists])
            outcomes = tuple(await await_store(store.outcomes()))
            if outcomes != self._outcomes or not self.events:
                # Rows of a feed must not displace loads from the page.
                events = [await await_store(store.history(limit=EVENTS_MAX, chain=chain)) for chain in CHAINS]
                self.events = sorted((event for each in events for event in each), key=lambda event: event.time)
            self._outcomes = outcomes
            await self._release_times.update(self._outcomes, store)
        except StoreError as e:
            if e.cause == STOOD_STILL:
                self._report("stood_still", level="warning", detail=str(e))
            else:
                self._report("store_error", level="warning", reason=e.cause, detail=str(e))
        finally:
            await store.close()

    def form_warnings(self) -> list[str]:
        """Return a warning if a newer version of eir has changed the format of the store's data."""
        return [] if self._newer is None else [self._newer]

    def warnings(self) -> list[str]:
        """Return warnings for `eir status` about the history in the store."""
        warnings = [StatusText.LIST_UNRECORDED.format(name, name) for name in self.history.unrecorded]
        if self.history.differs:
            warnings.insert(0, StatusText.HISTORY_DIFFERS.text)
        return warnings

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about releases and history by name and label values."""
        # Changes of a local list are in the history, but are no releases; lifted limits and refused releases of a local
        # list count.
        config = self._config()
        ledgers = self.history.ledgers
        local = {name for name, settings in config.lists_and_record.items() if settings.local}
        counted = [each for each in self._outcomes if each.outcome in {FORCED, REFUSED} or each.list not in local]
        return {
            "eir_releases_total": {(each.list or UNKNOWN_LIST, each.outcome): each.count for each in counted},
            **{
                f"eir_release_last_{outcome}_timestamp_seconds": metrics.times(
                    {each.list or UNKNOWN_LIST: each.last for each in counted if each.outcome == outcome}
                )
                for outcome in (FORCED, REFUSED)
            },
            "eir_history_last_record": {(): ledgers[MAIN].number},
            "eir_history_last_digest": {(): int(ledgers[MAIN].digest[:12], 16)},
            "eir_history_bytes": {(chain,): ledgers[chain].bytes for chain in CHAINS},
            "eir_history_max_bytes": {(MAIN,): config.history.max_bytes, (FEED,): config.history.feed_max_bytes},
            "eir_history_differs": {(): float(bool(self.history.differs))},
            "eir_list_unrecorded": {(name,): float(name in self.history.unrecorded) for name in config.lists},
            **self._release_times.snapshot(),
        }
