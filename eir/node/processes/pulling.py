"""Lists that are pulled: for each list with a source, a process of its own looks at the source again and again, never on the loop that answers.

`pull_once` is what that process does, and `eir pull`. Of several nodes on one store, one fetches and loads what is new. `Pulling` is the
supervisor's part: when the next look is due, what came of the last ones, and one load at a time. `Acknowledging` tells the sources what the
node has in force, and since when; such a process signs and posts it.
"""

import asyncio
import fcntl
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from eir.config import Config
from eir.errors import EirError, Report, StoreError, detail_of, place_of
from eir.lists.changes.load import LoadReport
from eir.lists.record.in_force import InForce, in_force_before, save_in_force
from eir.lists.record.settings import Source
from eir.lists.record.store import NO_LIST, ListState, ListStore, Mark, utc_text
from eir.lists.releases.release import Release
from eir.lists.sources.acknowledge import ACKNOWLEDGED, Acknowledgement, Rejection, acknowledged, key_of
from eir.lists.sources.pull import (
    ELSEWHERE,
    LOADED,
    PULL_S,
    REFUSED,
    UNCHANGED,
    UNREACHED,
    WAITING,
    Pulled,
    Terms,
    pull,
)
from eir.lists.sources.pull_http import Server, Unreached
from eir.lists.stores.open import open_store, serial_marks
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport
from eir.node.processes.apart import Outcome, done_apart, outcome_of
from eir.node.processes.channel import Channel
from eir.node.processes.drop_folder import CLAIM_S, NICE, Lease, Load, loading, node_user
from eir.node.processes.jobs import Jobs
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of

ROOM = "pulled"
"""Folder in the state folder, with one for each list."""
PULL_PROCESS = "pull"
END_S = 30.0
"""Time beyond PULL_S after which the process of a pull is ended."""
AGAIN_S = 2.0
"""Pause after a look that failed, or an acknowledgement that was not taken; it doubles, up to the time between two looks."""
BESIDE_S = 5.0
"""Pause after a look that found another node at work."""
SPREAD = 0.1
"""Part of the pause by which it varies, so that nodes do not all ask at once."""


async def pull_once(config: Config, name: str, who: str, load: Load, *, force: bool = False) -> Pulled:
    """Make one pull of a list, if nobody else is at it. Raises EirError if the list has no source, OSError without a state folder."""
    room = config.state / ROOM / name
    room.mkdir(mode=0o750, parents=True, exist_ok=True)
    with _alone(room) as alone:
        if not alone:
            return Pulled(list=name, outcome=ELSEWHERE, detail="another process on this host pulls it just now")
        store = open_store(config.store, config.state)
        try:
            # The same holder each time, which the lock makes one process: one that was killed holds nobody up.
            async with _claim(store, f"pull:{name}", f"{socket.gethostname()}:{room}") as take:
                marks = await serial_marks(config.store, config.state)
                terms = Terms(
                    settings=config.lists[name], room=room, store=store, who=who, clock=lambda: datetime.now(UTC), load=load, marks=marks,
                    alone=take, force=force,
                )  # fmt: skip
                return await pull(terms)
        except StoreError as error:
            return Pulled(list=name, outcome=WAITING, reason=error.cause, detail=f"the store: {error}")
        finally:
            await store.close()


@asynccontextmanager
async def _claim(store: ListStore, what: str, holder: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Yield a function that claims the right to do something, which is kept until the end and then given back."""
    keeping: list[asyncio.Task[None]] = []

    async def take() -> bool:
        if not await store.claim(what, holder, CLAIM_S):
            return False
        keeping.append(asyncio.create_task(Lease(store, what, holder, time.monotonic() + CLAIM_S).keep()))
        return True

    try:
        yield take
    finally:
        for task in keeping:
            task.cancel()
            with suppress(StoreError):
                await store.claim(what, holder, 0)


@contextmanager
def _alone(room: Path) -> Iterator[bool]:
    """Yield True if no other process on this host pulls into this folder."""
    with (room / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


async def _pull_of_node(config: Config, name: str, who: str, channel: Channel) -> Pulled:
    """One pull, in its own process, which has the node start the loads, and ends at once when the node does."""
    with suppress(OSError):  # a filter of system calls may be stricter than ours
        os.setpriority(os.PRIO_PROCESS, 0, NICE)

    async def load(release: Release, folder: Path, marks: Mapping[str, Mark]) -> LoadReport:
        outcome: Outcome = await channel.ask("load", release, folder, marks, patience_s=None)
        report: LoadReport = outcome.result()
        return report

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 128 + number)
    ended = asyncio.create_task(channel.gone.wait())
    ended.add_done_callback(lambda task: None if task.cancelled() else os._exit(1))
    try:
        with as_owner_of(config.state):
            return await pull_once(config, name, who, load)
    finally:
        ended.cancel()


class Pulling:
    """Has the lists of a configuration pulled that have a source."""

    def __init__(self, config: Callable[[], Config], start: Start, jobs: Jobs, *, report: Report) -> None:
        """`config` returns the settings in force."""
        self._config, self._start, self._jobs, self._report = config, start, jobs, report
        self._pulled: dict[str, Source] = {}
        """Sources that have a job, by list."""
        self._loads = asyncio.Lock()
        self._said: dict[str, tuple[str, str, str]] = {}
        """List → what was last said of it."""
        self._reached: dict[str, float] = {}
        self._serial: dict[str, int] = {}
        self._behind: dict[str, float] = {}
        """List → Unix time at which its source first offered a serial above the one in force."""
        self.rejected: dict[str, Rejection] = {}
        """The last rejection of each list, until something else of its source is accepted."""
        self._failures: Counter[str] = Counter()
        """Failed pulls in a row, by list."""
        self._pulls: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    def apply(self) -> None:
        """Have a job for each source of the settings in force, and no other."""
        sources = self._sources()
        for name in [name for name, source in self._pulled.items() if sources.get(name) != source]:
            del self._pulled[name]
            self._jobs.stop(f"pull {name}")
        for name in sources.keys() - self._pulled.keys():
            source = self._pulled[name] = sources[name]
            self._reached.setdefault(name, time.time())
            self._failures[name] = 0
            spread_s = random.uniform(0.0, 1.0)  # noqa: S311 - a spread
            self._jobs.start(f"pull {name}", source.every_s, partial(self._pull, name), delay_s=spread_s)

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics."""
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
        """Return warnings about sources for `eir status`."""
        now, warnings = time.time(), []
        for name, source in self._sources().items():
            if now - self._reached.get(name, now) > source.patience_s:
                warnings.append(f"the source of list {name} is not reached (eir pull {name})")
            if now - (since := self._behind.get(name, now)) > source.patience_s:
                time_text = utc_text(datetime.fromtimestamp(since, UTC))
                warnings.append(f"list {name} has been behind its source since {time_text} (eir pull {name})")
        return warnings

    def _sources(self) -> dict[str, Source]:
        return {name: settings.source for name, settings in self._config().lists.items() if settings.source is not None}

    async def _pull(self, name: str) -> float:
        """Have a list pulled once; return the seconds until the next pull."""
        made = await self._made(name)
        self._count(made)
        pause_s = BESIDE_S if made.outcome == ELSEWHERE else self._pulled[name].every_s
        if made.outcome in {LOADED, UNCHANGED, ELSEWHERE}:
            self._failures[name] = 0
        else:
            self._failures[name] += 1
            pause_s = _pause_s(self._failures[name], pause_s)
        return pause_s * (1 + random.uniform(-SPREAD, SPREAD))  # noqa: S311 - a spread

    async def _made(self, name: str) -> Pulled:
        config, who = self._config(), f"pull of {node_user()}"
        load = loading(self._start, config, who)

        async def one(*release: object) -> Outcome:
            async with self._loads:
                return await outcome_of(load(*release))  # type: ignore[arg-type]  # what `load` of the process hands over

        try:
            async with asyncio.timeout(PULL_S + END_S):
                made: Pulled = await done_apart(
                    self._start,
                    PULL_PROCESS,
                    _pull_of_node,
                    config,
                    name,
                    who,
                    handlers={"load": one},
                    report=self._report,
                )
        except TimeoutError:
            return Pulled(
                list=name,
                outcome=UNREACHED,
                reason="timeout",
                detail=f"the pull did not end within {PULL_S + END_S:g} s",
            )
        except EirError as error:
            return Pulled(list=name, outcome=WAITING, reason="process", detail=str(error))
        except OSError as error:
            return Pulled(list=name, outcome=WAITING, reason="process", detail=place_of(error))
        return made

    def _store(self, made: Pulled) -> None:
        """Store the facts about a source that hold until the next pull."""
        name = made.list
        if made.reached:
            self._reached[name] = time.time()
        if made.serial is not None:
            self._serial[name] = made.serial
        if made.behind_since is not None:
            self._behind[name] = datetime.fromisoformat(made.behind_since).timestamp()
        elif made.in_force is not None:
            self._behind.pop(name, None)
        before = self.rejected.get(name)
        if made.outcome == REFUSED:
            time_text = utc_text(datetime.now(UTC))
            if before is None or (before.serial, before.reason) != (made.rejected, made.reason):
                self.rejected[name] = Rejection(reason=made.reason, at=time_text, serial=made.rejected)
        elif before is not None and (
            made.outcome in {LOADED, UNCHANGED} or (made.reached and (before.serial is None or made.reason == "base"))
        ):
            del self.rejected[name]

    def _count(self, made: Pulled) -> None:
        name = made.list
        self._pulls[name, made.outcome] += 1
        self._bytes[name] += made.bytes
        if made.reason:
            self._faults[name, made.reason] += 1
        self._store(made)
        for serial in made.loaded:
            self._report("source_loaded", list=name, serial=serial)
        said = made.outcome, made.reason, made.detail
        if made.outcome in {UNREACHED, WAITING, REFUSED} and self._said.get(name) != said:
            self._report(
                f"source_{made.outcome}",
                level="warning",
                reason=made.reason or None,
                list=name,
                serial=made.serial,
                detail=made.detail or None,
            )
        elif made.outcome in {LOADED, UNCHANGED} and self._said.get(name, said)[0] not in {LOADED, UNCHANGED}:
            self._report("source_reached", list=name, serial=made.serial)
        if made.outcome != ELSEWHERE:
            self._said[name] = said


ACKNOWLEDGE_PROCESS = "acknowledge"
POST_S = 60.0
REPEAT_S = 86400.0
"""After this long it is said again, although nothing has changed."""
TELL_AGAIN_MAX_S = 300.0
"""Longest pause after an acknowledgement that was not taken."""


def give(config: Config, what: Acknowledgement) -> None:
    """Sign an acknowledgement and post it to the list's source. Raises EirError (Unreached) or OSError."""
    source = config.lists[what.list].source
    if source is None:
        raise EirError(f"list {what.list} has no source (lists.{what.list}.source)")
    with as_owner_of(config.state):
        content = acknowledged(what, key_of(config.state))
    Server(source, time.monotonic() + POST_S).give(f"{ACKNOWLEDGED}/{what.name}", content)


async def _give_of_node(config: Config, what: Acknowledgement, _: Channel) -> None:
    await asyncio.to_thread(give, config, what)


class _News(NamedTuple):
    """The part of an acknowledgement that is sent again only when it changes."""

    serial: int
    content: str
    since: str
    rejected: Rejection | None


class Acknowledging:
    """Notices what comes into force on all workers or is rejected, and sends it to the sources that want to know."""

    def __init__(self, config: Callable[[], Config], start: Start, jobs: Jobs, *, report: Report) -> None:
        """`config` returns the settings in force."""
        self._config, self._start, self._jobs, self._report = config, start, jobs, report
        self._in_force = in_force_before(config().state)
        self._gone: Sequence[str] = ()
        """Local lists that were in force before, and that no worker has. A signed one counts as never loaded."""
        self.older: Mapping[str, tuple[int, int]] = {}
        """Lists of which a higher serial was accepted here before than the store knows → its highest serial, and that one."""
        self._rejected: dict[str, Rejection] = {}
        self._given: dict[str, tuple[_News, float]] = {}
        """List → what was said last, and when (time.monotonic)."""
        self._next: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._under_way: set[str] = set()
        """Lists whose acknowledgement is being sent."""

    def look(self, reports: Sequence[WorkerReport], rejected: Mapping[str, Rejection] | None = None) -> None:
        """Compare with what is in force and rejected now; start the acknowledgements that are due."""
        if not reports:
            return
        known = self._config().lists
        there = [name for name in self._in_force if name in known and known[name].local]
        self._gone = [name for name in there if not any(name in report.lists for report in reports)]
        self._compare(reports)
        before_rejected, self._rejected = self._rejected, dict(rejected or {})
        for name in {*before_rejected, *self._rejected}:
            if before_rejected.get(name) != self._rejected.get(name):
                self._next.pop(name, None)
        for name in dict.fromkeys((*reports[0].lists, *self._rejected)):
            if (news := self._news(name, name in reports[0].lists)) is not None and self._is_due(name, news):
                self._under_way.add(name)
                self._jobs.spawn(self._tell(name, news))

    def _compare(self, reports: Sequence[WorkerReport]) -> None:
        """Store what all workers have in force."""
        changed = False
        for name, state in reports[0].lists.items():
            if not all(report.lists.get(name) == state for report in reports):
                continue
            before = self._in_force.get(name)
            mark = state.mark if before is None else max(before.mark, state.mark)
            if before is None or before[:2] != (state.serial, state.content_digest):
                self._in_force[name] = InForce(state.serial, state.content_digest, utc_text(datetime.now(UTC)), mark)
                self._next.pop(name, None)
                changed = True
            elif before.mark != mark:
                self._in_force[name] = before._replace(mark=mark)
                changed = True
        self.older = {
            name: (state.highest_serial, self._in_force[name].mark[1])
            for name, state in reports[0].lists.items()
            if name in self._in_force and state.mark < self._in_force[name].mark
        }
        if changed:
            with suppress(OSError):
                self._in_force = save_in_force(self._config().state, self._in_force, {})

    def _news(self, name: str, has_list: bool) -> "_News | None":
        """Return what there is to acknowledge about a list."""
        rejected, in_force = self._rejected.get(name), self._in_force.get(name)
        if not has_list and rejected is not None:  # nothing is in force, since the rejection at the latest
            return _News(0, NO_LIST.content_digest, rejected.at, rejected)
        return _News(*in_force[:3], rejected) if in_force is not None and in_force.since else None

    def since(self, states: Mapping[str, ListState]) -> dict[str, str]:
        """Since when lists in these states are in force."""
        return {
            name: self._in_force[name].since
            for name, state in states.items()
            if self._in_force.get(name, ())[:2] == (state.serial, state.content_digest)
        }

    def warnings(self) -> list[str]:
        """Return warnings about data that the store has lost."""
        gone = [
            f"the store lost list {name}, which was in force here before: restore a backup" for name in self._gone
        ]
        return gone + [
            f"the store lost list {name} as it was: serial {highest} is the highest that it knows of, and {before} was accepted here before; load the newest release again"
            for name, (highest, before) in self.older.items()
        ]

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics."""
        return {
            "eir_source_acknowledgements_total": {labels: float(count) for labels, count in self._counts.items()},
            "eir_store_lost_data": dict.fromkeys(((name,) for name in (*self._gone, *self.older)), 1.0),
        }

    def _is_due(self, name: str, news: "_News") -> bool:
        settings, now = self._config().lists.get(name), time.monotonic()
        if settings is None or settings.source is None or not settings.source.acknowledge:
            return False
        if name in self._under_way:
            return False
        said, at = self._given.get(name, (None, 0.0))
        return now >= self._next.get(name, 0.0) and (said != news or now - at > REPEAT_S)

    async def _tell(self, name: str, news: "_News") -> None:
        serial = news.serial
        made = Acknowledgement(
            node=self._config().identity.host, list=name, made=utc_text(datetime.now(UTC)), **news._asdict()
        )
        try:
            async with asyncio.timeout(2 * POST_S):
                await done_apart(
                    self._start, ACKNOWLEDGE_PROCESS, _give_of_node, self._config(), made, report=self._report
                )
        except (EirError, OSError, TimeoutError) as e:
            reason = e.reason if isinstance(e, Unreached) else "process"
            self._counts[name, "not_given"] += 1
            self._failures[name] += 1
            self._next[name] = time.monotonic() + _pause_s(self._failures[name], TELL_AGAIN_MAX_S)
            detail = detail_of(e)
            self._report(
                "acknowledgement_not_given", level="warning", reason=reason, list=name, serial=serial, detail=detail
            )
            return
        finally:
            self._under_way.discard(name)
        self._given[name] = news, time.monotonic()
        self._failures[name] = 0
        self._counts[name, "given"] += 1
        self._report("acknowledgement_given", list=name, serial=serial)


def _pause_s(failures: int, most_s: float) -> float:
    """The pause after so many failures in a row, spread so that nodes do not all try again at once."""
    return min(most_s, AGAIN_S * 2.0 ** min(failures - 1, 20)) * (1 - random.random() / 2)  # noqa: S311 - a spread
