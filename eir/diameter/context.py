"""The context that all connections of a node share, and the names that one peer knows us by. Data only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from eir.diameter.answer import Reply
from eir.diameter.application import Application
from eir.diameter.avp import encode_text
from eir.diameter.dictionary import ORIGIN_HOST, ORIGIN_REALM
from eir.diameter.result import TOO_BUSY
from eir.diameter.watchdog import WATCHDOG_LEAST_S
from eir.errors import Report
from eir.peers.counts import Counts
from eir.peers.settings import Identity, Limits

TOO_BUSY_REPLY = Reply(result_code=TOO_BUSY)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """The context that all connections of a node share."""

    identity: Identity
    limits: Limits
    application: Application
    counts: Counts
    report: Report
    overload: Reply = TOO_BUSY_REPLY
    """The answer to a request past a rate limit. An object of its own, so that it is never mistaken for the
    application's."""
    jitter: Callable[[], float]
    """Seconds of jitter for the watchdog, between -2 and 2."""
    watchdog_least_s: float = WATCHDOG_LEAST_S


class LocalNames(NamedTuple):
    """The names that a peer knows us by, and all that it may call us."""

    host: str
    realm: str
    origin: bytes
    """Origin-Host and Origin-Realm, encoded."""
    hosts: frozenset[bytes]
    """Names of this node in lower case, for Destination-Host."""
    realms: frozenset[bytes]
    """Realms served, in lower case, for Destination-Realm."""


def local_names(identity: Identity, host: str, realm: str) -> LocalNames:
    """The node's names for a peer that is shown this host and realm."""
    return LocalNames(
        host, realm, encode_text(ORIGIN_HOST, host) + encode_text(ORIGIN_REALM, realm),
        frozenset(name.lower().encode() for name in (host, identity.host, *identity.aliases)),
        frozenset(name.lower().encode() for name in (realm, identity.realm, *identity.realms)),
    )  # fmt: skip
