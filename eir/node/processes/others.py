"""All processes of a node except the manager: started in order, restarted if they end, and stopped in order."""

from collections.abc import Callable, Sequence
from typing import Any

from eir.errors import Report
from eir.interfaces.interface import NodeCalls
from eir.node.observe import metrics
from eir.node.processes.answered import AnsweringChild
from eir.node.processes.child import Children, Starter
from eir.node.processes.configuration import Configuration, Loaded
from eir.node.processes.following import Followed
from eir.node.processes.listeners import Listeners, OpenListener
from eir.node.processes.recorder import Recorded
from eir.node.processes.services import Services


class OtherProcesses:
    """All processes of a node except the manager."""

    def __init__(
        self,
        configuration: Configuration,
        starter: Starter,
        listeners: Listeners,
        *,
        origin_state_id: int,
        end_s: float,
        traced: Callable[[dict[str, Any]], None],
        report: Report,
    ) -> None:
        """Create all child processes without starting them.

        `end_s`: maximum seconds for the end of the processes. `traced`: function that receives each record of a trace.
        """
        config = configuration.config
        start = starter.start
        self._end_s = end_s
        self._children = Children(report=report)
        self.followed = Followed(config, start, report=report)
        self.recorded = None if config.sightings is None else Recorded(config, config.sightings, start, report)
        if self.recorded is not None:
            self.followed.note_lists_to(self.recorded.note_list)
            self.recorded.note_last_devices = self.followed.note_last_devices
        self.answered = AnsweringChild(
            start, lambda: configuration.loaded, self.followed, listeners, origin_state_id=origin_state_id,
            sightings=None if self.recorded is None else self.recorded.sender, traced=traced, report=report,
        )  # fmt: skip
        node = NodeCalls(self.followed.is_recorded, self.followed.record_now, self._write_checks)
        self.services = Services(lambda: configuration.loaded, start, listeners, node=node, report=report)

    def start(self) -> None:
        """Start recorder, follower and answering process, which are restarted until the node ends."""
        if self.recorded is not None:
            self._children.start(self.recorded.child)
        for child in (self.followed.child, self.answered.child):
            self._children.start(child)

    def start_services(self) -> None:
        """Start the services process if an interface that it serves, such as the feed, has a listener, and the process does not run."""
        if self.services.served and self.services.child.name not in self._children.restarts:
            self._children.start(self.services.child)

    async def apply(self, loaded: Loaded, opened: Sequence[OpenListener]) -> None:
        """Let all processes apply new settings, and accept connections from new listeners."""
        await self.answered.apply(opened)
        await self.followed.apply(loaded.config)
        await self.services.apply(opened)
        self.start_services()

    def snapshots(self) -> list[metrics.Snapshot]:
        """Return the metrics of the recorder, the follower and the services process."""
        restarts: metrics.Snapshot = {"eir_process_restarts_total": metrics.by_label(self._children.restarts)}
        snapshots = [restarts, self.followed.snapshot(), self.services.snapshot()]
        if self.recorded is not None:
            snapshots.append(self.recorded.snapshot())
        return snapshots

    def stop(self) -> None:
        """Disable the restart of processes that end."""
        self._children.stop()

    async def _write_checks(self) -> None:
        if self.recorded is not None:
            await self.recorded.write()

    async def end(self) -> bool:
        """Stop all processes, and wait for their end. The answering process is stopped first, and closes its connections.

        Returns false if a process had to be killed. Killed processes of children with `is_spared` do not count.
        """
        self.answered.end()
        self.followed.child.stop()
        if self.recorded is not None:
            self.recorded.end()
        self.services.child.stop()
        return await self._children.end(self._end_s)

    async def close(self) -> None:
        """Give up unrecorded events."""
        await self.followed.close()
