"""The lists as the front has them: each as the follower handed it in last, for every worker that is there or comes later.

Beside them, how the follower is. What it has counted outlives it here, and so do the lists: it may end and come back.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping

from eir.config import Config
from eir.daemon.faults import call_failed
from eir.daemon.handing import Complete, Handing, Listed
from eir.daemon.rpc import RpcLink, take_over
from eir.daemon.setup import kinds_of
from eir.daemon.workers import watch
from eir.errors import Report
from eir.lists.amended import ListImage, mapped
from eir.lists.image import ImageError
from eir.lists.store import ListState
from eir.operate import metrics
from eir.operate.status import Following


class Followed:
    """What the follower has handed in. `changed` is called with each list that it hands in, and with Complete."""

    def __init__(self, config: Config, *, changed: Callable[[Listed | Complete, ListImage | None], None], report: Report) -> None:
        self._config, self._changed, self._report = config, changed, report
        self._lists: dict[str, tuple[Listed, ListImage]] = {}
        self._complete = False
        """It has handed in, at some time, all that it found at its start."""
        self._link: RpcLink | None = None
        self.how = Following(store_up=False, lost={}, from_copy=(), in_step_at=time.monotonic())
        """How the follower is, as it said last."""
        self._figures: metrics.Snapshot = {}
        self._left: metrics.Snapshot = {}
        """What followers that are no more have counted."""

    async def attend(self, pid: int, stream: socket.socket, packets: socket.socket) -> None:
        """Hand a new follower what is in force, and take what it hands in until it is gone."""
        link = self._link = await RpcLink.over(stream)
        link.tell("configure", self._config)
        handing = Handing(packets)
        self.hand_all(handing)
        handing.put(Complete())
        loop = asyncio.get_running_loop()
        loop.add_reader(packets, self._handed, packets)
        # It tells what it has counted by itself; that it answers at all is what is watched.
        watching = asyncio.create_task(watch(pid, link, lambda _: None, self._report, process="follower"))
        try:
            await link.serve({"following": self._told}, failed=call_failed(self._report))
        finally:
            watching.cancel()
            loop.remove_reader(packets)
            handing.close()
            link.close()
            packets.close()
            self._left = metrics.merge([self._left, metrics.outliving(self._figures)])
            self._figures, self._link = {}, None

    def hand_all(self, handing: Handing) -> None:
        """Hand on all lists that there are; and that these are all, if they are."""
        for listed, image in self._lists.values():
            handing.put(listed, image)
        if self._complete:
            handing.put(Complete())

    def hand_missing(self, handing: Handing, there: Mapping[str, ListState]) -> None:
        """Hand on what somebody does not have, by the states that it has: what it could not take over is lost otherwise."""
        for listed, image in self._lists.values():
            if there.get(listed.name) != listed.state:
                handing.put(listed, image)

    def configure(self, config: Config) -> None:
        """Follow the lists of another configuration, once the workers have taken it over."""
        self._config = config
        kinds = kinds_of(config)
        self._lists = {name: (listed, image) for name, (listed, image) in self._lists.items() if kinds.get(name) == listed.kind}
        if self._link is not None:
            self._link.tell("configure", config)

    def snapshot(self) -> metrics.Snapshot:
        """All numbers about following, for a scrape."""
        how = self.how
        ours: metrics.Snapshot = {
            "eir_store_up": {(): float(how.store_up)},
            "eir_store_lost_data": {(name,): float(name in how.lost) for name in self._lists},
            "eir_follow_lag_seconds": {(): max(0.0, time.monotonic() - how.in_step_at)},
        }
        return metrics.merge([ours, self._left, self._figures])

    def _told(self, how: Following, figures: metrics.Snapshot) -> None:
        self.how, self._figures = how, figures

    def _handed(self, packets: socket.socket) -> None:
        while (given := take_over(packets)) is not None:
            what, descriptors = given
            if isinstance(what, Complete):
                self._complete = True
                self._changed(what, None)
            elif not descriptors:
                self._report("image_failed", level="error", list=what.name, detail="the front has no descriptor left for it")
            else:
                try:
                    known = self._lists.get(what.name)
                    image = mapped(descriptors, known[1] if known else None)
                except (ImageError, OSError) as e:
                    self._report("image_failed", level="error", list=what.name, detail=str(e))
                    continue
                if kinds_of(self._config).get(what.name) == what.kind:
                    self._lists[what.name] = what, image
                    self._changed(what, image)
