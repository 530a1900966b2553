"""The node: listeners, the peer table, limits on connections, drain and reconfiguration (RFC 6733 2.1, 5.6.4).

Puts the parts of this package together on an event loop; knows nothing of any application but its callable.
"""

import asyncio
import errno
import itertools
import random
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from eir.diameter.admission import Admit, Claim, Desk, Drop, Order, OwnDesk, Probe, Refuse
from eir.diameter.answer import Reply
from eir.diameter.capabilities import Capabilities, certificate_fits, find_peer, may_connect
from eir.diameter.counts import OTHER, Counts
from eir.diameter.message import Request
from eir.diameter.peer import Alive, Arrived, Closed, DisconnectCause, Event, Leaving, Opened, Peer
from eir.diameter.rate import Bucket, Grants, Limit
from eir.diameter.serve import TOO_BUSY_REPLY, Application, Lane, Surroundings
from eir.diameter.settings import Identity, Limits, PeerSettings
from eir.diameter.states import State
from eir.diameter.transport.link import Link
from eir.diameter.transport.listen import Listener, open_listener
from eir.diameter.transport.tls import Tls
from eir.diameter.watchdog import JITTER_S
from eir.errors import DiameterError, EirError, Report

__all__ = [
    "Application", "Counts", "Identity", "Limits", "Node", "PeerSettings", "PeerStatus", "Reply", "Report", "Request",
]  # fmt: skip

UNKNOWN_PEER = 3010

DIAMETER_PORT, DIAMETER_TLS_PORT = 3868, 5868
CONNECT_TIMEOUT_S = 10.0
ADMITTING = {"source": "peers: from", "draining": None, "no_worker": None}
"""Why a connection is refused → the setting that would have taken it, where it is not the limit of that name."""
NETWORK_BITS = {4: 24, 6: 64}
"""By IP version: bits of an address that name its source network."""

Network = tuple[int, int]
"""IP version, and those bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One connection as `eir peers` shows it, or a configured peer that has none."""

    label: str
    host: str | None
    """Origin-Host; None before the CER."""
    realm: str | None
    address: str | None
    """`ip:port` of the peer's side; None without a connection."""
    state: str
    """The connection's state in lower case (`open`, `wait_cer`, …); `down` or `disabled` without one."""
    since: float | None
    """Unix time since when the connection stands; None without one."""
    requests: int
    """Application requests received."""
    answers: int
    """Answers to them sent."""
    watchdog: str
    """okay, suspect, down, reopen or initial (RFC 3539 3.4.1)."""
    direction: str
    """`out` where we connect to the peer, `in` where it connects to us."""
    last_error: str | None = None
    """Why we have no connection to a peer that we connect to; None since one is open."""
    last_seen: float | None = None
    """Unix time of the last request, or of the beginning or end of a connection if that is later; None: never so far."""


class Node:
    """One Diameter node on the running event loop."""

    def __init__(
        self,
        identity: Identity,
        peers: Sequence[PeerSettings],
        limits: Limits,
        application: Application,
        *,
        counts: Counts,
        report: Report,
        application_id: int = 16777252,
        lane: Callable[[str, bytes, Reply], Lane] | None = None,
        overload: Reply = TOO_BUSY_REPLY,
        desk: Desk | None = None,
        dials: bool = True,
        tls: Tls | None = None,
        grants: Grants | None = None,
    ) -> None:
        self.surroundings = Surroundings(
            identity=identity, limits=limits, application=application, application_id=application_id, lane=lane, counts=counts,
            report=report, overload=replace(overload), jitter=_jitter,
        )  # fmt: skip
        self._peers = tuple(peers)
        self._tls = tls
        """For `tls://` both ways; None: there is none."""
        self._links: dict[Link, None] = {}
        """All connections, the oldest first; `peer` is None while one is in its TLS handshake."""
        self._unidentified: dict[Link, None] = {}
        """Those of which no good CER has come yet, the oldest first."""
        self._trimming: asyncio.Handle | None = None
        self._sources: Counter[Network] = Counter()
        """Connections that others made, by source network."""
        self._taking: set[asyncio.Task[Link | None]] = set()
        """Beginnings of connections by our own listeners, TLS handshakes included."""
        self._desk = desk or OwnDesk(self.obey)
        """Decides which connections of a peer are wanted."""
        self._numbers = itertools.count()
        self._named: dict[int, Link] = {}
        """Connections by the number that the desk knows them by."""
        self._probes: dict[int, asyncio.TimerHandle] = {}
        """Connections that were asked for a sign of life, until when."""
        self._disabled: set[str] = set()
        self._failures: dict[str, str] = {}
        """By label of peers that we connect to: why there is no connection."""
        self._seen: dict[str, float] = {}
        """By label of configured peers: when a connection last began or ended."""
        self._grants = grants
        """Where the node's limits on requests a second are those of several workers together."""
        self._buckets: dict[str, Bucket] = {}
        self._all: Bucket | None = None
        self._listeners: list[Listener] = []
        self._dialers: dict[PeerSettings, asyncio.Task[None]] = {}
        self._draining = False
        self._dials = dials
        """False: nobody is connected to until `dial`, or `connect` of peers is another worker's business."""
        self._dial_all()

    @property
    def identity(self) -> Identity:
        """Who the node is."""
        return self.surroundings.identity

    @property
    def limits(self) -> Limits:
        """How far the node goes."""
        return self.surroundings.limits

    async def listen(self, url: str) -> tuple[str, int]:
        """Open a listener at `tcp://host:port` or `tls://host:port` (port 0: any free one); return its address and port.

        Raises OSError if the address cannot be had, EirError for another form, or for the second one without `tls`.
        """
        host, port, secure = endpoint(url)
        if secure and self._tls is None:
            raise EirError(f"{url} needs a certificate")
        listener = await open_listener(host, port, partial(self._knocked, secure=secure), self._cannot_accept)
        self._listeners.append(listener)
        return listener.address

    async def take(self, connection: socket.socket, *, secure: bool = False) -> None:
        """Serve a connection that was accepted, until it is gone. `secure`: it begins with a TLS handshake."""
        link = await self._begin(connection, secure=secure)
        if link is not None:
            await link.closed

    async def _begin(self, connection: socket.socket, *, secure: bool) -> Link | None:
        """Put a connection on the loop; None if it came to nothing."""
        loop = asyncio.get_running_loop()
        link = Link(self, loop)
        try:
            if secure:
                await self._shake_hands(link, connection)
            else:
                await loop.connect_accepted_socket(lambda: link, connection)
        except OSError:
            connection.close()
            return None
        return link

    def starved(self) -> None:
        """A connection that was handed to this process was closed: there was no descriptor left for it."""
        self.surroundings.counts.peers_refused["open_files"] += 1
        self.surroundings.report("peer_refused", reason="open_files", level="error", detail="no descriptor left for a connection")

    def dial(self) -> None:
        """Connect to peers that have a `connect`, from now on."""
        self._dials = True
        self._dial_all()

    def reconfigure(
        self,
        peers: Sequence[PeerSettings],
        identity: Identity | None = None,
        limits: Limits | None = None,
        *,
        overload: Reply | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Take over new settings; connections that they still allow stay, others are sent a DPR and closed.

        Closed are also those of peers that are to see other names of ours from now on. `tls` is for handshakes to come.
        """
        self._peers = tuple(peers)
        self._tls = tls or self._tls
        self.surroundings = replace(
            self.surroundings, identity=identity or self.identity, limits=limits or self.limits,
            overload=replace(overload or self.surroundings.overload),
        )  # fmt: skip
        self._buckets = {label: bucket for label, bucket in self._buckets.items() if label in self._rates()}
        self._all = None
        now = _now()
        for link in list(self._links):
            if link.peer is not None:
                self._reconfigure_link(link, link.peer, now)
                link.pump()
        self._dial_all()

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, tell each peer by DPR (REBOOTING), answer until they close, at most `timeout_s`.

        Afterwards no connection, no listener and no task of the node is left.
        """
        self._draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        dialers = list(self._dialers.values())
        self._dialers.clear()
        for dialer in dialers:
            dialer.cancel()
        now = _now()
        for link in list(self._links):
            if link.peer is not None:
                link.peer.stop(DisconnectCause.REBOOTING, now, "drained")
                link.pump()
            else:
                link.abort()  # it is in its handshake
        await asyncio.gather(*dialers, return_exceptions=True)
        closing = [link.closed for link in self._links]
        if closing:
            await asyncio.wait(closing, timeout=timeout_s)
        rest = list(self._links)
        for link in rest:
            link.abort()
        if rest:
            await asyncio.wait([link.closed for link in rest])
        await asyncio.gather(*self._taking, return_exceptions=True)

    def disable(self, label: str) -> bool:
        """Turn a peer away until `enable`: DPR (DO_NOT_WANT_TO_TALK_TO_YOU) now, 3010 for later CERs.

        False if no entry has this label.
        """
        if label not in {settings.label for settings in self._peers}:
            return False
        self._disabled.add(label)
        now = _now()
        for link in list(self._links):
            if link.peer is not None and link.peer.settings is not None and link.peer.settings.label == label:
                link.peer.stop(DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU, now, "disabled")
                link.pump()
        self._dial_all()
        return True

    def enable(self, label: str) -> bool:
        """Take a peer again that was disabled. False if no entry has this label."""
        if label not in {settings.label for settings in self._peers}:
            return False
        self._disabled.discard(label)
        self._dial_all()
        return True

    def disabled(self) -> list[str]:
        """Labels of the peers that are turned away."""
        return [label for label in dict.fromkeys(settings.label for settings in self._peers) if label in self._disabled]

    def status(self) -> list[PeerStatus]:
        """All connections, and the entries of the peer table that have none."""
        rows = [_status(link, link.peer) for link in self._links if link.peer is not None]
        there = {row.label for row in rows}
        rows += [
            PeerStatus(
                label=settings.label, host=settings.host, realm=settings.realm, address=None,
                state="disabled" if settings.label in self._disabled else "down",
                since=None, requests=0, answers=0, watchdog="initial", direction="in" if settings.connect is None else "out",
            )
            for settings in self._peers
            if settings.label not in there
        ]  # fmt: skip
        is_open = {row.label for row in rows if row.state == "open"}
        return [
            replace(
                row, last_seen=self._last_seen(row.label),
                last_error=None if row.label in is_open else self._failures.get(row.label),
            )
            for row in rows
        ]  # fmt: skip

    def _last_seen(self, label: str) -> float | None:
        requested = self.surroundings.counts.last_request.get(label)
        return max((moment for moment in (requested, self._seen.get(label)) if moment is not None), default=None)

    def connected(self) -> dict[str, int]:
        """Open connections by peer label; 0 for each entry of the peer table that has none."""
        found = dict.fromkeys((settings.label for settings in self._peers), 0)
        for link in self._links:
            if link.peer is not None and link.peer.state is State.OPEN:
                found[link.peer.label] = found.get(link.peer.label, 0) + 1
        return found

    @property
    def pending(self) -> int:
        """Requests of the node's own (CER, DWR) that have no answer yet."""
        return sum(link.peer.pending for link in self._links if link.peer is not None)

    # transport.Owner

    def accept(self, link: Link) -> Peer | None:
        """Take a new connection from a known source, within the limits."""
        if link not in self._links and not self._let_in(link):
            return None
        return self._new_peer(link)

    def handle(self, link: Link, event: Event) -> None:
        """Decide what concerns more than one connection."""
        match event:
            case Arrived():
                self._arrived(link, event)
            case Opened():
                self._opened(link)
            case Leaving():
                self._desk.closed(link.number, "leaving")
            case Alive():
                self._alive(link)
            case Closed():
                self._closed(link, event)
            case _:
                pass  # The node asks nothing, so that nothing is Answered.

    def lost(self, link: Link) -> None:
        """Forget a connection."""
        if link in self._links:
            del self._links[link]
            del self._named[link.number]
            self._unidentified.pop(link, None)
            if not link.dialed:
                network = network_of(link.source)
                self._sources[network] -= 1
                if not self._sources[network]:
                    del self._sources[network]

    # Connections and the peer table

    def _knocked(self, connection: socket.socket, *, secure: bool) -> None:
        """A listener of ours has accepted this."""
        task = asyncio.get_running_loop().create_task(self._begin(connection, secure=secure))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _cannot_accept(self, fault: OSError) -> None:
        """There are too many open files, or too little memory: whoever connects waits in the kernel's queue."""
        self.surroundings.counts.errors["accept_failed"] += 1
        name = errno.errorcode.get(fault.errno or 0, "other")
        self.surroundings.report("accept_failed", level="error", reason=name, detail=fault.strerror)

    async def _shake_hands(self, link: Link, connection: socket.socket) -> None:
        """The TLS handshake; whether the connection is wanted at all is asked before. Raises OSError."""
        link.expect(connection)
        if self._tls is None or not self._let_in(link):
            raise ConnectionRefusedError
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: link, connection, ssl=self._tls.accepting, ssl_handshake_timeout=self.limits.cer_timeout_s
            )
        except OSError as e:
            if not link.closed.done():
                # Nothing of it has come to the link, so that the link tells nobody that it is over.
                self.surroundings.counts.peers_refused["tls_handshake"] += 1
                self.surroundings.report(
                    "peer_refused", reason="tls_handshake", level="warning", address=link.address, detail=_reason(e)
                )
                self.lost(link)
                link.failed()
            raise

    def _let_in(self, link: Link) -> bool:
        """Whether a connection is within the limits; enters it if it is."""
        refused = self._refuses(link)
        if refused is not None:
            self.surroundings.counts.peers_refused[refused] += 1
            setting = ADMITTING.get(refused, f"limits.{refused}")
            self.surroundings.report("peer_refused", reason=refused, level="warning", address=link.address, setting=setting)
            return False
        self._enter(link)
        self._unidentified[link] = None
        self._sources[network_of(link.source)] += 1
        if self._trimming is None and len(self._unidentified) > min(self.limits.source_unidentified_max, self.limits.unidentified_max):
            # A loop may accept many before it reads from any: each gets a chance to be read first.
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_soon(loop.call_soon, self._trim)
        return True

    def _trim(self) -> None:
        """Close connections without a CER beyond a limit: a good peer sends its CER at once, a flood does not."""
        self._trimming = None
        by_network: dict[Network, list[Link]] = {}
        for link in self._unidentified:
            by_network.setdefault(network_of(link.source), []).append(link)
        for links in by_network.values():
            for link in _surplus(links, self.limits.source_unidentified_max):
                self._drop(link, "source_unidentified_max")
        for link in _surplus(self._unidentified, self.limits.unidentified_max):
            self._drop(link, "unidentified_max")

    def _enter(self, link: Link) -> None:
        link.number = next(self._numbers)
        self._links[link] = None
        self._named[link.number] = link

    def _refuses(self, link: Link) -> str | None:
        """Why a connection is not wanted: `source`, `draining`, or the limit that it would exceed."""
        limits = self.limits
        if not may_connect(self._peers, link.source):
            return "source"
        if len(self._links) >= limits.connections_max:
            return "connections_max"
        if self._sources[network_of(link.source)] >= limits.source_connections_max:
            return "source_connections_max"
        return "draining" if self._draining else None

    def _new_peer(self, link: Link) -> Peer:
        return Peer(
            self.surroundings, lambda said: self._recognise(link, said), addresses=(link.local,), now=_now(),
            first_id=random.getrandbits(32), secure=link.certificate_names() is not None,
        )  # fmt: skip

    def _recognise(self, link: Link, said: Capabilities) -> PeerSettings:
        """Whose CER or CEA it is (RFC 6733 5.3, 5.6); raises DiameterError 3010."""
        settings = find_peer(self._peers, said.host, said.realm, link.source)
        if settings is None:
            raise DiameterError(UNKNOWN_PEER, "unknown_peer", f"no entry of the peer table fits {link.address}")
        if said.host.lower() in {self.identity.host.lower(), (settings.as_host or "").lower()}:
            raise DiameterError(UNKNOWN_PEER, "own_origin_host", "it calls itself by our own name")
        if settings.label in self._disabled:
            raise DiameterError(UNKNOWN_PEER, "disabled", "the peer is disabled")
        names = link.certificate_names()
        if names is not None and not certificate_fits(names, said, settings):
            raise DiameterError(UNKNOWN_PEER, "tls_name", f"its certificate is for {', '.join(names) or 'nobody'}")
        return settings

    def _arrived(self, link: Link, event: Arrived) -> None:
        """A good CER: the desk weighs it against the peer's other connections."""
        said = event.capabilities
        self._desk.arrived(Claim(link.number, said.host, event.settings.connections, said.origin_state_id or 0))

    def obey(self, order: Order) -> None:
        """Do what the desk has decided."""
        link = self._named.get(order.connection) if isinstance(order.connection, int) else None
        if link is None or link.peer is None:
            return  # It is gone, and the desk has been told so.
        peer, now = link.peer, _now()
        match order:
            case Admit():
                self._admit(peer, now, failed_before=order.failed_before)
            case Refuse():
                peer.refuse(DiameterError(order.result_code, order.reason, order.detail), now)
            case Probe():
                loop = asyncio.get_running_loop()
                self._probes[link.number] = loop.call_later(self.limits.duplicate_probe_s, self._silent, link)
                peer.probe(now)
            case Drop():
                self._drop(link, order.reason)
        link.pump()

    def _alive(self, link: Link) -> None:
        timer = self._probes.pop(link.number, None)
        if timer is not None:
            timer.cancel()
            self._desk.alive(link.number)

    def _silent(self, link: Link) -> None:
        """No DWA on the oldest connection in time: the new one takes its place."""
        if self._probes.pop(link.number, None) is not None:
            self._drop(link, "duplicate_silent")

    def _opened(self, link: Link) -> None:
        peer = link.peer
        if peer is None or peer.capabilities is None:
            return
        self._unidentified.pop(link, None)
        self._seen[peer.label] = time.time()
        self._failures.pop(peer.label, None)
        said = peer.capabilities
        self.surroundings.report("peer_open", peer=peer.label, host=said.host, realm=said.realm, address=link.address)
        if link.dialed:
            self._desk.opened(link.number, said.host, said.origin_state_id or 0)

    def _closed(self, link: Link, event: Closed) -> None:
        peer = link.peer
        timer = self._probes.pop(link.number, None)
        if timer is not None:
            timer.cancel()
        if peer is not None and peer.settings is not None and link.dialed:
            self._failures[peer.settings.label] = event.reason
        if peer is not None and peer.capabilities is not None and peer.watchdog is not None:
            self._seen[peer.label] = time.time()
            self.surroundings.report(
                "peer_closed", peer=peer.label, reason=event.reason, host=peer.capabilities.host, address=link.address
            )
        self._desk.closed(link.number, event.reason)

    def _admit(self, peer: Peer, now: float, *, failed_before: bool) -> None:
        if peer.settings is not None:
            peer.rates = self._limits_of(peer.settings, now)
            peer.admit(now, failed_before=failed_before)

    def _drop(self, link: Link, reason: str) -> None:
        counts = self.surroundings.counts
        (counts.peers_refused if link in self._unidentified else counts.errors)[reason] += 1
        self._unidentified.pop(link, None)
        if link.peer is not None:
            link.peer.drop(reason, _now())
            link.pump()
        else:
            link.abort()

    def _limits_of(self, settings: PeerSettings, now: float) -> tuple[Limit, ...]:
        """The buckets that a peer's requests draw from: one for all, one for its entry."""
        limits = []
        if settings.rate_max is not None:
            number = next((at for at, entry in enumerate(self._peers, 1) if entry.label == settings.label), len(self._peers) + 1)
            bucket = self._buckets.get(settings.label)
            if bucket is None or (bucket.rate_max, bucket.limit) != (settings.rate_max, number):
                bucket = self._buckets[settings.label] = Bucket(settings.rate_max, now, grants=self._grants, limit=number)
            limits.append(Limit("rate_max", bucket))
        if self.limits.rate_max is not None:
            self._all = self._all or Bucket(self.limits.rate_max, now, grants=self._grants)
            limits.append(Limit("rate_max_all", self._all))
        return tuple(limits)

    def _rates(self) -> set[str]:
        return {settings.label for settings in self._peers if settings.rate_max is not None}

    def _reconfigure_link(self, link: Link, peer: Peer, now: float) -> None:
        said = peer.capabilities
        if said is None:
            peer.configure(self.surroundings, None, now)
            if not may_connect(self._peers, link.source):
                peer.drop("source", now)
            return
        settings = find_peer(self._peers, said.host, said.realm, link.source)
        if settings is None:
            peer.stop(DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU, now, "removed")
            return
        names = link.certificate_names()
        if names is not None and not certificate_fits(names, said, settings):
            peer.stop(DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU, now, "tls_name")
            return
        shown = (settings.as_host or self.identity.host, settings.as_realm or self.identity.realm)
        if shown != (peer.face.host, peer.face.realm):
            peer.stop(DisconnectCause.REBOOTING, now, "renamed")
            return
        peer.configure(self.surroundings, settings, now)
        peer.rates = self._limits_of(settings, now)

    # Connections that we make

    def _dial_all(self) -> None:
        """One task for each peer to connect to, and none for those that are no more."""
        wanted = {
            settings for settings in self._peers if settings.connect is not None and settings.label not in self._disabled
        }
        for settings in [settings for settings in self._dialers if settings not in wanted]:
            self._dialers.pop(settings).cancel()
        if self._draining or not self._dials:
            return
        for settings in wanted - self._dialers.keys():
            self._dialers[settings] = asyncio.get_running_loop().create_task(self._dial(settings))

    async def _dial(self, settings: PeerSettings) -> None:
        """Keep a connection to a peer: attempt, wait for its end, wait Tc, attempt again (RFC 6733 2.1, 5.6)."""
        while True:
            if not self._is_connected(settings) and (settings.host is None or await self._desk.may_dial(settings.host)):
                await self._attempt(settings)
            # Tc; it also keeps us away from a peer that said BUSY or DO_NOT_WANT_TO_TALK_TO_YOU (5.4.3).
            await asyncio.sleep(settings.reconnect_after_s * random.uniform(0.9, 1.1))  # noqa: S311 - jitter is no secret

    def _is_connected(self, settings: PeerSettings) -> bool:
        peers = [link.peer for link in self._links if link.peer is not None and link.peer.state is not State.CLOSED]
        return any(peer.settings is not None and peer.settings.connect == settings.connect for peer in peers)

    async def _attempt(self, settings: PeerSettings) -> None:
        host, port, secure = endpoint(settings.connect or "")
        loop = asyncio.get_running_loop()
        link: Link | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, link = await loop.create_connection(
                    lambda: Link(_Dialed(self, settings), loop), host, port, ssl=self._connecting() if secure else None
                )
        except (OSError, EirError) as e:
            self._failures[settings.label] = _reason(e)
            self.surroundings.report(
                "connect_failed", peer=settings.label, reason=type(e).__name__, level="warning", detail=_reason(e)
            )
            return
        await asyncio.shield(link.closed)

    def _connecting(self) -> ssl.SSLContext:
        if self._tls is None:
            raise EirError("a connection over TLS needs a certificate")
        return self._tls.connecting

    def connect(self, link: Link, settings: PeerSettings) -> Peer:
        """We have made this connection: the peer that speaks on it."""
        self._enter(link)
        link.dialed = True
        peer = self._new_peer(link)
        now = _now()
        peer.rates = self._limits_of(settings, now)
        peer.connect(settings, now)
        if settings.host is not None:
            self._desk.dialing(link.number, settings.host, peer.face.host)
        return peer


class _Dialed:
    """The owner of a connection that the node made; all but its beginning is the node's."""

    def __init__(self, node: Node, settings: PeerSettings) -> None:
        self._node = node
        self._settings = settings

    @property
    def surroundings(self) -> Surroundings:
        return self._node.surroundings

    def accept(self, link: Link) -> Peer | None:
        return self._node.connect(link, self._settings)

    def handle(self, link: Link, event: Event) -> None:
        self._node.handle(link, event)

    def lost(self, link: Link) -> None:
        self._node.lost(link)


def _status(link: Link, peer: Peer) -> PeerStatus:
    said, settings, watchdog = peer.capabilities, peer.settings, peer.watchdog
    return PeerStatus(
        label=settings.label if settings is not None else OTHER,
        host=said.host if said is not None else None,
        realm=said.realm if said is not None else None,
        address=link.address,
        state=peer.state.name.lower(),
        since=link.since,
        requests=peer.requests,
        answers=peer.answers,
        watchdog=watchdog.status.name.lower() if watchdog is not None else "initial",
        direction="out" if link.dialed else "in",
    )


def endpoint(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS is meant, of `tcp://host:port` or `tls://host:port`."""
    parts = urlsplit(url)
    if parts.scheme not in {"tcp", "tls"} or not parts.hostname:
        raise EirError(f"expected tcp://host:port or tls://host:port, got {url}")
    secure = parts.scheme == "tls"
    port = parts.port
    if port is None:
        port = DIAMETER_TLS_PORT if secure else DIAMETER_PORT
    return parts.hostname, port, secure


def network_of(source: IPv4Address | IPv6Address) -> Network:
    """The source network that limits count by: what one customer, or one site, usually has of addresses."""
    return source.version, int(source) >> source.max_prefixlen - NETWORK_BITS[source.version]


def _surplus(links: Collection[Link], most: int) -> list[Link]:
    """Which of these connections, the oldest first, have to go: of the address that has the most of them its oldest, again and again."""
    by_address: dict[IPv4Address | IPv6Address, deque[Link]] = {}
    for link in links:
        by_address.setdefault(link.source, deque()).append(link)
    return [max(by_address.values(), key=len).popleft() for _ in range(len(links) - most)]


def _reason(fault: Exception) -> str:
    return str(getattr(fault, "verify_message", None) or getattr(fault, "reason", None) or fault or type(fault).__name__)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _jitter() -> float:
    return random.uniform(-JITTER_S, JITTER_S)  # noqa: S311 - jitter is no secret
