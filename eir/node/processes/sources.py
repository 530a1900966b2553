"""Sources of lists in the supervisor: drop folder, pulls, and acknowledgements of releases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eir.config import Config
from eir.errors import Report
from eir.lists.log.change import Head
from eir.lists.sources.inbox import Record
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport
from eir.node.processes.acknowledging import Acknowledging
from eir.node.processes.drop_folder import POLL_S, DropFolder
from eir.node.processes.jobs import Jobs
from eir.node.processes.loading import Loads
from eir.node.processes.pulling import Pulling
from eir.node.processes.starter import Start


class Sources:
    """Drop folder, pulls and acknowledgements of a node."""

    def __init__(
        self, config: Callable[[], Config], start: Start, jobs: Jobs, record: Record, *, report: Report
    ) -> None:
        """Create the objects for drop folder, pulls and acknowledgements. No job is started yet.

        `config`: function that returns the settings in force. `record`: function that records a rejection in the node's journal.
        """
        self._jobs = jobs
        loads = Loads(start, record)
        self._drop_folder = DropFolder(config, start, loads, report=report)
        self._pulling = Pulling(config, start, jobs, loads, report=report)
        self._acknowledging = Acknowledging(config, start, jobs, report=report)

    def start(self) -> None:
        """Start the jobs that poll the drop folder and the lists' sources."""
        self._jobs.start("inbox", POLL_S, self._drop_folder.poll)
        self.apply()

    def apply(self) -> None:
        """Apply new settings: start and stop the jobs that pull lists from their sources."""
        self._pulling.apply()

    def acknowledge(self, reports: Sequence[WorkerReport]) -> None:
        """Send acknowledgements of releases to the sources of the lists, if acknowledgements are due.

        `reports`: status of each worker, which shows the releases in force.
        """
        self._acknowledging.update(reports, self._pulling.rejected)

    def note_in_force(self, reports: Sequence[WorkerReport]) -> None:
        """Save on disk the lists that all workers have in force."""
        self._acknowledging.note(reports)

    def in_force(self, states: Mapping[str, Head]) -> dict[str, Any]:
        """Return two tables by list name: when the version in force took effect (`since`), and the last rejected release (`rejected`)."""
        rejected = {name: asdict(each) for name, each in self._pulling.rejected.items()}
        return {"since": self._acknowledging.since(states), "rejected": rejected}

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about drop folder, sources and acknowledgements by name and label values."""
        return {**self._drop_folder.snapshot(), **self._pulling.snapshot(), **self._acknowledging.snapshot()}
