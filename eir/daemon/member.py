"""One worker of several: answers on the connections that it is handed, and leaves to the dispatcher what concerns them all.

The same Worker as that of a node which has one, but its connections are admitted elsewhere: what happens goes over the channel,
and orders come back. Its listeners are the dispatcher's.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eir.config import Config
from eir.daemon.channel import Channel, ChannelError, Ends, take_over
from eir.daemon.server import Worker, kinds_of
from eir.daemon.signals import heed
from eir.diameter.admission import Admit, Claim, Drop, Order, Probe, Refuse
from eir.diameter.rate import Grants
from eir.errors import EirError
from eir.lists.index import Index
from eir.operate import metrics
from eir.operate.log import Log

ORDERS = {order.__name__: order for order in (Admit, Refuse, Probe, Drop)}


async def work(config: Config, origin_state_id: int, index: Index, grants: Grants, ends: Ends, *, number: int) -> int:
    """Worker `number`, until SIGTERM or until the dispatcher is gone. `index` holds the lists as the supervisor read them."""
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers, worker=number)
    channel = await Channel.over(ends.stream)
    index.reconfigure(kinds_of(config))  # lists may have come since the supervisor made it
    worker = Worker(config, log, origin_state_id, admission=RemoteAdmission(channel), index=index, grants=grants)
    try:
        await Member(config, log, worker, channel, ends.packets).work(dials=number == 0)
    finally:
        channel.close()
        log.close()
    return 0


class Member:
    """A worker with its ends of the channels to the dispatcher."""

    def __init__(self, config: Config, log: Log, worker: Worker, channel: Channel, packets: socket.socket) -> None:
        self._config = config
        self._log = log
        self._channel = channel
        self._packets = packets
        self._worker = worker
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def work(self, *, dials: bool) -> None:
        """Answer until told to stop; `dials`: connect to peers too, which is one worker's business."""
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, self._stop.set)
        heed()
        await self._worker.start()
        loop.add_reader(self._packets, self._handed)
        listening = asyncio.create_task(self._listen())
        if dials:
            self._begin(self._dial())
        self._channel.send({"did": "started"})
        await self._stop.wait()
        loop.remove_reader(self._packets)
        await self._worker.stop()
        listening.cancel()

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handed(self) -> None:
        while (given := take_over(self._packets)) is not None:
            if given.connection is None:
                self._worker.node.starved()
                self._channel.send({"did": "gone", "number": given.number})
                continue
            self._begin(self._serve(given.connection, given.number, self._config.listen[given.listener]))

    async def _serve(self, connection: socket.socket, number: int, listener: str) -> None:
        try:
            await self._worker.node.take(connection, secure=listener.startswith("tls:"))
        finally:
            self._channel.send({"did": "gone", "number": number})

    async def _dial(self) -> None:
        if self._config.boot_without_lists == "refuse":
            await self._worker.lists_or(self._stop)
        self._worker.node.dial()

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            try:
                _heed(self._worker, self._channel, message)
            except Exception as e:  # noqa: BLE001 - the outermost loop of what the dispatcher says: the next word counts as much
                self._log.report("fault", reason=str(message.get("ask") or message.get("order")), level="error", detail=repr(e))
                if "ask" in message:
                    self._channel.answer(message, error=f"the worker failed at it ({type(e).__name__}); the log says more (fault)")
        self._stop.set()


def _heed(worker: Worker, channel: Channel, message: Mapping[str, Any]) -> None:
    """Do what the dispatcher orders, answer what it asks."""
    if "order" in message:
        worker.node.obey(ORDERS[message["order"]](**message["values"]))
        return
    question = dict(message)
    try:
        match message["ask"]:
            case "snapshot":
                result: Any = metrics.as_json(worker.snapshot())
            case "report":
                result = asdict(worker.report())
            case "peers":
                result = worker.peers()
            case "reload":
                result = worker.reload(message["who"])
            case "set_peer":
                result = worker.set_peer(message["label"], enabled=message["enabled"])
            case unknown:
                raise ChannelError(f"no question {unknown}")
    except (EirError, OSError) as e:
        channel.answer(question, error=str(e))
    else:
        channel.answer(question, result)


class RemoteAdmission:
    """An AdmissionControl in another process: what happens goes to the dispatcher, whose orders come back over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def arrived(self, claim: Claim) -> Sequence[Order]:
        """See Admission.arrived."""
        self._channel.send({"did": "arrived", "claim": asdict(claim)})
        return ()

    async def may_dial(self, host: str) -> bool:
        """Whether no worker has a connection of the peer."""
        try:
            return bool(await self._channel.ask("may_dial", host=host))
        except ChannelError:
            return False

    def dialing(self, connection: int, host: str, our_host: str) -> Sequence[Order]:
        """See Admission.dialing."""
        self._channel.send({"did": "dialing", "connection": connection, "host": host, "our_host": our_host})
        return ()

    def opened(self, connection: int, host: str, origin_state_id: int) -> Sequence[Order]:
        """See Admission.opened."""
        self._channel.send({"did": "opened", "connection": connection, "host": host, "origin_state_id": origin_state_id})
        return ()

    def alive(self, connection: int) -> Sequence[Order]:
        """See Admission.alive."""
        self._channel.send({"did": "alive", "connection": connection})
        return ()

    def closed(self, connection: int, reason: str) -> Sequence[Order]:
        """See Admission.closed."""
        self._channel.send({"did": "closed", "connection": connection, "reason": reason})
        return ()
