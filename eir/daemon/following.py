"""The process that follows the store, for all of a node. It answers nobody.

It reads what is new, proves it, makes images, and hands each to the front, from where every worker gets it (followed.py); it keeps
the last good copy and heals the store. It may end and come back: the front hands it what is in force, and meanwhile workers answer.
"""

import asyncio
import ctypes
import os
import signal
import socket
import time
from contextlib import suppress
from typing import Any

import uvloop

from eir.config import Config
from eir.daemon.channel import Channel
from eir.daemon.faults import call_failed, report_faults
from eir.daemon.listed import Listed, hand_over
from eir.daemon.priority import BESIDE_NICE, Aside, give_way
from eir.daemon.setup import kinds_of, tell_in_force
from eir.errors import place_of
from eir.follow.follower import Follower
from eir.images.image import Image, ImageError
from eir.images.index import Index
from eir.operate import metrics
from eir.operate.log import Log
from eir.operate.status import Following
from eir.record.store import ListState
from eir.stores.open import open_copy, open_store

TELL_S = 0.1
"""Interval at which the front is told how following goes."""
TRIM_S = 1.0
"""Memory that a switch took is given back so long after it. The image before is kept until then, so that no worker pays for freeing it."""


def run(end: socket.socket, config: Config) -> int:
    """Be that process until SIGTERM, or until its channel ends. Returns the exit status."""
    give_way(BESIDE_NICE)
    return uvloop.run(_follow(end, config))


async def _follow(end: socket.socket, config: Config) -> int:
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    report_faults(log.report)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    channel = Channel(end)
    process = _Process(config, channel, log)
    serving = asyncio.create_task(channel.serve(process.handlers(), failed=call_failed(log.report)))
    serving.add_done_callback(lambda _: stop.set())
    working = asyncio.create_task(process.run())
    working.add_done_callback(lambda _: stop.set())
    await stop.wait()
    for task in (serving, working):
        task.cancel()
    faults = [
        each for each in await asyncio.gather(serving, working, return_exceptions=True) if isinstance(each, Exception)
    ]
    for fault in faults:
        log.report("fault", reason="following", level="error", detail=place_of(fault))
    channel.close()
    await process.close()
    log.close()
    return int(bool(faults))


class _Process:
    """The process at work."""

    def __init__(self, config: Config, channel: Channel, log: Log) -> None:
        self._channel, self._log = channel, log
        self._index = Index(kinds_of(config))
        self._all_there = asyncio.Event()
        self._store, self._copy = (
            open_store(config.store, config.state, report=log.report, check=False),
            open_copy(config.store, config.state, report=log.report),
        )
        self._follower = Follower(
            self._store, self._index, report=log.report, on_switch=self._switched, copy=self._copy, heal=config.heal,
            who=f"{socket.gethostname()}:{os.getpid()}",
        )  # fmt: skip

    def handlers(self) -> dict[str, Any]:
        """Return the functions that the front may call, by name."""
        return {
            "configure": self._configure, "counters": self._counters, "put_in_force": self._in_force_already, "complete": self._all_there.set,
        }  # fmt: skip

    async def run(self) -> None:
        """Take what is in force already, and follow."""
        await self._all_there.wait()
        await self._follower.start()
        self._tell()  # how following goes is told before it is told that all is there
        self._channel.tell("complete")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_again())
            tasks.create_task(self._follower.run(Aside()))

    def _tell(self) -> None:
        follower = self._follower
        lost, copies = dict(follower.lost), sorted(follower.from_copy)
        how = Following(
            store_up=follower.up,
            lost=lost,
            from_copy=copies,
            in_step_at=follower.in_step_at,
            copy_faults=dict(follower.copy_faults),
        )
        self._channel.tell("following", how, self._counters(), latest="following")

    async def _tell_again(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._tell()

    async def close(self) -> None:
        """Let go of everything."""
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()

    def _in_force_already(self, what: Listed, memory: int | None) -> None:
        if memory is None:
            return  # then it is read from the store
        with suppress(ImageError, OSError):  # as above
            image = Image.map(memory)
            if (entries := self._index.lists.get(what.name)) is not None and entries.kind == what.kind:
                self._index.switch(what.name, what.state, image)

    def _switched(self, name: str, state: ListState, image: Image, before: Image | None) -> None:
        asyncio.get_running_loop().call_later(TRIM_S, _trim, before)
        tell_in_force(self._log.report, name, state)
        hand_over(self._channel, Listed(name, self._index.lists[name].kind, state), image)

    def _configure(self, config: Config) -> None:
        self._index.reconfigure(kinds_of(config))
        self._log.configure(level=config.log_level, full_identifiers=config.full_identifiers)

    def _counters(self) -> metrics.Snapshot:
        return {"eir_store_errors_total": metrics.by_label(self._follower.errors)}


def _trim(_before: Image | None) -> None:
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
