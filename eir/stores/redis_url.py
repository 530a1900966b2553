"""From a `store:` URL to connections to Redis: one server, a master that Sentinel names, or the nodes of a cluster.

    redis://[USER@]HOST[:PORT][/DB]                       rediss:// with TLS, for the other forms too
    redis+sentinel://[USER@]HOST[:PORT],…/SERVICE[/DB]    the sentinels, and the name of what they watch
    redis+cluster://[USER@]HOST[:PORT],…                  some of the nodes

and after a `?`: `password_file`, `password_env` (EIR_REDIS_PASSWORD unless given), `sentinel_user`,
`sentinel_password_file`, `sentinel_password_env`; with TLS `ca_file`, `cert_file`, `key_file`. A password in the URL itself
is taken too, and never shown. Imports only eir.errors; knows no list.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import FullJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import SlotNotCoveredError

from eir.errors import StoreError

SINGLE, SENTINEL, CLUSTER = "single", "sentinel", "cluster"
FORMS = {
    "redis": (SINGLE, False),
    "rediss": (SINGLE, True),
    "redis+sentinel": (SENTINEL, False),
    "rediss+sentinel": (SENTINEL, True),
    "redis+cluster": (CLUSTER, False),
    "rediss+cluster": (CLUSTER, True),
}
"""Scheme → form, and whether with TLS."""
PORT, SENTINEL_PORT = 6379, 26379
PASSWORD_ENV = "EIR_REDIS_PASSWORD"  # noqa: S105  # the name of a variable
OPTIONS = frozenset({
    "password_file", "password_env", "sentinel_user", "sentinel_password_file", "sentinel_password_env",
    "ca_file", "cert_file", "key_file",
})  # fmt: skip

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 4.0
"""Longer than any read that waits for a change (eir.follow.follower.WAIT_S)."""
GUIDE_TIMEOUT_S = 1.5
"""For what only says where to go, a sentinel or any node of a cluster: there are others to ask, and the time of one answer
(eir.follow.follower.STORE_TIMEOUT_S) is to be enough although two of them hang."""
RETRIES = 2
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says, with secrets read from where it says."""

    form: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    """Of Sentinel: what it calls the master."""
    database: int
    options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a server."""
    guide_options: Mapping[str, Any] = field(repr=False)
    """Arguments of each connection to a sentinel, or to a node of a cluster that is asked who has what. No retries: the next
    one is asked instead."""

    def __str__(self) -> str:
        return f"{self.form} " + ",".join(f"{host}:{port}" for host, port in self.hosts)


def parse_url(url: str, environment: Mapping[str, str] = os.environ, *, with_secrets: bool = True) -> Address:
    """Take a URL apart. Raises StoreError (`url`) that says what is wrong, without showing secrets.

    Not `with_secrets`: only look at how it is written; what it names (files, variables) is not read.
    """
    parts = urlsplit(url)
    if parts.scheme not in FORMS:
        raise StoreError("url", f"no store has the scheme {parts.scheme!r}; expected sqlite or one of {', '.join(FORMS)}")
    form, tls = FORMS[parts.scheme]
    given = dict(parse_qsl(parts.query))
    if unknown := given.keys() - OPTIONS:
        raise StoreError("url", f"unknown option {min(unknown)!r} of the store; expected one of {', '.join(sorted(OPTIONS))}")
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, secret = login.partition(":")
    password = sentinel_password = None
    if with_secrets:
        password = _secret(given, "password", environment, PASSWORD_ENV) or unquote(secret) or None
        sentinel_password = _secret(given, "sentinel_password", environment)
    path = [step for step in parts.path.split("/") if step]
    service = ""
    if form == SENTINEL:
        if not path:
            raise StoreError("url", "the URL of a store under Sentinel ends with /SERVICE: what the sentinels call the master")
        service = path.pop(0)
    if len(path) > (form != CLUSTER) or not all(step.isdecimal() for step in path):
        raise StoreError("url", f"what follows the host in the store's URL is a database number; got {parts.path!r}")
    common: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": ANSWER_TIMEOUT_S,
        "socket_keepalive": True,
        "protocol": 2,
        **(_tls(given) if tls else {}),
    }
    retry = Retry(FullJitterBackoff(cap=BACKOFF_CAP_S, base=BACKOFF_BASE_S), RETRIES, (RedisConnectionError,))
    login_there = {"username": unquote(user) or None, "password": password}
    guide = {"username": given.get("sentinel_user"), "password": sentinel_password} if form == SENTINEL else login_there
    return Address(
        form=form,
        hosts=tuple(_host(text, SENTINEL_PORT if form == SENTINEL else PORT) for text in hosts.split(",")),
        service=service,
        database=int(path[0]) if path else 0,
        options={**common, **login_there, "retry": retry},
        guide_options={
            **common, **guide, "socket_connect_timeout": GUIDE_TIMEOUT_S, "socket_timeout": GUIDE_TIMEOUT_S, "retry": Retry(NoBackoff(), 0),
        },
    )  # fmt: skip


def with_files_in(url: str, folder: Path) -> str:
    """The URL with the files that it names looked for in `folder`, unless their paths are absolute."""
    parts = urlsplit(url)
    options = [
        (name, str(folder / value) if name.endswith("_file") else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    return urlunsplit(parts._replace(query=urlencode(options, safe="/")))


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        found = parts.port or port
    except ValueError:
        raise StoreError("url", f"the store's URL has a bad port: {text!r}") from None
    if not parts.hostname:
        raise StoreError("url", "the store's URL names no host")
    return parts.hostname, found


def _secret(given: Mapping[str, str], name: str, environment: Mapping[str, str], default: str = "") -> str | None:
    if (path := given.get(f"{name}_file")) is not None:
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\n")
        except OSError as error:
            raise StoreError("url", f"{name}_file {path} of the store cannot be read: {error.strerror}") from None
    variable = given.get(f"{name}_env")
    if variable is not None and variable not in environment:
        raise StoreError("url", f"{name}_env of the store names the variable {variable}, which is not set")
    return environment.get(variable or default)


def _tls(given: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    for option, argument in (("ca_file", "ssl_ca_certs"), ("cert_file", "ssl_certfile"), ("key_file", "ssl_keyfile")):
        if option in given:
            options[argument] = given[option]
    return options


class Connections:
    """Clients to the server that has a key. They connect when first used and again after a fault."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._clients: dict[tuple[str, int], Redis] = {}
        self._sentinel: Sentinel | None = None
        self._master: Redis | None = None
        self._cluster: RedisCluster | None = None
        self._learning = asyncio.Lock()

    @property
    def clustered(self) -> bool:
        """True if one command must stay in one slot."""
        return self.address.form == CLUSTER

    async def to(self, key: str) -> Redis:
        """The client to ask about a key. Raises what redis raises."""
        if self.clustered:
            node = (await self._learned()).get_node_from_key(key)
            if node is None:
                raise SlotNotCoveredError(f"no node of the cluster has the slot of {key}")
            return self._client((str(node.host), int(node.port)))
        if self.address.form == SENTINEL:
            if self._master is None:
                self._sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis has no types there
                    self.address.hosts, sentinel_kwargs=dict(self.address.guide_options)
                )
                self._master = self._sentinel.master_for(
                    self.address.service, db=self.address.database, **self.address.options
                )
            return self._master
        return self._client(self.address.hosts[0])

    def _client(self, where: tuple[str, int]) -> Redis:
        if where not in self._clients:
            self._clients[where] = Redis(
                host=where[0], port=where[1], db=self.address.database, **self.address.options
            )
        return self._clients[where]

    async def _learned(self) -> RedisCluster:
        """The cluster, once it is known who has what. Its commands go by clients of our own: it only says where to.

        Not by its `initialize`, which also asks one certain node for the commands that there are, and fails if that hangs.
        """
        async with self._learning:
            if self._cluster is None:
                cluster = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self.address.hosts], **self.address.guide_options
                )
                try:
                    await cluster.nodes_manager.initialize()
                finally:
                    await _hang_up(cluster)
                self._cluster = cluster
            return self._cluster

    async def learn(self) -> None:
        """Ask the cluster anew who has what: after a redirection, or when a node is away."""
        self._cluster = None

    async def close(self) -> None:
        """Close all connections."""
        await self.learn()
        clients = [*self._clients.values(), *([self._master] if self._master is not None else [])]
        if self._sentinel is not None:
            clients += self._sentinel.sentinels
        self._clients, self._master, self._sentinel = {}, None, None
        for client in clients:
            await client.aclose()


async def _hang_up(cluster: RedisCluster) -> None:
    for nodes in ("nodes_cache", "startup_nodes"):
        await cluster.nodes_manager.aclose(nodes)
