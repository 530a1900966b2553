"""Client for Redis commands: finds the server of a key, converts errors to causes for metrics, and checks the server once.

Clients connect when first used and again after an error. If a server is unreachable, the
client asks Sentinel or the cluster again for the server. A reply that is longer than any reply to EIR's commands closes the connection.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from typing import Any, TypeVar

import redis.exceptions as fault
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import DefaultParser
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

from eir.errors import Report, StoreError
from eir.lists.stores.records import SMALL_BYTES, VALUE_BYTES_MAX, check_room
from eir.lists.stores.redis_url import CLUSTER, SENTINEL, RedisAddress


class TooLong(RedisError):
    """Error for a reply of Redis that is longer than any reply to EIR's commands."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis chooses the class, depending on hiredis
    """Parser of Redis replies that buffers at most VALUE_BYTES_MAX, plus the bytes of one read from the socket."""

    async def read_from_socket(self) -> bool:
        """Read more bytes of a reply from the socket; return True.

        Raises:
            TooLong: if more than VALUE_BYTES_MAX are buffered.
        """
        await super().read_from_socket()
        if self._reader.len() > VALUE_BYTES_MAX:
            raise TooLong(f"a value is longer than {VALUE_BYTES_MAX >> 20} MB, and eir writes no such value")
        return True


T = TypeVar("T")

_KEY = "eir:{list}:head"
REPLAYED = (
    ("UNLINK", _KEY), ("PERSIST", _KEY), ("XADD", _KEY, "*", "a", "b"), ("HSET", _KEY, "a", "b"), ("DEL", _KEY),
)  # fmt: skip
"""Commands that the AOF of Redis contains for EIR's scripts."""

POLICY_SAFE = "noeviction"
"""Value of `maxmemory-policy` with which Redis evicts no key."""

CAUSES: dict[str, tuple[type[Exception], ...]] = {
    "loading": (fault.BusyLoadingError,),
    "noauth": (fault.AuthenticationError, fault.AuthorizationError),
    "noperm": (fault.NoPermissionError,),
    "readonly": (fault.ReadOnlyError,),
    "oom": (fault.OutOfMemoryError,),
    "masterdown": (fault.MasterDownError,),
    "clusterdown": (fault.ClusterDownError, fault.TryAgainError, fault.RedisClusterException),
    "connections": (fault.MaxConnectionsError,),
    "timeout": (fault.TimeoutError,),
    "corrupt": (TooLong,),
    "refused": (fault.ConnectionError, OSError),
    "error": (fault.RedisError,),
}
"""Cause → classes of errors. The first match counts, so special classes precede general ones."""
START = "start Redis, or correct `store`; test it with: redis-cli -u {} ping"
REMEDIES = {
    **dict.fromkeys(("refused", "timeout", "masterdown", "clusterdown"), START),
    "noauth": "correct the user and the password that `store` names",
    "noperm": "give this user the rights in deploy/REDIS.md, in the user file of Redis",
    "readonly": "name the primary in `store`, or its Sentinels; during a failover, try again",
    "loading": "wait until Redis has loaded its data, then try again",
}
"""Advice for an operator by cause, with `{}` for the URL of a server."""
OUT_OF_MEMORY = "raise maxmemory of Redis, or make room in it, then try again"
REPLIES = ("LOADING", "NOAUTH", "NOPERM", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS")
WORDS = {"WRONGPASS": "noauth", "WRONGTYPE": "corrupt", **{word: word.lower() for word in REPLIES}}
"""First word of an error reply → cause, for errors whose class does not determine the cause."""
UNREACHABLE = (fault.ConnectionError, fault.TimeoutError, fault.RedisClusterException, OSError)
"""Errors after which the client asks again for the server of a key."""
REPLICA_WAIT_MS = 1_000
"""Default time in milliseconds within which a replica must receive a write."""
RESERVE_BYTES, RESERVE_SHARE = 16 << 20, 8
"""Memory that a load leaves free: RESERVE_BYTES, or 1/RESERVE_SHARE of maxmemory if that is less."""


class RedisClient:
    """Client of a Redis store.

    Args:
        address: servers and connection options.
        report: receives events that are not errors.
        replica_wait_ms: time within which a replica must receive a write.
    """

    def __init__(self, address: RedisAddress, report: Report, replica_wait_ms: int = REPLICA_WAIT_MS) -> None:
        self.replica_wait_ms = replica_wait_ms
        self.where = str(address)
        self.clustered = address.form == CLUSTER
        """True if all keys of a command must be in one slot."""
        self.report = report
        self._address = address
        self._clients: dict[tuple[str, int], Redis] = {}
        self._sentinel: _Sentinels | None = None
        self._cluster: RedisCluster | None = None
        self._map_lock = asyncio.Lock()
        self._checked = False

    async def execute(self, *command: object, key: str = "", **options: object) -> Any:
        """Execute a command and return its reply.

        `key`: key of the command, if the key is not the second word.

        Raises:
            StoreError: if the command fails.
        """
        key = key or str(command[1])
        return await self.run(key, lambda client: client.execute_command(*command, **options))

    async def execute_all(self, *commands: Sequence[object]) -> list[Any]:
        """Execute commands in one pipeline on the server of the first command's key; return the replies.

        Raises:
            StoreError: if a command fails.
        """
        return await self.run(str(commands[0][1]), lambda client: _send_all(client, commands))

    async def execute_each(self, *commands: Sequence[object]) -> list[Any | StoreError]:
        """Execute commands on different keys, in one pipeline for each server; return each reply, or the error of the command.

        Raises:
            StoreError: if a server cannot be reached.
        """
        by_client = dict[Any, list[Sequence[object]]]()
        for command in commands:
            by_client.setdefault(await self.run(str(command[1]), _return_client), []).append(command)
        replies = dict[Sequence[object], Any]()
        for group in by_client.values():
            send = partial(_send_all, commands=group, raises=False)
            replies |= zip(group, await self.run(str(group[0][1]), send), strict=True)
        return [await self._reply_of(command, replies[command]) for command in commands]

    async def _reply_of(self, command: Sequence[object], reply: Any) -> Any | StoreError:
        """Return a reply. If the command failed in a pipeline, execute it alone, which follows a slot that moved; return its reply or its error."""
        if not isinstance(reply, Exception):
            return reply
        try:
            return await self.execute(*command)
        except StoreError as error:
            return error

    async def run(self, key: str, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run an operation with the client for the server of a key.

        If a cluster has moved the key's slot, the operation runs again on the new server.

        Raises:
            StoreError: for each error of the library redis.
        """
        try:
            try:
                return await _await_cancellable(self._with_client(key, operation))
            except fault.AskError:  # or MovedError, a subclass: another server has the slot
                self._cluster = None
                return await _await_cancellable(self._with_client(key, operation))
        except (fault.RedisError, fault.RedisClusterException, OSError) as error:
            if isinstance(error, UNREACHABLE):
                self._cluster = None
            cause = _cause(error)
            text = error_text(error)
            if _reply_word(error) == "WRONGTYPE":
                text = f"{key}, or a key beside it, has another type than eir writes there: another program wrote it"
            elif cause == "oom":
                text += f"; nothing was changed: {OUT_OF_MEMORY}"
            elif cause in REMEDIES:
                text += "; " + REMEDIES[cause].format(self._address.first_server)
            raise StoreError(cause, f"Redis ({self.where}): {text}") from error

    async def _with_client(self, key: str, operation: Callable[[Any], Awaitable[T]]) -> T:
        client = await self._client(key)
        if not self._checked:
            self._checked = True  # concurrent calls must not repeat the check
            try:
                await self._check_server(client, key)
            except BaseException as error:
                self._checked = isinstance(error, fault.NoPermissionError)
                if not self._checked:
                    raise
        return await operation(client)

    async def _check_server(self, client: Any, key: str) -> None:
        # One command for both sections: a server that is loading answers slowly.
        info = await client.info("memory", "persistence")
        policy = info.get("maxmemory_policy", POLICY_SAFE)
        if policy != POLICY_SAFE:
            self.report(
                "store_may_evict", level="warning", reason=str(policy),
                detail=f"Redis may evict lists when its memory is full; set maxmemory-policy {POLICY_SAFE}",
            )  # fmt: skip
        if await self._is_open_to_all(client, key):
            self.report(
                "store_unprotected", level="warning", reason="no_password",
                detail="every client of Redis can change lists without a password; add `user default off ~* &* +@all` to its user file",
            )  # fmt: skip
        denial = await _replay_denial(client) if info.get("aof_enabled") else None
        if denial is not None:
            self.report(
                "store_cannot_replay", level="warning", reason="default_user",
                detail=f"a restart of Redis would lose transactions: {denial}; add `user default off ~* &* +@all` to its user file",
            )  # fmt: skip

    async def _is_open_to_all(self, client: Any, key: str) -> bool:
        """Return True if clients without a password could write to this key. The test queues a write and discards it."""
        host, port = await _server_of(client)
        options = dict(self._address.guide_options)
        for name in ("username", "password", "credential_provider"):
            options.pop(name, None)
        anonymous = Redis(host=host, port=port, **options)
        try:
            async with anonymous.pipeline(transaction=False) as pipe:
                pipe.execute_command("MULTI")
                pipe.execute_command("APPEND", key, "")
                pipe.execute_command("DISCARD")
                _, append_reply, _ = await pipe.execute(raise_on_error=False)
        except (fault.RedisError, OSError):
            return False
        finally:
            await anonymous.aclose()
        return append_reply in {b"QUEUED", "QUEUED"}

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Convert decoding errors in the `with` block to StoreError (`corrupt`), because another program wrote the data."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            message = f"Redis ({self.where}): data that eir did not write: {error_text(error)}"
            raise StoreError("corrupt", message) from error

    async def _client(self, key: str) -> Redis:
        address = self._address
        host, port = address.hosts[0]
        if self.clustered:
            cluster = await self._slot_map()
            node = cluster.get_node_from_key(key)
            if node is None:
                raise fault.SlotNotCoveredError(f"no node of the cluster has the slot of {key}")
            host, port = str(node.host), int(node.port)
        client = self._clients.get((host, port))
        if client is not None:
            return client
        if address.form == SENTINEL:
            self._sentinel = _Sentinels(address.hosts, sentinel_kwargs=dict(address.guide_options))  # type: ignore[no-untyped-call, unused-ignore]  # redis has types there from 8.2 on
            client = self._sentinel.master_for(address.service, db=address.database, **address.options)
        else:
            client = Redis(host=host, port=port, db=address.database, **address.options)
        client.connection_pool.connection_kwargs["parser_class"] = BoundedParser
        self._clients[host, port] = client
        return client

    async def _slot_map(self) -> RedisCluster:
        """Return the slot map of the cluster, which has the server of each key.

        Only the map is used: commands use the clients of this object. The library's `initialize` is not used, because
        it also asks one particular node for its commands, and fails if that node hangs.
        """
        async with self._map_lock:
            if self._cluster is None:
                nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
                cluster = RedisCluster(startup_nodes=nodes, **self._address.guide_options)
                try:
                    await cluster.nodes_manager.initialize()
                finally:
                    for group in ("nodes_cache", "startup_nodes"):
                        await cluster.nodes_manager.aclose(group)
                self._cluster = cluster
            return self._cluster

    async def close(self) -> None:
        """Close all connections to Redis and to sentinels."""
        clients = list(self._clients.values())
        if self._sentinel is not None:
            clients += self._sentinel.sentinels
        self._clients = {}
        self._sentinel = None
        self._cluster = None
        for client in clients:
            await client.aclose()


class _Sentinels(Sentinel):
    """Client of Redis Sentinel whose list of sentinels stays complete during concurrent calls.

    While the library iterates over the list, it moves the sentinel that answered to the front. Two concurrent calls
    then lose a sentinel. Here each call iterates over its own copy of the list.
    """

    async def discover_master(self, service_name: str) -> Any:
        own = copy(self)
        own.sentinels = [*self.sentinels]
        try:
            return await Sentinel.discover_master(own, service_name)
        finally:
            self.sentinels = own.sentinels


async def _return_client(client: Any) -> Any:
    return client


async def _send_all(client: Any, commands: Sequence[Sequence[object]], *, raises: bool = True) -> list[Any]:
    """Send commands in one pipeline; return the replies. `raises`: False to return an error in place of a reply."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=raises)
        return replies


async def _server_of(client: Any) -> tuple[str, int]:
    """Return host and port of the server to which a client connects."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        host, port = await pool.get_master_address()  # type: ignore[no-untyped-call, unused-ignore]  # redis has types there from 8.2 on
        return str(host), int(port)
    return str(pool.connection_kwargs["host"]), int(pool.connection_kwargs["port"])


async def _replay_denial(client: Any) -> str | None:
    """Return the reason why Redis could not replay transactions from its AOF after a restart; None if it can.

    Redis replays transactions as the user `default`, which needs permission for the commands of EIR.
    """
    async with client.pipeline(transaction=False) as pipe:
        for command in REPLAYED:
            pipe.execute_command("ACL", "DRYRUN", "default", *command)
        replies = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            return f"this user cannot check the rights of the user default (+acl|dryrun): {error_text(reply)}"
        if reply not in {b"OK", "OK", True}:
            return str(reply, "utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return None


async def _await_cancellable(answer: Awaitable[T]) -> T:
    """Await an answer and return it. If this task was cancelled meanwhile, raise CancelledError.

    The library redis sends within asyncio.wait_for. Before Python 3.12, asyncio.wait_for loses a cancellation that
    arrives while the bytes are sent. A worker would then not end, and a timeout around the call would have no effect.
    """
    task = asyncio.current_task()
    cancellations = 0 if task is None else task.cancelling()
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > cancellations:
            raise asyncio.CancelledError


_TEXTS: dict[tuple[type[Exception], ...], str] = {
    (TypeError, AttributeError): "a value has an invalid type", (OverflowError,): "a number is too large", (RecursionError,): "nested too deep",
}  # fmt: skip


def error_text(error: Exception) -> str:
    """Format an error of the Redis library for users: remove Python class names, object texts and socket tuples."""
    text = str(error)
    no_master = re.match(r"No master found for '(.+?)'", text)  # the text continues with objects of the library
    if no_master is not None:
        return f"no sentinel that can be reached names a master for {no_master[1]}"
    for classes, class_text in _TEXTS.items():
        if isinstance(error, classes):
            return class_text
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "something is missing"
    failed = re.search(r"Error (\d+) connecting to (\S+)\. (?:Connect call failed|Multiple exceptions)", text)
    if failed is not None:
        return f"cannot connect to {failed[2]}: {os.strerror(int(failed[1]))}"
    if text:
        return re.sub(r"Error -?\d+ connecting to (\S+)\. ", r"cannot connect to \1: ", text)
    return "no answer in time" if isinstance(error, TimeoutError | fault.TimeoutError) else "the connection was lost"


def _reply_word(error: Exception) -> str:
    """Return the first word of an error reply, such as `NOPERM`.

    In a transaction, the library puts the text of the command before the reply.
    """
    _, separator, reply = str(error).rpartition(" of pipeline caused error: ")
    if separator:
        reply = reply.lstrip("('\"")
    return re.split(r"\W+", reply, maxsplit=1)[0]


def _cause(error: Exception) -> str:
    word = _reply_word(error)
    if word in WORDS:
        return WORDS[word]
    return next(cause for cause, classes in CAUSES.items() if isinstance(error, classes))


async def check_free(link: RedisClient, key: str, needs: int) -> None:
    """Raise StoreError (`oom`) if the server of a key has less free memory than a write needs. `needs` is in bytes.

    The check is skipped if Redis has no memory limit, or if it may evict keys.
    """
    if needs <= SMALL_BYTES:
        return
    memory = await link.run(key, lambda client: client.info("memory"))
    limit = int(memory.get("maxmemory", 0))
    policy = memory.get("maxmemory_policy", POLICY_SAFE)
    if limit and policy == POLICY_SAFE:
        reserve = min(RESERVE_BYTES, limit // RESERVE_SHARE)
        free = max(0, limit - int(memory["used_memory"]))
        check_room("oom", f"Redis ({link.where})", OUT_OF_MEMORY, needs=needs, free=free, reserve=reserve)


async def replicate(link: RedisClient, client: Any, mark_key: str) -> None:
    """Wait until a replica has received the write; report a write that only the master has received.

    WAIT covers only the writes of its own connection, but the pool may have used another connection for the write. So
    this connection first writes a mark, the key `mark_key`. A replica receives the mark only after all earlier writes.
    """
    with suppress(fault.RedisError):
        replication = await client.info("replication")
        if not int(replication.get("connected_slaves", 0)):
            return
        async with client.client() as connection:
            await connection.execute_command("SET", mark_key, "1", "PX", 10 * link.replica_wait_ms)
            if not await connection.execute_command("WAIT", 1, link.replica_wait_ms):
                link.report(
                    "store_not_replicated", level="warning",
                    detail=f"no replica had the change within {link.replica_wait_ms} ms; a failover now would lose it",
                )  # fmt: skip
