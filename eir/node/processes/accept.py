"""Listeners of the supervisor, which accept connections and enforce the limits on the number of connections.

Only the supervisor can count the connections of all workers. It passes each admitted connection to a function of the caller.
"""

import asyncio
import errno
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from eir.errors import EirError, Report
from eir.node.observe import metrics
from eir.wire.peers.gate import Counted, SourceCounts, network_of
from eir.wire.peers.settings import Limits, PeerSettings, setting_for
from eir.wire.transport.begin import SocketListener, open_listener
from eir.wire.transport.endpoint import SCTP, address_text, is_http, listening_at
from eir.wire.transport.sctp_options import LOAD_ADVICE, MISSING
from eir.wire.transport.settings import SctpSettings, source_address

LISTEN_ADVICE = {
    errno.EACCES: "a port below 1024 requires the capability CAP_NET_BIND_SERVICE; grant it, or choose another port",
    errno.EADDRINUSE: "is another node running there?",
    errno.EADDRNOTAVAIL: "no interface of this host has that address",
    **dict.fromkeys(MISSING, f"{LOAD_ADVICE}; or sctp.optional: true starts without it"),
}
"""Advice for a listener that cannot be opened, by error number."""

HOLD_S = 2.0
"""Seconds after the end of a worker in which new connections wait for its replacement.

Otherwise the peers of the ended worker, which reconnect at once, would all move to the other workers.
"""
STRANGERS_MAX, STRANGERS_PER_S = 32, 20
"""Limits on connections from addresses without an entry in the peer table that are answered 403 over HTTP: number at the same time,
and number per second. Further connections are closed without an answer."""

HandOver = Callable[[int, Counted, socket.socket], bool]
"""Function that passes a connection to a worker, and returns true if a worker has received it.

Its arguments are the number of the listener, the source for which the connection counts (None: the worker only answers with a 403), and the connection.
"""


class Acceptor:
    """Listeners of a node. Each admitted connection is passed to a worker."""

    def __init__(
        self,
        peers: Sequence[PeerSettings],
        limits: Limits,
        sctp: SctpSettings,
        *,
        hold_s: float = HOLD_S,
        report: Report,
    ) -> None:
        self._listeners: list[SocketListener] = []
        self.configure(peers, limits, sctp)
        self._hold_s = hold_s
        self._report = report
        self.addresses: list[str] = []
        """Open listeners as URLs with their bound addresses."""
        self._held: asyncio.TimerHandle | None = None
        """Timer that ends the present pause; None without a pause."""
        self._connections = SourceCounts()
        """Open connections of all workers. Those with the source None are only answered with a 403."""
        self._stranger_times: deque[float] = deque(maxlen=STRANGERS_PER_S)
        """Times of the last connections from unknown addresses that were answered 403."""
        self._refused: Counter[str] = Counter()
        """Number of rejected connections, by reason."""
        self._failures = 0
        """Number of connections that were not accepted for lack of file descriptors or memory."""

    def configure(self, peers: Sequence[PeerSettings], limits: Limits, sctp: SctpSettings) -> None:
        """Apply a new peer table, limits and SCTP settings. Open connections are not affected."""
        self._peers = peers
        self._limits = limits
        self._sctp = sctp
        for listener in self._listeners:
            listener.apply(sctp)

    async def listen(self, urls: Sequence[str], hand_over: HandOver) -> None:
        """Open the listeners at these URLs. `hand_over`: function that passes a connection to a worker.

        If the kernel has no SCTP and `sctp.optional` is set, SCTP listeners are skipped.

        Raises:
            EirError: if a listener cannot be opened.
        """
        for number, url in enumerate(urls):
            wanted = listening_at(url)
            accept = partial(self._accept, number, hand_over, http=is_http(url))
            try:
                listener = await open_listener(wanted, accept, self._cannot_accept, self._sctp)
            except OSError as e:
                if self._sctp.optional and e.errno in MISSING:
                    self._report("listener_missing", reason="no_sctp", level="warning", address=url, detail=LOAD_ADVICE)
                    continue
                raise cannot_listen(url, e) from None
            self._listeners.append(listener)
            host, port = listener.address
            hosts = wanted.hosts if wanted.scheme == SCTP else (host,)
            bound = wanted._replace(hosts=hosts, port=port)
            scheme, _, _ = url.partition("://")
            self.addresses.append(f"{scheme}://{bound.where}")
        for address in self.addresses:
            self._report("listening", address=address)

    def pause(self) -> None:
        """Accept no connections for `hold_s`. Meanwhile new connections wait in the queues of the kernel."""
        if not self._listeners:
            return
        self._stop_timer()
        for listener in self._listeners:
            listener.pause()
        self._held = asyncio.get_running_loop().call_later(self._hold_s, self.resume)

    def resume(self) -> None:
        """Accept connections again after a pause."""
        if self._stop_timer():
            for listener in self._listeners:
                listener.resume()

    def close(self) -> None:
        """Close the listeners."""
        self._stop_timer()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def remove(self, source: Counted) -> None:
        """Subtract a closed connection from the acceptor's counts of open connections."""
        self._connections.remove(source)

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about rejected connections, by metric name and label values."""
        return {
            "eir_peers_refused_total": metrics.by_label(self._refused),
            "eir_diameter_errors_total": {("accept_failed",): self._failures} if self._failures else {},
        }

    def _stop_timer(self) -> bool:
        """Cancel the timer that would end a pause; return true if there was a pause."""
        timer = self._held
        self._held = None
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _accept(self, listener: int, hand_over: HandOver, connection: socket.socket, *, http: bool = False) -> None:
        with connection:
            try:
                host, port = connection.getpeername()[:2]
            except OSError:
                return  # the client has closed the connection
            source = source_address(host)
            known = self._connections.total - self._connections[None]
            refused = self._connections.refusal(source, self._peers, self._limits, known)
            answers_stranger = refused == "source" and http and self._may_answer_stranger()
            if answers_stranger and hand_over(listener, None, connection):
                self._connections.add(None)  # the worker counts and logs the rejection
                return
            if refused is None:
                counted = network_of(source)
                if hand_over(listener, counted, connection):
                    self._connections.add(counted)
                    return
                refused = "no_worker"
        self._refused[refused] += 1
        address = address_text([host], port)
        self._report("peer_refused", reason=refused, level="warning", address=address, setting=setting_for(refused))

    def _may_answer_stranger(self) -> bool:
        """Return true if the limits permit another response 403 to an HTTP client at an unknown address.

        With a 403 an AMF learns the reason at once. After a closed connection it would wait for seconds.
        """
        now = asyncio.get_running_loop().time()
        times = self._stranger_times
        is_too_fast = len(times) == STRANGERS_PER_S and now - times[0] < 1
        if is_too_fast or self._connections[None] >= STRANGERS_MAX:
            return False
        times.append(now)
        return True

    def _cannot_accept(self, fault: OSError) -> None:
        self._failures += 1
        reason = errno.errorcode.get(fault.errno or 0, "other")
        self._report("accept_failed", level="error", reason=reason, detail=fault.strerror)


def cannot_listen(where: str, fault: OSError) -> EirError:
    """Return the error for a listener that cannot be opened, with advice. The error ends the node."""
    message = f"cannot listen on {where}: {fault.strerror or fault}"
    advice = LISTEN_ADVICE.get(fault.errno or 0)
    return EirError(f"{message} ({advice})" if advice else message)
