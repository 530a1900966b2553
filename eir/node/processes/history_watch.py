"""Metrics about releases and the history, from the journal that the follower writes and from the heads in force."""

from collections.abc import Callable

from eir.config import Config
from eir.lists.log.journal import FEED, FORCED, MAIN, REFUSED, JournalEnd
from eir.node.observe import metrics
from eir.node.observe.lately import release_metrics
from eir.node.processes.following import Followed
from eir.schema import DETAILS

UNKNOWN_LIST = "unknown"
"""Label of releases that were refused before their manifest was verified."""


class HistoryWatch:
    """Part of the manager that reports on releases and the history."""

    def __init__(self, config: Callable[[], Config], followed: Followed) -> None:
        """Create the part. `config`: function that returns the settings in force."""
        self._config = config
        self._followed = followed

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about releases and history by name and label values."""
        config, journal = self._config(), self._followed.status.journal
        newest = journal.ends.get(MAIN, JournalEnd())
        times = {outcome: {name or UNKNOWN_LIST: at for (name, each), at in journal.last.items() if each == outcome} for outcome in (FORCED, REFUSED)}  # fmt: skip
        return {
            "eir_releases_total": {(name or UNKNOWN_LIST, outcome): count for (name, outcome), count in journal.outcomes.items()},
            "eir_release_last_forced_timestamp_seconds": metrics.times(times[FORCED]),
            "eir_release_last_refused_timestamp_seconds": metrics.times(times[REFUSED]),
            "eir_history_last_record": {(): newest.number},
            "eir_history_last_digest": {(): int(newest.digest[:12], 16)},
            "eir_history_bytes": {(series,): journal.bytes.get(series, 0) for series in (MAIN, FEED)},
            "eir_history_max_bytes": {(MAIN,): config.history.max_bytes, (FEED,): config.history.feed_max_bytes},
            "eir_history_differs": {(): float(journal.differs)},
            "eir_list_unrecorded": {(name,): float(bool(journal.fault) or name in journal.unrecorded) for name in config.lists},
            DETAILS: metrics.details("EirListUnrecorded", {"": journal.fault}),
            **release_metrics(self._followed.heads()),
        }  # fmt: skip
