"""Pulls: each pull polls the source of a list, and downloads and loads new releases, in a process of its own.

`pull_once` is the work of that process, and of `eir pull`. If several nodes share a store, one of them loads a new release.
`Pulling` is the part of the supervisor: it schedules the pulls, and stores their results.
"""

import asyncio
import fcntl
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from eir.config import Config
from eir.errors import EirError, Report, StoreError, detail_of
from eir.lists.log.change import utc_text
from eir.lists.log.journal import REFUSED
from eir.lists.record.settings import Source
from eir.lists.sources.acknowledge import Rejection
from eir.lists.sources.inbox import WAITING, Record
from eir.lists.sources.pull import ELSEWHERE, LOADED, PULL_S, UNCHANGED, UNREACHED, Pulled, pull
from eir.node.observe import metrics
from eir.node.processes.apart import run_apart
from eir.node.processes.channel import Channel
from eir.node.processes.jobs import Jobs
from eir.node.processes.loading import NICE, Load, Loads, loading_over, node_user, open_pass, recording_over
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of

PULLS_FOLDER = "pulled"
"""Folder in the state folder, with one subfolder per list."""
ATTEMPTS_FILE = "attempts.json"
PULL_PROCESS = "pull"
END_S = 30.0
"""Seconds after PULL_S at which the process of a pull is killed."""
AGAIN_S = 2.0
"""Seconds before a failed pull or acknowledgement is repeated. The pause doubles with each failure, up to a limit of the caller."""
BESIDE_S = 5.0
"""Seconds before another pull if another node was pulling the list."""
SPREAD = 0.1
"""Random part of the pause, so that nodes do not pull at the same time."""


async def pull_once(config: Config, name: str, who: str, load: Load, record: Record, *, force: bool = False) -> Pulled:
    """Poll the source of a list once, and load its new releases, unless another process or node is pulling the list.

    Raises:
        EirError: if the list has no source.
        OSError: if the folder of the list cannot be used.
    """
    folder = config.state / PULLS_FOLDER / name
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    with _lock(folder) as is_locked:
        if not is_locked:
            return Pulled(list=name, outcome=ELSEWHERE, detail="another process on this host is pulling it")
        # All processes of this host use the same holder, so that a killed process does not block the next one.
        lease = (f"pull:{name}", f"{socket.gethostname()}:{folder}")
        lists = {name: config.lists[name]}
        try:
            opened = open_pass(
                config, folder, lists, who, load, record=record, attempts_file=folder / ATTEMPTS_FILE, lease=lease
            )
            async with opened as (settings, claim):
                return await pull(settings, claim, force=force)
        except StoreError as error:
            return Pulled(list=name, outcome=WAITING, reason=error.cause, detail=f"the store: {error}")


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder during a `with` block; yield false if another process on this host has locked it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


async def _pull_of_node(config: Config, name: str, who: str, channel: Channel) -> Pulled:
    """Pull a list once in a process of a running node."""
    with as_owner_of(config.state):
        return await pull_once(config, name, who, loading_over(channel), recording_over(channel))


class Pulling:
    """Schedule of pulls for all lists with a source, and the results of the last pulls."""

    def __init__(self, config: Callable[[], Config], start: Start, jobs: Jobs, loads: Loads, *, report: Report) -> None:
        """Create a schedule without jobs. `config`: function that returns the settings in force."""
        self._config = config
        self._start = start
        self._jobs = jobs
        self._loads = loads
        self._report = report
        self._pulled: dict[str, Source] = {}
        """Source of each list that has a job."""
        self._logged: dict[str, tuple[str, str, str]] = {}
        """Last logged result of each list: outcome, reason, detail."""
        self._reached: dict[str, float] = {}
        self._serial: dict[str, int] = {}
        self._behind: dict[str, float] = {}
        """Unix time at which the source first offered a serial above that in force, by list."""
        self.rejected: dict[str, Rejection] = {}
        """Last rejected release of each list, until a later release of its source is accepted."""
        self._failures: Counter[str] = Counter()
        """Number of consecutive failed pulls, by list."""
        self._pulls: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def apply(self) -> None:
        """Apply the settings in force: start a job for each new or changed source, and stop the jobs of removed sources."""
        sources = self._sources()
        for name, source in list(self._pulled.items()):
            if sources.get(name) != source:
                del self._pulled[name]
                self._jobs.stop(f"pull {name}")
        for name in sources.keys() - self._pulled.keys():
            source = sources[name]
            self._pulled[name] = source
            self._reached.setdefault(name, time.time())
            self._failures[name] = 0
            spread_s = random.uniform(0.0, 1.0)  # noqa: S311 - spread
            self._jobs.start(f"pull {name}", source.every_s, partial(self._pull, name), delay_s=spread_s)

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about sources and pulls, by metric name and label values."""
        sources = self._sources()

        def of_sources(values: Mapping[str, float]) -> Mapping[tuple[str], float]:
            return {(name,): value for name, value in values.items() if name in sources}

        return {
            "eir_source_reached_timestamp_seconds": of_sources(self._reached),
            "eir_source_patience_seconds": {(name,): source.patience_s for name, source in sources.items()},
            "eir_source_ahead_timestamp_seconds": of_sources(self._behind),
            "eir_source_serial": of_sources(self._serial),
            "eir_source_pulls_total": dict(self._pulls),
            "eir_source_faults_total": dict(self._faults),
            "eir_source_bytes_total": metrics.by_label(self._bytes),
        }

    def _sources(self) -> dict[str, Source]:
        return {name: settings.source for name, settings in self._config().lists.items() if settings.source is not None}

    async def _pull(self, name: str) -> float:
        """Pull a list once in a new process; return the seconds until the next pull."""
        pulled = await self._run_pull(name)
        self._count(pulled)
        pause_s = self._pulled[name].every_s
        if pulled.outcome == ELSEWHERE:
            pause_s = BESIDE_S
        if pulled.outcome in {LOADED, UNCHANGED, ELSEWHERE}:
            self._failures[name] = 0
        else:
            self._failures[name] += 1
            pause_s = backoff_s(self._failures[name], pause_s)
        spread = random.uniform(-SPREAD, SPREAD)  # noqa: S311 - spread
        return pause_s * (1 + spread)

    async def _run_pull(self, name: str) -> Pulled:
        config = self._config()
        who = f"pull of {node_user()}"
        try:
            async with asyncio.timeout(PULL_S + END_S):
                pulled: Pulled = await run_apart(
                    self._start, PULL_PROCESS, _pull_of_node, config, name, who, nice=NICE,
                    handlers=self._loads.handlers(config, who), report=self._report,
                )  # fmt: skip
        except TimeoutError:
            detail = f"the pull did not end within {PULL_S + END_S:g} s"
            return Pulled(list=name, outcome=UNREACHED, reason="timeout", detail=detail)
        except (EirError, OSError) as error:
            return Pulled(list=name, outcome=WAITING, reason="process", detail=detail_of(error))
        return pulled

    def _store(self, pulled: Pulled) -> None:
        """Store the result of a pull: last contact, offered serial, rejection, and the time when the list fell behind its source."""
        name = pulled.list
        if pulled.reached:
            self._reached[name] = time.time()
        if pulled.serial is not None:
            self._serial[name] = pulled.serial
        if pulled.behind_since is not None:
            self._behind[name] = datetime.fromisoformat(pulled.behind_since).timestamp()
        elif pulled.in_force is not None:
            self._behind.pop(name, None)
        self._store_rejection(pulled)

    def _store_rejection(self, pulled: Pulled) -> None:
        """Store the release that a pull has rejected; remove a rejection that a later pull has made obsolete."""
        name = pulled.list
        before = self.rejected.get(name)
        if pulled.outcome == REFUSED:
            is_known = before is not None and (before.serial, before.reason) == (pulled.rejected, pulled.reason)
            if not is_known:
                now = utc_text(datetime.now(UTC))
                self.rejected[name] = Rejection(reason=pulled.reason, at=now, serial=pulled.rejected)
        elif before is not None:
            is_accepted = pulled.outcome in {LOADED, UNCHANGED}
            is_obsolete = pulled.reached and (before.serial is None or pulled.reason == "base")
            if is_accepted or is_obsolete:
                del self.rejected[name]

    def _count(self, pulled: Pulled) -> None:
        name = pulled.list
        self._pulls[name, pulled.outcome] += 1
        self._bytes[name] += pulled.bytes
        if pulled.reason:
            self._faults[name, pulled.reason] += 1
        self._store(pulled)
        for serial in pulled.loaded:
            self._report("source_loaded", list=name, serial=serial)
        result = pulled.outcome, pulled.reason, pulled.detail
        before = self._logged.get(name)
        if pulled.outcome in {UNREACHED, WAITING, REFUSED} and before != result:
            self._report(
                f"source_{pulled.outcome}", level="warning", reason=pulled.reason or None, list=name, serial=pulled.serial,
                detail=pulled.detail or None,
            )  # fmt: skip
        elif pulled.outcome in {LOADED, UNCHANGED} and before is not None:
            outcome_before, _, _ = before
            if outcome_before not in {LOADED, UNCHANGED}:
                self._report("source_reached", list=name, serial=pulled.serial)
        if pulled.outcome != ELSEWHERE:
            self._logged[name] = result


def backoff_s(failures: int, most_s: float) -> float:
    """Return the pause in seconds after this number of consecutive failures, at most `most_s`.

    Up to a half of the pause is random, so that nodes do not retry at the same time.
    """
    pause_s = min(most_s, AGAIN_S * 2.0 ** min(failures - 1, 20))
    random_part = random.random() / 2  # noqa: S311 - spread
    return pause_s * (1 - random_part)
