"""Keeps the node registered with an NRF: asks what eir.interfaces.n5g.nrf says, over HTTP/2, and waits in between. Runs in the front.

Each request has a connection of its own, so that nothing hangs on one that an NRF has forgotten. Nothing here is on the path of a
check: with no NRF in reach the node answers as always.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from eir.errors import Report
from eir.interfaces.n5g.nrf import Ask, Registration, Standing, profile_of
from eir.interfaces.n5g.settings import NrfSettings
from eir.wire.transport.stream import connected, fault_text
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.http2_client import Answer, Exchange, NoAnswer

ASK_S = 3.0
"""Time that an NRF has for a connection and an answer."""
LEAVE_S = 0.8
"""The same at the node's end, which waits for it before clients are sent away."""
NRF_EACH_S = 1.0
"""The part of it after which the next address of an NRF's name is tried."""
READ_BYTES = 65_536


class Registering:
    """The registration, from `run` on until `leave`."""

    def __init__(
        self, settings: NrfSettings, instance: str, endpoints: Sequence[str], standing: Callable[[], Standing], *, tokens: bool,
        tls: TlsFiles | None, report: Report, ask_s: float = ASK_S,
    ) -> None:  # fmt: skip
        """`standing`: how the node is; `tls`: with what to prove itself to an NRF whose URI is https; otherwise as in profile_of."""
        self._settings = settings
        self._standing, self._ask_s = standing, ask_s
        self.use(tls)
        self._clock = time.monotonic
        profile = profile_of(
            settings,
            instance,
            endpoints,
            tokens=tokens,
            started=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        self._registration = Registration(
            settings, instance, profile, report=report, chance=random.random, now=self._clock()
        )

    def use(self, tls: TlsFiles | None) -> None:
        """Prove ourselves with other files from now on."""
        self._tls = None if tls is None else _context(tls)

    async def run(self) -> None:
        """Register and stay so, until cancelled."""
        registration = self._registration
        while True:
            await asyncio.sleep(max(0.0, registration.due - self._clock()))
            await self._make(registration.step(self._clock(), self._standing()), self._ask_s)

    async def leave(self) -> None:
        """Tell the NRF that the node ends; to be called once `run` is cancelled."""
        until, ask = self._clock() + LEAVE_S, self._registration.leave()
        while ask is not None:
            await self._make(ask, max(0.0, until - self._clock()))
            ask = self._registration.redirected()

    async def _make(self, ask: Ask, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answer(ask)
        except TimeoutError:
            self._registration.failed(self._clock(), f"no answer in {timeout_s:.1g} s")
        except NoAnswer as e:
            self._registration.failed(self._clock(), str(e))
        except OSError as e:
            self._registration.failed(self._clock(), fault_text(e, secure=ask.url.startswith("https:")))
        else:
            self._registration.answered(self._clock(), answer.status, answer.headers, answer.body)

    async def _answer(self, ask: Ask) -> Answer:
        """Return the answer of the NRF. Raises OSError or NoAnswer."""
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
            writer.write(exchange.take())
            while exchange.answer is None:
                exchange.receive(await reader.read(READ_BYTES))
                writer.write(exchange.take())
            return exchange.answer
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                await writer.wait_closed()

    def status(self) -> Mapping[str, Any]:
        """Return what `eir status` shows of the registration."""
        registration = self._registration
        ago = None if registration.last_answer is None else round(self._clock() - registration.last_answer)
        return {"registered": registration.where, "last_answer_s_ago": ago, "last_error": registration.last_error}

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Metrics by name and labels."""
        registration = self._registration
        return {
            "eir_nrf_registered": {(uri,): float(uri == registration.where) for uri in self._settings.uri},
            "eir_nrf_requests_total": {labels: float(count) for labels, count in registration.requests.items()},
        }


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context for handshakes with an NRF.

    Its certificate has to carry the name or address of its URI (TS 33.210 6.2).
    """
    context = load_tls(files).connecting
    context.check_hostname = True
    context.set_alpn_protocols(["h2"])
    return context
