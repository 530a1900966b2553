"""Commands to the server that has a key, and their faults by cause. Knows no list.

Clients connect when first used and again after a fault. Where Sentinel or a cluster says which server that is, it is asked
again when a server is away. A value longer than any of ours ends the connection.
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
from eir.lists.stores.redis_url import CLUSTER, SENTINEL, Address


class TooLong(RedisError):
    """A value in the server is longer than any page or record of ours."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # the one that redis chose, as it found hiredis
    """Parses answers as redis does.

    It holds no more of one value than VALUE_BYTES_MAX and the bytes that came with it.
    """

    async def read_from_socket(self) -> bool:
        """Take some bytes more. Raises TooLong."""
        await super().read_from_socket()
        if self._reader.len() > VALUE_BYTES_MAX:
            raise TooLong(f"a value is longer than {VALUE_BYTES_MAX >> 20} MB, as none of EIR is")
        return True


T = TypeVar("T")

_KEY = "eir:{list}:state"
REPLAYED = (
    ("HSET", _KEY, "a", "b"), ("HDEL", _KEY, "a"), ("HINCRBY", _KEY, "a", "1"), ("PERSIST", _KEY), ("UNLINK", _KEY), ("XADD", _KEY, "*", "a", "b"),
    ("DEL", _KEY), ("PEXPIREAT", _KEY, "1"),
)  # fmt: skip
"""The commands that our transactions become in an AOF."""

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
"""The first that fits; the more special ones come first."""
OUT_OF_MEMORY = "raise maxmemory of Redis, or make room in it, and do it again"
REPLIES = ("LOADING", "NOAUTH", "NOPERM", "READONLY", "OOM", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "NOREPLICAS")
WORDS = {"WRONGPASS": "noauth", "WRONGTYPE": "corrupt", **{word: word.lower() for word in REPLIES}}
"""Error replies by their first word, where redis has no class of its own or wraps them in another."""
WRONG_TYPE = "is of another type than EIR writes there: another program wrote it"
AWAY = (fault.ConnectionError, fault.TimeoutError, fault.RedisClusterException, OSError)
"""After these it is asked again which server has a key."""
REPLICA_WAIT_MS = 1_000


class Link:
    """A store's connection for its commands. `report` hears of anything that is not an error; `replica_wait_ms`: a replica's time for a write."""

    def __init__(self, address: Address, report: Report, replica_wait_ms: int = REPLICA_WAIT_MS) -> None:
        self.replica_wait_ms = replica_wait_ms
        self.where = str(address)
        self.clustered = address.form == CLUSTER
        """One command must stay in one slot."""
        self._address, self.report = address, report
        self._clients: dict[tuple[str, int], Redis] = {}
        self._sentinel: _Sentinels | None = None
        self._cluster: RedisCluster | None = None
        self._learning = asyncio.Lock()
        self._greeted = False
        self.names_only: tuple[str, ...] = ("NOVALUES",)
        """Arguments that make HSCAN leave out the values, as far as is known."""

    async def do(self, *command: object, key: str = "", **options: object) -> Any:
        """The answer to a command; `key`: the one that it is about, unless that is its second word. Raises StoreError."""
        return await self.call(key or str(command[1]), lambda client: client.execute_command(*command, **options))

    async def do_all(self, *commands: Sequence[object], transaction: bool = False) -> list[Any]:
        """The answers to commands that are sent together, to the server that has the first one's key. Raises StoreError."""

        async def send(client: Any) -> list[Any]:
            async with client.pipeline(transaction=transaction) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                found: list[Any] = await pipe.execute()
                return found

        return await self.call(str(commands[0][1]), send)

    async def call(self, key: str, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run an operation with the client of the server that has the key. Raises StoreError for errors of redis.

        Once more where a cluster has moved the slot.
        """
        try:
            try:
                return await _heeding(self._with_client(key, operation))
            except fault.AskError:  # MovedError too: the slot is elsewhere
                self._cluster = None
                return await _heeding(self._with_client(key, operation))
        except (fault.RedisError, fault.RedisClusterException, OSError) as error:
            if isinstance(error, AWAY):
                self._cluster = None
            cause = _cause(error)
            advice = f"; nothing was changed: {OUT_OF_MEMORY}" if cause == "oom" else ""
            fault_text = f"{key}, or a key beside it, {WRONG_TYPE}" if is_wrong_type(error) else said(error)
            raise StoreError(cause, f"Redis ({self.where}): {fault_text}{advice}") from error

    async def _with_client(self, key: str, operation: Callable[[Any], Awaitable[T]]) -> T:
        client = await self._client(key)
        if not self._greeted:
            self._greeted = True  # others that ask at the same time do not look too
            try:
                await self._greet(client, key)
            except BaseException as error:
                self._greeted = isinstance(error, fault.NoPermissionError)
                if not self._greeted:
                    raise
        return await operation(client)

    async def _greet(self, client: Any, key: str) -> None:
        told = await client.info(
            "memory", "persistence"
        )  # at once: a server that is loading takes its time over each question
        policy = told.get("maxmemory_policy", POLICY_SAFE)
        if policy != POLICY_SAFE:
            self.report(
                "store_may_evict", level="warning", reason=str(policy),
                detail=f"Redis may drop lists when its memory is full; set maxmemory-policy {POLICY_SAFE}",
            )  # fmt: skip
        if await self._is_open_to_all(client, key):
            self.report(
                "store_unprotected", level="warning", reason="no_password",
                detail="Redis lets anyone who reaches it change lists, without a password; put `user default off ~* &* +@all` into its user file",
            )  # fmt: skip
        if told.get("aof_enabled") and (denied := await _cannot_replay(client)) is not None:
            self.report(
                "store_cannot_replay", level="warning", reason="default_user",
                detail=f"a restart of Redis would lose what was written in transactions: {denied}; put `user default off ~* &* +@all` into its user file",
            )  # fmt: skip

    async def _is_open_to_all(self, client: Any, key: str) -> bool:
        """True if a connection without a password may write there, as far as that can be told. Writes nothing."""
        host, port = await _where(client)
        options = {
            name: value
            for name, value in self._address.guide_options.items()
            if name not in {"username", "password", "credential_provider"}
        }
        stranger = Redis(host=host, port=port, **options)
        try:
            async with stranger.pipeline(transaction=False) as pipe:
                for command in (("MULTI",), ("APPEND", key, ""), ("DISCARD",)):
                    pipe.execute_command(*command)
                queued = (await pipe.execute(raise_on_error=False))[1]
        except (fault.RedisError, OSError):
            return False
        finally:
            await stranger.aclose()
        return queued in {b"QUEUED", "QUEUED"}

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Decode in this context what was read.

        Raises StoreError (corrupt) if another program, or version, wrote it.
        """
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StoreError("corrupt", f"Redis ({self.where}): not what EIR writes there: {said(error)}") from error

    async def _client(self, key: str) -> Redis:
        address, where = self._address, self._address.hosts[0]
        if self.clustered:
            node = (await self._learned()).get_node_from_key(key)
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

    async def _learned(self) -> RedisCluster:
        """The cluster, once its key ranges are known. It only says where to go: commands use clients of our own.

        Not by its `initialize`, which also asks one certain node for the commands that there are, and fails if that hangs.
        """
        async with self._learning:
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
        """Close all connections."""
        clients = [*self._clients.values(), *([] if self._sentinel is None else self._sentinel.sentinels)]
        self._clients, self._sentinel, self._cluster = {}, None, None
        for client in clients:
            await client.aclose()


class _Sentinels(Sentinel):
    """All sentinels, whoever asks them.

    redis puts the one that answered first, in the list that it goes through; where two ask at the same time, one sentinel took another's
    place, and the other was lost. Here each goes through a list of its own.
    """

    async def discover_master(self, service_name: str) -> Any:
        asking = copy(self)
        asking.sentinels = [*self.sentinels]
        try:
            return await Sentinel.discover_master(asking, service_name)
        finally:
            self.sentinels = asking.sentinels


async def _where(client: Any) -> tuple[str, int]:
    """Host and port of the server that a client's connections go to."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        host, port = await pool.get_master_address()  # type: ignore[no-untyped-call]  # redis has no types there
        return str(host), int(port)
    return str(pool.connection_kwargs["host"]), int(pool.connection_kwargs["port"])


async def _cannot_replay(client: Any) -> str | None:
    """Why the user `default`, as which Redis replays the transactions of its AOF, could not write ours; None: it can."""
    async with client.pipeline(transaction=False) as pipe:
        for command in REPLAYED:
            pipe.execute_command("ACL", "DRYRUN", "default", *command)
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception):
            return f"this user may not ask what the user default may (+acl|dryrun): {said(answer)}"
        if answer not in {b"OK", "OK", True}:
            return str(answer, "utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    return None


async def _heeding(answer: Awaitable[T]) -> T:
    """Return the awaited result, unless this task was cancelled meanwhile.

    redis sends under asyncio.wait_for, which before Python 3.12 loses a cancellation that comes while the bytes go out: a
    worker would not end, and a timeout around it would not hold.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


_WORDS_OF: dict[tuple[type[Exception], ...], str] = {
    (TypeError, AttributeError): "a value is of another type than it may be", (OverflowError,): "a number is too large", (RecursionError,): "nested too deep",
}  # fmt: skip


def said(error: Exception) -> str:
    """The error's text, without what only a Python programmer reads: tuples of sockets, objects, names of classes."""
    text = str(error)
    if (
        unknown := re.match(r"No master found for '(.+?)'", text)
    ) is not None:  # with every object on the way to a sentinel behind it
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
    """Return the first word of an error reply, also of one to a command of a transaction, before which redis puts the command."""
    text = str(error)
    _, is_of_transaction, reply = text.rpartition(" of pipeline caused error: ")
    return re.split(r"\W+", reply.lstrip("('\"") if is_of_transaction else text, maxsplit=1)[0]


def is_wrong_type(error: Exception) -> bool:
    """Return whether a command met a key of another type, by the error of redis or by the StoreError that it became."""
    return _reply(error) == "WRONGTYPE" or (isinstance(error, StoreError) and str(error).endswith(WRONG_TYPE))


def _cause(error: Exception) -> str:
    if (word := _reply(error)) in WORDS:
        return WORDS[word]
    return next(cause for cause, kinds in CAUSES.items() if isinstance(error, kinds))
