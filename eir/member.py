"""One worker of several: answers on the connections that it is handed, and leaves to the dispatcher what concerns them all.

The same Worker as that of a node which has one, but its admission desk is far: what happens goes over the channel, and
orders come back. Its listeners are the dispatcher's.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from eir import metrics
from eir.channel import Channel, ChannelError, Ends, take_over
from eir.config import Config
from eir.diameter.admission import Admit, Claim, Drop, Probe, Refuse
from eir.errors import EirError
from eir.lists.index import Index
from eir.log import Log
from eir.server import Worker, kinds_of

ORDERS = {order.__name__: order for order in (Admit, Refuse, Probe, Drop)}


async def work(config: Config, origin_state_id: int, index: Index, number: int, ends: Ends) -> int:
    """Worker `number`, until SIGTERM or until the dispatcher is gone. `index` holds the lists as the supervisor read them."""
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    channel = await Channel.over(ends.stream)
    index.reconfigure(kinds_of(config))  # lists may have come since the supervisor made it
    worker = Worker(config, log, origin_state_id, desk=FarDesk(channel), index=index, dials=number == 0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, stop.set)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(connection: socket.socket, listener: str) -> None:
        try:
            await worker.node.take(connection, secure=listener.startswith("tls:"))
        finally:
            channel.send({"did": "gone"})

    def handed() -> None:
        while (given := take_over(ends.packets)) is not None:
            if given.connection is None:
                log.report("peer_refused", level="error", reason="open_files", detail="no descriptor left for a connection")
                channel.send({"did": "gone"})
                continue
            task = asyncio.create_task(serve(given.connection, config.listen[given.listener]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def listen() -> None:
        async for message in channel.messages():
            _heed(worker, channel, message)
        stop.set()

    try:
        await worker.start()
        loop.add_reader(ends.packets, handed)
        listening = asyncio.create_task(listen())
        channel.send({"did": "started"})
        await stop.wait()
        loop.remove_reader(ends.packets)
        await worker.stop()
        listening.cancel()
    finally:
        channel.close()
        log.close()
    return 0


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
                result = worker.reload()
            case "set_peer":
                result = worker.set_peer(message["label"], enabled=message["enabled"])
            case unknown:
                raise ChannelError(f"no question {unknown}")
    except (EirError, OSError) as e:
        channel.answer(question, error=str(e))
    else:
        channel.answer(question, result)


class FarDesk:
    """A worker's desk: what happens goes to the dispatcher, whose orders come back over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def arrived(self, claim: Claim) -> None:
        """See Admission.arrived."""
        self._channel.send({"did": "arrived", "claim": asdict(claim)})

    async def may_dial(self, host: str) -> bool:
        """Whether no worker has a connection of the peer."""
        try:
            return bool(await self._channel.ask("may_dial", host=host))
        except ChannelError:
            return False

    def dialing(self, connection: int, host: str, our_host: str) -> None:
        """See Admission.dialing."""
        self._channel.send({"did": "dialing", "connection": connection, "host": host, "our_host": our_host})

    def opened(self, connection: int, host: str, origin_state_id: int) -> None:
        """See Admission.opened."""
        self._channel.send({"did": "opened", "connection": connection, "host": host, "origin_state_id": origin_state_id})

    def alive(self, connection: int) -> None:
        """See Admission.alive."""
        self._channel.send({"did": "alive", "connection": connection})

    def closed(self, connection: int, reason: str) -> None:
        """See Admission.closed."""
        self._channel.send({"did": "closed", "connection": connection, "reason": reason})
