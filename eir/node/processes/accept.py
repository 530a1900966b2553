"""The supervisor's listeners: they accept connections, and decide who may connect and how many connections there may be.

The supervisor sees the connections of all workers, so limits on connections are enforced here. Knows no worker: a connection
that may come in goes to the callable that it is given.
"""

import asyncio
import errno
import itertools
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from eir.errors import EirError, Report
from eir.node.observe import metrics
from eir.wire.peers.gate import Address, Sources
from eir.wire.peers.settings import Limits, PeerSettings, setting_for
from eir.wire.transport.begin import Listener, open_listener
from eir.wire.transport.endpoint import SCTP, address_text, is_http, listening_at
from eir.wire.transport.sctp_options import LOAD_ADVICE, MISSING
from eir.wire.transport.settings import SctpSettings, source_address

LISTEN_ADVICE = {
    errno.EACCES: "a port below 1024 takes the capability CAP_NET_BIND_SERVICE, or choose another port",
    errno.EADDRINUSE: "is another node running there?",
    errno.EADDRNOTAVAIL: "no interface of this host has that address",
    **dict.fromkeys(MISSING, f"{LOAD_ADVICE}; or sctp.optional: true starts without it"),
}
"""Advice for a listener that cannot be opened, by error number."""

HOLD_S = 2.0
"""Time for which new connections wait, when a worker has ended, for the one that replaces it, so that its peers, which
reconnect at once, do not all move to the other workers."""
STRANGERS_MAX, STRANGERS_PER_S = 32, 20
"""Connections of addresses that no entry of the peer table takes, at once and a second, that get a 403 over HTTP; more are closed."""

HandOver = Callable[[int, int, socket.socket], bool]
"""(listener, number, connection) → whether some worker has it now."""


class Acceptor:
    """Listens, and hands each connection that may come in to a worker."""

    def __init__(
        self,
        peers: Sequence[PeerSettings],
        limits: Limits,
        sctp: SctpSettings,
        *,
        hold_s: float = HOLD_S,
        report: Report,
    ) -> None:
        self._listeners: list[Listener] = []
        self.configure(peers, limits, sctp)
        self._hold_s, self._report = hold_s, report
        self.addresses: list[str] = []
        """Open listeners as URLs, with the addresses that they have."""
        self._held: asyncio.TimerHandle | None = None
        """While nothing is accepted: when that ends."""
        self._numbers = itertools.count()
        self._connections: dict[int, Address] = {}
        """Connections that were handed over and are still open: number → where it comes from."""
        self._sources = Sources()
        self._strangers: set[int] = set()
        """Connections handed over only to be told that they may not connect."""
        self._strangers_came: deque[float] = deque(maxlen=STRANGERS_PER_S)
        self._refused: Counter[str] = Counter()
        """Connections that were handed to nobody, by reason."""
        self._failures = 0
        """Times that nothing could be accepted for want of descriptors or memory."""

    def configure(self, peers: Sequence[PeerSettings], limits: Limits, sctp: SctpSettings) -> None:
        """Take over who may connect, how many, and how over SCTP; connections that there are stay."""
        self._peers = peers
        self._limits = limits
        self._sctp = sctp
        for listener in self._listeners:
            listener.configure(sctp)

    async def listen(self, urls: Sequence[str], hand_over: HandOver) -> None:
        """Open the listeners. Raises EirError if one cannot be had.

        Left out are those for SCTP where the kernel has none and the settings allow that.
        """
        for number, url in enumerate(urls):
            wanted = listening_at(url)
            try:
                listener = await open_listener(
                    wanted,
                    partial(self._accepted, number, hand_over, http=is_http(url)),
                    self._cannot_accept,
                    self._sctp,
                )
            except OSError as e:
                if self._sctp.optional and e.errno in MISSING:
                    self._report("listener_missing", reason="no_sctp", level="warning", address=url, detail=LOAD_ADVICE)
                    continue
                raise cannot_listen(url, e) from None
            self._listeners.append(listener)
            host, port = listener.address
            at = wanted._replace(hosts=wanted.hosts if wanted.scheme == SCTP else (host,), port=port)
            self.addresses.append(f"{url.partition('://')[0]}://{at.where}")
        for address in self.addresses:
            self._report("listening", address=address)

    def hold(self) -> None:
        """Accept nothing for a while: new connections wait in the listeners' queues."""
        if not self._listeners:
            return
        self._stop_timer()
        for listener in self._listeners:
            listener.hold()
        self._held = asyncio.get_running_loop().call_later(self._hold_s, self.resume)

    def resume(self) -> None:
        """Accept again, if that is held."""
        if self._stop_timer():
            for listener in self._listeners:
                listener.resume()

    def close(self) -> None:
        """Accept nothing any more."""
        self._stop_timer()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def gone(self, number: int) -> None:
        """A connection that was handed over is over, or its worker is."""
        self._strangers.discard(number)
        source = self._connections.pop(number, None)
        if source is not None:
            self._sources.remove(source)

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics."""
        return {
            "eir_peers_refused_total": metrics.by_label(self._refused),
            "eir_diameter_errors_total": {("accept_failed",): self._failures} if self._failures else {},
        }

    def _stop_timer(self) -> bool:
        """Cancel the timer of a pause in accepting; True if there was one. The caller ends the pause."""
        timer, self._held = self._held, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _accepted(self, listener: int, hand_over: HandOver, connection: socket.socket, *, http: bool = False) -> None:
        with connection:
            try:
                host, port = connection.getpeername()[:2]
            except OSError:
                return  # it is gone again
            source = source_address(host)
            refused = self._sources.refusal(source, self._peers, self._limits, len(self._connections))
            if refused == "source" and http and self._may_hear_so():
                number = next(self._numbers) & 0xFFFFFFFF
                if hand_over(listener, number, connection):
                    self._strangers.add(number)  # the worker counts it, and tells the log
                    return
            if refused is None:
                number = next(self._numbers) & 0xFFFFFFFF
                if hand_over(listener, number, connection):
                    self._connections[number] = source
                    self._sources.add(source)
                    return
                refused = "no_worker"
        self._refused[refused] += 1
        self._report(
            "peer_refused",
            reason=refused,
            level="warning",
            address=address_text([host], port),
            setting=setting_for(refused),
        )

    def _may_hear_so(self) -> bool:
        """True if a refused connection may get an answer that says so.

        An AMF waits for seconds after one that is just closed.
        """
        now, came = asyncio.get_running_loop().time(), self._strangers_came
        if len(self._strangers) >= STRANGERS_MAX or (len(came) == STRANGERS_PER_S and now - came[0] < 1):
            return False
        came.append(now)
        return True

    def _cannot_accept(self, fault: OSError) -> None:
        self._failures += 1
        self._report(
            "accept_failed", level="error", reason=errno.errorcode.get(fault.errno or 0, "other"), detail=fault.strerror
        )


def cannot_listen(where: str, fault: OSError) -> EirError:
    """Return the error that ends a node which cannot open one of its listeners."""
    advice = LISTEN_ADVICE.get(fault.errno or 0)
    return EirError(f"cannot listen on {where}: {fault.strerror or fault}{f' ({advice})' if advice else ''}")
