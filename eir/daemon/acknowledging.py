"""Tell the sources of the node's lists what it has in force, and since when.

A process that answers no checks signs and posts it.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from eir.config import Config
from eir.daemon.apart import Start, done_apart
from eir.daemon.channel import Channel
from eir.daemon.state_folder import IN_FORCE_FILE, InForce, in_force_before
from eir.disk import put
from eir.errors import EirError, Report, detail_of
from eir.operate import metrics
from eir.operate.owner import as_owner_of
from eir.operate.status import WorkerReport
from eir.record.store import ListState, utc_text
from eir.sources.acknowledge import ROOM, Acknowledgement, acknowledged, key_of
from eir.sources.pull_http import Server, Unreached

PROCESS = "acknowledge"
POST_S = 60.0
REPEAT_S = 86400.0
"""After this long it is said again, although nothing has changed."""
AGAIN_S, AGAIN_MAX_S = 2.0, 300.0
"""Pause after one that was not taken; it doubles."""


def give(config: Config, what: Acknowledgement) -> None:
    """Sign an acknowledgement and post it to the list's source. Raises EirError (Unreached) or OSError."""
    source = config.lists[what.list].source
    if source is None:
        raise EirError(f"list {what.list} has no source (lists.{what.list}.source)")
    with as_owner_of(config.state):
        content = acknowledged(what, key_of(config.state))
    Server(source, time.monotonic() + POST_S).give(f"{ROOM}/{what.name}", content)


async def _give_of_node(config: Config, what: Acknowledgement, _: Channel) -> None:
    await asyncio.to_thread(give, config, what)


class Acknowledging:
    """Notices what comes into force on all workers, and tells the sources that want to know."""

    def __init__(self, config: Config, start: Start, *, report: Report) -> None:
        self._config, self._start, self._report = config, start, report
        self._file = config.state / IN_FORCE_FILE
        self._in_force = in_force_before(config.state)
        self.gone: Sequence[str] = ()
        """Local lists that were in force before, and that no worker has. A signed one counts as never loaded."""
        self.older: Mapping[str, tuple[int, int]] = {}
        """Lists of which a higher serial was accepted here before than the store knows → its highest serial, and that one."""
        self._given: dict[str, tuple[InForce, float]] = {}
        """List → what was said last, and when (time.monotonic)."""
        self._next: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def configure(self, config: Config) -> None:
        """Go by another configuration."""
        self._config = config

    def look(self, reports: Sequence[WorkerReport]) -> None:
        """See what is in force now; tell those who are to be told."""
        if not reports:
            return
        known = self._config.lists
        there = [name for name in self._in_force if name in known and known[name].local]
        self.gone = [name for name in there if not any(name in report.lists for report in reports)]
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
                put(self._file, json.dumps(self._in_force).encode())
        for name in reports[0].lists:
            if self._is_due(name):
                self._tasks[name] = asyncio.get_running_loop().create_task(self._tell(name, self._in_force[name]))

    def since(self, states: Mapping[str, ListState]) -> dict[str, str]:
        """Since when lists in these states are in force."""
        return {
            name: self._in_force[name].since
            for name, state in states.items()
            if self._in_force.get(name, ())[:2] == (state.serial, state.content_digest)
        }

    def numbers(self) -> metrics.Snapshot:
        """Metrics by name and labels."""
        return {"eir_source_acknowledgements_total": {labels: float(count) for labels, count in self._counts.items()}}

    async def stop(self) -> None:
        """Tell nobody any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _is_due(self, name: str) -> bool:
        settings, now = self._config.lists.get(name), time.monotonic()
        if settings is None or settings.source is None or not settings.source.acknowledge or name not in self._in_force:
            return False
        if (task := self._tasks.get(name)) is not None and not task.done():
            return False
        said, at = self._given.get(name, (None, 0.0))
        is_said = said is not None and said[:3] == self._in_force[name][:3]
        return now >= self._next.get(name, 0.0) and (not is_said or now - at > REPEAT_S)

    async def _tell(self, name: str, what: InForce) -> None:
        serial, content, since, _ = what
        made = Acknowledgement(
            node=self._config.identity.host,
            list=name,
            serial=serial,
            content=content,
            since=since,
            made=utc_text(datetime.now(UTC)),
        )
        try:
            async with asyncio.timeout(2 * POST_S):
                await done_apart(self._start, PROCESS, _give_of_node, self._config, made, report=self._report)
        except (EirError, OSError, TimeoutError) as e:
            reason = e.reason if isinstance(e, Unreached) else "process"
            self._counts[name, "not_given"] += 1
            self._failures[name] += 1
            pause_s = min(AGAIN_MAX_S, AGAIN_S * 2 ** min(self._failures[name] - 1, 20)) * (1 - random.random() / 2)  # noqa: S311 - a spread
            self._next[name] = time.monotonic() + pause_s
            detail = detail_of(e)
            self._report(
                "acknowledgement_not_given", level="warning", reason=reason, list=name, serial=serial, detail=detail
            )
            return
        self._given[name] = what, time.monotonic()
        self._failures[name] = 0
        self._counts[name, "given"] += 1
        self._report("acknowledgement_given", list=name, serial=serial)
