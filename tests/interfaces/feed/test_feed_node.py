"""Rows that a register feeds, as it and the operator see them: a whole node, its answers, its history, kill -9."""

import asyncio
import os
import resource
import signal
import time
from collections import Counter

import pytest
from simulated.certificates import Authority
from simulated.issuer import Issuer, jwks
from simulated.node import LISTED, UNLISTED, children, until, until_async
from simulated.register import Client, basic, device, path, request
from simulated.servers import Server, programs
from simulated.store_content import rows_in
from simulated.wire import EIR

from eir.config import load_config
from eir.lists.record.listed_entries import entries_in
from eir.lists.stores.open import open_store
from eir.node.observe.control import ControlError, ask
from eir.node.observe.log import BURST
from eir.node.processes import services
from eir.wire.web.passwords import read_users, user_line

PASSWORD = "correct horse battery"
IMSI = "001010000000001"
LISTS = {
    "blocked": {"local": True}, "blocked-pairs": {"local": True, "kind": "pairs"}, "blocked-sims": {"local": True, "kind": "subscribers"},
    "exceptions": {"local": True}, "tracked": {"local": True}, "models": {"local": True, "change_min": 10**8}, "banned": {"local": True},
}  # fmt: skip
RULES = [
    {"list": "exceptions", "answer": "whitelisted"}, {"list": "blocked", "answer": "blacklisted"}, {"list": "blocked-pairs", "answer": "blacklisted"},
    {"list": "blocked-sims", "answer": "blacklisted"}, {"list": "tracked", "answer": "greylisted"}, {"list": "models", "answer": "whitelisted"},
    {"list": "banned", "answer": "blacklisted"},
]  # fmt: skip
FEED_LISTS = {
    "block": ["blocked", "blocked-pairs", "blocked-sims"], "exception": "exceptions", "track": "tracked", "allowed-tac": "models",
    "blocked-tac": "banned",
}  # fmt: skip


@pytest.fixture
async def client():
    """Makes clients, which are closed at the end: `await client(node)`."""
    made = []

    async def to(node, authorization=None, **options):
        made.append(await Client.to(at(node), authorization, **options))
        return made[-1]

    yield to
    for each in made:
        await each.close()


def at(node, number=0):
    return node.status()["interfaces"]["feed"][number]


def serve(site, feed=None, **more):
    (site.folder / "users").write_text("# who may\n" + user_line("register", PASSWORD) + "\n")
    feed = {
        "listen": "http://127.0.0.1:0",
        "users": "users",
        "from": "127.0.0.0/8",
        "lists": FEED_LISTS,
        **(feed or {}),
    }
    site.configure(lists=LISTS, policy={"rules": RULES}, feed=feed, **more)
    return site.start()


async def entries(site, name):
    """What the store holds of a list."""
    config = load_config(site.path)
    opened = open_store(config.store, config.state)
    try:
        rows = await rows_in(opened, name)
        return {entry.text(config.lists[name].kind) for entry in entries_in(rows)}
    finally:
        await opened.close()


async def test_each_row_that_a_register_sends(site, client):
    (site.folder / "numbers").write_text("msisdn,imsi\n85512345678,001010000000009\n")
    node = serve(site, numbers="numbers")
    register = await client(node)
    for target, list_name, entry in (
        (device(LISTED), "blocked", LISTED), (device(LISTED, IMSI), "blocked-pairs", LISTED), (device("NULL", IMSI), "blocked-sims", IMSI),
        (device("NULL", "NULL", "85512345678"), "blocked-sims", "001010000000009"), (device("NULL", actual=f"{UNLISTED}0"), "blocked", UNLISTED),
        (device(LISTED, role="exception"), "exceptions", LISTED), (device(LISTED, role="track"), "tracked", LISTED),
        (path("allowed-tac", "00101001"), "models", "00101001"),
    ):  # fmt: skip
        assert [(await register.ask(method, target)).status for method in ("DELETE", "POST", "POST")] == [
            204,
            201,
            208,
        ], target
        assert entry in await entries(site, list_name)
    for target in (device(LISTED), device(LISTED, IMSI), device("NULL", IMSI), path("allowed-tac", "00101001")):
        assert [(await register.ask(method, target)).status for method in ("DELETE", "DELETE", "POST")] == [
            202,
            204,
            201,
        ], target
    assert await entries(site, "blocked-sims") == {IMSI, "001010000000009"}
    added = site.json("history", "blocked")
    who = "register at 127.0.0.1 by the feed of "
    assert {event["what"] for event in added} == {"feed"}
    assert all(event["who"].startswith(who) for event in added)
    assert added[0]["detail"] == f"fed by register: {LISTED}"
    assert site.json("check", UNLISTED)["reason"] == "fed by register"
    found = node.metrics
    until(lambda: found().get("eir_feed_rows_total{result=208,rows=block,user=register}") == 5)
    until(lambda: found()["eir_feed_transactions_total"] >= 8)


@pytest.mark.long
async def test_a_file_that_is_broken_at_the_start_is_named_and_silences_nothing_else(site, client):
    (site.folder / "numbers").write_text("85512345678,none\n")
    node = serve(site, numbers="numbers")
    assert "warning: numbers: " in (said := site.eir("config").stderr)
    assert f"{site.folder / 'numbers'}:1: " in said
    register, by_number = await client(node), device("NULL", "NULL", "85512345678")
    assert (await register.ask("POST", device(LISTED))).status == 201
    answer = await register.ask("POST", by_number)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    answer = await register.ask("PUT", device(LISTED))
    assert (answer.status, answer.headers["allow"]) == (405, "POST, DELETE")
    faulty = "eir_interface_faulty{interface=feed,part=numbers}"
    await until_async(lambda: node.metrics().get(faulty) == 1)
    assert "cannot be used: feed numbers (" in node.status()["summary"]
    lines = await until_async(lambda: node.lines("access_file_refused", interface="feed", file="numbers"))
    assert len(lines) == 1
    (site.folder / "numbers").write_text("85512345678,001010000000009\n")
    await until_async(lambda: faulty not in node.metrics())
    assert "cannot be used" not in str(node.status()["troubles"])
    assert [
        (await register.ask("POST", target)).status for target in (by_number, device("NULL", "NULL", "85512345679"))
    ] == [201, 422]
    # A process that cannot begin is named too: there is no user at all, and then again one.
    (site.folder / "users").write_text("half a line")
    os.kill(children(node.pid)["services"], signal.SIGKILL)
    await until_async(lambda: "cannot be used: feed users (" in node.status()["summary"])
    assert (await (await client(node)).ask("POST", device(LISTED))).status == 503
    (site.folder / "users").write_text(user_line("register", PASSWORD))
    await until_async(lambda: "cannot be used" not in str(node.status()["troubles"]))
    assert (await (await client(node)).ask("POST", device(LISTED))).status == 208


async def test_who_may_send_rows(site, client, tmp_path):
    issuer, authority = Issuer(), Authority(tmp_path / "tls")
    (site.folder / "jwks").write_bytes(jwks(issuer))
    node = serve(
        site,
        {"listen": ["https://127.0.0.1:0", "http://127.0.0.1:0"], "tokens": {"jwks": "jwks", "audience": "eir"}},
        tls=authority.write(EIR, "127.0.0.1"),
    )
    now, row = time.time(), device(LISTED)
    register = await client(node, tls=authority.peer())
    assert (await register.ask("POST", row)).status == 201
    # Who holds more handshakes open than there may be keeps nobody out.
    host, _, port = at(node).removeprefix("https://").rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(services.HANDSHAKES_MAX + 10)]
    assert (await (await client(node, tls=authority.peer())).ask("POST", row)).status == 208
    assert await silent[0][0].read() == b""
    await until_async(lambda: node.lines("client_refused", reason="handshakes", interface="feed"))
    for _, writer in silent:
        writer.close()
    token = issuer.token(now, aud="eir", scope="eir-feed", sub="ministry")
    assert (await register.ask("POST", device(UNLISTED), Authorization=f"Bearer {token}")).status == 201
    assert site.json("history", "blocked")[-1]["who"].startswith("ministry at 127.0.0.1 by the feed of ")
    # Whatever is asked, who may not gets one and the same answer.
    for target, method in (
        (row, "POST"),
        (device(UNLISTED), "DELETE"),
        ("/", "GET"),
        ("/eir/block/x", "PUT"),
        (path("nothing", "1"), "POST"),
    ):
        for authorization, status, body in (
            ("", 401, b"no_password: a user and a password are needed\n"), (basic(password="wrong password"), 401, b"wrong_password: the user or the password is wrong\n"),
            (basic("nobody"), 401, b"wrong_password: the user or the password is wrong\n"),
            (f"Bearer {issuer.token(now, aud='5G_EIR', scope='eir-feed')}", 401, b"audience: the access token is for another audience\n"),
            (f"Bearer {issuer.token(now, aud='eir')}", 403, b"scope: the access token is not for this service\n"),
        ):  # fmt: skip
            answer = await register.ask(method, target, Authorization=authorization or None)
            assert (answer.status, answer.body) == (status, body)
            assert answer.headers["www-authenticate"].startswith(("Basic realm=", "Bearer realm="))
    until(
        lambda: (
            {line["reason"] for line in node.lines("feed_refused")}
            >= {"no_password", "wrong_password", "audience", "scope"}
        )
    )
    assert "wrong password" not in node.text()
    assert LISTED not in node.text()
    # A bad file changes nothing; a good one counts within a second or two.
    users = site.folder / "users"
    users.write_text("half a line")
    await until_async(lambda: node.lines("access_file_refused", interface="feed"))
    assert (await register.ask("POST", row)).status == 208
    users.write_text(user_line("second", PASSWORD))

    async def gone():
        return (await register.ask("POST", row)).status == 401

    await until_async(gone)
    assert (await register.ask("POST", row, Authorization=basic("second"))).status == 208
    # A reload closes the door to an address, and the connections that are open from there.
    site.configure(feed={**site.settings["feed"], "from": "192.0.2.0/24"})
    ask(site.state, "reload")
    assert await register.ended() == b""

    async def closed():
        try:
            return await (await client(node)).ended() == b""
        except OSError:
            return True

    assert await closed()
    await until_async(lambda: node.lines("client_refused", reason="source", setting="feed.from"))


SMUGGLED = (
    b"POST "
    + device("00101009000001").encode()
    + b" HTTP/1.1\r\nHost: a\r\nAuthorization: "
    + basic().encode()
    + b"\r\n\r\n"
)
ATTACKS = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a list of lengths": b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks in disguise": b"Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "blank before the colon": b"Content-Length : 0\r\n\r\n" + SMUGGLED,
    "a length that is none": b"Content-Length: +0\r\n\r\n" + SMUGGLED, "a length below 0": b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "two hosts": b"Host: b\r\n\r\n" + SMUGGLED, "a zero in a header": b"X: a\0b\r\n\r\n" + SMUGGLED, "a header of 100 kB": b"X: " + b"a" * 100_000,
    "a thousand headers": b"".join(b"X-%d: a\r\n" % number for number in range(3000)) + b"\r\n", "a chunk too long": b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 30 + b"\r\n",
    "a body too long": b"Content-Length: 1000000000\r\n\r\n" + b"a" * 10_000,
}  # fmt: skip


@pytest.mark.long
async def test_a_red_teams_list(site, client):
    node = serve(site)
    begin = b"POST " + device(LISTED).encode() + b" HTTP/1.1\r\nHost: a\r\n"
    good = await client(node)
    for name, attack in ATTACKS.items():
        bad = await client(node)
        bad.writer.write(begin + attack)
        said = await bad.ended()
        if said or len(attack) < 10_000:  # who goes on sending may miss the answer, and sees the end alone
            assert said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), (
                name,
                said,
            )  # one answer, that it is no request, and the end
            assert said.count(b"HTTP/1.1 ") == 1, (name, said)
    assert (await good.ask("POST", device("00101009000001"))).status == 201  # nothing was smuggled: it was not there
    # Half a body, half a head, and nothing at all hold nobody up, and leave nothing behind when they go.
    for half in (begin + b"Content-Length: 10\r\n\r\nabc", begin, b"P", b""):
        bad = await client(node)
        bad.writer.write(half)
        await bad.close()
    # A whole body is no harm, in one piece or in chunks, and who waits for leave to send it gets that.
    body = await good.send(request("POST", device(LISTED), basic(), b"{}"))
    assert body.status == 201
    chunked = (
        begin + b"Authorization: " + basic().encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    assert (await good.send(chunked)).status == 208
    assert (
        await good.send(
            begin + b"Authorization: " + basic().encode() + b"\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
    ).status == 100
    assert (await good.send(b"{}")).status == 208
    # Several in one segment are answered one after another.
    good.writer.write(request("POST", device(UNLISTED), basic()) + request("DELETE", device(UNLISTED), basic()) * 2)
    assert [(await good.answer()).status for _ in range(3)] == [201, 202, 204]
    # Who holds more connections than there may be keeps nobody out.
    held = [await client(node) for _ in range(600)]
    assert (await (await client(node)).ask("POST", device(LISTED))).status == 208
    assert await held[0].ended() == b""
    assert (await held[-1].ask("POST", device(LISTED))).status == 208
    # Nor do they close a connection that has sent a row before them.
    assert (await good.ask("POST", device(LISTED))).status == 208
    # Passwords are not tried for long; who has the right one goes on.
    tries = [
        (await held[-1].ask("POST", device(LISTED), Authorization=basic(password=f"guess number {at}"))).status
        for at in range(30)
    ]
    assert tries[:20] == [401] * 20
    assert tries[-1] == 429
    assert (await held[-1].ask("POST", device(LISTED))).status == 208
    until(lambda: node.metrics().get("eir_clients_refused_total{interface=feed,reason=no_http}", 0) >= len(ATTACKS))
    assert not node.lines("fault")


async def test_a_reload_opens_and_closes_the_listeners_of_the_feed(site, client):
    (site.folder / "users").write_text(user_line("register", PASSWORD))
    site.configure(lists={"blocked": {"local": True}}, policy={"rules": RULES[1:2]})
    node = site.start()
    assert "services" not in children(node.pid)
    for number in range(2):  # the first listener starts the process
        urls = ["http://127.0.0.1:0", "http://localhost:0"]
        site.configure(feed={"listen": urls[number], "users": "users", "lists": {"block": "blocked"}})
        assert ask(site.state, "reload") == "reloaded"
        assert (await (await client(node)).ask("POST", device(LISTED))).status == (208 if number else 201)
    assert len(node.lines("listening", interface="feed")) == 2
    assert node.metrics()["eir_process_restarts_total{process=services}"] == 0


async def test_a_client_that_cannot_be_accepted_is_counted_and_waits(site, client):
    node = serve(site)
    assert (await (await client(node)).ask("POST", device(UNLISTED))).status == 201  # the process listens
    front = children(node.pid)["services"]
    before = resource.prlimit(front, resource.RLIMIT_NOFILE)
    resource.prlimit(front, resource.RLIMIT_NOFILE, (3, before[1]))
    register = await client(node, basic("register", PASSWORD))
    await until_async(lambda: node.lines("accept_failed"))
    resource.prlimit(front, resource.RLIMIT_NOFILE, before)
    assert (await register.ask("POST", device(LISTED))).status == 201
    refused = "eir_clients_refused_total{interface=feed,reason=accept_failed}"
    await until_async(lambda: min(node.metrics().get(refused, 0), BURST) == len(node.lines("accept_failed")))


@pytest.fixture(params=["sqlite", *programs()][:2])
def store(request):
    if request.param == "sqlite":
        yield "sqlite"
        return
    server = Server(programs()[request.param], "--appendonly", "yes", "--appendfsync", "always").start()
    yield server.url
    server.stop()


@pytest.mark.long(short=["sqlite"])
async def test_each_row_that_was_answered_is_there_after_kill_9(site, store):
    """A register that sends again what was not answered; the feed's process is killed under it, and then the whole node."""
    node = serve(site, store=store)
    rows, done, errors = [f"00101{number % 7:03d}{number:06d}" for number in range(10**6)], [], Counter()

    async def send(going):
        register = None
        while not going.done():
            row = rows.pop()
            try:
                register = register or await Client.to(at(node))
                answer = await register.ask("POST", device(row))
            except (OSError, EOFError, ControlError):
                errors["gone"] += 1
                if register is not None:
                    register.writer.transport.abort()
                register = None
                await asyncio.sleep(0.01)
                continue
            assert answer.status in {201, 503}, answer  # 503: the store took too long, on a busy host
            if answer.status == 201:
                done.append(row)
        if register is not None:
            await register.close()

    for what in ("feed", "feed", "node"):
        going = asyncio.get_running_loop().create_future()
        senders = [asyncio.create_task(send(going)) for _ in range(8)]
        before = len(done)
        await until_async(lambda: len(done) > before + 200)  # noqa: B023 - it is waited for here
        if what == "feed":
            os.kill(children(node.pid)["services"], signal.SIGKILL)
            killed = errors["gone"]
            await until_async(lambda: errors["gone"] > killed)  # noqa: B023 - as above
            before = len(done)
            await until_async(lambda: len(done) > before)  # noqa: B023 - as above
            going.set_result(None)
        else:
            node.process.kill()
            node.process.wait()
            going.set_result(None)
        await asyncio.gather(*senders)
    assert errors["gone"] >= 3
    there = await entries(site, "blocked")
    assert set(done) <= there
    named = [
        entry
        for event in site.json("history", "blocked", "-n", "100000")
        for entry in event["detail"].rpartition(": ")[2].split(", ")
    ]
    assert sorted(named) == sorted(there)  # each is on record once


async def test_a_register_that_sends_fifty_a_second_and_again_what_failed(site, client):
    """As the public register's own client does: one after another, and what was not 2xx again, in its order."""
    node = serve(site)
    register = await client(node)
    for round_ in (201, 208):
        for number in range(50):
            assert (await register.ask("POST", device(f"00101001{number:06d}"))).status == round_
    assert node.metrics()["eir_list_entries{list=blocked}"] == 50 or until(
        lambda: node.metrics()["eir_list_entries{list=blocked}"] == 50
    )


def test_a_number_stands_for_its_subscriber_in_commands_too(site):
    site.configure(lists=LISTS, policy={"rules": RULES})
    said = site.eir("add", "blocked-sims", "+85512345678", "--reason", "x", status=2).stderr
    assert "sets no table `numbers`" in said
    (site.folder / "numbers").write_text(f"85512345678,{IMSI}\n")
    site.configure(numbers="numbers")
    assert (
        "does not contain this number"
        in site.eir("add", "blocked-sims", "+85512345679", "--reason", "x", status=2).stderr
    )
    site.eir("add", "blocked-sims", "+85512345678", "--reason", "x")
    assert IMSI in site.eir("show", "blocked-sims").stdout


def test_the_line_of_a_user(site):
    made = site.eir("feed", "user", "register")
    password = made.stderr.rpartition(": ")[2].strip()
    (site.folder / "users").write_text(made.stdout)
    assert read_users(site.folder / "users")["register"].fits(password.encode())
    (site.folder / "password").write_text("correct horse battery\n")
    line = site.eir("feed", "user", "second", "--password-file", site.folder / "password").stdout
    (site.folder / "users").write_text(made.stdout + line)
    assert read_users(site.folder / "users")["second"].fits(PASSWORD.encode())
    (site.folder / "password").write_text("short\n")
    assert "12 to 256" in site.eir("feed", "user", "x", "--password-file", site.folder / "password", status=2).stderr
    assert "a user's name" in site.eir("feed", "user", "a:b", status=2).stderr
