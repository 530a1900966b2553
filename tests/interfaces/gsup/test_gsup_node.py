"""A node between an MSC and its HLR, from outside: real processes, an MSC and an HLR of the test's own on real sockets."""

import asyncio
import json
import os
import random
import signal
import time

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, children, until, until_async
from simulated.osmo_wire import (
    ACK,
    CHECK,
    ID_RESP,
    IMSI,
    NACK,
    PING,
    PONG,
    End,
    Hlr,
    Msc,
    check,
    gsup,
    ipa,
    is_gsup,
    tbcd,
    update_location,
)
from simulated.tcp_server import accepting

from eir.wire.peers.settings import Limits

PEERS = [{"name": "msc", "from": ["127.0.0.0/8"]}]
ME = (1, tbcd(IMSI))
ACCEPTED = gsup(0x06, ME)
NET_FAIL = gsup(0x05, ME, (2, b"\x11"))


def port_of(node):
    return int(node.status()["listening"][-1].rpartition(":")[2])


def result(imsi, permitted):
    return gsup(0x32, (1, tbcd(imsi)), (0x51, b"\0" if permitted else b"\1"))


@pytest.fixture
async def hlr():
    """An HLR that accepts every location update."""
    made = await Hlr(lambda frame: ACCEPTED if frame[4:5] == b"\x04" else b"").start()
    yield made
    await made.stop()


@pytest.fixture
async def to():
    """Makes clients, which are closed at the end: `await to(node)`."""
    made = []

    async def to(node, kind=Msc, **options):
        made.append(await kind.to(port_of(node), **options))
        return made[-1]

    yield to
    for client in made:
        client.close()


def serve(site, hlr=None, **more):
    gsup = {
        "listen": ["tcp://127.0.0.1:0"],
        **({"hlr": f"tcp://127.0.0.1:{hlr.port}"} if hlr else {}),
        **more.pop("gsup", {}),
    }
    site.configure(**{"peers": PEERS, **more}, gsup=gsup)
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    return site.start()


async def asked(msc, imei, imsi=IMSI):
    """Whether a device may pass; anything but a plain ACK or NACK fails."""
    said = await msc.send(check(imei, imsi)).next(lambda frame: frame[4:5] in {b"\x31", b"\x32"})
    assert said in {result(imsi, permitted=True), result(imsi, permitted=False)}, said
    return said == result(imsi, permitted=True)


async def test_checks_are_answered_and_everything_else_goes_through(site, hlr, to):
    node = serve(site, hlr, sightings={"window_s": 3600, "subscribers": "full"})
    msc = await to(node)
    assert await msc.send(CHECK).next() == ACK
    assert [await asked(msc, imei) for imei in (LISTED, f"{LISTED}1", f"{LISTED}42", TRACKED, UNLISTED)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    for odd in (gsup(0x30, ME), check("12"), gsup(0x30, ME, (0x50, b""))):
        assert await msc.send(odd).next() == ACK
    # Under the client's own name, unread and in order, both ways; a check among them goes nowhere.
    others = [update_location(), ipa(0xEE, b"\x00ctrl"), gsup(0x12, ME), ipa(0xFD, b"sccp"), ipa(0xEE, b"")]
    msc.send(others[0], check(UNLISTED), *others[1:])
    await until_async(lambda: len(hlr.messages) == len(others))
    assert hlr.messages == others
    assert hlr.names == [ID_RESP]
    assert {await msc.next(), await msc.next()} == {ACCEPTED, ACK}
    pushed = [gsup(0x10, ME, (5, b"x" * 200)), gsup(0x1C, ME)]
    hlr.ends[0].send(*pushed, PING)
    assert [await msc.next() for _ in pushed] == pushed
    assert await msc.send(PING).until(lambda found: PONG in found)

    metrics = node.metrics()
    assert metrics["eir_checks_total{list=stolen,protocol=gsup,rule=1,status=blacklisted}"] == 3
    assert metrics["eir_gsup_answers_total{peer=msc,result=nack}"] == 3
    assert metrics["eir_gsup_passed_total{direction=out,peer=msc}"] == len(others)
    assert metrics["eir_gsup_passed_total{direction=in,peer=msc}"] == 1 + len(pushed)
    assert metrics["eir_gsup_hlr_up{peer=msc}"] == 1
    assert metrics["eir_peer_up{peer=msc}"] == 1
    (row,) = [row for row in site.json("peers") if row["protocol"] == "gsup"]
    assert (row["label"], row["host"], row["state"], row["requests"]) == ("msc", "MSC-1", "open", 10)
    seen = site.json("seen", LISTED)["sightings"][0]
    assert (seen["status"], seen["subscriber"], seen["protocol"], seen["origin_host"]) == (
        "blacklisted",
        IMSI,
        "gsup",
        "MSC-1",
    )
    log = json.dumps(node.lines())
    assert not [identifier for identifier in (LISTED, UNLISTED, IMSI) if identifier in log]


async def test_thousands_of_messages_pass_unchanged_while_checks_are_answered(site, hlr, to):
    count = int(os.environ.get("EIR_GSUP_MESSAGES", "5000"))
    node = serve(site, hlr)
    # Who does not say its name when the HLR wants to know gets errors for what is for the HLR, and its checks are answered.
    nameless = await to(node, End)
    nameless.send(update_location())
    assert await asked(nameless, UNLISTED)
    assert await nameless.next() == NET_FAIL
    assert not await asked(nameless, LISTED)
    single = await to(node)
    for octet in CHECK + update_location() + check(LISTED):
        single.send(bytes([octet]))
        await asyncio.sleep(0.001)
    assert sorted([await single.next() for _ in range(3)]) == sorted([ACK, ACCEPTED, NACK])
    hlr.messages.clear()
    msc, chance = await to(node), random.Random(7)
    numbers = range(0, count, 5)
    wanted = [result(f"{1010000000000 + number:015}", permitted=number % 2 == 0) for number in numbers]

    def has_all(kind, number):
        return lambda found: (
            len(found) >= number and sum(frame[4] == kind for frame in found if len(frame) > 4) == number
        )

    reading = asyncio.create_task(msc.until(has_all(0x32, len(wanted))))
    sent = []
    for number in range(count):
        sent.append(
            gsup(
                chance.choice((0x04, 0x08, 0x12, 0x20)),
                ME,
                (0x77, chance.randbytes(chance.randint(0, 250))),
                (0x78, number.to_bytes(4)),
            )
        )
        msc.send(sent[-1])
        if number % 5 == 0:
            msc.send(check(LISTED if number % 2 else UNLISTED, f"{1010000000000 + number:015}"))
        if number % 50 == 0:
            await msc.writer.drain()
            await asyncio.sleep(0)  # it has to be able to say its name
    assert await reading
    assert [frame for frame in msc.found if frame[4:5] == b"\x32"] == wanted
    await until_async(lambda: len(hlr.messages) == count)
    assert hlr.messages == sent
    back = [gsup(0x10, ME, (0x78, number.to_bytes(4))) for number in range(count)]
    msc.found.clear()
    hlr.ends[-1].send(*back)
    await msc.until(has_all(0x10, count))
    assert [frame for frame in msc.found if frame[4:5] == b"\x10"] == back


async def test_an_hlr_that_is_killed_and_comes_back(site, hlr, to):
    node = serve(site, hlr)
    msc = await to(node)
    assert await msc.send(update_location()).next() == ACCEPTED
    await hlr.stop()
    # A request gets an error by which its phone tries again later, and checks go on.
    await until_async(lambda: node.lines("hlr_away"))
    for _ in range(3):
        assert await msc.send(update_location()).next() == NET_FAIL
        assert [await asked(msc, imei) for imei in (LISTED, UNLISTED)] == [False, True]
    assert node.metrics()["eir_gsup_hlr_up{peer=msc}"] == 0
    status = site.json("status", status=2)
    (warning,) = [text for text in status["troubles"] if "HLR" in text]
    assert status["state"] == "CRITICAL"
    assert "could not attach: msc (" in warning
    (row,) = [row for row in site.json("peers") if row["protocol"] == "gsup"]
    assert (row["state"], row["last_error"]) == (
        "open",
        f"the HLR of msc is away {warning[warning.index('(') :]}: its phones cannot attach",
    )
    assert node.metrics()["eir_gsup_not_passed_total{peer=msc,reason=hlr_away}"] >= 3
    await hlr.start()
    await until_async(lambda: node.lines("hlr_back"))
    assert await msc.send(update_location()).next() == ACCEPTED
    (after,) = site.json("status", status=2)[
        "troubles"
    ]  # as long as EirHlrAway fires for the phones that could not attach
    assert after == "peers whose HLR did not answer in the last 5 minutes, so that phones could not attach: msc"
    assert [row["last_error"] for row in site.json("peers")] == [None]
    assert hlr.names == [ID_RESP] * 2
    assert [line["peer"] for line in node.lines("hlr_away")] == ["msc"]


async def test_an_hlr_that_reads_nothing_keeps_no_check_waiting(site, to):

    def deaf(_reader, writer):
        writer.transport.pause_reading()

    async with accepting(deaf) as (_, port):
        site.tune(Limits, stalled_write_s=1, write_buffer_bytes=65536)
        hlr = Hlr()
        hlr.port = port
        node = serve(site, hlr)
        msc, big = await to(node), gsup(0x04, ME, *((0x77, bytes(250)) for _ in range(40)))
        for _ in range(100):
            msc.send(*[big] * 20)
            assert not await asked(msc, LISTED)
            if NET_FAIL in msc.found:
                break
        await msc.until(lambda found: NET_FAIL in found)
        assert await asked(msc, UNLISTED)
        assert node.metrics()["eir_gsup_not_passed_total{peer=msc,reason=hlr_slow}"] > 0
        await until_async(lambda: [line["detail"] for line in node.lines("hlr_away")] == ["it reads nothing"])


async def test_the_hlr_may_reject_a_device_that_it_stores(site, to):
    """Whatever else it says, or if it says nothing, is no refusal; its word comes once, however late."""
    says = {"1": b"\x51\x01\x00", "2": b"\x51\x01\x01", "3": b"\x51\x00", "4": b""}

    def answer(frame):
        imsi = frame[7:15]
        word = imsi.hex()[-4]
        if frame[4] != 0x30 or word == "5":
            return ACCEPTED if frame[4] == 0x04 else b""
        return (
            gsup(0x31, (1, imsi), (2, b"\x60"))
            if word == "6"
            else gsup(0x32, (1, imsi))[:0] + ipa(0xEE, b"\x05\x32\x01\x08" + imsi + says[word])
        )

    hlr = await Hlr(answer).start()
    try:
        node = serve(site, hlr, gsup={"store": True})
        msc = await to(node)
        imsis = {word: f"0010100000000{word}1" for word in "123456"}
        assert {word: await asked(msc, UNLISTED, imsi) for word, imsi in imsis.items()} == {
            "1": True,
            "2": False,
            "3": True,
            "4": True,
            "5": True,
            "6": True,
        }
        assert not await asked(msc, LISTED, imsis["1"])
        assert len(hlr.messages) == 6  # what is listed does not go there
        hlr.ends[0].send(result(imsis["5"], permitted=False))
        assert await msc.send(update_location()).next() == ACCEPTED  # and nothing before it
        assert len(await until_async(lambda: node.lines("hlr_refused"))) == 1
        await hlr.stop()
        assert await asked(msc, UNLISTED, imsis["2"])
    finally:
        await hlr.stop()


async def test_who_may_ask(site, hlr, to):
    peers = [{"name": "one", "host": "msc-1", "rate_max": 4}, {"name": "other", "host": "MSC-2"}]
    node = serve(site, hlr, peers=peers, overload_answer="blacklisted")
    msc = await to(node)
    assert await msc.send(PING).until(lambda found: PONG in found)
    await until_async(lambda: node.lines("peer_open", host="MSC-1"))
    found = [await asked(msc, UNLISTED) for _ in range(10)]
    assert not all(found)
    assert node.metrics()["eir_shed_total{peer=one,reason=rate_max}"] == found.count(False)
    site.eir("peer", "disable", "one")
    assert not await msc.until(lambda _: False)
    again = await to(node)
    assert not await again.until(lambda _: False)
    site.eir("peer", "enable", "one")
    site.configure(peers=[{"name": "other", "host": "MSC-2"}])
    site.eir("reload")
    stranger = await to(node)
    assert not await stranger.until(lambda _: False)
    (line,) = await until_async(lambda: node.lines("peer_refused", reason="unknown_peer"))
    assert line["host"] == "MSC-1"
    ends = [*node.lines("peer_closed"), *node.lines("connection_fault")]
    assert [line["reason"] for line in ends] == ["left"], "a rejected connection has no other line"


async def test_an_msc_that_comes_back_after_it_vanished_without_a_word_is_alone_with_its_name(site, hlr, to):
    """Else its HLR has two connections of that name, and speaks to the one that leads nowhere."""
    node = serve(site, hlr)
    vanished = await to(node)
    assert await vanished.send(PING).until(lambda found: PONG in found)
    back = await to(node)
    assert await back.send(update_location()).next() == ACCEPTED
    (line,) = await until_async(lambda: node.lines("connection_fault", reason="duplicate_silent"))
    assert line["peer"] == "msc"
    assert not await vanished.until(lambda _: False)
    third = await to(node)
    assert await third.send(update_location()).next() == ACCEPTED
    assert await back.until(lambda found: PING in found)
    assert await asked(back, UNLISTED)


async def test_the_probe_and_an_audit(site, hlr):
    node = serve(site, hlr)
    target = f"gsup://127.0.0.1:{port_of(node)}"
    ask = ("probe", target, LISTED, f"{UNLISTED}0", f"{TRACKED}42", "--imsi", IMSI, "--json")
    began = time.perf_counter()
    found = json.loads((await asyncio.to_thread(site.eir, *ask)).stdout)
    took_ms = (time.perf_counter() - began) * 1000
    assert [(each["status"], each["imsi"]) for each in found] == [
        ("blacklisted", IMSI),
        ("whitelisted", IMSI),
        ("whitelisted", IMSI),
    ]
    assert all(0 < each["round_trip_ms"] < took_ms for each in found)
    found = await asyncio.to_thread(
        site.eir, "probe", target, "--count", "200", "--rate", "2000", LISTED, UNLISTED, "--json"
    )
    assert json.loads(found.stdout)["answers"] == {"blacklisted": 100, "whitelisted": 100}
    assert hlr.messages == []
    manifest = site.release([LISTED, UNLISTED], serial=2)
    found = json.loads((await asyncio.to_thread(site.eir, "audit", manifest, target, "--all", "--json")).stdout)
    assert (found["asked"], found["as_listed"]) == (2, 1)
    assert site.json("check", LISTED, "--protocol", "gsup")["answer"] == "NACK"
    # Another EIR: an HLR that answers an error, and one that says nothing.
    said = iter([gsup(0x31, (1, tbcd("001010000000000")), (2, b"\x60")), b""])
    hlr.answer = lambda _: next(said)
    other = f"gsup://127.0.0.1:{hlr.port}"
    named = ("probe", f"{other}?name=MSC-1", LISTED)
    assert "cause 96" in (await asyncio.to_thread(site.eir, *named)).stderr
    assert b"\0MSC-1\0" in hlr.names[-1]
    assert (
        "no answer within"
        in (await asyncio.to_thread(site.eir, "probe", other, LISTED, "--timeout", "0.3", status=1)).stderr
    )
    assert b"\0eir-probe\0" in hlr.names[-1]


async def test_early_checks_leave_out_rules_for_authenticated_sims(site, to):
    rules = [
        {"imsi": "00101", "answer": "blacklisted", "authenticated": True},
        {"list": "stolen", "answer": "blacklisted"},
    ]
    node = serve(site, peers=[{**PEERS[0], "early": True}], policy={"rules": rules}, sightings={"window_s": 3600})
    msc = await to(node)
    assert [await asked(msc, imei) for imei in (LISTED, UNLISTED)] == [False, True]
    assert site.json("seen", LISTED)["sightings"][0]["early"] is True
    site.configure(peers=PEERS)
    site.eir("reload")
    assert not await asked(msc, UNLISTED)


async def test_an_answering_process_and_a_node_that_are_killed(site, hlr, to):
    node = serve(site, hlr)
    msc = await to(node)
    assert await asked(msc, UNLISTED)
    os.kill(children(node.pid)["answering"], signal.SIGKILL)
    assert not await msc.until(lambda _: False)
    again = await to(node)
    assert not await asked(again, LISTED)
    node.process.kill()
    node.wait()
    assert not await again.until(lambda _: False)
    site.start()
    assert not await asked(await to(site.node), LISTED)


async def test_a_drain_and_hostile_clients(site, hlr, to):
    site.tune(Limits, partial_message_timeout_s=1, stalled_write_s=1, max_message_bytes=4096)
    node = serve(site, hlr)
    msc = await to(node)
    partial, long = await to(node, End), await to(node, End)
    assert await msc.send(update_location()).next() == ACCEPTED
    partial.send(CHECK[:9])
    long.send(b"\xff\xff\xee")
    for each in (partial, long):
        assert not await each.until(lambda _: False)
    until(
        lambda: (
            {line["reason"] for line in node.lines("connection_fault", protocol="gsup")}
            == {"partial_message", "message_too_long"}
        )
    )
    deaf = await to(node)
    deaf.writer.transport.pause_reading()
    for _ in range(40):
        deaf.send(*[check(UNLISTED)] * 1000)
        assert not await asked(msc, LISTED)
        if deaf.writer.transport.is_closing():
            break
    node.end()
    assert not await msc.until(lambda _: False)
    assert is_gsup(CHECK)
