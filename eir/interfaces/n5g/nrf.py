"""Registration of the node at an NRF (TS 29.510 5.2.2) without I/O: it chooses the next request, and handles answers.

No I/O and no clock: `step` returns the request to send, `answered` and `failed` handle its result, and `due` is the time of the
next request. No check waits for the registration.

    away        PUT at the NRF whose turn it is   200, 201 → registered · else the next NRF, after a pause once all had their turn
    registered  PATCH at the NRF's interval       200, 204 → registered · 404 → PUT at the same NRF · else PUT at the next one
                sometimes PUT at the preferred NRF, if it is another: 200, 201 → registered there · else unchanged
    leaving     DELETE, once

If an NRF answers 401, the node requests an access token there by POST, and repeats the request with the token (TS 29.510
5.4.2.2). If an NRF answers 307 or 308, the node sends the request to the other place, once or from now on (TS 29.500 6.10.9);
the NRF stays the same.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import urldefrag, urlencode, urljoin, urlsplit

from eir.errors import EirError, Report
from eir.interfaces.interface import NodeLoad
from eir.interfaces.n5g.settings import NF_TYPE, SERVICE, NrfSettings
from eir.wire.transport.endpoint import may_be_host
from eir.wire.web.denials import authorization, issued

TEMPORARY, PERMANENT = 307, 308
REDIRECTS: Final = frozenset({TEMPORARY, PERMANENT})
"""Redirects in a 5G core: the same request at another place."""
HOPS_MAX: Final = 5
"""Maximum number of redirects of one request, to end a loop."""
URL_CHARS_MAX: Final = 2048


class NotFollowed(EirError):
    """Error: the node must not follow a redirect. The exception's text is the reason."""


def led_to(url: str, location: str | None, hops: int, hosts: Collection[str] | None = None) -> str:
    """Return the URL to which a redirect leads. Raises NotFollowed if the redirect is not permitted.

    TS 29.500 6.10.9, RFC 9110 15.4. The node follows a redirect only to the `hosts`, names or addresses in lower case (None:
    any host), so that no answer can send it elsewhere. It never follows a redirect from https to http, because an attacker
    could then read the request.

    Args:
        url: URL of the request.
        location: Location header of its answer.
        hops: number of redirects before.
        hosts: permitted hosts.

    Raises:
        NotFollowed: if the redirect must not be followed.
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
        raise NotFollowed(f"{location} is not a URL of a server")
    if to.scheme == "http" and urlsplit(url).scheme == "https":
        raise NotFollowed(f"{location} is without TLS")
    if hosts is not None and host.lower() not in hosts:
        raise NotFollowed(f"{host} is not among the hosts that n5g.nrf names (n5g.nrf.redirects)")
    return to.geturl()


API_VERSION: Final = "1.2.0"
"""Version of the service's API description (TS 29.511 A.2, Rel-17)."""
HEARTBEAT_EARLY: Final = 0.9
"""Part of the NRF's interval after which a heartbeat is sent, so that it arrives in time."""
HEARTBEAT_S_MIN, HEARTBEAT_S_MAX = 1, 3600
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
"""Seconds between two rounds over all NRFs; the pause doubles up to the second value, and a part of it is random."""
PREFER_S: Final = 60.0
"""Seconds between two attempts to return to the preferred NRF."""
REGISTER, HEARTBEAT, DEREGISTER, TOKEN = "register", "heartbeat", "deregister", "token"
"""Names of the requests in metrics."""
NO_ANSWER: Final = "no_answer"
ISSUES_AT: Final = "/oauth2/token"
_JSON, _PATCH, _FORM = "application/json", "application/json-patch+json", "application/x-www-form-urlencoded"


class Ask(NamedTuple):
    """Request of the node to an NRF."""

    what: str
    """`register`, `heartbeat`, `deregister` or `token`."""
    root: str
    """API root of the NRF in the settings: scheme, host, port and prefix."""
    method: str
    url: str
    """URL of the resource: below that root, or the target of a redirect."""
    headers: Sequence[tuple[str, str]]
    body: bytes
    hops: int = 0
    """Number of redirects to this URL."""


class AccessToken:
    """Access token of the node for requests to NRFs that require a token (TS 29.510 5.4.2.2)."""

    def __init__(self) -> None:
        self.wanted_at: int | None = None
        """Index of the NRF that requires a token; None: no token is to be requested."""
        self.is_untried = False
        """True until an NRF has accepted a request with the token."""
        self._root, self._value = "", ""

    def store(self, root: str, value: str) -> None:
        """Store a token and the API root of the NRF that has issued it."""
        self._root, self._value = root, value
        self.is_untried, self.wanted_at = True, None

    def clear(self) -> None:
        """Delete the token, and cancel the planned request for a new one."""
        self._root, self._value = "", ""
        self.is_untried, self.wanted_at = False, None

    def accepted(self) -> None:
        """Record that the token works, because an NRF has accepted a request with this token."""
        self.is_untried = False

    def request_at(self, index: int) -> None:
        """Plan a request for a new token at the configured NRF with this index."""
        self.wanted_at = index

    def header(self, root: str) -> list[tuple[str, str]]:
        """Return the Authorization header for requests to the NRF `root`; no header if another NRF has issued the token."""
        return [authorization(self._value)] if self._value and self._root == root else []


class NrfTurns:
    """Choice of the NRF that the node tries next, in the order of the configuration.

    If all NRFs of a round fail, a pause follows, which doubles.
    """

    def __init__(self, count: int, chance: Callable[[], float]) -> None:
        self.at = 0
        """Index of the NRF whose turn it is."""
        self.prefer_at = 0.0
        """Time of the next attempt at the preferred NRF, which is the first one."""
        self._count, self._chance = count, chance
        self._failures = 0
        self._pause_s, self._retry_s = PAUSE_S, 0.0

    def register(self, index: int, now: float) -> None:
        """Record that the node is registered at the NRF with this index."""
        self.at = index
        self._failures, self._pause_s = 0, PAUSE_S
        self.prefer_later(now)

    def prefer_later(self, now: float) -> None:
        """Postpone the next attempt to register at the preferred NRF (the first NRF in the configuration)."""
        self.prefer_at = now + PREFER_S

    def wait_at_least(self, seconds: float) -> None:
        """Record the minimum pause in seconds that an NRF requires (Retry-After)."""
        self._retry_s = max(self._retry_s, seconds)

    def advance(self) -> float:
        """Select the next NRF after a failure; return the pause in seconds before the next request."""
        self.at = (self.at + 1) % self._count
        self._failures += 1
        if self._failures < self._count:
            return 0.0
        pause_s = max(self._pause_s * (0.5 + self._chance() / 2), min(self._retry_s, PAUSE_S_MAX))
        self._failures, self._retry_s = 0, 0.0
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        return pause_s


class Registration:
    """State of the node's registration at one of the configured NRFs.

    `profile`: NF profile without status and load. `chance` returns random numbers from 0 to 1.
    """

    def __init__(
        self, settings: NrfSettings, instance: str, profile: Mapping[str, Any], *, report: Report, chance: Callable[[], float], now: float
    ) -> None:  # fmt: skip
        self._settings = settings
        self._instance = instance
        self._profile = profile
        self._report = report
        self._token = AccessToken()
        self._turns = NrfTurns(len(settings.uri), chance)
        self._asked: Ask | None = None
        self._heartbeat_s = settings.heartbeat_s
        self.due = now
        """Time at which `step` returns the next request."""
        self.registered = False
        self.last_error: str | None = None
        """Reason for which every NRF rejected the last request; None if there is no error."""
        self._redirected: Ask | None = None
        """Last request with the URL of its redirect."""
        self._moved: dict[str, str] = {}
        """Permanent redirects: target by URL below an API root, until a request to the target fails."""
        self.last_answer: float | None = None
        """Time at which an NRF last accepted a request."""
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """Number of requests by API root, request, and status or `no_answer`."""

    @property
    def where(self) -> str | None:
        """API root of the NRF at which the node is registered; None if the node is not registered."""
        return self._settings.uri[self._turns.at] if self.registered else None

    def step(self, now: float, standing: NodeLoad) -> Ask:
        """Return the request that is due next. `standing`: readiness and load of the node."""
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
        """Return the last request with the URL to which the NRF redirected it; None if the NRF did not redirect it."""
        if self._redirected is not None:
            self._asked, self._redirected = self._redirected, None
            return self._asked
        return None

    def leave(self) -> Ask | None:
        """Return the request that deregisters the node, or None if the node is not registered.

        Afterwards only redirects of this request follow.
        """
        self._redirected = None
        if not self.registered:
            return None
        self._asked = self._ask(DEREGISTER, self._turns.at, "DELETE")
        self.registered = False
        return self._asked

    def answered(self, now: float, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Handle the NRF's answer to the last request."""
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
        """Handle the failure of the last request, which the NRF has not answered. `why`: reason for the log."""
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
        """Follow a redirect: send the request `ask` again to the URL `location`, unless this URL is not permitted.

        The repeated request keeps its access token, which is valid for any NRF (TS 29.510 6.3.5.2.4).
        """
        try:
            url = led_to(ask.url, location, ask.hops, self._settings.redirect_hosts)
        except NotFollowed as e:
            self._not_taken(ask, f"status {status}{_problem(body)}, not followed: {e}", now)
            return
        if status == PERMANENT and ask.hops == 0:
            self._moved[self._below(ask.root, ask.what)] = url
        self._redirected, self.due = ask._replace(url=url, hops=ask.hops + 1), now

    def _below(self, root: str, what: str) -> str:
        """Return the original URL of a request, without redirects. `root`: API root of the NRF. `what`: kind of the request."""
        return root.rstrip("/") + (ISSUES_AT if what == TOKEN else f"/nnrf-nfm/v1/nf-instances/{self._instance}")

    def _token_request(self) -> bytes:
        return urlencode({
            "grant_type": "client_credentials", "nfInstanceId": self._instance, "nfType": NF_TYPE, "targetNfType": "NRF", "scope": "nnrf-nfm",
        }).encode()  # fmt: skip

    def _took(self, result: str) -> Ask:
        """Return the request that waits for an answer, and end the wait. Count the request with the metric label `result`."""
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
        """Handle a positive answer of the NRF: plan the next heartbeat by the interval in `body` (TS 29.510 5.2.2.3.2)."""
        timer = _document(body).get("heartBeatTimer")
        if isinstance(timer, int) and not isinstance(timer, bool) and timer > 0:
            self._heartbeat_s = min(max(timer, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX)
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
        if self.registered and ask.root != self.where:  # the preferred NRF is still unavailable
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
    """Build the NF profile of the node (TS 29.510 6.1.6.2.2), without status and load.

    Args:
        settings: section `n5g.nrf`.
        instance: NF instance id of the node.
        endpoints: URLs of the service.
        tokens: the service requires access tokens.
        started: start of the node, as a date and time of RFC 3339.
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
    """Return a JSON document without the members that are `None` or an empty list.

    The API description permits neither.
    """
    return {name: value for name, value in document.items() if value is not None and value != []}


def _endpoint(host: str, port: int | None) -> dict[str, Any]:
    version = _version(host)
    return {**({f"ipv{version}Address": host} if version else {}), "transport": "TCP", "port": port}


def _version(host: str) -> int:
    """Return the IP version of an address (4 or 6), or 0 for a host name."""
    try:
        return ip_address(host).version
    except ValueError:
        return 0


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _document(body: bytes) -> Mapping[str, Any]:
    """Parse a JSON object; return an empty object for any other content."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _problem(body: bytes) -> str:
    """Format the content of a problem document as text for the log.

    Lone surrogates, which cannot be encoded, become question marks.
    """
    document = _document(body)
    texts = [str(document[name])[:200] for name in ("cause", "detail", "title") if isinstance(document.get(name), str)]
    return f" ({', '.join(texts)})".encode(errors="replace").decode() if texts else ""


def _seconds(text: str | None) -> float:
    """Parse the seconds in a Retry-After header (RFC 9110 10.2.3); return 0 for a date or an invalid value."""
    return float(text) if text is not None and text.isdecimal() and text.isascii() and len(text) < 6 else 0.0
