"""A TCP proxy between a client and Redis that is slow, cuts connections, stops in the middle of what a client says, or hangs.

It runs in a thread of its own, so that a test may block; whatever a test sets holds for the connections that there are, too.
"""

import asyncio
import threading
from contextlib import suppress

from simulated.patience import PATIENCE_S
from simulated.tcp_server import accepting

CHUNK = 1 << 16


class Proxy:
    """Listens on `port` of 127.0.0.1 and connects to `target`."""

    def __init__(self, target):
        self.target = target
        self.delay_s = 0.0
        """Seconds by which data from either side arrive later."""
        self.accepted = 0
        self._open = set()
        self._loop = asyncio.new_event_loop()
        self._going = asyncio.Event()
        self._going.set()
        self._replicating = asyncio.Event()
        self._replicating.set()
        self._word, self._left = b"", 0
        self._stopped = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def stop_before(self, word, times=1):
        """Hold back whatever clients say from the `times`th piece on that has this word in it; see `wait_until_stopped`."""
        self._stopped.clear()
        self._word, self._left = word, times

    def wait_until_stopped(self, patience_s=PATIENCE_S):
        assert self._stopped.wait(patience_s), f"no client said {self._word}"

    def hold(self):
        """Pass nothing on, in either direction, until `go`."""
        self._loop.call_soon_threadsafe(self._going.clear)

    def hold_replicas(self):
        """Pass nothing on between Redis and its replicas, and go on with everyone else."""
        self._loop.call_soon_threadsafe(self._replicating.clear)

    def go(self):
        self._word = b""
        self._loop.call_soon_threadsafe(self._going.set)

    def cut(self):
        """Reset all connections; new ones are taken."""

        def reset():
            for writer in tuple(self._open):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(reset)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self):
        self._end = asyncio.Event()
        async with accepting(self._connected) as (_, self.port):
            self._ready.set()
            await self._end.wait()

    async def _connected(self, reader, writer):
        self.accepted += 1
        there = None
        self._open.add(writer)
        try:
            far, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._open.add(there)
            replica = asyncio.Event()  # set once this client has asked for the stream of changes
            ways = [self._pass(reader, there, replica, said=True), self._pass(far, writer, replica)]
            ways = [asyncio.create_task(way) for way in ways]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    self._open.discard(each)
                    each.transport.abort()
                    with suppress(OSError):
                        await each.wait_closed()

    async def _pass(self, reader, writer, replica, *, said=False):
        """Pass on what comes, in order, each piece `delay_s` after it came."""
        pieces = asyncio.Queue()

        async def read():
            while data := await reader.read(CHUNK):
                pieces.put_nowait((self._loop.time() + self.delay_s, data))
            pieces.put_nowait((0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await pieces.get()
                if not data:
                    return
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if said and self._word and self._word in data:
                    self._left -= 1
                    if self._left == 0:
                        self._going.clear()
                        self._stopped.set()
                if said and b"PSYNC" in data:
                    replica.set()
                await self._going.wait()
                if replica.is_set():
                    await self._replicating.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
