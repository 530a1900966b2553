"""The acceptor without sockets: clients at unknown addresses that are answered, and refused connections."""

from contextlib import closing
from ipaddress import ip_network
from types import SimpleNamespace

from clock import Clock

from eir.node.processes.accept import STRANGERS_MAX, STRANGERS_PER_S, Acceptor
from eir.wire.peers.settings import Limits, PeerSettings
from eir.wire.transport.settings import SctpSettings

KNOWN, UNKNOWN = "192.0.2.1", "198.51.100.1"


async def test_so_many_strangers_are_answered_at_once_and_in_a_second():
    clock, events, handed = Clock(), [], []
    peers = [PeerSettings(label="amf", realm="example", sources=(ip_network(KNOWN),))]
    acceptor = Acceptor(
        peers, Limits(), SctpSettings(), report=lambda event, **fields: events.append((event, fields["reason"]))
    )

    def come(times=1, address=UNKNOWN, *, taken=True):
        """Connect over HTTP; return how many connections a worker received."""
        before = len(handed)
        for _ in range(times):
            connection = closing(SimpleNamespace(close=lambda: None))
            connection.getpeername = lambda: (address, 4711)
            acceptor._accept(0, lambda _, source, __: handed.append(source) or taken, connection, http=True)
        return len(handed) - before

    with clock.standing():
        assert come() == 1
        clock.forward(0.5)
        assert come(STRANGERS_PER_S) == STRANGERS_PER_S - 1
        clock.forward(0.5)
        assert come(2) == 1
        clock.forward(1.0)
        left = STRANGERS_MAX - STRANGERS_PER_S - 1
        assert come(left + 1) == left
        acceptor.remove(None)
        assert come() == 1
    assert set(handed) == {None}
    assert come(address=KNOWN) == 1
    come(address=KNOWN, taken=False)
    assert acceptor.snapshot()["eir_peers_refused_total"] == {("source",): 3, ("no_worker",): 1}
    assert events == [("peer_refused", "source")] * 3 + [("peer_refused", "no_worker")]
