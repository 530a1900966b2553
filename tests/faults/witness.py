"""A client that checks every answer against the truth while faults happen, on two connections to each node.

The truth is a row of contents that a list has had or may have by now. An answer is right if some content fits that the
connection may be at: not one before what was settled, none after what was begun, and never one before what the same node
has answered from already. It runs in a thread of its own, so that a test may block.
"""

import asyncio
import random
import threading
import time
from contextlib import suppress

from simulated.patience import FACTOR, PATIENCE_S
from simulated.wire import REALM, TGPP, Connection, avp, cer, ecr

WHITE, BLACK = 0, 1
ANSWER_S = 30.0 * FACTOR
"""An answer that takes longer counts as none."""
PAUSE_S = 0.002


class Truth:
    """Contents of the list, by step."""

    def __init__(self, content):
        self.contents = [frozenset(content)]
        self.settled = 0
        """The step that every node is known to have reached."""

    def may_become(self, content):
        """A load begins: from now on either content may answer."""
        self.contents.append(frozenset(content))

    def is_now(self):
        """Every node holds the last content."""
        self.settled = max(step for step, content in enumerate(self.contents) if content is not None)

    def failed(self):
        """The load that began failed: nobody may answer from its content, nor have done so."""
        self.contents[-1] = None


class Witness:
    """Asks the nodes about `devices` in random order; the end of the `with` holds them to no wrong and no missing answer."""

    def __init__(self, nodes, truth, devices, *, connections=2):
        self.truth = truth
        self.asked = 0
        self.wrong, self.unanswered = [], []
        self._devices = tuple(devices)
        self._addresses = [node.address for node in nodes]
        self._connections = connections
        self._rounds = {}
        self._stop = threading.Event()
        self._open = threading.Barrier(2)
        self._failure = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._open.wait(PATIENCE_S)
        return self

    def __exit__(self, kind, *_):
        self._stop.set()
        self._thread.join(PATIENCE_S)
        if kind is None:
            assert not self._thread.is_alive()
            assert self._failure is None, self._failure
            assert self.wrong == []
            assert self.unanswered == []
            assert self.asked > 0

    def goes_on(self, answers=50):
        """Wait until each connection has had so many more answers: what holds now is seen by every node."""
        before, end = dict(self._rounds), time.monotonic() + PATIENCE_S
        while not all(self._rounds[each] >= before[each] + answers for each in before):
            assert time.monotonic() < end, f"no answers any more: {self.unanswered}"
            time.sleep(0.005)

    def _run(self):
        try:
            asyncio.run(self._ask_all())
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: the test shows it
            self._failure = error
            self._stop.set()
            self._open.abort()

    async def _ask_all(self):
        clients = []
        for number, address in enumerate(self._addresses):
            for at in range(self._connections):
                host = f"mme{at}.node{number}.{REALM}"
                client = Connection(*await asyncio.open_connection(*address))
                await client.open(cer(host))
                clients.append((client, host))
        self._rounds = {host: 0 for _, host in clients}
        self._open.wait(PATIENCE_S)
        await asyncio.gather(*(self._ask(client, host) for client, host in clients))

    async def _ask(self, client, host):
        rng, reached, name = random.Random(host), 0, avp(264, host)
        while not self._stop.is_set():
            device = rng.choice(self._devices)
            lowest = max(reached, self.truth.settled)
            try:
                async with asyncio.timeout(ANSWER_S):
                    await client.send(ecr(device, host=name))
                    answer = await client.read()
                    while answer.is_request:  # a DWR
                        await client.answer(answer, host=host)
                        answer = await client.read()
            except (TimeoutError, OSError, EOFError) as error:
                self.unanswered.append((host, device, repr(error)))
                break
            status = answer.number(1445, TGPP) if answer.result == 2001 else answer.result
            fitting = [
                step
                for step, content in enumerate(self.truth.contents)
                if step >= lowest and content is not None and status == (BLACK if device in content else WHITE)
            ]
            if fitting and self.truth.contents[reached] is not None:
                reached = max(reached, fitting[0])
            else:
                self.wrong.append((host, device, status, f"from step {lowest}, reached {reached}"))
            self.asked += 1
            self._rounds[host] += 1
            await asyncio.sleep(PAUSE_S)
        with suppress(OSError):
            await client.close()
