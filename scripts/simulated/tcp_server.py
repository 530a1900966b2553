"""TCP servers that leave no connection open at their end."""

import asyncio
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def accepting(serve, host="127.0.0.1", port=0, *, tls=None):
    """A server as `asyncio.start_server` makes it from `serve`; gives its host and port.

    When the block ends, `serve` ends wherever it is, and each connection is closed, also one that comes in that moment.
    A `serve` that fails, but for a connection that was cut, fails the test.
    """
    writers, tasks, over = [], [], False

    def accept(reader, writer):
        writers.append(writer)
        if over:
            writer.transport.abort()
        elif (serving := serve(reader, writer)) is not None:
            tasks.append(asyncio.ensure_future(serving))

    server = await asyncio.start_server(accept, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        over = True
        server.close()
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        for writer in writers:
            with suppress(OSError):
                await writer.wait_closed()
    for fault in ended:
        if isinstance(fault, Exception) and not isinstance(fault, OSError | EOFError):
            raise fault
