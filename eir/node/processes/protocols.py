"""The protocols that ask besides Diameter, in a worker: how the server of each is made, and told of another configuration.

A new protocol is a row here, and in eir.config.settings one of its listeners.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from eir.checks.checker import Checker
from eir.config import Config
from eir.errors import Report
from eir.interfaces.gsup.server import PROTOCOL as GSUP
from eir.interfaces.gsup.server import GsupServer, GsupService
from eir.interfaces.map.server import MapServer
from eir.interfaces.map.service import PROTOCOL as MAP
from eir.interfaces.map.service import MapService
from eir.interfaces.n5g.server import N5gServer
from eir.interfaces.n5g.service import PROTOCOL as N5G
from eir.interfaces.n5g.service import N5gService
from eir.node.processes.setup import limits_of
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.transport.tls import Tls

if TYPE_CHECKING:
    from eir.wire.web.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a worker that all its protocols share."""

    checker: Checker
    counts: Counts
    rates: RateLimits
    report: Report
    tokens: "Tokens | None"


class Asking(NamedTuple):
    """A protocol."""

    make: Callable[[Parts, Config, Tls | None], Any]
    """Its server. Opens nothing."""
    reconfigure: Callable[[Any, Config, Tls | None], None]
    """Tells that server of another configuration; what clients it still allows stay."""
    stays: bool = True
    """Its clients stay connected. Otherwise they connect when they have a request: a client without a connection is not away, and
    `expected: false` makes no probe of one."""


def _n5g(parts: Parts, config: Config, tls: Tls | None) -> N5gServer:
    return N5gServer(
        N5gService(parts.checker), config.peers, limits_of(config), counts=parts.counts, rates=parts.rates, report=parts.report,
        overload=config.overload_answer, tls=_http2(tls), tokens=parts.tokens,
    )  # fmt: skip


def _reconfigure_n5g(server: N5gServer, config: Config, tls: Tls | None) -> None:
    server.reconfigure(config.peers, limits_of(config), overload=config.overload_answer, tls=_http2(tls))


def _map(parts: Parts, config: Config, _: Tls | None) -> MapServer:
    return MapServer(
        MapService(parts.checker), config.peers, limits_of(config), config.ss7, config.policy, counts=parts.counts, rates=parts.rates,
        report=parts.report, overload=config.overload_answer, sctp_settings=config.sctp,
    )  # fmt: skip


def _reconfigure_map(server: MapServer, config: Config, _: Tls | None) -> None:
    server.reconfigure(
        config.peers,
        limits_of(config),
        config.ss7,
        config.policy,
        overload=config.overload_answer,
        sctp_settings=config.sctp,
    )


def _http2(tls: Tls | None) -> ssl.SSLContext | None:
    return tls.http2 if tls else None


def _gsup(parts: Parts, config: Config, _tls: Tls | None) -> GsupServer:
    return GsupServer(
        GsupService(parts.checker), config.gsup, config.peers, limits_of(config), counts=parts.counts, rates=parts.rates, report=parts.report,
        overload=config.overload_answer,
    )  # fmt: skip


def _reconfigure_gsup(server: GsupServer, config: Config, _tls: Tls | None) -> None:
    server.reconfigure(config.gsup, config.peers, limits_of(config), overload=config.overload_answer)


PROTOCOLS: Mapping[str, Asking] = {
    N5G: Asking(_n5g, _reconfigure_n5g, stays=False),
    GSUP: Asking(_gsup, _reconfigure_gsup),
    MAP: Asking(_map, _reconfigure_map),
}
"""Protocols by their name in metrics, which is also the name of their listeners."""
