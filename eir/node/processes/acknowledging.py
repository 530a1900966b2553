"""Acknowledgements: reports to the lists' sources about the releases that the answering process has in force.

The node sends them to each source with `acknowledge`. An acknowledgement has the release of each list, and the time at which it came
into force.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from eir.config import Config
from eir.curl import Unreached
from eir.errors import EirError, Report, detail_of
from eir.lists.log.change import Head, utc_text
from eir.lists.record.in_force import InForce, load_in_force, save_in_force
from eir.lists.record.settings import SourceSettings
from eir.lists.sources.acknowledgement import (
    ACKNOWLEDGED,
    Acknowledgement,
    ListStatement,
    Rejection,
    load_key,
    sign_acknowledgement,
)
from eir.lists.sources.source_client import SourceClient
from eir.node.observe import metrics
from eir.node.processes.process import Jobs
from eir.schema import DETAILS

POST_S = 60.0
AGAIN_S = 2.0
"""Seconds before a failed pull or acknowledgement is repeated. The pause doubles with each failure, up to a limit of the caller."""
REPEAT_S = 86400.0
"""Seconds after which an acknowledgement is sent again even if it is unchanged."""
RETRY_MAX_S = 300.0
"""Maximum seconds before an acknowledgement is repeated that the source did not accept."""


def signed_statements(config: Config, lists: Mapping[str, ListStatement]) -> tuple[str, bytes]:
    """Return file name and content of the signed acknowledgement of these lists.

    Raises:
        EirError: if the key cannot be created or used.
        OSError: if the key cannot be read.
    """
    acknowledgement = Acknowledgement(node=config.identity.host, made=utc_text(datetime.now(UTC)), lists=lists)
    return acknowledgement.name, sign_acknowledgement(acknowledgement, load_key(config.state))


async def send_statements(config: Config, source: SourceSettings, lists: Mapping[str, ListStatement]) -> None:
    """Sign an acknowledgement of these lists, and upload it to a source.

    Raises:
        EirError: if the source does not accept it (Unreached).
        OSError: if the key cannot be read.
    """
    name, content = await asyncio.to_thread(signed_statements, config, lists)
    await SourceClient(source, time.monotonic() + POST_S).upload(f"{ACKNOWLEDGED}/{name}", content)


def statements_for(
    config: Config, source: SourceSettings, statements: Mapping[str, ListStatement]
) -> dict[str, ListStatement]:
    """Return those statements that a source may know: of lists with a source on the same server."""
    server = urlsplit(source.url).netloc
    sources = {name: settings.source for name, settings in config.lists.items() if settings.source is not None}
    return {
        name: each for name, each in statements.items() if name in sources and urlsplit(sources[name].url).netloc == server
    }  # fmt: skip


def backoff_s(failures: int, most_s: float) -> float:
    """Return the pause in seconds after this number of consecutive failures, at most `most_s`.

    Up to a half of the pause is random, so that nodes do not retry at the same time.
    """
    pause_s = min(most_s, AGAIN_S * 2.0 ** min(failures - 1, 20))
    random_part = random.random() / 2  # noqa: S311 - spread
    return pause_s * (1 - random_part)


class Acknowledging:
    """Sender of acknowledgements. It detects releases that the answering process has in force, and rejected releases."""

    def __init__(self, config: Callable[[], Config], jobs: Jobs, *, report: Report) -> None:
        """Create the sender of acknowledgements. `config`: function that returns the settings in force."""
        self._config = config
        self._jobs = jobs
        self._report = report
        self._in_force = load_in_force(config().state)
        self._is_saved = True
        """True if the state folder has the lists in force."""
        self._lost: Sequence[str] = ()
        """Local lists that were in force before, and that are not in force now. A signed list in this state counts as never loaded."""
        self.older: Mapping[str, tuple[int, int]] = {}
        """Highest serial in the store, and highest serial that this node has accepted, for each list for which the store has the lower one."""
        self._rejected: dict[str, Rejection] = {}
        self._given: dict[str, tuple[Mapping[str, ListStatement], float]] = {}
        """Statements of the last accepted acknowledgement, and its time (time.monotonic), by list of the source."""
        self._next: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._in_progress: set[str] = set()
        """Lists whose acknowledgement is being sent."""

    def update(self, heads: Mapping[str, Head], rejected: Mapping[str, Rejection] | None = None) -> None:
        """Detect changes of the lists in force and of rejections, and send the acknowledgements that are due.

        `heads`: lists in force. `rejected`: last rejection by list.
        """
        settings = self._config().lists
        local = [name for name in self._in_force if name in settings and settings[name].local]
        self._lost = [name for name in local if name not in heads]
        self.note(heads)
        before_rejected = self._rejected
        self._rejected = dict(rejected or {})
        for name in {*before_rejected, *self._rejected}:
            if before_rejected.get(name) != self._rejected.get(name):
                self._next.pop(name, None)
        statements = self._statements(heads)
        for name in statements:
            source = settings[name].source if name in settings else None
            if source is not None and source.acknowledge:
                lists = statements_for(self._config(), source, statements)
                if self._is_due(name, lists):
                    self._in_progress.add(name)
                    self._jobs.spawn(self._acknowledge(name, source, lists))

    def note(self, heads: Mapping[str, Head]) -> None:
        """Save changed versions of the lists in force on disk.

        If the disk cannot be written, the next call tries again.
        """
        for name, state in heads.items():
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
        for name, state in heads.items():
            if name in self._in_force and state.mark < self._in_force[name].mark:
                _, highest = self._in_force[name].mark
                older[name] = state.highest_serial, highest
        self.older = older
        if not self._is_saved:
            with suppress(OSError):
                self._in_force = save_in_force(self._config().state, self._in_force, {})
                self._is_saved = True

    def _statements(self, heads: Mapping[str, Head]) -> dict[str, ListStatement]:
        """Return the statements about all lists that are in force or rejected. `heads`: lists in force."""
        statements = {}
        for name in dict.fromkeys((*heads, *self._rejected)):
            rejected, in_force, head = self._rejected.get(name), self._in_force.get(name), heads.get(name)
            if head is None and rejected is not None:  # the list was in force neither at the rejection nor since then
                empty = Head()
                statements[name] = ListStatement(0, None, empty.content, rejected.at, rejected)
            elif in_force is not None and in_force.since:
                is_same = head is not None and in_force[:2] == (head.serial, head.content)
                release = head.release or None if is_same and head is not None else None
                statements[name] = ListStatement(in_force.serial, release, in_force.content, in_force.since, rejected)
        return statements

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

    def _is_due(self, name: str, lists: Mapping[str, ListStatement]) -> bool:
        now = time.monotonic()
        if name in self._in_progress or now < self._next.get(name, 0.0):
            return False
        last, given_at = self._given.get(name, (None, 0.0))
        return last != lists or now - given_at > REPEAT_S

    async def _acknowledge(self, name: str, source: SourceSettings, lists: Mapping[str, ListStatement]) -> None:
        serial = lists[name].serial
        try:
            await send_statements(self._config(), source, lists)
        except (EirError, OSError) as e:
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
        self._given[name] = lists, time.monotonic()
        self._failures[name] = 0
        self._counts[name, "given"] += 1
        self._report("acknowledgement_given", list=name, serial=serial)
