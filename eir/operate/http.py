"""The HTTP server of the front, and its pages for programs: /metrics for Prometheus, /live and /ready for probes.

A client gets neither the loop nor the memory of the front for itself: requests, time and connections are bounded, and between
two requests of one connection others have their turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from eir.errors import Report
from eir.operate import metrics
from eir.operate.status import NOT_READY, Status, WorkerReport
from eir.web.http1 import REQUEST_BYTES_MAX, Conversation, Request, Response

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How much a client may take of the server."""

    request_s: float = 30.0
    """A connection that brings no whole request in this time, in whatever small pieces, or does not take the answer in it, is closed."""
    connection_s: float = 3600.0
    """How long a connection may last, however busy it is."""
    requests_max: int = 1000
    """Of one connection; the answer to the last one says that it closes."""
    connections_max: int = 100
    """At once; for a further one the oldest is closed: a client that holds connections keeps no probe and no scrape out."""
    body_bytes_max: int = 64 << 20
    """Of an answer."""


DEFAULT = HttpLimits()

Page = Callable[[Request], Response | Awaitable[Response]]


class HttpServer:
    """Serves the pages (path → callable) until `close`."""

    def __init__(self, pages: Mapping[str, Page], *, report: Report, limits: HttpLimits = DEFAULT) -> None:
        self._pages = pages
        self._limits = limits
        self._report = report
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        """One for each connection, the oldest first."""

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the listener; port 0 takes a free one. Returns the address bound. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=REQUEST_BYTES_MAX)
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Close the listener and what is connected."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        there = [each for each in self._tasks if not each.cancelling()]
        if len(there) >= self._limits.connections_max:
            there[0].cancel()
        self._tasks[task] = None
        try:
            async with asyncio.timeout(self._limits.connection_s):
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or silent: nobody to tell
        finally:
            del self._tasks[task]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(self._limits.requests_max)
        while not conversation.over:
            async with asyncio.timeout(self._limits.request_s):
                while (request := conversation.next_request()) is None and not conversation.over:
                    conversation.receive(await reader.read(REQUEST_BYTES_MAX))
            if request is not None:
                name = writer.get_extra_info("peername")
                writer.write(conversation.answer(await self._answer(request._replace(address=name[0] if name else ""))))
                async with asyncio.timeout(self._limits.request_s):
                    await writer.drain()
                await asyncio.sleep(0)

    async def _answer(self, request: Request) -> Response:
        page = self._pages.get(request.path)
        if request.method not in {"GET", "HEAD"}:
            return Response(405, TEXT, b"GET or HEAD only\n")
        if page is None:
            return Response(404, TEXT, f"not here; there are: {' '.join(self._pages)}\n".encode())
        try:
            made = page(request)
            response = made if isinstance(made, Response) else await made
        except Exception as e:  # noqa: BLE001 - whatever it is: a scrape that sees a closed connection learns nothing
            return self._failed(request.path, f"{type(e).__name__}: {e}")
        if len(response.body) > self._limits.body_bytes_max:
            return self._failed(request.path, f"it has {len(response.body)} bytes")
        return response

    def _failed(self, path: str, why: str) -> Response:
        self._report("page_failed", level="error", reason=path, detail=why)
        return Response(500, TEXT, b"this page failed; the log says why (page_failed)\n")


def pages(
    snapshot: Callable[[], Awaitable[metrics.Snapshot]], reports: Callable[[], Awaitable[Sequence[WorkerReport]]], status: Status, *, report: Report
) -> dict[str, Page]:
    """The pages by path. `snapshot` gives all numbers of the node, `reports` how its workers are."""
    strange: set[str] = set()
    """Metrics without a row in the table, of which the log has told."""

    async def show_metrics(_: Request) -> Response:
        numbers = await snapshot()
        for name in metrics.unknown(numbers):
            if name not in strange:
                strange.add(name)
                report("metric_unknown", level="error", reason=name, detail="not in the table of metrics; the page leaves it out")
        # Rendering takes milliseconds with many peers: beside the loop, not in it.
        return Response(200, metrics.CONTENT_TYPE, await asyncio.to_thread(metrics.exposition, numbers))

    async def show_readiness(_: Request) -> Response:
        word, why = status.readiness(await reports())
        return Response(503 if word == NOT_READY else 200, TEXT, "\n".join([word, *why, ""]).encode())

    return {"/metrics": show_metrics, "/live": lambda _: Response(200, TEXT, b"live\n"), "/ready": show_readiness}
