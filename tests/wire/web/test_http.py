"""The pages over HTTP/1.1: good clients, bad ones, silent ones, too many."""

import asyncio
import socket
import tracemalloc
import urllib.request
from itertools import pairwise

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st
from simulated.wire import until

from eir.node.observe.http import COMPUTED_MAX, HttpServer
from eir.node.observe.http import pages as node_pages
from eir.wire.web.http1 import Conversation, HttpResponse
from eir.wire.web.http1_server import SLOW, HttpConnections, HttpLimits

PAGE = HttpResponse(200, "text/plain; charset=utf-8", b"page\n")


async def slow_page(_):
    await asyncio.sleep(0)
    return HttpResponse(503, "text/plain", b"slow\n")


def broken_page(_):
    raise KeyError("eir_surprise")


def reporting_to(told):
    def report(event, *, reason, detail, **_):
        told.append((event, reason, detail))

    return report


@pytest.fixture
def told():
    """What was reported, as (event, reason, detail)."""
    return []


@pytest.fixture
def limits():
    """Those of the server; a test that is about them gives its own."""
    return HttpLimits()


@pytest.fixture
def pages():
    return {
        "/page": lambda _: PAGE,
        "/slow": slow_page,
        "/broken": broken_page,
        "/mine": lambda _: PAGE._replace(authenticated=True),
    }


@pytest.fixture
async def server(told, limits, pages):
    made = HttpServer(pages, report=reporting_to(told), limits=limits)
    made.address = await made.listen("127.0.0.1", 0)
    yield made
    await made.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, request):
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = b"" if request.startswith(b"HEAD") else await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, body

    async def ended(self):
        async with asyncio.timeout(180):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@pytest.fixture
async def connect(server):
    made = []

    async def connect(address="127.0.0.1"):
        made.append(Client(*await asyncio.open_connection(*server.address, local_addr=(address, 0))))
        return made[-1]

    yield connect
    for client in made:
        client.writer.transport.abort()


GET = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_pages(connect):
    client = await connect()
    status, headers, body = await client.ask(GET)
    assert (status, headers["content-type"], body) == (200, PAGE.content_type, PAGE.body)
    assert await client.ask(b"GET /slow?x=1 HTTP/1.1\r\nHost: x\r\n\r\n") == (
        503, {"content-type": "text/plain", "content-length": "5"}, b"slow\n",
    )  # fmt: skip


async def test_a_page_that_fails_is_an_answer_and_a_line(connect, told):
    client = await connect()
    status, _, body = await client.ask(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == (500, b"this page failed; the log says why (page_failed)\n")
    ((event, page, detail),) = told
    assert (event, page) == ("page_failed", "/broken")
    assert detail.startswith("KeyError at ")
    assert "eir_surprise" not in detail
    assert (await client.ask(GET))[2] == PAGE.body  # over the same connection


async def test_a_plain_client(server):
    url = "http://{}:{}/page".format(*server.address)

    def get():
        with urllib.request.urlopen(url, timeout=600) as answer:
            return answer.read()

    assert await asyncio.to_thread(get) == PAGE.body


async def test_one_connection_takes_many_requests_split_anywhere_or_all_at_once(connect):
    client = await connect()
    for octet in GET[:-1]:
        client.writer.write(bytes([octet]))
        await client.writer.drain()
    assert (await client.ask(GET[-1:]))[0] == 200
    client.writer.write(GET * 3)
    for _ in range(3):
        assert (await client.ask(b""))[2] == PAGE.body


async def test_head_has_the_headers_only(connect):
    client = await connect()
    status, headers, _ = await client.ask(b"HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, headers["content-length"]) == (200, "5")
    assert (await client.ask(GET))[2] == PAGE.body


@pytest.mark.parametrize(
    ("request_line", "status"), [(b"GET /nothing", 404), (b"GET /", 404), (b"POST /page", 405), (b"DELETE /page", 405)]
)
async def test_what_is_not_there(connect, request_line, status):
    client = await connect()
    found, _, body = await client.ask(request_line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    assert found == status
    assert status != 404 or b"/page /slow" in body


async def test_connection_close_is_honoured(connect):
    client = await connect()
    assert (await client.ask(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[0] == 200
    assert await client.ended() == b""


async def test_http_1_0(connect):
    client = await connect()
    assert (await client.ask(b"GET /page HTTP/1.0\r\n\r\n"))[0] == 200
    assert await client.ended() == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"\x01\x00\x00\x14\x80\x00\x01\x01" + bytes(12),  # a Diameter header
        b"GET /page HTTP/1.1\r\n\r\n",  # no Host
        b"GET /page\r\n\r\n", b"\r\n" * 50000, b"GET /" + b"x" * 100_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, bytes(1000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_request_ends_the_connection_and_nothing_else(connect, octets):
    good, bad = await connect(), await connect()
    bad.writer.write(octets)
    bad.writer.write_eof()
    assert b" 200 " not in await bad.ended()
    assert (await good.ask(GET))[0] == 200


@pytest.mark.parametrize("limits", [HttpLimits(request_s=0.05)])
async def test_a_silent_client_is_dropped(connect):
    silent, half = await connect(), await connect()
    half.writer.write(GET[:10])
    assert await silent.ended() == b""
    assert await half.ended() == b""


@pytest.mark.parametrize(
    ("first", "then", "idle_s", "reasons"),
    [
        (b"", b"", 0.01, [SLOW]), (b"", GET[:10], 0.01, [SLOW]), (GET, b"", 0.01, []), (GET, b"", None, [SLOW]),
        (GET, GET[:10], 3600, [SLOW]), (GET + GET[:10], b"", 0.01, [SLOW]), (GET + b"\r\n", b"", 0.01, []),
    ],
)  # fmt: skip
async def test_a_slow_client_is_counted_and_an_idle_one_is_not(first, then, idle_s, reasons):
    """Also if the next request began in the packet of the one before; an empty line begins none."""
    ended = []
    connections = HttpConnections(
        lambda _: PAGE, limits=HttpLimits(request_s=0.05, idle_s=idle_s), ended=lambda *what: ended.append(what)
    )
    listener = await asyncio.get_running_loop().create_server(connections.create_connection, "127.0.0.1", 0)
    client = Client(*await asyncio.open_connection(*listener.sockets[0].getsockname()))
    if first:
        assert (await client.ask(first))[0] == 200
    client.writer.write(then)
    assert await client.ended() == b""
    client.writer.close()
    listener.close()
    assert ended == [("127.0.0.1", reason) for reason in reasons]


async def test_the_deadline_of_an_idle_client_is_checked_once_per_time_limit(monkeypatch):
    loop = asyncio.get_running_loop()
    connections = HttpConnections(lambda _: PAGE, limits=HttpLimits(request_s=0.5, idle_s=3600), ended=lambda *_: None)
    listener = await loop.create_server(connections.create_connection, "127.0.0.1", 0)
    client = Client(*await asyncio.open_connection(*listener.sockets[0].getsockname()))
    assert (await client.ask(GET))[0] == 200
    due, call_at = [], loop.call_at
    async with asyncio.timeout(180):
        monkeypatch.setattr(loop, "call_at", lambda when, *what: due.append(when) or call_at(when, *what))
        while len(due) < 2:  # noqa: ASYNC110 - a sleep that ends would be in the list
            await asyncio.sleep(0)
    client.writer.close()
    listener.close()
    first, second, *_ = due
    assert second - first >= 0.5


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_does_not_read_its_response_is_slow_and_not_idle(reads):
    clock, ended, page = Clock(), [], HttpResponse(200, "text/plain", bytes(1 << 24))
    limits = HttpLimits(request_s=60, idle_s=0.01 if reads else 3600)
    connections = HttpConnections(lambda _: page, limits=limits, ended=lambda *what: ended.append(what))
    listener = await asyncio.get_running_loop().create_server(connections.create_connection, "127.0.0.1", 0)
    client = Client(*await asyncio.open_connection(*listener.sockets[0].getsockname()))
    client.writer.write(GET)
    await until(lambda: connections.links and next(iter(connections.links))._stalled)
    if reads:
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(len(page.body))
    clock.forward(limits.request_s)
    if reads:
        assert await client.ended() == b""
    else:
        await until(lambda: ended)
    client.writer.close()
    listener.close()
    assert ended == ([] if reads else [("127.0.0.1", SLOW)])


@pytest.mark.parametrize(
    "begins",
    [b"GET /", b"GET /page HTTP/1.1\r\nHost: ", b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"],
)
@pytest.mark.parametrize("limits", [HttpLimits(request_s=0.3)])
async def test_a_request_that_never_ends_is_dropped(connect, begins):
    client = await connect()
    client.writer.write(begins)
    ended = asyncio.create_task(client.ended())
    while not ended.done():  # `ended` gives up in the end
        client.writer.write(b"x")
        await asyncio.sleep(0.05)
    assert await ended == b""


@pytest.mark.parametrize("limits", [HttpLimits(request_s=1.5)])
async def test_a_request_has_its_time_from_the_answer_before_it(connect):
    client = await connect()
    for _ in range(5):
        assert (await client.ask(GET))[0] == 200
        await asyncio.sleep(0.4)


@pytest.mark.parametrize("limits", [HttpLimits(connections_max=2)])
async def test_for_one_connection_too_many_the_oldest_goes(connect):
    held = [await connect() for _ in range(2)]  # and never say anything
    scrape = await connect()
    assert (await scrape.ask(GET))[0] == 200
    assert await held[0].ended() == b""
    probe = await connect()
    assert (await probe.ask(GET))[0] == 200
    assert await held[1].ended() == b""
    assert (await scrape.ask(GET))[0] == 200


@pytest.mark.parametrize("limits", [HttpLimits(connections_max=3)])
async def test_any_number_of_connections_at_once(connect):
    clients = [await connect() for _ in range(50)]
    assert [await client.ended() for client in clients[:-3]] == [b""] * 47
    for client in clients[-3:]:
        assert (await client.ask(GET))[0] == 200


MINE = GET.replace(b"/page", b"/mine")


@pytest.mark.parametrize("limits", [HttpLimits(connections_max=2)])
async def test_connections_of_strangers_close_none_that_has_authenticated(connect):
    register = await connect()
    assert (await register.ask(MINE))[0] == 200
    strangers = [await connect() for _ in range(20)]
    assert [await stranger.ended() for stranger in strangers[:-2]] == [b""] * 18
    for client in (*strangers[-2:], register):
        assert (await client.ask(GET))[0] == 200


@pytest.mark.parametrize("limits", [HttpLimits(connections_max=2)])
async def test_authenticated_connections_are_bounded_too(connect):
    stranger, registers = await connect(), []
    for _ in range(4):
        registers.append(await connect())
        assert (await registers[-1].ask(MINE))[0] == 200
    assert [await register.ended() for register in registers[:-2]] == [b""] * 2
    for client in (*registers[-2:], stranger):
        assert (await client.ask(GET))[0] == 200


@pytest.mark.parametrize("limits", [HttpLimits(connections_max=3)])
async def test_the_address_with_most_connections_loses_one(connect):
    """A register that has connected and not yet sent its password keeps its place beside a flood from another address."""
    register = await connect("127.0.0.2")
    flood = [await connect() for _ in range(10)]
    assert [await each.ended() for each in flood[:-2]] == [b""] * 8
    assert (await register.ask(MINE))[0] == 200


async def test_close_does_not_wait_for_clients(connect, server):
    client = await connect()
    await client.ask(GET)
    async with asyncio.timeout(180):
        await server.close()
    assert await client.ended() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*server.address)


async def test_a_port_that_is_taken():
    server, second = HttpServer({}, report=reporting_to([])), HttpServer({}, report=reporting_to([]))
    _, port = await server.listen("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        await second.listen("127.0.0.1", port)
    await server.close()
    await second.close()


async def test_ipv6():
    server = HttpServer({"/page": lambda _: PAGE}, report=reporting_to([]))
    address, port = await server.listen("::1", 0)
    assert address == "::1"
    client = Client(*await asyncio.open_connection(address, port))
    assert (await client.ask(GET))[2] == PAGE.body
    client.writer.close()
    await client.writer.wait_closed()
    await server.close()


@pytest.mark.parametrize("limits", [HttpLimits(requests_max=2)])
async def test_a_connection_has_its_requests(connect):
    client = await connect()
    assert "connection" not in (await client.ask(GET))[1]
    assert (await client.ask(GET))[1]["connection"] == "close"
    assert await client.ended() == b""


@pytest.mark.parametrize("limits", [HttpLimits(requests_max=10**6, connection_s=0.3)])
async def test_a_connection_has_its_time(connect):
    busy = await connect()

    async def ask_for_ever():
        while True:
            await busy.ask(MINE)

    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await ask_for_ever()


@pytest.mark.parametrize("limits", [HttpLimits(requests_max=7, unauthenticated_max=3)])
async def test_a_stranger_has_few_requests_on_one_connection(connect):
    stranger, guest, register = await connect(), await connect(), await connect()
    stranger.writer.write(GET * 2000)  # it is closed although it never reads
    for _ in range(2):
        assert "connection" not in (await guest.ask(GET))[1]
    assert (await guest.ask(GET))[1]["connection"] == "close"
    assert await guest.ended() == b""
    for request in (GET, MINE, *(GET,) * 4):
        assert "connection" not in (await register.ask(request))[1]
    assert (await register.ask(GET))[1]["connection"] == "close"
    assert (await stranger.ended()).count(b"HTTP/1.1 200 ") <= 3


@pytest.mark.parametrize("limits", [HttpLimits(unauthenticated_max=1000)])
async def test_others_have_their_turn_beside_clients_that_pipeline(pages, connect):
    """Ten connections with hundreds of requests each: in one turn of the loop each of them gets one answer."""
    made, held, loop = [], [], asyncio.get_running_loop()

    def page(_):
        made.append(loop.time())
        return PAGE

    def turn(before):
        held.append(len(made) - before)
        if len(made) < 3000:
            loop.call_soon(turn, len(made))

    pages["/page"] = page
    loop.call_soon(turn, 0)
    for _ in range(10):
        (await connect()).writer.write(GET * 300)
    await until(lambda: len(made) == 3000)
    assert max(held) <= 10


@pytest.mark.parametrize("limits", [HttpLimits(unauthenticated_max=1000)])
async def test_live_is_answered_before_expensive_pages(pages, connect):
    """Beside forty clients that request the metrics again and again."""
    started, now, most, tasks = 0, 0, 0, []

    async def snapshot():
        nonlocal started, now, most
        started, now = started + 1, now + 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return {}

    pages |= node_pages(snapshot, None, None, computing=asyncio.Semaphore(COMPUTED_MAX), report=None)
    live = pages["/live"]
    pages["/live"] = lambda request: tasks.append(asyncio.current_task()) or live(request)
    for _ in range(40):
        (await connect()).writer.write(GET.replace(b"/page", b"/metrics") * 100)
    await until(lambda: started > 100)
    probe = await connect()
    assert (await probe.ask(GET.replace(b"/page", b"/live")))[2] == b"live\n"
    assert tasks == [None]  # it is answered where its request is read
    assert most == COMPUTED_MAX


@pytest.mark.parametrize("limits", [HttpLimits(unauthenticated_max=1000)])
async def test_an_end_before_the_responses_are_read_loses_none(connect):
    """The client ends its side while more is written than it reads, and reads everything then."""
    client = await connect()
    client.writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.writer.write(GET * 900)
    client.writer.write_eof()
    assert (await client.ended()).count(PAGE.body) == 900


@pytest.mark.parametrize("limits", [HttpLimits(body_bytes_max=3)])
async def test_a_page_too_large_is_not_sent(connect, told):
    assert (await (await connect()).ask(GET))[0] == 500
    assert told == [("page_failed", "/page", "it has 5 bytes")]


class TestWithoutIo:
    """The conversation alone, fed byte by byte."""

    def test_requests_and_answers(self):
        conversation = Conversation(1000)
        found = []
        for octet in GET + b"HEAD /page?x HTTP/1.1\r\nHost: x\r\n\r\n":
            conversation.receive(bytes([octet]))
            while (request := conversation.next_request()) is not None:
                found.append((*request, conversation.answer(PAGE).endswith(PAGE.body)))
        assert found == [
            ("GET", "/page", "", {"host": "x"}, "", b"", (), True),
            ("HEAD", "/page", "x", {"host": "x"}, "", b"", (), False),
        ]
        assert not conversation.over

    @pytest.mark.parametrize("octets", [b"\0", b"GET /page HTTP/1.1\r\n\r\n", b"G" * 20_000])
    def test_what_is_no_request_ends_it(self, octets):
        conversation = Conversation(1000)
        conversation.receive(octets)
        assert conversation.next_request() is None
        assert conversation.over

    def test_a_client_that_ends(self):
        conversation = Conversation(1000)
        conversation.receive(GET)
        assert conversation.next_request()[:2] == ("GET", "/page")
        conversation.answer(PAGE)
        conversation.receive(b"")
        assert conversation.next_request() is None
        assert conversation.over

    def test_a_client_that_pipelines_and_ends_occupies_little_memory(self):
        """Its requests are parsed one piece after another, not all at its end."""
        conversation = Conversation(10_000)
        conversation.receive(GET * 9000)
        tracemalloc.start()
        try:
            conversation.receive(b"")
            assert conversation.next_request()[:2] == ("GET", "/page")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 19
        answered = 1
        while conversation.answer(PAGE) and conversation.next_request():
            answered += 1
        assert (answered, conversation.over, conversation.fault) == (9000, True, 0)

    def test_a_client_that_ends_within_a_request(self):
        conversation = Conversation(1000)
        conversation.receive(GET[:-2])
        conversation.receive(b"")
        assert conversation.next_request() is None
        assert (conversation.over, conversation.fault) == (True, 400)


POST = b"POST /page HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def conversation_after(*pieces, body_bytes_max=64):
    """Return the requests in these pieces, each answered, the last answer, and the conversation."""
    conversation, requests, reply = Conversation(1000, body_bytes_max), [], b""
    for piece in pieces:
        conversation.receive(piece)
        while (request := conversation.next_request()) is not None:
            requests.append(request)
            reply = conversation.answer(PAGE)
    return requests, reply, conversation


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET /page HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (POST + b"Upgrade: x\r\nConnection: upgrade\r\nContent-Length: 3\r\n\r\nabc", 400),
        (CHUNKED + b"3\r\nabcd\r\n", 400),
        (CHUNKED + b"x\r\n", 400),
        (CHUNKED + b"1\r\na\r\n" * 100, 413),
        (POST + b"Content-Length: 65\r\n\r\n" + b"x" * 65, 413),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 21_000, 431),
        (b"GET /page HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 17_000 + b"\r\n\r\n", 431),
        (CHUNKED + b"1;" + b"e" * 40_000, 431),
        (CHUNKED + b"0\r\nA: " + b"b" * 40_000, 431),
    ],
)
def test_an_invalid_request_is_refused_however_it_is_split(octets, status):
    splits = ([octets], [octets[:40], octets[40:]], [bytes([octet]) for octet in octets[:500]] + [octets[500:]])
    for pieces in splits:
        requests, _, conversation = conversation_after(*pieces)
        assert requests == []
        assert (conversation.over, conversation.fault) == (True, status)
        assert conversation.refuse(PAGE).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("octets", "body"),
    [
        (POST + b"Content-Length: 3\r\n\r\nabc", b"abc"),
        (POST + b"Content-Length: 0\r\n\r\n", b""),
        (CHUNKED + b"1;ext=1\r\na\r\n2\r\nbc\r\n0\r\nTrailer: t\r\n\r\n", b"abc"),
        (CHUNKED + b"0\r\n\r\n", b""),
    ],
)
def test_bodies(octets, body):
    for pieces in ([octets, GET], [octets + GET], [bytes([octet]) for octet in octets + GET]):
        requests, _, conversation = conversation_after(*pieces)
        assert [(each.method, each.body) for each in requests] == [("POST", body), ("GET", b"")]
        assert "trailer" not in requests[0].headers
        assert not conversation.over


def test_repeated_headers_are_joined_in_order():
    (request,), _, _ = conversation_after(b"GET /page HTTP/1.1\r\nHost: x\r\nA: 1 \r\nB:\r\nA:\t2\r\n\r\n")
    assert request.headers == {"host": "x", "a": "1, 2", "b": ""}


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /page HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
def test_the_last_request_closes_and_what_follows_is_ignored(octets):
    requests, reply, conversation = conversation_after(octets + GET)
    assert len(requests) == 1
    assert b"\r\nConnection: close\r\n" in reply
    assert (conversation.over, conversation.fault) == (True, 0)


def test_a_client_that_waits_before_it_sends_the_body():
    conversation = Conversation(1000, 64)
    conversation.receive(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert conversation.next_request() is None
    assert conversation.interim_response() == b"HTTP/1.1 100 \r\n\r\n"
    assert conversation.interim_response() == b""
    conversation.receive(b"abc")
    assert conversation.next_request().body == b"abc"
    assert conversation.interim_response() == b""


@given(st.lists(st.sampled_from([GET, CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"x", b"\r\n", b" "]), max_size=5), st.data())
def test_requests_do_not_depend_on_how_the_bytes_are_split(parts, data):
    octets = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=4)))
    pieces = [octets[begin:end] for begin, end in pairwise([0, *cuts, len(octets)])]
    whole, split = conversation_after(octets), conversation_after(*(piece for piece in pieces if piece))
    assert whole[0] == split[0]
    assert whole[2].fault == split[2].fault
