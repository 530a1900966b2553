"""Treatment of a request: checks of routing, rate and grammar, then the application's answer (RFC 6733 6.1, 7).

No connection is known here. All requests of a node have one context; the node's names depend on the peer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eir.errors import DiameterError, Report
from eir.wire.diameter import result
from eir.wire.diameter.application import Application, Command
from eir.wire.diameter.avp import encode_text, u32_or
from eir.wire.diameter.dictionary import BASE, DESTINATION_HOST, DESTINATION_REALM, DRMP, ORIGIN_HOST, ORIGIN_REALM
from eir.wire.diameter.grammar import Grammar, check
from eir.wire.diameter.message import E_FLAG, Reply, Request, is_protocol_error
from eir.wire.diameter.result import TOO_BUSY
from eir.wire.diameter.watchdog import WATCHDOG_LEAST_S
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import DEFAULT_PRIORITY, Limit, refusing
from eir.wire.peers.settings import DESTINATION, UNKNOWN_M, Identity, Limits, PeerSettings

TOO_BUSY_REPLY = Reply(result_code=TOO_BUSY)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """Settings, counters and callbacks that all connections of a node share."""

    identity: Identity
    limits: Limits
    application: Application
    counts: Counts
    report: Report
    overload: Reply = TOO_BUSY_REPLY
    """Answer above a rate limit. A separate object, to distinguish it from an equal answer of the application."""
    jitter: Callable[[], float]
    """Function that returns the jitter of the watchdog in seconds, between -2 and 2."""
    watchdog_least_s: float = WATCHDOG_LEAST_S


class LocalNames(NamedTuple):
    """Names of the node on one connection: Origin-Host and Origin-Realm to send, Destination-Hosts and Destination-Realms to accept."""

    host: str
    realm: str
    origin: bytes
    """Encoded Origin-Host and Origin-Realm."""
    hosts: frozenset[bytes]
    """Names of this node in lower case, for Destination-Host."""
    realms: frozenset[bytes]
    """Realms served, in lower case, for Destination-Realm."""


def local_names(identity: Identity, host: str, realm: str) -> LocalNames:
    """Return the node's names on a connection where its Origin-Host and Origin-Realm are `host` and `realm`."""
    return LocalNames(
        host, realm, encode_text(ORIGIN_HOST, host) + encode_text(ORIGIN_REALM, realm),
        frozenset(name.lower().encode() for name in (host, identity.host, *identity.aliases)),
        frozenset(name.lower().encode() for name in (realm, identity.realm, *identity.realms)),
    )  # fmt: skip


def check_header_bits(request: Request) -> None:
    """Raise DiameterError (3008) for a request with the E bit. Reserved bits are ignored (RFC 6733 3).

    Raises:
        DiameterError: 3008.
    """
    if request.flags & E_FLAG:
        raise DiameterError(result.INVALID_HDR_BITS, "header_bits", "a request with the E bit")


def check_grammar(request: Request, grammar: Grammar, settings: PeerSettings | None, context: NodeContext) -> None:
    """Check a request against a grammar; raise DiameterError for a fault that the peer's settings (`lenient`) do not tolerate."""
    unknown_m = settings is not None and UNKNOWN_M in settings.lenient
    check(request, grammar, context.application.dictionary, unknown_m=unknown_m, depth_max=context.limits.max_depth)


def check_route(request: Request, names: LocalNames, settings: PeerSettings | None) -> None:
    """Check that a request is addressed to this node, because the node forwards no requests (RFC 6733 6.1.4, 7.1.3).

    Raises:
        DiameterError: 3002 or 3003.
    """
    host, realm = request.first.get(DESTINATION_HOST), request.first.get(DESTINATION_REALM)
    if host is not None and host.data.lower() in names.hosts:
        return
    foreign_realm = realm is not None and realm.data.lower() not in names.realms
    code = result.REALM_NOT_SERVED if foreign_realm else result.UNABLE_TO_DELIVER
    if host is None and foreign_realm:
        raise DiameterError(code, "realm_not_served", "its Destination-Realm is not served here")
    if host is not None and (settings is None or DESTINATION not in settings.lenient):
        raise DiameterError(code, "destination", "its Destination-Host is another node")


def reply_to(
    request: Request, command: Command | None, now: float, *, context: NodeContext, settings: PeerSettings | None,
    names: LocalNames, rates: Sequence[Limit],
) -> Reply:  # fmt: skip
    """Check header, application, command, routing, rate and AVPs of a request, in this order; return the reply.

    Raises:
        DiameterError: if a check fails.
    """
    check_header_bits(request)
    if command is None:
        if request.application_id in {BASE, context.application.id}:
            raise DiameterError(result.COMMAND_UNSUPPORTED, "command", f"command {request.command}")
        raise DiameterError(result.APPLICATION_UNSUPPORTED, "application", f"application {request.application_id}")
    check_route(request, names, settings)
    limit = refusing(rates, now, u32_or(request.first.get(DRMP), DEFAULT_PRIORITY)) if rates else None
    if limit is not None:
        context.counts.shed[request.peer, limit.reason] += 1
        if is_protocol_error(context.overload.result_code):
            return context.overload  # valid for any request, even an incomplete one (7.2)
    check_grammar(request, command.request, settings, context)
    return context.application.answer(request) if limit is None else context.overload
