"""Interfaces over HTTP/1.1 beside the checks: each has a process of its own, which answers no check and stands back behind them.

The front opens the listeners, so that connections wait in them while such a process ends and comes back, and hands it these and the
configuration. `Interface` is the front's part; `run` is the process. What it serves is a `Service`.
"""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import uvloop

from eir.config import Config
from eir.errors import Report, detail_of
from eir.node.observe import metrics
from eir.node.observe.log import Log, call_failed, report_faults
from eir.node.processes.accept import cannot_listen
from eir.node.processes.channel import Channel
from eir.node.processes.child import Child
from eir.node.processes.priority import BESIDE_NICE, Aside, give_way, stay_aside
from eir.node.processes.starter import Process, Start
from eir.wire.peers.settings import PeerSettings, is_from
from eir.wire.transport import stream
from eir.wire.transport.begin import Listener, listening_sockets
from eir.wire.transport.endpoint import address_text, is_secure, listening_at
from eir.wire.transport.settings import source_address
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.http1 import Request, Response
from eir.wire.web.http1_server import Answer, HttpLimits, HttpLinks

LIMITS = HttpLimits(request_s=10.0, idle_s=300.0, requests_max=100_000, connections_max=512, request_body_max=4096)
HANDSHAKES_MAX = 64
"""TLS handshakes at once; for a further one the oldest of the address that has most of them is ended."""
LOOK_S = 1.0
"""Interval between two looks at files that the configuration names."""
PROCESS, FILES = "process", "files"
"""Parts of an interface that may be faulty: its process; files that it goes by, where it does not tell them apart."""
DRAIN_S = 3.0
"""Time that answers under way have to finish when the process ends."""


class Configured(NamedTuple):
    """Settings that the front gives to such a process, at its start and at each reload."""

    config: Config
    tls: TlsFiles | None


class Service(Protocol):
    """The service behind an interface. Made in its process, on the event loop."""

    peers: PeerSettings
    """Peers that may connect, by address."""
    faults: Mapping[str, str]
    """Files that cannot be used, as the last looks found → why; what was read of them before stays in use."""

    def configure(self, config: Config) -> None:
        """Go by another configuration from now on."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; never raises."""

    def refuse(self, status: int) -> Response:
        """The answer to what is no request."""

    def work(self) -> Coroutine[Any, Any, None]:
        """Work to do beside the answers, until it is cancelled."""

    def look(self) -> Callable[[], None]:
        """Look whether files have changed that the configuration names, and read those; in a thread beside the loop. Raises EirError.

        What comes back puts in force what was read; it is called on the loop.
        """

    def counters(self) -> metrics.Snapshot:
        """Return the counters of the service."""

    async def close(self) -> None:
        """Let go of everything."""


Make = Callable[[Config, Report], Service]
"""Makes the service; can be pickled."""


class Interface:
    """An interface as the front has it. `name`: as logs, metrics and `ps` call it; `urls`: where it listens."""

    def __init__(
        self, name: str, make: Make, urls: Callable[[Config], tuple[str, ...]], start: Start, *, report: Report
    ) -> None:
        self.name, self.urls, self._report = name, urls, report
        self.child = Child(
            name,
            lambda: start(name, run, name, make),
            report=report,
            greet=self._greet,
            handlers=lambda _: {"faults": self._set_faults},
            left=lambda _: self._set_faults({PROCESS: "it has ended, and none has come in its place; see the log"}),
        )
        self._sockets: list[tuple[str, socket.socket]] = []
        self._configured: Configured | None = None
        self._faults: Mapping[str, str] = {}
        """As Service.faults; `process` from the end of a process until the next one serves."""

    async def open(self, configured: Configured) -> list[str]:
        """Open the listeners; returns their URLs with the addresses that they have. Raises EirError if one cannot be had."""
        self._configured = configured
        bound = []
        for url in self.urls(configured.config):
            try:
                sockets = await listening_sockets(listening_at(url))
            except OSError as e:
                raise cannot_listen(url, e) from None
            self._sockets += [(url, each) for each in sockets]
            host, port = sockets[0].getsockname()[:2]
            bound.append(f"{url.partition('://')[0]}://{address_text([str(host)], int(port))}")
        for address in bound:
            self._report("listening", address=address, interface=self.name)
        return bound

    def configure(self, configured: Configured) -> None:
        """Go by another configuration; where it listens takes a restart."""
        self._configured = configured
        self.child.notify("configure", configured)

    def snapshot(self) -> metrics.Snapshot:
        """Return all its numbers, for a scrape."""
        faults: metrics.Snapshot = {"eir_interface_faulty": {(self.name, part): 1.0 for part in self._faults}}
        return metrics.merge([faults, self.child.snapshot()])

    def troubles(self) -> list[str]:
        """Return warnings for `eir status`."""
        return [f"{self.name}: {part} cannot be used ({why})" for part, why in self._faults.items()]

    def stop(self) -> None:
        """Have the process end after the answers under way; close the listeners."""
        self.child.stop()
        for _, each in self._sockets:
            each.close()
        self._sockets.clear()

    def _greet(self, process: Process) -> None:
        process.channel.tell("configure", self._configured)
        for url, listening in self._sockets:
            process.channel.tell("listen", url, carrying=[listening])

    def _set_faults(self, faults: Mapping[str, str]) -> None:
        self._faults = faults


# In such a process


def run(end: socket.socket, name: str, make: Make) -> int:
    """Be that process until SIGTERM, or until its channel ends. Returns the exit status."""
    give_way(BESIDE_NICE)
    return uvloop.run(_serve(end, name, make))


async def _serve(end: socket.socket, name: str, make: Make) -> int:
    log = Log(time.monotonic)
    loop, stop, channel = asyncio.get_running_loop(), asyncio.Event(), Channel(end)
    report_faults(log.report)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    process = _Process(name, make, log, partial(channel.tell, "faults"))
    serving = asyncio.create_task(channel.serve(process.handlers(), failed=call_failed(log.report)))
    serving.add_done_callback(lambda _: stop.set())
    process.failed = stop.set
    await stop.wait()
    serving.cancel()
    await process.close()
    channel.close()
    log.close()
    return int(process.fault)


class _Process:
    """The process at work."""

    def __init__(self, name: str, make: Make, log: Log, tell: Callable[[Mapping[str, str]], None]) -> None:
        self._name, self._make, self._log, self._tell = name, make, log, tell
        self._service: Service | None = None
        self._links: HttpLinks | None = None
        self._tls: Any = None
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[socket.socket, str] = {}
        """Connections in their TLS handshake, the oldest first, and whose each is, by address."""
        self._said: Mapping[str, str] | None = None
        """The faults that the front was told of last."""
        self._ended: Counter[str] = Counter()
        """Connections that were refused, or ended for a fault, by reason."""
        self.failed: Callable[[], object] = lambda: None
        self.fault = False

    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """Return the functions that the front may call, by name."""
        return {"configure": self._configure, "listen": self._listen, "counters": self._counters}

    async def close(self) -> None:
        """Answer what was asked, and let go of everything."""
        for listener in self._listeners:
            listener.close()
        if self._links is not None:
            await self._links.drain(DRAIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._service is not None:
            await self._service.close()

    def _configure(self, configured: Configured) -> None:
        config, tls = configured
        self._log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
        self._tls = None if tls is None else load_tls(tls).passwords
        if self._service is not None:
            self._service.configure(config)
            for link in list(self._links.links) if self._links is not None else ():
                if not self._admits(link.address):
                    link.leave()
            return
        try:
            self._service = self._make(config, self._log.report)
        except Exception as e:  # noqa: BLE001 - whatever it is: it ends the process, which says so
            self._log.report("fault", reason=self._name, level="error", detail=detail_of(e))
            self.fault = True
            self.failed()
            return
        self._links = HttpLinks(self._service.respond, limits=LIMITS, refuse=self._service.refuse, ended=self._lost)
        for work in (self._service.work(), self._look_again(), stay_aside(Aside())):
            self._spawn(work)

    def _listen(self, url: str, descriptor: int | None) -> None:
        if descriptor is None or self._service is None:
            self.fault = True
            self.failed()
            return
        listening = socket.socket(fileno=descriptor)
        secure = is_secure(url)
        self._listeners.append(Listener(
            asyncio.get_running_loop(), [listening], lambda connection: self._accepted(connection, secure=secure), self._cannot_accept
        ))  # fmt: skip

    def _accepted(self, connection: socket.socket, *, secure: bool) -> None:
        links = self._links
        try:
            host = str(connection.getpeername()[0])
        except OSError:
            connection.close()
            return
        if links is None or not self._admits(host):
            self._refused(connection, host, "source")
        elif secure and self._tls is None:
            self._refused(connection, host, "tls_handshake")
        else:
            self._spawn(self._take(links, connection, host, secure=secure))

    def _admits(self, host: str) -> bool:
        """True if clients at this address may connect."""
        return self._service is not None and is_from(self._service.peers, source_address(host))

    async def _take(self, links: HttpLinks, connection: socket.socket, host: str, *, secure: bool) -> None:
        if secure:
            self._make_room()
            self._handshakes[connection] = host
        try:
            await stream.accept(links.link(), connection, self._tls if secure else None, LIMITS.request_s)
        except OSError as e:
            connection.close()
            if not secure or connection in self._handshakes:  # it was told why else
                self._lost(host, "tls_handshake", stream.fault_text(e, secure=secure))
        finally:
            self._handshakes.pop(connection, None)

    def _make_room(self) -> None:
        """End a handshake for another one: holding them open keeps nobody out."""
        if len(self._handshakes) >= HANDSHAKES_MAX:
            ((most, _),) = Counter(self._handshakes.values()).most_common(1)
            oldest = next(each for each, host in self._handshakes.items() if host == most)
            del self._handshakes[oldest]
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
            self._lost(most, "handshakes")

    def _refused(self, connection: socket.socket, host: str, reason: str) -> None:
        connection.close()
        self._lost(host, reason)

    def _lost(self, host: str, reason: str, detail: str | None = None) -> None:
        self._ended[reason] += 1
        setting = f"{self._name.replace('-', '_')}.from" if reason == "source" else None
        self._log.report(
            "client_refused",
            reason=reason,
            level="warning",
            interface=self._name,
            address=host,
            setting=setting,
            detail=detail,
        )

    def _cannot_accept(self, fault: OSError) -> None:
        self._ended["accept_failed"] += 1
        self._log.report("accept_failed", level="error", reason="other", detail=fault.strerror)

    async def _look_again(self) -> None:
        while self._service is not None:
            faults = dict[str, str]()
            try:
                (await asyncio.to_thread(self._service.look))()
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and looks again
                faults[FILES] = detail_of(e)
            faults |= self._service.faults
            for file, why in faults.items() - (self._said or {}).items():
                self._log.report("access_file_refused", level="error", interface=self._name, file=file, detail=why)
            if faults != self._said:
                self._tell(faults)
            self._said = faults
            await asyncio.sleep(LOOK_S)

    def _counters(self) -> metrics.Snapshot:
        if self._service is None:
            return {}
        return {
            **self._service.counters(),
            "eir_clients_refused_total": {(self._name, reason): count for reason, count in self._ended.items()},
        }

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Watched:
    """A file whose content counts, read again when it has changed, and is the same at two looks: half of it might read as another whole."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._taken: tuple[int, ...] | None = None
        self._seen: tuple[int, ...] | None = None
        self._is_first = True

    def changed(self) -> bool:
        """True if the file exists and is another one than when this was true last; a change counts from the second call on that sees it."""
        now = None
        if self.path is not None:
            with suppress(OSError):
                found = self.path.stat()
                now = found.st_ino, found.st_size, found.st_mtime_ns
        is_settled = self._is_first or now == self._seen
        self._is_first, self._seen = False, now
        if now is None or now == self._taken or not is_settled:
            return False
        self._taken = now
        return True
