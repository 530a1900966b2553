"""One request of an HTTP/2 client, without I/O: what a server's GOAWAY and resets make of it, and how it ends."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from simulated import http2_wire as wire

from eir.wire.web.http2_client import BODY_BYTES_MAX, Exchange, NoAnswer

HEADERS = [(":method", "GET"), (":scheme", "http"), (":authority", "nrf"), (":path", "/")]
GOAWAY, SETTINGS = 7, 4


def goaway(last, error=0):
    return wire.frame(GOAWAY, 0, 0, last.to_bytes(4) + int(error).to_bytes(4))


class Server:
    """The other end of an exchange."""

    def __init__(self, body=b""):
        self.exchange = Exchange(HEADERS, body)
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.come = self.h2.receive_data(self.exchange.data_to_send())

    def answer(self, body=b"{}", status="200"):
        self.h2.send_headers(1, [(":status", status)])
        self.h2.send_data(1, body, end_stream=True)
        return self.h2.data_to_send()


@pytest.mark.parametrize(
    ("last", "error", "why"),
    [(0, 0, "error 0"), (1, ErrorCodes.INTERNAL_ERROR, "error 2"), (0, ErrorCodes.ENHANCE_YOUR_CALM, "error 11")],
)
def test_a_goaway_that_leaves_the_request_out_or_names_an_error_is_no_answer(last, error, why):
    server = Server()
    server.exchange.receive(server.h2.data_to_send())
    with pytest.raises(NoAnswer, match=rf"the connection was ended \({why}\)"):
        server.exchange.receive(goaway(last, error))


@pytest.mark.parametrize("last", [1, 0x7FFFFFFF])
def test_the_answer_may_come_after_a_goaway_that_lets_the_request_end(last):
    """RFC 9113 6.8: as a server sends it that shuts down, first with the highest number there is."""
    server = Server()
    server.exchange.receive(server.h2.data_to_send() + goaway(last))
    server.exchange.receive(server.answer(b'{"a": 1}'))
    assert (server.exchange.answer.status, server.exchange.answer.body) == (200, b'{"a": 1}')


def test_the_client_sends_goaway_after_the_answer():
    server = Server()
    server.exchange.receive(server.answer())
    frames, rest = wire.frames(server.exchange.data_to_send())
    assert rest == b""
    (last,) = [frame for frame in frames if frame[0] == GOAWAY]
    assert frames[-1] is last
    assert int.from_bytes(last[-1][4:8]) == ErrorCodes.NO_ERROR


def test_a_long_body_goes_as_the_server_opens_its_window():
    server, body = Server(bytes(range(250)) * 600), b""
    while server.come:
        for event in server.come:
            if isinstance(event, DataReceived):
                body += event.data
                server.h2.acknowledge_received_data(event.flow_controlled_length, 1)
        server.exchange.receive(server.h2.data_to_send())
        server.come = server.h2.receive_data(server.exchange.data_to_send())
    assert body == bytes(range(250)) * 600
    server.exchange.receive(server.answer())
    assert server.exchange.answer.status == 200


def test_the_longest_answer_is_taken():
    server = Server()
    server.h2.send_headers(1, [(":status", "200")])
    for at in range(0, BODY_BYTES_MAX, 16384):
        server.h2.send_data(1, bytes(16384), end_stream=at + 16384 == BODY_BYTES_MAX)
        server.exchange.receive(server.h2.data_to_send())
        server.h2.receive_data(server.exchange.data_to_send())
    assert len(server.exchange.answer.body) == BODY_BYTES_MAX


def test_an_answer_that_is_too_long_and_one_that_is_cut_off_are_none():
    server = Server()
    server.h2.send_headers(1, [(":status", "200")])
    with pytest.raises(NoAnswer, match="longer than"):  # noqa: PT012 - which of the frames is one too many is not the matter
        for _ in range(BODY_BYTES_MAX // 16384 + 1):
            server.h2.send_data(1, bytes(16384))
            server.exchange.receive(server.h2.data_to_send())
            server.h2.receive_data(server.exchange.data_to_send())
    server = Server()
    with pytest.raises(NoAnswer, match="closed before the answer"):
        server.exchange.receive(b"")
