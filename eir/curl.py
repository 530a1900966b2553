"""HTTP client: `curl` in a process of its own, as OpenSSH is for signatures.

URL, headers, secrets and body go to curl's standard input (`--config -`), so that no list of processes shows them. Head and body of
the response come from its standard output. So this program counts the bytes before they reach a file, and curl ends with its reader.
curl follows no redirect. It speaks HTTPS, or plain HTTP if the URL says so, but no other protocol. Proxies come from the environment
(`https_proxy`, `no_proxy`), but plain HTTP goes to the server directly.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from eir.errors import EirError, SetupFault

STALL_S = 20.0
"""Maximum seconds for a connection, and without a byte from the server."""
ANSWER_S = 60.0
"""Maximum seconds until the head of a response is complete, with each `100 Continue`."""
PIECE_BYTES = 1 << 18
HEAD_BYTES_MAX = 1 << 19
TOKEN_BYTES_MAX = 1 << 16
OLDEST = (7, 76)
"""Oldest version of curl that this program uses: that of RHEL 9."""
PACKAGE = "install a current package `curl`"
_VERSION = re.compile(rb"curl (\d+)\.(\d+)\.[^\n]*\n(?:[^\n]*\n)*?Protocols:[^\n]* https\b")
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
"""Escapes of a quoted value in a configuration of curl (curl(1), `--config`)."""
_REASONS = {
    **dict.fromkeys((1, 3, 8, 52, 61, 100), "answer"), **dict.fromkeys((2, 26, 27, 43, 58, 59, 66, 77), "setup"),
    **dict.fromkeys((35, 53, 54), "tls"), 18: "cut_off", 28: "timeout", 60: "certificate",
}  # fmt: skip
"""Reason word by exit status of curl (curl(1), EXIT CODES); any other status is `connection`."""


class Unreached(EirError):
    """Error for content that could not be fetched or uploaded. `reason` is a short word for metrics."""

    def __init__(self, reason: str, url: str, fault: str) -> None:
        super().__init__(f"{url}: {fault}")
        self.reason = reason
        self.fault = fault
        """Error without the URL, which may contain a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Files with which a server and this client prove who they are."""

    ca: Path | None = None
    """Certificate authorities (PEM); None for those of this host."""
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    """Bearer token."""


class Response(NamedTuple):
    """Response of a server whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """Value by name in lower case."""
    body: AsyncIterator[bytes]
    """Pieces of the body. The iteration raises Unreached if the body is not complete."""


def check_version() -> None:
    """Check that curl is installed, not too old, and able to speak HTTPS.

    Raises:
        SetupFault: with the package to install.
    """
    try:
        command = ["curl", "-q", "--version"]
        output = subprocess.run(command, capture_output=True, check=False).stdout
    except OSError as error:
        raise SetupFault(f"curl, which fetches releases and posts events, cannot be run: {error}; {PACKAGE}") from None
    found = _VERSION.match(output)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        line = output.partition(b"\n")[0].decode(errors="replace")
        oldest = ".".join(map(str, OLDEST))
        raise SetupFault(f"curl must be {oldest} or later, with https; this is {line or 'another program'}; {PACKAGE}")


@asynccontextmanager
async def request(
    url: str, *, trust: Trust = Trust(), headers: Mapping[str, str] | None = None, body: bytes | None = None, method: str = "GET",
    within_s: float,
) -> AsyncIterator[Response]:  # fmt: skip
    """Send a request, and yield the response; a body that the caller leaves unread is discarded.

    Args:
        url: URL of the request.
        trust: files for TLS and authorization.
        headers: further headers.
        body: body of the request, in ASCII.
        method: HTTP method.
        within_s: maximum duration of the exchange in seconds.

    Raises:
        Unreached: if there is no complete response.
    """
    config = _configuration(url, trust=trust, headers=headers or {}, body=body, method=method, within_s=within_s)
    answer_s = min(within_s, ANSWER_S)
    try:
        process = await asyncio.create_subprocess_exec(
            "curl", "-q", "--config", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=_environment(), limit=HEAD_BYTES_MAX,
        )  # fmt: skip
    except OSError as error:
        raise Unreached("setup", url, f"curl cannot be run: {error}; {PACKAGE}") from None
    assert process.stdin is not None  # noqa: S101 - for mypy
    try:
        process.stdin.write(config.encode())
        process.stdin.close()
        try:
            async with asyncio.timeout(answer_s):
                status, fields = await _read_head(process, url)
        except TimeoutError:
            raise Unreached("timeout", url, f"no answer within {answer_s:.3g} s") from None
        yield Response(status, fields, _pieces(process, url))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # the rest of its output, so that its pipes are closed


def _configuration(
    url: str, *, trust: Trust, headers: Mapping[str, str], body: bytes | None, method: str, within_s: float
) -> str:
    """Return the configuration of curl for a request; raise Unreached if the token cannot be used."""
    scheme = "http" if urlsplit(url).scheme == "http" else "https"
    values = {
        "url": url, "request": method, "user-agent": "eir", "proto": f"={scheme}", "proto-redir": f"={scheme}",
        "max-time": f"{max(within_s, 0.001):.3f}", "connect-timeout": f"{STALL_S:g}", "speed-limit": "1",
        "speed-time": f"{max(STALL_S, 1):.0f}",
    }  # fmt: skip
    if scheme == "http":
        values["noproxy"] = "*"
    if trust.ca is not None:
        values |= {
            "cacert": str(trust.ca),
            "capath": "/dev/null",
        }  # curl would also trust the host's folder of authorities
    if trust.certificate is not None:
        values |= {"cert": str(trust.certificate), "key": str(trust.key)}
    if body is not None:
        values["data-raw"] = body.decode("ascii")
    sent = {"Accept-Encoding": "identity", "Expect": "", **headers}
    if trust.token is not None:
        sent["Authorization"] = f"Bearer {_read_token(trust.token, url)}"
    lines = [
        f"{name}\n" for name in ("silent", "show-error", "include", "suppress-connect-headers", "globoff", "http1.1")
    ]
    lines += [f'{name} = "{value.translate(_ESCAPED)}"\n' for name, value in values.items()]
    lines += [f'header = "{f"{name}: {value}".translate(_ESCAPED)}"\n' for name, value in sent.items()]
    return "".join(lines)


def _read_token(path: Path, url: str) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise Unreached("setup", url, f"the token {path} cannot be read: {error}") from None
    if not token.isprintable():
        raise Unreached("setup", url, f"the token {path} has several lines or control characters")
    return token


def _environment() -> dict[str, str]:
    """Return the environment of curl: search path, proxies and certificate authorities of this process."""
    names = {"PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    passed = {name: value for name, value in os.environ.items() if name in names or name.lower().endswith("_proxy")}
    return {"PATH": os.defpath, "LC_ALL": "C", **passed}


async def _read_head(process: asyncio.subprocess.Process, url: str) -> tuple[int, dict[str, str]]:
    """Read the heads of interim responses, then status and headers of the response."""
    assert process.stdout is not None  # noqa: S101 - for mypy
    status = 0
    while status < 200:
        fields: dict[str, str] = {}
        try:
            words = (await process.stdout.readline()).split()
            while (line := await process.stdout.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                fields[name.lower()] = value.strip()
        except ValueError:
            raise Unreached("answer", url, "the head of the answer is too long") from None
        is_cut_off = not line  # curl has ended before the empty line that ends a head
        if is_cut_off or len(words) < 2 or not words[1].isdigit():
            raise await _fault(process, url) or Unreached("answer", url, "the server sent no answer")
        status = int(words[1])
    return status, fields


async def _pieces(process: asyncio.subprocess.Process, url: str) -> AsyncIterator[bytes]:
    """Yield the pieces of the body.

    Raises:
        Unreached: if the body is not complete.
    """
    assert process.stdout is not None  # noqa: S101 - for mypy
    while piece := await process.stdout.read(PIECE_BYTES):
        yield piece
    fault = await _fault(process, url)
    if fault is not None:
        raise fault


async def _fault(process: asyncio.subprocess.Process, url: str) -> Unreached | None:
    """Wait for the end of curl, and return its error, if it has failed."""
    assert process.stderr is not None  # noqa: S101 - for mypy
    message = (await process.stderr.read()).decode(errors="replace").strip()
    status = await process.wait()
    if not status:
        return None
    return Unreached(_REASONS.get(status, "connection"), url, message.partition(") ")[2] or message)
