"""Client for Redis commands, which finds the server of a key and maps errors to causes.

Independent of lists.

Clients connect when first used and again after an error. If Sentinel or a cluster names the server, it is asked again when a
server is unreachable. A value that is longer than any page or record closes the connection.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

import redis.exceptions as fault
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import DefaultParser
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

from eir.errors import Report, StoreError
from eir.lists.stores.records import VALUE_BYTES_MAX
from eir.lists.stores.redis_url import CLUSTER, SENTINEL, RedisAddress


class TooLong(RedisError):
    """Error for a value in Redis that is longer than any page or record of a list."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis chooses it, depending on hiredis
    """Parser of Redis replies, which buffers at most VALUE_BYTES_MAX of one value.

    The bytes that arrived together with the value are buffered too.
    """

    async def read_from_socket(self) -> bool:
        """Read more bytes of a reply from the socket; return True.

        Raises:
            TooLong: if the value is too long.
        """
        await super().read_from_socket()
        if self._reader.len() > VALUE_BYTES_MAX:
            raise TooLong(f"a value is longer than {VALUE_BYTES_MAX >> 20} MB, and eir writes no such value")
        return True


T = TypeVar("T")

_KEY = "eir:{list}:state"
REPLAYED = (
    ("HSET", _KEY, "a", "b"), ("HDEL", _KEY, "a"), ("HINCRBY", _KEY, "a", "1"), ("PERSIST", _KEY), ("UNLINK", _KEY), ("XADD", _KEY, "*", "a", "b"),
    ("DEL", _KEY), ("PEXPIREAT", _KEY, "1"),
)  # fmt: skip
"""Commands that an AOF contains for our transactions."""

POLICY_SAFE = "noeviction"

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
"""Causes of errors; the first match counts, so special classes precede general ones."""
OUT_OF_MEMORY = "raise maxmemory of Redis, or make room in it, then try again"
REPLIES = ("LOADING", "NOAUTH", "NOPERM", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS")
WORDS = {"WRONGPASS": "noauth", "WRONGTYPE": "corrupt", **{word: word.lower() for word in REPLIES}}
"""Causes by the first word of an error reply, for errors without a class of their own or wrapped in another."""
WRONG_TYPE = "has another type than eir writes there: another program wrote it"
AWAY = (fault.ConnectionError, fault.TimeoutError, fault.RedisClusterException, OSError)
"""Errors after which the server of a key is looked up again."""
REPLICA_WAIT_MS = 1_000


class RedisClient:
    """Client of a Redis store.

    `report` receives events that are not errors. `replica_wait_ms` is the time within which a replica must receive a
    write.
    """

    def __init__(self, address: RedisAddress, report: Report, replica_wait_ms: int = REPLICA_WAIT_MS) -> None:
        self.replica_wait_ms = replica_wait_ms
        self.where = str(address)
        self.clustered = address.form == CLUSTER
        """True if one command must stay in one slot."""
        self._address, self.report = address, report
        self._clients: dict[tuple[str, int], Redis] = {}
        self._sentinel: _Sentinels | None = None
        self._cluster: RedisCluster | None = None
        self._map_lock = asyncio.Lock()
        self._checked = False
        self.names_only: tuple[str, ...] = ("NOVALUES",)
        """Arguments with which HSCAN omits the values, as long as the server accepts them."""

    async def do(self, *command: object, key: str = "", **options: object) -> Any:
        """Execute a command and return its reply.

        `key`: key of the command, if it is not the second word.

        Raises:
            StoreError: if the command fails.
        """
        return await self.call(key or str(command[1]), lambda client: client.execute_command(*command, **options))

    async def do_all(self, *commands: Sequence[object], transaction: bool = False) -> list[Any]:
        """Execute commands in one pipeline on the server of the first command's key; return the replies.

        Raises:
            StoreError: if a command fails.
        """

        async def send(client: Any) -> list[Any]:
            async with client.pipeline(transaction=transaction) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers: list[Any] = await pipe.execute()
                return answers

        return await self.call(str(commands[0][1]), send)

    async def call(self, key: str, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run an operation with the client for the server of a key.

        If a cluster has moved the key's slot, the operation runs again on the new server.

        Raises:
            StoreError: for every error of redis.
        """
        try:
            try:
                return await _await_cancellable(self._with_client(key, operation))
            except fault.AskError:  # or its subclass MovedError: another server has the slot
                self._cluster = None
                return await _await_cancellable(self._with_client(key, operation))
        except (fault.RedisError, fault.RedisClusterException, OSError) as error:
            if isinstance(error, AWAY):
                self._cluster = None
            cause = _cause(error)
            advice = f"; nothing was changed: {OUT_OF_MEMORY}" if cause == "oom" else ""
            fault_text = f"{key}, or a key beside it, {WRONG_TYPE}" if is_wrong_type(error) else error_text(error)
            raise StoreError(cause, f"Redis ({self.where}): {fault_text}{advice}") from error

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
        if info.get("aof_enabled") and (denied := await _cannot_replay(client)) is not None:
            self.report(
                "store_cannot_replay", level="warning", reason="default_user",
                detail=f"a restart of Redis would lose transactions: {denied}; add `user default off ~* &* +@all` to its user file",
            )  # fmt: skip

    async def _is_open_to_all(self, client: Any, key: str) -> bool:
        """Return True if a connection without a password could write to this key. The check writes nothing."""
        host, port = await _where(client)
        options = {
            name: value
            for name, value in self._address.guide_options.items()
            if name not in {"username", "password", "credential_provider"}
        }
        anonymous = Redis(host=host, port=port, **options)
        try:
            async with anonymous.pipeline(transaction=False) as pipe:
                for command in (("MULTI",), ("APPEND", key, ""), ("DISCARD",)):
                    pipe.execute_command(*command)
                queued = (await pipe.execute(raise_on_error=False))[1]
        except (fault.RedisError, OSError):
            return False
        finally:
            await anonymous.aclose()
        return queued in {b"QUEUED", "QUEUED"}

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Convert decoding errors in the context to StoreError (`corrupt`), because another program wrote the data."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StoreError(
                "corrupt", f"Redis ({self.where}): data that eir did not write: {error_text(error)}"
            ) from error

    async def _client(self, key: str) -> Redis:
        address, where = self._address, self._address.hosts[0]
        if self.clustered:
            node = (await self._slot_map()).get_node_from_key(key)
            if node is None:
                raise fault.SlotNotCoveredError(f"no node of the cluster has the slot of {key}")
            where = str(node.host), int(node.port)
        if where not in self._clients:
            if address.form == SENTINEL:
                self._sentinel = _Sentinels(address.hosts, sentinel_kwargs=dict(address.guide_options))  # type: ignore[no-untyped-call]  # redis has no types there
                self._clients[where] = self._sentinel.master_for(
                    address.service, db=address.database, **address.options
                )
            else:
                self._clients[where] = Redis(host=where[0], port=where[1], db=address.database, **address.options)
            self._clients[where].connection_pool.connection_kwargs["parser_class"] = BoundedParser
        return self._clients[where]

    async def _slot_map(self) -> RedisCluster:
        """Return the slot map of the cluster, with which the server of a key is found.

        Commands do not use the clients of this map, but those of this object.

        The library's `initialize` is not used: it also asks one particular node for its commands, and fails if that
        node hangs.
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
        clients = [*self._clients.values(), *([] if self._sentinel is None else self._sentinel.sentinels)]
        self._clients, self._sentinel, self._cluster = {}, None, None
        for client in clients:
            await client.aclose()


class _Sentinels(Sentinel):
    """Sentinel client that keeps the list of all sentinels correct when calls run at the same time.

    The library moves the sentinel that answered to the front of the list while it iterates. With two concurrent calls
    one sentinel replaced another, which was lost. Here each call iterates over a list of its own.
    """

    async def discover_master(self, service_name: str) -> Any:
        asking = copy(self)
        asking.sentinels = [*self.sentinels]
        try:
            return await Sentinel.discover_master(asking, service_name)
        finally:
            self.sentinels = asking.sentinels


async def _where(client: Any) -> tuple[str, int]:
    """Return host and port of the server to which a client connects."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        host, port = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis has no types there
        return str(host), int(port)
    return str(pool.connection_kwargs["host"]), int(pool.connection_kwargs["port"])


async def _cannot_replay(client: Any) -> str | None:
    """Return the reason why Redis could not replay transactions from its AOF after a restart; None if it can.

    Redis replays them as the user `default`, which needs permission for our commands.
    """
    async with client.pipeline(transaction=False) as pipe:
        for command in REPLAYED:
            pipe.execute_command("ACL", "DRYRUN", "default", *command)
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception):
            return f"this user cannot check the rights of the user default (+acl|dryrun): {error_text(answer)}"
        if answer not in {b"OK", "OK", True}:
            return str(answer, "utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    return None


async def _await_cancellable(answer: Awaitable[T]) -> T:
    """Await the answer and return it; raise CancelledError if this task was cancelled meanwhile.

    redis sends within asyncio.wait_for, which before Python 3.12 loses a cancellation that arrives while the bytes are
    sent. Then a worker would not end, and a timeout around the call would not hold.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


_WORDS_OF: dict[tuple[type[Exception], ...], str] = {
    (TypeError, AttributeError): "a value has an invalid type", (OverflowError,): "a number is too large", (RecursionError,): "nested too deep",
}  # fmt: skip


def error_text(error: Exception) -> str:
    """Return the text of an error without details of Python, such as socket tuples, objects and class names."""
    text = str(error)
    if (
        unknown := re.match(r"No master found for '(.+?)'", text)
    ) is not None:  # the text continues with every object on the way to a sentinel
        return f"no sentinel that can be reached names a master for {unknown[1]}"
    for kinds, words in _WORDS_OF.items():
        if isinstance(error, kinds):
            return words
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "something is missing"
    if (
        failed := re.search(r"Error (\d+) connecting to (\S+)\. (?:Connect call failed|Multiple exceptions)", text)
    ) is not None:
        return f"cannot connect to {failed[2]}: {os.strerror(int(failed[1]))}"
    text = re.sub(r"Error -?\d+ connecting to (\S+)\. ", r"cannot connect to \1: ", text)
    return text or (
        "no answer in time" if isinstance(error, TimeoutError | fault.TimeoutError) else "the connection was lost"
    )


def _reply(error: Exception) -> str:
    """Return the first word of an error reply, such as `NOPERM`.

    In a transaction, the library puts the text of the command before the reply.
    """
    text = str(error)
    _, is_of_transaction, reply = text.rpartition(" of pipeline caused error: ")
    return re.split(r"\W+", reply.lstrip("('\"") if is_of_transaction else text, maxsplit=1)[0]


def is_wrong_type(error: Exception) -> bool:
    """Return True if an error means that a command met a key of another type (WRONGTYPE).

    The error is one of the redis library, or the StoreError that was made from it.
    """
    return _reply(error) == "WRONGTYPE" or (isinstance(error, StoreError) and str(error).endswith(WRONG_TYPE))


def _cause(error: Exception) -> str:
    if (word := _reply(error)) in WORDS:
        return WORDS[word]
    return next(cause for cause, kinds in CAUSES.items() if isinstance(error, kinds))
