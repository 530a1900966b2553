"""Answering process, as the manager handles it: start, settings, lists, calls and counters."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from eir.checks.explain import Explanation
from eir.checks.question import Question
from eir.checks.trace import TraceFilter
from eir.errors import EirError, Report
from eir.interfaces import INTERFACES
from eir.lists.images.image import Image
from eir.node.observe import metrics
from eir.node.observe.status import AnsweringReport
from eir.node.processes.channel import Channel, ChannelError
from eir.node.processes.child import START_S, Child, Process, Start
from eir.node.processes.configuration import Configured, Loaded
from eir.node.processes.listeners import Listeners, OpenListener, send_listeners
from eir.node.processes.setup import Listed, send_list

if TYPE_CHECKING:
    from eir.node.processes.following import Followed
    from eir.wire.web.tokens import KeyFiles

NAME, RUN = "answering", "eir.node.processes.answering:run"
NOT_STARTED = "the answering process has no lists yet; try again in a moment"
ANSWERING = frozenset(each.name for each in INTERFACES if each.server)
"""Names of the interfaces whose servers run in the answering process."""


class AnsweringChild:
    """Object in the manager that starts the answering process, and stores the settings that its successor needs.

    `loaded`: function that returns the settings in force. `traced`: function that receives each record of a trace.
    """

    def __init__(
        self, start: Start, loaded: Callable[[], Loaded], lists: "Followed", listeners: Listeners, *,
        origin_state_id: int, sightings: socket.socket | None, traced: Callable[[dict[str, Any]], None], report: Report,
    ) -> None:  # fmt: skip
        """Create the `Child` object of the process, which is not started yet.

        `sightings`: socket over which the process sends checks to the recorder.
        """
        carried = [] if sightings is None else [sightings]
        self.child = Child(
            NAME, partial(start, NAME, RUN, origin_state_id, carrying=carried), report=report, greet=self._greet,
            handlers=lambda _: {"started": self._start, "traced": traced, "first_seen": lists.note_first_seen},
            left=self._leave, serves=True,
        )  # fmt: skip
        lists.deliver_to(self.distribute, self.complete, self.reject_first_seen)
        self.started = False
        """True if the process has its lists."""
        self.changed = asyncio.Event()
        """Set after the process has received its lists, or has ended."""
        self._loaded = loaded
        self._lists = lists
        self._listeners = listeners
        self._report = report
        self._last: AnsweringReport | None = None
        """Last report of the process."""
        self._disabled: set[str] = set()
        """Labels of peers that are out of service."""
        self.is_open = False
        """True after `open`."""
        self._sought: TraceFilter | None = None
        """Filter of the running trace; None: no trace runs."""
        self._is_stopping = False

    def _configured(self, loaded: Loaded) -> Configured:
        left = () if self._last is None else self._last.left
        return Configured(loaded.config, sorted(self._disabled), loaded.tls, loaded.keys, self._sought, left)

    def _greet(self, process: Process) -> None:
        process.channel.notify("configure", self._configured(self._loaded()))
        self._lists.send_all(process.channel)
        if self.is_open:
            self._send_listeners(process.channel)

    def _send_listeners(self, channel: Channel) -> None:
        self._listeners.send(channel, ANSWERING)
        channel.notify("dial")

    def _start(self) -> None:
        self.started = True
        self.changed.set()

    def _leave(self, _: Process) -> None:
        self.started = False
        self.changed.set()

    def open(self) -> None:
        """Let the process accept connections from the listeners and connect to peers, now and after each of its restarts."""
        self.is_open = True
        if self.child.channel is not None:
            self._send_listeners(self.child.channel)

    def end(self) -> None:
        """Stop the process, which ends its connections in order."""
        self._is_stopping = True
        self.child.notify("end")

    def distribute(self, listed: Listed, image: Image) -> None:
        """Send a list to the process, which puts it in force."""
        if self.child.channel is not None:
            send_list(self.child.channel, listed, image)

    def reject_first_seen(self, peer: str, keys: list[int]) -> None:
        """Remove these devices from the queue of new devices, because their first sightings are not recorded.

        `peer`: label of the peer above its limit.
        """
        self.child.notify("first_seen_rejected", peer, keys)

    def complete(self) -> None:
        """Inform the process that it has received all lists."""
        self.child.notify("complete")

    # Calls

    async def _ask(self, what: str, *arguments: Any, changes: bool = False) -> Any:
        """Call a handler of the process; return its result, or None if the process does not run or fails.

        A failure is logged, unless the process was stopped. `changes`: True for a call that changes settings. It also goes to a
        process that is starting, with the time limit of a start.
        """
        channel = self.child.channel
        if channel is None or not (self.started or changes):
            return None
        try:
            return await channel.ask(what, *arguments, patience_s=0.0 if self.started else START_S)
        except ChannelError as e:
            if not (self._is_stopping and channel.gone.is_set()):  # a stopped process cannot answer
                self._report("call_failed", level="warning", reason=what, process=NAME, detail=str(e))
            return None

    async def snapshot(self) -> metrics.Snapshot:
        """Return the metrics of the process, including the counters of ended processes."""
        answer = await self._ask("snapshot")
        if answer is not None:
            self.child.count(answer)
        return self.child.snapshot()

    async def report(self) -> AnsweringReport | None:
        """Return the status report of the process, and send the process the lists that it lacks. None: it does not answer."""
        report: AnsweringReport | None = await self._ask("report")
        if report is not None and self.child.channel is not None:
            self._last = report
            self._lists.send_missing(self.child.channel, report.lists, report.reasons)
        return report

    async def explain(self, question: Question) -> Explanation:
        """Return the answer that a check would get at present, and the reasons.

        Raises:
            EirError: if the process does not have its lists yet, or rejects the question.
        """
        if self.child.channel is None or not self.started:
            raise EirError(NOT_STARTED)
        explanation: Explanation = await self.child.channel.ask("explain", question)
        return explanation

    async def peers(self) -> list[dict[str, Any]]:
        """Return the rows of `eir peers`: all connections, and entries of the peer table without a connection."""
        return await self._ask("peers") or []

    async def apply(self, opened: Sequence[OpenListener]) -> None:
        """Let the process apply the settings in force, and accept connections from new listeners, as Child.apply."""
        await self.child.apply(self._configured(self._loaded()), patience_s=0.0 if self.started else START_S)
        if self.is_open and self.child.channel is not None:
            send_listeners(self.child.channel, [each for each in opened if each.interface in ANSWERING])

    async def set_peer(self, label: str, *, enabled: bool) -> None:
        """Put a peer into service, or take it out of service, also for a restarted process."""
        if enabled:
            self._disabled.discard(label)
        else:
            self._disabled.add(label)
        await self._ask("set_peer", label, enabled, changes=True)

    async def set_keys(self, keys: "Mapping[str, KeyFiles | None]") -> None:
        """Let the process verify access tokens with new keys."""
        await self._ask("set_keys", keys, changes=True)

    async def trace(self, sought: TraceFilter | None) -> None:
        """Let the process report the checks that match the filter `sought`. Without a filter, it reports no checks."""
        self._sought = sought
        await self._ask("trace", sought, changes=True)
