"""Acknowledgements: reports to a list's source about the release that all workers have in force.

The node sends them to each source with `acknowledge`. An acknowledgement has the release, and the time at which the release came
into force. Each acknowledgement is signed and uploaded in its own process.
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
from eir.lists.log.change import Head, utc_text
from eir.lists.record.in_force import InForce, load_in_force, save_in_force
from eir.lists.sources.acknowledge import ACKNOWLEDGED, Acknowledgement, Rejection, load_key, sign_acknowledgement
from eir.lists.sources.pull_http import SourceClient, Unreached
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport
from eir.node.processes.apart import run_apart
from eir.node.processes.channel import Channel
from eir.node.processes.jobs import Jobs
from eir.node.processes.pulling import backoff_s
from eir.node.processes.starter import Start
from eir.node.processes.state_folder import as_owner_of
from eir.schema import DETAILS

ACKNOWLEDGE_PROCESS = "acknowledge"
POST_S = 60.0
REPEAT_S = 86400.0
"""Seconds after which an acknowledgement is sent again even if it is unchanged."""
RETRY_MAX_S = 300.0
"""Maximum seconds before an acknowledgement is repeated that the source did not accept."""


def send_acknowledgement(config: Config, acknowledgement: Acknowledgement) -> None:
    """Sign an acknowledgement and upload it to the list's source.

    Raises:
        EirError: if the source does not accept it (Unreached), or the list has no source.
        OSError: if the key cannot be read.
    """
    source = config.lists[acknowledgement.list].source
    if source is None:
        name = acknowledgement.list
        raise EirError(f"list {name} has no source (lists.{name}.source)")
    with as_owner_of(config.state):
        key = load_key(config.state)
        content = sign_acknowledgement(acknowledgement, key)
    client = SourceClient(source, time.monotonic() + POST_S)
    client.upload(f"{ACKNOWLEDGED}/{acknowledgement.name}", content)


async def _send_in_process(config: Config, acknowledgement: Acknowledgement, _: Channel) -> None:
    await asyncio.to_thread(send_acknowledgement, config, acknowledgement)


class _Content(NamedTuple):
    """Content of an acknowledgement to a list's source. If the content changes, a new acknowledgement is sent."""

    serial: int
    content: str
    since: str
    rejected: Rejection | None


class Acknowledging:
    """Sender of acknowledgements. It detects releases that all workers have in force, and rejected releases."""

    def __init__(self, config: Callable[[], Config], start: Start, jobs: Jobs, *, report: Report) -> None:
        """Create the sender of acknowledgements. `config`: function that returns the settings in force."""
        self._config = config
        self._start = start
        self._jobs = jobs
        self._report = report
        self._in_force = load_in_force(config().state)
        self._is_saved = True
        """True if the state folder has the lists in force."""
        self._lost: Sequence[str] = ()
        """Local lists that were in force before, and that no worker has now. A signed list in this state counts as never loaded."""
        self.older: Mapping[str, tuple[int, int]] = {}
        """Highest serial in the store, and highest serial that this node has accepted, for each list for which the store has the lower one."""
        self._rejected: dict[str, Rejection] = {}
        self._given: dict[str, tuple[_Content, float]] = {}
        """Content of the last accepted acknowledgement, and its time (time.monotonic), by list."""
        self._next: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._in_progress: set[str] = set()
        """Lists whose acknowledgement is being sent."""

    def update(self, reports: Sequence[WorkerReport], rejected: Mapping[str, Rejection] | None = None) -> None:
        """Detect changes of the lists in force and of rejections, and send the acknowledgements that are due.

        `reports`: status of each worker. `rejected`: last rejection by list.
        """
        if not reports:
            return
        settings = self._config().lists
        held = {name for report in reports for name in report.lists}
        local = [name for name in self._in_force if name in settings and settings[name].local]
        self._lost = [name for name in local if name not in held]
        self.note(reports)
        before_rejected = self._rejected
        self._rejected = dict(rejected or {})
        for name in {*before_rejected, *self._rejected}:
            if before_rejected.get(name) != self._rejected.get(name):
                self._next.pop(name, None)
        for name in dict.fromkeys((*reports[0].lists, *self._rejected)):
            content = self._content(name, name in reports[0].lists)
            if content is not None and self._is_due(name, content):
                self._in_progress.add(name)
                self._jobs.spawn(self._acknowledge(name, content))

    def note(self, reports: Sequence[WorkerReport]) -> None:
        """Find the version of each list that all workers have in force, and save changed versions on disk.

        If the disk cannot be written, the next call tries again.
        """
        if not reports:
            return
        for name, state in reports[0].lists.items():
            if not all(report.lists.get(name) == state for report in reports):
                continue
            before = self._in_force.get(name)
            mark = max(before.mark, state.mark) if before is not None else state.mark
            if before is None or before[:2] != (state.serial, state.content):
                now = utc_text(datetime.now(UTC))
                self._in_force[name] = InForce(state.serial, state.content, now, mark)
                self._next.pop(name, None)
                self._is_saved = False
            elif before.mark != mark:
                self._in_force[name] = before._replace(mark=mark)
                self._is_saved = False
        older = {}
        for name, state in reports[0].lists.items():
            if name in self._in_force and state.mark < self._in_force[name].mark:
                _, highest = self._in_force[name].mark
                older[name] = state.highest_serial, highest
        self.older = older
        if not self._is_saved:
            with suppress(OSError):
                self._in_force = save_in_force(self._config().state, self._in_force, {})
                self._is_saved = True

    def _content(self, name: str, has_list: bool) -> "_Content | None":
        """Return the content of the acknowledgement for a list, or None if there is nothing to acknowledge."""
        rejected = self._rejected.get(name)
        in_force = self._in_force.get(name)
        if not has_list and rejected is not None:  # the list was in force neither at the rejection nor since then
            return _Content(0, Head().content, rejected.at, rejected)
        if in_force is None or not in_force.since:
            return None
        return _Content(in_force.serial, in_force.content, in_force.since, rejected)

    def since(self, states: Mapping[str, Head]) -> dict[str, str]:
        """Return the time from which each list version has been in force, by list name. `states`: list versions by name."""
        since = {}
        for name, state in states.items():
            in_force = self._in_force.get(name)
            if in_force is not None and in_force[:2] == (state.serial, state.content):
                since[name] = in_force.since
        return since

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about acknowledgements and lost lists, by metric name and label values."""
        lost = dict.fromkeys(self._lost, "it was in force here before: restore a backup")
        for name, (highest, own) in self.older.items():
            lost[name] = f"its highest serial is {highest}, but this node accepted {own}: load the newest release again"
        return {
            "eir_source_acknowledgements_total": dict(self._counts),
            "eir_store_lost_data": {(name,): 1.0 for name in lost},
            DETAILS: metrics.details("EirStoreLostData", lost),
        }

    def _is_due(self, name: str, content: "_Content") -> bool:
        settings = self._config().lists.get(name)
        now = time.monotonic()
        if settings is None or settings.source is None or not settings.source.acknowledge:
            return False
        if name in self._in_progress or now < self._next.get(name, 0.0):
            return False
        last, given_at = self._given.get(name, (None, 0.0))
        return last != content or now - given_at > REPEAT_S

    async def _acknowledge(self, name: str, content: "_Content") -> None:
        serial = content.serial
        config = self._config()
        now = utc_text(datetime.now(UTC))
        acknowledgement = Acknowledgement(node=config.identity.host, list=name, made=now, **content._asdict())
        try:
            async with asyncio.timeout(2 * POST_S):
                await run_apart(
                    self._start, ACKNOWLEDGE_PROCESS, _send_in_process, config, acknowledgement, report=self._report
                )
        except (EirError, OSError, TimeoutError) as e:
            reason = e.reason if isinstance(e, Unreached) else "process"
            self._counts[name, "not_given"] += 1
            self._failures[name] += 1
            self._next[name] = time.monotonic() + backoff_s(self._failures[name], RETRY_MAX_S)
            detail = detail_of(e)
            self._report(
                "acknowledgement_not_given", level="warning", reason=reason, list=name, serial=serial, detail=detail
            )
            return
        finally:
            self._in_progress.discard(name)
        self._given[name] = content, time.monotonic()
        self._failures[name] = 0
        self._counts[name, "given"] += 1
        self._report("acknowledgement_given", list=name, serial=serial)
