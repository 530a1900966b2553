"""The process that follows the store, for all of a node. It answers nobody.

It reads what is new, proves it, makes images, and hands each to the front, from where every worker gets it (handing.py); it keeps
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

from eir.config import Config
from eir.daemon.faults import call_failed, report_faults
from eir.daemon.handing import Complete, Handing, Listed
from eir.daemon.priority import Aside
from eir.daemon.rpc import Ends, RpcLink, take_over
from eir.daemon.setup import kinds_of, tell_in_force
from eir.daemon.signals import deliver
from eir.errors import place_of
from eir.follow.follower import Follower
from eir.lists.amended import ListImage, mapped
from eir.lists.image import ImageError
from eir.lists.index import Index
from eir.lists.store import ListState
from eir.operate import metrics
from eir.operate.log import Log
from eir.operate.status import Following
from eir.stores.open import open_copy, open_store

TELL_S = 0.1
"""Between two times that the front is told how following goes."""
TRIM_S = 1.0
"""After a list was taken over, what it took to make its image is free, and given back to the system. So is the image before it: who
has it last has the work, and that is not to be a worker."""
FOLLOWER = -1
"""Stands for the number of a worker where processes are told apart."""


async def follow(config: Config, ends: Ends) -> int:
    """Be that process until SIGTERM, or until the front is gone. Returns the exit status."""
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    report_faults(log.report)
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, stop.set)
    deliver()
    link = await RpcLink.over(ends.stream)
    process = _Process(config, ends.packets, log)
    serving = asyncio.create_task(link.serve(process.handlers(), failed=call_failed(log.report)))
    serving.add_done_callback(lambda _: stop.set())
    working = asyncio.create_task(process.run(link))
    working.add_done_callback(lambda _: stop.set())
    await stop.wait()
    for task in (serving, working):
        task.cancel()
    faults = [each for each in await asyncio.gather(serving, working, return_exceptions=True) if isinstance(each, Exception)]
    for fault in faults:
        log.report("fault", reason="following", level="error", detail=place_of(fault))
    link.close()
    await process.close()
    log.close()
    return int(bool(faults))


class _Process:
    """The process at work."""

    def __init__(self, config: Config, packets: socket.socket, log: Log) -> None:
        self._packets, self._log = packets, log
        self._handing = Handing(packets)
        self._index = Index(kinds_of(config))
        self._all_there = asyncio.Event()
        self._store, self._copy = open_store(config.store, config.state, report=log.report, check=False), open_copy(config.store, config.state)
        self._follower = Follower(
            self._store, self._index, report=log.report, on_switch=self._switched, copy=self._copy, heal=config.heal,
            who=f"{socket.gethostname()}:{os.getpid()}", folder=config.state,
        )  # fmt: skip

    def handlers(self) -> dict[str, Any]:
        """What the front tells and asks."""
        return {"configure": self._configure, "counters": self._counters}

    async def run(self, link: RpcLink) -> None:
        """Take what is in force already, and follow."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._packets, self._handed)
        await self._all_there.wait()
        loop.remove_reader(self._packets)
        await self._follower.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell(link))
            await asyncio.sleep(0)  # it is told how following goes before it is told that all is there
            self._handing.put(Complete())
            tasks.create_task(self._follower.run(Aside()))

    async def _tell(self, link: RpcLink) -> None:
        follower = self._follower
        while True:
            lost, copies = dict(follower.lost), sorted(follower.from_copy)
            how = Following(store_up=follower.up, lost=lost, from_copy=copies, in_step_at=follower.in_step_at)
            link.tell("following", how, self._counters())
            await asyncio.sleep(TELL_S)

    async def close(self) -> None:
        """Let go of everything."""
        self._handing.close()
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()

    def _handed(self) -> None:
        while (given := take_over(self._packets)) is not None:
            what, descriptors = given
            if isinstance(what, Complete):
                self._all_there.set()
            elif descriptors:
                with suppress(ImageError, OSError):  # then it is read anew
                    image = mapped(descriptors, None)
                    if (entries := self._index.lists.get(what.name)) is not None and entries.kind == what.kind:
                        self._index.switch(what.name, what.state, image)

    def _switched(self, name: str, state: ListState, image: ListImage, before: ListImage | None) -> None:
        asyncio.get_running_loop().call_later(TRIM_S, _trim, before)
        tell_in_force(self._log.report, name, state)
        self._handing.put(Listed(name, self._index.lists[name].kind, state), image)

    def _configure(self, config: Config) -> None:
        self._index.reconfigure(kinds_of(config))
        self._log.configure(level=config.log_level, full_identifiers=config.full_identifiers)

    def _counters(self) -> metrics.Snapshot:
        return {"eir_store_errors_total": metrics.by_label(self._follower.errors)}


def _trim(_before: ListImage | None) -> None:
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
