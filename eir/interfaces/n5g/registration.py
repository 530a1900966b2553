"""NRF client in the manager: sends the requests of eir.interfaces.n5g.nrf over HTTP/2 when they are due.

Each request has a connection of its own, so that a connection that an NRF has dropped delays nothing. No check depends on this
module: without any NRF the node answers checks as before.
"""

import asyncio
import random
import ssl
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eir.disk import write_file
from eir.errors import Report
from eir.interfaces.interface import NodeLoad, Samples, SharedSettings
from eir.interfaces.n5g.nrf import Ask, Registration, profile_of
from eir.interfaces.n5g.settings import NF_INSTANCE_FILE, N5gSettings, NrfSettings
from eir.schema import DETAILS
from eir.wire.transport.endpoint import is_http
from eir.wire.transport.stream import connected, fault_text
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.http2_client import Exchange, Http2Answer, NoAnswer

ASK_S = 3.0
"""Seconds for a connection to an NRF and its answer."""
LEAVE_S = 0.8
"""Seconds for the deregistration at the node's end, which delays the end of clients' connections."""
NRF_EACH_S = 1.0
"""Seconds of them after which the next address of an NRF's name is tried."""
READ_BYTES = 65_536


def instance_of(nrf: NrfSettings | None, folder: Path) -> str:
    """Return the node's NF instance id: from the configuration, or from the state folder if the configuration has no id."""
    return nrf.instance if nrf is not None and nrf.instance is not None else own_instance(folder)


def own_instance(folder: Path) -> str:
    """Return the NF instance id in the state folder, a UUID of version 4; create it if it does not exist (TS 29.571 5.3.2).

    The first call creates the id and stores it in the state folder.
    """
    file = folder / NF_INSTANCE_FILE
    try:
        return str(uuid.UUID(file.read_text().strip()))
    except (OSError, ValueError):
        instance = str(uuid.uuid4())
    with suppress(OSError):
        write_file(file, f"{instance}\n".encode())
    return instance


class Registrar:
    """Task in the manager that keeps the node registered with an NRF while listeners for AMFs are open."""

    def __init__(self, standing: Callable[[], NodeLoad], report: Report, ask_s: float = ASK_S) -> None:
        self._standing, self._report, self._ask_s = standing, report, ask_s
        self._clock = time.monotonic
        self._settings: N5gSettings | None = None
        self._tls: ssl.SSLContext | None = None
        """TLS context with the node's certificate, for an NRF whose URI is https."""
        self._registration: Registration | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def apply(
        self, settings: N5gSettings, shared: SharedSettings, tls: TlsFiles | None, listening: Sequence[str]
    ) -> None:
        """Apply new settings. If they have changed, deregister the node and register it with the new settings.

        `listening`: open listeners.
        """
        before, self._settings = self._settings, settings
        self._tls = None if tls is None else _context(tls)
        if settings == before:
            return
        if before is None and settings.listen and settings.tokens is None:
            self._report("no_access_tokens", setting="n5g.tokens", detail="AMFs need no access token")
        await self._leave()
        nrf, urls = settings.nrf, [url for url in listening if is_http(url)]
        if nrf is None or not urls or self._closing:
            return
        started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        instance = instance_of(nrf, shared.state)
        profile = profile_of(nrf, instance, nrf.endpoints or urls, tokens=settings.tokens is not None, started=started)
        registration = self._registration = Registration(
            nrf, instance, profile, report=self._report, chance=random.random, now=self._clock()
        )
        self._task = asyncio.get_running_loop().create_task(self._run(registration))

    async def close(self) -> None:
        """Stop the task: deregister the node at the NRF, and never register it again."""
        self._closing = True
        await self._leave()

    def status(self) -> Mapping[str, Any]:
        """Return the state of the registration for `eir status`; empty if no NRF is configured."""
        if (registration := self._registration) is None:
            return {}
        ago = None if registration.last_answer is None else round(self._clock() - registration.last_answer)
        error = registration.last_error
        return {"nrf": {"registered": registration.where, "last_answer_s_ago": ago, "last_error": error}}

    def numbers(self) -> Samples:
        """Return the metrics of the registration by name and label values."""
        if (registration := self._registration) is None or self._settings is None or self._settings.nrf is None:
            return {}
        return {
            "eir_nrf_registered": {(uri,): float(uri == registration.where) for uri in self._settings.nrf.uri},
            DETAILS: {("EirNotRegistered", "", registration.last_error or "not asked yet"): 1.0},
            "eir_nrf_requests_total": {labels: float(count) for labels, count in registration.requests.items()},
        }

    async def _run(self, registration: Registration) -> None:
        """Register the node and keep it registered, until cancelled."""
        while True:
            await asyncio.sleep(max(0.0, registration.due - self._clock()))
            await self._make(registration, registration.step(self._clock(), self._standing()), self._ask_s)

    async def _leave(self) -> None:
        """Deregister the node at its NRF, so that AMFs stop sending requests."""
        registration, task, self._registration, self._task = self._registration, self._task, None, None
        if registration is None or task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        until, ask = self._clock() + LEAVE_S, registration.leave()
        while ask is not None:
            await self._make(registration, ask, max(0.0, until - self._clock()))
            ask = registration.redirected()

    async def _make(self, registration: Registration, ask: Ask, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answer(ask)
        except TimeoutError:
            registration.failed(self._clock(), f"no answer in {timeout_s:.1g} s")
        except NoAnswer as e:
            registration.failed(self._clock(), str(e))
        except OSError as e:
            registration.failed(self._clock(), fault_text(e, secure=ask.url.startswith("https:")))
        else:
            registration.answered(self._clock(), answer.status, answer.headers, answer.body)

    async def _answer(self, ask: Ask) -> Http2Answer:
        """Send a request to an NRF, and return its answer.

        Raises:
            OSError: if the NRF cannot be reached.
            NoAnswer: if it sends no valid answer.
        """
        at = urlsplit(ask.url)
        secure = at.scheme == "https"
        if secure and self._tls is None:
            raise NoAnswer("https needs the section 'tls'")
        reader, writer = await asyncio.open_connection(
            sock=await connected(at.hostname or "", at.port or (443 if secure else 80), NRF_EACH_S), ssl=self._tls if secure else None, server_hostname=at.hostname if secure else None
        )  # fmt: skip
        try:
            path = f"{at.path or '/'}?{at.query}" if at.query else at.path or "/"
            pseudo = [(":method", ask.method), (":scheme", at.scheme), (":authority", at.netloc), (":path", path)]
            exchange = Exchange([*pseudo, *ask.headers], ask.body)
            writer.write(exchange.data_to_send())
            while exchange.answer is None:
                exchange.receive(await reader.read(READ_BYTES))
                writer.write(exchange.data_to_send())
            return exchange.answer
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                await writer.wait_closed()


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Return the TLS context for requests to NRFs.

    An NRF's certificate must contain the name or address in its URI (TS 33.210 6.2).
    """
    context = load_tls(files).connecting
    context.check_hostname = True
    context.set_alpn_protocols(["h2"])
    return context
