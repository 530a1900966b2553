"""DeviceAuthenticity (CAMARA) as banks and shops see it: statuses and their precedence, errors, tokens, rates; the document, by schemathesis."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_edits import edit, read
from simulated.certificates import Authority
from simulated.issuer import Issuer, jwks
from simulated.luhn import check_digit
from simulated.node import LISTED, TRACKED, UNLISTED, children, until, until_async
from simulated.patience import PROGRAM_S
from simulated.register import Client, basic
from simulated.register import device as row_of
from simulated.wire import EIR

from eir.config import load_config
from eir.interfaces import device_authenticity
from eir.interfaces.device_authenticity.device_authenticity import (
    CLIENTS_MAX,
    CORRELATOR_FORM,
    FAULTS,
    IMEI_PATTERN,
    LABELS_MAX,
    PATH,
    STATUSES,
    DeviceAuthenticity,
    DeviceStatus,
    reason_word,
)
from eir.interfaces.device_authenticity.service import AuthenticityService, rules_of
from eir.interfaces.device_authenticity.settings import AuthenticitySettings
from eir.lists.changes.local_rows import ADD, REMOVE
from eir.lists.follow.list_copy import ListCopy
from eir.lists.stores.open import COPIES, SQLITE_FILE, open_store
from eir.node.processes import services
from eir.wire.web.http1 import HttpRequest
from eir.wire.web.passwords import user_line

DOCUMENT = json.loads(Path(device_authenticity.__file__).with_name("openapi.json").read_bytes())
AUDIENCE, SCOPE = "eir", "device-authenticity:check-status"
LISTS = {
    "stolen": {"signers": "signers", "dates": True},
    "own": {"local": True},
    "good": {"local": True},
    "tracked": {"local": True},
    "bound": {"local": True, "kind": "pairs"},
}
RULES = [
    {"list": "good", "answer": "whitelisted"}, {"list": "tracked", "answer": "greylisted"}, {"list": "stolen", "answer": "blacklisted"},
    {"list": "bound", "answer": "blacklisted"}, {"list": "own", "answer": "blacklisted"}, {"tac": "00101099", "answer": "blacklisted"}, {"list": "stolen", "imsi": "00101", "answer": "whitelisted"},
    {"list": "tracked", "answer": "blacklisted", "observe": True},
]  # fmt: skip
GRACE = [{"first_seen_within": "60d", "answer": "greylisted"}, {"not_list": "good", "answer": "blacklisted"}]
"""A device that is not in `good` is blacklisted after 60 days."""
BOTH = "35209900176000"
MARKED = {
    "00101002000010": ("debt", "court order: block it"), "00101002000020": ("10", "lost"), "00101002000030": ("customs not paid", "lost"),
    "00101002000040": ("type approval missing", "unpaid"), "00101002000050": ("tampered: clone", "not paid: debt"), "00101002000060": ("clone", "Stolen in Lome"),
    "00101002000070": ("stolen", "theft"),
}  # fmt: skip
"""Devices in the lists `stolen` and `own`, with their reasons there; each next device has the next status."""
DATES = {LISTED: "2026-11-20T00:00:00Z"} | {f"001010020000{at}0": "2026-11-21T00:00:00Z" for at in (2, 4, 6, 7)}
"""Dates of the devices whose status comes from the list `stolen`, which has dates; the list `own` has none."""


def ignored(*_, **__):
    """Accept a report, or a question that this service does not ask."""


@pytest.fixture
async def client():
    made = []

    async def to(node, token, number=0):
        made.append(await Client.to(node.status()["interfaces"]["device-authenticity"][number], f"Bearer {token}"))
        return made[-1]

    yield to
    for each in made:
        await each.close()


async def test_a_service_that_cannot_start_is_named_and_the_feed_beside_it_serves(site, client):
    (site.folder / "jwks").write_bytes(jwks(Issuer()))
    (site.folder / "users").write_text(user_line("register", "correct horse battery"))
    site.configure(
        lists={"own": {"local": True}},
        policy={"rules": [{"list": "own", "answer": "blacklisted"}]},
        feed={"listen": "http://127.0.0.1:0", "users": "users", "from": "127.0.0.0/8", "lists": {"block": "own"}},
        device_authenticity={"listen": "http://127.0.0.1:0", "tokens": {"jwks": "jwks", "audience": AUDIENCE}},
    )
    node = site.start()
    assert (await ask(await client(node, "none"), LISTED))[0] == 401
    (site.folder / "jwks").write_text("{}")
    await until_async(lambda: "device-authenticity files (" in node.status()["summary"])
    os.kill(children(node.pid)["services"], signal.SIGKILL)
    await until_async(lambda: "device-authenticity process (" in node.status()["summary"])
    assert node.metrics()["eir_interface_faulty{interface=device-authenticity,part=process}"] == 1
    register = await Client.to(node.status()["interfaces"]["feed"][0], basic("register", "correct horse battery"))
    assert (await register.ask("POST", row_of(LISTED))).status == 201
    await register.close()
    waiting = asyncio.create_task(client(node, "none"))
    (site.folder / "jwks").write_bytes(jwks(Issuer()))
    await until_async(lambda: "device-authenticity process (" not in node.status()["summary"])
    assert (await ask(await waiting, LISTED))[0] == 401
    assert "device-authenticity files (" not in node.status()["summary"]
    assert node.metrics()["eir_process_restarts_total{process=services}"] == 1


def serve(site, issuer, **more):
    (site.folder / "jwks").write_bytes(jwks(issuer))
    settings = {
        "listen": "http://127.0.0.1:0",
        "tokens": {"jwks": "jwks", "audience": AUDIENCE},
        "rate_max": 100_000,
        **more.pop("device_authenticity", {}),
    }
    policy = {"rules": [*RULES, *GRACE]}
    site.configure(lists=LISTS, policy=policy, first_seen={"list": "first-seen"}, device_authenticity=settings, **more)
    rows = [f"{device},{reason},2026-11-21" for device, (reason, _) in MARKED.items()]
    site.load(["imei,reason,date", f"{LISTED},Stolen in Lome,2026-11-20", f"{BOTH},,", *rows])
    by_reason = {reason: [device] for device, (_, reason) in MARKED.items()}
    entries = {
        "good": {"by hand": [UNLISTED, BOTH, *MARKED]},
        "tracked": {"by hand": [TRACKED, UNLISTED]},
        "own": by_reason,
    }
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, by_hand(site, entries)).result()
    return site.start()


async def by_hand(site, entries):
    """As `eir add` does, without the cost of a process."""
    config = load_config(site.path)
    store = open_store(config.store, config.state)
    for name, by_reason in entries.items():
        for reason, identifiers in by_reason.items():
            await edit(store, name, ADD, *identifiers, reason=reason, now=datetime.now(UTC), lists=config.lists)
    await store.close()


def token(issuer, **claims):
    return issuer.token(time.time(), **{"aud": AUDIENCE, "scope": f"openid {SCOPE}", "sub": "bank", **claims})


async def ask(client, imei, **headers):
    answer = await client.ask(
        "POST", PATH, json.dumps({"imei": imei}).encode(), Content_Type="application/json", **headers
    )
    return answer.status, json.loads(answer.body), answer.headers


def test_rules_that_need_only_the_imei(site):
    site.configure(lists=LISTS, policy={"rules": [*RULES, *GRACE]}, first_seen={"list": "first-seen"})
    found = rules_of(load_config(site.path))
    assert [(rule.list or rule.not_list or rule.tac or rule.first_seen_within, rule.answer, rule.observe) for rule in found.rules] == [
        ("good", "whitelisted", True), ("tracked", "greylisted", True), ("stolen", "blacklisted", True), ("own", "blacklisted", True),
        (("00101099",), "blacklisted", True), (60, "greylisted", True), ("good", "blacklisted", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Stolen in Lome", "stolen"), ("theft", "stolen"), ("LOST", "lost"), ("lost or stolen", "lost"), ("unpaid", "non-payment"),
        ("fraud", "fraud"), ("tampered: clone", "fraud"), ("customs not paid", "regulatory"), ("blocked by court", "blocked"), ("", "blacklisted"),
        (None, "blacklisted"), ("10", "blacklisted"),
    ],
)  # fmt: skip
def test_reasons(text, word):
    assert reason_word(text) == word


async def test_what_a_device_is_and_who_may_ask(site, client, tmp_path):
    issuer = Issuer()
    authority = Authority(tmp_path / "tls")
    node = serve(
        site,
        issuer,
        device_authenticity={"listen": ["http://127.0.0.1:0", "https://127.0.0.1:0"]},
        tls=authority.write(EIR, "127.0.0.1"),
    )
    for number in (0, 1):
        bank = await client(node, token(issuer), number)
        for imei, said in (
            (f"{LISTED}0", "stolen"), (f"{BOTH}0", "blacklisted"), ("001010990000000", "blacklisted"), (f"{UNLISTED}0", "allowed"), (f"{TRACKED}0", "unknown"),
            ("001010010000000", "unknown"), *((f"{device}{check_digit(device)}", status) for device, status in zip(MARKED, STATUSES[:7], strict=True)),
        ):  # fmt: skip
            status, document, headers = await ask(bank, imei, x_correlator="a-1")
            assert abs(datetime.fromisoformat(document.pop("lastChecked")).timestamp() - time.time()) < 3600
            assert document.pop("reportedDate", None) == DATES.get(imei[:14])
            assert (status, document, headers["x-correlator"]) == (
                200,
                {"imei": imei, "operationalStatus": said},
                "a-1",
            )
    # What is wrong, and how it is said.
    for body, headers, status, code in (
        (b"{}", {}, 400, "INVALID_ARGUMENT"), (b"[]", {}, 400, "INVALID_ARGUMENT"), (b"{", {}, 400, "INVALID_ARGUMENT"), (b"[" * 4000, {}, 400, "INVALID_ARGUMENT"),
        (b'{"imei": 352099001761481}', {}, 400, "INVALID_ARGUMENT"), (b'{"imei": "35209900176148"}', {}, 400, "INVALID_ARGUMENT"),
        (b'{"imei": "3520990017614\xc2\xb2"}', {}, 400, "INVALID_ARGUMENT"), (b'{"imei": "352099001761481\\n"}', {}, 400, "INVALID_ARGUMENT"), (b"\xff", {}, 400, "INVALID_ARGUMENT"),
        (b'{"imei": "352099001761482"}', {}, 400, "INVALID_ARGUMENT"), (b'{"imei": "3520990017614813"}', {}, 400, "INVALID_ARGUMENT"),
        (b'{"imei": "352099001761481"}', {"x_correlator": "a b"}, 400, "INVALID_ARGUMENT"), (b'{"imei": "352099001761481"}', {"Content_Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    ):  # fmt: skip
        answer = await bank.ask("POST", PATH, body, **{"Content_Type": "application/json", **headers})
        document = json.loads(answer.body)
        assert (answer.status, document["status"], document["code"]) == (status, status, code), body
        assert answer.headers["content-type"] == "application/json"
    for method, target, status in (("GET", PATH, 405), ("POST", "/", 404), ("POST", PATH + "/x", 404)):
        assert (await bank.ask(method, target)).status == status
    # Who may not hears nothing of what there is.
    for claims, status, code in (
        ({"scope": "openid"}, 403, "PERMISSION_DENIED"), ({"aud": "other"}, 401, "UNAUTHENTICATED"), ({"exp": 1}, 401, "UNAUTHENTICATED"),
    ):  # fmt: skip
        for target in (PATH, "/x"):
            answer = await bank.ask("POST", target, Authorization=f"Bearer {token(issuer, **claims)}")
            assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
            assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert (await bank.ask("POST", PATH, Authorization=None)).status == 401
    assert (
        json.loads((await bank.ask("GET", "/device-authenticity/vwip/openapi.json", Authorization=None)).body)
        == DOCUMENT
    )
    long = await bank.ask("POST", PATH, b"x" * 5000)
    assert (long.status, json.loads(long.body)["code"]) == (413, "PAYLOAD_TOO_LARGE")
    until(lambda: node.metrics().get("eir_device_authenticity_total{client=bank,result=stolen}") == 4)
    # Connections without a token close none of a client that has shown one.
    bank = await client(node, token(issuer))
    assert (await bank.ask("POST", "/x")).status == 404
    strangers = [await client(node, "") for _ in range(services.LIMITS.connections_max + 1)]
    assert await strangers[0].ended() == b""
    assert (await ask(bank, f"{LISTED}0"))[0] == 200
    assert LISTED not in node.text()
    assert not node.lines("fault")


class Asked:
    """The service without a node; its clock is the test's, and each token is its client's name."""

    def __init__(self, rate_max, status="allowed", **settings):
        self.now, self.status, self.logged = 0.0, status, []
        self.check = DeviceAuthenticity(
            AuthenticitySettings(rate_max=rate_max, **settings), self.look, ticks=lambda: self.now,
            report=lambda event, **fields: self.logged.append({"event": event, **fields}),
        )  # fmt: skip
        self.check.apply_tokens(SimpleNamespace(subject=lambda authorization, _: authorization.decode()))

    async def look(self, _):
        return self.status and DeviceStatus(self.status)

    async def ask(self, client, times=1):
        """Statuses of the answers."""
        return [(await self.check.respond(request(client))).status for _ in range(times)]


def request(client):
    headers = {"authorization": client, "content-type": "application/json"}
    return HttpRequest("POST", PATH, headers=headers, body=b'{"imei": "352099001761481"}')


async def test_a_client_may_ask_at_its_rate_and_what_is_turned_away_takes_nothing():
    service = Asked(rate_max=2.0)
    for now, statuses in ((0.0, [200, 200, 429, 429]), (0.4, [429]), (0.6, [200, 429]), (100.0, [200, 200, 429])):
        service.now = now
        assert await service.ask("bank", len(statuses)) == statuses
    for number in range(CLIENTS_MAX - 1):
        assert await service.ask(f"shop {number}") == [200]
    assert await service.ask("bank") == [429]  # it is known for as long as no more than so many others ask
    assert await service.ask("shop of a last one") == [200]
    assert await service.ask("bank") == [200]


async def test_each_answer_429_is_logged_once_and_no_other_answer():
    service = Asked(rate_max=2.0, status=None, not_listed="error")
    assert await service.ask("bank", 3) == [404, 404, 429]
    (line,) = service.logged
    assert (line["event"], line["client"], line["setting"]) == (
        "device_authenticity_rate",
        "bank",
        "device_authenticity.rate_max",
    )


async def test_a_key_that_was_taken_back_is_not_valid(site):
    first, second = Issuer(), Issuer()
    (site.folder / "jwks").write_bytes(jwks(first))
    site.configure(
        device_authenticity={"listen": "http://127.0.0.1:0", "tokens": {"jwks": "jwks", "audience": AUDIENCE}}
    )
    config = load_config(site.path)
    service = AuthenticityService(config.of(device_authenticity.INTERFACE), config, ignored, ignored)
    for issuer in (second, first):
        (site.folder / "jwks").write_bytes(jwks(issuer))
        service.read_files()()
        tokens = (token(first), token(second))
        answers = [await service.respond(request(f"Bearer {each}")) for each in tokens]
        assert [answer.status for answer in answers] == [200 if each is issuer else 401 for each in (first, second)]
    await service.close()


async def test_the_lists_of_this_host_s_node_count_where_the_store_lost_them_or_is_away(site):
    """A blocked phone is no allowed one for a shop because a store is empty; a row counts from its begin on."""
    issuer = Issuer()
    (site.folder / "jwks").write_bytes(jwks(issuer))
    settings = {"listen": "http://127.0.0.1:0", "tokens": {"jwks": "jwks", "audience": AUDIENCE}, "rate_max": 1000}
    rules = [{"list": "own", "answer": "blacklisted"}]
    site.configure(lists={"own": {"local": True}}, policy={"rules": rules}, device_authenticity=settings)
    config = load_config(site.path)
    store = open_store(config.store, config.state)

    async def change(what, **options):
        await edit(store, "own", what, LISTED, now=datetime.now(UTC), lists=config.lists, **options)
        ListCopy(config.state / COPIES, "own").save(await read(store, "own"))

    async def status(service):
        answer = await service.respond(request(f"Bearer {token(issuer)}"))
        return json.loads(answer.body).get("operationalStatus", answer.status)

    service = AuthenticityService(config.of(device_authenticity.INTERFACE), config, ignored, ignored)
    await change(ADD, reason="lost", begin=int(time.time()) + 3600)
    assert await status(service) == "unknown"
    await change(ADD, reason="lost", replace=True)
    assert await status(service) == "lost"
    await change(REMOVE)
    assert await status(service) == "unknown"
    await change(ADD, reason="stolen")
    assert await status(service) == "stolen"
    await store.close()
    file = config.state / SQLITE_FILE
    for path in config.state.glob(f"{SQLITE_FILE}*"):
        path.unlink()
    for lose in (lambda: None, lambda: file.write_bytes(b"no database" * 1000)):
        lose()
        again = AuthenticityService(config.of(device_authenticity.INTERFACE), config, ignored, ignored)
        assert await status(service) == await status(again) == "stolen"
        await again.close()
    await service.close()


@pytest.mark.parametrize(
    ("not_listed", "status", "result"),
    [
        ("unknown", None, "unknown"), ("allowed", None, "allowed"), ("error", None, "404"), ("allowed", "unknown", "unknown"),
        ("error", "unknown", "unknown"), ("error", "lost", "lost"),
    ],
)  # fmt: skip
async def test_a_device_for_which_no_rule_holds(not_listed, status, result):
    service = Asked(100.0, status, not_listed=not_listed)
    answer = await service.check.respond(request("bank"))
    assert service.check.answers == {("bank", result): 1}
    document = json.loads(answer.body)
    assert document.get("operationalStatus", str(answer.status)) == result
    assert document.get("code") == (None if answer.status == 200 else "IDENTIFIER_NOT_FOUND")


async def test_metrics_distinguish_a_limited_number_of_clients():
    service = Asked(rate_max=100.0)
    for number in range(LABELS_MAX + 2):
        await service.ask(f"bank {number}")
    await service.ask("bank 0")
    assert service.check.answers == {
        **{(f"bank {number}", "allowed"): 1 + (number == 0) for number in range(LABELS_MAX)}, ("other", "allowed"): 2,
    }  # fmt: skip


async def test_no_list_is_drawn_out_faster_than_the_limit(site, client):
    issuer = Issuer()
    node = serve(site, issuer, device_authenticity={"rate_max": 0.5})
    bank, other = await client(node, token(issuer)), await client(node, token(issuer, sub="shop"))
    status, document, _ = await ask(bank, f"{LISTED}0")
    assert (status, document["operationalStatus"]) == (200, "stolen")
    began, answered = time.monotonic(), 0

    async def turned_away():
        nonlocal answered
        status, document, headers = await ask(bank, f"{LISTED}0")
        answered += status == 200
        return status == 429 and document["code"] == "TOO_MANY_REQUESTS" and headers["retry-after"]

    await until_async(turned_away)
    again = await client(node, token(issuer, jti="another token of the same"))
    for connection in (bank, again) * 20:
        answered += (await ask(connection, f"{LISTED}0"))[0] == 200
    assert answered <= 1 + (time.monotonic() - began) * 0.5
    assert (await ask(other, f"{LISTED}0"))[0] == 200  # another's limit is another's


HOOKS = """
import schemathesis
from hypothesis import strategies
from simulated.luhn import check_digit

numbers = strategies.integers(min_value=0, max_value=10**14 - 1).map("{:014d}".format)
schemathesis.openapi.format("imei", numbers.map(lambda digits: digits + str(check_digit(digits))))
"""


@pytest.mark.long
def test_the_document_by_schemathesis(site):
    issuer = Issuer()
    node = serve(site, issuer)
    base = node.status()["interfaces"]["device-authenticity"][0]
    document = f"{base}/device-authenticity/vwip/openapi.json"
    with urllib.request.urlopen(document, timeout=PROGRAM_S) as answer:
        assert json.load(answer)["paths"].keys() == {"/check-status"}
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", document, "--url", f"{base}/device-authenticity/vwip", "--max-examples", "10",
        "--header", f"Authorization: Bearer {token(issuer)}", "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color",
        "--exclude-checks", "unsupported_method",
    ]  # fmt: skip
    (site.folder / "hooks.py").write_text(HOOKS)
    hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": f"{Path(__file__).parents[3] / 'scripts'}:{site.folder}"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=site.folder, timeout=PROGRAM_S, env=os.environ | hooks
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert not node.lines("fault")


def test_the_document_has_the_words_and_the_errors_of_the_service():
    operation = DOCUMENT["paths"]["/check-status"]["post"]
    answers = operation["responses"]
    faults = {}
    for fault in FAULTS.values():
        faults.setdefault(str(fault.status), []).append(fault.code)
    del faults["405"]
    assert answers.keys() == {"200", *faults}
    schemas = {status: answer["content"]["application/json"]["schema"] for status, answer in answers.items()}
    for status, codes in faults.items():
        properties = schemas[status]["properties"]
        assert (set(properties["status"]["enum"]), set(properties["code"]["enum"])) == ({int(status)}, set(codes))
    assert schemas["200"]["properties"]["operationalStatus"]["enum"] == list(STATUSES)
    assert ", ".join(STATUSES) in DOCUMENT["info"]["description"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["imei"]
    assert {request["pattern"], schemas["200"]["properties"]["imei"]["pattern"]} == {IMEI_PATTERN}
    headers = [*operation["parameters"], *(answer["headers"]["x-correlator"] for answer in answers.values())]
    assert {header["schema"]["pattern"] for header in headers} == {CORRELATOR_FORM}
    assert (operation["security"], f"{DOCUMENT['servers'][0]['url']}/check-status") == ([{"openId": [SCOPE]}], PATH)
