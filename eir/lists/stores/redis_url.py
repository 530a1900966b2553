"""Parser of the URL of a Redis store: servers and connection options.

    redis://[USER@]HOST[:PORT][/DB]                       one server
    redis+sentinel://[USER@]HOST[:PORT],…/SERVICE[/DB]    sentinels, and their name of the master
    redis+cluster://[USER@]HOST[:PORT],…                  some nodes of a cluster

`rediss` in place of `redis` means TLS. Options after a `?`: `password_file`, `password_env` (default EIR_REDIS_PASSWORD),
`sentinel_user`, `sentinel_password_file`, `sentinel_password_env`; with TLS also `ca_file`, `cert_file`, `key_file`. The URL itself
may contain a password, which is never printed. A password file is read for each connection, so the password may change while a
node runs.
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
"""Scheme → form of the store, and True if the connections use TLS."""
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
"""End of a message about a part of a URL.

The message does not quote the part, because the part may be the rest of a password with an unescaped sign.
"""

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 4.0
"""Seconds for an answer, longer than a read that waits for a change (`wait_s` of eir.lists.follow.pauses)."""
GUIDE_TIMEOUT_S = 1.5
"""Seconds for the answer of a sentinel or cluster node that only names the server of a key.

Even if two of these nodes hang, the answer arrives within eir.lists.record.clock.STORE_TIMEOUT_S.
"""
RETRIES = 2
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Parsed URL of a Redis store: form, hosts, database and connection options."""

    form: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    """Name of the master in Sentinel; empty in other forms."""
    database: int
    options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a server."""
    guide_options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a sentinel, or to a cluster node for the slot map.

    They allow no retry, because the client asks the next node instead.
    """

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.form} {hosts}"

    @property
    def first_server(self) -> str:
        """URL of the first host for `redis-cli -u`, without user and password."""
        host, port = self.hosts[0]
        scheme = "rediss" if "ssl" in self.options else "redis"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class PasswordFile(CredentialProvider):
    """User and password for Redis connections. The password file is read again for each connection."""

    def __init__(self, user: str | None, path: Path) -> None:
        self._user, self._path = user, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the password file and return the arguments of AUTH.

        Raises:
            AuthenticationError: if the file cannot be read. The message has the name of the file.
        """
        try:
            password = self._path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError as error:
            raise AuthenticationError(f"the password file {self._path} cannot be read: {error.strerror}") from None
        if self._user:
            return self._user, password
        return (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return the arguments of AUTH, without blocking the event loop on a slow disk."""
        return await asyncio.to_thread(self.get_credentials)


def parse_url(url: str, environment: Mapping[str, str] = os.environ, *, check: bool = True) -> RedisAddress:
    """Parse the URL of a Redis store. Errors contain no secrets.

    Args:
        url: the configured URL.
        environment: environment variables.
        check: True to verify that the files and variables in the URL exist; False to check only the syntax.

    Raises:
        StoreError: `url`.
    """
    parts = urlsplit(url)
    if parts.scheme not in FORMS:
        schemes = ", ".join(FORMS)
        raise StoreError("url", f"no store has the scheme {parts.scheme!r}; expected sqlite or one of {schemes}")
    form, has_tls = FORMS[parts.scheme]
    options = _parse_options(parts.query)
    if check:
        _check_references(options, environment)
    service, database = _parse_path(form, parts.path)
    login, _, host_texts = parts.netloc.rpartition("@")
    user, _, password = map(unquote, login.partition(":"))
    default_port = SENTINEL_PORT if form == SENTINEL else PORT
    hosts = tuple(_parse_host(text, default_port) for text in host_texts.split(","))
    common: dict[str, Any] = {"socket_keepalive": True, "protocol": 2}
    if has_tls:
        common |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        common |= {argument: options[option] for option, argument in TLS_FILES.items() if option in options}
    variable = options.get("password_env", PASSWORD_ENV)
    login_options = _login_options(user, options, "password", environment.get(variable) or password)
    guide_login = login_options
    if form == SENTINEL:
        variable = options.get("sentinel_password_env", "")
        guide_user = options.get("sentinel_user")
        guide_login = _login_options(guide_user, options, "sentinel_password", environment.get(variable))
    backoff = FullJitterBackoff(cap=BACKOFF_CAP_S, base=BACKOFF_BASE_S)
    timeouts = _timeouts(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S, Retry(backoff, RETRIES, (RedisConnectionError,)))
    guide_timeouts = _timeouts(GUIDE_TIMEOUT_S, GUIDE_TIMEOUT_S, Retry(NoBackoff(), 0))
    return RedisAddress(
        form, hosts, service, database,
        options={**common, **login_options, **timeouts}, guide_options={**common, **guide_login, **guide_timeouts},
    )  # fmt: skip


def _parse_options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query))
    if "@" in query:
        raise StoreError("url", f"expected options after the ? in the store's URL{ESCAPED}")
    unknown = options.keys() - OPTIONS
    if unknown:
        expected = ", ".join(sorted(OPTIONS))
        raise StoreError("url", f"unknown option {min(unknown)!r} of the store; expected one of {expected}")
    return options


def _parse_path(form: str, path: str) -> tuple[str, int]:
    """Parse the path of a store URL; return the master's name (empty without Sentinel) and the database number."""
    steps = [step for step in path.split("/") if step]
    service = ""
    if form == SENTINEL:
        if not steps:
            fault = "expected /SERVICE at the end of the URL of a store under Sentinel"
            raise StoreError("url", f"{fault}: the sentinels' name of the master")
        service = steps.pop(0)
    databases_max = 0 if form == CLUSTER else 1
    if len(steps) > databases_max or not all(step.isdecimal() for step in steps):
        raise StoreError("url", f"expected a database number after the host in the store's URL{ESCAPED}")
    return service, int(steps[0]) if steps else 0


def _timeouts(connect_s: float, answer_s: float, retry: Retry) -> dict[str, Any]:
    return {"socket_connect_timeout": connect_s, "socket_timeout": answer_s, "retry": retry}


def _check_references(options: Mapping[str, str], environment: Mapping[str, str]) -> None:
    for option, value in options.items():
        if option.endswith("_env") and value not in environment:
            raise StoreError("url", f"{option} of the store names the variable {value}, which is not set")
    for option, file in _files(options).items():
        try:
            with file.open("rb") as stream:
                first_byte = stream.read(1)
        except OSError as error:
            raise StoreError("url", f"{option} {file} of the store cannot be read: {error.strerror}") from None
        if not first_byte:
            raise StoreError("url", f"{option} {file} of the store is empty")


def _files(options: Mapping[str, str]) -> dict[str, Path]:
    return {option: Path(value) for option, value in options.items() if option.endswith("_file")}


def files_of(url: str) -> Mapping[str, Path]:
    """Return the files in the options of a store URL, by option, and check that each file can be opened.

    Raises:
        StoreError: `url`, for a file that cannot be read or is empty.
    """
    options = dict(parse_qsl(urlsplit(url).query))
    file_options = {option: value for option, value in options.items() if option.endswith("_file")}
    _check_references(file_options, {})
    return _files(file_options)


def _login_options(user: str | None, options: Mapping[str, str], prefix: str, password: str | None) -> dict[str, Any]:
    """Return the login arguments of a Redis connection: from the password file in the option PREFIX_file, or else from `password`."""
    path = options.get(f"{prefix}_file")
    if path is not None:
        return {"credential_provider": PasswordFile(user, Path(path))}
    return {"username": user or None, "password": password or None}


def resolve_files(url: str, folder: Path) -> str:
    """Return the URL with its relative file paths resolved in `folder`."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = [(name, str(folder / value) if name.endswith("_file") else value) for name, value in pairs]
    query = urlencode(options, safe="/")
    return urlunsplit(parts._replace(query=query))


def _parse_host(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port or default_port
    except ValueError:
        raise StoreError("url", f"the store's URL has a bad port{ESCAPED}") from None
    if not parts.hostname:
        raise StoreError("url", "the store's URL names no host")
    return parts.hostname, port
