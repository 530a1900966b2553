"""Processes that run until the node ends. The manager starts them, and restarts each after an unexpected end.

`Process` is a running process, `Child` one such process across its restarts. `Children` runs all of them. A process that gives no sign
of life for ANSWER_S is killed and restarted.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias, cast

from eir.errors import Report, detail_of
from eir.node.observe import metrics
from eir.node.observe.log import call_failed
from eir.node.processes.channel import Channel, ChannelError, Handlers, HasDescriptor, Unanswered, pair
from eir.node.processes.program import spawn

BESIDE_NICE = 5
"""Nice value of processes beside those that answer checks."""
END_S = 12.0
"""Seconds after the close of its channel at which a process is killed; the answering process waits 8 s for its peers (eir.node.processes.answering)."""
RESTART_S, RESTART_MAX_S = 0.1, 30.0
"""Seconds before the restart of a process; the pause doubles up to the second value."""
SERVING_RESTART_MAX_S = 1.0
"""Maximum seconds before the restart of a process that serves clients."""
STEADY_S = 60.0
"""Seconds after which the pause before the next restart of a process is RESTART_S again."""
KILLED_S = 3.0
"""Maximum seconds that the manager waits for the end of killed processes, which may wait for a disk."""
COUNTERS_S = 1.0
"""Seconds between two requests for the counters of a process."""
HUNG_QUESTIONS = 5
"""Number of consecutive unanswered requests after which a process is killed; each request waits for this part of ANSWER_S.

After a pause of the whole host, each process is late for one request only.
"""
START_S = 60.0
"""Maximum seconds until the first answer of a process, which loads its modules before, on a busy host too."""


class Process:
    """Running process, with the channel to it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.name = name
        self.pid = process.pid
        self.channel = channel
        self._process = process

    async def ended(self) -> int:
        """Wait until the process has ended; return its exit status, or the negative number of the signal that ended it."""
        return await self._process.wait()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process, unless it has ended. `number`: signal, SIGKILL by default."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


Start: TypeAlias = Callable[..., Awaitable[Process]]
"""Function that starts a process, such as Starter.start."""


class Starter:
    """Function `start` for all processes of a node. `owned`: folder for as_owner_of. `keeps`: descriptors that stay open in each process."""

    def __init__(self, owned: Path, keeps: Sequence[int] = ()) -> None:
        self._owned = owned
        self._keeps = keeps

    async def start(
        self, name: str, main: str, *arguments: Any, carrying: Sequence[HasDescriptor] = (), nice: int = 0
    ) -> Process:
        """Start a process that runs `main`; its exit status is the result of `main`.

        Args:
            name: as in `spawn`.
            main: function as MODULE:FUNCTION. It is called with its end of the channel, `arguments`, and the descriptor of each object
                in `carrying`.
            arguments: picklable arguments of `main`.
            carrying: objects whose descriptors the process inherits.
            nice: as in `spawn`.

        Raises:
            ChannelError: if the host has no descriptor, memory or process left.
        """
        carried = [each.fileno() for each in carrying]
        try:
            with ExitStack() as ends:
                ours, theirs = map(ends.enter_context, pair())
                number = theirs.fileno()
                descriptors = [number, *self._keeps, *carried]
                process = await spawn(
                    name, RUN, main, str(number), owned=self._owned, nice=nice, descriptors=descriptors
                )
                channel = Channel(ours.dup())
        except OSError as e:
            raise ChannelError(f"no process can be started: {e}") from None
        channel.notify("run", *arguments, *carried)
        return Process(name, process, channel)


RUN = "eir.node.processes.process:run"
"""First function of each process with a channel."""


class Child:
    """Child process of the manager, with its settings and counters across restarts.

    `launch`: function that starts the process. `greet`: function that sends a new process its settings. `handlers`: functions
    that the process may call. `left`: function that is called after each end of the process.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[Process]],
        *,
        report: Report,
        greet: Callable[[Process], None] = lambda _: None,
        handlers: Callable[[Process], Handlers] = lambda _: {},
        left: Callable[[Process], None] = lambda _: None,
        serves: bool = False,
        is_spared: bool = False,
    ) -> None:
        """Create a child whose process is not running yet.

        `serves`: True if clients wait for the process. `is_spared`: True if killing it at the node's end is no failure of the
        node.
        """
        self.name = name
        self.launch = launch
        self.serves = serves
        self.is_spared = is_spared
        self.process: Process | None = None
        """Running process, if any."""
        self.is_late = False
        """True if the process has not answered the last request."""
        self._report = report
        self._greet = greet
        self._handlers = handlers
        self._left = left
        self._counters: metrics.Snapshot = {}
        self._past: metrics.Snapshot = {}
        """Counters of ended processes."""

    @property
    def channel(self) -> Channel | None:
        """Channel to the process; None while the process does not run."""
        return None if self.process is None else self.process.channel

    async def attend(self, process: Process) -> None:
        """Send a new process its settings, then handle its calls until it closes the channel."""
        channel = process.channel
        self.process = process
        self._greet(process)
        asking = asyncio.create_task(self._ask_counters(process))
        handlers = {"counted": self.count, **self._handlers(process)}
        try:
            await channel.serve(handlers, failed=call_failed(self._report))
        finally:
            asking.cancel()
            self._past = metrics.merge([self._past, metrics.lasting_counters(self._counters)])
            self._counters = {}
            self.process = None
            self.is_late = False
            self._left(process)

    def count(self, counters: metrics.Snapshot) -> None:
        """Store new values of the running process's counters. A counter that is missing in `counters` keeps its last value."""
        self._counters = self._counters | counters

    def snapshot(self) -> metrics.Snapshot:
        """Return the counters of the child: values of its running process plus those of its earlier, ended processes."""
        return metrics.merge([self._past, self._counters])

    def notify(self, what: str, *arguments: Any, **options: Any) -> None:
        """Send the process a message that calls its handler `what`, without waiting for an answer.

        If the process does not run, the message is dropped. `options`: as in Channel.notify.
        """
        if self.channel is not None:
            self.channel.notify(what, *arguments, **options)

    async def apply(self, *settings: Any, patience_s: float = START_S) -> None:
        """Let the process apply new settings. If it fails, it is killed, so that its successor starts with the settings in force.

        `patience_s`: as in Channel.ask.
        """
        process = self.process
        if process is None:
            return
        try:
            await process.channel.ask("apply", *settings, patience_s=patience_s)
        except ChannelError as e:
            self._report("call_failed", level="warning", reason="apply", process=self.name, detail=str(e))
            process.kill()

    def stop(self) -> None:
        """Close the channel to the process, which then finishes its current work and ends."""
        if self.channel is not None:
            self.channel.close()

    async def _ask_counters(self, process: Process) -> None:
        """Request the counters every COUNTERS_S, as a sign of life; kill the process after HUNG_QUESTIONS without an answer."""
        unanswered, has_answered = 0, False
        while unanswered < (HUNG_QUESTIONS if has_answered else 1):
            patience_s = process.channel.answer_s / HUNG_QUESTIONS if has_answered else START_S
            try:
                counters = await process.channel.ask("counters", patience_s=patience_s)
            except Unanswered:
                unanswered += 1
                self.is_late = True
                continue
            except ChannelError as e:
                if process.channel.gone.is_set():
                    return  # the process has ended
                self._report("call_failed", level="warning", reason="counters", process=self.name, detail=str(e))
            else:
                self.count(counters)
            unanswered, has_answered = 0, True
            self.is_late = False
            await asyncio.sleep(COUNTERS_S)
        self._report("process_hung", level="error", process=self.name, unanswered=unanswered)
        process.kill()


class Children:
    """All child processes of the manager. A child that ends is restarted, unless the node is stopping."""

    def __init__(
        self, *, report: Report, restart_s: float = RESTART_S, steady_s: float = STEADY_S, killed_s: float = KILLED_S
    ) -> None:
        self._report = report
        self._restart_s = restart_s
        self._steady_s = steady_s
        self._killed_s = killed_s
        self._running: dict[Process, Child] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        """Tasks of children whose process does not run."""
        self._stopping = False
        self.restarts: Counter[str] = Counter()
        """Number of restarts by name of the child."""

    def start(self, child: Child) -> None:
        """Start a child, and restart it after each end."""
        self.restarts[child.name] = 0
        task = asyncio.get_running_loop().create_task(self._run(child))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    def stop(self) -> None:
        """Disable the restart of children that end."""
        self._stopping = True

    async def end(self, within_s: float) -> bool:
        """Wait until all children have ended, and kill those that run longer than `within_s`.

        Returns false if a process had to be killed. Killed processes of children with `is_spared` do not count.
        """
        self.stop()
        for task in self._idle:
            task.cancel()
        late: set[asyncio.Task[None]] = set()
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=within_s)
        killed = dict(self._running) if late else {}
        for process in killed:
            detail = f"it did not end within {within_s:g} s"
            self._report("killed", level="error", reason="drain", process=process.name, pid=process.pid, detail=detail)
            process.kill()
        if late:
            await asyncio.wait(late, timeout=self._killed_s)
        return all(child.is_spared for child in killed.values())

    async def _run(self, child: Child) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        pause_s = self._restart_s
        while not self._is_stopping():
            self._idle.add(task)
            began = time.monotonic()
            status = None
            try:
                process = await child.launch()
            except ChannelError as e:
                self._report("start_failed", level="error", process=child.name, detail=str(e))
            else:
                self._idle.discard(task)
                status = await self._attend(child, process)
                self._idle.add(task)
            if self._is_stopping():
                return
            ran_s = time.monotonic() - began
            if ran_s > self._steady_s:
                pause_s = self._restart_s
            self._report(
                "process_ended",
                level="error",
                process=child.name,
                status=status,
                ran_s=round(ran_s),
                restart_in_s=pause_s,
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, SERVING_RESTART_MAX_S if child.serves else RESTART_MAX_S)
            self.restarts[child.name] += 1

    async def _attend(self, child: Child, process: Process) -> int | None:
        self._running[process] = child
        try:
            if not self._is_stopping():
                await child.attend(process)
        except Exception as e:  # noqa: BLE001 - outermost loop over processes: it logs the fault and starts another one
            self._report("fault", reason=process.name, level="error", detail=detail_of(e))
        process.channel.close()
        try:
            async with asyncio.timeout(END_S):
                status = await process.ended()
        except TimeoutError:
            process.kill()
            status = await process.ended()
        del self._running[process]
        return status

    def _is_stopping(self) -> bool:
        return self._stopping
