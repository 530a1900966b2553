"""The HTTP server of the supervisor, and its pages for programs: /metrics for Prometheus, /live and /ready for probes.

A client gets neither the loop nor the memory of the supervisor for itself: `eir/wire/web/http1_server.py` sees to that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence

from eir.errors import Report, place_of
from eir.node.observe import metrics
from eir.node.observe.status import NOT_READY, Status, WorkerReport
from eir.wire.web.http1 import Request, Response
from eir.wire.web.http1_server import HttpConnections, HttpLimits

TEXT = "text/plain; charset=utf-8"
LIMITS = HttpLimits(request_body_max=4096)

Page = Callable[[Request], Response | Awaitable[Response]]


class HttpServer:
    """Serves the pages (path → callable) until `close`. `forms`: paths of those that take a form, by POST."""

    def __init__(
        self, pages: Mapping[str, Page], *, report: Report, limits: HttpLimits = LIMITS, forms: Container[str] = ()
    ) -> None:
        self._pages, self._forms = pages, forms
        self._limits = limits
        self._report = report
        self._server: asyncio.Server | None = None
        self._links = HttpConnections(self._answer, limits=limits)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the listener; port 0 takes a free one. Returns the address bound. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(self._links.link, host, port)
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Close the listener and what is connected."""
        if self._server is not None:
            self._server.close()
        await self._links.close()
        if self._server is not None:
            await self._server.wait_closed()

    async def _answer(self, request: Request) -> Response:
        page = self._pages.get(request.path)
        if request.method not in {"GET", "HEAD"} and (request.method != "POST" or request.path not in self._forms):
            return Response(405, TEXT, b"GET or HEAD only\n")
        if page is None:
            return Response(404, TEXT, f"not here; there are: {' '.join(self._pages)}\n".encode())
        try:
            made = page(request)
            response = made if isinstance(made, Response) else await made
        except Exception as e:  # noqa: BLE001 - whatever it is: a scrape that sees a closed connection learns nothing
            return self._failed(request.path, place_of(e))  # its text may hold the identifier that was asked about
        if len(response.body) > self._limits.body_bytes_max:
            return self._failed(request.path, f"it has {len(response.body)} bytes")
        return response

    def _failed(self, path: str, why: str) -> Response:
        self._report("page_failed", level="error", reason=path, detail=why)
        return Response(500, TEXT, b"this page failed; the log says why (page_failed)\n")


def pages(
    snapshot: Callable[[], Awaitable[metrics.Snapshot]],
    reports: Callable[[], Awaitable[Sequence[WorkerReport]]],
    status: Status,
    *,
    report: Report,
) -> dict[str, Page]:
    """The pages by path. `snapshot` gives all numbers of the node, `reports` how its workers are."""
    strange: set[str] = set()
    """Metrics without a row in the table, of which the log has told."""

    async def show_metrics(_: Request) -> Response:
        numbers = await snapshot()
        for name in metrics.unknown(numbers):
            if name not in strange:
                strange.add(name)
                report(
                    "metric_unknown",
                    level="error",
                    reason=name,
                    detail="not in the table of metrics; the page leaves it out",
                )
        # Rendering takes milliseconds with many peers: beside the loop, not in it.
        return Response(200, metrics.CONTENT_TYPE, await asyncio.to_thread(metrics.exposition, numbers))

    async def show_readiness(_: Request) -> Response:
        word, why = status.readiness(await reports())
        return Response(503 if word == NOT_READY else 200, TEXT, "\n".join([word, *why, ""]).encode())

    return {"/metrics": show_metrics, "/live": lambda _: Response(200, TEXT, b"live\n"), "/ready": show_readiness}
