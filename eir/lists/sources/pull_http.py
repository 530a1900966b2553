"""HTTP client for pulls and acknowledgements, with limits on size and time. It continues interrupted downloads.

The client uses plain HTTP only with addresses of this host, and follows redirects only on the same server. It uses the proxies of
the environment (`https_proxy`, `no_proxy`). All calls block, so they run in a thread of a process that answers no checks.
"""

import http.client
import io
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from eir.errors import EirError
from eir.lists.record.settings import Source

STALL_S = 20.0
"""Maximum number of seconds without a byte from the server."""
ANSWER_S = 60.0
"""Maximum number of seconds for a whole small file, or for the headers of a large file. Redirects and each `100 Continue` are included."""
PIECE_BYTES = 1 << 18
REDIRECTS_MAX = 3
TOKEN_BYTES_MAX = 1 << 16
NOT_MODIFIED, PARTIAL = 304, 206
RANGE_FAULTS = frozenset({"status_400", "status_416"})
"""Reasons for which the stored part is deleted: the file is shorter than the part, or the server rejects the range. The next download starts at the first byte."""
_TAG = re.compile(r'(?:W/)?"[!#-~]{0,200}"')
"""Entity tag (RFC 9110 8.8.3) in ASCII, short enough for the header limits of all servers."""


class Unreached(EirError):
    """Error for content that could not be fetched or uploaded. `reason` is a short word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FetchedFile(NamedTuple):
    """Content of a small file, and its entity tag."""

    octets: bytes
    etag: str | None
    """None if the server sent no valid tag."""


class SourceClient:
    """HTTP client for the server of a list's source.

    `until`: time limit for all requests (time.monotonic).
    """

    def __init__(self, source: Source, until: float) -> None:
        """Create a client for a source, without connecting to the server.

        Raises:
            Unreached: `setup`, if the source's files cannot be used.
        """
        self._base, self._until = source.url, until
        self._answer_by = until
        """Time limit of the present answer (time.monotonic): of a small file, or of the headers of a large file."""
        self._redirects = _Redirects(source.url)
        self._headers = {"User-Agent": "eir", "Accept-Encoding": "identity"}
        self.bytes = 0
        """Number of received bytes."""
        try:
            context = ssl.create_default_context(cafile=source.ca)
            if source.certificate is not None:
                context.load_cert_chain(source.certificate, source.key)
            if source.token is not None:
                with source.token.open("rb") as file:
                    self._headers["Authorization"] = f"Bearer {file.read(TOKEN_BYTES_MAX).decode('ascii').strip()}"
        except (OSError, ValueError) as e:
            raise Unreached("setup", f"{source.url}: its ca, certificate, key or token cannot be used: {e}") from None
        local = urlsplit(source.url).scheme == "http"
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler({}) if local else urllib.request.ProxyHandler(), self._redirects, urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(), _Handler(context, self._remaining_s),
        ):  # fmt: skip
            opener.add_handler(handler)
        self._opener = opener

    def fetch(self, name: str, most: int, etag: str | None = None) -> FetchedFile | None:
        """Fetch a file of at most `most` bytes; return None if its entity tag is still `etag`.

        Raises:
            Unreached: if the file cannot be fetched.
        """
        headers = {"If-None-Match": etag} if etag else {}
        with self._request(name, headers) as answer:
            if answer is None:
                return None
            octets = bytearray()
            for piece in self._pieces(answer, name):
                octets += piece
                if len(octets) > most:
                    raise Unreached("too_large", f"{self._at(name)} is larger than {most} bytes")
            tag = answer.headers.get("ETag", "")
            return FetchedFile(bytes(octets), tag if _TAG.fullmatch(tag) else None)

    def download(self, name: str, part: Path, size: int) -> None:
        """Download a file of `size` bytes to the file `part`, and continue after the bytes that `part` already has.

        Raises:
            Unreached: if the download is incomplete. The received part stays.
        """
        stored_bytes = part.stat().st_size if part.exists() else 0
        if stored_bytes == size and stored_bytes:
            return
        try:
            self._download_rest(name, part, stored_bytes, size)
        except Unreached as e:
            if stored_bytes and e.reason in RANGE_FAULTS:
                part.unlink()
            raise

    def _download_rest(self, name: str, part: Path, stored_bytes: int, size: int) -> None:
        with (
            self._request(name, {"Range": f"bytes={stored_bytes}-"} if stored_bytes else {}) as answer,
            part.open("ab") as file,
        ):
            self._answer_by = self._until
            if answer is None or (
                answer.status == PARTIAL
                and not answer.headers.get("Content-Range", "").startswith(f"bytes {stored_bytes}-")
            ):
                file.truncate(0)
                raise Unreached(
                    "answer", f"{self._at(name)}: the server answered with another part than it was asked for"
                )
            if answer.status != PARTIAL:
                file.truncate(0)
                stored_bytes = 0
            for piece in self._pieces(answer, name):
                stored_bytes += len(piece)
                if stored_bytes > size:
                    file.truncate(0)
                    raise Unreached(
                        "too_large", f"{self._at(name)} is larger than the {size} bytes that its manifest says"
                    )
                file.write(piece)
        if stored_bytes < size:
            raise Unreached("cut_off", f"{self._at(name)} ended after {stored_bytes} of {size} bytes")

    def upload(self, name: str, content: bytes) -> None:
        """Upload a document by POST. If the server, such as a file server, answers 405 or 501, upload the document by PUT.

        Raises:
            Unreached: if the document cannot be uploaded.
        """
        for method in ("POST", "PUT"):
            try:
                with self._request(name, {"Content-Type": "application/octet-stream"}, content, method):
                    return
            except Unreached as e:
                if method == "PUT" or e.reason not in {"status_405", "status_501"}:
                    raise

    def _at(self, name: str) -> str:
        return urljoin(self._base, quote(name))

    @contextmanager
    def _request(
        self, name: str, headers: Mapping[str, str], data: bytes | None = None, method: str = "GET"
    ) -> Iterator[Any]:
        """Send a request and yield the open HTTP response; yield None if the file is unchanged (status 304)."""
        at = self._at(name)
        request = urllib.request.Request(at, data=data, headers={**self._headers, **headers}, method=method)  # noqa: S310 - of a url that is https, or of this host
        self._redirects.restart()
        self._answer_by = min(self._until, time.monotonic() + ANSWER_S)
        try:
            try:
                answer = self._opener.open(request, timeout=self._remaining_s())
            except urllib.error.HTTPError as e:
                e.close()
                if e.code == NOT_MODIFIED and "If-None-Match" in headers:
                    answer = None
                else:
                    raise Unreached(f"status_{e.code}", f"{at}: the server answered {e.code}") from None
            if answer is None:
                yield None
                return
            with answer:
                yield answer
        except urllib.error.URLError as e:
            raise _unreached_error(at, e.reason) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _unreached_error(at, e) from None

    def _pieces(self, answer: Any, name: str) -> Iterator[bytes]:
        at = self._at(name)
        while True:
            try:
                piece: bytes = answer.read1(PIECE_BYTES)
            except (OSError, http.client.HTTPException) as e:
                raise _unreached_error(at, e) from None
            if not piece:
                break
            self.bytes += len(piece)
            yield piece
        if answer.length:
            raise Unreached("cut_off", f"{at} ended {answer.length} bytes before its end")

    def _remaining_s(self) -> float:
        """Return the maximum number of seconds to wait for the next bytes of the response.

        Raises:
            Unreached: `timeout`, if the time limit of the answer has passed.
        """
        left_s = self._answer_by - time.monotonic()
        if left_s > 0:
            return min(left_s, STALL_S)
        if self._answer_by == self._until:
            raise Unreached("timeout", f"{self._base}: the time for one pull is over")
        raise Unreached("timeout", f"{self._base}: an answer took longer than {ANSWER_S:g} s")


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Handler of urllib that opens connections with a time limit for each piece of a response.

    `left`: function that returns the remaining seconds.
    """

    def __init__(self, context: ssl.SSLContext, left: Callable[[], float]) -> None:
        urllib.request.HTTPSHandler.__init__(self, context=context)
        self._tls = context
        self._remaining_s = left

    def http_open(self, req: urllib.request.Request) -> Any:
        """Send a request over plain TCP."""
        return self.do_open(partial(self._connection, http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        """Send a request over TLS."""
        connect = partial(self._connection, http.client.HTTPSConnection, context=self._tls)
        return self.do_open(connect, req)

    def _connection(self, kind: type[http.client.HTTPConnection], host: str, **how: Any) -> http.client.HTTPConnection:
        connection = kind(host, **how)
        connection.response_class = partial(_Response, left=self._remaining_s)  # type: ignore[assignment]  # for a proxy's answer too
        return connection


class _Response(http.client.HTTPResponse):
    """HTTP response in which each read has the time limit `left()` in seconds."""

    def __init__(self, sock: socket.socket, *how: Any, left: Callable[[], float], **more: Any) -> None:
        super().__init__(sock, *how, **more)
        self.fp = io.BufferedReader(_Pieces(sock, self.fp.detach(), left))


class _Pieces(io.RawIOBase):
    """Stream of bytes from a socket, with a new time limit for each read."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, left: Callable[[], float]) -> None:
        self._sock = sock
        self._raw = raw
        self._remaining_s = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._remaining_s())
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._remaining_s()
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Handler that follows redirects only on the same server."""

    def __init__(self, base: str) -> None:
        self._origin = _origin(base)
        self.followed = 0

    def restart(self) -> None:
        """Reset the number of followed redirects for a new request."""
        self.followed = 0

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: PLR0917 - urllib's own
        """Return the request that follows a redirect.

        Raises:
            Unreached: `redirect`, for another server or too many redirects.
        """
        self.followed += 1
        if _origin(newurl) != self._origin or self.followed > REDIRECTS_MAX or req.get_method() != "GET":
            raise Unreached(
                "redirect",
                f"{req.full_url}: the server sends us to {newurl.partition('?')[0]}, and only its own places are followed, {REDIRECTS_MAX} times at most",
            )
        fp.close()  # otherwise urllib reads the body, which may be endless
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _unreached_error(at: str, fault: Any) -> Unreached:
    if isinstance(fault, Unreached):
        return fault
    if isinstance(fault, ssl.SSLCertVerificationError):
        return Unreached("certificate", f"{at}: the server's certificate is not good: {fault.verify_message}")
    if isinstance(fault, TimeoutError):
        return Unreached("timeout", f"{at}: nothing came for {STALL_S:g} s")
    if isinstance(fault, ssl.SSLError):
        return Unreached("tls", f"{at}: {fault.reason or fault}")
    if isinstance(fault, http.client.HTTPException | ValueError):  # an invalid header
        return Unreached("answer", f"{at}: what the server sends is no answer: {type(fault).__name__}")
    return Unreached(
        "connection",
        f"{at}: {os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno and fault.errno > 0 else fault}",
    )
