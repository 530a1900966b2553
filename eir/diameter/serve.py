"""What an application request gets: routing, rate, grammar, then the application (RFC 6733 6.1, 7). Knows no connection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eir.diameter.answer import Reply, is_protocol_error
from eir.diameter.avp import u32_or
from eir.diameter.capabilities import origin_avps
from eir.diameter.counts import Counts
from eir.diameter.dictionary import BASE, DESTINATION_HOST, DESTINATION_REALM, DRMP
from eir.diameter.grammar import Command, Grammar, check
from eir.diameter.message import E_FLAG, Request
from eir.diameter.rate import DEFAULT_PRIORITY, Limit, refusing
from eir.diameter.settings import DESTINATION, UNKNOWN_M, Identity, Limits, PeerSettings
from eir.errors import DiameterError, Report

COMMAND_UNSUPPORTED = 3001
UNABLE_TO_DELIVER = 3002
REALM_NOT_SERVED = 3003
TOO_BUSY = 3004
APPLICATION_UNSUPPORTED = 3007
INVALID_HDR_BITS = 3008

TOO_BUSY_REPLY = Reply(result_code=TOO_BUSY)

Application = Callable[[Request], Reply]
"""Answers one request, synchronously. Raises DiameterError for a fault of the request; anything else becomes a 5012."""


class Lane(Protocol):
    """A shortcut that an application may have for requests of one peer that look like ones answered before.

    Whatever it takes, it answers as the general path would, to the byte; it keeps the application's own counters, and the
    connection keeps the node's.
    """

    def take(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, Mapping[str, int]]:
        """Answer the messages at `position`, up to the first that is not for the lane; append the answers to `out`.

        Returns the position behind the last one answered, and how many answers of each result there were.
        """

    def shed(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """Answer the messages that `take` would, but all of them by the overload answer, and without the application.

        Returns the position behind the last one, and how many there were.
        """

    def learn(self, request: Request) -> None:
        """See a request that the general path has just answered by the application's reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all connections of a node share."""

    identity: Identity
    limits: Limits
    application: Application
    application_id: int
    lane: Callable[[str, bytes, Reply], Lane] | None = None
    """Makes a lane from a peer's label, what answers to it carry (Origin-Host and Origin-Realm, encoded) and `overload`."""
    counts: Counts
    report: Report
    overload: Reply = TOO_BUSY_REPLY
    """What a request past a rate limit gets; an object of its own, so that nobody takes it for the application's."""
    jitter: Callable[[], float]
    """For the watchdog: between -2 and 2 seconds."""


class Face(NamedTuple):
    """The names that a peer knows us by, and all that it may call us."""

    host: str
    realm: str
    origin: bytes
    """Origin-Host and Origin-Realm, encoded."""
    hosts: frozenset[bytes]
    """Names of this node in lower case, for Destination-Host."""
    realms: frozenset[bytes]
    """Realms served, in lower case, for Destination-Realm."""


def face_of(identity: Identity, host: str, realm: str) -> Face:
    """How the node looks to a peer that is shown this host and realm."""
    return Face(
        host,
        realm,
        origin_avps(host, realm),
        frozenset(name.lower().encode() for name in (host, identity.host, *identity.aliases)),
        frozenset(name.lower().encode() for name in (realm, identity.realm, *identity.realms)),
    )


def check_header_bits(request: Request) -> None:
    """Raise 3008 for a request with the E bit; reserved bits are ignored (RFC 6733 3)."""
    if request.flags & E_FLAG:
        raise DiameterError(INVALID_HDR_BITS, "header_bits", "a request with the E bit")


def check_request(request: Request, grammar: Grammar, settings: PeerSettings | None, limits: Limits) -> None:
    """Hold a request to a grammar, as leniently as the peer's settings say; see grammar.check."""
    unknown_m = settings is not None and UNKNOWN_M in settings.lenient
    check(request, grammar, unknown_m=unknown_m, depth_max=limits.max_depth)


def check_route(request: Request, face: Face, settings: PeerSettings | None) -> None:
    """Whether the request is for us (RFC 6733 6.1.4, 7.1.3); nothing is forwarded. Raises 3002 or 3003."""
    host, realm = request.first.get(DESTINATION_HOST), request.first.get(DESTINATION_REALM)
    if host is not None and host.data.lower() in face.hosts:
        return
    foreign_realm = realm is not None and realm.data.lower() not in face.realms
    if host is None:
        if foreign_realm:
            raise DiameterError(REALM_NOT_SERVED, "realm_not_served", "its Destination-Realm is not served here")
        return
    if settings is None or DESTINATION not in settings.lenient:
        code = REALM_NOT_SERVED if foreign_realm else UNABLE_TO_DELIVER
        raise DiameterError(code, "destination", "its Destination-Host is another node")


def reply_to(
    request: Request,
    command: Command | None,
    now: float,
    *,
    surroundings: Surroundings,
    settings: PeerSettings | None,
    face: Face,
    rates: Sequence[Limit],
) -> Reply:
    """The reply to an application request, in the order of checks: header, application, command, routing, AVPs.

    Raises DiameterError.
    """
    check_header_bits(request)
    if command is None or request.application_id != surroundings.application_id:
        # 324 in application 0 is a command that the base protocol does not have.
        if request.application_id in {BASE, surroundings.application_id}:
            raise DiameterError(COMMAND_UNSUPPORTED, "command", f"command {request.command}")
        raise DiameterError(APPLICATION_UNSUPPORTED, "application", f"application {request.application_id}")
    check_route(request, face, settings)
    limit = refusing(rates, now, _priority(request)) if rates else None
    if limit is not None:
        surroundings.counts.shed[request.peer, limit.reason] += 1
        if is_protocol_error(surroundings.overload.result_code):
            return surroundings.overload  # which any request may get, whatever it lacks (7.2)
    check_request(request, command.request, settings, surroundings.limits)
    return surroundings.application(request) if limit is None else surroundings.overload


def _priority(request: Request) -> int:
    return u32_or(request.first.get(DRMP), DEFAULT_PRIORITY)  # no grammar has looked at it yet
