"""Client of a publisher's server: fetches files within limits, continues interrupted downloads, uploads documents.

Redirects are followed only on the same server.
"""

import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from eir import curl
from eir.curl import Response, Trust, Unreached
from eir.lists.record.settings import SourceSettings

REDIRECTS_MAX = 3
NOT_MODIFIED, PARTIAL = 304, 206
RANGE_FAULTS = frozenset({"status_400", "status_416"})
"""Reasons for which the stored part is emptied: the file is shorter than the part, or the server rejects the range. The next download starts at the first byte."""
TAG_CHARS_MAX = 200
_TAG = re.compile(r'(?:W/)?"[!#-~]*"')
"""Entity tag in ASCII (RFC 9110 8.8.3)."""


class FetchedFile(NamedTuple):
    """Content of a small file, and its entity tag."""

    octets: bytes
    etag: str | None
    """None if the server sent no valid tag."""


class SourceClient:
    """HTTP client for the server of a list's source."""

    def __init__(self, source: SourceSettings, until: float) -> None:
        """Create a client without connecting to the server. `until`: time limit for all requests (time.monotonic)."""
        self._base, self._until = source.url, until
        self._trust = Trust(ca=source.ca, certificate=source.certificate, key=source.key, token=source.token)
        self.bytes = 0
        """Number of received bytes."""

    async def fetch(self, name: str, most: int, etag: str | None = None) -> FetchedFile | None:
        """Fetch a file of at most `most` bytes; return None if its entity tag is still `etag`.

        Raises:
            Unreached: if the file cannot be fetched.
        """
        within_s = min(self._remaining_s(), curl.ANSWER_S)
        async with self._get(name, {"If-None-Match": etag} if etag else {}, within_s) as response:
            if response.status == NOT_MODIFIED and etag:
                return None
            self._check_status(name, response)
            octets = bytearray()
            async for piece in self._pieces(response):
                octets += piece
                if len(octets) > most:
                    raise Unreached("too_large", self._url(name), f"the file is larger than {most} bytes")
            tag = response.headers.get("etag", "")
            return FetchedFile(bytes(octets), tag if len(tag) <= TAG_CHARS_MAX and _TAG.fullmatch(tag) else None)

    async def download(self, name: str, part: Path, size: int) -> None:
        """Download a file of `size` bytes to the file `part`, and continue after the bytes that `part` already has.

        Raises:
            Unreached: if the download is incomplete. The received part stays.
        """
        stored = size_of(part)
        if stored == size and stored:
            return
        headers = {"Range": f"bytes={stored}-"} if stored else {}
        async with self._get(name, headers, self._remaining_s()) as response:
            try:
                self._check_status(name, response)
            except Unreached as error:
                if stored and error.reason in RANGE_FAULTS:
                    os.truncate(part, 0)
                raise
            is_rest = response.status == PARTIAL
            with part.open("ab") as file:
                if is_rest and not response.headers.get("content-range", "").startswith(f"bytes {stored}-"):
                    file.truncate(0)
                    raise Unreached("answer", self._url(name), "the server sent another part than the requested one")
                if not is_rest:
                    file.truncate(0)
                    stored = 0
                async for piece in self._pieces(response):
                    stored += len(piece)
                    if stored > size:
                        file.truncate(0)
                        fault = f"the file is larger than the {size} bytes of its manifest"
                        raise Unreached("too_large", self._url(name), fault)
                    file.write(piece)
        if stored < size:
            raise Unreached("cut_off", self._url(name), f"the file ended after {stored} of {size} bytes")

    async def upload(self, name: str, content: bytes) -> None:
        """Upload a document by POST. If the server, such as a file server, answers 405 or 501, upload the document by PUT.

        Raises:
            Unreached: if the document cannot be uploaded.
        """
        headers = {"Content-Type": "application/octet-stream"}
        for method in ("POST", "PUT"):
            async with curl.request(
                self._url(name), trust=self._trust, headers=headers, body=content, method=method, within_s=self._remaining_s()
            ) as response:  # fmt: skip
                if method == "POST" and response.status in {405, 501}:
                    continue
                self._check_status(name, response)
                return

    @asynccontextmanager
    async def _get(self, name: str, headers: Mapping[str, str], within_s: float) -> AsyncIterator[Response]:
        """Send a GET request, follow redirects on the same server, and yield the response.

        Raises:
            Unreached: `redirect`, for another server or too many redirects, and as `curl.request`.
        """
        url = self._url(name)
        until = time.monotonic() + within_s
        for _ in range(REDIRECTS_MAX + 1):
            async with curl.request(
                url, trust=self._trust, headers=headers, within_s=until - time.monotonic()
            ) as response:
                if not 300 <= response.status < 400 or response.status == NOT_MODIFIED:
                    yield response
                    return
            before, url = url, response.headers.get("location", "")
            try:
                url = urljoin(before, url)
                is_same = _origin(url) == _origin(self._base)
            except ValueError:
                raise Unreached("answer", before, "the server redirects to an invalid URL") from None
            if not is_same:
                break
        limit = f"redirects are followed only on the same server, at most {REDIRECTS_MAX} times"
        raise Unreached("redirect", before, f"the server redirects to {url.partition('?')[0]}; {limit}")

    async def _pieces(self, response: Response) -> AsyncIterator[bytes]:
        async for piece in response.body:
            self.bytes += len(piece)
            yield piece

    def _check_status(self, name: str, response: Response) -> None:
        if not 200 <= response.status < 300:
            raise Unreached(f"status_{response.status}", self._url(name), f"the server answered {response.status}")

    def _url(self, name: str) -> str:
        return urljoin(self._base, quote(name))

    def _remaining_s(self) -> float:
        """Return the seconds until the time limit.

        Raises:
            Unreached: `timeout`, if it has passed.
        """
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise Unreached("timeout", self._base, "the time for one pull is over")
        return left_s


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def size_of(path: Path) -> int:
    """Return the size of a file; 0 for a missing one."""
    return path.stat().st_size if path.exists() else 0
