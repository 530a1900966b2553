"""AMF: a lasting HTTP/2 connection with one request at a time, with or without an access token."""

import asyncio
import json
from typing import NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from simulated.patience import PATIENCE_S

RESOURCE = "/n5g-eir-eic/v1/equipment-status"


def at(node, scheme="http"):
    """Return the URL of the node's first listener of this kind."""
    return next(url for url in node.status()["listening"] if url.startswith(f"{scheme}:"))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    document: dict


class Amf:
    def __init__(self, reader, writer, authority):
        self._reader, self._writer, self._authority = reader, writer, authority
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()

    @classmethod
    async def to(cls, url):
        authority = url.partition("://")[2]
        host, _, port = authority.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)), authority)

    async def ask(self, imei, token=None, **headers):
        """The answer about a device."""
        stream = self._h2.get_next_available_stream_id()
        said = {
            ":method": "GET",
            ":scheme": "http",
            ":authority": self._authority,
            ":path": f"{RESOURCE}?pei=imei-{imei}",
            **headers,
        }
        if token is not None:
            said["authorization"] = f"Bearer {token}"
        self._h2.send_headers(stream, list(said.items()), end_stream=True)
        self._writer.write(self._h2.data_to_send())
        found, body = {}, b""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                data = await self._reader.read(65536)
                assert data, "the node closed the connection"
                for event in self._h2.receive_data(data):
                    if isinstance(event, ResponseReceived):
                        found = dict(event.headers)
                    elif isinstance(event, DataReceived):
                        body += event.data
                        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, StreamEnded):
                        return Answer(int(found[":status"]), found, json.loads(body))
                self._writer.write(self._h2.data_to_send())

    async def close(self):
        self._writer.close()
        await self._writer.wait_closed()
