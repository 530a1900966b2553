"""The HTTP/2 server without I/O (eir/wire/web/http2.py): requests and answers, limits, attacks, drain; the clock is the test's."""

import random
import struct
import time
import tracemalloc
from collections import Counter

import pytest
from hpack import Decoder
from simulated import http2_wire as wire
from simulated.http2_wire import ATTACKS, END_HEADERS, END_STREAM, HELLO, bodies, frame, frames, get, goaways, statuses

from eir.wire.web.http2 import Http2Connection
from eir.wire.web.http2_limits import Http2Limits
from eir.wire.web.http2_message import Http2Response, Shapes

LIMITS = Http2Limits()
GOOD = Http2Response(200, ((b"content-type", b"text/plain"),), b"good")


def never():
    return False


class Peer:
    """A client, and the connection that it talks to."""

    def __init__(self, limits=LIMITS, answer=None):
        self.asked = []
        self.now = 0.0

        def respond(request):
            self.asked.append(request)
            return GOOD

        self.connection = Http2Connection(answer or respond, limits, Shapes(), self.now)
        self.found = []
        self.rest = b""

    def send(self, octets, *, piece=None):
        for at in range(0, len(octets), piece or max(len(octets), 1)):
            self.connection.receive(octets[at : at + (piece or len(octets))], self.now)
            self.connection.work(self.now, never)
            self.take()
        return self

    def take(self):
        found, self.rest = frames(self.rest + self.connection.data_to_send())
        self.found += found
        return self

    def wait(self, seconds):
        self.now += seconds
        self.connection.tick(self.now)
        return self.take()


@pytest.mark.parametrize("piece", [None, 1, 7])
def test_requests_are_answered_however_they_are_cut(piece):
    peer = Peer().send(HELLO + b"".join(get(1 + 2 * n, f"/{n}", ("x-n", str(n))) for n in range(5)), piece=piece)
    assert statuses(peer.found) == {1 + 2 * n: 200 for n in range(5)}
    assert bodies(peer.found) == {1 + 2 * n: b"good" for n in range(5)}
    assert [(request.method, request.path, dict(request.headers)) for request in peer.asked] == [
        ("GET", b"/%d" % n, {b"x-n": b"%d" % n}) for n in range(5)
    ]
    assert (peer.connection.over, peer.connection.requests, peer.connection.answers, peer.connection.under_way) == (
        "",
        5,
        5,
        0,
    )


def test_settings_are_acknowledged_and_ours_have_the_limits():
    peer = Peer().send(HELLO)
    (first, second) = [(flags, payload) for kind, flags, _, payload in peer.found if kind == wire.SETTINGS]
    ours = dict(struct.unpack_from(">HI", first[1], at) for at in range(0, len(first[1]), 6))
    assert (ours[3], ours[6], ours[2]) == (LIMITS.streams_max, LIMITS.header_list_bytes, 0)
    assert ours.get(8, 0) == 0, "no tunnels (RFC 8441 3)"
    assert second == (wire.ACK, b"")


def test_a_body_is_read_and_thrown_away():
    peer = Peer().send(
        HELLO
        + get(1, "/x", flags=END_HEADERS)
        + frame(wire.DATA, 0, 1, b"a" * 1000)
        + frame(wire.DATA, END_STREAM, 1, b"b")
    )
    assert statuses(peer.found) == {1: 200}
    assert peer.asked[0].fault is None


def test_trailers_end_a_request():
    trailers = frame(wire.HEADERS, END_HEADERS | END_STREAM, 1, wire.field("x-after", "1"))
    assert statuses(
        Peer().send(HELLO + get(1, "/x", flags=END_HEADERS) + frame(wire.DATA, 0, 1, b"a") + trailers).found
    ) == {1: 200}


def test_a_header_block_in_parts():
    whole = wire.block("/parts", ("x-long", "y" * 300))
    octets = (
        frame(wire.HEADERS, END_STREAM, 1, whole[:50])
        + frame(wire.CONTINUATION, 0, 1, whole[50:100])
        + frame(wire.CONTINUATION, END_HEADERS, 1, whole[100:])
    )
    peer = Peer().send(HELLO + octets)
    assert [request.path for request in peer.asked] == [b"/parts"]
    assert statuses(peer.found) == {1: 200}


@pytest.mark.parametrize(("parts", "reason"), [(8, ""), (9, "continuation_flood")])
def test_a_header_block_has_at_most_eight_parts(parts, reason):
    whole = wire.block("/parts")
    octets = frame(wire.HEADERS, END_STREAM, 1, whole) + frame(wire.CONTINUATION, 0, 1, b"") * (parts - 2)
    peer = Peer().send(HELLO + octets + frame(wire.CONTINUATION, END_HEADERS, 1, b""))
    assert peer.connection.over == reason


@pytest.mark.parametrize(("piece", "reason"), [(b"", "data_flood"), (b"a", "")])
def test_data_frames_without_data_are_control_frames(piece, reason):
    """Their bucket has 500 tokens, that of frames which usually come with a request 2000."""
    peer = Peer().send(HELLO + get(1, "/x", flags=END_HEADERS) + frame(wire.DATA, 0, 1, piece) * 600)
    assert peer.connection.over == reason


def test_padding_and_priority_are_taken_off():
    padded = frame(
        wire.HEADERS, END_HEADERS | END_STREAM | wire.PADDED | 0x20, 1, b"\x03" + bytes(5) + wire.block("/p") + bytes(3)
    )
    assert [request.path for request in Peer().send(HELLO + padded).asked] == [b"/p"]


def test_values_that_come_twice_are_joined():
    peer = Peer().send(HELLO + get(1, "/", ("accept", "a"), ("accept", "b")))
    assert peer.asked[0].headers == {b"accept": b"a, b"}


def test_head_has_no_body():
    peer = Peer().send(HELLO + get(1, "/", method="HEAD"))
    assert (statuses(peer.found), bodies(peer.found)) == ({1: 200}, {})
    (block,) = [payload for kind, _, _, payload in peer.found if kind == wire.HEADERS]
    assert (b"content-length", b"4") in Decoder().decode(
        block, raw=True
    )  # RFC 9110 8.6: that of the body to GET, or none


@pytest.mark.parametrize("first", [b"", get(1, "/")])
def test_headers_past_their_limit(first):
    """By the first request, and by a later one of a form that was seen before; what follows is answered as always."""
    whole = wire.block("/large", *((f"x-{n}", "y" * 900) for n in range(19)))
    large = frame(wire.HEADERS, END_STREAM, 3, whole[:9000]) + frame(wire.CONTINUATION, END_HEADERS, 3, whole[9000:])
    peer = Peer().send(HELLO + first + large + get(5, "/after"))
    assert {request.path: request.fault for request in peer.asked if request.path != b"/"} == {
        b"/large": "headers",
        b"/after": None,
    }
    assert peer.connection.over == ""


def test_a_body_past_its_limit():
    piece = frame(wire.DATA, 0, 1, bytes(16_384))
    peer = Peer().send(HELLO + get(1, "/x", method="POST", flags=END_HEADERS) + piece * 5)
    assert peer.asked[0].fault == "body"
    assert [stream for kind, _, stream, _ in peer.found if kind == wire.RST_STREAM] == [1]
    trailers = wire.headers_of(1, wire.field("x-after", "y"))  # were on their way
    assert statuses(peer.send(trailers + get(3, "/after")).found)[3] == 200


def test_trailers_past_their_limit():
    trailers = wire.field("x-after", "y" * 16_000) + wire.field("x-more", "z" * 1000)
    octets = frame(wire.HEADERS, END_STREAM, 1, trailers[:16_000]) + frame(
        wire.CONTINUATION, END_HEADERS, 1, trailers[16_000:]
    )
    peer = Peer().send(HELLO + get(1, "/x", flags=END_HEADERS) + octets + get(3, "/after"))
    assert [stream for kind, _, stream, _ in peer.found if kind == wire.RST_STREAM] == [1]
    assert statuses(peer.found) == {3: 200}


@pytest.mark.parametrize(
    "more",
    [
        (("Upper", "1"),),
        (("connection", "close"),),
        (("te", "gzip"),),
        ((":path", "/twice"),),
        (("x", "a\r\nb"),),
        (("x", "a\0"),),
        (("transfer-encoding", "chunked"),),
    ],
)
def test_a_malformed_request_ends_nothing_for_others_and_is_never_answered_as_good(more):
    peer = Peer().send(HELLO + get(1, "/good", ("x", "1")) + get(3, "/bad", *more))
    assert [request.path for request in peer.asked] == [b"/good"]
    assert 3 not in statuses(peer.found)


EDGES = [(" a",), ("a ",), ("\ta",), ("a\t",), (" ",), ("a\nb",), ("a\r",), ("\0",)]


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("value", [each for (each,) in EDGES], ids=repr)
def test_a_value_that_may_not_be_is_refused_by_both_paths(first, value):
    peer = Peer().send(
        HELLO
        + (b"" if first else get(1, "/good", ("x", "1")) + get(3, "/good", ("x", "2")))
        + get(5, "/bad", ("x", value))
    )
    assert 5 not in statuses(peer.found)
    assert b"/bad" not in [request.path for request in peer.asked]


def test_a_change_of_our_table_of_headers_is_taken_up_by_the_next_response():
    peer = Peer().send(
        HELLO
        + get(1, "/a")
        + get(3, "/b")
        + frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 1, 0))
        + get(5, "/c")
        + get(7, "/d")
    )
    blocks = {stream: payload for kind, _, stream, payload in peer.found if kind == wire.HEADERS}
    # RFC 7541 4.2: the block after a change begins with the new size, here 0.
    assert [blocks[stream][:1] == b"\x20" for stream in (1, 3, 5, 7)] == [False, False, True, False]
    assert len(peer.asked) == 4


def test_many_changes_of_our_table_are_one_for_the_next_response():
    peer = Peer().send(HELLO)
    for n in range(200):
        peer.send(frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 1, n * 100)))
    peer.send(get(1, "/a"))
    (payload,) = [payload for kind, _, _, payload in peer.found if kind == wire.HEADERS]
    assert payload[:2] == b"\x20\x88"  # no table, :status 200


def test_a_large_table_that_the_client_allows_is_not_filled():
    """With answers of the client's choice, by the path that goes through h2: each would stay for as long as the connection."""
    peer = Peer(answer=lambda request: Http2Response(200, ((b"x-back", request.headers[b"x-there"]),), b"good"))
    peer.send(wire.PREFACE + frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 1, 2**32 - 1)))
    tracemalloc.start()
    for n in range(500):
        peer.send(get(1 + 2 * n, "/", ("te", "trailers"), ("x-there", f"{n:08d}" * 900)))
        peer.found.clear()
    most = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (peer.connection.over, peer.connection.answers) == ("", 500)
    assert most < 1 << 20


def test_settings_that_are_not_known_are_ignored_and_the_others_hold():
    settings = struct.pack(">HIHIHI", 0xFFFF, 7, 4, 0, 0x1234, 2**32 - 1)
    peer = Peer().send(wire.PREFACE + frame(wire.SETTINGS, 0, 0, settings) + get(1, "/"))
    assert (peer.connection.over, statuses(peer.found), bodies(peer.found)) == ("", {1: 200}, {})


@pytest.mark.parametrize(
    "octets",
    [frame(wire.SETTINGS, 0, 0, bytes(5)), frame(wire.SETTINGS, 0, 1), frame(wire.SETTINGS, wire.ACK, 0, bytes(6))],
)
def test_faulty_settings_end_the_connection(octets):
    peer = Peer().send(HELLO + octets)
    assert peer.connection.over.startswith("protocol:")
    assert goaways(peer.found)


def test_two_sizes_of_the_table_at_the_begin_of_a_block_are_allowed():
    peer = Peer().send(HELLO + wire.headers_of(1, b"\x20\x3f\xe1\x1f" + wire.block("/a")) + get(3, "/b"))
    assert statuses(peer.found) == {1: 200, 3: 200}


def test_what_was_read_is_not_kept():
    peer = Peer().send(
        HELLO + get(1, "/a", flags=END_HEADERS) + b"".join(frame(wire.DATA, 0, 1, bytes(10_000)) for _ in range(6))
    )
    assert not peer.connection.unread
    peer.send(frame(wire.DATA, END_STREAM, 1, b"x")[:-1])
    assert peer.connection.unread
    assert statuses(peer.send(b"x").found) == {1: 200}


def test_frames_that_cross_an_answer_end_nothing():
    late = [
        frame(wire.RST_STREAM, 0, 3, struct.pack(">I", 8)),
        frame(wire.WINDOW_UPDATE, 0, 3, struct.pack(">I", 9)),
        frame(wire.PRIORITY, 0, 3, struct.pack(">IB", 0, 1)),
    ]
    peer = Peer().send(HELLO + get(1, "/a") + get(3, "/b") + get(5, "/c") + b"".join(late) + get(7, "/d"))
    assert statuses(peer.found) == {1: 200, 3: 200, 5: 200, 7: 200}


def test_windows_that_are_too_small_hold_bodies_back():
    peer = Peer().send(
        wire.PREFACE
        + frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
        + b"".join(get(1 + 2 * n, "/") for n in range(3))
    )
    assert (statuses(peer.found), bodies(peer.found), peer.connection.under_way) == ({1: 200, 3: 200, 5: 200}, {}, 3)
    peer.send(frame(wire.WINDOW_UPDATE, 0, 3, struct.pack(">I", 2)))
    assert bodies(peer.found) == {3: b"go"}
    peer.send(frame(wire.SETTINGS, 0, 0, struct.pack(">HI", 4, 100)))
    assert bodies(peer.found) == {1: b"good", 3: b"good", 5: b"good"}
    assert peer.connection.under_way == 0


def test_the_connections_window_is_kept_by_both_paths():
    """65,535 octets (RFC 9113 6.9.2), of which each answer takes a thousand."""
    peer = Peer(answer=lambda _: Http2Response(200, (), bytes(1000)))
    for n in range(100):
        peer.send((HELLO if not n else b"") + get(1 + 2 * n, "/"))
        if peer.connection.under_way:
            break
    assert sum(map(len, bodies(peer.found).values())) == 65_535
    peer.send(frame(wire.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2000)) + get(3 + 2 * n, "/"))
    assert {len(body) for body in bodies(peer.found).values()} == {1000}


def test_requests_past_the_limit_at_once_may_be_sent_again_elsewhere():
    peer = Peer(Http2Limits(streams_max=2)).send(
        HELLO + b"".join(get(1 + 2 * n, "/", flags=END_HEADERS) for n in range(4))
    )
    refused = [(stream, payload) for kind, _, stream, payload in peer.found if kind == wire.RST_STREAM]
    assert refused == [(5, struct.pack(">I", 7)), (7, struct.pack(">I", 7))]
    late = frame(wire.HEADERS, END_HEADERS | END_STREAM, 5, wire.field("x", "1"))  # had been under way
    peer.send(frame(wire.DATA, 0, 5, b"late") + late + frame(wire.DATA, END_STREAM, 1, b"") + get(9, "/"))
    assert statuses(peer.found) == {1: 200, 9: 200}


@pytest.mark.parametrize(("requests", "reason"), [(49, ""), (51, "slow_body")])
def test_a_client_is_sent_away_after_too_many_requests_without_an_end(requests, reason):
    """Each costs 10 tokens of a bucket of 500."""
    peer = Peer().send(HELLO + b"".join(get(1 + 2 * n, "/", flags=END_HEADERS) for n in range(requests)))
    peer.wait(11)
    assert peer.connection.over == reason


def run(peer, attack, most=5000):
    """Let a client attack until the server has had enough; how many times it sent."""
    peer.send(attack.first)
    for n in range(most):
        if peer.connection.over:
            return n
        peer.send(attack.again(n))
        if attack.patient:
            peer.wait(0.5)
    return most


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    attack = ATTACKS[name]
    tracemalloc.start()
    peer = Peer()
    began = time.process_time()
    run(peer, attack)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peer.connection.over == attack.reason
    assert most < 6 << 20
    assert time.process_time() - began < 20
    if not attack.patient and attack.reason != "preface":
        assert goaways(peer.found)


def spoilt(chance, octets):
    """Bytes as nobody should send them."""
    octets = bytearray(octets)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 3))):
        at = chance.randrange(len(octets))
        match chance.randrange(3):
            case 0:
                octets[at] = chance.randrange(256)
            case 1:
                del octets[at : at + chance.randrange(1, 9)]
            case _:
                octets[at:at] = chance.randbytes(chance.randrange(1, 9))
        octets = octets or bytearray(1)
    return bytes(octets)


def sent(chance, stream):
    """A frame or a few, of a kind that a client may send, with whatever flags and values."""
    flags = chance.choice((END_STREAM | END_HEADERS,) * 3 + (END_HEADERS, END_STREAM, chance.randrange(256)))
    more = [
        (
            chance.choice(("te", "host", "cookie", "content-length", "Upper", "x")),
            chance.choice(("trailers", "1", "9" * 5000, "a\nb", "")),
        )
        for _ in range(chance.randrange(3))
    ]
    return chance.choice((
        get(stream, "/", flags=flags), get(stream, "/", *more, method=chance.choice(("GET", "HEAD", "POST", "CONNECT", ""))),
        get(stream, "/", *more, flags=0) + frame(wire.CONTINUATION, chance.choice((0, END_HEADERS)), stream, wire.field("x", "y")),
        get(stream, "/", flags=END_HEADERS) + frame(wire.DATA, flags & ~wire.PADDED, stream, bytes(chance.choice((0, 9, 16_000)))),
        frame(wire.SETTINGS, 0, 0, struct.pack(">HI", chance.randrange(10), chance.choice((0, 1, 16_384, 65_535, 2**31)))),
        frame(wire.WINDOW_UPDATE, 0, chance.choice((0, stream)), struct.pack(">I", chance.choice((0, 1, 2**31 - 1)))),
        frame(chance.randrange(12), flags, chance.choice((0, stream)), chance.randbytes(chance.randrange(20))),
    ))  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_any_input_of_a_client_gets_whole_frames_until_a_goaway_with_the_reason(seed):
    chance, ended = random.Random(seed), Counter()
    for _ in range(100):
        peer = Peer().send(HELLO)
        for n in range(chance.randrange(1, 30)):
            octets = sent(chance, 1 + 2 * n)
            peer.send(spoilt(chance, octets) if chance.random() < 0.1 else octets, piece=chance.choice((None, 7, 1000)))
            peer.wait(chance.choice((0, 0, 0.1, 3)))
            if chance.random() < 0.02:
                peer.connection.leave(peer.now)
            if peer.connection.over:
                break
        assert not peer.rest
        assert max(len(payload) for _, _, _, payload in peer.found) <= 16_384
        ended[peer.connection.over] += 1
    assert len(ended) > 3


def test_honest_clients_are_not_taken_for_hostile_ones():
    """A client that updates both windows for each answer, cancels one request in a hundred and asks for a sign of life each second."""
    peer = Peer().send(HELLO)
    for n in range(1500):
        stream = 1 + 2 * n
        more = frame(wire.WINDOW_UPDATE, 0, 0, struct.pack(">I", 4)) + frame(
            wire.WINDOW_UPDATE, 0, stream, struct.pack(">I", 4)
        )
        peer.send(
            get(stream, "/") + more + (frame(wire.RST_STREAM, 0, stream, struct.pack(">I", 8)) if n % 100 == 0 else b"")
        )
        if n % 100 == 0:
            peer.wait(1.0).send(frame(wire.PING, 0, 0, bytes(8)))
    assert peer.connection.over == ""
    assert len(statuses(peer.found)) == 1500


def test_a_drain_sends_goaway_twice_and_answers_pending_requests():
    peer = Peer().send(HELLO + get(1, "/") + get(3, "/slow", flags=END_HEADERS))
    peer.connection.leave(peer.now)
    peer.take()
    assert goaways(peer.found) == [(2**31 - 1, 0)]
    ping = next(payload for kind, flags, _, payload in peer.found if kind == wire.PING and not flags)
    peer.send(get(5, "/was under way"))
    peer.send(frame(wire.PING, wire.ACK, 0, ping))
    assert goaways(peer.found) == [(2**31 - 1, 0), (5, 0)]
    assert peer.connection.over == ""
    peer.send(get(7, "/too late"))
    assert [stream for kind, _, stream, _ in peer.found if kind == wire.RST_STREAM] == [7]
    peer.send(frame(wire.DATA, END_STREAM, 3))
    assert (peer.connection.over, statuses(peer.found)) == ("drained", {1: 200, 3: 200, 5: 200})


def test_a_drain_does_not_wait_for_a_client_that_does_not_answer():
    peer = Peer().send(HELLO + get(1, "/"))
    peer.connection.leave(peer.now)
    peer.wait(1.5)
    assert (goaways(peer.found), peer.connection.over) == ([(2**31 - 1, 0), (1, 0)], "drained")


def test_a_client_that_must_leave_at_once_gets_one_answer():
    def respond(_):
        peer.connection.leave(peer.now, at_once=True)
        return GOOD

    peer = Peer(answer=respond)
    peer.send(HELLO + get(1, "/") + get(3, "/") + get(5, "/"))
    assert (goaways(peer.found), statuses(peer.found), bodies(peer.found)) == ([(1, 0)], {1: 200}, {1: b"good"})
    assert peer.connection.over == "drained"


def test_a_client_that_leaves_gets_what_it_has_asked():
    peer = Peer().send(HELLO + get(1, "/", flags=END_HEADERS) + frame(wire.GOAWAY, 0, 0, bytes(8)))
    assert peer.connection.over == ""
    assert (peer.send(frame(wire.DATA, END_STREAM, 1)).connection.over, statuses(peer.found)) == ("left", {1: 200})


def test_a_silent_client_is_asked_for_a_sign_of_life():
    peer = Peer().send(HELLO + get(1, "/"))
    peer.wait(LIMITS.idle_s + 1)
    ping = next(payload for kind, _, _, payload in peer.found if kind == wire.PING)
    peer.send(frame(wire.PING, wire.ACK, 0, ping))
    assert peer.wait(30).connection.over == ""


def test_a_client_that_is_idle_and_answers_no_ping_is_sent_away_in_order():
    """libcurl reads nothing while it asks nothing. What it asks in the moment of the GOAWAY is answered."""
    peer = Peer().send(HELLO + get(1, "/"))
    peer.wait(LIMITS.idle_s + 1)
    assert goaways(peer.found) == []
    peer.wait(LIMITS.ping_s + 1)
    assert (goaways(peer.found), peer.connection.over) == ([(2**31 - 1, 0)], "")
    peer.send(get(3, "/"))
    assert statuses(peer.found) == {1: 200, 3: 200}
    peer.wait(1.5)
    assert (goaways(peer.found), peer.connection.over) == ([(2**31 - 1, 0), (3, 0)], "idle")


def test_a_client_that_never_asks_anything_is_sent_away_likewise():
    peer = Peer().send(HELLO)
    for seconds in (LIMITS.idle_s + 1, LIMITS.ping_s + 1, 1.5):
        peer.wait(seconds)
    assert (goaways(peer.found), peer.connection.over) == ([(2**31 - 1, 0), (0, 0)], "idle")


def test_a_client_that_sends_http_1_gets_an_error():
    peer = Peer()
    peer.connection.receive(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 0.0)
    peer.connection.work(0.0, never)
    assert peer.connection.data_to_send().startswith(b"HTTP/1.1 505 ")
    assert peer.connection.over == "preface"


def test_others_have_their_turn_after_each_frame():
    peer = Peer().send(HELLO + get(1, "/"))
    peer.connection.receive(get(3, "/") + get(5, "/") + get(7, "/"), 0.0)
    for left in (True, True, False):
        peer.connection.work(0.0, lambda: True)
        assert peer.connection.more is left
    assert set(statuses(peer.take().found)) == {1, 3, 5, 7}
