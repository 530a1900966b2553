"""The connection of a client, whatever its protocol."""

import asyncio
from collections import Counter
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest
from simulated.patience import PATIENCE_S

from eir.wire.peers.counts import Counts
from eir.wire.peers.link import Alarm, PeerConnection
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.server import Server
from eir.wire.peers.settings import Limits, PeerSettings, Requester, is_from


async def test_a_connection_whose_end_goes_wrong_is_gone_all_the_same():
    """Else it would count among those of its source for ever."""

    class Broken(PeerConnection):
        def ended(self):
            raise ZeroDivisionError

    link = Broken(SimpleNamespace(lost=lambda _: None), asyncio.get_running_loop())
    with pytest.raises(ZeroDivisionError):
        link.connection_lost(None)
    assert link.closed.done()


async def test_a_client_that_leaves_its_answers_unread_is_dropped_counted_and_logged():
    told = []
    server = Server(
        "any",
        counts=Counts(),
        rates=RateLimits(Limits()),
        report=lambda event, **fields: told.append((event, fields["reason"])),
    )
    server.use((), Limits(stalled_write_s=0))

    class Asking(PeerConnection):
        tally = 2, 1

        def ended(self):
            pass

        def wants_bytes(self):
            return True

    link = Asking(server, server.loop)
    link.settings = PeerSettings(label="slow")
    link.transport = SimpleNamespace(
        is_closing=lambda: False, pause_reading=lambda: None, abort=lambda: link.connection_lost(None)
    )
    server.enter(link)
    link.pause_writing()
    await asyncio.wait_for(link.closed, PATIENCE_S)
    assert told == [("connection_fault", "stalled_write")]
    assert server.errors == {"stalled_write": 1}


async def test_answers_are_counted_with_their_durations_and_when_the_last_one_was():
    server = Server("any", counts=Counts(), rates=RateLimits(Limits()), report=lambda *_, **__: None)
    link = PeerConnection(server, server.loop)
    link.requester = Requester("mme")
    for count, seconds in ((3, 0.004), (2, 0.5)):
        server.answered(link, count, seconds)
    durations = server.node_counts.durations
    assert (sum(durations.buckets), durations.total_s) == (5, pytest.approx(3 * 0.004 + 2 * 0.5))
    assert server.node_counts.last_request["mme"] > 1_700_000_000


async def test_a_peer_that_is_put_out_of_service_is_sent_away_and_no_other():
    left = []

    class Known(PeerConnection):
        def leave(self):
            left.append(self.requester.label)

    server = Server("any", counts=Counts(), rates=RateLimits(Limits()), report=lambda *_, **__: None)
    for label in ("mme1", "mme2", "mme1"):
        link = Known(server, server.loop)
        link.requester = Requester(label)
        server.enter(link)
    server.disable("mme1")
    assert left == ["mme1", "mme1"]
    assert set(server.disabled()) == {"mme1"}
    server.enable("mme1")
    assert not server.disabled()


async def test_a_server_that_is_drained_takes_nobody_any_more():
    """Its protocol goes by that: a handshake may end while clients are sent away."""
    server = Server("any", counts=Counts(), rates=RateLimits(Limits()), report=lambda *_, **__: None)
    assert not server.draining
    await server.drain(180)
    assert server.draining


@pytest.mark.parametrize("name", [None, ()])
async def test_a_client_that_is_gone_before_the_loop_comes_to_it_is_let_go(name):
    """Its socket has no name any more (ENOTCONN); nobody else would close it."""
    gone = []
    link = PeerConnection(SimpleNamespace(), asyncio.get_running_loop())
    link.connection_made(SimpleNamespace(get_extra_info=lambda _: name, abort=lambda: gone.append(link)))
    assert gone == [link]


@pytest.mark.parametrize("is_accepted", [True, False])
async def test_a_rejected_client_is_disconnected_after_its_error(is_accepted):
    calls = []

    class Greeting(PeerConnection):
        def begin(self):
            self.transport.write(b"greeting or error")
            return is_accepted

    link = Greeting(SimpleNamespace(limits=Limits()), asyncio.get_running_loop())
    link.connection_made(SimpleNamespace(
        get_extra_info=lambda _: ("192.0.2.1", 3868), set_write_buffer_limits=lambda **_: None,
        write=lambda _: calls.append("write"), abort=lambda: calls.append("abort"),
    ))  # fmt: skip
    assert calls == (["write"] if is_accepted else ["write", "abort"])


async def test_a_client_is_read_from_as_long_as_there_is_room_and_it_takes_its_answers():
    done, room = [], [True]

    class Asking(PeerConnection):
        def wants_bytes(self):
            return room[0]

        def request_turn(self):
            pass

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


class Leaving(PeerConnection):
    def leave(self):
        pass


def refused(server, **fields):
    """The reason for which a server refuses a connection; None: it takes the connection."""
    link = Leaving(server, server.loop)
    link.source = ip_address("192.0.2.1")
    vars(link).update(fields)
    before = Counter(server.node_counts.peers_refused)
    taken = server.admit(link)
    assert taken == (link in server.links.values())
    return next(iter(server.node_counts.peers_refused - before), None)


class Known(Server):
    """Knows a client by its address alone."""

    def who(self, link):
        found = next((each for each in self.peers if is_from(each, link.source)), None)
        return None if found is None else (found, Requester(found.label))


async def test_the_first_reason_against_a_connection_is_the_one_that_is_counted():
    told = []
    server = Known(
        "any",
        counts=Counts(),
        rates=RateLimits(Limits()),
        report=lambda event, **fields: told.append((event, fields)),
    )
    server.use((PeerSettings(label="mme", sources=(ip_network("192.0.2.0/24"),)),), Limits())
    assert refused(server) is None
    assert refused(server, source=ip_address("198.51.100.1")) == "source"
    server.disable("mme")
    assert refused(server) == "disabled"
    server.draining = True
    assert refused(server, source=ip_address("198.51.100.1")) == "draining"
    assert [(event, fields["reason"], fields.get("setting"), fields["protocol"]) for event, fields in told] == [
        ("peer_refused", "source", "peers: from", "any"), ("peer_refused", "disabled", None, "any"), ("peer_refused", "draining", None, "any"),
    ]  # fmt: skip
    assert not server.connected() - Counter(mme=1)


async def test_a_request_past_a_limit_is_shed_by_the_first_one():
    server = Known("any", counts=Counts(), rates=RateLimits(Limits(rate_max=8)), report=lambda *_, **__: None)
    server.use((PeerSettings(label="mme", rate_max=4),), Limits())
    link = PeerConnection(server, server.loop)
    assert server.identify(link) is None
    assert [server.past_limit("mme", link.rates) for _ in range(3)] == ["", "rate_max", "rate_max"]
    assert server.node_counts.shed == {("mme", "rate_max"): 2}
    assert server.past_limit("mme", ()) == ""


async def test_an_alarm_rings_at_the_earliest_deadline_and_no_later_one_moves_it():
    loop, rung = asyncio.get_running_loop(), asyncio.Queue()
    alarm, now = Alarm(loop, rung.put_nowait), loop.time()
    for due in (now + 3600, now, now + 7200, None):
        alarm.set(due)
    assert await rung.get() >= now
    alarm.set(now)
    alarm.cancel()
    alarm.set(loop.time())
    await rung.get()
    assert rung.empty()
