"""HTTP server of the manager, and its pages for programs: /metrics (Prometheus), /live and /ready (health probes).

`eir/wire/web/http1_server.py` limits the memory and the loop time that one client can use.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping
from inspect import iscoroutinefunction
from typing import cast

from eir.errors import Report, place_of
from eir.node.observe import metrics
from eir.node.observe.status import NOT_READY, AnsweringReport, NodeHealth
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer, HttpConnections, HttpLimits

TEXT = "text/plain; charset=utf-8"
LIMITS = HttpLimits(request_body_max=4096)
COMPUTED_MAX = 4
"""Maximum number of expensive pages that are computed at the same time: the loop answers /live between two steps of their work."""

Page = Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]


class HttpServer:
    """HTTP server of a node's pages.

    `pages`: function that returns the page, by path. `forms`: paths that accept a form by POST.
    """

    def __init__(
        self, pages: Mapping[str, Page], *, report: Report, limits: HttpLimits = LIMITS, forms: Container[str] = ()
    ) -> None:
        self._pages = pages
        self._forms = forms
        self._limits = limits
        self._report = report
        self._server: asyncio.Server | None = None
        self._links = HttpConnections(self._answer, limits=limits)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the listener; with port 0 the kernel chooses a free port.

        Returns:
            Bound address and port.

        Raises:
            OSError: if the address cannot be bound.
        """
        self._server = await asyncio.get_running_loop().create_server(self._links.create_connection, host, port)
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        await self._links.close()
        if self._server is not None:
            await self._server.wait_closed()

    def _answer(self, request: HttpRequest) -> Answer:
        """Return the response to a request. The pages that are coroutines are awaited; /live is answered as soon as its request is read."""
        page = self._pages.get(request.path)
        is_form = request.method == "POST" and request.path in self._forms
        if request.method not in {"GET", "HEAD"} and not is_form:
            return HttpResponse(405, TEXT, b"GET or HEAD only\n")
        if page is None:
            paths = " ".join(self._pages)
            return HttpResponse(404, TEXT, f"not here; there are: {paths}\n".encode())
        if iscoroutinefunction(page):
            return self._awaited(page, request)
        try:
            return self._checked(request.path, cast("HttpResponse", page(request)))
        except Exception as e:  # noqa: BLE001 - a scrape needs an answer; a closed connection has no reason
            return self._failed(request.path, place_of(e))  # the exception's text may contain the requested identifier

    async def _awaited(self, page: Page, request: HttpRequest) -> HttpResponse:
        try:
            return self._checked(request.path, await cast("Awaitable[HttpResponse]", page(request)))
        except Exception as e:  # noqa: BLE001 - as in _answer
            return self._failed(request.path, place_of(e))

    def _checked(self, path: str, response: HttpResponse) -> HttpResponse:
        """Return the response, or an error if its body is too large."""
        if len(response.body) > self._limits.body_bytes_max:
            return self._failed(path, f"it has {len(response.body)} bytes")
        return response

    def _failed(self, path: str, why: str) -> HttpResponse:
        self._report("page_failed", level="error", reason=path, detail=why)
        return HttpResponse(500, TEXT, b"this page failed; the log says why (page_failed)\n")


def pages(
    snapshot: Callable[[], Awaitable[metrics.Snapshot]],
    answering: Callable[[], Awaitable[AnsweringReport | None]],
    status: NodeHealth,
    *,
    computing: asyncio.Semaphore,
    report: Report,
) -> dict[str, Page]:
    """Return the HTTP pages for programs (/metrics, /live, /ready): map from path to function.

    `snapshot` returns all metrics of the node, `answering` the report of its answering process. `computing` limits the number of
    expensive pages that are computed at the same time.
    """
    logged: set[str] = set()
    """Names of metrics without a row in metrics.FAMILIES that were logged."""

    async def show_metrics(_: HttpRequest) -> HttpResponse:
        async with computing:
            numbers = await snapshot()
            # With many peers this takes milliseconds, so a thread does it.
            text = await asyncio.to_thread(metrics.exposition, numbers)
        for name in metrics.unknown(numbers):
            if name not in logged:
                logged.add(name)
                report(
                    "metric_unknown",
                    level="error",
                    reason=name,
                    detail="not in the table of metrics; the page omits it",
                )
        return HttpResponse(200, metrics.CONTENT_TYPE, text)

    async def show_readiness(_: HttpRequest) -> HttpResponse:
        word, reasons = status.readiness(await answering())
        code = 503 if word == NOT_READY else 200
        lines = "\n".join([word, *reasons, ""])
        return HttpResponse(code, TEXT, lines.encode())

    return {"/metrics": show_metrics, "/live": lambda _: HttpResponse(200, TEXT, b"live\n"), "/ready": show_readiness}
