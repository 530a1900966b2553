"""Fastest HTTP/2 server with h2 on uvloop: `http2_bare.py PORT` answers each request with the same constant.

The server looks up, counts and limits nothing. One write sends all answers to one read.
"""

import asyncio
import sys

import uvloop
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

BODY = b'{"status":"WHITELISTED"}'
HEADERS = ((b":status", b"200"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY)))


class Bare(asyncio.Protocol):
    """Server of one connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the SETTINGS frame."""
        self._write = transport.write  # type: ignore[attr-defined]  # a stream's has it
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.initiate_connection()
        self._write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived) and event.stream_id is not None:
                self._h2.send_headers(event.stream_id, HEADERS)
                self._h2.send_data(event.stream_id, BODY, end_stream=True)
        self._write(self._h2.data_to_send())


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
