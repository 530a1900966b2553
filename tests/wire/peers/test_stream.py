"""Connections over TCP that the node makes (eir/wire/transport/stream.py), to a name with several addresses."""

import asyncio
import contextlib
import errno
import socket
import ssl
from pathlib import Path

import pytest
from simulated.certificates import Authority
from simulated.node import until_async
from simulated.patience import PATIENCE_S
from simulated.wire import EIR

from eir.wire.transport import stream
from eir.wire.transport.begin import listening_sockets
from eir.wire.transport.endpoint import Endpoint
from eir.wire.transport.settings import TlsSettings
from eir.wire.transport.tls import load_tls, read_tls


@pytest.fixture
def silent():
    """An address that answers no SYN: the program that listens there accepts no connection, and its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()


@pytest.fixture
def named(monkeypatch):
    """Gives the name `peer` these addresses."""

    def name(*addresses):
        async def found(_host, _port, **_):
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", each) for each in addresses]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)

    return name


@pytest.mark.parametrize("host", ["mme..example", f"{'a' * 64}.example", "../x"])
async def test_what_cannot_be_a_name_is_a_fault_as_any_other(host):
    with pytest.raises(OSError, match="is not a valid name of a host"):
        await stream.connected(host, 3868)


async def test_an_address_that_never_answers_keeps_nobody_from_the_next(silent, named):
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    there = server.sockets[0].getsockname()
    named(silent, there)
    async with server, asyncio.timeout(PATIENCE_S):
        with await stream.connected("peer", 3868, 0.01) as connection:
            assert connection.getpeername() == there


async def test_the_error_is_that_of_the_last_address(silent, named):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    named(silent, nobody)
    with pytest.raises(ConnectionRefusedError):
        await stream.connected("peer", 3868, 0.01)
    named()
    with pytest.raises(OSError, match="no address"):
        await stream.connected("peer", 3868)


async def test_who_gives_up_waiting_leaves_no_socket(silent, named):
    named(silent)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await stream.connected("peer", 3868)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (OSError("no addresses left"), "no addresses left"),
        (OSError(errno.ECONNREFUSED, "whatever the loop says"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "Connection reset by peer"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_why_a_connection_failed(fault, text):
    assert stream.fault_text(fault, secure=False) == text


async def test_a_name_is_listened_on_at_all_its_addresses_or_at_none(named):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        named(("127.0.0.2", port), ("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"):
            await listening_sockets(Endpoint("tcp", ("peer",), port))
        socket.create_server(("127.0.0.2", port)).close()  # which is free again


async def test_one_tls_handshake_begins_in_a_turn_of_the_loop(tmp_path):
    """So a storm of them delays no other connection by more than one; each costs about a millisecond."""
    files = Authority(tmp_path).write(EIR)
    tls = load_tls(read_tls(TlsSettings(**{name: Path(file) for name, file in files.items()}))).passwords
    turn, began, loop = 0, [], asyncio.get_running_loop()

    def count():
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    tls.sni_callback = lambda *_: began.append(turn)
    hello, client = ssl.MemoryBIO(), ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=EIR).do_handshake()
    hello = hello.read()
    handshakes, pairs = stream.Handshakes(), [socket.socketpair() for _ in range(50)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.send(hello)
    tasks = [loop.create_task(handshakes.accept(asyncio.Protocol(), ours, tls, PATIENCE_S)) for ours, _ in pairs]
    count()
    await until_async(lambda: len(began) == len(pairs))
    assert len(set(began)) == len(pairs)
    for _, theirs in pairs:
        theirs.close()
    assert all(isinstance(each, OSError) for each in await asyncio.gather(*tasks, return_exceptions=True))


async def test_the_handshake_of_a_client_that_sends_nothing_has_a_time_limit():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs, pytest.raises(ConnectionAbortedError, match=r"it sent nothing within 0\.01 s"):
        await stream.Handshakes().accept(asyncio.Protocol(), ours, ssl.create_default_context(), 0.01)
    ours.close()
