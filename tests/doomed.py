"""Stores that die with their process at a chosen step: a statement of SQLite, or what a client sends to Redis; and the fork for it.

A process that has everything imported forks a child for each try, and the child kills itself.
"""

import atexit
import os
import signal
import traceback
from pathlib import Path

from redis.asyncio.connection import AbstractConnection
from simulated import servers

from eir.lists.stores import redis as redis_store
from eir.lists.stores import sqlite as sqlite_store
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore


class Die:
    """Kills its own process at step number `at`."""

    def __init__(self, at):
        self.left = at

    def __call__(self, _what):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class SqliteCase:
    """A store in a file, and its steps: statements."""

    def __init__(self, folder):
        self.path = Path(folder) / "lists.sqlite"
        sqlite_store.PORTION_PARTS = 1  # so that a base is staged in several transactions

    def open(self):
        return SqliteStore(self.path)

    def doomed(self, at):
        store, die = self.open(), Die(at)
        store._file.submit(lambda db: db.set_trace_callback(die)).result()
        return store


class RedisCase:
    """A server, and its steps: what a client sends."""

    def __init__(self, _folder):
        redis_store.PORTION_PARTS = 1  # so that a base is staged by several commands
        self.server = servers.Server(servers.programs()["redis"]).start()
        atexit.register(self.server.stop)

    def open(self):
        return RedisStore(self.server.url)

    def doomed(self, at):
        """In the child only: its connections die before they send for the `at`th time."""
        die, send = Die(at), AbstractConnection.send_packed_command

        async def watched(connection, *args, **kwargs):
            die(args)
            await send(connection, *args, **kwargs)

        AbstractConnection.send_packed_command = watched
        return self.open()


CASES = {"sqlite": SqliteCase, "redis": RedisCase}


def fork(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return child
