"""Pulls: polls of the sources from which lists fetch their releases. A separate process makes each poll.

`pull_once` is the work of that process, and of `eir pull`. Of several nodes on one store, one fetches and loads a new release.
`Pulling` is the part of the supervisor: times of polls, and their results.
"""

import asyncio
import fcntl
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from eir.config import Config
from eir.errors import EirError, Report, StoreError, detail_of
from eir.lists.record.settings import Source
from eir.lists.record.store import REFUSED, utc_text
from eir.lists.sources.acknowledge import Rejection
from eir.lists.sources.inbox import WAITING
from eir.lists.sources.pull import ELSEWHERE, LOADED, PULL_S, UNCHANGED, UNREACHED, Pulled, pull
from eir.node.observe import metrics
from eir.node.observe.status_texts import StatusText
from eir.node.processes.apart import done_apart
from eir.node.processes.channel import Channel
from eir.node.processes.jobs import Jobs
from eir.node.processes.loading import NICE, Load, Loads, loading_over, node_user, open_pass
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of

ROOM = "pulled"
"""Folder in the state folder, with one subfolder per list."""
ATTEMPTS_FILE = "attempts.json"
PULL_PROCESS = "pull"
END_S = 30.0
"""Seconds beyond PULL_S after which the process of a pull is killed."""
AGAIN_S = 2.0
"""Seconds before another poll after a failed one, or after an acknowledgement that was not accepted; the pause doubles up to the poll interval."""
BESIDE_S = 5.0
"""Seconds before another poll after one that found another node at work."""
SPREAD = 0.1
"""Part of the pause that is random, so that nodes do not poll at the same time."""


async def pull_once(config: Config, name: str, who: str, load: Load, *, force: bool = False) -> Pulled:
    """Poll the source of a list once and load new releases, unless another process or node does.

    Raises:
        EirError: if the list has no source.
        OSError: without a state folder.
    """
    room = config.state / ROOM / name
    room.mkdir(mode=0o750, parents=True, exist_ok=True)
    with _alone(room) as alone:
        if not alone:
            return Pulled(list=name, outcome=ELSEWHERE, detail="another process on this host is pulling it")
        # The holder is always the same, because the file lock admits one process: a killed process blocks no other.
        lease = (f"pull:{name}", f"{socket.gethostname()}:{room}")
        lists = {name: config.lists[name]}
        try:
            opened = open_pass(config, room, lists, who, load, attempts_file=room / ATTEMPTS_FILE, lease=lease)
            async with opened as (terms, claim):
                return await pull(terms, claim, force=force)
        except StoreError as error:
            return Pulled(list=name, outcome=WAITING, reason=error.cause, detail=f"the store: {error}")


@contextmanager
def _alone(room: Path) -> Iterator[bool]:
    """Yield true if no other process on this host pulls into this folder.

    The folder is locked meanwhile.
    """
    with (room / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


async def _pull_of_node(config: Config, name: str, who: str, channel: Channel) -> Pulled:
    """Pull a list once in a process of a running node."""
    with as_owner_of(config.state):
        return await pull_once(config, name, who, loading_over(channel))


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
        """Sources with a job, by list."""
        self._said: dict[str, tuple[str, str, str]] = {}
        """Last logged result by list."""
        self._reached: dict[str, float] = {}
        self._serial: dict[str, int] = {}
        self._behind: dict[str, float] = {}
        """Unix time at which the source first offered a serial above the one in force, by list."""
        self.rejected: dict[str, Rejection] = {}
        """Last rejection of each list, until another offer of its source is accepted."""
        self._failures: Counter[str] = Counter()
        """Number of consecutive failed pulls, by list."""
        self._pulls: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def apply(self) -> None:
        """Start a job for each source in the settings in force, and stop the jobs of all other sources."""
        sources = self._sources()
        for name in [name for name, source in self._pulled.items() if sources.get(name) != source]:
            del self._pulled[name]
            self._jobs.stop(f"pull {name}")
        for name in sources.keys() - self._pulled.keys():
            source = self._pulled[name] = sources[name]
            self._reached.setdefault(name, time.time())
            self._failures[name] = 0
            spread_s = random.uniform(0.0, 1.0)  # noqa: S311 - spread
            self._jobs.start(f"pull {name}", source.every_s, partial(self._pull, name), delay_s=spread_s)

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about sources and pulls by name and label values."""
        sources = self._sources()
        return {
            "eir_source_reached_timestamp_seconds": {
                (name,): self._reached[name] for name in sources if name in self._reached
            },
            "eir_source_patience_seconds": {(name,): source.patience_s for name, source in sources.items()},
            "eir_source_ahead_timestamp_seconds": {
                (name,): since for name, since in self._behind.items() if name in sources
            },
            "eir_source_serial": {(name,): float(serial) for name, serial in self._serial.items() if name in sources},
            "eir_source_pulls_total": {labels: float(count) for labels, count in self._pulls.items()},
            "eir_source_faults_total": {labels: float(count) for labels, count in self._faults.items()},
            "eir_source_bytes_total": {(name,): float(count) for name, count in self._bytes.items()},
        }

    def warnings(self) -> list[str]:
        """Return warnings for `eir status` about sources that are not reached.

        A list that is behind its source for too long also causes a warning.
        """
        now = time.time()
        warnings = []
        for name, source in self._sources().items():
            reached = self._reached.get(name, now)
            behind_since = self._behind.get(name, now)
            if now - reached > source.patience_s:
                warnings.append(StatusText.SOURCE_UNREACHED.format(name, name))
            if now - behind_since > source.patience_s:
                time_text = utc_text(datetime.fromtimestamp(behind_since, UTC))
                warnings.append(StatusText.LIST_BEHIND.format(name, time_text, name))
        return warnings

    def _sources(self) -> dict[str, Source]:
        return {name: settings.source for name, settings in self._config().lists.items() if settings.source is not None}

    async def _pull(self, name: str) -> float:
        """Pull a list once in a new process; return the seconds until the next pull."""
        pulled = await self._run_pull(name)
        self._count(pulled)
        pause_s = BESIDE_S if pulled.outcome == ELSEWHERE else self._pulled[name].every_s
        if pulled.outcome in {LOADED, UNCHANGED, ELSEWHERE}:
            self._failures[name] = 0
        else:
            self._failures[name] += 1
            pause_s = backoff_s(self._failures[name], pause_s)
        return pause_s * (1 + random.uniform(-SPREAD, SPREAD))  # noqa: S311 - spread

    async def _run_pull(self, name: str) -> Pulled:
        config = self._config()
        who = f"pull of {node_user()}"
        try:
            async with asyncio.timeout(PULL_S + END_S):
                pulled: Pulled = await done_apart(
                    self._start,
                    PULL_PROCESS,
                    _pull_of_node,
                    config,
                    name,
                    who,
                    nice=NICE,
                    handlers=self._loads.handlers(config, who),
                    report=self._report,
                )
        except TimeoutError:
            return Pulled(
                list=name,
                outcome=UNREACHED,
                reason="timeout",
                detail=f"the pull did not end within {PULL_S + END_S:g} s",
            )
        except (EirError, OSError) as error:
            return Pulled(list=name, outcome=WAITING, reason="process", detail=detail_of(error))
        return pulled

    def _store(self, pulled: Pulled) -> None:
        """Store the result of a pull: last contact, offered serial, lag behind the source, and rejection."""
        name = pulled.list
        if pulled.reached:
            self._reached[name] = time.time()
        if pulled.serial is not None:
            self._serial[name] = pulled.serial
        if pulled.behind_since is not None:
            self._behind[name] = datetime.fromisoformat(pulled.behind_since).timestamp()
        elif pulled.in_force is not None:
            self._behind.pop(name, None)
        before = self.rejected.get(name)
        if pulled.outcome == REFUSED:
            time_text = utc_text(datetime.now(UTC))
            if before is None or (before.serial, before.reason) != (pulled.rejected, pulled.reason):
                self.rejected[name] = Rejection(reason=pulled.reason, at=time_text, serial=pulled.rejected)
        elif before is not None and (
            pulled.outcome in {LOADED, UNCHANGED}
            or (pulled.reached and (before.serial is None or pulled.reason == "base"))
        ):
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
        if pulled.outcome in {UNREACHED, WAITING, REFUSED} and self._said.get(name) != result:
            self._report(
                f"source_{pulled.outcome}",
                level="warning",
                reason=pulled.reason or None,
                list=name,
                serial=pulled.serial,
                detail=pulled.detail or None,
            )
        elif pulled.outcome in {LOADED, UNCHANGED} and self._said.get(name, result)[0] not in {LOADED, UNCHANGED}:
            self._report("source_reached", list=name, serial=pulled.serial)
        if pulled.outcome != ELSEWHERE:
            self._said[name] = result


def backoff_s(failures: int, most_s: float) -> float:
    """Return the pause in seconds after this number of consecutive failures, at most `most_s`.

    A part of the pause is random, so that nodes do not retry at the same time.
    """
    return min(most_s, AGAIN_S * 2.0 ** min(failures - 1, 20)) * (1 - random.random() / 2)  # noqa: S311 - spread
