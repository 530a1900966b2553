"""The AMFs of a worker: their connections, who each is, limits, counts, drain. Puts the parts of this package on an event loop.

Listeners are the front's; a connection that was accepted is handed to `take`.
"""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eir.checks.settings import Status
from eir.diameter.capabilities import may_connect
from eir.diameter.counts import OTHER, Counts
from eir.diameter.rate import RateLimits, refusing
from eir.diameter.settings import Limits, PeerSettings
from eir.diameter.transport import stream
from eir.errors import Report, place_of
from eir.n5g import problem as problems
from eir.n5g.denials import DENIED, TOKEN_SETTINGS, TOO_MANY_REQUESTS
from eir.n5g.link import Link, Turns
from eir.n5g.problem import problem
from eir.n5g.requester import Requester, requester
from eir.n5g.sbi import carried_back, priority_of
from eir.n5g.service import PROTOCOL, STATUSES, N5gService, Reply
from eir.web.http2 import Connection
from eir.web.http2_limits import Http2Limits
from eir.web.http2_message import Request, Response
from eir.web.http2_shapes import Shapes

if TYPE_CHECKING:
    from eir.n5g.tokens import Tokens

ENDED = "ended"
"""The state of connections that are over, in `eir peers`."""
TICK_S = 0.5
"""Between two looks at what takes too long."""
GOOD_ENDS = frozenset({"left", "drained"})
BY_LIMIT = {"rate_max": problems.PEER_CONGESTION, "rate_max_all": problems.CONGESTION}
"""What a request past a limit gets: 429 for the peer's own, 503 for that of all together (TS 29.500 6.4)."""
_TURNED_AWAY = {reason: problem(cause, "above a rate limit") for reason, cause in BY_LIMIT.items()}
_FAULT = problem(problems.FAULT)
_STRANGER = problem(problems.DENIALS[403], "no entry of the peer table takes this client")
_DENIALS = {
    reason: Reply(
        problem(problems.PEER_CONGESTION, denied.detail) if denied.status == TOO_MANY_REQUESTS
        else problem(problems.DENIALS[denied.status], denied.detail, headers=((b"www-authenticate", denied.challenge.encode()),)),
        f"{denied.status}:{reason}",
    )
    for reason, denied in DENIED.items()
}  # fmt: skip
"""What a request without a good access token gets, encoded once."""


@dataclass(slots=True)
class _Ended:
    """Connections of a peer that are over: many clients make one for each request."""

    requester: Requester
    """Of the last one."""
    connections: int = 0
    requests: int = 0
    answers: int = 0


@dataclass(slots=True)
class N5gCounts:
    """What is counted of this protocol alone."""

    responses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(peer label, `200` or status and cause)."""
    errors: Counter[str] = field(default_factory=Counter)
    """Connections that were ended for a fault, by reason."""


class N5gServer:
    """Answers AMFs over HTTP/2. `rates` are the node's limits, which all protocols draw from together."""

    def __init__(
        self, service: N5gService, peers: Sequence[PeerSettings], limits: Limits, *, counts: Counts, rates: RateLimits, report: Report,
        overload: Status | None = None, tls: ssl.SSLContext | None = None, tokens: "Tokens | None" = None,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._counts = counts
        self.counts = N5gCounts()
        self._rates = rates
        self._report = report
        self._links: set[Link] = set()
        self._ended: dict[str, _Ended] = {}
        """By peer label."""
        self._shapes = Shapes()
        self._disabled: set[str] = set()
        self._draining = False
        self.turns = Turns(self._loop)
        self._tick: asyncio.TimerHandle | None = None
        self.tokens = tokens
        """Checks the access token of each request; None: none is asked for."""
        self.reconfigure(peers, limits, overload=overload, tls=tls)

    def reconfigure(self, peers: Sequence[PeerSettings], limits: Limits, *, overload: Status | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Take over new settings; connections that they still allow stay, the others are sent away."""
        self._peers, self.limits, self._overload, self._tls = tuple(peers), limits, overload, tls
        self._http_limits = Http2Limits(
            preface_s=limits.cer_timeout_s, frame_s=limits.partial_message_timeout_s, request_s=limits.partial_message_timeout_s,
            answer_s=limits.stalled_write_s,
        )  # fmt: skip
        self._service.configure({
            peer.label: {Status(verdict): Status(answer) for verdict, answer in peer.answers} for peer in peers if peer.answers
        })  # fmt: skip
        for link in list(self._links):
            if not self._identify(link):
                self._send_away(link)

    async def take(self, connection: socket.socket, *, secure: bool = False) -> None:
        """Serve a connection that was accepted, until it is gone. `secure`: it begins with a TLS handshake."""
        link = Link(self, self._loop)
        if secure and self._tls is None:
            connection.close()
            return
        try:
            await stream.accept(link, connection, self._tls if secure else None, self.limits.cer_timeout_s)
        except OSError as e:
            connection.close()
            if not link.closed.done():
                self._refused("tls_handshake", detail=stream.fault_text(e, secure=True))
            return
        await link.closed

    async def drain(self, timeout_s: float) -> None:
        """Tell each client to go elsewhere, answer what is under way, and close, after `timeout_s` at most."""
        self._draining = True
        for link in list(self._links):
            self._send_away(link)
        if closing := [link.closed for link in self._links]:
            await asyncio.wait(closing, timeout=timeout_s)
        for link in (rest := list(self._links)):
            link.abort()
        if rest:
            await asyncio.wait([link.closed for link in rest])
        if self._tick is not None:
            self._tick.cancel()

    def disable(self, label: str) -> None:
        """Turn a peer away until `enable`."""
        self._disabled.add(label)
        for link in list(self._links):
            if link.requester.label == label:
                self._send_away(link)

    def enable(self, label: str) -> None:
        """Take a peer again that was disabled."""
        self._disabled.discard(label)

    def connected(self) -> Counter[str]:
        """Connections by peer label."""
        return Counter(link.requester.label for link in self._links if link.settings is not None)

    def status(self) -> list[Mapping[str, Any]]:
        """A row of `eir peers` for each connection, and one for those of each peer that are over."""
        return [
            *(
                _row(
                    link.requester, address=link.address, state="open", since=link.since, connections=1, requests=link.http.requests,
                    answers=link.http.answers, last_seen=max(link.since, self._counts.last_request.get(link.requester.label, 0.0)),
                )
                for link in self._links if link.http is not None and link.settings is not None
            ),
            *(
                _row(
                    ended.requester, address=None, state=ENDED, since=None, connections=ended.connections, requests=ended.requests,
                    answers=ended.answers, last_seen=self._counts.last_request.get(label),
                )
                for label, ended in self._ended.items()
            ),
        ]  # fmt: skip

    # link.Owner

    def accept(self, link: Link, names: Sequence[str] | None, protocol: str | None) -> Connection | None:
        """Take a connection if the peer table has an entry for it."""
        link.names = names
        refusal = "draining" if self._draining else "alpn" if protocol is not None and protocol != "h2" else None
        if refusal is None and not self._identify(link) and link.settings is not None:
            refusal = "disabled"
        shown = {"names": ",".join(names)} if names else {}
        if refusal is not None:
            self._refused(refusal, address=link.address, **shown)
            return None
        self._links.add(link)
        if link.settings is None:
            known = may_connect(self._peers, link.source)
            setting = "peers: tls_names, host or realm" if known else "peers: from"
            self._refused("unknown_peer" if known else "source", address=link.address, setting=setting, **shown)
            self._loop.call_later(self.limits.cer_timeout_s, link.abort)
        else:
            self._report("peer_open", peer=link.requester.label, protocol=PROTOCOL, host=link.requester.host or None, address=link.address)
        if self._tick is None:
            self._tick = self._loop.call_later(TICK_S, self._look)
        return Connection(lambda request: self.respond(link, request), self._http_limits, self._shapes, self._loop.time())

    def respond(self, link: Link, request: Request) -> Response:
        """Answer a request, within the limits."""
        if link.settings is None:
            self.counts.responses[OTHER, problems.DENIALS[403].result] += 1
            self._loop.call_soon(self._send_away, link)
            return carried_back(request.headers, _STRANGER)
        label = link.requester.label
        try:
            if link.rates and (limit := refusing(link.rates, self._loop.time(), priority_of(request.headers))) is not None:
                self._counts.shed[label, limit.reason] += 1
                if self._overload is not None:
                    response, result = STATUSES[self._overload], self._overload.value
                else:
                    response, result = _TURNED_AWAY[limit.reason], BY_LIMIT[limit.reason].result
            elif self.tokens is None:
                response, result = self._service.answer(request, link.requester)
            else:
                response, result = self._by_token(self.tokens, request, link.requester, link.address)
        except Exception as e:  # noqa: BLE001 - whatever it is: the client gets an answer, and the connection goes on
            self.counts.errors["internal"] += 1
            self._report("fault", peer=label, reason="internal", level="error", detail=place_of(e))
            response, result = _FAULT, problems.FAULT.result
        self.counts.responses[label, result] += 1
        return carried_back(request.headers, response)

    def answered(self, link: Link, count: int, seconds: float) -> None:
        """Count them."""
        if link.settings is None:
            return
        self._counts.durations.add(seconds, count)
        self._counts.last_request[link.requester.label] = time.time()

    def lost(self, link: Link) -> None:
        """Forget a connection, and say why it ended."""
        if link not in self._links:
            return
        self._links.discard(link)
        if link.settings is None:
            return  # it was told of as refused
        if link.http is not None:
            ended = self._ended.setdefault(link.requester.label, _Ended(link.requester))
            ended.requester = link.requester
            ended.connections += 1
            ended.requests += link.http.requests
            ended.answers += link.http.answers
        why = (link.http.over if link.http is not None else "") or "peer_closed"
        if why in {*GOOD_ENDS, "peer_closed"}:
            self._report("peer_closed", peer=link.requester.label, protocol=PROTOCOL, reason=why, address=link.address)
        else:
            self.counts.errors[why] += 1
            self._report("connection_fault", peer=link.requester.label, protocol=PROTOCOL, reason=why, level="warning", address=link.address)

    # inside

    def _by_token(self, tokens: "Tokens", request: Request, asks: Requester, address: str) -> Reply:
        """The reply to a request by whom its access token names, or the refusal of one that has no good one (TS 33.501 13.4.1.1)."""
        subject = tokens.subject(request.headers.get(b"authorization"), asks.label)
        if isinstance(subject, str):
            return self._service.answer(request, asks._replace(host=subject))
        self._report(
            "token_refused", peer=asks.label, protocol=PROTOCOL, reason=subject.reason, level="warning", address=address,
            detail=subject.detail, setting=TOKEN_SETTINGS.get(subject.reason, "n5g.tokens"),
        )  # fmt: skip
        return _DENIALS[subject.reason]

    def _identify(self, link: Link) -> bool:
        """Whether there is an entry for the client, and its peer is in service; sets who it is and what limits it has."""
        found = requester(self._peers, link.names, link.source)
        if found is None:
            return False
        link.settings, link.requester = found
        link.rates = self._rates.of(link.settings, self._loop.time())
        return link.requester.label not in self._disabled

    def _send_away(self, link: Link) -> None:
        if link.http is not None:
            link.http.leave(self._loop.time())
            link.flush()

    def _refused(self, reason: str, **fields: object) -> None:
        self._counts.peers_refused[reason] += 1
        told = {name: value for name, value in fields.items() if value is not None}
        self._report("peer_refused", peer=None, protocol=PROTOCOL, reason=reason, level="warning", **told)

    def _look(self) -> None:
        """End what takes too long."""
        now = self._loop.time()
        for link in list(self._links):
            if link.http is not None:
                link.http.tick(now)
                link.flush()
        self._tick = self._loop.call_later(TICK_S, self._look)


def _row(who: Requester, **more: Any) -> Mapping[str, Any]:
    return {
        "label": who.label, "host": who.host or None, "realm": who.realm or None, "protocol": PROTOCOL, "watchdog": "none", "paths": {},
        "direction": "in", "last_error": None, "last_error_at": None, **more,
    }  # fmt: skip
