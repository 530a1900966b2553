"""HTTP pages of a node: the page for people, and the pages for programs."""

import asyncio
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs

from eir.config import Config
from eir.device import strip_separators
from eir.errors import Report
from eir.lists.log.journal import REFUSED
from eir.node.observe import metrics
from eir.node.observe.control import ReadOnlyRunner
from eir.node.observe.http import COMPUTED_MAX, HttpServer, Page, pages
from eir.node.observe.page import RUNBOOK, DiskSpace, PageContent, page, runbook
from eir.node.processes.following import Followed
from eir.node.processes.listeners import cannot_listen
from eir.node.processes.overview import Overview
from eir.wire.transport.endpoint import address_text
from eir.wire.web.access import PAGE, PageAccess
from eir.wire.web.http1 import HttpRequest, HttpResponse

IDENTIFIER_MAX = 40
"""Maximum number of characters of the identifier in a request of the page; further characters are ignored."""
WRONG_PASSWORD_S = 1.0
"""Seconds by which the answer to a wrong password is delayed."""


class Web:
    """HTTP pages of a node, with their listener."""

    def __init__(
        self,
        config: Callable[[], Config],
        overview: Overview,
        followed: Followed,
        read_only: ReadOnlyRunner,
        *,
        report: Report,
    ) -> None:
        """Create the pages; the listener is not open yet. `config`: function that returns the settings in force."""
        self._config = config
        self._overview = overview
        self._followed = followed
        self._read_only = read_only
        self._report = report
        self._access = PageAccess(ticks=time.monotonic)
        self._computing = asyncio.Semaphore(COMPUTED_MAX)
        programs = pages(
            overview.snapshot, overview.answered.report, overview.status, computing=self._computing, report=report
        )
        served: dict[str, Page] = {"/": self._page, RUNBOOK: lambda _: _advice_page(), **programs}
        self._server = HttpServer(served, report=report, forms={"/"})
        self.address: str | None = None
        """Bound address of the pages; None: the listener is not open."""

    async def open(self) -> None:
        """Open the listener of the pages, if the configuration has one.

        Raises:
            EirError: if the address cannot be bound.
        """
        where = self._config().http
        if where is None:
            return
        host, _, port = where.rpartition(":")
        try:
            address, bound = await self._server.listen(host.strip("[]"), int(port))
        except OSError as e:
            raise cannot_listen(f"http {where}", e) from None
        self.address = address_text([address], bound)
        self._report("listening", address=f"http://{self.address}", pages=f"/ {RUNBOOK} /metrics /live /ready")

    async def close(self) -> None:
        """Close the listener of the pages and all connections."""
        await self._server.close()

    def snapshot(self) -> metrics.Snapshot:
        """Return the counts of clients that the pages refused: name of the metric → label values → count."""
        refused = self._access.refused
        return {"eir_clients_refused_total": {(PAGE, reason): count for reason, count in refused.items()}}

    async def _page(self, request: HttpRequest) -> HttpResponse:
        """Return the web page for people. If the form or query has an `imei`, the page shows the result of `eir check` for it, and for its `imsi`."""

        def report(reason: str) -> None:
            self._report("client_refused", reason=reason, level="warning", interface=PAGE, address=request.address)

        refused = self._access.refusal(request, self._config().page, report)
        if refused is not None:
            if refused.status == 401 and "authorization" in request.headers:
                await asyncio.sleep(WRONG_PASSWORD_S)
            return refused
        form = parse_qs(request.body.decode("latin-1") if request.method == "POST" else request.query)
        imei, imsi = (strip_separators(form.get(name, [""])[0])[:IDENTIFIER_MAX] for name in ("imei", "imsi"))
        answer = await self._read_only.check(imei, imsi)
        async with self._computing:
            return await self._rendered(imei, imsi, answer)

    async def _rendered(self, imei: str, imsi: str, answer: str) -> HttpResponse:
        """Return the web page with the answer to a check. `imei` and `imsi`: identifiers of the check; empty without a check."""
        config = self._config()
        report, status = await self._overview.report_and_document()
        events = await self._followed.recent_events()
        lists = {} if report is None else report.lists
        changes = {event.list: event for event in events if event.list is not None and event.outcome != REFUSED}
        refusals = [event for event in events if event.outcome == REFUSED]
        peers = await self._overview.answered.peers()
        content = PageContent(
            host=config.identity.host, status=status, troubles=self._overview.troubles, peers=peers, traffic=self._overview.traffic(),
            lists=lists, changes=changes, events=events, refusals=refusals, minutes=self._overview.minutes(),
            percentiles=self._overview.percentiles(), ending=self._overview.ending(), metrics=self._overview.metrics,
            store=config.store.partition(":")[0], disk=await asyncio.to_thread(_disk_space, config.state), imei=imei, imsi=imsi,
            answer=answer, full_identifiers=config.full_identifiers, now=datetime.now(UTC),
        )  # fmt: skip
        return page(content)._replace(authenticated=True)


def _disk_space(folder: Path) -> DiskSpace | None:
    """Return the space of the disk that has a folder; None if the disk cannot be read."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return DiskSpace(usage.free, usage.total) if usage.total else None


@cache
def _advice_page() -> HttpResponse:
    """Read deploy/RUNBOOK.md, and render the web page with the runbook's advice on alerts.

    A wheel has the file beside this module (setup.py).
    """
    in_wheel = Path(__file__).with_name("RUNBOOK.md")
    in_source = Path(__file__).parents[3] / "deploy" / "RUNBOOK.md"
    file = in_wheel if in_wheel.exists() else in_source
    return runbook(file.read_text())
