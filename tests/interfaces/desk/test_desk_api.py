"""JSON of the desk: entries with entity tags, rights, conditions, faulty requests; on a node passwords, rates, attacks, kill -9; the document, by schemathesis."""

import json
import re
from pathlib import Path

import pytest
from test_desk_operations import ANNA, BERT, IMEI, IMSI, OTHER, VIEWER, Desk

from eir.errors import IdentifierError
from eir.interfaces.desk import api
from eir.interfaces.desk.api import BURST, DeskApi
from eir.interfaces.desk.operations import DeskError
from eir.wire.web.http1 import HttpRequest

DOCUMENT = json.loads(Path(api.__file__).with_name("openapi.json").read_bytes())
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
        except DeskError as e:
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


async def test_entries_of_pairs_and_subscribers_have_identifiers_of_their_own(ask):
    pair = f"{OTHER}+{IMSI}"
    for target in (f"/v1/lists/bound/entries/{pair}", f"/v1/lists/bound/entries/{pair.replace('+', '%2B')}", f"/v1/lists/sims/entries/{IMSI}"):
        assert (await ask("PUT", target, {"reason": "owner"}))[0] in {200, 201}
    assert (await ask("GET", f"/v1/lists/bound/entries/{pair}"))[1]["id"] == f"{OTHER[:14]}+{IMSI}"


async def test_a_device_has_its_answer_entries_and_changes(ask):
    await ask("PUT", ENTRY, {"reason": "stolen"})
    _, found, _ = await ask("GET", f"/v1/devices/{IMEI}", user=VIEWER)
    ((entry,), (change,)) = found["rows"], found["changes"]
    assert (found["answer"]["status"], found["answer"]["reason"], entry["list"], entry["changeable"]) == ("blacklisted", "stolen", "own", False)
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
        ("PUT", ENTRY, {"reason": "x"}, {"if_match": "W/\"a\""}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_match": '"a", "b"'}, 400),
        ("PUT", ENTRY, {"reason": "x"}, {"if_match": ""}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_none_match": '"a"'}, 400),
        ("PUT", ENTRY, {"reason": "x"}, {"if_none_match": "*", "if_match": '"a"'}, 400), ("PUT", ENTRY, {"reason": "x"}, {"if_match": '"a"'}, 412),
        ("DELETE", ENTRY, None, {}, 422), ("DELETE", f"{ENTRY}?reason=x&reason=y", None, {}, 400), ("DELETE", f"{ENTRY}?reason=%ff", None, {}, 400), ("DELETE", f"{ENTRY}?reason", None, {}, 400),
        ("DELETE", f"{ENTRY}?reason=x&force=1", None, {}, 400), ("POST", ENTRY, {"reason": "x"}, {}, 405), ("OPTIONS", ENTRY, None, {}, 405), ("PATCH", "/v1/lists", None, {}, 405),
        ("PUT", "/v1/lists/own/entries/12", {"reason": "x"}, {}, 422), ("PUT", "/v1/lists/own/entries/", {"reason": "x"}, {}, 422),
        ("PUT", "/v1/lists/own/entries/%00", {"reason": "x"}, {}, 422), ("PUT", "/v1/lists/own/entries/%ff", {"reason": "x"}, {}, 404),
        ("PUT", f"/v1/lists/own/entries/{IMEI}/", {"reason": "x"}, {}, 404), ("PUT", f"/v1/lists/own/entries/{IMEI}%2Fx", {"reason": "x"}, {}, 422),
        ("PUT", f"/v1/lists/bound/entries/{IMEI}", {"reason": "x"}, {}, 422), ("PUT", f"/v1/lists/own/entries/{IMEI}+{IMSI}", {"reason": "x"}, {}, 422),
        ("PUT", f"/v1/lists/%2e%2e/entries/{IMEI}", {"reason": "x"}, {}, 404), ("GET", "/v1/", None, {}, 404), ("GET", "/v1/entries", None, {}, 404), ("GET", "/v1/devices/x", None, {}, 422),
        ("GET", "/v1/changes?since=soon", None, {}, 422), ("GET", "/v1/changes?since=2026-12-01", None, {}, 422), ("GET", "/v1/changes?until=2026-12-01", None, {}, 400),
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
