"""Acknowledgements: reports to a list's source about the release that all workers have in force.

The node sends them to each source that requests them. An acknowledgement has the release and the time since when it is in
force. A separate process signs each acknowledgement and uploads it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from eir.config import Config
from eir.errors import EirError, Report, detail_of
from eir.lists.record.in_force import InForce, load_in_force, save_in_force
from eir.lists.record.store import NO_LIST, ListState, utc_text
from eir.lists.sources.acknowledge import ACKNOWLEDGED, Acknowledgement, Rejection, load_key, sign_acknowledgement
from eir.lists.sources.pull_http import SourceClient, Unreached
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport
from eir.node.observe.status_texts import StatusText
from eir.node.processes.apart import done_apart
from eir.node.processes.channel import Channel
from eir.node.processes.jobs import Jobs
from eir.node.processes.pulling import backoff_s
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of

ACKNOWLEDGE_PROCESS = "acknowledge"
POST_S = 60.0
REPEAT_S = 86400.0
"""Seconds after which an unchanged acknowledgement is sent again."""
TELL_AGAIN_MAX_S = 300.0
"""Longest pause in seconds after an acknowledgement that the source did not accept."""


def send_acknowledgement(config: Config, what: Acknowledgement) -> None:
    """Sign an acknowledgement and upload it to the list's source.

    Raises:
        EirError: if the source does not accept it (Unreached), or the list has no source.
        OSError: if the key cannot be read.
    """
    source = config.lists[what.list].source
    if source is None:
        raise EirError(f"list {what.list} has no source (lists.{what.list}.source)")
    with as_owner_of(config.state):
        content = sign_acknowledgement(what, load_key(config.state))
    SourceClient(source, time.monotonic() + POST_S).upload(f"{ACKNOWLEDGED}/{what.name}", content)


async def _send_in_process(config: Config, what: Acknowledgement, _: Channel) -> None:
    await asyncio.to_thread(send_acknowledgement, config, what)


class _News(NamedTuple):
    """Content of an acknowledgement. If it changes, a new acknowledgement is sent."""

    serial: int
    content: str
    since: str
    rejected: Rejection | None


class Acknowledging:
    """Detector of lists that come into force on all workers, or whose release is rejected.

    It sends acknowledgements to the sources that request them.
    """

    def __init__(self, config: Callable[[], Config], start: Start, jobs: Jobs, *, report: Report) -> None:
        """Create a detector. `config`: function that returns the settings in force."""
        self._config = config
        self._start = start
        self._jobs = jobs
        self._report = report
        self._in_force = load_in_force(config().state)
        self._gone: Sequence[str] = ()
        """Local lists that were in force before and that no worker has. A signed list in that state counts as never loaded."""
        self.older: Mapping[str, tuple[int, int]] = {}
        """Lists for which this node has accepted a higher serial than the store knows: the store's highest serial, and the node's."""
        self._rejected: dict[str, Rejection] = {}
        self._given: dict[str, tuple[_News, float]] = {}
        """Last acknowledgement by list, and its time (time.monotonic)."""
        self._next: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._under_way: set[str] = set()
        """Lists whose acknowledgement is being sent."""

    def update(self, reports: Sequence[WorkerReport], rejected: Mapping[str, Rejection] | None = None) -> None:
        """Compare reports and rejections with the previous state, and send the acknowledgements that are due.

        `reports`: status of each worker. `rejected`: last rejection by list.
        """
        if not reports:
            return
        known = self._config().lists
        known_before = [name for name in self._in_force if name in known and known[name].local]
        self._gone = [name for name in known_before if not any(name in report.lists for report in reports)]
        self._compare(reports)
        before_rejected = self._rejected
        self._rejected = dict(rejected or {})
        for name in {*before_rejected, *self._rejected}:
            if before_rejected.get(name) != self._rejected.get(name):
                self._next.pop(name, None)
        for name in dict.fromkeys((*reports[0].lists, *self._rejected)):
            if (news := self._news(name, name in reports[0].lists)) is not None and self._is_due(name, news):
                self._under_way.add(name)
                self._jobs.spawn(self._acknowledge(name, news))

    def _compare(self, reports: Sequence[WorkerReport]) -> None:
        """Store for each list the state that all workers have in force, if they agree."""
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
        """Return the content of the acknowledgement for a list, or None if there is nothing to acknowledge."""
        rejected = self._rejected.get(name)
        in_force = self._in_force.get(name)
        if not has_list and rejected is not None:  # no list is in force, since the rejection at the latest
            return _News(0, NO_LIST.content_digest, rejected.at, rejected)
        return _News(*in_force[:3], rejected) if in_force is not None and in_force.since else None

    def since(self, states: Mapping[str, ListState]) -> dict[str, str]:
        """Return the time at which each of these list states came into force, by list."""
        return {
            name: self._in_force[name].since
            for name, state in states.items()
            if self._in_force.get(name, ())[:2] == (state.serial, state.content_digest)
        }

    def warnings(self) -> list[str]:
        """Return warnings about lists that the store has lost, completely or in part."""
        lost = [StatusText.LIST_LOST.format(name) for name in self._gone]
        older = [StatusText.SERIAL_LOST.format(name, highest, own) for name, (highest, own) in self.older.items()]
        return lost + older

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about acknowledgements and lost lists by name and label values."""
        return {
            "eir_source_acknowledgements_total": {labels: float(count) for labels, count in self._counts.items()},
            "eir_store_lost_data": dict.fromkeys(((name,) for name in (*self._gone, *self.older)), 1.0),
        }

    def _is_due(self, name: str, news: "_News") -> bool:
        settings = self._config().lists.get(name)
        now = time.monotonic()
        if settings is None or settings.source is None or not settings.source.acknowledge:
            return False
        if name in self._under_way:
            return False
        last, at = self._given.get(name, (None, 0.0))
        return now >= self._next.get(name, 0.0) and (last != news or now - at > REPEAT_S)

    async def _acknowledge(self, name: str, news: "_News") -> None:
        serial = news.serial
        acknowledgement = Acknowledgement(
            node=self._config().identity.host, list=name, made=utc_text(datetime.now(UTC)), **news._asdict()
        )
        try:
            async with asyncio.timeout(2 * POST_S):
                await done_apart(
                    self._start,
                    ACKNOWLEDGE_PROCESS,
                    _send_in_process,
                    self._config(),
                    acknowledgement,
                    report=self._report,
                )
        except (EirError, OSError, TimeoutError) as e:
            reason = e.reason if isinstance(e, Unreached) else "process"
            self._counts[name, "not_given"] += 1
            self._failures[name] += 1
            self._next[name] = time.monotonic() + backoff_s(self._failures[name], TELL_AGAIN_MAX_S)
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
