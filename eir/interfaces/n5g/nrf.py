"""The node's registration with an NRF (TS 29.510 5.2.2): what is asked of which NRF when, and what comes of the answers.

Without I/O and without a clock: `step` says what to ask now, `answered` and `failed` take what came of it, and `due` says when there is
something to ask again. Nothing that answers checks waits for any of it.

    away        PUT at the NRF whose turn it is   200, 201 → registered · else the next NRF, after a pause once all had their turn
    registered  PATCH when the NRF's timer says   200, 204 → registered · 404 → PUT at the same NRF · else PUT at the next one
                and now and then, where it is not the preferred NRF, PUT at that: 200, 201 → registered there · else it stays
    leaving     DELETE, once

An NRF that answers 401 wants an access token: POST for one at the same NRF, and the request once more with it (TS 29.510 5.4.2.2).
One that answers 307 or 308 has the same asked elsewhere, for this time or from now on (TS 29.500 6.10.9); it stays the same NRF.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import urldefrag, urlencode, urljoin, urlsplit

from eir.errors import EirError, Report
from eir.interfaces.interface import Standing
from eir.interfaces.n5g.settings import NF_TYPE, SERVICE, NrfSettings
from eir.wire.transport.endpoint import may_be_host
from eir.wire.web.denials import authorization, issued

TEMPORARY, PERMANENT = 307, 308
REDIRECTS: Final = frozenset({TEMPORARY, PERMANENT})
"""Redirects of a 5G core: the same request, to another place."""
HOPS_MAX: Final = 5
"""Most redirects of one request, so that servers which send it round and round are left."""
URL_CHARS_MAX: Final = 2048


class NotFollowed(EirError):
    """A redirect that leads nowhere; says why."""


def led_to(url: str, location: str | None, hops: int, hosts: Collection[str] | None = None) -> str:
    """The URL that the Location in the answer to a request for `url` names, after `hops` redirects before. Raises NotFollowed.

    TS 29.500 6.10.9, RFC 9110 15.4. The node follows a redirect only to one of these `hosts`, names or addresses in lower case (None: to any host), so that
    no answer can send it elsewhere. It follows none from https to http: whoever listens there could read what only the holder of a certificate should.
    """
    if not location:
        raise NotFollowed("no Location")
    if len(location) > URL_CHARS_MAX or not (location.isascii() and location.isprintable()) or " " in location:
        raise NotFollowed("its Location is no URL")
    if hops >= HOPS_MAX:
        raise NotFollowed(f"more than {HOPS_MAX} in a row")
    try:
        to = urlsplit(urldefrag(urljoin(url, location)).url)
        host, port = to.hostname or "", to.port
    except ValueError:
        host = ""
    if not may_be_host(host) or port == 0 or to.scheme not in {"http", "https"} or "@" in to.netloc:
        raise NotFollowed(f"{location} is no URL of a server")
    if to.scheme == "http" and urlsplit(url).scheme == "https":
        raise NotFollowed(f"{location} is without TLS")
    if hosts is not None and host.lower() not in hosts:
        raise NotFollowed(f"{host} is not among the hosts that n5g.nrf names (n5g.nrf.redirects)")
    return to.geturl()


API_VERSION: Final = "1.2.0"
"""Version of the service's description (TS 29.511 A.2, Rel-17)."""
HEARTBEAT_EARLY: Final = 0.9
"""Part of the NRF's timer after which a heartbeat goes out, so that it is there before the timer ends."""
HEARTBEAT_S_MIN, HEARTBEAT_S_MAX = 1, 3600
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
"""Pause between two rounds over all NRFs; it doubles up to the second value, and a part of it is left to chance."""
PREFER_S: Final = 60.0
"""Time between two attempts to be back with the preferred NRF."""
REGISTER, HEARTBEAT, DEREGISTER, TOKEN = "register", "heartbeat", "deregister", "token"
"""Names of the requests in metrics."""
NO_ANSWER: Final = "no_answer"
ISSUES_AT: Final = "/oauth2/token"
_JSON, _PATCH, _FORM = "application/json", "application/json-patch+json", "application/x-www-form-urlencoded"


class Ask(NamedTuple):
    """A request to an NRF."""

    what: str
    """`register`, `heartbeat`, `deregister` or `token`."""
    root: str
    """API root of the NRF, as the settings have it: scheme, host, port and prefix."""
    method: str
    url: str
    """URL of the resource: below that root, or where the NRF has redirected to."""
    headers: Sequence[tuple[str, str]]
    body: bytes
    hops: int = 0
    """Redirects that have led there."""


class AccessToken:
    """Access token for the NRF that asked for one (TS 29.510 5.4.2.2)."""

    def __init__(self) -> None:
        self.wanted_at: int | None = None
        """Index of the NRF that wants a token; None: no token is to be requested."""
        self.is_untried = False
        """True until an NRF has accepted a request with the token."""
        self._root, self._value = "", ""

    def store(self, root: str, value: str) -> None:
        """Store the token that the NRF with this API root issued."""
        self._root, self._value = root, value
        self.is_untried, self.wanted_at = True, None

    def clear(self) -> None:
        """Forget the token and that one was wanted."""
        self._root, self._value = "", ""
        self.is_untried, self.wanted_at = False, None

    def accepted(self) -> None:
        """Note that an NRF has accepted a request."""
        self.is_untried = False

    def request_at(self, index: int) -> None:
        """Request a token at the NRF with this index next."""
        self.wanted_at = index

    def header(self, root: str) -> list[tuple[str, str]]:
        """Return the Authorization header for a request to this NRF, if it issued the token."""
        return [authorization(self._value)] if self._value and self._root == root else []


class Turns:
    """Turns of the configured NRFs. After each had its turn without success, there is a pause, which doubles."""

    def __init__(self, count: int, chance: Callable[[], float]) -> None:
        self.at = 0
        """Index of the NRF whose turn it is."""
        self.prefer_at = 0.0
        """Time of the next attempt at the preferred NRF, which is the first one."""
        self._count, self._chance = count, chance
        self._failures = 0
        self._pause_s, self._retry_s = PAUSE_S, 0.0

    def register(self, index: int, now: float) -> None:
        """Note that the NRF with this index has registered the node."""
        self.at = index
        self._failures, self._pause_s = 0, PAUSE_S
        self.prefer_later(now)

    def prefer_later(self, now: float) -> None:
        """Put off the next attempt at the preferred NRF."""
        self.prefer_at = now + PREFER_S

    def wait_at_least(self, seconds: float) -> None:
        """Note the pause that an NRF asked for (Retry-After)."""
        self._retry_s = max(self._retry_s, seconds)

    def advance(self) -> float:
        """Give the turn to the next NRF. Return the pause in seconds before its request."""
        self.at = (self.at + 1) % self._count
        self._failures += 1
        if self._failures < self._count:
            return 0.0
        pause_s = max(self._pause_s * (0.5 + self._chance() / 2), min(self._retry_s, PAUSE_S_MAX))
        self._failures, self._retry_s = 0, 0.0
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        return pause_s


class Registration:
    """The registration. `profile` gives the NF profile without what changes; `chance` numbers from 0 to 1."""

    def __init__(
        self, settings: NrfSettings, instance: str, profile: Mapping[str, Any], *, report: Report, chance: Callable[[], float], now: float
    ) -> None:  # fmt: skip
        self._settings = settings
        self._instance = instance
        self._profile = profile
        self._report = report
        self._token = AccessToken()
        self._turns = Turns(len(settings.uri), chance)
        self._asked: Ask | None = None
        self._heartbeat_s = settings.heartbeat_s
        self.due = now
        """Time at which `step` has something to ask."""
        self.registered = False
        self.last_error: str | None = None
        """Reason why no NRF took the last request; None while all is well."""
        self._redirected: Ask | None = None
        """The last request, with the URL to which the answer has redirected it."""
        self._moved: dict[str, str] = {}
        """URL below an API root → where that is from now on, by word of the NRF, for as long as it is taken there."""
        self.last_answer: float | None = None
        """Time at which an NRF last took a request."""
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """(API root, request, status or `no_answer`)."""

    @property
    def where(self) -> str | None:
        """The NRF that the node is registered with; None: with none."""
        return self._settings.uri[self._turns.at] if self.registered else None

    def step(self, now: float, standing: Standing) -> Ask:
        """Return the next request."""
        status = "REGISTERED" if standing.serving else "SUSPENDED"
        if (redirected := self.redirected()) is not None:
            return redirected
        turns = self._turns
        if self._token.wanted_at is not None:
            self._asked = self._ask(TOKEN, self._token.wanted_at, "POST", _FORM, self._token_request())
        elif not self.registered or (turns.at and now >= turns.prefer_at):
            profile = {**self._profile, "nfStatus": status, "load": standing.load}
            self._asked = self._ask(REGISTER, 0 if self.registered else turns.at, "PUT", _JSON, _json(profile))
        else:
            changes = [
                {"op": "replace", "path": path, "value": value}
                for path, value in (("/nfStatus", status), ("/load", standing.load))
            ]
            self._asked = self._ask(HEARTBEAT, turns.at, "PATCH", _PATCH, _json(changes))
        return self._asked

    def redirected(self) -> Ask | None:
        """Return the last request, if its answer has redirected it."""
        if self._redirected is not None:
            self._asked, self._redirected = self._redirected, None
            return self._asked
        return None

    def leave(self) -> Ask | None:
        """Return the request to make when the node ends; only its redirects may follow it."""
        self._redirected = None
        if not self.registered:
            return None
        self._asked = self._ask(DEREGISTER, self._turns.at, "DELETE")
        self.registered = False
        return self._asked

    def answered(self, now: float, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """The answer to what was asked last."""
        ask = self._took(str(status))
        if status in REDIRECTS:
            self._follow(ask, status, headers.get("location"), body, now)
        elif ask.what == DEREGISTER:
            self._report("nrf_deregistered", nrf=ask.root, status=status)
        elif ask.what == TOKEN and status == 200 and (token := issued(_document(body))) is not None:
            self._token.store(ask.root, token)
            self.due = now
        elif status == 401 and ask.what in {REGISTER, HEARTBEAT} and not self._token.is_untried:
            self._token.request_at(self._settings.uri.index(ask.root))
            self.due = now
        elif ask.what == REGISTER and status in {200, 201}:
            self._now_with(ask, body, now)
        elif ask.what == HEARTBEAT and status in {200, 204}:
            self._heard(body, now)
        elif ask.what == HEARTBEAT and status == 404:
            self.registered = False
            self.due = now
            self._report(
                "nrf_lost",
                level="warning",
                nrf=ask.root,
                reason="unknown",
                detail="the NRF does not know the node any more",
            )
        else:
            self._turns.wait_at_least(_seconds(headers.get("retry-after")))
            self._not_taken(ask, f"status {status}{_problem(body)}", now)

    def failed(self, now: float, why: str) -> None:
        """There was no answer to what was asked last."""
        self._not_taken(self._took(NO_ANSWER), why, now)

    # inside

    def _ask(self, what: str, at: int, method: str, content_type: str | None = None, body: bytes = b"") -> Ask:
        root = self._settings.uri[at]
        headers = [("user-agent", NF_TYPE), ("accept", "application/json, application/problem+json")]
        if content_type is not None:
            headers += [("content-type", content_type), ("content-length", str(len(body)))]
        if what != TOKEN:
            headers += self._token.header(root)
        url = self._below(root, what)
        return Ask(what, root, method, self._moved.get(url, url), headers, body)

    def _follow(self, ask: Ask, status: int, location: str | None, body: bytes, now: float) -> None:
        """Ask the same elsewhere. The token goes along: it is for NRFs, whichever of them (TS 29.510 6.3.5.2.4), and this one says which."""
        try:
            url = led_to(ask.url, location, ask.hops, self._settings.redirect_hosts)
        except NotFollowed as e:
            self._not_taken(ask, f"status {status}{_problem(body)}, not followed: {e}", now)
            return
        if status == PERMANENT and ask.hops == 0:
            self._moved[self._below(ask.root, ask.what)] = url
        self._redirected, self.due = ask._replace(url=url, hops=ask.hops + 1), now

    def _below(self, root: str, what: str) -> str:
        """The URL of what is asked for, where nobody has redirected."""
        return root.rstrip("/") + (ISSUES_AT if what == TOKEN else f"/nnrf-nfm/v1/nf-instances/{self._instance}")

    def _token_request(self) -> bytes:
        return urlencode({
            "grant_type": "client_credentials", "nfInstanceId": self._instance, "nfType": NF_TYPE, "targetNfType": "NRF", "scope": "nnrf-nfm",
        }).encode()  # fmt: skip

    def _took(self, result: str) -> Ask:
        """Return the last request, of which this is the result."""
        if self._asked is None:
            raise RuntimeError("nothing was asked")
        ask, self._asked = self._asked, None
        self.requests[ask.root, ask.what, result] += 1
        return ask

    def _now_with(self, ask: Ask, body: bytes, now: float) -> None:
        self._turns.register(self._settings.uri.index(ask.root), now)
        self.registered = True
        self._heard(body, now)
        elsewhere = {} if ask.url == self._below(ask.root, ask.what) else {"redirected_to": ask.url}
        self._report("nrf_registered", nrf=ask.root, heartbeat_s=self._heartbeat_s, **elsewhere)

    def _heard(self, body: bytes, now: float) -> None:
        """The NRF has taken it, and may say another time until the next heartbeat (TS 29.510 5.2.2.3.2)."""
        said = _document(body).get("heartBeatTimer")
        if isinstance(said, int) and not isinstance(said, bool) and said > 0:
            self._heartbeat_s = min(max(said, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX)
        self.due = now + self._heartbeat_s * HEARTBEAT_EARLY
        self._token.accepted()
        self.last_error, self.last_answer = None, now

    def _not_taken(self, ask: Ask, why: str, now: float) -> None:
        if ask.what == DEREGISTER:
            self._report("nrf_not_deregistered", level="warning", nrf=ask.root, detail=why)
            return
        self._token.clear()
        for what in (REGISTER, TOKEN):
            self._moved.pop(self._below(ask.root, what), None)
        if self.registered and ask.root != self.where:  # the preferred one is still away
            self._turns.prefer_later(now)
            return
        if self.registered:
            self._report("nrf_lost", level="warning", nrf=ask.root, reason="heartbeat", detail=why)
        else:
            self._report("nrf_not_registered", level="warning", nrf=ask.root, detail=why)
        self.registered, self.last_error = False, f"{ask.root}: {why}"
        self.due = now + self._turns.advance()


def profile_of(
    settings: NrfSettings, instance: str, endpoints: Sequence[str], *, tokens: bool, started: str
) -> dict[str, Any]:
    """The NF profile (TS 29.510 6.1.6.2.2) but for status and load.

    `endpoints`: URLs of the service; `tokens`: whether it wants them; `started`: when the node did, as a date and time of RFC 3339.
    """
    at = [urlsplit(url) for url in endpoints]
    hosts = dict.fromkeys(each.hostname or "" for each in at)
    addresses = {version: [host for host in hosts if _version(host) == version] for version in (4, 6)}
    fqdn = settings.fqdn or next((host for host in hosts if not _version(host)), None)
    common = {
        "fqdn": fqdn,
        "allowedNfTypes": ["AMF"],
        "priority": settings.priority,
        "capacity": settings.capacity,
        "recoveryTime": started,
    }
    services = [
        {
            "serviceInstanceId": f"{SERVICE}-{scheme}", "serviceName": SERVICE, "scheme": scheme, "nfServiceStatus": "REGISTERED",
            "versions": [{"apiVersionInUri": "v1", "apiFullVersion": API_VERSION}], "oauth2Required": tokens, **common,
            "ipEndPoints": [_endpoint(each.hostname or "", each.port) for each in at if each.scheme == scheme],
        }
        for scheme in dict.fromkeys(each.scheme for each in at)
    ]  # fmt: skip
    profile = {
        "nfInstanceId": instance, "nfType": NF_TYPE, "heartBeatTimer": round(settings.heartbeat_s),
        "plmnList": [{"mcc": plmn[:3], "mnc": plmn[3:]} for plmn in settings.plmns], **common,
        "ipv4Addresses": addresses[4], "ipv6Addresses": addresses[6], "nfServices": [_without_empty(each) for each in services],
    }  # fmt: skip
    return _without_empty(profile)


def _without_empty(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None or an empty list, of which the description allows neither."""
    return {name: value for name, value in document.items() if value is not None and value != []}


def _endpoint(host: str, port: int | None) -> dict[str, Any]:
    version = _version(host)
    return {**({f"ipv{version}Address": host} if version else {}), "transport": "TCP", "port": port}


def _version(host: str) -> int:
    """4 or 6 for an IP address, 0 for a name."""
    try:
        return ip_address(host).version
    except ValueError:
        return 0


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _document(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object; empty if the body is not one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _problem(body: bytes) -> str:
    """Return the content of a problem document, for people; halves of characters, which no page can carry, are question marks."""
    found = _document(body)
    said = [str(found[name])[:200] for name in ("cause", "detail", "title") if isinstance(found.get(name), str)]
    return f" ({', '.join(said)})".encode(errors="replace").decode() if said else ""


def _seconds(text: str | None) -> float:
    """Return the seconds in a Retry-After header (RFC 9110 10.2.3), if it is in the form of a number."""
    return float(text) if text is not None and text.isdecimal() and text.isascii() and len(text) < 6 else 0.0
