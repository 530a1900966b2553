"""The front's part of the record: the socket over which workers hand over what they have seen, and what the recorder has counted.

Only the front and the workers have the socket's one end, only the recorder and the front have the other: what waits in it outlives a
recorder, and a recorder knows that no worker is left.
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from eir.analysis.buffer import Buffer
from eir.analysis.settings import SightingsSettings
from eir.config import Config
from eir.daemon.channel import Channel, ChannelError
from eir.daemon.faults import call_failed
from eir.daemon.starter import Process
from eir.errors import EirError, Report
from eir.operate import metrics

SOCKET_BYTES = 1 << 22
"""Size of the kernel's buffer between the processes; the kernel may grant less."""
SETTLE_S, WRITE_S = 0.04, 20.0
"""Times that workers have to hand over what they are about to, and that the recorder has to write it."""
QUEUE, REFUSED, RATE = "queue", "refused", "rate"
TO = ("webhook", "stream")


class Recorded:
    """The record as seen from outside of the recorder."""

    def __init__(self, settings: SightingsSettings, report: Report) -> None:
        self._report = report
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.sender, self.receiver):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._channel: Channel | None = None
        there = [to for to in TO if getattr(settings, to)]
        self._left: metrics.Snapshot = {
            "eir_sightings_total": {(): 0.0}, "eir_sightings_dropped_total": {("disk",): 0.0},
            "eir_events_total": {(to,): 0.0 for to in there},
            "eir_events_dropped_total": {(to, why): 0.0 for to in there for why in (QUEUE, REFUSED, RATE)},
        }  # fmt: skip
        """Counters of recorders that have ended."""
        self._figures: metrics.Snapshot = {"eir_sightings_bytes": {(): 0.0}}

    async def attend(self, process: Process) -> None:
        """Take what a recorder counts until it is gone."""
        self._channel = process.channel
        try:
            await process.channel.serve({"counted": self._counted}, failed=call_failed(self._report))
        finally:
            self._channel = None
            self._left = metrics.merge([self._left, metrics.outliving(self._figures)])
            self._figures = {name: self._figures[name] for name in ("eir_sightings_bytes",)}

    def end(self) -> None:
        """Have the recorder end once it has taken all that workers have handed over; they have ended."""
        self.sender.close()
        self.receiver.close()

    async def write(self) -> None:
        """Have what there is written; returns once it is. Raises EirError if it is not within some seconds."""
        await self._asked("write")

    async def forget(self, subscribers: Sequence[str]) -> None:
        """Have subscribers forgotten that are not in the files, and what there is written. Raises as `write`."""
        await self._asked("forget", subscribers)

    async def _asked(self, what: str, *arguments: Any) -> None:
        await asyncio.sleep(SETTLE_S)
        with suppress(ChannelError):
            if self._channel is not None:
                await self._channel.ask(what, *arguments, patience_s=WRITE_S)
                return
        raise EirError("what was seen last could not be written; the log says why (sightings_failed)")

    def snapshot(self) -> metrics.Snapshot:
        """All its numbers, for a scrape."""
        return metrics.merge([self._left, self._figures])

    def _counted(self, figures: metrics.Snapshot) -> None:
        self._figures = figures


def buffer_for(config: Config, sender: socket.socket | None) -> Buffer | None:
    """Return the buffer to which a worker hands its checks; None if nothing is recorded."""
    if config.sightings is None or sender is None:
        return None

    def send(message: bytes) -> bool:
        """Hand a message over; False if it is not taken now."""
        try:
            sender.send(message)
        except OSError:
            return False
        return True

    return Buffer(send, asyncio.get_running_loop().call_later, rate_max=config.sightings.rate_max / config.workers)
