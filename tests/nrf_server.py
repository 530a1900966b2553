"""An NRF that does what a test says: over HTTP/2, on a thread of its own, so that a test of a real process can wait beside it."""

import asyncio
import json
import threading
from collections import Counter

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.exceptions import ProtocolError
from simulated.patience import PATIENCE_S
from simulated.tcp_server import accepting

TIMER = 1


class Nrf:
    """`refuse`: a status that everything gets; `redirect`: a status, and the API root that everything is sent to; `silent`: nothing is
    answered; `timer`: the heartbeat timer that it gives.

    `profiles` is what it knows by instance, `asked` what it was asked, in order, as (method, path, document).
    """

    def __init__(self, port=0, ssl=None):
        self.profiles, self.asked, self.counts = {}, [], Counter()
        self.refuse, self.redirect, self.silent, self.timer = None, None, False, TIMER
        self._ssl, self._started = ssl, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(port)), daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE_S)

    @property
    def uri(self):
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}"

    def stop(self):
        """As if its process ended; what it knew is gone with it."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def forget(self):
        self.profiles.clear()

    async def _run(self, port):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with accepting(self._serve, port=port, tls=self._ssl) as (_, self.port):
            self._started.set()
            await self._stop.wait()

    async def _serve(self, reader, writer):
        h2, requests = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8")), {}
        h2.initiate_connection()
        try:
            writer.write(h2.data_to_send())
            while data := await reader.read(65536):
                for event in h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        requests[event.stream_id] = dict(event.headers), b""
                    elif isinstance(event, DataReceived):
                        headers, body = requests[event.stream_id]
                        requests[event.stream_id] = headers, body + event.data
                    elif isinstance(event, StreamEnded) and not self.silent:
                        status, more, document = self._answer(*requests.pop(event.stream_id))
                        body = b"" if document is None else json.dumps(document).encode()
                        h2.send_headers(event.stream_id, [(":status", str(status)), *more.items()], end_stream=not body)
                        if body:
                            h2.send_data(event.stream_id, body, end_stream=True)
                writer.write(h2.data_to_send())
        except (OSError, ProtocolError):
            pass
        finally:
            writer.close()

    def _answer(self, headers, body):
        method, path = headers[":method"], headers[":path"]
        document = json.loads(body) if body else None
        self.asked.append((method, path, document))
        self.counts[method] += 1
        if self.refuse is not None:
            return self.refuse, {"content-type": "application/problem+json"}, {"title": "No", "status": self.refuse}
        if self.redirect is not None:
            status, root = self.redirect
            return status, {"location": f"{root}{path}"}, None
        instance = path.removeprefix("/nnrf-nfm/v1/nf-instances/")
        known = instance in self.profiles
        if method == "PUT":
            self.profiles[instance] = document
            return (
                200 if known else 201,
                {"content-type": "application/json", "location": f"{self.uri}{path}"},
                {**document, "heartBeatTimer": self.timer},
            )
        if not known:
            return 404, {"content-type": "application/problem+json"}, {"title": "Not Found", "status": 404}
        if method == "DELETE":
            del self.profiles[instance]
            return 204, {}, None
        for change in document:
            self.profiles[instance][change["path"].strip("/")] = change["value"]
        return 200, {"content-type": "application/json"}, {**self.profiles[instance], "heartBeatTimer": self.timer}
