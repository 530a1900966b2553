"""Services process: it serves the HTTP/1.1 interfaces that do not answer checks, such as the feed.

Each interface with `Interface.service` and a listener is served, all in one process. The manager opens the listeners, so that
connections wait in them while the process restarts. `Services` is the part of the manager, `run` the main function of the process.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name

from eir.config import Config
from eir.errors import EirError, Report, detail_of
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Interface, NodeCalls, Service
from eir.node.observe import metrics
from eir.node.processes.child import BESIDE_NICE, Child, Process, Start
from eir.node.processes.configuration import Loaded
from eir.node.processes.listeners import Listeners, OpenListener, send_listeners
from eir.node.processes.process import ThisProcess, run_process
from eir.schema import DETAILS
from eir.wire.peers.settings import is_from
from eir.wire.transport import stream
from eir.wire.transport.begin import SocketListener
from eir.wire.transport.endpoint import is_secure
from eir.wire.transport.settings import source_address
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.http1_server import HttpConnections, HttpLimits

NAME = "services"
SERVED = tuple(each for each in INTERFACES if each.service)
"""Interfaces that this process serves if they have a listener."""
LIMITS = HttpLimits(request_s=10.0, idle_s=300.0, requests_max=100_000, connections_max=512)
HANDSHAKES_MAX = 64
"""Maximum number of open TLS handshakes of an interface. A further one replaces the oldest handshake of the address that has the most."""
POLL_S = 1.0
"""Seconds between two reads of the files of the interfaces."""
PROCESS, FILES = "process", "files"
"""Parts of an interface in its faults: its service in this process, or any of its files."""
DRAIN_S = 3.0
"""Maximum seconds for pending answers at the end of the process."""
ENDED = {PROCESS: "it has ended and was not replaced; see the log"}


class Services:
    """Object in the manager that starts the services process, and stores the faults of the interfaces in it."""

    def __init__(
        self, loaded: Callable[[], Loaded], start: Start, listeners: Listeners, *, node: NodeCalls, report: Report
    ) -> None:
        self._loaded = loaded
        self._listeners = listeners
        self._report = report
        self.child = Child(
            NAME, partial(start, NAME, f"{__name__}:run", nice=BESIDE_NICE), report=report, greet=self._greet,
            handlers=lambda _: {"faults": self._faults.__setitem__, **node._asdict()}, left=self._leave,
        )  # fmt: skip
        self._faults: dict[str, Mapping[str, str]] = {}
        """Faults by interface, as in Service.faults, and `process` while the interface is not served."""

    @property
    def served(self) -> list[str]:
        """Names of the interfaces that have a listener."""
        return [each.name for each in SERVED if self._loaded().config.of(each).listen]

    def addresses(self) -> dict[str, list[str]]:
        """Return the open listeners by interface, as URLs with their bound addresses."""
        addresses = {each.name: self._listeners.addresses({each.name}) for each in SERVED}
        return {name: urls for name, urls in addresses.items() if urls}

    async def apply(self, opened: Sequence[OpenListener]) -> None:
        """Let the process apply the settings in force, and accept connections from new listeners, as Child.apply."""
        loaded = self._loaded()
        await self.child.apply(loaded.config, loaded.tls)
        if self.child.channel is not None:
            send_listeners(self.child.channel, [each for each in opened if each.interface in self.served])

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the interfaces' metrics, by metric name and label values."""
        faults = {(name, part): fault for name, parts in self._faults.items() for part, fault in parts.items()}
        details = metrics.details("EirInterfaceFaulty", {" ".join(place): fault for place, fault in faults.items()})
        own: metrics.Snapshot = {"eir_interface_faulty": dict.fromkeys(faults, 1.0), DETAILS: details}
        return metrics.merge([own, self.child.snapshot()])

    def _greet(self, process: Process) -> None:
        loaded = self._loaded()
        process.channel.notify("apply", loaded.config, loaded.tls)
        self._listeners.send(process.channel, self.served)

    def _leave(self, _: Process) -> None:
        self._faults = dict.fromkeys(self.served, ENDED)


# In the services process


def run(end: socket.socket) -> int:
    """Run the services process until SIGTERM, or until its channel closes; return the exit status."""
    return run_process(end, _serve)


async def _serve(process: ThisProcess) -> None:
    served = {each.name: ServedInterface(each, process) for each in SERVED}

    def apply(config: Config, tls: TlsFiles | None) -> None:
        process.log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
        for each in served.values():
            each.apply(config, tls)

    def counters() -> metrics.Snapshot:
        return metrics.merge([each.counters() for each in served.values()])

    async def read_files() -> None:
        for each in served.values():
            await each.read_files()

    process.serve({
        "apply": apply, "listen": lambda name, *listener: served[name].listen(*listener), "counters": counters,
    })  # fmt: skip
    process.jobs.start("files", POLL_S, read_files)
    await process.stop.wait()
    await asyncio.gather(*(each.drain() for each in served.values()))
    await process.until_stopped()
    for each in served.values():
        await each.close()


class ServedInterface:
    """HTTP/1.1 interface in the services process: its service, listeners and connections.

    A service that cannot start is a fault of this interface alone. Its start is repeated, and its clients wait in the listeners.
    """

    def __init__(self, interface: Interface, process: ThisProcess) -> None:
        self._interface = interface
        self._process = process
        self._log = process.log
        self._settings: tuple[Config, TlsFiles | None] | None = None
        """Last settings of the manager; None: the interface has no listener."""
        self._service: Service | None = None
        self._links: HttpConnections | None = None
        self._tls: ssl.SSLContext | None = None
        self._sockets: list[tuple[str, socket.socket]] = []
        """URL and socket of each listener that waits for the start of the service."""
        self._listeners: list[tuple[str, SocketListener]] = []
        self._turns = stream.Handshakes()
        self._handshakes: dict[socket.socket, str] = {}
        """Address of each connection in its TLS handshake, the oldest first."""
        self._sent_faults: Mapping[str, str] | None = None
        """Faults that were sent to the manager last."""
        self._ended: Counter[str] = Counter()
        """Number of connections that were rejected, or closed for a fault, by reason."""

    def apply(self, config: Config, tls: TlsFiles | None) -> None:
        """Apply new settings. They start the service if the interface has a listener."""
        settings = config.of(self._interface)
        self._close_listeners_except(settings.listen)
        if self._service is not None:
            self._service.apply(settings, config)
            self._tls = _context(tls, self._service)
            links = [] if self._links is None else list(self._links.links)
            for link in links:
                if not self._admits(link.address):
                    link.drain()
        elif settings.listen:
            self._settings = config, tls
            self._start()

    def listen(self, url: str, descriptor: int | None) -> None:
        """Accept connections from a listening socket, as soon as the service runs."""
        if descriptor is None:
            self._process.fail(NAME, EirError(f"no file descriptor is left for {url}; raise LimitNOFILE="))
            return
        self._sockets.append((url, socket.socket(fileno=descriptor)))
        self._accept_connections()

    async def drain(self) -> None:
        """Close the listeners, and answer pending requests for at most DRAIN_S."""
        self._close_listeners_except([])
        if self._links is not None:
            await self._links.drain(DRAIN_S)

    async def close(self) -> None:
        """Close the interface's service."""
        if self._service is not None:
            await self._service.close()

    async def read_files(self) -> None:
        """Let the service read and apply its changed files. A service that could not start is started.

        Each new fault is logged, and all faults are sent to the manager.
        """
        if self._service is None:
            self._start()
        if self._service is None:
            return
        faults = dict[str, str]()
        try:
            apply = await asyncio.to_thread(self._service.read_files)
            apply()
        except Exception as e:  # noqa: BLE001 - any exception is a fault of the files
            faults[FILES] = detail_of(e)
        self._send_faults(faults | dict(self._service.faults))

    def counters(self) -> metrics.Snapshot:
        """Return the counters of the interface, by metric name and label values."""
        if self._service is None:
            return {}
        refused = {(self._interface.name, reason): count for reason, count in self._ended.items()}
        return {**self._service.counters(), "eir_clients_refused_total": refused}

    def _start(self) -> None:
        if self._settings is None:
            return
        config, tls = self._settings
        node = NodeCalls(*(partial(self._process.channel.ask, name) for name in NodeCalls._fields))
        try:
            service = resolve_name(self._interface.service)(config.of(self._interface), config, self._log.report, node)
            self._tls = _context(tls, service)
        except Exception as e:  # noqa: BLE001 - a fault of one interface must not end the others
            self._send_faults({PROCESS: detail_of(e)})
            return
        self._service = service
        limits = replace(LIMITS, request_body_max=service.request_body_max)
        self._links = HttpConnections(service.respond, limits=limits, refuse=service.refuse, ended=self._log_end)
        self._process.jobs.spawn(service.work())
        self._accept_connections()

    def _send_faults(self, faults: Mapping[str, str]) -> None:
        logged = self._sent_faults or {}
        name = self._interface.name
        for part, fault in faults.items() - logged.items():
            if part == PROCESS:
                self._log.report("fault", reason=name, level="error", detail=fault)
            else:
                self._log.report("access_file_refused", level="error", interface=name, file=part, detail=fault)
        if faults != self._sent_faults:
            self._process.channel.notify("faults", name, faults)
        self._sent_faults = faults

    # Connections

    def _accept_connections(self) -> None:
        if self._service is None:
            return
        loop = asyncio.get_running_loop()
        for url, listening in self._sockets:
            handle = partial(self._handle_connection, secure=is_secure(url))
            self._listeners.append((url, SocketListener(loop, [listening], handle, self._cannot_accept)))
        self._sockets.clear()

    def _close_listeners_except(self, urls: Sequence[str]) -> None:
        for url, listener in self._listeners:
            if url not in urls:
                listener.close()
        self._listeners = [each for each in self._listeners if each[0] in urls]

    def _handle_connection(self, connection: socket.socket, *, secure: bool) -> None:
        links = self._links
        try:
            host = str(connection.getpeername()[0])
        except OSError:
            connection.close()
            return
        if links is None or not self._admits(host):
            self._reject(connection, host, "source")
        elif secure and self._tls is None:
            self._reject(connection, host, "tls_handshake")
        else:
            self._process.jobs.spawn(self._accept(links, connection, host, self._tls if secure else None))

    def _admits(self, host: str) -> bool:
        """Return true if the settings permit clients at this address to connect."""
        return self._service is not None and is_from(self._service.peers, source_address(host))

    async def _accept(
        self, links: HttpConnections, connection: socket.socket, host: str, tls: ssl.SSLContext | None
    ) -> None:
        if tls is not None:
            self._make_room()
            self._handshakes[connection] = host
        try:
            if tls is None:
                await stream.accept(links.create_connection(), connection)
            else:
                await self._turns.accept(links.create_connection(), connection, tls, LIMITS.request_s)
        except OSError as e:
            connection.close()
            if tls is None or connection in self._handshakes:  # otherwise _make_room has logged the reason
                self._log_end(host, "tls_handshake", stream.fault_text(e, secure=tls is not None))
        finally:
            self._handshakes.pop(connection, None)

    def _make_room(self) -> None:
        """End one TLS handshake if HANDSHAKES_MAX handshakes are open, so that handshakes cannot block other clients."""
        if len(self._handshakes) < HANDSHAKES_MAX:
            return
        ((address, _),) = Counter(self._handshakes.values()).most_common(1)
        oldest = next(connection for connection, host in self._handshakes.items() if host == address)
        del self._handshakes[oldest]
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)
        self._log_end(address, "handshakes")

    def _reject(self, connection: socket.socket, host: str, reason: str) -> None:
        connection.close()
        self._log_end(host, reason)

    def _log_end(self, host: str, reason: str, detail: str | None = None) -> None:
        self._ended[reason] += 1
        setting = f"{self._interface.section}.from" if reason == "source" else None
        self._log.report(
            "client_refused", reason=reason, level="warning", interface=self._interface.name, address=host, setting=setting,
            detail=detail,
        )  # fmt: skip

    def _cannot_accept(self, fault: OSError) -> None:
        self._ended["accept_failed"] += 1
        self._log.report("accept_failed", level="error", reason="other", detail=fault.strerror)


def _context(files: TlsFiles | None, service: Service) -> ssl.SSLContext | None:
    """Return the TLS context of a service; a client may send a certificate if the service reads certificates."""
    if files is None:
        return None
    context = load_tls(files).passwords
    if service.reads_certificates:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
