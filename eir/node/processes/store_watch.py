"""Watcher of the store in the supervisor: polls outcomes of releases, the history, and the format version of the data.

The supervisor opens the store for each poll, and closes it afterwards.
"""

import socket
from collections.abc import Callable, Mapping, Sequence

from eir.config import Config
from eir.errors import Report, StoreError, silent
from eir.lists.follow.history import HistoryKeeper
from eir.lists.log.store import LogStore
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.record.store import CHAINS, FEED, FORCED, MAIN, REFUSED, Event, Ledger, OutcomeCount
from eir.lists.stores.open import SQLITE, open_copy, open_store
from eir.node.observe import metrics
from eir.node.observe.lately import ReleaseTimes
from eir.node.observe.status_texts import StatusText
from eir.node.processes import state_folder

EVENTS_MAX = 200
"""Maximum number of events per chain that are read for the web page."""
UNKNOWN_LIST = "unknown"
"""Label of releases that were refused before their manifest was verified."""


class StoreWatch:
    """Watcher in the supervisor that polls the store, and keeps the results of the last poll."""

    def __init__(self, config: Callable[[], Config], *, report: Report) -> None:
        """Create the watcher, without reading the store yet. `config`: function that returns the settings in force."""
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
        self._ledgers: Mapping[str, Ledger] = {}
        """Ledger of each chain of the history when `events` were read."""
        self._newer: str | None = None
        """Reason for writing nothing to the store, whose data have the form of a newer eir; None: the form is known."""

    async def poll(self) -> None:
        """Read the store, and compare its history with this node's copy of the history."""
        config = self._config()
        report = self._report if config.store == SQLITE else silent  # the follower reports on Redis
        store = open_store(config.store, config.state, report=report, check=False)
        try:
            self._newer = await await_store(store.newer())
            await self.history.maintain(store, config.history, [*config.lists])
            outcomes = tuple(await await_store(store.outcomes()))
            ledgers = self.history.ledgers
            if ledgers != self._ledgers:
                self.events = await _newest_events(store)
                self._ledgers = ledgers
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
        """Return a warning if the store's data have the format of a newer version of this program."""
        return [] if self._newer is None else [self._newer]

    def warnings(self) -> list[str]:
        """Return warnings for `eir status` about the history in the store."""
        warnings = [StatusText.LIST_UNRECORDED.format(name, name) for name in self.history.unrecorded]
        if self.history.differs:
            warnings.insert(0, StatusText.HISTORY_DIFFERS.text)
        return warnings

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about releases and history by name and label values."""
        # Changes of a local list are no releases, but lifted limits and refused releases of a local list are counted.
        config = self._config()
        ledgers = self.history.ledgers
        local = {name for name, settings in config.lists_and_record.items() if settings.local}
        releases: dict[tuple[str, str], float] = {}
        last: dict[str, dict[str, str | None]] = {FORCED: {}, REFUSED: {}}
        for each in self._outcomes:
            name = each.list or UNKNOWN_LIST
            if each.outcome in last:
                last[each.outcome][name] = each.last
            if each.outcome in last or each.list not in local:
                releases[name, each.outcome] = each.count
        return {
            "eir_releases_total": releases,
            "eir_release_last_forced_timestamp_seconds": metrics.times(last[FORCED]),
            "eir_release_last_refused_timestamp_seconds": metrics.times(last[REFUSED]),
            "eir_history_last_record": {(): ledgers[MAIN].number},
            "eir_history_last_digest": {(): int(ledgers[MAIN].digest[:12], 16)},
            "eir_history_bytes": {(chain,): ledgers[chain].bytes for chain in CHAINS},
            "eir_history_max_bytes": {(MAIN,): config.history.max_bytes, (FEED,): config.history.feed_max_bytes},
            "eir_history_differs": {(): float(bool(self.history.differs))},
            "eir_list_unrecorded": {(name,): float(name in self.history.unrecorded) for name in config.lists},
            **self._release_times.snapshot(),
        }


async def _newest_events(store: LogStore) -> list[Event]:
    """Return the newest events of the history, at most EVENTS_MAX from each chain.

    Many rows of registers (chain FEED) thus do not displace the loads of lists (chain MAIN).
    """
    events: list[Event] = []
    for chain in CHAINS:
        events += await await_store(store.history(limit=EVENTS_MAX, chain=chain))
    return sorted(events, key=lambda event: event.time)
