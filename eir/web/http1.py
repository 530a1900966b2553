"""/metrics, /live and /ready over HTTP/1.1, for Prometheus, probes and people. h11 does the protocol, asyncio the bytes.

Knows nothing of what it serves: pages are callables that it is handed, made in the event loop that also answers checks, so
that `/live` says what it should: this loop turns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import h11

from eir.errors import Report

REQUEST_MAX_BYTES = 16 * 1024
REQUEST_S = 30.0
"""A connection that brings no whole request in this time, in whatever small pieces, or does not take the answer in it, is closed."""
CONNECTIONS_MAX = 100
"""At once; for a further one the oldest is closed: who holds connections keeps no probe and no scrape out."""


class Response(NamedTuple):
    """What a page answers."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[], Response | Awaitable[Response]]


class HttpServer:
    """Serves the pages (path → callable) until `close`."""

    def __init__(self, pages: Mapping[str, Page], *, report: Report) -> None:
        self._pages = pages
        self._report = report
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        """One for each connection, the oldest first."""

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the listener; port 0 takes a free one. Returns the address bound. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=REQUEST_MAX_BYTES)
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
        task = asyncio.current_task()
        if task is None:
            writer.close()
            return
        there = [each for each in self._tasks if not each.cancelling()]
        if len(there) >= CONNECTIONS_MAX:
            there[0].cancel()
        self._tasks[task] = None
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.CancelledError):
            pass  # the client is gone, silent or talks something else: nobody to tell
        finally:
            del self._tasks[task]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX_BYTES)
        request: h11.Request | None = None
        loop = asyncio.get_running_loop()
        end = loop.time() + REQUEST_S
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout_at(end):
                    connection.receive_data(await reader.read(REQUEST_MAX_BYTES))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                writer.write(await self._answer(connection, request))
                async with asyncio.timeout(REQUEST_S):
                    await writer.drain()
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()
                end = loop.time() + REQUEST_S
            elif not isinstance(event, h11.Data):  # closed, or paused on something that is not HTTP/1.1
                return

    async def _answer(self, connection: h11.Connection, request: h11.Request) -> bytes:
        path = request.target.decode("ascii", "replace").partition("?")[0]
        page = self._pages.get(path)
        if request.method not in {b"GET", b"HEAD"}:
            response = Response(405, "text/plain; charset=utf-8", b"GET or HEAD only\n")
        elif page is None:
            known = " ".join(self._pages)
            response = Response(404, "text/plain; charset=utf-8", f"not here; there are: {known}\n".encode())
        else:
            response = await self._made(path, page)
        headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        out = connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if request.method != b"HEAD":
            out += connection.send(h11.Data(data=response.body)) or b""
        return out + (connection.send(h11.EndOfMessage()) or b"")

    async def _made(self, path: str, page: Page) -> Response:
        """What the page gives; one that fails says so to whoever asked and to the log, and takes no connection with it."""
        try:
            made = page()
            return made if isinstance(made, Response) else await made
        except Exception as e:  # noqa: BLE001 - whatever it is: a scrape that sees a closed connection learns nothing
            self._report("page_failed", level="error", reason=path, detail=f"{type(e).__name__}: {e}")
            return Response(500, "text/plain; charset=utf-8", b"this page failed; the log says why (page_failed)\n")
