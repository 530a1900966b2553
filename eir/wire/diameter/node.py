"""Diameter node: listeners, the peer table, drain and reconfiguration (RFC 6733 2.1, 5.6.4).

Assembles the modules of this package on an event loop. The application is an argument.
"""

import asyncio
import errno
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eir.errors import DiameterError, EirError, Report
from eir.wire.diameter.admission import (
    Admission,
    Admit,
    Claim,
    Drop,
    Order,
    ProbeOldest,
    Refuse,
    Yield,
)
from eir.wire.diameter.application import Application
from eir.wire.diameter.capabilities import (
    CEA_REFUSED,
    NO_APPLICATION,
    Capabilities,
    certificate_fits,
    find_peer,
    has_common,
    nearest_miss,
)
from eir.wire.diameter.dialer import STAY_AWAY_S, Dialer
from eir.wire.diameter.link import DiameterConnection
from eir.wire.diameter.message import Reply
from eir.wire.diameter.peer import Alive, Arrived, Closed, Event, Leaving, Opened, Peer
from eir.wire.diameter.result import UNKNOWN_PEER
from eir.wire.diameter.serve import TOO_BUSY_REPLY, NodeContext
from eir.wire.diameter.states import State
from eir.wire.diameter.watchdog import JITTER_S, WATCHDOG_LEAST_S
from eir.wire.peers.counts import Counts
from eir.wire.peers.gate import Gate
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.server import DISABLED, DRAINING, SOURCE, End, Server
from eir.wire.peers.settings import Identity, Limits, PeerSettings, Requester, may_connect, setting_for
from eir.wire.peers.status import Failure, PeerStatus
from eir.wire.transport import stream
from eir.wire.transport.begin import SocketListener, open_listener
from eir.wire.transport.endpoint import TLS, endpoint
from eir.wire.transport.settings import SctpSettings
from eir.wire.transport.tls import Tls

if TYPE_CHECKING:
    import ssl

AT_ONCE_S = 1.0
"""Seconds after the CEA within which a peer that closes the connection has rejected the contents of the CEA."""
NAMES_SETTING = "peers: as: {host, realm}"
SETTLED = frozenset({"duplicate", "election_lost", "election", "yielded", "disabled"})
"""Reasons of ends that are no failures: another connection replaces the ended one, or an operator requested the end."""

watchdog_jitter = partial(random.uniform, -JITTER_S, JITTER_S)
"""Return a random time in seconds that is added to the interval of a watchdog (RFC 3539 3.4.1)."""


class Node(Server[DiameterConnection]):
    """Diameter node on the running event loop."""

    def __init__(
        self, identity: Identity, peers: Sequence[PeerSettings], limits: Limits, application: Application, *,
        counts: Counts, report: Report, overload: Reply = TOO_BUSY_REPLY, dials: bool = True, tls: Tls | None = None, rates: RateLimits | None = None, sctp: SctpSettings | None = None,
        stay_away_s: float = STAY_AWAY_S, watchdog_least_s: float = WATCHDOG_LEAST_S, jitter: Callable[[], float] = watchdog_jitter,
        protocol: str = "diameter",
    ) -> None:  # fmt: skip
        """Create a node without listeners.

        `dials` false: no outgoing connections before `dial`.

        `rates`: limits shared with other interfaces; None: own limits. `tls` is for `tls://` in both directions; None: no TLS.
        `sctp` is for `sctp://`; None: the defaults. `stay_away_s`: time for which the node does not connect to a peer that
        refuses it. `watchdog_least_s`, `jitter`: minimum Tw, and seconds added to each interval (RFC 3539 3.4.1). `protocol`:
        name in log events.
        """
        super().__init__(protocol, counts=counts, rates=rates or RateLimits(limits), report=report)
        self.errors = counts.errors
        self.context = NodeContext(
            identity=identity, limits=limits, application=application, counts=counts, report=partial(report, protocol=protocol),
            overload=replace(overload), jitter=jitter, watchdog_least_s=watchdog_least_s,
        )  # fmt: skip
        self._connecting: ssl.SSLContext | None = None
        self._sctp = sctp or SctpSettings()
        self._gate = Gate(self._crowded_out)
        self._taking: set[asyncio.Task[End | None]] = set()
        """Connections of the node's own listeners, including TLS handshakes."""
        self._admission = Admission()
        self._probes: dict[int, asyncio.TimerHandle] = {}
        """Timers of probed connections, by their number."""
        self._failures: dict[str, Failure] = {}
        """Last failure since a connection was opened, by label."""
        self._seen: dict[str, float] = {}
        """Unix time when a connection last opened or closed, by label of configured peers."""
        self._listeners: list[SocketListener] = []
        self._dialer = Dialer(self, self._is_wanted, self._connect_failed, stay_away_s)
        self._dials = dials
        self._use(peers, limits, tls)

    @property
    def identity(self) -> Identity:
        """Names and product data of the node, as in its CER (RFC 6733 5.3)."""
        return self.context.identity

    async def listen(self, url: str) -> tuple[str, int]:
        """Open a listener at a URL; port 0 is any free port.

        Returns:
            Address (the first of several) and port.

        Raises:
            OSError: if the address cannot be bound.
            EirError: if the URL has another form, or is `tls://` without `tls`.
        """
        at = endpoint(url)
        if (secure := at.scheme == TLS) and self._tls is None:
            raise EirError(f"{url} needs a certificate")
        listener = await open_listener(at, partial(self._accepted, secure=secure), self._cannot_accept, self._sctp)
        self._listeners.append(listener)
        return listener.address

    def dial(self) -> None:
        """Start outgoing connections to all peers whose entries have `connect`."""
        self._dials = True
        self.dial_all()

    def reconfigure(
        self, peers: Sequence[PeerSettings], identity: Identity | None = None, limits: Limits | None = None, *,
        overload: Reply | None = None, tls: Tls | None = None, sctp: SctpSettings | None = None,
    ) -> None:  # fmt: skip
        """Apply new settings. Connections that the new settings permit stay open; the node closes all others by a DPR.

        A connection is also closed if its peer is to see another Origin-Host or Origin-Realm of the node. `tls` and `sctp`
        apply to new connections.
        """
        self._sctp = sctp or self._sctp
        for listener in self._listeners:
            listener.apply(self._sctp)
        self.context = replace(
            self.context, identity=identity or self.identity, limits=limits or self.limits, overload=replace(overload or self.context.overload),
        )  # fmt: skip
        self._rates.reconfigure(peers, self.context.limits)
        before = {link: link.settings.lenient for link in self.links.values() if link.settings is not None}
        self._use(peers, self.context.limits, tls)
        taken: dict[tuple[str, str], list[str]] = {}
        for link, forgiven in before.items():
            less = forgiven - link.settings.lenient if link.settings is not None else ()
            if less:
                connections = taken.setdefault((link.requester.label, ",".join(sorted(less))), [])
                connections.append(f"{link.requester.host} at {link.address}")
        for (label, lenient), connections in taken.items():
            self.context.report(
                "lenience_taken", peer=label, level="warning", lenient=lenient, connected=", ".join(connections),
                detail="its connections stay; what was forgiven is an error from now on, in the next CER too",
            )  # fmt: skip

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, send a DPR (REBOOTING) to each peer, and answer until the peers close or `timeout_s` is over.

        Afterwards the node has no connection, no listener and no task.
        """
        self.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self._dialer.close()
        await super().drain(timeout_s)
        await asyncio.gather(*self._taking, return_exceptions=True)

    def status(self) -> list[PeerStatus]:
        """Return a status row for each connection, and for each entry of the peer table without a connection.

        The row of a peer that is not connected has no protocol if the peer makes the connections, because it may use any
        protocol.
        """
        rows = [self.row(link) for link in self.links.values() if link.peer is not None]
        connected = {row.label for row in rows}
        for settings in self.peers:
            if settings.label not in connected and not settings.is_titled:
                state = DISABLED if settings.label in self._disabled else "down"
                known = {"host": settings.host, "realm": settings.realm} | self._past(settings.label)
                if settings.connect is None:
                    known["protocol"] = None
                else:
                    known["direction"] = "out"
                rows.append(self.absent(settings.label, state, **known))
        return rows

    def standing(self, link: DiameterConnection) -> Mapping[str, Any]:
        """Return the Diameter-specific fields of a connection's row in `eir peers`.

        They are state, watchdog state, and last contact and last error of the peer.
        """
        if link.peer is None:
            return {"state": "down"}
        watchdog = "initial" if link.peer.watchdog is None else link.peer.watchdog.status.name.lower()
        return {"state": link.peer.state.name.lower(), "watchdog": watchdog, **self._past(link.requester.label)}

    def _past(self, label: str) -> dict[str, Any]:
        """Return the fields `last_seen`, `last_error` and `last_error_at` of a peer's row in `eir peers`.

        The error is the last failure after the last successful opening of a connection.
        """
        seen = [times[label] for times in (self._seen, self.node_counts.last_request) if label in times]
        failure = self._failures.get(label)
        return {
            "last_seen": max(seen, default=None), "last_error": None if failure is None else failure.text,
            "last_error_at": None if failure is None else failure.at,
        }  # fmt: skip

    def connected(self) -> Counter[str]:
        """Return the count of open connections by peer label. An expected peer without a connection has the count 0."""
        connections = Counter({each.label: 0 for each in self.peers if each.expected and not each.is_titled})
        connections.update(super().connected())
        return connections

    def refusals(self) -> dict[str, Failure]:
        """Return the last rejected connection attempt of each peer that has not connected since; keys are peer labels."""
        return {label: failure for label, failure in self._failures.items() if failure.refusal}

    def newest(self) -> dict[str, float]:
        """Return the Unix time at which each connected peer opened its newest open connection, by label."""
        times: dict[str, float] = {}
        for link in self.links.values():
            if link.is_open:
                times[link.requester.label] = max(times.get(link.requester.label, 0.0), link.opened)
        return times

    def count_retransmissions(self) -> None:
        """Add to the counters the SCTP retransmissions of all connections since the last call."""
        for link in self.links.values():
            self._count_retransmissions(link)

    @property
    def pending(self) -> int:
        """Number of the node's own requests (CER, DWR) without an answer."""
        return sum(link.peer.pending for link in self.links.values() if link.peer is not None)

    # transport.Owner

    def accept(self, link: DiameterConnection) -> Peer | None:
        """Return the state machine for a new connection; None if its source is unknown or a limit is reached."""
        if link.dialed is not None:
            return self._connect(link, link.dialed)
        if link.number not in self.links and not self.admit(link):
            return None
        return link.new_peer(partial(self._identify, link))

    def handle(self, link: DiameterConnection, event: Event) -> None:
        """Handle an event of a connection: inform the admission control, update the peer's status, and log a start or end."""
        match event:
            case Arrived(capabilities, settings):
                self._gate.identified(link)
                who = Requester(settings.label, capabilities.host, capabilities.realm)
                link.identified(settings, who, self._rates.of(settings, self.loop.time()))
                claim = Claim(
                    link.number,
                    capabilities.host,
                    settings.connections,
                    capabilities.origin_state_id or 0,
                    settings.label,
                )
                self._follow(self._admission.arrived(claim))
            case Opened():
                self._opened(link)
            case Leaving():
                self._follow(self._admission.closed(link.number, "leaving"))
            case Alive() if link.number in self._probes:
                self._probes.pop(link.number).cancel()
                self._follow(self._admission.alive(link.number))
            case Closed():
                self._closed(link, event)
            case _:
                pass  # the node sends no application requests, so there is no Answered

    def lost(self, link: DiameterConnection) -> None:
        """Remove a connection whose transport is closed."""
        if self.links.pop(link.number, None) is not None and link.dialed is None:
            self._gate.leave(link)

    # server.Server

    def link(self) -> DiameterConnection:
        """Create the protocol object for a new incoming connection."""
        return DiameterConnection(self, self.loop)

    def may_shake_hands(self, link: DiameterConnection) -> bool:
        """Accept or reject a connection before its costly TLS handshake; return true if it is accepted. A rejection is logged."""
        return self.admit(link)

    def refusal(self, link: DiameterConnection, fault: str | None = None) -> str | None:
        """Return the reason to reject a connection: unknown source, reached limit, drain, or `fault`. Return None to accept the connection.

        The peer is unknown before its CER.
        """
        refusal = self._gate.sources.refusal(link.source, self.peers, self.limits, len(self.links))
        return refusal or (DRAINING if self.draining else fault)

    def enter(self, link: DiameterConnection) -> None:
        """Add a connection to the node's table. An incoming connection also counts for the limits of its source."""
        super().enter(link)
        if link.dialed is None:
            self._gate.enter(link, self.peers, self.limits)

    def send_away(self, link: DiameterConnection, why: str) -> None:
        """End a connection by a DPR, or abort its handshake."""
        link.leave(why)

    def reconsider(self, link: DiameterConnection) -> None:
        """Apply new settings to an open connection, or close the connection if the settings no longer permit its peer."""
        if (peer := link.peer) is None:
            return
        now, capabilities = self.loop.time(), peer.capabilities
        if capabilities is None:
            peer.configure(self.context, None, now)
            if not may_connect(self.peers, link.source):
                peer.drop(SOURCE, now)
            link.pump()
            return
        settings = find_peer(self.peers, capabilities.host, capabilities.realm, link.source)
        if settings is None:
            self.send_away(link, "removed")
            return
        names, shown = link.names, (settings.as_host or self.identity.host, settings.as_realm or self.identity.realm)
        if names is not None and not certificate_fits(names, capabilities, settings):
            self.send_away(link, "tls_name")
        elif (peer.traffic.names.host, peer.traffic.names.realm) != shown:
            self.send_away(link, "renamed")
        else:
            peer.configure(self.context, settings, now)
            link.identified(
                settings,
                Requester(settings.label, capabilities.host, capabilities.realm),
                self._rates.of(settings, now),
            )
            link.pump()

    def dial_all(self) -> None:
        """Start outgoing connections to all enabled peers whose entries have `connect`; stop all other attempts."""
        wanted = self.peers if self._dials and not self.draining else ()
        self._dialer.dial(
            [each for each in wanted if each.connect is not None and each.label not in self._disabled], self._connecting, self._sctp
        )  # fmt: skip

    def _use(self, peers: Sequence[PeerSettings], limits: Limits, tls: Tls | None) -> None:
        """Apply new settings to listeners, connections and outgoing attempts. Without `tls`, the TLS contexts do not change."""
        if tls is not None:
            self._connecting = tls.connecting
        self.use(peers, limits, self._tls if tls is None else tls.accepting)
        self.dial_all()

    # Incoming connections

    def _accepted(self, connection: socket.socket, *, secure: bool) -> None:
        """Start a task for a connection that a listener accepted."""
        task = asyncio.get_running_loop().create_task(self.serve(connection, secure=secure))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _cannot_accept(self, fault: OSError) -> None:
        """Count and log that no connection can be accepted, for lack of file descriptors or memory.

        Meanwhile new connections wait in the kernel's queue.
        """
        self.context.counts.errors["accept_failed"] += 1
        name = errno.errorcode.get(fault.errno or 0, "other")
        self.context.report("accept_failed", level="error", reason=name, detail=fault.strerror)

    # Outgoing connections

    def _is_wanted(self, settings: PeerSettings) -> bool:
        """Return true if the node may connect to this peer: no connection with the peer exists, and attempts are not paused."""
        peers = [
            link.peer for link in self.links.values() if link.peer is not None and link.peer.state is not State.CLOSED
        ]
        if any(peer.settings is not None and peer.settings.connect == settings.connect for peer in peers):
            return False
        return self._admission.may_dial(settings.host, settings.label, self.loop.time())

    def _stay_away(self, label: str) -> None:
        """Pause outgoing connections to a peer, because it has no common application with the node and would reject the CER."""
        self._admission.stay_away(label, self.loop.time() + self._dialer.stay_away_s)

    def _connect_failed(self, settings: PeerSettings, fault: Exception) -> None:
        secure = settings.connect is not None and endpoint(settings.connect).scheme == TLS
        self._cannot_connect(
            settings, type(fault).__name__, stream.fault_text(fault, secure=secure), address=settings.connect
        )

    def _cannot_connect(self, settings: PeerSettings, reason: str, detail: str, *, address: str | None) -> None:
        self._failures[settings.label] = Failure(time.time(), detail, refusal=False)
        self.context.report(
            "connect_failed", peer=settings.label, reason=reason, level="warning", detail=detail, address=address
        )

    def _connect(self, link: DiameterConnection, settings: PeerSettings) -> Peer:
        """Send the CER on an outgoing connection whose transport is connected, and return its state machine."""
        self.enter(link)
        peer, now = link.new_peer(partial(self._identify, link)), self.loop.time()
        link.identified(settings, Requester(settings.label), self._rates.of(settings, now))
        peer.connect(settings, now)
        if settings.host is not None:
            self._follow(self._admission.dialing(link.number, settings.host, peer.traffic.names.host))
        return peer

    # Connections and the peer table

    def _identify(self, link: DiameterConnection, capabilities: Capabilities) -> PeerSettings:
        """Return the entry in the peer table for the sender of a CER or CEA (RFC 6733 5.3, 5.6).

        Raises:
            DiameterError: 3010 if no entry matches.
        """
        settings = find_peer(self.peers, capabilities.host, capabilities.realm, link.source)
        if settings is None:
            entry, but = nearest_miss(self.peers, capabilities, link.source)
            detail = f"no entry of the peer table fits {link.address}" + (
                f"; {entry} would, but for its {but}" if entry else ""
            )
            raise DiameterError(UNKNOWN_PEER, "unknown_peer", detail, nearest=entry)
        reason = detail = ""
        names = link.names
        if capabilities.host.lower() in {self.identity.host.lower(), (settings.as_host or "").lower()}:
            reason, detail = "own_origin_host", "it calls itself by our own name"
        elif settings.label in self._disabled:
            reason, detail = "disabled", f"the peer is out of service until eir peer enable {settings.label}"
        elif names is not None and not certificate_fits(names, capabilities, settings):
            reason, detail = "tls_name", f"its certificate is for {', '.join(names) or 'nobody'}"
        if reason:
            raise DiameterError(UNKNOWN_PEER, reason, detail, entry=settings.label)
        return settings

    def _obey(self, order: Order) -> None:
        """Execute an order of the admission control, such as to admit or close a connection."""
        link = self.links.get(order.connection)
        if link is None or link.peer is None:
            return  # the connection has closed, and the admission has been notified
        peer, now = link.peer, self.loop.time()
        match order:
            case Admit(_, failed_before):
                if peer.settings is not None:
                    peer.admit(now, failed_before=failed_before)
            case Refuse(_, result_code, reason, detail):
                peer.refuse(DiameterError(result_code, reason, detail), now)
            case ProbeOldest():
                loop = asyncio.get_running_loop()
                self._probes[link.number] = loop.call_later(self.context.limits.duplicate_probe_s, self._silent, link)
                peer.probe(now)
            case Drop():
                self._drop(link, order.reason)
            case Yield():
                link.leave("yielded")
        link.pump()

    def _follow(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self._obey(order)

    def _silent(self, link: DiameterConnection) -> None:
        """Close a connection that answered no DWR in time, so that a new connection of the same peer replaces it."""
        if self._probes.pop(link.number, None) is not None:
            self._drop(link, "duplicate_silent")

    def _opened(self, link: DiameterConnection) -> None:
        peer = link.peer
        if peer is None or peer.capabilities is None or peer.settings is None:
            return
        capabilities = peer.capabilities
        if link.dialed is not None:
            link.identified(
                peer.settings, Requester(peer.settings.label, capabilities.host, capabilities.realm), link.rates
            )
        self._seen[link.requester.label] = link.opened
        self._failures.pop(link.requester.label, None)
        self.opened(link)
        if link.dialed is not None:
            self._follow(self._admission.opened(link.number, capabilities.host, capabilities.origin_state_id or 0))

    def _closed(self, link: DiameterConnection, event: Closed) -> None:
        peer = link.peer
        if (timer := self._probes.pop(link.number, None)) is not None:
            timer.cancel()
        self._count_retransmissions(link)
        if event.entry is not None:
            self._failures[event.entry] = Failure(
                time.time(), event.detail or event.reason, refusal=event.reason not in SETTLED
            )
        if event.entry is not None and event.reason == NO_APPLICATION:
            self._stay_away(event.entry)
        if link.dialed is not None and peer is not None and peer.settings is not None:
            self._dial_ended(link, peer, peer.settings, event)
        if peer is not None and peer.capabilities is not None and peer.watchdog is not None:
            if peer.settings is not None and not has_common(peer.capabilities, self.context.application.id):
                self._stay_away(peer.settings.label)  # The node tolerated the missing application; the peer would not.
            label, now = peer.traffic.label, time.time()
            self._seen[label] = now
            about = {"peer": label, "reason": event.reason, "host": peer.capabilities.host, "address": link.address}
            turned_away = (
                link.dialed is None and event.reason == "peer_closed" and not peer.leaving and not peer.traffic.requests
            )
            if turned_away and now - link.opened < AT_ONCE_S:
                ours = peer.traffic.names.host
                detail = f"it closed the connection at once after our CEA with Origin-Host {ours}: does it expect another name of ours?"
                self._failures[label] = Failure(now, f"{detail} (setting: as)", refusal=True)
                self.context.report(
                    "peer_closed", **about, level="warning", detail=detail, origin_host=ours, setting=NAMES_SETTING
                )
            else:
                self.context.report("peer_closed", **about)
        self._follow(self._admission.closed(link.number, event.reason))

    def _dial_ended(self, link: DiameterConnection, peer: Peer, settings: PeerSettings, event: Closed) -> None:
        """Record why an outgoing connection has failed. If the peer has rejected the CER, pause further attempts."""
        if event.entry is None and event.reason not in SETTLED:
            self._failures[settings.label] = Failure(time.time(), event.detail or event.reason, refusal=False)
        if event.reason == CEA_REFUSED:
            self._dialer.stay_away(settings)
        elif event.reason == "peer_closed" and peer.watchdog is None:
            # In TLS 1.3 the client's handshake ends before the server has verified the client's certificate.
            fault = link.fault or ConnectionResetError("it closed the connection without a CEA")
            reason = "tls_handshake" if peer.secure else event.reason
            self._cannot_connect(settings, reason, stream.fault_text(fault, secure=peer.secure), address=link.address)

    def _count_retransmissions(self, link: DiameterConnection) -> None:
        if link.peer is not None and (again := link.retransmitted()):
            self.context.counts.sctp_retransmissions[link.peer.traffic.label] += again

    def _crowded_out(self, link: DiameterConnection, reason: str) -> None:
        """Close a connection that has sent no CER, because too many such connections are open."""
        self.refused(
            reason,
            address=link.address,
            setting=setting_for(reason),
            detail="it has sent no CER, and there are too many such",
        )
        self._end(link, reason)

    def _drop(self, link: DiameterConnection, reason: str) -> None:
        self.context.counts.errors[reason] += 1
        self._end(link, reason)

    def _end(self, link: DiameterConnection, reason: str) -> None:
        if link.peer is not None:
            link.peer.drop(reason, self.loop.time())
            link.pump()
        else:
            link.abort()
