"""Sources of lists in the manager: turns of the drop folder and of the lists' sources, and acknowledgements.

Each turn is a process of its own (eir.node.processes.loading). This part schedules the turns, and stores, logs and counts their results.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from eir.config import Config
from eir.errors import EirError, Report, detail_of
from eir.lists.log.change import Head, utc_text
from eir.lists.log.journal import ACCEPTED, REFUSED, JournalEvent
from eir.lists.record.settings import SourceSettings
from eir.lists.sources.acknowledgement import Rejection
from eir.lists.sources.drop_folder import Listing, is_settled, scan_folder
from eir.lists.sources.publisher_folder import PULL_S
from eir.lists.sources.source import (
    ELSEWHERE,
    LOADED,
    UNCHANGED,
    UNREACHED,
    WAITING,
    ReleaseResult,
    Turn,
    result_of,
    turn_of,
)
from eir.node.observe import metrics
from eir.node.processes.acknowledging import Acknowledging, backoff_s
from eir.node.processes.apart import Emit, run_apart
from eir.node.processes.loading import NICE, node_user, process_once
from eir.node.processes.process import Jobs

POLL_S = 1.0
"""Seconds between two looks at the drop folder."""
FAILED_MAX_S = 600.0
"""Maximum seconds before another turn of the drop folder after a failure."""
END_S = 30.0
"""Seconds after PULL_S at which the process of a pull is killed."""
BESIDE_S = 5.0
"""Seconds before another pull if another node was pulling the list."""
SPREAD = 0.1
"""Random part of the pause, so that nodes do not pull at the same time."""
RESULT = "release"
INBOX_PROCESS, PULL_PROCESS = "inbox", "pull"
"""Names of the processes of turns in `ps` and `top`."""


async def _turn_apart(config: Config, name: str | None, who: str, emit: Emit) -> dict[str, Any]:
    """Take one turn in a process of a running node; return its result as JSON."""
    turn = await process_once(config, name, who, emit=lambda result: emit(RESULT, asdict(result)))
    return asdict(turn)


class Watch:
    """Schedule of the turns of the drop folder: compares its files with those of the last turn."""

    def __init__(self) -> None:
        self._again_at = 0.0
        self._seen: Listing = {}
        """Files that had settled at the last turn."""

    def is_due(self, listing: Listing, now: float) -> bool:
        """Return True if a turn must start now: a new or changed file has settled, or the last turn wants another one.

        `now` is in Unix seconds, like the times of the files.
        """
        if now >= self._again_at:
            return bool(listing)
        return any(is_settled(item, now) for name, item in listing.items() if self._seen.get(name) != item)

    def note(self, listing: Listing, again_s: float | None, now: float) -> None:
        """Store that a turn has processed the files of `listing` at the time `now`. `again_s`: time until the next turn; None: it needs a change."""
        self._seen = {name: item for name, item in listing.items() if is_settled(item, now)}
        self._again_at = float("inf") if again_s is None else now + again_s


@dataclass(slots=True)
class _ListSource:
    """Source of a list, and the results of its turns."""

    settings: SourceSettings
    reached: float
    """Unix time of the last valid index; before the first one, the time at which the source was configured."""
    serial: int | None = None
    behind_since: float | None = None
    """Unix time at which the source first offered a serial above that in force."""
    failures: int = 0
    """Number of consecutive failed turns."""
    rejected: Rejection | None = None
    """Last rejected release, until a later release of the source is accepted."""
    logged: tuple[str, str, str] | None = None
    """Outcome, reason and detail of the last turn that took the source's releases."""

    def note(self, turn: Turn) -> None:
        """Store the result of a turn."""
        is_good = turn.outcome in {LOADED, UNCHANGED, ELSEWHERE}
        self.failures = 0 if is_good else self.failures + 1
        if turn.reached:
            self.reached = time.time()
        if turn.serial is not None:
            self.serial = turn.serial
        if turn.behind_since is not None:
            self.behind_since = datetime.fromisoformat(turn.behind_since).timestamp()
        elif turn.in_force is not None:
            self.behind_since = None
        self.rejected = _rejection_after(self.rejected, turn)
        if turn.outcome != ELSEWHERE:
            self.logged = turn.outcome, turn.reason, turn.detail


class Sources:
    """Drop folder, sources of lists and acknowledgements of a node."""

    def __init__(
        self, config: Callable[[], Config], jobs: Jobs, record: Callable[[JournalEvent], object], *, report: Report
    ) -> None:
        """Create the parts. No job is started yet.

        `config`: function that returns the settings in force. `record`: function that records a rejection in the node's journal.
        """
        self._config, self._jobs, self._record, self._report = config, jobs, record, report
        self._acknowledging = Acknowledging(config, jobs, report=report)
        self._watch = Watch()
        self._is_readable = True
        self._waiting = 0
        """Number of waiting releases in the drop folder."""
        self._failures = 0
        """Number of consecutive failed turns with the drop folder."""
        self._logged: dict[str, tuple[str, str]] = {}
        """Last logged outcome and reason of each waiting delivery, by manifest."""
        self._lists: dict[str, _ListSource] = {}
        """Source of each list that has a job."""
        self._pulls: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def start(self) -> None:
        """Start the jobs that poll the drop folder and the lists' sources."""
        self._jobs.start("inbox", POLL_S, self.poll_drop_folder)
        self.apply()

    def apply(self) -> None:
        """Apply the settings in force: start a job for each new or changed source, and stop the jobs of removed sources."""
        sources = {
            name: settings.source for name, settings in self._config().lists.items() if settings.source is not None
        }
        for name in [name for name, each in self._lists.items() if sources.get(name) != each.settings]:
            self._jobs.stop(f"pull {name}")
            if name not in sources:
                del self._lists[name]
        for name, source in sources.items():
            before = self._lists.get(name)
            if before is not None and before.settings == source:
                continue
            self._lists[name] = replace(before or _ListSource(source, time.time()), settings=source, failures=0)
            spread_s = random.uniform(0.0, 1.0)  # noqa: S311 - spread
            self._jobs.start(f"pull {name}", source.every_s, partial(self._pull, name), delay_s=spread_s)

    @property
    def rejected(self) -> dict[str, Rejection]:
        """Last rejected release of each list."""
        return {name: each.rejected for name, each in self._lists.items() if each.rejected is not None}

    def acknowledge(self, heads: Mapping[str, Head]) -> None:
        """Send acknowledgements of releases to the sources of the lists, if acknowledgements are due. `heads`: lists in force."""
        self._acknowledging.update(heads, self.rejected)

    def note_in_force(self, heads: Mapping[str, Head]) -> None:
        """Save the lists in force on disk."""
        self._acknowledging.note(heads)

    def in_force(self, states: Mapping[str, Head]) -> dict[str, Any]:
        """Return two tables by list name: when the version in force took effect (`since`), and the last rejected release (`rejected`)."""
        rejected = {name: asdict(each) for name, each in self.rejected.items()}
        return {"since": self._acknowledging.since(states), "rejected": rejected}

    @property
    def is_usable(self) -> bool:
        """True if the drop folder is readable and the last turn with it succeeded."""
        return self._is_readable and not self._failures

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about drop folder, sources and acknowledgements by name and label values."""
        lists = {(name,): each for name, each in self._lists.items()}
        drop_folder: metrics.Snapshot = {}
        if self._config().inbox is not None:
            drop_folder = {
                "eir_inbox_usable": {(): float(self.is_usable)},
                "eir_inbox_waiting_releases": {(): self._waiting},
            }
        return {
            "eir_source_reached_timestamp_seconds": {name: each.reached for name, each in lists.items()},
            "eir_source_patience_seconds": {name: each.settings.patience_s for name, each in lists.items()},
            "eir_source_ahead_timestamp_seconds": {
                name: each.behind_since for name, each in lists.items() if each.behind_since is not None
            },
            "eir_source_serial": {name: each.serial for name, each in lists.items() if each.serial is not None},
            "eir_source_pulls_total": dict(self._pulls),
            "eir_source_faults_total": dict(self._faults),
            "eir_source_bytes_total": metrics.by_label(self._bytes),
            **drop_folder,
            **self._acknowledging.snapshot(),
        }

    async def poll_drop_folder(self) -> None:
        """Read the drop folder, and take a turn with it if one is due."""
        folder = self._config().inbox
        if folder is None:
            return
        try:
            listing = await asyncio.to_thread(scan_folder, folder)
        except OSError as error:
            self._is_readable = False
            self._report("inbox_unusable", level="error", reason="folder", folder=folder, detail=error.strerror)
            return
        self._is_readable = True
        if not listing:
            self._waiting = 0
        now = time.time()
        if not self._watch.is_due(listing, now):
            return
        turn = await self._turn(None)
        again_s = turn.again_s
        if turn.outcome == UNREACHED:
            self._failures += 1
            again_s = backoff_s(self._failures, FAILED_MAX_S)
            self._report("inbox_failed", level="error", reason="process", detail=turn.detail)
        else:
            self._failures = 0
            self._log_results(turn)
            self._waiting = sum(each.outcome == WAITING for each in turn.results)
        self._watch.note(listing, again_s, now)

    async def _pull(self, name: str) -> float:
        """Take a turn with the source of a list; return the seconds until the next one."""
        turn = await self._turn(name)
        self.count(turn)
        source = self._lists[name]
        pause_s = BESIDE_S if turn.outcome == ELSEWHERE else source.settings.every_s
        if source.failures:
            pause_s = backoff_s(source.failures, pause_s)
        spread = random.uniform(-SPREAD, SPREAD)  # noqa: S311 - spread
        return pause_s * (1 + spread)

    async def _turn(self, name: str | None) -> Turn:
        """Take one turn in a new process, and record its rejections; return its result, also if the process fails."""
        config = self._config()
        process = INBOX_PROCESS if name is None else PULL_PROCESS
        who = f"{process} of {node_user()}"

        def note(document: dict[str, Any]) -> None:
            result = result_of(document)
            if result.outcome == REFUSED:
                self._record(result.rejection(who, datetime.now(UTC)))

        turn = Turn(list=name)
        within_s = None if name is None else PULL_S + END_S
        try:
            async with asyncio.timeout(within_s):
                document = await run_apart(
                    process, _turn_apart, config, name, who, owned=config.state, nice=NICE, handlers={RESULT: note}
                )
        except TimeoutError:
            turn.end(UNREACHED, "timeout", f"the pull did not end within {within_s:g} s")
        except (EirError, OSError) as error:
            turn.end(UNREACHED if name is None else WAITING, "process", detail_of(error))
        else:
            turn = turn_of(document)
        return turn

    def _log_results(self, turn: Turn) -> None:
        """Log the results of a turn with the drop folder; a waiting release once for each reason."""
        before, self._logged = self._logged, {}
        results = list(turn.results)
        if turn.reason:
            results.append(ReleaseResult(manifest="", outcome=turn.outcome, reason=turn.reason, detail=turn.detail))
        for each in results:
            if each.outcome == WAITING:
                self._logged[each.manifest] = each.outcome, each.reason
                if before.get(each.manifest) == self._logged[each.manifest]:
                    continue
            self._report(
                f"release_{each.outcome}", level="info" if each.outcome in {ACCEPTED, WAITING} else "warning",
                reason=each.reason or None, list=each.list, serial=each.serial, manifest=each.manifest or None,
                detail=each.detail or None,
            )  # fmt: skip

    def count(self, turn: Turn) -> None:
        """Store, count and log the result of a pull."""
        name = turn.list or ""
        source = self._lists[name]
        self._pulls[name, turn.outcome] += 1
        self._bytes[name] += turn.bytes
        if turn.reason:
            self._faults[name, turn.reason] += 1
        result, before = (turn.outcome, turn.reason, turn.detail), source.logged
        source.note(turn)
        for serial in turn.loaded:
            self._report("source_loaded", list=name, serial=serial)
        if turn.outcome in {UNREACHED, WAITING, REFUSED} and before != result:
            self._report(
                f"source_{turn.outcome}", level="warning", reason=turn.reason or None, list=name, serial=turn.serial,
                detail=turn.detail or None,
            )  # fmt: skip
        elif turn.outcome in {LOADED, UNCHANGED} and before is not None and before[0] not in {LOADED, UNCHANGED}:
            self._report("source_reached", list=name, serial=turn.serial)


def _rejection_after(before: Rejection | None, turn: Turn) -> Rejection | None:
    """Return the last rejected release of a source after a turn: None if an accepted release or a later index has made it obsolete."""
    if turn.outcome == REFUSED:
        if before is not None and (before.serial, before.reason) == (turn.rejected, turn.reason):
            return before
        return Rejection(reason=turn.reason, at=utc_text(datetime.now(UTC)), serial=turn.rejected)
    is_accepted = turn.outcome in {LOADED, UNCHANGED}
    is_obsolete = before is not None and turn.reached and (before.serial is None or turn.reason == "base")
    return None if is_accepted or is_obsolete else before
