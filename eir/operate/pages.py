"""The pages of a node: /metrics for Prometheus, /live and /ready for probes and people."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from eir.errors import Report
from eir.operate import metrics
from eir.operate.http import TEXT, Page
from eir.operate.status import NOT_READY, Status, WorkerReport
from eir.web.http1 import Response


def pages(
    snapshot: Callable[[], Awaitable[metrics.Snapshot]], reports: Callable[[], Awaitable[Sequence[WorkerReport]]], status: Status, *, report: Report
) -> dict[str, Page]:
    """The pages by path. `snapshot` gives all numbers of the node, `reports` how its workers are."""
    strange: set[str] = set()
    """Metrics without a row in the table, of which the log has told."""

    async def show_metrics() -> Response:
        numbers = await snapshot()
        for name in metrics.unknown(numbers):
            if name not in strange:
                strange.add(name)
                report("metric_unknown", level="error", reason=name, detail="not in the table of metrics; the page leaves it out")
        # Rendering takes milliseconds with many peers: beside the loop, not in it.
        return Response(200, metrics.CONTENT_TYPE, await asyncio.to_thread(metrics.exposition, numbers))

    async def show_readiness() -> Response:
        word, why = status.readiness(await reports())
        return Response(503 if word == NOT_READY else 200, TEXT, "\n".join([word, *why, ""]).encode())

    return {"/metrics": show_metrics, "/live": lambda: Response(200, TEXT, b"live\n"), "/ready": show_readiness}
