"""SCTP: what goes out and comes in, message by message; paths that fail, associations that begin anew, readers that do not read."""

import asyncio
import contextlib
import ctypes
import errno
import resource
import select
import socket
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from far import OURS, THEIRS, far, linked, switch
from simulated import sctp_wire
from simulated.patience import PATIENCE_S
from simulated.sctp_wire import SCTP, connected, receive, sctp_socket
from simulated.wire import TGPP, VSAI, Connection, Message, cer, dwr, ecr, u32, until
from test_conformance import LISTED, OVER, PEER, running

from eir.wire.peers.settings import Limits
from eir.wire.transport.sctp_options import Option, settings_layout
from eir.wire.transport.settings import SctpSettings

pytestmark = pytest.mark.sctp

SNDINFO, RTOINFO, ASSOCINFO, PEER_ADDR_PARAMS, INITMSG = 2, 0, 1, 9, 2
UNORDERED = 1


@pytest.fixture(autouse=True)
def over_sctp():
    OVER.scheme = "sctp"
    yield
    OVER.scheme = "tcp"


def run(case):
    """On the loop that the server runs on."""
    uvloop.run(case)


async def opened(port, *, addresses=()):
    """A socket with its capabilities exchanged; what comes is read message by message."""
    made = await connected(port, addresses=addresses)
    made.setsockopt(SCTP, sctp_wire.RECVRCVINFO, 1)
    await send(made, cer())
    return made, await receive(made)


async def send(made, octets, *, stream=0, ppid=0):
    info = struct.pack("=HH4sIi", stream, 0, ppid.to_bytes(4), 0, 0)
    made.sendmsg([octets], [(SCTP, SNDINFO, info)])


@pytest.mark.long
def test_each_message_of_ours_is_one_of_sctp():
    async def case():
        async with running(exact=False) as setup:
            made, cea = await opened(setup.port)
            # RFC 6733 2.1: in order until the peer's next message proves that it has the CEA; PPID 46 from the first message on.
            assert (cea.stream, cea.unordered, cea.ppid, cea.whole) == (0, False, 46, True)
            # Many requests in one segment are answered at once, by columns, and go out one by one all the same.
            requests = [ecr(LISTED, ids=(number, number)) for number in range(200)]
            await send(made, b"".join(requests))
            answers = [await receive(made) for _ in requests]
            assert {(each.stream, each.unordered, each.ppid, each.whole) for each in answers} == {(0, True, 46, True)}
            assert sorted(Message(each.data).hop_by_hop for each in answers) == list(range(200))
            assert {Message(each.data).number(1445, TGPP) for each in answers} == {1}
            made.close()

    run(case())


@pytest.mark.long
def test_any_stream_any_identifier_any_cut_is_taken():
    async def case():
        async with running(exact=False) as setup:
            made, _ = await opened(setup.port)
            for stream, ppid in ((0, 0), (3, 46), (9, 47), (1, 0xFFFFFFFF)):
                await send(made, ecr(LISTED), stream=stream, ppid=ppid)
                assert Message((await receive(made)).data).number(1445, TGPP) == 1
            whole = ecr(LISTED) + ecr() + dwr()
            for at in range(0, len(whole), 100):
                await send(made, whole[at : at + 100])
            assert [Message((await receive(made)).data).command for _ in range(3)] == [324, 324, 280]
            made.close()

    run(case())


def test_parts_of_a_message_on_two_streams_are_not_joined():
    async def case():
        whole = ecr(LISTED)
        for first in (
            100,
            2,
            20,
            len(whole) + 3,
        ):  # in the middle, inside its length, after its header, in the second of two
            async with running(exact=False) as setup:
                made, _ = await opened(setup.port)
                octets = whole + whole
                await send(made, octets[:first], stream=1)
                await send(made, octets[first:], stream=2)
                if first > len(whole):
                    assert Message((await receive(made)).data).result == 2001
                with contextlib.suppress(ConnectionError):
                    assert await receive(made) is None
                await until(lambda setup=setup: setup.node.connected() == {"mme": 0})
                assert setup.counts.errors["truncated"] == 1
                assert setup.counts.answers["mme", "2001"] == 1 + (first > len(whole))
                made.close()
            async with running(exact=False) as setup:  # over one it is one
                made, _ = await opened(setup.port)
                await send(made, octets[:first], stream=3)
                await send(made, octets[first:], stream=3)
                assert [Message((await receive(made)).data).number(1445, TGPP) for _ in range(2)] == [1, 1]
                made.close()

    run(case())


def test_long_messages_arrive_whole_both_ways():
    async def case():
        async with running(limits=Limits(), exact=False) as setup:
            made, _ = await opened(setup.port)
            proxy = struct.pack(">II", 284, 0x40 << 24 | 60_008) + bytes(60_000)
            await asyncio.get_running_loop().sock_sendall(made, ecr(LISTED, extra=proxy))
            octets = b""
            while len(octets) < 60_000:
                octets += (await receive(made)).data
            answer = Message(octets)
            assert (answer.number(1445, TGPP), answer.every(284)[0].raw) == (1, proxy)
            made.close()

    run(case())


def test_a_reader_that_sleeps_gets_every_answer_for_itself():
    async def case():
        async with running(limits=Limits(stalled_write_s=60), exact=False) as setup:
            made, _ = await opened(setup.port)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

            async def ask():
                loop = asyncio.get_running_loop()
                for number in range(3000):
                    await loop.sock_sendall(made, ecr(LISTED, ids=(number, number)))

            asking = asyncio.create_task(ask())
            (link,) = links(setup)
            await until(
                lambda: link.stalled is not None
            )  # its answers fill the kernel's room and ours: we read no more of it
            got = [await receive(made) for _ in range(3000)]
            await asking
            assert all(each.whole for each in got)
            assert sorted(Message(each.data).hop_by_hop for each in got) == list(range(3000))
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
            assert setup.counts.errors == {}
            made.close()

    run(case())


def test_one_that_never_reads_is_dropped():
    async def case():
        async with running(limits=Limits(stalled_write_s=0.3, write_buffer_bytes=16384), exact=False) as setup:
            made, _ = await opened(setup.port)
            loop = asyncio.get_running_loop()
            with pytest.raises(OSError):  # noqa: PT011, PT012 - how often it may ask is the kernel's matter; an ABORT is a reset or a broken pipe
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        await loop.sock_sendall(made, ecr())
            assert setup.counts.errors["stalled_write"] == 1
            made.close()

    run(case())


def test_addresses_of_both_versions_are_one_endpoint():
    async def case():
        async with running(exact=False) as setup:
            _, port = await setup.node.listen("sctp://127.0.0.1,127.0.0.2,[::1]:0")
            for host in ("127.0.0.1", "127.0.0.2"):
                made = await connected(port, host)
                made.setsockopt(SCTP, sctp_wire.RECVRCVINFO, 1)
                await send(made, cer(f"mme-{host}.localdomain"))
                cea = Message((await receive(made)).data)
                assert cea.result == 2001
                # RFC 6733 5.3.1: one Host-IP-Address for each address that messages may come from.
                assert {each.data[2:] for each in cea.every(257)} >= {
                    socket.inet_aton("127.0.0.1"),
                    socket.inet_aton("127.0.0.2"),
                }
                made.close()

    run(case())


def test_addresses_of_one_version_have_a_socket_of_that_version():
    async def case():
        async with running(peers=(replace(PEER, sources=()),), exact=False) as setup:
            for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
                _, port = await setup.node.listen(f"sctp://{f'[{host}]' if ':' in host else host}:0")
                with socket.socket(family, socket.SOCK_STREAM, SCTP) as made:
                    made.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(made, (host, port))
                    await until(lambda: setup.node.links)
                    (link,) = links(setup)
                    assert socket_of(link).family == family
                await until(lambda: not setup.node.links)

    run(case())


def test_what_is_configured_is_what_the_kernel_does():
    settings = SctpSettings(
        rto_initial_s=0.7,
        rto_min_s=0.35,
        rto_max_s=1.4,
        heartbeat_s=2.5,
        path_retransmissions=3,
        association_retransmissions=6,
    )

    async def case():
        async with running(exact=False, sctp=settings) as setup:
            made, _ = await opened(setup.port)
            (link,) = links(setup)
            accepted = socket_of(link)
            assert struct.unpack("=4xIII", accepted.getsockopt(SCTP, RTOINFO, 16)) == (700, 1400, 350)
            assert struct.unpack_from("=4xH", accepted.getsockopt(SCTP, ASSOCINFO, 20)) == (6,)
            assert struct.unpack_from("=132xIH", parameters(accepted)) == (2500, 3)
            assert accepted.getsockopt(SCTP, 3) == 1, "NODELAY"
            # RFC 6458 6.2.1: association and address events, no data events.
            assert accepted.getsockopt(SCTP, Option.EVENTS, 8) == bytes([0, 1, 1, 0, 0, 0, 0, 0])
            for off in (Option.AUTH_SUPPORTED, Option.ASCONF_SUPPORTED):
                assert struct.unpack("=4xI", accepted.getsockopt(SCTP, off, 8)) == (0,)
            # A reload changes what is accepted from then on.
            setup.node.reconfigure((PEER,), sctp=replace(settings, heartbeat_s=9))
            again = await connected(setup.port)
            await until(lambda: len(links(setup)) == 2)
            *_, link = links(setup)
            assert struct.unpack_from("=132xI", parameters(socket_of(link))) == (9000,)
            again.close()
            made.close()

    run(case())


def links(setup):
    """The node's end of each connection, the oldest first."""
    return list(setup.node.links.values())


def socket_of(link):
    return link.transport.get_extra_info("socket")


def parameters(accepted):
    """SCTP_PEER_ADDR_PARAMS of the association; Python does not clear the buffer in which the kernel looks for an address."""
    value, size = ctypes.create_string_buffer(156), ctypes.c_uint32(156)
    assert ctypes.CDLL(None).getsockopt(accepted.fileno(), SCTP, PEER_ADDR_PARAMS, value, ctypes.byref(size)) == 0
    return value.raw


# Two paths between two networks


PEER_PORT = 40_001


@pytest.fixture
def paths():
    """A second network with two links to it; gives a function that switches one of them."""
    with linked():
        yield switch


async def far_connected(port, settings=None, *, meanwhile=lambda: None):
    """A client with two addresses there, in step with the node's own timers; what is to happen `meanwhile` does once its INIT has been sent."""
    with far():
        made = sctp_socket(*THEIRS, port=PEER_PORT)
    for option, value in settings_layout(settings or SctpSettings()):
        made.setsockopt(SCTP, option, value)
    assert (
        made.connect_ex((OURS[0], port)) == errno.EINPROGRESS
    )  # at once, which the loop's own way is not: it looks the address up first
    meanwhile()
    await until(lambda: select.select([], [made], [], 0)[1])
    made.setsockopt(SCTP, sctp_wire.RECVRCVINFO, 1)
    return made


QUIET = SctpSettings(heartbeat_s=3600)
"""No path is looked after."""


async def restarted(setup, made, port, paths, *, unsent=b""):
    """The client once it has connected again from the same ports, after an end without a word, as by a loss of power.

    Until it has, no heartbeat may find that nobody is there, which would be answered by an ABORT: all are answered before, and the node is QUIET.
    """
    await until(lambda: paths_of(setup) == {"up": 2, "down": 0})
    await all_acknowledged()

    def switched(*, up):
        for name in ("one", "two"):
            paths(name, up=up)

    switched(up=False)
    if unsent:
        await send(made, unsent)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()  # its ABORT does not arrive
    return await far_connected(port, meanwhile=lambda: switched(up=True))


@asynccontextmanager
async def multihomed(**more):
    """A node with two addresses, and its port there."""
    peer = replace(PEER, sources=())
    async with running(peers=(peer,), exact=False, **more) as setup:
        _, port = await setup.node.listen(f"sctp://{','.join(OURS)}:0")
        yield setup, port


class Flow:
    """One request after the other, and how long each has waited."""

    def __init__(self, made):
        self.made = made
        self.waits = []
        self._task = asyncio.create_task(self._ask())

    async def _ask(self):
        while True:
            asked = time.monotonic()
            await send(self.made, ecr(LISTED, ids=(len(self.waits), 7)))
            answer = Message((await receive(self.made)).data)
            assert (answer.hop_by_hop, answer.number(1445, TGPP)) == (len(self.waits), 1)
            self.waits.append(time.monotonic() - asked)
            await asyncio.sleep(0.005)

    async def more(self, number):
        wanted = len(self.waits) + number
        async with asyncio.timeout(PATIENCE_S):
            while len(self.waits) < wanted:
                assert not self._task.done(), self._task.result()
                await asyncio.sleep(0.01)

    async def end(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def all_acknowledged():
    """Nothing is on its way: what is sent again after a restart would be answered by an ABORT."""

    def queues():
        rows = Path("/proc/net/sctp/assocs").read_text().splitlines()[1:]
        return [int(row.split()[7]) for row in rows]

    await until(lambda: not any(queues()))


def paths_of(setup):
    reached = [up for _, _, up in setup.node.paths()]
    return {"up": reached.count(True), "down": reached.count(False)}


@pytest.mark.long
def test_one_of_two_paths_fails_and_comes_back(paths):
    async def case():
        settings = SctpSettings(
            heartbeat_s=0.5
        )  # the defaults but for that, which would have a quiet path found out later
        async with multihomed(sctp=settings) as (setup, port):
            made = await far_connected(port, settings)
            await send(made, cer())
            assert Message((await receive(made)).data).result == 2001
            await until(lambda: paths_of(setup) == {"up": 2, "down": 0})
            flow = Flow(made)
            await flow.more(20)
            paths("one", up=False)
            await until(lambda: paths_of(setup) == {"up": 1, "down": 1})
            await flow.more(20)
            paths("one", up=True)
            await until(lambda: paths_of(setup) == {"up": 2, "down": 0})
            paths("two", up=False)  # so that it is the first one again that carries everything
            await flow.more(100)
            await flow.end()
            assert [event for event, _ in setup.reports.seen if event.startswith("path_")][:2] == [
                "path_down",
                "path_up",
            ]
            setup.node.count_retransmissions()
            assert setup.counts.sctp_retransmissions["mme"] > 0
            print(f"longest wait {max(flow.waits) * 1000:.0f} ms of {len(flow.waits)} requests")
            assert max(flow.waits) < 20, "nothing waits as long as SCTP's own defaults would have it, which is a minute"
            made.close()

    run(case())


@pytest.mark.long
def test_both_paths_fail_and_come_back(paths):
    patient = SctpSettings(heartbeat_s=0.5, path_retransmissions=30, association_retransmissions=60)

    async def case():
        async with multihomed(sctp=patient) as (setup, port):
            made = await far_connected(port, patient)
            await send(made, cer())
            await receive(made)
            flow = Flow(made)
            await flow.more(20)
            for name in ("one", "two"):
                paths(name, up=False)
            await asyncio.sleep(1.5)
            for name in ("one", "two"):
                paths(name, up=True)
            await flow.more(20)
            await flow.end()
            assert setup.node.connected() == {"mme": 1}
            made.close()

    run(case())


@pytest.mark.long
def test_a_peer_that_never_comes_back_is_given_up(paths):
    async def case():
        quick = SctpSettings(
            rto_initial_s=0.1,
            rto_min_s=0.1,
            rto_max_s=0.2,
            path_retransmissions=2,
            association_retransmissions=4,
            heartbeat_s=0.5,
        )
        async with multihomed(sctp=quick) as (setup, port):
            made = await far_connected(port, quick)
            await send(made, cer())
            await receive(made)
            for name in ("one", "two"):
                paths(name, up=False)
            await until(lambda: setup.node.connected() == {"mme": 0})
            closed = [fields["reason"] for event, fields in setup.reports.seen if event == "peer_closed"]
            assert closed == ["peer_closed"]
            for name in ("one", "two"):
                paths(name, up=True)
            made.close()

    run(case())


@pytest.mark.long
def test_a_peer_that_restarts_begins_again_with_its_cer(paths):
    async def case():
        async with multihomed(sctp=QUIET) as (setup, port):
            made = await far_connected(port)
            await send(made, cer())
            await receive(made)
            await send(made, ecr(LISTED, ids=(1, 1)))
            assert Message((await receive(made)).data).hop_by_hop == 1
            again = await restarted(
                setup, made, port, paths, unsent=ecr(LISTED, ids=(2, 2))
            )  # which is not to be answered later
            await until(lambda: setup.counts.sctp_restarts == {"mme": 1})
            assert setup.node.connected() == {"mme": 0}
            assert [row.state for row in setup.node.status() if row.address] == ["wait_cer"]
            await send(again, cer(state_id=u32(278, 101), ids=(5, 5)))
            cea = await receive(again)
            assert (Message(cea.data).result, Message(cea.data).hop_by_hop, cea.unordered) == (2001, 5, False)
            await send(again, ecr(LISTED, ids=(3, 3)))
            answer = await receive(again)
            assert (Message(answer.data).hop_by_hop, answer.unordered) == (3, True)
            assert setup.node.connected() == {"mme": 1}
            again.close()

    run(case())


@pytest.mark.long
def test_after_a_restart_something_else_than_a_cer_closes(paths):
    async def case():
        async with multihomed(sctp=QUIET) as (setup, port):
            made = await far_connected(port)
            await send(made, cer())
            await receive(made)
            again = await restarted(setup, made, port, paths)
            await send(again, ecr(LISTED))
            await until(lambda: setup.counts.peers_refused == {"not_cer": 1})
            assert setup.counts.sctp_restarts == {"mme": 1}
            await until(lambda: setup.node.connected() == {"mme": 0})
            again.close()

    run(case())


@pytest.mark.long
def test_we_connect_to_a_peer_with_two_addresses(paths):
    async def case():
        with far():
            listening = sctp_socket(*THEIRS)
        listening.listen(4)
        port = listening.getsockname()[1]
        peer = replace(PEER, sources=(), connect=f"sctp://{','.join(THEIRS)}:{port}", host="mme.localdomain")
        loop = asyncio.get_running_loop()
        paths("one", up=False)  # the first address does not answer: the second one does
        async with running(peers=(peer,), exact=False, sctp=SctpSettings(local_addresses=OURS)) as setup:
            accepted, _ = await loop.sock_accept(listening)
            client = Connection(*sctp_wire.streams(accepted))
            request = await client.read()
            assert (request.command, request.is_request) == (257, True)
            assert {each.data[2:] for each in request.every(257)} == {socket.inet_aton(each) for each in OURS}
            await client.answer(request, extra=VSAI)
            assert (await client.ask(ecr(LISTED))).number(1445, TGPP) == 1
            assert setup.node.connected() == {"mme": 1}
            await client.close()
        listening.close()
        paths("one", up=True)

    run(case())
