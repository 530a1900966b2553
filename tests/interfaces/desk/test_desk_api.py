"""JSON of the desk: entries with entity tags, rights, conditions, faulty requests; on a node passwords, rates, attacks, kill -9; the document, by schemathesis."""

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from simulated.issuer import Issuer, jwks
from simulated.node import children, until_async
from simulated.patience import PROGRAM_S
from simulated.register import Client, basic
from simulated.servers import Server, programs
from test_desk_operations import ANNA, BERT, IMEI, IMSI, OTHER, VIEWER, Desk

from eir.config import load_config
from eir.errors import IdentifierError, silent
from eir.interfaces import desk
from eir.interfaces.clients import RequestRefused
from eir.interfaces.desk import api
from eir.interfaces.desk.api import BURST, DeskApi
from eir.interfaces.desk.operations import SEARCHES_BURST
from eir.interfaces.desk.service import DeskService
from eir.interfaces.interface import NodeCalls
from eir.lists.log.reader import read_content
from eir.lists.record.listed_entries import entries_in
from eir.lists.stores.sqlite import SqliteStore
from eir.node.observe.control import ControlError
from eir.wire.web.http1 import HttpRequest
from eir.wire.web.passwords import Hashed, user_line

DOCUMENT_BYTES = Path(api.__file__).with_name("openapi.json").read_bytes()
DOCUMENT = json.loads(DOCUMENT_BYTES)
ENTRY = f"/v1/lists/own/entries/{IMEI}"


@pytest.fixture
async def ask(tmp_path):
    """Sends a request to the API over a store of its own: `await ask("PUT", path, {…}, user=BERT, if_match=…)` → status, document, headers."""
    made = Desk(tmp_path)
    desk_api = DeskApi(made.desk)

    async def send(method, target, body=None, *, user=ANNA, media="application/json", **headers):
        path, _, query = target.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()} | {"content-type": media}
        octets = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        try:
            response = await desk_api.respond(HttpRequest(method, path, query, named, "127.0.0.1", octets), user)
        except RequestRefused as e:
            return e.status, e.reason, {}
        except IdentifierError:
            return 422, "identifier", {}
        assert ("Cache-Control", "no-store") in response.headers
        return response.status, json.loads(response.body or b"null"), dict(response.headers)

    yield send
    await made.store.close()


async def test_an_entry_is_added_read_replaced_and_removed_and_each_request_can_be_repeated(ask):
    assert (await ask("GET", ENTRY))[:2] == (404, "no_entry")
    values = {"reason": "stolen", "case": "A-17", "until": "2099-01-01"}
    status, entry, headers = await ask("PUT", ENTRY, values)
    assert (status, entry["id"], entry["until"]) == (201, IMEI[:14], "2099-01-02T00:00:00Z")
    assert await ask("PUT", ENTRY, values) == (200, entry, headers)
    assert await ask("GET", ENTRY) == await ask("HEAD", ENTRY) == (200, entry, headers)
    for _ in range(2):
        assert (await ask("DELETE", f"{ENTRY}?reason=found&case=A-17"))[:2] == (204, None)
    (added, removed) = (await ask("GET", "/v1/changes"))[1]["changes"]
    assert [each["what"] for each in (added, removed)] == ["add", "remove"]
    assert all(each["who"] == ANNA.who and "case A-17" in each["detail"] for each in (added, removed))
    later = (await ask("GET", "/v1/changes?since=2099-01-01T00:00:00Z"))[1]
    assert later == {"changes": []}


async def test_an_entity_tag_prevents_the_change_of_an_entry_that_another_user_changed(ask):
    assert (await ask("PUT", ENTRY, {"reason": "stolen"}, if_none_match="*"))[0] == 201
    assert (await ask("PUT", ENTRY, {"reason": "lost"}, if_none_match="*"))[0] == 412
    tag = (await ask("GET", ENTRY))[2]["ETag"]
    status, _, headers = await ask("PUT", ENTRY, {"reason": "lost"}, user=BERT, if_match=tag)
    assert (status, headers["ETag"] != tag) == (200, True)
    assert (await ask("PUT", ENTRY, {"reason": "mine"}, if_match=tag))[0] == 412
    assert (await ask("DELETE", f"{ENTRY}?reason=x", if_match=tag))[0] == 412
    assert (await ask("GET", ENTRY))[1]["reason"] == "lost"
    assert (await ask("DELETE", f"{ENTRY}?reason=x", if_match=headers["ETag"]))[0] == 204


async def test_changes_at_the_same_time_are_all_there_and_on_record_once(ask, tmp_path):
    imeis = [f"0010150000{n:04d}" for n in range(20)]
    answers = await asyncio.gather(
        *(ask("PUT", f"/v1/lists/own/entries/{imei}", {"reason": "stolen"}) for imei in imeis)
    )
    assert [status for status, *_ in answers] == [201] * 20
    changes = (await ask("GET", "/v1/changes"))[1]["changes"]
    assert sorted(each["change"] for each in changes) == [*range(1, 21)]
    store = SqliteStore(tmp_path / "lists.sqlite")
    content = await read_content(store, "own", (await store.heads())["own"])  # verifies every digest
    assert [entry.text("devices") for entry in entries_in(content.table.rows())] == imeis
    await store.close()


async def test_entries_of_pairs_and_subscribers_have_identifiers_of_their_own(ask):
    pair = f"{OTHER}+{IMSI}"
    for target in (
        f"/v1/lists/bound/entries/{pair}",
        f"/v1/lists/bound/entries/{pair.replace('+', '%2B')}",
        f"/v1/lists/sims/entries/{IMSI}",
    ):
        assert (await ask("PUT", target, {"reason": "owner"}))[0] in {200, 201}
    assert (await ask("GET", f"/v1/lists/bound/entries/{pair}"))[1]["id"] == f"{OTHER[:14]}+{IMSI}"


async def test_a_device_has_its_answer_entries_and_changes(ask):
    await ask("PUT", ENTRY, {"reason": "stolen"})
    _, found, _ = await ask("GET", f"/v1/devices/{IMEI}", user=VIEWER)
    ((entry,), (change,)) = found["rows"], found["changes"]
    assert (found["answer"]["status"], found["answer"]["reason"], entry["list"], entry["changeable"]) == (
        "blacklisted",
        "stolen",
        "own",
        False,
    )
    assert (entry["tag"], change["who"]) == ((await ask("GET", ENTRY))[2]["ETag"].strip('"'), ANNA.who)


@pytest.mark.parametrize(
    ("user", "target", "status"),
    [(VIEWER, ENTRY, 403), (BERT, f"/v1/lists/sims/entries/{IMSI}", 403), (ANNA, f"/v1/lists/stolen/entries/{IMEI}", 403), (ANNA, f"/v1/lists/none/entries/{IMEI}", 404)],
)  # fmt: skip
async def test_a_user_changes_only_own_local_lists(ask, user, target, status):
    assert (await ask("PUT", target, {"reason": "x"}, user=user))[0] == status
    assert (await ask("DELETE", f"{target}?reason=x", user=user))[0] == status
    assert (await ask("GET", "/v1/changes"))[1] == {"changes": []}


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("PUT", ENTRY, b"", {}, 400), ("PUT", ENTRY, b"{", {}, 400), ("PUT", ENTRY, b"\xff", {}, 400), ("PUT", ENTRY, b"[" * 100_000, {}, 400),
        ("PUT", ENTRY, [], {}, 422), ("PUT", ENTRY, {}, {}, 422), ("PUT", ENTRY, {"reason": 1}, {}, 422), ("PUT", ENTRY, {"reason": None}, {}, 422),
        ("PUT", ENTRY, {"reason": ""}, {}, 422), ("PUT", ENTRY, {"reason": "a\nb"}, {}, 422), ("PUT", ENTRY, {"reason": "x" * 201}, {}, 422),
        ("PUT", ENTRY, {"reason": "x", "force": "yes"}, {}, 422), ("PUT", ENTRY, {"reason": "x", "until": "2001-01-01"}, {}, 422),
        ("PUT", ENTRY, {"reason": "x", "until": "2199-01-01"}, {}, 422), ("PUT", ENTRY, {"reason": "x", "until": "2106-02-07"}, {}, 422),
        ("PUT", ENTRY, {"reason": "x", "begin": "9999-12-31T23:59:59Z"}, {}, 422), ("PUT", ENTRY, {"reason": "x", "until": "9999-12-31"}, {}, 422),
        ("PUT", ENTRY, {"reason": "x", "case": "a\u2028b"}, {}, 422), ("PUT", ENTRY, {"reason": "x", "case": "x" * 65}, {}, 422),
        ("PUT", ENTRY, {"reason": "\ud800"}, {}, 422), ("PUT", ENTRY, {"reason": "x"}, {"media": "text/plain"}, 415),
        ("PUT", ENTRY, {"reason": "x"}, {"media": "application/x-www-form-urlencoded"}, 415), ("PUT", f"{ENTRY}?x=1", {"reason": "x"}, {}, 400),
        ("PUT", ENTRY, {"reason": "x"}, {"if_match": 'W/"a"'}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_match": '"a", "b"'}, 400),
        ("PUT", ENTRY, {"reason": "x"}, {"if_match": ""}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_none_match": '"a"'}, 400),
        ("PUT", ENTRY, {"reason": "x"}, {"if_none_match": "*", "if_match": '"a"'}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_match": '"a"'}, 412),
        ("DELETE", ENTRY, None, {}, 422), ("DELETE", f"{ENTRY}?reason=x&reason=y", None, {}, 400), ("DELETE", f"{ENTRY}?reason=%ff", None, {}, 400), ("DELETE", f"{ENTRY}?reason", None, {}, 400),
        ("DELETE", f"{ENTRY}?reason=x&force=1", None, {}, 400), ("POST", ENTRY, {"reason": "x"}, {}, 405), ("OPTIONS", ENTRY, None, {}, 405), ("PATCH", "/v1/lists", None, {}, 405),
        ("PUT", "/v1/lists/own/entries/12", {"reason": "x"}, {}, 422), ("PUT", "/v1/lists/own/entries/", {"reason": "x"}, {}, 422),
        ("PUT", "/v1/lists/own/entries/%00", {"reason": "x"}, {}, 422), ("PUT", "/v1/lists/own/entries/%ff", {"reason": "x"}, {}, 404),
        ("PUT", f"/v1/lists/own/entries/{IMEI}/", {"reason": "x"}, {}, 404), ("PUT", f"/v1/lists/own/entries/{IMEI}%2Fx", {"reason": "x"}, {}, 422),
        ("PUT", f"/v1/lists/bound/entries/{IMEI}", {"reason": "x"}, {}, 422), ("PUT", f"/v1/lists/own/entries/{IMEI}+{IMSI}", {"reason": "x"}, {}, 422),
        ("PUT", f"/v1/lists/%2e%2e/entries/{IMEI}", {"reason": "x"}, {}, 404), ("GET", "/v1/", None, {}, 404), ("GET", "/v1/entries", None, {}, 404), ("GET", "/v1/devices/x", None, {}, 422),
        ("GET", "/v1/changes?since=soon", None, {}, 422), ("GET", "/v1/changes?since=", None, {}, 422), ("GET", "/v1/changes?since=2026-12-01", None, {}, 422), ("GET", "/v1/changes?until=2026-12-01", None, {}, 400),
    ],
)  # fmt: skip
async def test_a_faulty_request_is_refused_and_changes_nothing(ask, method, target, body, headers, status):
    found = await ask(method, target, body, **headers)
    assert found[0] == status, found
    if status == 405:
        assert found[2]["Allow"] in {"GET", "GET, PUT, DELETE"}
    assert (await ask("GET", "/v1/changes"))[1] == {"changes": []}


async def test_each_user_has_a_rate_of_their_own(ask):
    statuses = [(await ask("GET", "/v1/lists"))[0] for _ in range(int(BURST) + 50)]
    assert (statuses[0], statuses[-1]) == (200, 429)
    assert (await ask("GET", "/v1/lists", user=BERT))[0] == 200


async def test_each_user_has_a_rate_of_searches_of_their_own(ask):
    found = await asyncio.gather(*(ask("GET", f"/v1/devices/{IMEI}") for _ in range(int(SEARCHES_BURST) + 20)))
    statuses = [status for status, *_ in found]
    assert (statuses[0], statuses[-1]) == (200, 429)
    assert (await ask("GET", f"/v1/devices/{IMEI}", user=BERT))[0] == 200


def test_the_document_has_the_paths_the_parameters_and_the_values_of_the_api():
    described = {
        (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    routes = {
        ("/" + "/".join(word or "{}" for word in path), method.lower())
        for path, handlers in DeskApi(None)._paths.items()
        for method in handlers
    }
    assert {(re.sub(r"\{\w+\}", "{}", path), method) for path, method in described} == routes
    assert DOCUMENT["components"]["schemas"]["Values"]["properties"].keys() == api.VALUES
    assert DOCUMENT["servers"] == [{"url": api.API_ROOT.rstrip("/")}]


# On a node


USERS = (("anna", "change", ["own"]), ("vera", "view", []))
PASSWORD = "correct horse battery"


def configure(site, **more):
    users = site.folder / "users"
    users.write_text("\n".join(user_line(name, PASSWORD, role, lists) for name, role, lists in USERS))
    users.chmod(0o640)
    section = {"listen": "http://127.0.0.1:0", "users": "users", **more.pop("desk", {})}
    site.configure(
        lists={"own": {"local": True, "change_min": 10**8}},
        policy={"rules": [{"list": "own", "answer": "blacklisted"}]},
        desk=section,
        **more,
    )


@pytest.fixture
async def service(site):
    """Makes the service of the desk in this process: `service(desk={…})` → function that sends a request as the process of the desk does."""
    made = []

    def start(**more):
        configure(site, **more)
        config = load_config(site.path)
        made.append(DeskService(config.of(desk.INTERFACE), config, silent, NodeCalls(silent, silent, silent)))

        async def send(method, target, authorization=None, *, address="127.0.0.1", names=(), **headers):
            named = {"authorization": authorization} if authorization else {}
            named |= {name.replace("_", "-"): value for name, value in headers.items()}
            return await made[-1].respond(HttpRequest(method, target, "", named, address, b"", names))

        send.counters = made[-1].counters
        return send

    yield start
    for each in made:
        await each.close()


@pytest.fixture
def quick(monkeypatch):
    """Passwords are compared without a hash, which takes 50 ms."""
    monkeypatch.setattr(Hashed, "fits", lambda _, password: password == PASSWORD.encode())


@pytest.mark.usefixtures("quick")
async def test_a_request_needs_a_password_a_token_or_a_certificate_and_cookies_do_not_count(site, service):
    issuer = Issuer()
    (site.folder / "jwks").write_bytes(jwks(issuer))
    send = service(desk={"tokens": {"jwks": "jwks", "audience": "eir"}, "tls_names": ["ops.example.org=vera"]})

    def token(**claims):
        return "Bearer " + issuer.token(time.time(), **{"aud": "eir", "scope": "eir-desk", "sub": "anna", **claims})

    async def changeable(*arguments, **more):
        response = await send("GET", "/v1/lists", *arguments, **more)
        return json.loads(response.body)["lists"][0]["changeable"] if response.status == 200 else response.status

    assert await changeable(basic("anna")) is True
    assert await changeable(basic("vera")) is False
    assert await changeable(token()) is True
    assert await changeable(token(), names=("other.example.org",)) is True
    assert await changeable(names=("ops.example.org",)) is False
    assert await changeable(basic("anna"), names=("ops.example.org",)) is True
    assert await changeable(basic("anna", "wrong password"), names=("ops.example.org",)) == 401
    assert await changeable(token(sub="stranger")) == await changeable(token(scope="eir-feed")) == 403
    assert await changeable(basic("anna", "wrong password")) == await changeable(token(aud="other")) == 401
    # Neither a header of a proxy nor the cookie of a session on the page identifies a user here.
    page = await send("GET", "/desk", names=("ops.example.org",))
    cookie = dict(page.headers)["Set-Cookie"].partition(";")[0]
    for headers in (
        {"cookie": cookie},
        {"x_forwarded_user": "anna"},
        {"x_ssl_client_s_dn": "CN=ops.example.org"},
        {"remote_user": "anna"},
    ):
        assert await changeable(**headers) == 401, headers
    refused = await send("GET", "/v1/lists")
    assert (refused.content_type, json.loads(refused.body)["reason"]) == ("application/problem+json", "no_password")
    assert [value.partition(" ")[0] for name, value in refused.headers if name == "WWW-Authenticate"] == [
        "Basic",
        "Bearer",
    ]
    assert not {name.lower() for name, _ in refused.headers} & {"access-control-allow-origin", "set-cookie"}
    assert (await send("GET", "/v1/openapi.json")).body == DOCUMENT_BYTES
    assert (await send("PUT", "/v1/openapi.json")).status == 401


@pytest.mark.usefixtures("quick")
async def test_guesses_from_one_address_and_from_a_hundred_are_refused_and_a_user_goes_on(service):
    send = service()
    assert (await send("GET", "/v1/lists", basic("anna"))).status == 200
    guesses = [
        await send("GET", "/v1/lists", basic("anna", f"guess number {n}"), address="10.0.0.1") for n in range(30)
    ]
    assert [each.status for each in guesses] == [401] * 20 + [429] * 10
    assert ("Retry-After", "5") in guesses[-1].headers
    assert (
        await send("GET", "/v1/lists", basic("anna"), address="10.0.0.1")
    ).status == 429  # the right one is no oracle
    many = await asyncio.gather(
        *(send("GET", "/v1/lists", basic("anna", f"guess {n} again"), address=f"10.0.{n % 100}.2") for n in range(3000))
    )
    assert sum(each.status == 401 for each in many) == 20 * 100
    assert (await send("GET", "/v1/lists", basic("anna"))).status == 200
    for n in range(100):
        await send("GET", f"/v1/{n}", basic("anna"))
        await send("GET", f"/desk/{n}")
    assert {action for _, action, _ in send.counters()["eir_desk_requests_total"]} == {"api", "other"}


@pytest.fixture(params=["sqlite", *programs()][:2])
def store(request):
    if request.param == "sqlite":
        yield None
        return
    server = Server(programs()[request.param], "--appendonly", "yes", "--appendfsync", "always").start()
    yield server
    server.stop()


class Senders:
    """Three programs that add devices, and repeat each request that was not answered."""

    def __init__(self, node):
        self._node, self._numbers = node, itertools.count()
        self.done, self.lost, self._ends = [], 0, False
        self._tasks = [asyncio.create_task(self._send()) for _ in range(3)]

    async def _send(self):
        for number in self._numbers:
            imei = f"00101{number:09d}"
            while not self._ends:
                client = None
                try:
                    client = await Client.to(self._node.status()["interfaces"]["desk"][0], basic("anna"))
                    answer = await client.ask(
                        "PUT", f"/v1/lists/own/entries/{imei}", b'{"reason": "stolen"}', Content_Type="application/json"
                    )
                except (OSError, EOFError, ControlError):
                    self.lost += 1
                    await asyncio.sleep(0.01)
                    continue
                finally:
                    if client is not None:
                        client.writer.transport.abort()
                assert answer.status in {200, 201, 429, 503}, answer
                if answer.status < 300:
                    self.done.append(imei)
                    break
            if self._ends:
                return

    async def more(self):
        before = len(self.done)
        await until_async(lambda: len(self.done) > before + 5)

    async def end(self):
        self._ends = True
        await asyncio.gather(*self._tasks)


@pytest.mark.long(short=["sqlite"])
async def test_each_change_that_was_confirmed_is_there_once_after_kill_9(site, store):
    """The process of the desk, the store and the whole node are killed."""
    configure(site, store=store.url if store else "sqlite")
    node = site.start()
    senders = Senders(node)
    await senders.more()
    os.kill(children(node.pid)["services"], signal.SIGKILL)
    await until_async(lambda: senders.lost)
    await senders.more()
    if store:
        store.kill()
        store.start()
        await senders.more()
    node.process.kill()
    node.process.wait()
    await senders.end()
    site.start()
    shown = [entry["entry"] for entry in site.json("show", "own", "-n", "100000", "--store")["entries"]]
    assert set(senders.done) <= set(shown)
    named = [event["detail"].rpartition(": ")[2] for event in site.json("history", "own", "-n", "100000")]
    assert sorted(named) == sorted(shown)  # each is on record once


@pytest.mark.long
async def test_a_flood_of_large_endless_and_pipelined_requests_changes_nothing(site):
    configure(site)
    node = site.start()
    address = node.status()["interfaces"]["desk"][0]
    begin = f"PUT {ENTRY} HTTP/1.1\r\nHost: a\r\nAuthorization: {basic('vera')}\r\nContent-Type: application/json\r\n".encode()
    good = await Client.to(address, basic("anna"))
    assert (await good.ask("GET", "/v1/lists")).status == 200
    for attack in (
        b"Content-Length: 131073\r\n\r\n" + b" " * 131_073, b"Content-Length: 99999999999\r\n\r\n" + b" " * 200_000,
        b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b" " * 65_536 + b"\r\n" + b"10000\r\n" + b" " * 65_536 + b"\r\n1\r\n \r\n",
    ):  # fmt: skip
        bad = await Client.to(address)
        bad.writer.write(begin + attack)
        assert not (said := await bad.ended()) or said.startswith(b"HTTP/1.1 413 ")
        await bad.close()
    idle = [await Client.to(address) for _ in range(1000)]
    flood = await Client.to(address)
    one = begin + b"Content-Length: 14\r\n\r\n" + b'{"reason":"x"}'
    flood.writer.write(one * 300)
    statuses = Counter([(await flood.answer()).status for _ in range(300)])
    assert statuses.keys() <= {403, 429}
    assert statuses[429] > 100
    assert (await good.ask("GET", "/v1/changes")).body == b'{"changes": []}'
    for each in (*idle, flood, good):
        await each.close()
    assert site.json("check", IMEI)["status"] != "blacklisted"
    assert not node.lines("fault")


@pytest.mark.long
def test_the_document_by_schemathesis(site):
    configure(site)
    node = site.start()
    base = f"{node.status()['interfaces']['desk'][0]}/v1"
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{base}/openapi.json", "--url", base, "--max-examples", "20",
        "--header", f"Authorization: {basic('anna')}", "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color", "--rate-limit", "20/s",
        "--exclude-checks", "unsupported_method,positive_data_acceptance",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.folder, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert not node.lines("fault")
