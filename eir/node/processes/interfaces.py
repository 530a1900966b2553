"""Processes of HTTP/1.1 interfaces that do not answer checks, such as the feed. Their nice value is higher than that of the answering process.

The manager opens the listeners, so that connections wait in them while such a process restarts. It passes listeners and
configuration to the process, which runs an eir.interfaces.interface.Service. `ServiceProcess` is the part of the manager, `run`
the main function of the process.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from typing import Any

from eir.config import Config
from eir.errors import Report, SetupFault, detail_of
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Interface, NodeCalls, Service
from eir.node.observe import metrics
from eir.node.processes.child import BESIDE_NICE, Child, Process, Start
from eir.node.processes.configuration import Loaded
from eir.node.processes.listeners import cannot_listen
from eir.node.processes.process import ThisProcess, run_process
from eir.schema import DETAILS
from eir.wire.peers.settings import is_from
from eir.wire.transport import stream
from eir.wire.transport.begin import SocketListener, listening_sockets
from eir.wire.transport.endpoint import address_text, is_secure, listening_at
from eir.wire.transport.settings import source_address
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.http1_server import HttpConnections, HttpLimits

LIMITS = HttpLimits(request_s=10.0, idle_s=300.0, requests_max=100_000, connections_max=512)
HANDSHAKES_MAX = 64
"""Maximum number of open TLS handshakes. A further one replaces the oldest handshake of the address that has the most."""
POLL_S = 1.0
"""Seconds between two reads of the files of the interface."""
PROCESS, FILES = "process", "files"
"""Parts of an interface in its faults: its process, or any of its files."""
DRAIN_S = 3.0
"""Maximum seconds for pending answers at the end of the process."""


class ServiceProcess:
    """Object in the manager that starts the process of an HTTP/1.1 interface, opens the listeners, and stores the interface's faults."""

    def __init__(self, interface: Interface, start: Start, *, node: NodeCalls, report: Report) -> None:
        self.interface = interface
        self._report = report
        self.child = Child(
            interface.name,
            lambda: start(interface.name, f"{__name__}:run", interface.name, nice=BESIDE_NICE),
            report=report,
            greet=self._greet,
            handlers=lambda _: {"faults": self._set_faults, **node._asdict()},
            left=lambda _: self._set_faults({PROCESS: "it has ended and was not replaced; see the log"}),
        )
        self._sockets: list[tuple[str, socket.socket]] = []
        self.addresses: list[str] = []
        """URLs of the open listeners with their bound addresses."""
        self._loaded: Loaded | None = None
        self._faults: Mapping[str, str] = {}
        """Faults as in Service.faults, and `process` while the process does not run."""

    async def open(self, loaded: Loaded) -> None:
        """Open the listeners of the interface.

        Raises:
            EirError: if a listener cannot be opened.
        """
        self._loaded = loaded
        for url in loaded.config.of(self.interface).listen:
            try:
                sockets = await listening_sockets(listening_at(url))
            except OSError as e:
                raise cannot_listen(url, e) from None
            self._sockets += [(url, each) for each in sockets]
            host, port = sockets[0].getsockname()[:2]
            scheme, _, _ = url.partition("://")
            self.addresses.append(f"{scheme}://{address_text([str(host)], int(port))}")
        for address in self.addresses:
            self._report("listening", address=address, interface=self.interface.name)

    def apply(self, loaded: Loaded) -> None:
        """Apply new settings. Changed listeners take effect after a restart."""
        self._loaded = loaded
        self.child.notify("configure", loaded.config, loaded.tls)

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the interface's metrics, by metric name and label values."""
        faulty = {(self.interface.name, part): 1.0 for part in self._faults}
        details = metrics.details(
            "EirInterfaceFaulty", {f"{self.interface.name} {part}": fault for part, fault in self._faults.items()}
        )
        return metrics.merge([{"eir_interface_faulty": faulty, DETAILS: details}, self.child.snapshot()])

    def stop(self) -> None:
        """Close the listeners, and let the process answer its pending requests before it ends."""
        self.child.stop()
        for _, each in self._sockets:
            each.close()
        self._sockets.clear()

    def _greet(self, process: Process) -> None:
        if self._loaded is not None:
            process.channel.notify("configure", self._loaded.config, self._loaded.tls)
        for url, listening in self._sockets:
            process.channel.notify("listen", url, carrying=[listening])

    def _set_faults(self, faults: Mapping[str, str]) -> None:
        self._faults = faults


# In such a process


def run(end: socket.socket, name: str) -> int:
    """Run the process of an interface until SIGTERM, or until its channel closes; return the exit status."""
    interface = next(each for each in INTERFACES if each.name == name)
    return run_process(end, partial(_serve, interface))


async def _serve(interface: Interface, process: ThisProcess) -> None:
    service = _InterfaceProcess(interface, process)
    process.serve(service.handlers())
    await process.stop.wait()
    await service.drain()
    await process.until_stopped()
    await service.close()


class _InterfaceProcess:
    """HTTP/1.1 interface, as it runs in its own process."""

    def __init__(self, interface: Interface, process: ThisProcess) -> None:
        self._interface = interface
        self._process = process
        self._log = process.log
        self._service: Service | None = None
        self._links: HttpConnections | None = None
        self._tls: ssl.SSLContext | None = None
        self._listeners: list[SocketListener] = []
        self._handshakes: dict[socket.socket, str] = {}
        """Address of each connection in its TLS handshake, the oldest first."""
        self._sent_faults: Mapping[str, str] | None = None
        """Faults that were sent to the manager last."""
        self._ended: Counter[str] = Counter()
        """Number of connections that were rejected, or closed for a fault, by reason."""

    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """Return the functions that the manager may call: map from name to function."""
        return {"configure": self._configure, "listen": self._listen, "counters": self._counters}

    async def drain(self) -> None:
        """Close the listeners, and answer pending requests for at most DRAIN_S."""
        for listener in self._listeners:
            listener.close()
        if self._links is not None:
            await self._links.drain(DRAIN_S)

    async def close(self) -> None:
        """Close the interface's service."""
        if self._service is not None:
            await self._service.close()

    def _configure(self, config: Config, tls: TlsFiles | None) -> None:
        self._log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
        if self._service is not None:
            self._service.apply(config.of(self._interface), config)
            self._tls = _context(tls, self._service)
            links = [] if self._links is None else list(self._links.links)
            for link in links:
                if not self._admits(link.address):
                    link.drain()
            return
        try:
            make = resolve_name(self._interface.service)
            node = NodeCalls(*(partial(self._process.channel.ask, name) for name in NodeCalls._fields))
            self._service = make(config.of(self._interface), config, self._log.report, node)
            self._tls = _context(tls, self._service)
        except Exception as e:  # noqa: BLE001 - a fault ends the process and is logged
            self._process.fail(self._interface.name, e)
            return
        limits = replace(LIMITS, request_body_max=self._service.request_body_max)
        self._links = HttpConnections(
            self._service.respond, limits=limits, refuse=self._service.refuse, ended=self._log_end
        )
        self._process.jobs.spawn(self._service.work())
        self._process.jobs.start("files", POLL_S, self._read_files)

    def _listen(self, url: str, descriptor: int | None) -> None:
        if self._service is None:
            return  # a fault ends the process
        if descriptor is None:
            fault = SetupFault(f"no file descriptor is left for {url}; raise LimitNOFILE=")
            self._process.fail(self._interface.name, fault)
            return
        listening = socket.socket(fileno=descriptor)
        handle = partial(self._handle_connection, secure=is_secure(url))
        loop = asyncio.get_running_loop()
        self._listeners.append(SocketListener(loop, [listening], handle, self._cannot_accept))

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
            self._process.jobs.spawn(self._accept(links, connection, host, secure=secure))

    def _admits(self, host: str) -> bool:
        """Return true if the settings permit clients at this address to connect."""
        return self._service is not None and is_from(self._service.peers, source_address(host))

    async def _accept(self, links: HttpConnections, connection: socket.socket, host: str, *, secure: bool) -> None:
        if secure:
            self._make_room()
            self._handshakes[connection] = host
        try:
            await stream.accept(links.create_connection(), connection, self._tls if secure else None, LIMITS.request_s)
        except OSError as e:
            connection.close()
            if not secure or connection in self._handshakes:  # otherwise _make_room has logged the reason
                self._log_end(host, "tls_handshake", stream.fault_text(e, secure=secure))
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

    async def _read_files(self) -> None:
        """Let the service read and apply its changed files. Log each new fault of a file, and send all faults to the manager."""
        if self._service is None:
            return
        faults = dict[str, str]()
        try:
            apply = await asyncio.to_thread(self._service.read_files)
            apply()
        except Exception as e:  # noqa: BLE001 - any exception is a fault of the files
            faults[FILES] = detail_of(e)
        faults |= self._service.faults
        logged = self._sent_faults or {}
        name = self._interface.name
        for file, fault in faults.items() - logged.items():
            self._log.report("access_file_refused", level="error", interface=name, file=file, detail=fault)
        if faults != self._sent_faults:
            self._process.channel.notify("faults", faults)
        self._sent_faults = faults

    def _counters(self) -> metrics.Snapshot:
        if self._service is None:
            return {}
        name = self._interface.name
        refused = {(name, reason): count for reason, count in self._ended.items()}
        return {**self._service.counters(), "eir_clients_refused_total": refused}


def _context(files: TlsFiles | None, service: Service) -> ssl.SSLContext | None:
    """Return the TLS context of a service; a client may send a certificate if the service reads certificates."""
    if files is None:
        return None
    context = load_tls(files).passwords
    if service.reads_certificates:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
