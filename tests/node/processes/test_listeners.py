"""The acceptor without sockets: clients at unknown addresses that are answered, and refused connections."""

from collections import Counter
from ipaddress import ip_network
from types import SimpleNamespace

from clock import Clock

from eir.node.processes.listeners import STRANGERS_MAX, STRANGERS_PER_S, Acceptor
from eir.wire.peers.settings import Limits, PeerSettings

KNOWN, UNKNOWN = "192.0.2.1", "198.51.100.1"


async def test_so_many_strangers_are_answered_at_once_and_in_a_second():
    clock, events, served = Clock(), [], []
    peers = [PeerSettings(label="amf", realm="example", sources=(ip_network(KNOWN),))]
    context = SimpleNamespace(
        shared=SimpleNamespace(peers=peers, limits=Limits()), counts=SimpleNamespace(peers_refused=Counter()),
        report=lambda event, **fields: events.append((event, fields["reason"])),
    )  # fmt: skip
    acceptor = Acceptor(context, lambda _, interface, __, closed: served.append((interface, closed)))

    def come(times=1, address=UNKNOWN):
        """Connect over HTTP; return how many connections are served."""
        before = len(served)
        for _ in range(times):
            acceptor._accept(
                "n5g", "http://127.0.0.1:7777", SimpleNamespace(close=list, getpeername=lambda: (address, 4711))
            )
        return len(served) - before

    with clock.standing():
        assert come() == 1
        clock.forward(0.5)
        assert come(STRANGERS_PER_S) == STRANGERS_PER_S - 1
        clock.forward(0.5)
        assert come(2) == 1
        clock.forward(1.0)
        left = STRANGERS_MAX - STRANGERS_PER_S - 1
        assert come(left + 1) == left
        served[-1][1]()
        assert come() == 1
    assert come(address=KNOWN) == 1
    assert context.counts.peers_refused == {"source": 3}
    assert events == [("peer_refused", "source")] * 3
