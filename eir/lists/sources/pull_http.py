"""Requests of a pull to a web server, bounded in size and time: an index if it changed, a file, or the rest of a file.

Over https only, but for this host's own addresses; a redirect is followed on the same server and nowhere else. The proxies of the environment
(`https_proxy`, `no_proxy`) are used as others use them. All of it blocks, and belongs in a thread of a process that answers nobody.
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
"""Seconds that a server may send nothing."""
ANSWER_S = 60.0
"""Seconds for a whole small file, or until the headers of a large file end; redirects and each `100 Continue` included."""
PIECE_BYTES = 1 << 18
REDIRECTS_MAX = 3
TOKEN_BYTES_MAX = 1 << 16
NOT_MODIFIED, PARTIAL = 304, 206
RANGE_FAULTS = frozenset({"status_400", "status_416"})
"""Reasons for which a download begins again: the file is shorter than the part that came, or the server takes no such request."""
_TAG = re.compile(r'(?:W/)?"[!#-~]{0,200}"')
"""An entity tag (RFC 9110 8.8.3) in ASCII that fits into any server's limit on headers."""


class Unreached(EirError):
    """The requested content did not come; `reason` is a short word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Content(NamedTuple):
    """The content of a small file, and the tag by which it is known again."""

    octets: bytes
    etag: str | None
    """None if the server sent no valid tag."""


class Server:
    """A source that can be asked. `until`: the time by which all has to be done (time.monotonic)."""

    def __init__(self, source: Source, until: float) -> None:
        """Raises Unreached (`setup`) if its files cannot be used."""
        self._base, self._until = source.url, until
        self._answer_by = until
        """Time by which the present answer has to come: the small file, or the headers of a large file."""
        self._redirects = _Redirects(source.url)
        self._headers = {"User-Agent": "eir", "Accept-Encoding": "identity"}
        self.bytes = 0
        """Bytes that came."""
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
            urllib.request.HTTPDefaultErrorHandler(), _Handler(context, self._left),
        ):  # fmt: skip
            opener.add_handler(handler)
        self._opener = opener

    def small(self, name: str, most: int, etag: str | None = None) -> Content | None:
        """The content of a file; None if it is still the one with this tag. Raises Unreached."""
        with self._asked(name, {"If-None-Match": etag} if etag else {}) as answer:
            if answer is None:
                return None
            octets = bytearray()
            for piece in self._pieces(answer, name):
                octets += piece
                if len(octets) > most:
                    raise Unreached("too_large", f"{self._at(name)} is larger than {most} bytes")
            tag = answer.headers.get("ETag", "")
            return Content(bytes(octets), tag if _TAG.fullmatch(tag) else None)

    def into(self, name: str, part: Path, size: int) -> None:
        """Bring a file of `size` bytes up to its end, from where an earlier try was cut off. Raises Unreached; what came stays."""
        there = part.stat().st_size if part.exists() else 0
        if there == size and there:
            return
        try:
            self._on(name, part, there, size)
        except Unreached as e:
            if there and e.reason in RANGE_FAULTS:
                part.unlink()
            raise

    def _on(self, name: str, part: Path, there: int, size: int) -> None:
        with self._asked(name, {"Range": f"bytes={there}-"} if there else {}) as answer, part.open("ab") as file:
            self._answer_by = self._until
            if answer is None or (
                answer.status == PARTIAL and not answer.headers.get("Content-Range", "").startswith(f"bytes {there}-")
            ):
                file.truncate(0)
                raise Unreached(
                    "answer", f"{self._at(name)}: the server answered with another part than it was asked for"
                )
            if answer.status != PARTIAL:
                file.truncate(0)
                there = 0
            for piece in self._pieces(answer, name):
                there += len(piece)
                if there > size:
                    file.truncate(0)
                    raise Unreached(
                        "too_large", f"{self._at(name)} is larger than the {size} bytes that its manifest says"
                    )
                file.write(piece)
        if there < size:
            raise Unreached("cut_off", f"{self._at(name)} ended after {there} of {size} bytes")

    def give(self, name: str, content: bytes) -> None:
        """Post a document; a server that knows no POST there, as one for files, is given it by PUT. Raises Unreached."""
        for method in ("POST", "PUT"):
            try:
                with self._asked(name, {"Content-Type": "application/octet-stream"}, content, method):
                    return
            except Unreached as e:
                if method == "PUT" or e.reason not in {"status_405", "status_501"}:
                    raise

    def _at(self, name: str) -> str:
        return urljoin(self._base, quote(name))

    @contextmanager
    def _asked(
        self, name: str, headers: Mapping[str, str], data: bytes | None = None, method: str = "GET"
    ) -> Iterator[Any]:
        """The answer, to be read; None for one without content since nothing has changed."""
        at = self._at(name)
        request = urllib.request.Request(at, data=data, headers={**self._headers, **headers}, method=method)  # noqa: S310 - of a url that is https, or of this host
        self._redirects.followed = 0
        self._answer_by = min(self._until, time.monotonic() + ANSWER_S)
        try:
            try:
                answer = self._opener.open(request, timeout=self._left())
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
            raise _unreached(at, e.reason) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _unreached(at, e) from None

    def _pieces(self, answer: Any, name: str) -> Iterator[bytes]:
        at = self._at(name)
        while True:
            try:
                piece: bytes = answer.read1(PIECE_BYTES)
            except (OSError, http.client.HTTPException) as e:
                raise _unreached(at, e) from None
            if not piece:
                break
            self.bytes += len(piece)
            yield piece
        if answer.length:
            raise Unreached("cut_off", f"{at} ended {answer.length} bytes before its end")

    def _left(self) -> float:
        """Return the seconds for which the next bytes may be awaited. Raises Unreached (`timeout`) once the answer is late."""
        left_s = self._answer_by - time.monotonic()
        if left_s > 0:
            return min(left_s, STALL_S)
        if self._answer_by == self._until:
            raise Unreached("timeout", f"{self._base}: the time for one pull is over")
        raise Unreached("timeout", f"{self._base}: an answer took longer than {ANSWER_S:g} s")


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that read each piece of an answer within `left()` seconds."""

    def __init__(self, context: ssl.SSLContext, left: Callable[[], float]) -> None:
        urllib.request.HTTPSHandler.__init__(self, context=context)
        self._tls, self._left = context, left

    def http_open(self, req: urllib.request.Request) -> Any:
        """Send a request over TCP."""
        return self.do_open(partial(self._connection, http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        """Send a request over TLS."""
        connect = partial(self._connection, http.client.HTTPSConnection, context=self._tls)
        return self.do_open(connect, req)

    def _connection(self, kind: type[http.client.HTTPConnection], host: str, **how: Any) -> http.client.HTTPConnection:
        connection = kind(host, **how)
        connection.response_class = partial(_Response, left=self._left)  # type: ignore[assignment]  # for a proxy's answer too
        return connection


class _Response(http.client.HTTPResponse):
    """Answer of which each piece is read within `left()` seconds."""

    def __init__(self, sock: socket.socket, *how: Any, left: Callable[[], float], **more: Any) -> None:
        super().__init__(sock, *how, **more)
        self.fp = io.BufferedReader(_Pieces(sock, self.fp.detach(), left))


class _Pieces(io.RawIOBase):
    """Bytes of a socket, each piece with a timeout of its own."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, left: Callable[[], float]) -> None:
        self._sock, self._raw, self._left = sock, raw, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._left())
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._left()
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect on the same server, and no other."""

    def __init__(self, base: str) -> None:
        self._origin = _origin(base)
        self.followed = 0

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: PLR0917 - urllib's own
        """The next request. Raises Unreached (`redirect`)."""
        self.followed += 1
        if _origin(newurl) != self._origin or self.followed > REDIRECTS_MAX or req.get_method() != "GET":
            raise Unreached(
                "redirect",
                f"{req.full_url}: the server sends us to {newurl.partition('?')[0]}, and only its own places are followed, {REDIRECTS_MAX} times at most",
            )
        fp.close()  # or urllib reads its body, which may be endless
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _unreached(at: str, fault: Any) -> Unreached:
    if isinstance(fault, Unreached):
        return fault
    if isinstance(fault, ssl.SSLCertVerificationError):
        return Unreached("certificate", f"{at}: the server's certificate is not good: {fault.verify_message}")
    if isinstance(fault, TimeoutError):
        return Unreached("timeout", f"{at}: nothing came for {STALL_S:g} s")
    if isinstance(fault, ssl.SSLError):
        return Unreached("tls", f"{at}: {fault.reason or fault}")
    if isinstance(fault, http.client.HTTPException | ValueError):  # of a header that urllib or email cannot read
        return Unreached("answer", f"{at}: what the server sends is no answer: {type(fault).__name__}")
    return Unreached(
        "connection",
        f"{at}: {os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno and fault.errno > 0 else fault}",
    )
