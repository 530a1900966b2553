"""N5g server of the answering process: connections of AMFs, their identification, access tokens, limits and counters."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eir.checks.settings import answers_by_peer
from eir.interfaces.interface import Context
from eir.interfaces.n5g import sbi
from eir.interfaces.n5g.link import N5gConnection
from eir.interfaces.n5g.sbi import carried_back, priority_of, problem
from eir.interfaces.n5g.service import PROTOCOL, STATUSES, N5gReply, N5gService
from eir.interfaces.n5g.settings import SERVICE, N5gSettings
from eir.wire.peers.counts import OTHER
from eir.wire.peers.server import SOURCE, UNKNOWN_PEER, Server
from eir.wire.peers.settings import PeerSettings, Requester, may_connect, requester, setting_for
from eir.wire.web.denials import TOO_MANY_REQUESTS, denials, token_setting
from eir.wire.web.http2 import Http2Connection
from eir.wire.web.http2_limits import Http2Limits
from eir.wire.web.http2_message import Http2Request, Http2Response, Shapes
from eir.wire.web.verifier import tokens_of

if TYPE_CHECKING:
    from eir.wire.web.tokens import Tokens

BY_LIMIT = {"rate_max": sbi.PEER_CONGESTION, "rate_max_all": sbi.CONGESTION}
"""Causes by limit: 429 above the peer's own limit, 503 above the common limit (TS 29.500 6.4)."""
_TURNED_AWAY = {reason: problem(cause, "above a rate limit") for reason, cause in BY_LIMIT.items()}
_FAULT = problem(sbi.FAULT)
_STRANGER = problem(sbi.DENIALS[403], "no entry of the peer table matches this client")
_DENIALS = {
    reason: N5gReply(
        problem(sbi.PEER_CONGESTION, denied.detail) if denied.status == TOO_MANY_REQUESTS
        else problem(sbi.DENIALS[denied.status], denied.detail, headers=((b"www-authenticate", denied.challenge.encode()),)),
        f"{denied.status}:{reason}",
    )
    for reason, denied in denials(SERVICE).items()
}  # fmt: skip
"""Answers to requests without a valid access token, encoded once."""


class N5gServer(Server[N5gConnection]):
    """N5g server of the answering process for AMFs over HTTP/2."""

    def __init__(self, settings: N5gSettings, context: Context) -> None:
        super().__init__(PROTOCOL, counts=context.counts, rates=context.rates, report=context.report)
        self._service = N5gService(context.checker)
        self.responses: Counter[tuple[str, str]] = Counter()
        """Responses by peer label and result (`200`, or status and cause)."""
        self._shapes = Shapes()
        self.tokens: Tokens | None = None
        """Verifier of access tokens; None: no token is required."""
        self.apply(settings, context)

    def apply(self, _: N5gSettings, context: Context) -> None:
        """Apply new settings to the N5g server, and close connections that the settings no longer permit.

        Raises:
            FileError: if the keys are invalid; nothing has changed then.
        """
        self.tokens = tokens_of(context.keys.get(PROTOCOL), self.tokens, SERVICE)
        limits, peers = context.shared.limits, context.shared.peers
        self._overload = context.shared.overload_answer
        self._http_limits = Http2Limits(
            preface_s=limits.cer_timeout_s, frame_s=limits.partial_message_timeout_s, request_s=limits.partial_message_timeout_s,
            answer_s=limits.stalled_write_s,
        )  # fmt: skip
        self._service.configure(answers_by_peer(peers))
        self.use(peers, limits, context.tls.http2 if context.tls else None)

    # server.Server

    def link(self) -> N5gConnection:
        """Create the protocol object for a new connection."""
        return N5gConnection(self, self.loop)

    def who(self, link: N5gConnection) -> tuple[PeerSettings, Requester] | None:
        """Identify an AMF: return its entry in the peer table, and the sender of its requests (Requester).

        The names in the AMF's certificate decide, or without TLS its address.
        """
        return requester(self.peers, link.names, link.source)

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the counters of N5g by metric name and label values."""
        return {
            "eir_sbi_responses_total": self.responses,
            "eir_sbi_errors_total": {(reason,): count for reason, count in self.errors.items()},
        }

    # link.Owner

    def accept(self, link: N5gConnection, protocol: str | None) -> Http2Connection | None:
        """Create the HTTP/2 state of a new connection; return None if the connection is rejected at once.

        The connection of an unknown client stays open for a moment and receives a 403, because an AMF waits for seconds after a
        closed connection. `protocol`: protocol negotiated in TLS (ALPN); None: no TLS.
        """
        refusal = self.refusal(link, "alpn" if protocol not in {None, "h2"} else None)
        is_stranger = refusal == SOURCE
        if is_stranger and may_connect(self.peers, link.source):
            refusal = UNKNOWN_PEER
        if refusal is not None:
            setting = "peers: tls_names, host or realm" if refusal == UNKNOWN_PEER else setting_for(refusal)
            names = ",".join(link.names or ()) or None
            self.refused(refusal, address=link.address, setting=setting, names=names)
            if not is_stranger:
                return None
            self.loop.call_later(self.limits.cer_timeout_s, link.abort)
        else:
            self.opened(link)
        self.enter(link)
        self.watch()
        return Http2Connection(
            lambda request: self.respond(link, request), self._http_limits, self._shapes, self.loop.time()
        )

    def respond(self, link: N5gConnection, request: Http2Request) -> Http2Response:
        """Check peer, rate limit and access token of a request; return the response."""
        if link.settings is None:
            self.responses[OTHER, sbi.DENIALS[403].result] += 1
            if link.http is not None:
                link.http.leave(self.loop.time(), at_once=True)
            return carried_back(request.headers, _STRANGER)
        label = link.requester.label
        try:
            if link.rates and (reason := self.past_limit(label, link.rates, priority_of(request.headers))):
                if self._overload is not None:
                    response, result = STATUSES[self._overload], self._overload.value
                else:
                    response, result = _TURNED_AWAY[reason], BY_LIMIT[reason].result
            elif self.tokens is None:
                response, result = self._service.answer(request, link.requester)
            else:
                response, result = self._by_token(self.tokens, request, link)
        except Exception as e:  # noqa: BLE001 - the client receives an answer, and the connection stays open
            self.failed(e, label)
            response, result = _FAULT, sbi.FAULT.result
        self.responses[label, result] += 1
        return carried_back(request.headers, response)

    def answered(self, link: N5gConnection, count: int, seconds: float) -> None:
        """Count answered requests, unless the peer is unknown."""
        if link.settings is not None:
            super().answered(link, count, seconds)

    # inside

    def _by_token(self, tokens: "Tokens", request: Http2Request, link: N5gConnection) -> N5gReply:
        """Answer a request if its access token is valid, else return an error response (TS 33.501 13.4.1.1).

        The token's subject is the requester. Invalid tokens count against the source address, because one entry may be for all
        AMFs.
        """
        asks = link.requester
        subject = tokens.subject(request.headers.get(b"authorization"), str(link.source))
        if isinstance(subject, str):
            return self._service.answer(request, asks._replace(host=subject))
        self.report(
            "token_refused", peer=asks.label, protocol=PROTOCOL, reason=subject.reason, level="warning", address=link.address,
            detail=subject.detail, setting=token_setting("n5g.tokens", subject.reason),
        )  # fmt: skip
        return _DENIALS[subject.reason]
