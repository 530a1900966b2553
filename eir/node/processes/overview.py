"""Metrics of all parts of the node, and the document of `eir status`."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eir import __version__
from eir.interfaces.s13.lane import LANE
from eir.node.observe import metrics
from eir.node.observe.alerts import Alerts, PeerTraffic
from eir.node.observe.lately import Minute, RecentChecks
from eir.node.observe.status import AnsweringReport, NodeHealth
from eir.node.processes.answered import AnsweringChild

if TYPE_CHECKING:
    from eir.node.observe.conditions import Trouble


class Overview:
    """Metrics and status of a node at present, and its checks in the last hour."""

    def __init__(
        self,
        answered: AnsweringChild,
        status: NodeHealth,
        ending: Callable[[], Mapping[str, int] | None],
    ) -> None:
        """Create the overview of a node that starts now.

        `ending`: function that returns Following.ending.
        """
        self.answered = answered
        self.status = status
        self.ending = ending
        self._recent_checks = RecentChecks()
        self._alerts = Alerts()
        self.metrics: metrics.Snapshot = {}
        """Metrics of the node at the last evaluation of the alerts."""
        self.troubles: dict[str, Trouble] = {}
        """Conditions of `eir status` that hold, by text."""

    async def snapshot(self) -> metrics.Snapshot:
        """Return the samples of all metrics of the node, by metric name and label values."""
        _, snapshot = await self._report_and_snapshot()
        return snapshot

    async def _report_and_snapshot(self) -> tuple[AnsweringReport | None, metrics.Snapshot]:
        report, answering = await asyncio.gather(self.answered.report(), self.answered.snapshot())
        own: metrics.Snapshot = {"eir_build_info": {(__version__, LANE): 1.0}}
        usage = metrics.usage_metrics(os.getpid())
        return report, metrics.merge([own, usage, self.status.snapshot(report), answering])

    async def report_and_document(self) -> tuple[AnsweringReport | None, dict[str, Any]]:
        """Return the status report of the answering process, and the document of `eir status`."""
        report, snapshot = await self._report_and_snapshot()
        now = time.time()
        troubles = self._alerts.troubles(snapshot, now)
        document = self.status.document(report, troubles)
        self.metrics = snapshot
        self.troubles = {each.text: each for each in troubles}
        return report, document

    async def end_minute(self) -> None:
        """End the current minute: store its checks, and evaluate the alert rules and the status."""
        self._recent_checks.end_minute(self.answered.child.snapshot())
        await self.report_and_document()
        self._alerts.end_minute(self.metrics, time.time())

    def minutes(self) -> Sequence[Minute]:
        """Return the checks in each minute of the last hour, the oldest minute first."""
        return self._recent_checks.minutes()

    def percentiles(self) -> tuple[float | None, float | None]:
        """Return the median and the 99th percentile (s) of the durations of the last hour's checks."""
        return self._recent_checks.percentiles()

    def traffic(self) -> Mapping[str, PeerTraffic]:
        """Return the traffic of each peer in the last minutes, by peer label."""
        return self._alerts.traffic()
