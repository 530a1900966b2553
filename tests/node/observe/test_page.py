"""The page for people at / of the HTTP address: what it says, who may see it, and how a browser shows it."""

import asyncio
import base64
import contextlib
import http.client
import re
import socket
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from ipaddress import ip_network
from pathlib import Path

import pytest
from browser import dom_after, in_chromium, looked_at
from colours import contrast
from simulated.node import LISTED, until
from simulated.patience import PROGRAM_S
from troubles import alerts_of

from eir.lists.log.change import Head
from eir.lists.log.journal import JournalEvent
from eir.lists.record.settings import DEVICES, FIRST_SEEN, PAIRS, SUBSCRIBERS
from eir.node.observe import page as pages
from eir.node.observe.alerts import PeerTraffic
from eir.node.observe.conditions import CONDITIONS, Trouble
from eir.node.observe.http import LIMITS, HttpServer
from eir.node.observe.lately import Minute, RecentChecks
from eir.node.observe.page import STATUSES, DiskSpace, PageContent, page, runbook
from eir.wire.web.access import PageAccess, PageSettings
from eir.wire.web.http1 import HttpRequest

ROOT = Path(__file__).parents[3]
STYLE = Path(pages.__file__).with_name("pages") / "style.css"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
STATUS = {
    "state": "WARNING",
    "version": "0.1.0",
    "uptime_s": 7300,
    "checks": 12345,
    "troubles": ["the store is away; the node answers from memory", "list <b>x</b> is past its expiry"],
}
TROUBLES = {
    text: Trouble(next(each for each in CONDITIONS if each.alert == alert), text, subjects, NOW.timestamp() - 1080)
    for text, alert, subjects in zip(
        STATUS["troubles"], ("EirStoreAway", "EirListExpired"), ([""], ["<b>x</b>"]), strict=True
    )
}
PEER = {
    "label": "mme1",
    "protocol": "s13",
    "state": "open",
    "address": "10.0.0.1:40000",
    "requests": 4711,
    "last_seen": NOW.timestamp() - 3,
    "last_error": None,
    "last_error_at": None,
}


def shown(**changes):
    state = Head(
        kind="devices", serial=7, generation=7, highest_serial=7, release="0" * 64, entries=61234, issued="2026-11-20T00:00:00Z",
        expires="2026-12-04T00:00:00Z", signers=("register@agency.example SHA256:abc",), loaded_at="2026-11-20T01:00:00Z",
    )  # fmt: skip
    refused = JournalEvent(
        time="2026-11-28T11:00:00Z",
        who="carol@host",
        what="refuse",
        list="stolen",
        serial=8,
        outcome="refused",
        detail="shrink: too many go\nmore",
    )
    minutes = [Minute({"whitelisted": 900 + at, "blacklisted": at}, 0.0001, 0.0005) for at in range(59)] + [
        Minute({}, None, None)
    ]
    values = {
        "host": "eir1.example", "status": STATUS, "lists": {"stolen": state}, "changes": {}, "refusals": [refused], "minutes": minutes, "now": NOW,
        "troubles": TROUBLES, "traffic": {"mme1": PeerTraffic(12.04, 0.005)}, "events": [refused],
        "percentiles": (0.0001, 0.0005), "store": "redis", "disk": DiskSpace(12_300_000_000, 50_000_000_000),
        "metrics": {"eir_store_up": {(): 0.0}, "eir_sightings_bytes": {(): 3_200_000.0}, "eir_tls_certificate_expires_timestamp_seconds": {(): NOW.timestamp() + 90 * 86400}},
        "peers": [PEER, {**PEER, "label": "mme2", "state": "closed", "address": None, "last_error": "3010 <script>", "last_error_at": NOW.timestamp() - 60}],
    } | changes  # fmt: skip
    return PageContent(**values)


class Seen(HTMLParser):
    """The elements of a page, and those that are left open."""

    VOID = ("meta", "input", "br", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_begins_with_the_state_of_the_node_in_words():
    text = page(shown()).body.decode()
    first = re.search(r"<main>(.*?)<section>", text, re.DOTALL)[1]
    assert "The node answers, but has faults:" in first
    since = "<span class=soft>since 2026-11-28 11:42</span>"
    assert f'{STATUS["troubles"][0]} {since} <a href="/runbook#eirstoreaway">EirStoreAway</a>' in first
    assert "list &lt;b&gt;x&lt;/b&gt; is past its expiry" in first
    assert "up for 2 h; 12,345 checks" in first
    for said in (
        "61,234",
        "register@agency.example",
        "shrink: too many go",
        "3010 &lt;script&gt;",
        "3 s ago",
        "54,811 whitelisted",
    ):
        assert said in text, said
    assert "The node answers.</h1>" in page(shown(status={**STATUS, "state": "OK", "troubles": []})).body.decode()
    assert "first minute" in page(shown(minutes=[])).body.decode()
    starting = {**STATUS, "state": "CRITICAL", "troubles": ["not listening yet"]}
    assert "The node is starting and does not answer yet:</h1>" in page(shown(status=starting)).body.decode()


def test_lists_come_before_peers_and_rows_with_a_trouble_first():
    peers = [{**PEER, "label": f"mme{number}"} for number in range(30)]
    peers[25] |= {"state": "closed"}
    peers[27] |= {"last_error": "3010"}
    state = shown().lists["stolen"]
    text = page(shown(peers=peers, lists={"good": state, "<b>x</b>": state})).body.decode()
    assert re.findall("<h2>(.*?)</h2>", text)[1:] == [
        "Checks of the last hour", "Lists", "Peers", "Last entries of the history", "Refused lately",
    ]  # fmt: skip
    assert re.findall('data-is="List"><span>(.*?)<', text) == ["&lt;b&gt;x&lt;/b&gt;", "good"]
    assert re.findall('data-is="Peer"><span>(.*?)<', text)[:3] == ["mme25", "mme27", "mme0"]
    visible, folded = re.search(
        r"<h2>Peers</h2>(.*?)<details id=peers-more><summary>10 more</summary>(.*?)</details>", text, re.DOTALL
    ).groups()
    assert (visible.count('data-is="Peer"'), folded.count('data-is="Peer"')) == (20, 10)


def visible(answer):
    """Return the text of a page as a reader sees it."""
    return " ".join(re.sub("<[^>]+>", " ", answer.body.decode().partition("<main>")[2]).split())


def test_one_line_has_store_disk_records_and_certificate():
    lists = {"first-seen": replace(shown().lists["stolen"], kind=FIRST_SEEN)}
    text = visible(page(shown(lists=lists)))
    assert (
        "Store (redis): does not answer Disk: 12.3 GB free (25 %) Record of checks: 3.2 MB "
        "First sightings: 61,234 devices Certificate: expires 2027-02-26"
    ) in text
    assert "Lists None was ever loaded." in text, "a learned record is no list"
    bare = visible(page(shown(metrics={"eir_store_up": {(): 1.0}}, disk=None, store="sqlite")))
    assert "Store (sqlite): answers Disk: unknown Record of checks: off Certificate: none" in bare


def test_charts_have_an_axis_of_times_and_their_highest_value():
    answer = page(shown(now=NOW.replace(minute=7), ending={"2026-12-01": 3}))
    ticks = re.findall("<div class=ticks>(.*?)</div>", answer.body.decode())
    hour = ["11:07", "11:22", "11:37", "11:52", "12:07"]
    assert [re.findall("<span>(.*?)</span>", each) for each in ticks] == [
        hour, hour, ["28 Nov", "28 Dec", "27 Jan", "26 Feb"],
    ]  # fmt: skip
    assert re.findall("<div class=top>(.*?)</div>", answer.body.decode()) == ["1,016", "0.5 ms", "3"]
    assert "Half of the checks took at most 0.1 ms, 99 of 100 at most 0.5 ms." in visible(answer)
    slow = page(shown(minutes=[Minute({"whitelisted": 1}, 1.0, float("inf"))], percentiles=(1.0, float("inf"))))
    assert "Half of the checks took at most 1,000 ms, 99 of 100 more than 1,000 ms." in visible(slow)
    assert "No checks." in visible(page(shown(minutes=[Minute({}, None, None)], percentiles=(None, None))))


def test_a_peer_has_its_rate_and_its_share_of_errors_and_silent_peers_are_named():
    quiet = {**PEER, "label": "<i>sgsn</i>", "last_seen": NOW.timestamp() - 1500}
    fresh = {**PEER, "label": "mme3", "last_seen": NOW.timestamp() - 599}
    answer = page(shown(peers=[fresh, PEER, quiet, {**quiet, "label": "mme4", "state": "closed"}]))
    assert re.findall('data-is="Peer"><span>(.*?)<', answer.body.decode()) == [
        "mme4", "&lt;i&gt;sgsn&lt;/i&gt;", "mme3", "mme1",
    ]  # fmt: skip
    text = visible(answer)
    assert "Silent for 10 min or longer: &lt;i&gt;sgsn&lt;/i&gt;." in text
    assert "mme1 s13 open 10.0.0.1:40000 12.0 0.5 % 3 s ago" in text
    assert "&lt;i&gt;sgsn&lt;/i&gt; s13 open, silent 10.0.0.1:40000 0.0 0.0 % 25 min ago" in text
    assert "Silent for" not in visible(page(shown()))
    many = [{**quiet, "label": f"mme{number}"} for number in range(12)]
    assert "mme8, mme9 and 2 more." in visible(page(shown(peers=many)))


def test_the_last_five_entries_of_the_history_the_newest_first():
    events = [
        JournalEvent(time=f"2026-11-28T0{hour}:00:00Z", who="dave@host", what="load", list="stolen", serial=hour, outcome="accepted")
        for hour in range(1, 8)
    ]  # fmt: skip
    events.append(
        JournalEvent(
            time="2026-11-28T09:00:00Z", who="<b>", what="reload", outcome="accepted", detail="<i>" + 300 * "x"
        )
    )
    text = page(shown(events=events, refusals=[], peers=[PEER])).body.decode()
    entries = re.findall('data-is="Entry"><span>(.*?)<', text)
    assert entries == ["reload", "load stolen 7", "load stolen 6", "load stolen 5", "load stolen 4"]
    assert 'data-is="By"><span>&lt;b&gt;<' in text
    assert f"&lt;i&gt;{197 * 'x'}…" in text


IMSI = "262019876543210"


@pytest.mark.parametrize(
    ("kind", "detail", "short"),
    [
        (DEVICES, f"lost: {LISTED}, {LISTED}0, {LISTED}01", "lost: 35209900…48, 35209900…48, 35209900…48"),
        (DEVICES, "MEID: A0000049f1acbd", "MEID: A0000049…bd"),
        (PAIRS, f"lent: {LISTED}+{IMSI}", "lent: 35209900…48+26201…10"),
        (SUBSCRIBERS, f"lent: {IMSI}, 26201987654", "lent: 26201…10, 26201…54"),
        (DEVICES, f"61234 entries, {'a1' * 32}, TACs 35209900", f"61234 entries, {'a1' * 32}, TACs 35209900"),
    ],
)
def test_history_and_refusals_show_identifiers_as_privacy_says(kind, detail, short):
    state = replace(shown().lists["stolen"], kind=kind)
    event = JournalEvent(
        time="2026-11-28T11:00:00Z", who="dave@host", what="add", list="stolen", outcome="refused", detail=detail
    )
    content = {"lists": {"stolen": state}, "events": [event], "refusals": [event], "peers": [PEER]}
    assert visible(page(shown(**content))).count(short) == 2
    assert visible(page(shown(**content, full_identifiers=True))).count(detail) == 2


def test_the_form_shows_identifiers_as_privacy_says():
    reason = f"reason: {LISTED}, lent to +{IMSI}"
    asked = {"imei": f"{LISTED}0", "imsi": IMSI, "answer": f"{LISTED}0: blacklisted\n  {reason}\n  imsi {IMSI}"}
    text = page(shown(**asked)).body.decode()
    assert LISTED not in text
    assert IMSI not in text
    short = "35209900…48: blacklisted\n  reason: 35209900…48, lent to +26201…10\n  imsi 26201…10"
    assert f"<pre>{short}</pre>" in text
    assert f"<pre>{asked['answer']}</pre>" in page(shown(**asked, full_identifiers=True)).body.decode()
    odd = {"imei": "352099001761", "imsi": "1", "answer": "352099001761: unknown\n  by rule 1"}
    assert "<pre>35209900…61: unknown\n  by rule 1</pre>" in page(shown(**odd)).body.decode()
    few = {"imei": "12", "imsi": "", "answer": "12: unknown\n  by rule 12"}
    assert f"<pre>{few['answer']}</pre>" in page(shown(**few)).body.decode()


def test_an_alert_leads_to_its_advice():
    advice = runbook((ROOT / "deploy" / "RUNBOOK.md").read_text()).body.decode()
    named = {each.alert.lower() for each in CONDITIONS if each.alert}
    assert named <= set(re.findall(r"<a id=(\w+)>", advice))
    assert "<code>systemctl status eir</code>" in advice
    assert Seen(advice).tags.count(("script", {})) == 0


@in_chromium
@pytest.mark.parametrize(
    ("answers", "seconds", "is_reached"),
    [
        ([(200, {}), (200, {"status": {**STATUS, "checks": 777}})], 40, True),
        ([(200, {}), (200, {"status": {**STATUS, "checks": 777}}), (500, {})], 70, False),
        ([(200, {}), (500, {}), (200, {"status": {**STATUS, "checks": 777}})], 70, True),
    ],
)
async def test_it_fetches_itself_again_and_shows_that_the_node_is_away(tmp_path, answers, seconds, is_reached):
    waiting = [page(shown(**changes))._replace(status=status) for status, changes in answers]

    async def serve(_request):
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    server = HttpServer({"/": serve}, report=lambda *_, **__: None)
    host, port = await server.listen("127.0.0.1", 0)
    try:
        dom = await asyncio.to_thread(dom_after, f"http://{host}:{port}/", tmp_path, seconds)
    finally:
        await server.close()
    assert "777 checks since then" in dom
    assert "12,345" not in dom
    warning = re.search(r'<p class="away" role="alert"(?: hidden="")?>(.*?)</p>', dom)
    assert ("hidden" in warning[0]) is is_reached
    assert warning[1] == "" or re.match(r"The node is not reached since \d\d:\d\d UTC\.", warning[1])


@in_chromium
def test_a_node_that_hangs_is_away_and_a_print_has_the_folded_tables(tmp_path):
    """The virtual time of the browser stands still while a real request is open, so the page has a `fetch` of its own."""
    hangs = 'fetch=(_,{signal})=>new Promise((_,reject)=>signal.addEventListener("abort",()=>reject(signal.reason)))'
    html = page(shown()).body.decode().replace("</main>", "<details id=folded><summary>1</summary>2</details></main>")
    html = html.replace("<script>", f"<script>{hangs}</script><script>", 1)
    (tmp_path / "page.html").write_text(
        html.replace("</body>", '<script>dispatchEvent(new Event("beforeprint"))</script></body>')
    )
    dom = dom_after((tmp_path / "page.html").as_uri(), tmp_path, 70)
    assert re.search(r'<p class="away" role="alert">The node is not reached since \d\d:\d\d UTC\.', dom)
    assert '<details id="folded" open="">' in dom


def test_nothing_comes_from_elsewhere_and_its_one_script_is_the_one_that_is_allowed():
    answer = page(shown(imei='"><script>', answer="<b>"))
    seen = Seen(answer.body.decode())
    assert [
        value for _, attributes in seen.tags for name, value in attributes.items() if name in {"src", "href", "action"}
    ] == ["/runbook#eirstoreaway", "/runbook#eirlistexpired", "/", "/metrics", "/ready", "/runbook"]
    assert [tag for tag, _ in seen.tags].count("script") == 1
    (form,) = [attributes for tag, attributes in seen.tags if tag == "form"]
    assert form["method"] == "post", (
        "an identifier in a URL stays in the history of the browser and in the logs of proxies"
    )
    headers = dict(answer.headers)
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_the_last_hour():
    lately = RecentChecks()
    assert (lately.minutes(), lately.percentiles()) == ([], (None, None))

    def snapshot(white, black, fast, slow):
        return {
            "eir_checks_total": {("whitelisted", "", "default", "s13"): white, ("blacklisted", "a", "1", "s13"): black},
            "eir_check_duration_seconds": {
                ("0.001",): fast,
                ("0.01",): fast + slow,
                ("+Inf",): fast + slow,
                ("sum",): 1.0,
            },
        }

    for counted in ((100, 5, 100, 5), (190, 15, 190, 15), (190, 15, 190, 15)):
        lately.end_minute(snapshot(*counted))
    first, second = lately.minutes()
    assert first == Minute({"whitelisted": 90, "blacklisted": 10}, 0.001, 0.01)
    assert second == Minute({}, None, None)
    assert lately.percentiles() == (0.001, 0.01)
    for _ in range(100):
        lately.end_minute({})
    assert len(lately.minutes()) == 60


PASSWORD = f"Basic {base64.b64encode(b'any:secret').decode()}"


@pytest.mark.parametrize(
    ("address", "host", "authorization", "status"),
    [
        ("127.0.0.1", "127.0.0.1:9868", "", None), ("10.1.2.3", "10.0.0.9", "", None), ("10.1.2.3", "[::1]:1", "", None), ("127.0.0.1", "localhost:1", "", None),
        ("192.0.2.1", "10.0.0.9", "", 401), ("127.0.0.1", "eir.example:9868", "", 401), ("127.0.0.1", "", "", 401), ("", "127.0.0.1", "", 401),
        ("192.0.2.1", "eir.example", PASSWORD, None), ("192.0.2.1", "eir.example", PASSWORD[:-4], 401), ("192.0.2.1", "eir.example", "Basic ?", 401),
        ("192.0.2.1", "eir.example", "Bearer secret", 401),
    ],
)  # fmt: skip
def test_who_may_see_it(tmp_path, address, host, authorization, status):
    file = tmp_path / "password"
    file.write_text("secret\n")
    settings = PageSettings((ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")), file)
    request = HttpRequest(
        "GET", "/", "", {"host": host} | ({"authorization": authorization} if authorization else {}), address
    )
    access = PageAccess(ticks=lambda: 0.0)
    refused = access.refusal(request, settings)
    assert (refused and refused.status) == status
    file.write_text("")
    assert status is None or access.refusal(request, settings).status == 401
    nobody = access.refusal(request, PageSettings(settings.sources, None))
    assert (nobody and nobody.status) == (403 if status == 401 or authorization else None)


class TestWrongPasswords:
    """At most 20 at once and one a minute from an address; then no password of that address is compared."""

    WRONG = f"Basic {base64.b64encode(b'any:wrong').decode()}"

    @pytest.fixture
    def answer(self, tmp_path):
        (tmp_path / "password").write_text("secret\n")
        settings, self.now = PageSettings((), tmp_path / "password"), 0.0
        self.access = PageAccess(ticks=lambda: self.now)

        def answer(address, authorization=self.WRONG):
            headers = {} if authorization is None else {"authorization": authorization}
            refused = self.access.refusal(HttpRequest("GET", "/", "", headers, address), settings)
            return refused and refused.status

        return answer

    def test_a_guess_beyond_the_limit_is_answered_429_even_if_it_is_right(self, answer):
        assert [answer("192.0.2.1") for _ in range(30)] == [401] * 20 + [429] * 10
        assert answer("192.0.2.1", PASSWORD) == 429
        assert answer("192.0.2.1", None) == 401  # no password, no guess
        assert self.access.refused == {"wrong_password": 20, "locked_out": 11}

    def test_one_more_is_compared_each_minute_however_many_came_meanwhile(self, answer):
        for _ in range(1000):
            answer("192.0.2.1")
        self.now += 59
        assert answer("192.0.2.1") == 429
        self.now += 2
        assert [answer("192.0.2.1"), answer("192.0.2.1")] == [401, 429]
        self.now += 61
        assert [answer("192.0.2.1", PASSWORD), answer("192.0.2.1", PASSWORD)] == [None, None]

    def test_other_addresses_are_not_locked_out_and_right_passwords_count_for_nothing(self, answer):
        assert [answer("192.0.2.2", PASSWORD) for _ in range(30)] == [None] * 30
        assert {answer("192.0.2.1") for _ in range(30)} == {401, 429}
        assert answer("192.0.2.2", PASSWORD) is None
        assert answer("2001:db8::1", PASSWORD) is None

    def test_an_ipv6_network_of_one_client_is_one_address(self, answer):
        assert [answer(f"2001:db8::{number:x}") for number in range(1, 31)] == [401] * 20 + [429] * 10
        assert [answer(f"::ffff:192.0.2.{number}") for number in range(1, 31)] == [401] * 30
        assert answer("2001:db8:0:1::1", PASSWORD) is None


def get(url, password=None, asked=None, imsi=""):
    request = urllib.request.Request(
        url,
        None if asked is None else f"imei={asked}&imsi={imsi}".encode(),
        headers={}
        if password is None
        else {"Authorization": f"Basic {base64.b64encode(f'x:{password}'.encode()).decode()}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PROGRAM_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def page_status(connection, password):
    """The status of the page over a connection that stays."""
    credentials = base64.b64encode(f"x:{password}".encode()).decode()
    connection.request("GET", "/", headers={"Authorization": f"Basic {credentials}"})
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def test_of_a_running_node(shared):
    shared.load(["imei,reason", f"{LISTED},stolen in transit"])
    shared.eir("load", shared.release([LISTED], list_name="other"), status=1)
    (shared.folder / "password").write_text("secret\n")
    shared.configure(page={"from": [], "password_file": "password"})
    with shared:
        node = shared.start(ready=False)
        until(lambda: node.status()["listening"] or node.status()["http"])
        url = f"http://{node.http}/"
        assert get(url)[0] == 401
        assert get(url, "wrong")[0] == 401
        status, text = until(lambda: found if "release of" in (found := get(url, "secret"))[1] else None)
        assert status == 200
        assert "list tracked has never been loaded" in text
        assert " load by " in text, "who changed the list last"
        assert "mme" in text
        _, text = get(url, "secret", f"{LISTED[:8]}+{LISTED[8:]}")
        assert f"{LISTED[:8]}…{LISTED[-2:]}: blacklisted" in text
        assert "reason: stolen in transit" in text
        assert LISTED not in text
        assert "not an identifier of a device" in get(f"{url}?imei=--store", "secret")[1]
        assert "35123456…12: whitelisted" in get(url, "secret", "35123456789012", IMSI)[1]
        assert "--imsi 2620: an IMSI has 6 to 15 digits" in get(url, "secret", LISTED, "2620")[1]
        assert "not an IMSI" in get(url, "secret", LISTED, "--store")[1]
        assert re.search(r"list tracked has never been loaded <span class=soft>since \d{4}", text)
        assert get(url, "wrong", LISTED)[0] == 401
        assert get(f"{url}ready", "secret", LISTED)[0] == 405
        with contextlib.ExitStack() as held:
            mine = held.enter_context(contextlib.closing(http.client.HTTPConnection(node.http, timeout=PROGRAM_S)))
            mine.auto_open = False
            mine.connect()
            assert page_status(mine, "secret") == 200
            address = node.http.rpartition(":")
            others = [
                held.enter_context(socket.create_connection((address[0], int(address[2])), timeout=PROGRAM_S))
                for _ in range(LIMITS.connections_max + 1)
            ]
            assert others[0].recv(1) == b"", "strangers close a connection of their own"
            assert page_status(mine, "secret") == 200
        shared.configure(page={"from": ["127.0.0.0/8"]})
        shared.eir("reload")
        assert get(url)[0] == 200
        until(lambda: 'data-is="Entry"><span>reload<' in get(url)[1])
        assert get(f"http://{node.http}/ready")[0] == 503


async def test_60_connections_guess_20_passwords_and_are_named(site):
    """In the log by address, as a metric with an alert, and in the status; another address gets in meanwhile."""
    (site.folder / "password").write_text("secret\n")
    site.configure(page={"from": [], "password_file": "password"})
    site.load([LISTED])
    site.load([LISTED], list_name="tracked")
    node = await asyncio.to_thread(site.start)
    host, _, port = node.http.rpartition(":")

    async def ask(authorization, source="127.0.0.1"):
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        writer.write(
            f"GET / HTTP/1.1\r\nHost: eir.example\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])

    found = await asyncio.gather(*(ask(TestWrongPasswords.WRONG) for _ in range(60)))
    assert (found.count(401), found.count(429)) == (20, 40)
    assert (await ask(PASSWORD), await ask(PASSWORD, "127.0.0.2")) == (429, 200)
    numbers = await asyncio.to_thread(node.metrics)
    assert numbers["eir_clients_refused_total{interface=page,reason=wrong_password}"] == 20
    assert numbers["eir_clients_refused_total{interface=page,reason=locked_out}"] == 41
    (line, *_) = node.lines("client_refused", interface="page", reason="locked_out", level="warning")
    assert line["address"] == "127.0.0.1"
    assert alerts_of(await asyncio.to_thread(node.status)) == {"EirPasswordGuessed"}


@in_chromium
def test_everybody_can_use_it_in_light_and_dark_and_on_a_narrow_screen(tmp_path):
    """WCAG, by axe-core; and 1.4.10: nothing is wider than the screen."""
    load = JournalEvent(
        time="2026-11-20T01:00:00Z", who="operator@host.core.example", what="load", list="stolen", outcome="ok"
    )
    long = shown(
        imei=LISTED, answer=f"{LISTED}: blacklisted\n  by rule 1, list stolen (serial 1)\n  reason: {'x' * 200}",
        changes={"stolen": load}, events=[load], ending={"2026-12-01": 3},
    )  # fmt: skip
    bare = shown(
        status={**STATUS, "state": "OK", "troubles": []}, peers=[], lists={}, events=[], refusals=[], minutes=[]
    )
    found = looked_at(tmp_path, [page(each).body.decode() for each in (long, bare)])
    assert [each["wrong"] for each in found] == [[]] * 4
    assert [each["ground"] for each in found] == ["rgb(251, 251, 249)", "rgb(21, 23, 26)"] * 2
    assert all(content <= window for content, window in (each["wide"] for each in found))
    assert [each["broken"] for each in found] == [[]] * 4
    assert {window for _, window in (each["wide"] for each in found)} == {1200, 320}


def test_its_colours_can_be_distinguished():
    """WCAG 2.2: 1.4.3 for text, 1.4.11 for what is drawn."""
    for scheme in re.findall(r":root\{(.*?)\}", STYLE.read_text(), re.DOTALL):
        colours = {
            name: value if len(value) == 7 else f"#{''.join(2 * c for c in value[1:])}"
            for name, value in re.findall(r"--(\w+):(#\w+)", scheme)
        }
        for ground in ("page", "card"):
            assert all(contrast(colours[name], colours[ground]) >= 4.5 for name in ("ink", "soft", "link"))
            assert all(contrast(colours[name], colours[ground]) >= 3 for name in STATUSES)
