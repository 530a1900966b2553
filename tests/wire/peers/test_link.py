"""The connection of a client, whatever its protocol."""

import asyncio
from types import SimpleNamespace

import pytest

from eir.wire.peers.counts import Counts
from eir.wire.peers.link import Link
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.server import Server
from eir.wire.peers.settings import Limits, PeerSettings, Requester


async def test_a_connection_whose_end_goes_wrong_is_gone_all_the_same():
    """Else it would count among those of its source for ever."""

    class Broken(Link):
        def ended(self):
            raise ZeroDivisionError

    link = Broken(SimpleNamespace(lost=lambda _: None), asyncio.get_running_loop())
    with pytest.raises(ZeroDivisionError):
        link.connection_lost(None)
    assert link.closed.done()


async def test_a_client_that_leaves_its_answers_unread_is_dropped_counted_and_told_of():
    told = []
    server = Server(
        "any",
        counts=Counts(),
        rates=RateLimits((), Limits(), None),
        report=lambda event, **fields: told.append((event, fields["reason"])),
    )
    server.use((), Limits(stalled_write_s=0))

    class Asking(Link):
        tally, end = (2, 1), ""

        def ended(self):
            pass

        def wants_bytes(self):
            return True

    link = Asking(server, server.loop)
    link.settings = PeerSettings(label="slow")
    link.transport = SimpleNamespace(
        is_closing=lambda: False, pause_reading=lambda: None, abort=lambda: link.connection_lost(None)
    )
    server.links.add(link)
    link.pause_writing()
    await asyncio.wait_for(link.closed, 180)
    assert told == [("connection_fault", "stalled_write")]
    assert server.errors == {"stalled_write": 1}


async def test_answers_are_counted_with_their_durations_and_when_the_last_one_was():
    server = Server("any", counts=Counts(), rates=RateLimits((), Limits(), None), report=lambda *_, **__: None)
    link = Link(server, server.loop)
    link.requester = Requester("mme")
    for count, seconds in ((3, 0.004), (2, 0.5)):
        server.answered(link, count, seconds)
    durations = server.node_counts.durations
    assert (sum(durations.buckets), durations.total_s) == (5, pytest.approx(3 * 0.004 + 2 * 0.5))
    assert server.node_counts.last_request["mme"] > 1_700_000_000


async def test_a_peer_that_is_put_out_of_service_is_sent_away_and_no_other():
    left = []

    class Known(Link):
        def leave(self):
            left.append(self.requester.label)

    server = Server("any", counts=Counts(), rates=RateLimits((), Limits(), None), report=lambda *_, **__: None)
    for label in ("mme1", "mme2", "mme1"):
        link = Known(server, server.loop)
        link.requester = Requester(label)
        server.links.add(link)
    server.disable("mme1")
    assert left == ["mme1", "mme1"]
    assert set(server.disabled()) == {"mme1"}
    server.enable("mme1")
    assert not server.disabled()


async def test_a_server_that_is_drained_takes_nobody_any_more():
    """Its protocol goes by that: a handshake may end while clients are sent away."""
    server = Server("any", counts=Counts(), rates=RateLimits((), Limits(), None), report=lambda *_, **__: None)
    assert not server.draining
    await server.drain(180)
    assert server.draining


@pytest.mark.parametrize("name", [None, ()])
async def test_a_client_that_is_gone_before_the_loop_comes_to_it_is_let_go(name):
    """Its socket has no name any more (ENOTCONN); nobody else would close it."""
    gone = []
    link = Link(SimpleNamespace(), asyncio.get_running_loop())
    link.connection_made(SimpleNamespace(get_extra_info=lambda _: name, abort=lambda: gone.append(link)))
    assert gone == [link]


async def test_a_client_is_read_from_as_long_as_there_is_room_and_it_takes_its_answers():
    done, room = [], [True]

    class Asking(Link):
        def wants_bytes(self):
            return room[0]

        def has_work(self):
            return False

    link = Asking(SimpleNamespace(limits=Limits()), asyncio.get_running_loop())
    link.set_reading()  # before there is a transport
    closing = [False]
    link.transport = SimpleNamespace(
        is_closing=lambda: closing[0], pause_reading=lambda: done.append("pause"), resume_reading=lambda: done.append("resume")
    )  # fmt: skip
    for wants, step, told in (
        (True, link.set_reading, []), (False, link.set_reading, ["pause"]), (False, link.set_reading, []), (True, link.set_reading, ["resume"]),
        (True, link.pause_writing, ["pause"]), (True, link.set_reading, []), (True, link.resume_writing, ["resume"]),
    ):  # fmt: skip
        room[0], done[:] = wants, []
        step()
        assert done == told
    closing[0], room[0] = True, False
    link.set_reading()
    assert done == ["resume"]
