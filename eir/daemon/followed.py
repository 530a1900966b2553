"""The lists as the front has them: each as the follower handed it in last, for every worker that is there or comes later.

Beside them, how the follower is. What it has counted outlives it here, and so do the lists: it may end and come back.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from eir.config import Config
from eir.daemon.channel import Channel, Handlers
from eir.daemon.faults import call_failed
from eir.daemon.listed import Listed, hand_over
from eir.daemon.setup import kinds_of
from eir.daemon.starter import Process
from eir.daemon.workers import watch
from eir.errors import Report
from eir.images.image import Image, ImageError
from eir.operate import metrics
from eir.operate.status import Following
from eir.record.store import ListState


class Followed:
    """The lists that the follower has handed in.

    `changed` gets each of them; `complete` is called once all have come.
    """

    def __init__(
        self, config: Config, *, changed: Callable[[Listed, Image], None], complete: Callable[[], None], report: Report
    ) -> None:
        self._config, self._changed, self._all_there, self._report = config, changed, complete, report
        self._lists: dict[str, tuple[Listed, Image]] = {}
        self._complete = False
        """The follower has handed in, at some time, all that it found at its start."""
        self._channel: Channel | None = None
        self.how = Following(store_up=False, lost={}, from_copy=(), in_step_at=time.monotonic())
        """The follower's status, as it last reported it."""
        self._figures: metrics.Snapshot = {}
        self._left: metrics.Snapshot = {}
        """Counters of followers that have ended."""

    async def attend(self, process: Process) -> None:
        """Hand a new follower what is in force, and take what it hands in until it is gone."""
        channel = self._channel = process.channel
        channel.tell("configure", self._config)
        for listed, image in self._lists.values():
            hand_over(channel, listed, image)
        channel.tell("complete")
        # It tells what it has counted by itself; that it answers at all is what is watched.
        watching = asyncio.create_task(watch(process, lambda _: None, self._report, process="follower"))

        def handed(what: Listed, memory: int | None) -> None:
            if (fault := self._handed(what, memory)) is not None:
                self._report("image_failed", level="error", list=what.name, detail=fault)
                process.kill()  # it takes the list for in force; its successor finds that it is not, and hands it in again

        handlers: Handlers = {"following": self._told, "put_in_force": handed, "complete": self._completed}
        try:
            await channel.serve(handlers, failed=call_failed(self._report))
        finally:
            watching.cancel()
            self._left = metrics.merge([self._left, metrics.outliving(self._figures)])
            self._figures, self._channel = {}, None

    def end(self) -> None:
        """Have the follower end."""
        if self._channel is not None:
            self._channel.close()

    def hand_all(self, channel: Channel) -> None:
        """Hand on all lists that there are; and that these are all, if they are."""
        for listed, image in self._lists.values():
            hand_over(channel, listed, image)
        if self._complete:
            channel.tell("complete")

    def hand_missing(self, channel: Channel, there: Mapping[str, ListState]) -> None:
        """Hand on what somebody does not have, by the states that it has: what it could not take over is lost otherwise."""
        for listed, image in self._lists.values():
            if there.get(listed.name) != listed.state:
                hand_over(channel, listed, image)

    def configure(self, config: Config) -> None:
        """Follow the lists of another configuration, once the workers have taken it over."""
        self._config = config
        kinds = kinds_of(config)
        self._lists = {
            name: (listed, image) for name, (listed, image) in self._lists.items() if kinds.get(name) == listed.kind
        }
        if self._channel is not None:
            self._channel.tell("configure", config)

    def snapshot(self) -> metrics.Snapshot:
        """All numbers about following, for a scrape."""
        how = self.how
        ours: metrics.Snapshot = {
            "eir_store_up": {(): float(how.store_up)},
            "eir_store_lost_data": {(name,): float(name in how.lost) for name in self._lists},
            "eir_copy_failed": {(name,): float(name in how.copy_faults) for name in self._lists},
            "eir_follow_lag_seconds": {(): max(0.0, time.monotonic() - how.in_step_at)},
        }
        return metrics.merge([ours, self._left, self._figures])

    def _told(self, how: Following, figures: metrics.Snapshot) -> None:
        self.how, self._figures = how, figures

    def _completed(self) -> None:
        self._complete = True
        self._all_there()

    def _handed(self, what: Listed, memory: int | None) -> str | None:
        """Take over a list; returns what keeps it from that."""
        if memory is None:
            return "the front has no descriptor left for it"
        try:
            image = Image.map(memory)
        except (ImageError, OSError) as e:
            return str(e)
        if kinds_of(self._config).get(what.name) == what.kind:
            self._lists[what.name] = what, image
            self._changed(what, image)
        return None
