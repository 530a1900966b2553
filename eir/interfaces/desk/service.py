"""Process of the desk: opens the store, authenticates users, and passes requests to the page or to the JSON interface."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from eir.errors import EirError, EntryRefused, IdentifierError, ReleaseRefused, Report, StoreError, place_of
from eir.interfaces.clients import NOBODY, Clients, RequestRefused
from eir.interfaces.desk.api import API_ROOT, DOCUMENT, DeskApi, is_public, problem
from eir.interfaces.desk.operations import DeskOperations, DeskUser, user_text
from eir.interfaces.desk.page import DeskPage
from eir.interfaces.desk.sessions import Sessions
from eir.interfaces.desk.settings import DESK_SCOPE, NAME, DeskSettings
from eir.interfaces.interface import NodeCalls, Samples, SharedSettings
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.follow.list_reader import ListReader
from eir.lists.follow.write_back import refuse_lost_here
from eir.lists.stores.open import COPIES, open_store
from eir.wire.peers.settings import PeerSettings
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.passwords import DESK_USER

API = "api"
"""Action of requests below `/v1/` in metrics."""
STORE = "the store of the lists is unavailable"
BODY_BYTES_MAX = 128 << 10
"""Maximum size of a request's body, which may be a file of rows; larger files need `eir add --file`."""


class DeskService:
    """HTTP service of the desk in the services process; it implements eir.interfaces.interface.Service."""

    request_body_max = BODY_BYTES_MAX

    def __init__(self, settings: DeskSettings, shared: SharedSettings, report: Report, node: NodeCalls) -> None:
        self._report, self._host = report, socket.gethostname()
        self._store = open_store(shared.store, shared.state, report=report, check=False)
        local = LocalWriter(
            self._store, shared.lists, now=lambda: datetime.now(UTC), is_recorded=node.is_recorded,
            guard=partial(refuse_lost_here, shared.state / COPIES),
        )  # fmt: skip
        self._clients = Clients(DESK_SCOPE, report=report, command=DESK_USER)
        reader = ListReader(self._store, shared.state / COPIES)
        self._operations = DeskOperations(local, reader, node, self._imsi_of)
        self._api = DeskApi(self._operations)
        self._page = DeskPage(
            self._operations,
            Sessions(time.monotonic),
            log_in=self._clients.user,
            user_of=self._user,
            certified=self._certified,
        )
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self.apply(settings, shared)
        self.read_files()()

    @property
    def reads_certificates(self) -> bool:
        """True if a client may identify itself by a certificate."""
        return bool(self._names)

    @property
    def faults(self) -> Mapping[str, str]:
        """Faults of unusable files, by file; their earlier content stays in use."""
        return self._clients.faults

    def apply(self, settings: DeskSettings, shared: SharedSettings) -> None:
        """Apply new settings. The next call of `read_files` reads all configured files again."""
        self.peers = PeerSettings(label=NAME, sources=settings.sources)
        self._names = dict(settings.tls_names)
        self._clients.apply(settings, shared)
        self._operations.apply(shared)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """Return the response to a request; a fault is a response too."""
        user, is_api = "", request.path.startswith(API_ROOT)
        try:
            if is_api:
                user = "" if is_public(request) else await self._api_user(request)
                response = await self._api.respond(request, self._user(user, request)) if user else DOCUMENT
            else:
                response, user = await self._page.respond(request)
        except Exception as e:  # noqa: BLE001 - a fault must not leave a request without a response
            status, reason, text = self._fault(e)
            if is_api:
                headers = self._clients.refusal_headers(RequestRefused(status, reason, text))
                response = problem(status, reason, text, headers)._replace(authenticated=bool(user))
            else:
                status = 403 if status == 401 else status  # the page has no challenge for a browser's own log-in
                response = self._page.show_error(request, status, text)
            self._report(
                "desk_refused", level="warning" if status < 500 else "error", reason=reason, address=request.address, status=status, detail=text,
            )  # fmt: skip
        action = self._page.action(request.path) if not is_api else API
        self._requests[self._clients.label(user or NOBODY), action, str(response.status)] += 1
        return response

    def refuse(self, status: int) -> HttpResponse:
        """Return the error response to bytes that are not an HTTP request."""
        text = "the request is too large" if status == 413 else "this is no request"
        return self._page.show(status or 400, "login", message=text)

    async def work(self) -> None:
        """Return at once: this service has no background work."""

    def read_files(self) -> Callable[[], None]:
        """Read those configured files that have changed. Return a function that applies their contents."""
        return self._clients.read_files()

    def counters(self) -> Samples:
        """Return the counters of the desk by metric name and label values."""
        return {"eir_desk_requests_total": self._requests}

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def _api_user(self, request: HttpRequest) -> str:
        """Authenticate the sender of a request below `/v1/` by password or token, else by certificate; cookies do not count. Raises RequestRefused."""
        certified = None if "authorization" in request.headers else self._certified(request)
        return certified or self._clients.known_user(request) or await self._clients.user(request)

    def _user(self, name: str, request: HttpRequest) -> DeskUser:
        """Return an authenticated user with the present rights. Raises RequestRefused."""
        line = self._clients.users.line(name) if self._clients.users is not None else None
        if line is None:
            raise RequestRefused(403, "no_role", f"the file of users has no line for {name}")
        return DeskUser(name, line.role, line.lists, user_text(name, request.address, self._host), line.salt)

    def _imsi_of(self, number: str) -> str | None:
        return self._clients.numbers.imsi(number)

    def _certified(self, request: HttpRequest) -> str | None:
        """Return the user whom the client's certificate identifies; None without one."""
        return next((self._names[name] for name in request.names if name in self._names), None)

    def _fault(self, error: Exception) -> tuple[int, str, str]:
        """Return status, reason and text for an exception."""
        if isinstance(error, RequestRefused):
            return error.status, error.reason, error.detail
        if isinstance(error, StoreError):
            is_gone = error.cause == "gone"
            return (409, error.cause, str(error)) if is_gone else (503, error.cause, f"{STORE}; try again later")
        if isinstance(error, EirError):
            is_users = isinstance(error, IdentifierError | EntryRefused | ReleaseRefused)
            return (422, "refused", str(error)) if is_users else (503, "fault", str(error))
        self._report("fault", level="error", reason=NAME, detail=place_of(error))
        return 500, "fault", "internal fault of the program"
