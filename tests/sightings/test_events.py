"""Events: what becomes one, how they are folded and limited, and how they come to a receiver, whatever it does."""

import asyncio
import hashlib
import hmac
import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, until_async
from test_sightings import BLACK, IMSI, NOON, NUMBER, OTHER_IMSI, Handed, asked, each

from eir.checks.policy import Decision
from eir.errors import silent
from eir.sightings import deliver
from eir.sightings.deliver import SIGNATURE_HEADER, TIME_HEADER, EventSender, EventsRejected, Undelivered, signature
from eir.sightings.events import CHECK, DEVICE_CHANGED, SIM_CHANGED, Events
from eir.sightings.settings import FULL, HASHED, OFF
from eir.sightings.subscribers import HashKey, Subscribers

FULL_SUBSCRIBERS = Subscribers(FULL)
TRACK = Decision("greylisted", "2", "tracked", False)


def events_of(events, *sightings, now=0.0, subscribers=FULL_SUBSCRIBERS):
    """What they give for checks that a node answered."""
    handed = Handed()
    handed.add(*sightings)
    handed.flush()
    for message in handed.messages:
        if message[:1] == b"e":
            events.add(message)
    return events.due(now, subscribers)


def made(per_second_max=1000, **watched):
    return Events(per_second_max=per_second_max, watched=watched, seen={}, origin="here")


def test_an_event_is_what_was_not_simply_whitelisted():
    override, error = Decision("whitelisted", "override", None, False), Decision("error", "no_identity", None, False)
    found = events_of(
        made(), each(UNLISTED), each(LISTED, decision=BLACK), each(TRACKED, observed="3=greylisted@tracked"), each(UNLISTED, decision=override),
        each("", imsi="", version="", decision=error),
    )  # fmt: skip
    assert [(event["imei"], event["status"], event["rule"], event["observed"]) for event in found] == [
        (LISTED, "blacklisted", "1", None), (TRACKED, "whitelisted", "default", "3=greylisted@tracked"), (UNLISTED, "whitelisted", "override", None),
        (None, "error", "no_identity", None),
    ]  # fmt: skip
    assert found[0] == {
        "id": "here-1", "event": "check", "time": NOON, "last": NOON, "checks": 1, "imei": LISTED, "software_version": "01", "subscriber": IMSI,
        "home": "001010", "origin_host": "mme1.epc", "origin_realm": "epc", "peer": "mme", "protocol": "s13", "status": "blacklisted", "rule": "1",
        "list": "stolen", "observed": None, "early": None, "msisdn": None, "access": None,
    }  # fmt: skip
    assert len({event["id"] for event in found}) == 4


def test_an_event_has_the_number_as_the_record_has_it():
    blocked = each(LISTED, decision=BLACK, msisdn=NUMBER, access="wlan")
    for how, kept in ((FULL, NUMBER), (OFF, None)):
        (event,) = events_of(made(), blocked, blocked, subscribers=Subscribers(how))
        assert (event["msisdn"], event["access"], event["checks"]) == (kept, "wlan", 2)
    assert len(events_of(made(), blocked, each(LISTED, decision=BLACK, access="wlan"))) == 2


@pytest.mark.parametrize("name", [IMSI, NUMBER])
async def test_who_is_forgotten_by_imsi_or_number_is_in_no_queued_event(name):
    sender = EventSender("webhook", None, lambda *_: None, report=lambda *_, **__: None)
    sender.add(
        events_of(
            made(),
            each(LISTED, UNLISTED, decision=BLACK, msisdn=NUMBER),
            each(TRACKED, imsi=OTHER_IMSI, decision=BLACK),
        )
    )
    sender.forget([name])
    assert [(event["subscriber"], event["msisdn"]) for event in sender.waiting] == [
        (None, None),
        (None, None),
        (OTHER_IMSI, None),
    ]


def test_like_checks_are_one_event_and_more_than_the_rate_are_counted():
    events = made(per_second_max=2)
    found = events_of(
        events,
        *[each(LISTED, decision=BLACK)] * 5,
        each(TRACKED, decision=TRACK),
        *[each(UNLISTED, imsi=f"00101{number:010d}", decision=BLACK) for number in range(3)],
    )
    assert [(event["imei"], event["checks"]) for event in found] == [(LISTED, 5), (TRACKED, 1)]
    assert events.dropped == 3
    assert (
        len(
            events_of(
                events, *[each(UNLISTED, imsi=f"00101{number:010d}", decision=BLACK) for number in range(3)], now=1.0
            )
        )
        == 2
    )


def test_another_sim_in_a_watched_device_is_an_event():
    events = made(tracked=SIM_CHANGED)
    kinds = [
        [
            (event["event"], event.get("previous"))
            for event in events_of(events, each(TRACKED, imsi=imsi, decision=TRACK), now=number)
        ]
        for number, imsi in enumerate([IMSI, IMSI, OTHER_IMSI, "", OTHER_IMSI, IMSI])
    ]
    once = [(CHECK, None)]
    assert kinds == [once, once, [*once, (SIM_CHANGED, IMSI)], once, once, [*once, (SIM_CHANGED, OTHER_IMSI)]]
    assert [
        event["event"]
        for event in events_of(
            events, each(LISTED, decision=BLACK), each(LISTED, imsi=OTHER_IMSI, decision=BLACK), now=9
        )
    ] == [CHECK] * 2


def test_a_rule_on_trial_is_enough_to_watch_and_a_sim_is_watched_as_well():
    events = made(persons=DEVICE_CHANGED)
    one, two = (each(device, observed="1=greylisted@persons") for device in (TRACKED, LISTED))
    assert [event["event"] for event in events_of(events, one, two, one)] == [CHECK, CHECK, DEVICE_CHANGED]
    again = Events(per_second_max=9, watched={"persons": DEVICE_CHANGED}, seen=events.seen, origin="there")
    assert [(event["event"], event.get("previous")) for event in events_of(again, one)][1:] == [
        (DEVICE_CHANGED, LISTED)
    ]


def test_no_sim_has_changed_by_a_check_before_it_was_authenticated():
    events = made(tracked=SIM_CHANGED)
    checks = [
        each(TRACKED, decision=TRACK, imsi=imsi, early=early)
        for imsi, early in ((IMSI, False), (OTHER_IMSI, True), (IMSI, False))
    ]
    found = events_of(events, *checks)
    assert [(event["event"], event["early"]) for event in found] == [(CHECK, None), (CHECK, True)]


def test_a_new_key_of_the_hashes_is_no_change():
    events, keys = made(tracked=SIM_CHANGED), [HashKey(number, 0, bytes([number]) * 32) for number in (1, 2)]
    for key in keys:
        found = events_of(events, each(TRACKED, decision=TRACK), subscribers=Subscribers(HASHED, key))
        assert [event["event"] for event in found] == [CHECK]
    found = events_of(events, each(TRACKED, imsi=OTHER_IMSI, decision=TRACK), subscribers=Subscribers(HASHED, keys[1]))
    assert [event["event"] for event in found] == [CHECK, SIM_CHANGED]


# On their way


class Receiver:
    """Counts as a delivery has it counted, and fails on demand."""

    def __init__(self):
        self.got, self.fault, self.counted = [], None, {}

    async def send(self, events):
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.got += [event["id"] for event in events]

    def count(self, what, number):
        self.counted[what] = self.counted.get(what, 0) + number


@pytest.fixture
async def receiver():
    found = Receiver()
    found.delivery = EventSender(
        "webhook", found.send, found.count, report=silent, waiting_max=1000, again_s=(0.001, 0.002)
    )
    running = asyncio.create_task(found.delivery.run())
    yield found
    running.cancel()


def numbered(*numbers):
    return [{"id": str(number)} for number in numbers]


async def test_what_could_not_be_delivered_comes_again_in_order(receiver):
    receiver.fault = Undelivered("away")
    receiver.delivery.add(numbered(*range(250)))
    await asyncio.sleep(0.01)
    receiver.delivery.add(numbered(*range(250, 300)))
    receiver.fault = None
    await until_async(lambda: receiver.delivery.is_idle)
    assert receiver.got == [str(number) for number in range(300)]
    assert receiver.counted == {"sent": 300}


async def test_a_receiver_that_is_away_for_long_costs_the_oldest_events(receiver):
    receiver.fault = Undelivered("away")
    for at in range(0, 3000, 100):
        receiver.delivery.add(numbered(*range(at, at + 100)))
        await asyncio.sleep(0)
    receiver.fault = None
    await until_async(lambda: receiver.delivery.is_idle)
    assert receiver.counted == {"queue": 2000, "sent": 1000}
    assert receiver.got == [str(number) for number in range(2000, 3000)]


async def test_what_a_receiver_will_never_take_does_not_stop_the_rest(receiver):
    receiver.fault = EventsRejected("answered 400")
    receiver.delivery.add(numbered(1, 2))
    await until_async(lambda: receiver.counted)
    receiver.fault = None
    receiver.delivery.add(numbered(3))
    await until_async(lambda: receiver.got)
    assert (receiver.got, receiver.counted) == (["3"], {"refused": 2, "sent": 1})


async def test_a_fault_of_the_program_ends_no_delivery(receiver):
    receiver.fault = UnicodeError("label empty or too long")
    receiver.delivery.add(numbered(1))
    await asyncio.sleep(0.01)
    receiver.fault = None
    await until_async(lambda: receiver.delivery.is_idle)
    assert (receiver.got, receiver.counted) == (["1"], {"sent": 1})


@contextmanager
def desk(port=0):
    """A fraud desk: takes what is posted, or answers by its `status`."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if server.status == 200:
                got.append((dict(self.headers), body))
            self.send_response(server.status)
            self.send_header("Content-Type", server.content_type)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.status, server.content_type, server.got = 200, "text/plain", got
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def key_file(tmp_path):
    """A file with the key of the signatures; a blank at its end is no part of the key."""
    file = tmp_path / "webhook.key"
    file.write_bytes(b"key\n")
    return file


async def test_a_webhook_without_its_key_is_tried_again(key_file):
    with desk() as server:
        send = deliver.webhook(f"http://127.0.0.1:{server.server_port}/", key_file)
        gone = key_file.rename(key_file.with_name("gone"))
        with pytest.raises(Undelivered, match=r"webhook\.key: No such file"):
            await send(numbered(1))
        gone.rename(key_file)
        await send(numbered(1))


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (200, None),
        (204, None),
        (500, Undelivered),
        (429, Undelivered),
        (400, EventsRejected),
        (302, EventsRejected),
    ],
)
async def test_a_webhook_by_what_it_answers(status, fault, key_file):
    with desk() as server:
        server.status = status
        send = deliver.webhook(f"http://127.0.0.1:{server.server_port}/a?b=c", key_file, now=lambda: NOON)
        if fault is None:
            await send(numbered(1))
        else:
            with pytest.raises(fault, match=rf"^http://127\.0\.0\.1:\d+ answered {status}$"):
                await send(numbered(1))


async def test_a_webhook_that_repeats_an_event_puts_no_identifier_into_the_log(key_file):
    def repeat(listener):
        link, _ = listener.accept()
        with link:
            asked = b""
            while not asked.endswith(b"]}"):
                asked += link.recv(1 << 16)
            link.sendall(b'{"imei": "00101001000001"}\r\n\r\n')

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=repeat, args=(listener,)).start()
        with pytest.raises(Undelivered) as caught:
            await deliver.webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/", key_file)(numbered(1))
    assert "00101001000001" not in str(caught.value)


async def test_a_webhook_that_is_not_there(key_file):
    with desk() as server:
        url = f"http://127.0.0.1:{server.server_port}/"
    with pytest.raises(Undelivered, match=r"127\.0\.0\.1"):
        await deliver.webhook(url, key_file)(numbered(1))


@contextmanager
def dripping():
    """A receiver that answers a header line without end, a byte at a time; gives its address and who has connected."""
    arrived, over = [], threading.Event()

    def drip(link):
        with link, suppress(OSError):
            link.recv(1 << 16)
            arrived.append(link)
            link.send(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.02):
                link.send(b"H")

    def serve(listener):
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,)).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/", arrived
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


async def test_a_webhook_that_drips_its_answer_has_one_deadline(key_file):
    with dripping() as (url, _), pytest.raises(Undelivered, match=r"no answer within 0\.3 s|timed out"):
        await deliver.webhook(url, key_file, post_s=0.3)(numbered(1))


async def test_a_drain_ends_with_0_while_a_webhook_drips(site, connect, constants):
    """Else systemd starts the drained node again."""
    constants({"eir.node.processes.recorder.END_S": 0.1})
    (site.folder / "webhook.key").write_text("secret\n")
    with dripping() as (url, arrived):
        site.configure(
            sightings={"webhook": {"url": url, "key_file": "webhook.key"}},
            policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]},
        )
        site.load([LISTED])
        node = site.start()
        await asked(await connect(node), LISTED)
        await until_async(lambda: arrived)
        await asyncio.to_thread(site.eir, "drain")
        assert await asyncio.to_thread(node.wait) == 0
        assert not node.lines("killed")


def told(server):
    return [event for _, body in server.got for event in json.loads(body)["events"]]


async def test_a_node_notifies_a_fraud_desk_and_goes_on_while_it_is_away(site, connect):
    """From the check to the desk: signed, in the order of what happened, also what happened while the desk was down."""
    (site.folder / "webhook.key").write_text("secret\n")
    rules = [{"list": "stolen", "answer": "blacklisted"}, {"list": "tracked", "answer": "greylisted", "observe": True}]
    with desk() as server:
        hook = {"url": f"http://127.0.0.1:{server.server_port}/eir", "key_file": "webhook.key"}
        site.configure(sightings={"subscribers": "full", "webhook": hook, "watch": "tracked"}, policy={"rules": rules})
        site.load([LISTED])
        site.load([TRACKED], list_name="tracked")
        node = site.start()
        mme = await connect(node)
        await asked(mme, UNLISTED, LISTED, TRACKED)
        await until_async(lambda: len(told(server)) == 2)
        headers, body = server.got[0]
        headers = {name.lower(): value for name, value in headers.items()}
        stamp = headers[TIME_HEADER.lower()]
        assert (
            headers[SIGNATURE_HEADER.lower()]
            == f"sha256={hmac.new(b'secret', f'{stamp}.'.encode() + body, hashlib.sha256).hexdigest()}"
        )
        assert signature(b"secret", stamp, body) in headers[SIGNATURE_HEADER.lower()]
        server.status = 503
        await asked(mme, TRACKED, imsi=OTHER_IMSI)
        await until_async(lambda: node.lines("events_undelivered", reason="webhook"))
        await asked(mme, TRACKED)
        server.status = 200
        await until_async(lambda: len(told(server)) == 6)
    found = [(event["event"], event["imei"], event["subscriber"], event["status"]) for event in told(server)]
    assert found[:2] == [(CHECK, LISTED, IMSI, "blacklisted"), (CHECK, TRACKED, IMSI, "whitelisted")]
    assert found[2:] == [
        (kind, TRACKED, imsi, "whitelisted") for imsi in (OTHER_IMSI, IMSI) for kind in (CHECK, SIM_CHANGED)
    ]
    assert all(one["time"] <= other["time"] for one, other in pairwise(told(server)))
    await until_async(
        lambda: node.metrics()["eir_events_total{to=webhook}"] == 6
    )  # it is counted once the desk has said that it has them


async def test_who_is_forgotten_is_in_no_later_event_and_not_in_what_watched_lists_remember(site, connect):
    (site.folder / "webhook.key").write_text("secret\n")
    rules = [{"list": "tracked", "answer": "greylisted"}]
    with desk() as server:
        server.status = 503
        hook = {"url": f"http://127.0.0.1:{server.server_port}/eir", "key_file": "webhook.key"}
        site.configure(
            sightings={"subscribers": "full", "webhook": hook, "watch": "tracked", "window_s": 3600},
            policy={"rules": rules},
        )
        site.load([TRACKED, LISTED], list_name="tracked")
        node = site.start()
        mme = await connect(node)
        await asked(mme, TRACKED)
        await asked(mme, LISTED, imsi=OTHER_IMSI)
        await until_async(lambda: node.lines("events_undelivered", reason="webhook"))
        assert site.json("sightings", "forget", "--imsi", IMSI) == {"rows": 1, "last_devices": 0}
        remembered = site.state / "sightings" / "watched.json"
        assert json.loads(remembered.read_text()) == {f"sim_changed {LISTED}": OTHER_IMSI}
        server.got.clear()
        server.status = 200
        await asked(mme, TRACKED, imsi=OTHER_IMSI)
        await until_async(lambda: len(told(server)) == 3)
    node.end()
    assert [(event["event"], event["imei"], event["subscriber"]) for event in told(server)] == [
        (CHECK, TRACKED, None), (CHECK, LISTED, OTHER_IMSI), (CHECK, TRACKED, OTHER_IMSI),
    ]  # fmt: skip
    remembered.write_text(
        json.dumps(
            {f"sim_changed {TRACKED}": IMSI, f"device_changed {IMSI}": LISTED, f"sim_changed {LISTED}": OTHER_IMSI}
        )
    )
    assert site.json("sightings", "forget", "--imsi", IMSI) == {"rows": 0, "last_devices": 0}
    assert json.loads(remembered.read_text()) == {f"sim_changed {LISTED}": OTHER_IMSI}
