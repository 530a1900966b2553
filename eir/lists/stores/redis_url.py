"""Parser of a `store:` URL for Redis: servers and connection options.

    redis://[USER@]HOST[:PORT][/DB]                       rediss:// with TLS, for the other forms too
    redis+sentinel://[USER@]HOST[:PORT],…/SERVICE[/DB]    the sentinels, and the name of the master
    redis+cluster://[USER@]HOST[:PORT],…                  some of the nodes

and after a `?`: `password_file`, `password_env` (EIR_REDIS_PASSWORD unless given), `sentinel_user`,
`sentinel_password_file`, `sentinel_password_env`; with TLS `ca_file`, `cert_file`, `key_file`. A password in the URL itself
is accepted too, and never printed. A password file is read for each connection, so a password may change while a node runs.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio.retry import Retry
from redis.backoff import FullJitterBackoff, NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from eir.errors import StoreError

SINGLE, SENTINEL, CLUSTER = "single", "sentinel", "cluster"
FORMS = {
    "redis": (SINGLE, False), "rediss": (SINGLE, True),
    "redis+sentinel": (SENTINEL, False), "rediss+sentinel": (SENTINEL, True),
    "redis+cluster": (CLUSTER, False), "rediss+cluster": (CLUSTER, True),
}  # fmt: skip
"""Scheme → form, and whether it uses TLS."""
PORT, SENTINEL_PORT = 6379, 26379
PASSWORD_ENV = "EIR_REDIS_PASSWORD"  # noqa: S105  # the name of a variable
TLS_FILES = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}
OPTIONS = {
    "password_file",
    "password_env",
    "sentinel_user",
    "sentinel_password_file",
    "sentinel_password_env",
    *TLS_FILES,
}

ESCAPED = " (in a password / is written %2F, ? %3F, and # %23)"
"""End of a message about a part of a URL. The part is not quoted: after an unescaped sign it may be the rest of a password."""

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 4.0
"""Seconds for an answer: longer than any read that waits for a change (`wait_s` of eir.lists.follow.copy)."""
GUIDE_TIMEOUT_S = 1.5
"""Seconds for a sentinel or cluster node that only names the server. The time of one answer (eir.lists.record.clock.STORE_TIMEOUT_S) must suffice even if two of them hang."""
RETRIES = 2
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Parsed URL of a Redis store: form, hosts, database and connection options."""

    form: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    """Sentinel's name for the master."""
    database: int
    options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a server."""
    guide_options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a sentinel, or to a cluster node that is asked for the slot map. Without retries: the next node is asked instead."""

    def __str__(self) -> str:
        return f"{self.form} " + ",".join(f"{host}:{port}" for host, port in self.hosts)


class PasswordFile(CredentialProvider):
    """User and password of a connection. The password file is read each time that a connection opens."""

    def __init__(self, user: str | None, path: Path) -> None:
        self._user, self._path = user, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the password file and return the arguments of AUTH.

        Raises:
            AuthenticationError: with the name of the file, if it cannot be read.
        """
        try:
            password = self._path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError as error:
            raise AuthenticationError(f"the password file {self._path} cannot be read: {error.strerror}") from None
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return the arguments of AUTH, without blocking the event loop on a slow disk."""
        return await asyncio.to_thread(self.get_credentials)


def parse_url(url: str, environment: Mapping[str, str] = os.environ, *, check: bool = True) -> RedisAddress:
    """Parse the URL of a Redis store. Errors contain no secrets.

    Args:
        url: the configured URL.
        environment: environment variables.
        check: verify that the files and variables in the URL exist; if False, only the syntax is checked.

    Raises:
        StoreError: `url`.
    """
    parts = urlsplit(url)
    if parts.scheme not in FORMS:
        raise StoreError(
            "url", f"no store has the scheme {parts.scheme!r}; expected sqlite or one of {', '.join(FORMS)}"
        )
    form, tls = FORMS[parts.scheme]
    options = dict(parse_qsl(parts.query))
    if "@" in parts.query:
        raise StoreError("url", f"expected options after the ? in the store's URL{ESCAPED}")
    if unknown := options.keys() - OPTIONS:
        raise StoreError(
            "url", f"unknown option {min(unknown)!r} of the store; expected one of {', '.join(sorted(OPTIONS))}"
        )
    if check:
        _check_references(options, environment)
    path = [step for step in parts.path.split("/") if step]
    service = ""
    if form == SENTINEL:
        if not path:
            raise StoreError(
                "url",
                "expected /SERVICE at the end of the URL of a store under Sentinel: the sentinels' name of the master",
            )
        service = path.pop(0)
    if len(path) > (form != CLUSTER) or not all(step.isdecimal() for step in path):
        raise StoreError("url", f"expected a database number after the host in the store's URL{ESCAPED}")
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, secret = map(unquote, login.partition(":"))
    common: dict[str, Any] = {"socket_keepalive": True, "protocol": 2}
    if tls:
        common |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        common |= {argument: options[option] for option, argument in TLS_FILES.items() if option in options}
    retry = Retry(FullJitterBackoff(cap=BACKOFF_CAP_S, base=BACKOFF_BASE_S), RETRIES, (RedisConnectionError,))
    login_options = guide = _login(
        user, options, "password", environment.get(options.get("password_env", PASSWORD_ENV)) or secret
    )
    if form == SENTINEL:
        variable = options.get("sentinel_password_env", "")
        guide = _login(options.get("sentinel_user"), options, "sentinel_password", environment.get(variable))
    port = SENTINEL_PORT if form == SENTINEL else PORT
    return RedisAddress(
        form, tuple(_host(text, port) for text in hosts.split(",")), service, database=int(path[0]) if path else 0,
        options={**common, **login_options, **_timeouts(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S, retry)},
        guide_options={**common, **guide, **_timeouts(GUIDE_TIMEOUT_S, GUIDE_TIMEOUT_S, Retry(NoBackoff(), 0))},
    )  # fmt: skip


def _timeouts(connect_s: float, answer_s: float, retry: Retry) -> dict[str, Any]:
    return {"socket_connect_timeout": connect_s, "socket_timeout": answer_s, "retry": retry}


def _check_references(options: Mapping[str, str], environment: Mapping[str, str]) -> None:
    for option, value in options.items():
        if option.endswith("_env") and value not in environment:
            raise StoreError("url", f"{option} of the store names the variable {value}, which is not set")
    for option, file in _files(options).items():
        try:
            with file.open("rb") as stream:
                empty = not stream.read(1)
        except OSError as error:
            raise StoreError("url", f"{option} {file} of the store cannot be read: {error.strerror}") from None
        if empty:
            raise StoreError("url", f"{option} {file} of the store is empty")


def _files(options: Mapping[str, str]) -> dict[str, Path]:
    return {option: Path(value) for option, value in options.items() if option.endswith("_file")}


def files_of(url: str) -> Mapping[str, Path]:
    """Return the files that a URL names by option, after a check that each can be opened.

    Raises:
        StoreError: `url`, for a file that cannot be read or is empty.
    """
    options = dict(parse_qsl(urlsplit(url).query))
    _check_references({option: value for option, value in options.items() if option.endswith("_file")}, {})
    return _files(options)


def _login(user: str | None, options: Mapping[str, str], option: str, otherwise: str | None) -> dict[str, Any]:
    """Return the connection arguments for a login; `otherwise` is the password if no password file is named."""
    path = options.get(f"{option}_file")
    if path is not None:
        return {"credential_provider": PasswordFile(user, Path(path))}
    return {"username": user or None, "password": otherwise or None}


def resolve_files(url: str, folder: Path) -> str:
    """Return the URL with its relative file paths resolved in `folder`."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = [(name, str(folder / value) if name.endswith("_file") else value) for name, value in pairs]
    return urlunsplit(parts._replace(query=urlencode(options, safe="/")))


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port_number = parts.port or port
    except ValueError:
        raise StoreError("url", f"the store's URL has a bad port{ESCAPED}") from None
    if not parts.hostname:
        raise StoreError("url", "the store's URL names no host")
    return parts.hostname, port_number
