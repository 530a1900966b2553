"""The probe of 5G EIRs (eir/interfaces/n5g/probe.py): what it asks, and what it makes of any answer. Real sockets, HTTP/2 by hand."""

import asyncio
import json
import struct
import time
from contextlib import asynccontextmanager

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from h2.exceptions import ProtocolError
from simulated import http2_wire as wire
from simulated.luhn import check_digit
from simulated.node import LISTED, UNLISTED, until_async
from simulated.tcp_server import accepting

from eir.errors import EirError
from eir.interfaces.n5g import INTERFACE

UNKNOWN = {"title": "Not found", "status": 404, "cause": "ERROR_EQUIPMENT_UNKNOWN"}


class Eir:
    """A 5G EIR of another make. `respond(h2, stream, headers)` does what the test says; what it returns is sent as it is."""

    def __init__(self, respond):
        self._respond = respond
        self.asked, self.connections = [], 0

    async def __call__(self, reader, writer):
        self.connections += 1
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        try:
            while data := await reader.read(65536):
                for event in h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self.asked.append(dict(event.headers))
                        raw = self._respond(h2, event.stream_id) or b""
                        writer.write(h2.data_to_send() + raw)
                writer.write(h2.data_to_send())
        except (ConnectionError, ProtocolError):  # it is gone, or says more after a GOAWAY of ours
            pass
        finally:
            writer.close()


@asynccontextmanager
async def eir(respond, query="", timeout_s=0.3):
    made = Eir(respond)
    async with accepting(made) as address:
        made.host = "{}:{}".format(*address)
        made.probe = INTERFACE.probe_of(f"n5g://{made.host}{query}", timeout_s)
        yield made


def answers(status, document=None, body=None, **headers):
    def respond(h2, stream):
        octets = body if body is not None else json.dumps(document).encode() if document is not None else b""
        h2.send_headers(stream, [(":status", str(status)), *headers.items()], end_stream=not octets)
        if octets:
            h2.send_data(stream, octets, end_stream=True)

    return respond


def resets(h2, stream):
    h2.reset_stream(stream, 7)


def goes_away(h2, _):
    h2.close_connection(error_code=11)


NOT_KNOWN = "200 without a status that TS 29.511 knows"
ELSEWHERE = "http://10.0.0.9/n5g-eir-eic/v1/equipment-status"
ANSWERS = [
    # what comes, status, HTTP status, what is wrong with it, error
    (answers(200, {"status": "WHITELISTED"}), "whitelisted", 200, None, None),
    (answers(200, {"status": "BLACKLISTED", "more": 1}), "blacklisted", 200, None, None),
    (answers(200, {"status": "GREYLISTED"}), "greylisted", 200, None, None),
    (answers(200, {"status": "blacklisted"}), None, 200, NOT_KNOWN, None),
    (answers(200, {}), None, 200, NOT_KNOWN, None),
    (answers(200), None, 200, NOT_KNOWN, None),
    (answers(200, ["BLACKLISTED"]), None, 200, NOT_KNOWN, None),
    (answers(200, body=b"\xff{"), None, 200, NOT_KNOWN, None),
    (answers(200, body=b"[" * 10_000), None, 200, NOT_KNOWN, None),
    (answers(204), None, 204, None, "204"),
    (answers("x"), None, None, "no status in the answer", None),
    (answers(404, UNKNOWN), "unknown", 404, None, None),
    (
        answers(404, {"cause": "CONTEXT_NOT_FOUND", "detail": "no such"}),
        None,
        404,
        None,
        "404 CONTEXT_NOT_FOUND no such",
    ),
    (answers(404), None, 404, None, "404"),
    (answers(503, {"cause": "NF_CONGESTION", "title": "Busy"}), None, 503, None, "503 NF_CONGESTION Busy"),
    (answers(307, location=ELSEWHERE), None, 307, f"redirected to {ELSEWHERE}; not followed", None),
    (answers(308, {"cause": "X"}, location=ELSEWHERE), None, 308, f"redirected to {ELSEWHERE}; not followed", None),
    (answers(307), None, 307, None, "307"),
]


@pytest.mark.parametrize(("respond", "status", "result", "fault", "error"), ANSWERS)
async def test_an_answer_is_reported_as_it_came(respond, status, result, fault, error):
    async with eir(respond) as other:
        began = time.perf_counter()
        (finding,) = await other.probe.ask([LISTED])
        took_ms = (time.perf_counter() - began) * 1000
    assert (finding.status, finding.result_code, finding.fault, finding.error) == (status, result, fault, error)
    assert 0 < finding.round_trip_ms < took_ms
    assert (len(other.asked), other.connections) == (1, 1)  # nothing is followed, nothing repeated


def sends_away_first(h2, stream):
    """As a server that shuts down (RFC 9113 6.8): it takes no further request, and answers this one."""
    away = wire.frame(wire.GOAWAY, 0, 0, struct.pack(">II", stream, 0))
    settings = h2.data_to_send()
    answers(200, {"status": "BLACKLISTED"})(h2, stream)
    return settings + away + h2.data_to_send()


async def test_what_is_under_way_is_answered_after_a_goaway_and_nothing_more_is_asked():
    async with eir(sends_away_first) as other:
        found = await other.probe.ask([LISTED, UNLISTED])
    assert [each.status for each in found] == ["blacklisted", None]
    assert found[1].fault == "no answer: it was sent away (GOAWAY, error 0)"
    assert len(other.asked) == 1


async def test_answers_that_nobody_waits_for_leave_the_others_their_window():
    """65,535 octets for all streams together (RFC 9113 6.9.1), of which none is left unless those that came too late give theirs back."""
    streams, long = [], {"status": "WHITELISTED", "more": "x" * 16_000}

    def respond(h2, stream):
        streams.append(stream)
        for each in {1: [], 2: [], 3: streams}.get(len(streams), [stream]):
            answers(200, long)(h2, each)

    async with eir(respond, timeout_s=60) as other, other.probe.asking() as about:
        gone = [asyncio.create_task(about(LISTED)) for _ in range(2)]
        await until_async(lambda: len(streams) == 2)
        for each in gone:
            each.cancel()
        assert [await about(UNLISTED) for _ in range(4)] == ["whitelisted"] * 4


NO_ANSWERS = [
    (resets, "no answer: the request was reset (error 7)"),
    (goes_away, "no answer: it was sent away (GOAWAY, error 11)"),
    (
        lambda _, stream: wire.frame(wire.GOAWAY, 0, 0, struct.pack(">II", stream - 1, 0)),
        "no answer: it was sent away (GOAWAY, error 0)",
    ),
    (lambda *_: None, "no answer within 0.3 s"),
    (lambda *_: b"\0" * 100_000, "no answer: what comes is not HTTP/2"),
    (lambda *_: wire.frame(wire.WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)), "no answer: what comes is not HTTP/2"),
]


@pytest.mark.parametrize(("respond", "fault"), NO_ANSWERS)
async def test_no_answer_is_reported_with_its_cause(respond, fault):
    async with eir(respond) as other:
        (finding,) = await other.probe.ask([LISTED])
    assert (finding.status, finding.result_code, finding.round_trip_ms) == (None, None, None)
    assert finding.fault.startswith(fault)


async def test_a_connection_that_ends_leaves_what_was_answered():
    first = iter([True])

    def respond(h2, stream):
        return (answers(200, {"status": "BLACKLISTED"}) if next(first, False) else goes_away)(h2, stream)

    async with eir(respond) as other:
        found = await other.probe.ask([LISTED, UNLISTED, UNLISTED])
        summary = await other.probe.ask_many([LISTED], count=5, rate=None)
    assert [each.status for each in found] == ["blacklisted", None, None]
    assert len(other.asked) == 3
    assert summary.answered == 0
    assert "it was sent away" in summary.fault


async def test_what_it_asks(tmp_path):
    (tmp_path / "token").write_text("a.b.c")
    async with eir(answers(200, {"status": "WHITELISTED"}), f"?token={tmp_path}/token") as other:
        await other.probe.ask(
            [LISTED, f"{LISTED}7", f"{LISTED}77", "mac-00-11-22-33-44-55", "x"], imsi="001010123456789"
        )
        await other.probe.ask([LISTED], software_version="34")
    assert {(each[":method"], each[":scheme"], each[":authority"], each["authorization"]) for each in other.asked} == {
        ("GET", "http", other.host, "Bearer a.b.c")
    }
    path, supi = f"{wire.RESOURCE}?pei=", "&supi=imsi-001010123456789"
    assert [each[":path"] for each in other.asked] == [
        f"{path}imei-{LISTED}{check_digit(LISTED)}{supi}", f"{path}imei-{LISTED}7{supi}", f"{path}imeisv-{LISTED}77{supi}", f"{path}mac-00-11-22-33-44-55{supi}",
        f"{path}imei-x{supi}", f"{path}imeisv-{LISTED}34",
    ]  # fmt: skip
    assert "a.b.c" not in repr(other.probe)


async def test_an_audit_ends_with_the_connection():
    async with eir(goes_away) as other, other.probe.asking() as about:
        assert await about(LISTED) == "none"
        with pytest.raises(EirError, match="sent away"):
            await about(LISTED)


async def test_who_is_not_there_is_an_error():
    with pytest.raises(EirError, match=r"cannot connect to 127\.0\.0\.1:9: "):
        await INTERFACE.probe_of("n5g://127.0.0.1:9").ask([LISTED])
