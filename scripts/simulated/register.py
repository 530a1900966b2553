"""National register that feeds a node row by row: an HTTP/1.1 client with one request at a time on each connection."""

import asyncio
import base64
import contextlib
import ssl
from typing import NamedTuple

from .patience import PATIENCE_S

DATE = "2026-11-28-16-00-00"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def basic(user="register", password="correct horse battery"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def path(role, *named, date=DATE):
    return "/".join(["/eir", role, *named, date])


def device(imei, imsi="NULL", msisdn="NULL", actual="NULL", *, role="block", date=DATE):
    return path(role, imei, imsi, msisdn, actual, date=date)


def request(method, target, authorization=None, body=b"", **headers):
    said = {
        "Host": "eir",
        "Content-Length": str(len(body)),
        **({"Authorization": authorization} if authorization else {}),
    }
    said |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items()), "", ""]
    return "\r\n".join(lines).encode() + body


class Client:
    """One connection."""

    def __init__(self, reader, writer, authorization):
        self.reader, self.writer, self.authorization = reader, writer, authorization

    @classmethod
    async def to(cls, url, authorization=None, tls=None):
        scheme, _, at = url.partition("://")
        host, _, port = at.rpartition(":")
        tls = (tls or trusting()) if scheme == "https" else None
        return cls(
            *await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls),
            basic() if authorization is None else authorization,
        )

    async def ask(self, method, target, body=b"", **headers):
        return await self.send(
            request(method, target, headers.pop("Authorization", self.authorization), body, **headers)
        )

    async def send(self, octets):
        self.writer.write(octets)
        return await self.answer()

    async def answer(self):
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(status.split()[1]), headers, body)

    async def ended(self):
        """The bytes that still come before the other side closes."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


def trusting():
    """A client's context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
